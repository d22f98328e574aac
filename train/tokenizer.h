#pragma once
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace hedgehog {

/// Ids that a model expects around a text, such as a token that begins it.
struct TokenFrame {
  std::vector<int32_t> before;
  std::vector<int32_t> after;
};

/// Text to token ids and back. Ids are 0 … size()-1. Immutable after construction; safe to share between threads.
///
/// | kind          | tokens                                                   | decode(encode(text))                            |
/// | ------------- | -------------------------------------------------------- | ----------------------------------------------- |
/// | byte          | the 256 bytes                                            | text                                            |
/// | char          | the distinct bytes of the training text, in byte order   | text                                            |
/// | word          | <unk>, <end>, then words and punctuation by count        | text, with <unk> where a piece is unknown       |
/// | story         | a fixed list of lower-case words and punctuation         | text in normal writing (capitals, spaces)       |
/// | bpe           | the 256 bytes and merges of them, added ones             | text, if all bytes are there and no flag says   |
/// |               |                                                          | otherwise (space before, white space taken)     |
/// | sentencepiece | characters and merges of them, the 256 bytes, added ones | text without control tokens, if all bytes are   |
/// |               |                                                          | there                                           |
/// | wordpiece     | words, beginnings and ##continuations of words           | words in lower case, one space between          |
///
/// File format (tokenizer.json): for bpe, wordpiece, and sentencepiece with merges, that of Hugging Face (tokenizer_bpe.h,
/// tokenizer_wordpiece.h, tokenizer_sentencepiece.h), else {"hedgehog": "tokenizer", "version": 1, "type": KIND, ...} with,
/// for char, "bytes" (ascending integers 0…255), for word and story, "tokens" (unique strings in id order), for story,
/// "names" (those of the tokens that are written with a capital), and for sentencepiece, "tokens", "scores", "types" by id
/// and "space", "prefix_space", "before", "after", "end" (tokenizer_sentencepiece.h).
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  /// The name in the table.
  virtual std::string kind() const = 0;
  /// Number of ids.
  virtual int64_t size() const = 0;
  /// Text to ids. Throws UsageError where the tokenizer cannot write the text (char, story), naming what and where.
  virtual std::vector<int32_t> encode(std::string_view text) const = 0;
  /// Appends one id's text to `text`, of which only the end is looked at. Throws Error if the id is out of range.
  virtual void append(std::string& text, int32_t id) const = 0;
  /// Id that ends a document, or -1 where the tokenizer has none.
  virtual int32_t end() const { return -1; }
  /// What the tokenizer's file puts around a text; encode leaves it out. Empty where the file says nothing.
  virtual TokenFrame frame() const { return {}; }
  /// Whether a space that encode put before a text is dropped again: the first character of all text, if it is one.
  virtual bool drops_first_space() const { return false; }
  /// Ids to text. Throws Error if an id is out of range.
  std::string decode(std::span<const int32_t> ids) const;
  /// The text of tokenizer.json.
  virtual std::string to_json() const = 0;
};

using TokenizerPointer = std::shared_ptr<const Tokenizer>;

/// The 256 bytes.
TokenizerPointer byte_tokenizer();

/// The distinct bytes of a text, ascending (65 for Shakespeare, as nanoGPT). Throws FileError if the text is empty.
TokenizerPointer char_tokenizer(std::string_view text);

/// Words and punctuation of a text. A piece is an optional single space and a word (letters, digits, inner apostrophes,
/// bytes from 128 on) or one other character, so that known text decodes to itself; upper and lower case differ.
///
/// text        the training text
/// vocabulary  largest number of ids, with <unk> (0) and <end> (1); the most frequent pieces stay, ties by byte order
///
/// Throws: UsageError if vocabulary < 3.
TokenizerPointer word_tokenizer(std::string_view text, int64_t vocabulary);

/// The same from its tokens in id order: "<unk>", "<end>", then pieces. Throws Error if they are not that.
TokenizerPointer word_tokenizer(std::vector<std::string> tokens);

/// A fixed vocabulary, for the story corpus. Encoding lower-cases, splits off . , ? ! and looks words up; decoding
/// starts sentences with a capital and joins punctuation to its word. A token "\n" stands for a line break; a token in
/// angle brackets, such as "<end>", is matched whole and prints nothing. `end()` is the id of "<end>" if listed.
///
/// words  in id order, unique, not empty
/// names  those of the words that are written with a capital everywhere
///
/// Throws: Error if the words are not unique or a name is not among them.
TokenizerPointer story_tokenizer(std::vector<std::string> words, std::vector<std::string> names = {});

/// The tokenizer that `--tokenizer=` names: byte, char, word, bpe, or a directory or file with a tokenizer.json, or a
/// directory with GPT-2's encoder.json and vocab.bpe (also named vocab.json and merges.txt).
///
/// name        the option's value
/// text        training text, for char the whole text
/// vocabulary  cap for word and bpe
///
/// Throws: UsageError for an unknown name (nearest offered), FileError for a damaged file.
TokenizerPointer make_tokenizer(const std::string& name, std::string_view text, int64_t vocabulary);

/// Writes tokenizer.json. Throws WriteError.
void save_tokenizer(const Tokenizer& tokenizer, const std::filesystem::path& file);

/// Reads tokenizer.json, a file named *.bin as llama2.c's tokenizer, one named *.txt as WordPiece's vocabulary; everything in it
/// is checked. Throws FileError naming file and field.
TokenizerPointer load_tokenizer(const std::filesystem::path& file);

/// Turns ids into text as they come, for printing to a terminal: never half of a UTF-8 character; bytes that cannot
/// become one are printed as U+FFFD.
class StreamingDecoder {
 public:
  explicit StreamingDecoder(TokenizerPointer tokenizer) : tokenizer_(std::move(tokenizer)) {}

  /// Takes ids that were already printed (the prompt), so that spacing and capitals go on from them.
  void skip(std::span<const int32_t> ids);
  /// Takes one id; returns the text that is now complete (may be empty).
  std::string push(int32_t id);
  /// Returns what is left: U+FFFD for an unfinished character, else empty.
  std::string finish();

 private:
  void append(int32_t id);

  TokenizerPointer tokenizer_;
  std::string text_;    // the end of all text so far
  size_t printed_ = 0;  // bytes of text_ already handed out
  bool begun_ = false;  // some text came
};

}  // namespace hedgehog

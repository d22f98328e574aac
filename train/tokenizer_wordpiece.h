#pragma once
#include <cstdint>
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "train/added_tokens.h"
#include "train/tokenizer.h"

namespace hedgehog {

/// What stands before the part of a word that does not begin it.
inline constexpr std::string_view kContinuation = "##";

/// A vocabulary of words and their parts, as BERT has it.
///
/// tokens         by id
/// added          found whole in the text as it is
/// unknown        id of words that no tokens make
/// longest_word   characters; longer words are unknown
/// clean          control characters go, and U+FFFD; white space becomes spaces
/// cjk            every character of Chinese writing is a word
/// strip_accents  normal form D without marks of category Mn
/// lowercase      lower case
/// frame          around a text for those who ask
struct WordPieceVocabulary {
  std::vector<std::string> tokens;
  std::vector<AddedToken> added;
  int32_t unknown = 0;
  int64_t longest_word = 100;
  bool clean = true;
  bool cjk = true;
  bool strip_accents = true;
  bool lowercase = true;
  TokenFrame frame;
};

/// The tokenizer of a vocabulary: text is cut at white space and around each punctuation character, then the longest token
/// that begins a word is taken, and again for the rest. Bytes that belong to no character count as U+FFFD. Characters have
/// the categories of utf8proc's Unicode; Hugging Face's `tokenizers` knows none for those that came after Unicode 8.
///
/// Throws: Error, one sentence, if a token is empty, no UTF-8 or twice there, an id is out of range, longest_word < 1, an
/// added token is found as normalized, or the program was built without utf8proc.
/// Source: `google-research/bert:tokenization.py`.
TokenizerPointer wordpiece_tokenizer(WordPieceVocabulary vocabulary);

/// The text of tokenizer.json as Hugging Face's `tokenizers` writes it.
std::string wordpiece_json(const WordPieceVocabulary& vocabulary);

/// Whether a tokenizer.json of Hugging Face is for these: model WordPiece.
bool is_wordpiece_json(const nlohmann::json& json);

/// Takes Hugging Face's: model WordPiece, BertNormalizer, BertPreTokenizer. Throws FileError naming file and field, for what is
/// not supported too.
WordPieceVocabulary read_wordpiece_json(const std::filesystem::path& file, const nlohmann::json& json);

/// Reads vocab.txt: one token a line, with [UNK], [CLS] and [SEP] among them; lower case, as BERT's uncased models. Throws
/// FileError naming file and line.
WordPieceVocabulary read_wordpiece_words(const std::filesystem::path& file);

/// As wordpiece_tokenizer, with FileError naming the file for what is wrong.
TokenizerPointer wordpiece_tokenizer_of(const std::filesystem::path& file, WordPieceVocabulary vocabulary);

}  // namespace hedgehog

#pragma once
#include <array>
#include <cstdint>
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "train/added_tokens.h"
#include "train/pieces.h"
#include "train/tokenizer.h"

namespace hedgehog {

/// Text that ends a document, a token of its own in byte-pair vocabularies.
inline constexpr std::string_view kEndOfText = "<|endoftext|>";

/// Two tokens that become one, in a piece of text.
struct BpeMerge {
  int32_t left = 0;
  int32_t right = 0;
  int32_t merged = 0;
};

/// A byte-pair vocabulary.
///
/// tokens         bytes of every token, by id
/// merges         by rank: of all pairs in a piece, the one of the lowest rank is merged first, the leftmost of those
/// added          tokens matched whole: the first in the text, the longest of those
/// pattern        of the pieces, see piece_rule
/// ignore_merges  a piece that is a token becomes that token, whatever the merges
/// prefix_space   text between added tokens begins with a space, which is put there if need be
/// compose        text between added tokens is put into Unicode's normal form C
/// frame          around a text for those who ask; ids of added tokens
struct BpeVocabulary {
  std::vector<std::string> tokens;
  std::vector<BpeMerge> merges;
  std::vector<AddedToken> added;
  std::string pattern;
  bool ignore_merges = false;
  bool prefix_space = false;
  bool compose = false;
  TokenFrame frame;
};

/// The 256 bytes in the order of GPT-2's ids: first those that Latin-1 prints (33-126, 161-172, 174-255), then the rest.
const std::array<uint8_t, 256>& gpt2_byte_order();

/// Bytes written as GPT-2's files write them: the printable ones as themselves, the n-th of the rest as U+0100 + n.
std::string visible_bytes(std::string_view bytes);

/// The bytes again. Throws Error naming the first character that stands for no byte.
std::string bytes_of_visible(std::string_view visible);

/// Learns merges from a text: pieces are counted, then the most frequent pair of neighbours becomes a token, again and
/// again. Of equally frequent pairs the one with the lower left id, then the lower right id, goes first; a pair whose
/// bytes are a token already is passed over; pairs that occur once are left. Pieces over 256 bytes count in parts of 256.
/// The same for any number of threads.
///
/// text        the training text
/// vocabulary  ids wanted: 256 bytes in GPT-2's order, then merges in order, then <|endoftext|>; fewer if pairs run out
/// pattern     of the pieces
///
/// Throws: UsageError if vocabulary < 257.
/// Source: Sennrich, Haddow, Birch 2016, arXiv:1508.07909; over bytes as in Radford et al. 2019 (GPT-2).
BpeVocabulary train_bpe(std::string_view text, int64_t vocabulary, const std::string& pattern = kOwnPattern);

/// The tokenizer of a vocabulary. Encoding keeps a cache of pieces and takes all threads for long texts; the ids depend on
/// neither. Bytes that no token stands for are left out, as Hugging Face does. Documents end with <|endoftext|>, else with
/// <|end_of_text|>.
///
/// Throws: Error, one sentence, if a token is empty, twice there, or (save with ignore_merges) neither a byte nor a merge's
/// nor added; if a merge is twice there, names ids out of range, or its token is not the two joined; if the frame has
/// another id than an added token's; if piece_rule refuses, or to compose without utf8proc.
TokenizerPointer bpe_tokenizer(BpeVocabulary vocabulary);

/// The text of tokenizer.json as Hugging Face's `tokenizers` writes it: model BPE, ByteLevel pre-tokenizer and decoder.
std::string bpe_json(const BpeVocabulary& vocabulary);

/// Takes what bpe_json and Hugging Face write: pre_tokenizer ByteLevel, alone or after Digits or a Split by a regular
/// expression. Throws FileError naming file and field, for what is not supported too.
BpeVocabulary read_bpe_json(const std::filesystem::path& file, const nlohmann::json& json);

/// Reads GPT-2's two files: encoder.json or vocab.json, and vocab.bpe or merges.txt; <|endoftext|> is an added token where
/// the vocabulary has it. Throws FileError naming file and token or line.
BpeVocabulary read_bpe_files(const std::filesystem::path& vocabulary, const std::filesystem::path& merges);

/// The vocabulary of lists, as GGUF has them: tokens by id and merges by rank as GPT-2's files write them, some tokens added ones.
/// Its pattern is left empty. Throws FileError naming file and token or merge.
BpeVocabulary read_bpe_lists(const std::filesystem::path& file, const std::vector<std::string_view>& tokens,
                             const std::vector<std::string_view>& merges, const std::vector<AddedToken>& added);

/// As bpe_tokenizer, with FileError naming the file for what is wrong.
TokenizerPointer bpe_tokenizer_of(const std::filesystem::path& file, BpeVocabulary vocabulary);

}  // namespace hedgehog

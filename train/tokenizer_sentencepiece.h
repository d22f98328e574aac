#pragma once
#include <cstdint>
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "train/tokenizer_bpe.h"

namespace hedgehog {

/// SentencePiece's mark for a space.
inline constexpr std::string_view kSpaceMark = "\u2581";

/// What a token is, with the numbers of SentencePiece and GGUF.
enum class SentencePieceType : uint8_t { kNormal = 1, kUnknown, kControl, kUserDefined, kUnused, kByte };

/// A vocabulary of merged characters, as Llama 2 has it.
///
/// tokens         by id; a byte's is <0x00> … <0xFF>; a space is `space`
/// types          by id. Normal tokens are merged; a user-defined one is found whole in the text; control tokens come out
///                of no text and print nothing; unused ones come out of no text
/// scores         by id: of all pairs of neighbours that are a token together, the one of the best score is merged first,
///                the leftmost of those. Empty where there are merges
/// merges         by rank, the lowest first, the leftmost of those. Empty where there are scores
/// added          found whole in the text, beside user-defined tokens
/// space          kSpaceMark or a plain space
/// prefix_space   a space is put before every text, also between added tokens, and not printed at the very beginning
/// fuse_unknown   neighbours that no token stands for are one unknown token
/// end            ends a document, or -1
/// frame          around a text for those who ask
struct SentencePieceVocabulary {
  std::vector<std::string> tokens;
  std::vector<SentencePieceType> types;
  std::vector<float> scores;
  std::vector<BpeMerge> merges;
  std::vector<AddedToken> added;
  std::string space{kSpaceMark};
  bool prefix_space = true;
  bool fuse_unknown = true;
  int32_t end = -1;
  TokenFrame frame;
};

/// The tokenizer of a vocabulary. A character that is no token becomes its bytes' tokens, or the unknown token where one of
/// these is missing; a byte that belongs to no character becomes its token. Where no token has a space after another
/// character, text is encoded word by word, with a cache and with all threads; the ids are the same.
///
/// Throws: Error, one sentence, if there are both scores and merges, or a list has another length than the tokens; if a
/// token is empty, no UTF-8, twice there among those that merge, or a byte twice; if a score is not finite; if a merge is
/// twice there, or its token not the two joined; if an id is out of range.
TokenizerPointer sentencepiece_tokenizer(SentencePieceVocabulary vocabulary);

/// The text of tokenizer.json: Hugging Face's for merges, our own for scores, which ranks cannot say.
std::string sentencepiece_json(const SentencePieceVocabulary& vocabulary);

/// Whether a tokenizer.json of Hugging Face is for these: model BPE with byte_fallback.
bool is_sentencepiece_json(const nlohmann::json& json);

/// Takes Hugging Face's: model BPE with byte_fallback, normalizers Prepend and Replace, no pre_tokenizer. Throws FileError
/// naming file and field, for what is not supported too.
SentencePieceVocabulary read_sentencepiece_json(const std::filesystem::path& file, const nlohmann::json& json);

/// Takes our own. Throws FileError naming file and field.
SentencePieceVocabulary read_sentencepiece_scores(const std::filesystem::path& file, const nlohmann::json& json);

/// Reads llama2.c's tokenizer.bin: int32 longest token, then for each id float score, int32 length and the bytes, all
/// little-endian. Id 0 is unknown, 1 begins a text, 2 ends it, then come the bytes.
///
/// vocabulary  ids that there must be, as the model says; -1 for all until the end of the file
///
/// Throws: FileError naming file, id and byte.
/// Source: `karpathy/llama2.c:tokenizer.py`, `run.c`.
SentencePieceVocabulary read_llama2c_tokenizer(const std::filesystem::path& file, int64_t vocabulary = -1);

/// As sentencepiece_tokenizer, with FileError naming the file for what is wrong.
TokenizerPointer sentencepiece_tokenizer_of(const std::filesystem::path& file, SentencePieceVocabulary vocabulary);

}  // namespace hedgehog

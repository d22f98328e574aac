#pragma once
#include <cstdint>
#include <filesystem>
#include <string>

#include "train/data.h"

namespace hedgehog {

/// A text as tokens, cut into shards: what training reads instead of encoding the text again.
///
/// A directory of tokenizer.json and tokens-00000-of-00003.safetensors and so on, each a safetensors file of
///
///   tokens           U16 (n), or I32 where the vocabulary is over 65,536: ids below the vocabulary
///   document_starts  I64 (m): where documents begin, ascending, counted from the shard's first token
///   __metadata__     "format": "hedgehog tokens", "version": "1", "name": of the text, "text_bytes": its length,
///                    "vocabulary": ids of the tokenizer, "tokenizer": SHA-256 of the text it is written as, "shard" and "shards": which of
///                    how many, "tokens": of all shards, "training_tokens": those before the split
///
/// all           the tokens of all shards; where the split cuts a document, its two parts are encoded one by one, as training reads them
/// split         tokens of the training part, the first
/// tokenizer     of the tokenizer.json beside them
/// fingerprint   equal for equal tokens, document starts and split
struct TokenShards {
  TokenStream all;
  std::int64_t split = 0;
  TokenizerPointer tokenizer;
  std::string name;
  std::int64_t text_bytes = 0;
  std::string fingerprint;

  /// Training and validation parts, as TokenDataset::from_text gives them for the text.
  TokenDataset parts() &&;
  /// All as validation tokens, as TokenDataset::whole but for a piece that the split cuts.
  TokenDataset whole() &&;
};

/// The training part of a text, as training splits it.
inline constexpr double kTrainFraction = 0.9;

/// Tokens that a shard of `prepare` holds at most: 256 MB of U16.
inline constexpr std::int64_t kTokensPerShard = std::int64_t(1) << 27;

/// Whether --data names a directory that holds shards.
bool holds_token_shards(const std::string& where);

/// Throws FileError if a directory holds shards already: they are not overwritten.
void check_no_token_shards(const std::filesystem::path& directory);

/// Encodes a text and writes its shards, with the tokenizer.json, into a directory, which is made. A shard has its name when it is whole.
///
/// Returns how many tokens they hold. Throws: WriteError; FileError if the text is too short, or as
/// check_no_token_shards.
std::int64_t write_token_shards(const std::filesystem::path& directory, const TextSource& text, const Tokenizer& tokenizer,
                                std::int64_t tokens_per_shard = kTokensPerShard);

/// Reads them. Nothing in the files is trusted: besides what SafetensorsFile checks, every field, id and document start is.
///
/// tokenizer  of a run that goes on or is evaluated: the shards must be of the same one
///
/// Throws: FileError naming file, field and, where it is a number of a tensor, its offset.
TokenShards read_token_shards(const std::filesystem::path& directory, const TokenizerPointer& tokenizer = {});

}  // namespace hedgehog

#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "train/text_source.h"
#include "train/tokenizer.h"

namespace hedgehog {

/// Tokens and what is to be predicted, (rows, time) row-major each.
///
/// targets         the token after each one; kIgnoredTarget where there is nothing to predict
/// document_start  index within the row at which the token's document begins; 0 if it began before the row
/// valid           number of targets that are not kIgnoredTarget
struct Batch {
  int64_t rows = 0;
  int64_t time = 0;
  std::vector<int32_t> tokens;          // (B, T)
  std::vector<int32_t> targets;         // (B, T)
  std::vector<int32_t> document_start;  // (B, T)
  int64_t valid = 0;
};

inline constexpr int32_t kIgnoredTarget = -1;

/// Uniform integer in [0, count) as a pure function of (seed, step, row): splitmix64 finalisers over the three, then
/// the high half of a 128-bit product. So a resumed run draws the same rows, and rows do not depend on the batch's cut.
int64_t row_offset(uint64_t seed, int64_t step, int64_t row, int64_t count);

/// One stream of tokens with the places where documents begin (ascending, the first 0).
struct TokenStream {
  std::vector<int32_t> tokens;
  std::vector<int64_t> document_starts;
};

/// Byte position of the train/validation split: floor(fraction * bytes), moved back to the start of a UTF-8 character.
size_t split_position(std::string_view text, double train_fraction);

/// Training and validation tokens, split by position.
class TokenDataset {
 public:
  TokenDataset(TokenStream train, TokenStream validation);

  /// Splits the text by position, then encodes each part; where the tokenizer has an end token, one closes each
  /// document.
  ///
  /// train_fraction  in (0, 1); the first part trains
  ///
  /// Throws: FileError if either part has fewer than 2 tokens, naming the text and its length.
  static TokenDataset from_text(const TextSource& source, const Tokenizer& tokenizer, double train_fraction = 0.9);
  /// The whole text as validation tokens, nothing to train on. Throws: FileError if it has fewer than 2 tokens.
  static TokenDataset whole(const TextSource& source, const Tokenizer& tokenizer);

  std::span<const int32_t> train() const { return train_.tokens; }
  std::span<const int32_t> validation() const { return validation_.tokens; }
  const TokenStream& training_stream() const { return train_; }
  const TokenStream& validation_stream() const { return validation_; }
  /// Documents in both parts together; one that the split cuts counts twice.
  int64_t document_count() const { return int64_t(train_.document_starts.size() + validation_.document_starts.size()); }
  /// Whether a row can hold more than one document.
  bool packed() const { return train_.document_starts.size() > 1 || validation_.document_starts.size() > 1; }

  /// Refuses a context that the data cannot fill: training needs context + 1 tokens. (Validation windows are padded.)
  /// Throws: UsageError naming both numbers.
  void check_context(int64_t context) const;

  /// Random training windows, as nanoGPT: each row starts anywhere in [0, tokens - context), drawn by `row_offset`.
  ///
  /// seed        of the run
  /// step        counts from 0; with gradient accumulation all micro-batches of a step share it
  /// first_row   index of the first row within the step's global batch (micro-batch k: k * rows)
  /// rows        rows wanted
  /// context     tokens a row
  ///
  /// Throws: UsageError as check_context.
  Batch training_batch(uint64_t seed, int64_t step, int64_t first_row, int64_t rows, int64_t context) const;

  /// Batches that cover the validation tokens once: windows [w * context, (w + 1) * context) in order, every token but
  /// the first is a target exactly once; the last window and the last batch are padded with ignored targets.
  int64_t validation_batches(int64_t rows, int64_t context) const;
  /// The index-th of them, 0 … validation_batches - 1.
  Batch validation_batch(int64_t index, int64_t rows, int64_t context) const;

  /// Random validation windows, as nanoGPT's estimate (20 batches): like training_batch on the validation tokens; where
  /// they are shorter than the context, rows are padded.
  Batch random_validation_batch(uint64_t seed, int64_t index, int64_t rows, int64_t context) const;

 private:
  TokenStream train_;
  TokenStream validation_;
};

}  // namespace hedgehog

#pragma once
#include <string>
#include <string_view>

#include "train/batch_source.h"

namespace hedgehog {

/// A text for perplexity by sliding windows, the convention of WikiText: the whole text is one stream, and each token is counted once,
/// behind as much of the text as its window holds.
///
///   window w reads tokens [w S, w S + C) and counts, of those that follow each of them, the ones that no earlier window counted:
///   window 0 counts tokens 1 … C, window w > 0 tokens w S + C - S + 1 … w S + C
///
/// So a token has between C - S + 1 and C tokens before it, those near the text's beginning all there are. Not counted is the text's first
/// token alone, which has nothing before it. Documents are joined: a token that ends one is counted as any other, and windows reach back
/// over it. Perplexity is exp of the mean of the counted losses; per word, exp of their sum over the words of the text.
///
/// tokens   (N) the text; kept
/// context  C, tokens a window reads
/// stride   S, tokens from one window to the next, 1 … C; C: every token is read once; 1: each has all C before it, at C times the cost
///
/// Throws: UsageError for a stride above the context.
class SlidingWindows : public BatchSource {
 public:
  SlidingWindows(std::vector<std::int32_t> tokens, std::string name, std::int64_t context, std::int64_t stride);
  Batch training(std::int64_t step, std::int64_t first_row, std::int64_t rows) const override;
  std::int64_t windows() const;
  std::int64_t validation_batches(std::int64_t rows) const override { return (windows() + rows - 1) / rows; }
  /// Windows index * rows … of them; rows behind the last count nothing.
  Batch validation(std::int64_t index, std::int64_t rows) const override;
  std::string describe() const override;
  /// Tokens that are counted.
  std::int64_t counted() const { return std::int64_t(tokens_.size()) - 1; }

 private:
  std::vector<std::int32_t> tokens_;
  std::string name_;
  std::int64_t context_, stride_;
};

/// Words of a text for its perplexity per word: runs of what is not Unicode's white space.
std::int64_t count_words(std::string_view text);

}  // namespace hedgehog

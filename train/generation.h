#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "core/executor.h"
#include "nn/gpt.h"
#include "train/sampling.h"

namespace hedgehog {

/// Writes token after token with a model's recurrent state: with linear attention the cost of a token does not depend on
/// its position.
class Generator {
 public:
  /// capacity  most tokens that one text may have (softmax attention keeps them all, and learned positions end there)
  Generator(const Gpt& model, std::int64_t capacity);

  /// Forgets everything read so far.
  void reset();
  /// Reads tokens: the prompt. Throws UsageError when the capacity is used up.
  void read(std::span<const std::int32_t> ids);
  /// Draws the next token from what was read, and reads it. uniform in [0, 1).
  std::int32_t next(const Sampling& sampling, double uniform);
  /// Tokens read so far.
  std::int64_t position() const { return position_; }
  /// Logits of the next token.
  const std::vector<float>& logits() const { return logits_; }

 private:
  void push(std::int32_t id);

  std::int64_t capacity_, position_ = 0;
  DecodingState state_;
  std::vector<std::vector<double>> empty_;
  Tensor token_;
  std::unique_ptr<Executor> executor_;
  std::vector<float> logits_;
};

}  // namespace hedgehog

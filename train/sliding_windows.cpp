#include "train/sliding_windows.h"

#include <fmt/format.h>

#include <algorithm>

#include "core/error.h"
#include "train/utf8.h"

namespace hedgehog {

SlidingWindows::SlidingWindows(std::vector<std::int32_t> tokens, std::string name, std::int64_t context, std::int64_t stride)
    : tokens_(std::move(tokens)), name_(std::move(name)), context_(context), stride_(stride) {
  if (stride < 1 || stride > context)
    throw UsageError(fmt::format("--stride={} must be from 1 to the model's context of {} tokens; a larger one would leave tokens out",
                                 stride, context));
}

Batch SlidingWindows::training(std::int64_t, std::int64_t, std::int64_t) const { throw Error("[eval] there are no training rows"); }

std::int64_t SlidingWindows::windows() const {
  return 1 + std::max<std::int64_t>(0, counted() - context_ + stride_ - 1) / stride_;
}

Batch SlidingWindows::validation(std::int64_t index, std::int64_t rows) const {
  Batch b;
  b.rows = rows, b.time = context_;
  const std::size_t size = std::size_t(rows * context_);
  b.tokens.assign(size, 0), b.targets.assign(size, kIgnoredTarget), b.document_start.assign(size, 0);
  for (std::int64_t r = 0; r < rows; ++r) {
    const std::int64_t window = index * rows + r, first = window * stride_, count = std::min(context_, counted() - first);
    if (window >= windows()) break;
    const std::int64_t known = window ? context_ - stride_ : 0;
    std::copy_n(tokens_.begin() + first, count, b.tokens.begin() + r * context_);
    std::copy_n(tokens_.begin() + first + 1 + known, count - known, b.targets.begin() + r * context_ + known);
    b.valid += count - known;
  }
  return b;
}

std::string SlidingWindows::describe() const {
  return fmt::format("{}: {} tokens, {} windows of {} with stride {}", name_, tokens_.size(), windows(), context_, stride_);
}

std::int64_t count_words(std::string_view text) {
  std::int64_t words = 0;
  bool inside = false;
  for (std::size_t i = 0; i < text.size();) {
    const Utf8Step step = utf8_step(text, i);
    const bool white = step.kind == Utf8Step::Kind::kCharacter && is_white_space(code_point(text.substr(i, step.bytes)));
    words += !white && !inside;
    inside = !white;
    i += step.bytes;
  }
  return words;
}

}  // namespace hedgehog

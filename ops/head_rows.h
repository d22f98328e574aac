#pragma once
#include <fmt/format.h>

#include "core/error.h"
#include "core/op.h"

namespace hedgehog {

/// Addresses inside a (B, T, H, D) tensor that may be a window of a packed one. Tokens of one batch element and head lie
/// `row` elements apart.
template <class T>
class HeadRows {
 public:
  HeadRows() = default;
  /// Empty for a tensor without data. Throws ShapeError if the tokens of one batch element are not evenly spaced.
  HeadRows(const char* op, const Ref& x) : data_(x.as<T>()) {
    if (!data_) return;
    const std::int64_t tokens = x.shape[1];
    depth_ = x.shape[3], width_ = x.shape[2] * depth_, tokens_ = tokens, columns_ = x.columns, stride_ = x.stride;
    batch_ = x.batch;
    const std::int64_t block = columns_ / width_;  // tokens in a run without gap; 0: a token is several runs
    const bool even = block == 0 ? width_ % columns_ == 0 && columns_ % depth_ == 0 : columns_ % width_ == 0 && (block == 1 || (batch_ ? block >= tokens : block % tokens == 0));
    if (!even)
      throw ShapeError(fmt::format("[{}] a window of {} with runs of {} elements has no even distance between tokens; copy it to a "
                                   "tensor of its own first",
                                   op, x.shape.text(), x.columns));
    row = block == 0 ? width_ / columns_ * stride_ : block == 1 ? stride_ : width_;
  }
  /// First element of token t of batch element b in head h.
  T* at(std::int64_t b, std::int64_t t, std::int64_t h) const {
    const std::int64_t flat = ((batch_ ? 0 : b * tokens_) + t) * width_ + h * depth_;
    return data_ + b * batch_ + flat / columns_ * stride_ + flat % columns_;
  }
  explicit operator bool() const { return data_ != nullptr; }

  std::int64_t row = 0;

 private:
  T* data_ = nullptr;
  std::int64_t depth_ = 0, width_ = 0, tokens_ = 1, columns_ = 1, stride_ = 0, batch_ = 0;
};

/// Tokens [first, first + count) of every batch element of a (B, T, H, D) tensor. A tensor without data stays as it is. `first` and `count` are not checked.
inline Ref some_tokens(const Ref& x, std::int64_t first, std::int64_t count) {
  if (!x) return x;
  Ref part = x;
  part.shape = Shape{x.shape[0], count, x.shape[2], x.shape[3]};
  const std::int64_t width = x.shape[2] * x.shape[3];
  const auto place = [&](std::int64_t flat) { return flat / x.columns * x.stride + flat % x.columns; };
  part.batch = x.batch ? x.batch : place(x.shape[1] * width);
  part.data = x.as<std::byte>() + place(first * width) * std::int64_t(size_of(x.dtype));
  return part;
}

/// Calls f(begin, end) for every run of tokens of one document; all T tokens when `start` is null.
template <class F>
void for_each_document(const std::int32_t* start, std::int64_t tokens, F&& f) {
  for (std::int64_t begin = 0, end; begin < tokens; begin = end) {
    end = tokens;
    if (start)
      for (end = begin + 1; end < tokens && start[end] == start[begin];) ++end;
    f(begin, end);
  }
}

}  // namespace hedgehog

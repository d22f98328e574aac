#pragma once
#include <algorithm>
#include <cstdint>

#include "core/op.h"
#include "core/parallel.h"

namespace hedgehog {

/// Distance in memory from the first element to element `flat`, for a tensor that may be rows with a stride.
inline std::int64_t strided_offset(const Ref& x, std::int64_t flat) { return flat / x.columns * x.stride + flat % x.columns; }

/// Splits rows [begin, end) of x, seen as a matrix `width` wide, into runs that a matrix product can take:
/// body(first row, rows, offset of its first element, elements from row to row).
template <class Body>
void for_row_runs(const Ref& x, std::int64_t width, std::int64_t begin, std::int64_t end, const Body& body) {
  const std::int64_t block = x.columns / width;
  if (block == 1) return body(begin, end - begin, begin * x.stride, x.columns == x.size() ? width : x.stride);
  while (begin < end) {
    const std::int64_t inside = begin % block, rows = std::min(end - begin, block - inside);
    body(begin, rows, strided_offset(x, begin * width), width);
    begin += rows;
  }
}

/// Sums over rows use blocks whose number depends on the number of rows alone, so that their bits do not depend on the
/// threads: each block sums into a row of its own, and the blocks are added in order.
inline std::int64_t row_blocks(std::int64_t rows) { return std::clamp<std::int64_t>(rows / 16, 1, 32); }

/// Elements of a row that shares no cache line with the next.
inline std::int64_t padded_row(std::int64_t columns) { return (columns + 15) / 16 * 16; }

/// out (+)= sum over blocks of partials (blocks, stride).
template <class T>
void add_blocks(const T* partials, std::int64_t blocks, std::int64_t stride, std::int64_t columns, T* out, Mode mode) {
  parallel_for(columns, std::max<std::int64_t>(16, 16384 / blocks), [&](std::int64_t begin, std::int64_t end) {
    if (mode == Mode::write) std::fill(out + begin, out + end, T(0));
    for (std::int64_t b = 0; b < blocks; ++b) {
      const T* partial = partials + b * stride;
#pragma omp simd
      for (std::int64_t c = begin; c < end; ++c) out[c] += partial[c];
    }
  });
}

/// y (+)= factor * x over n elements.
template <class T>
void scale_into(const T* x, T factor, T* y, std::int64_t n, Mode mode) {
  parallel_for(n, 32768, [&](std::int64_t begin, std::int64_t end) {
    if (mode == Mode::write)
      for (std::int64_t i = begin; i < end; ++i) y[i] = factor * x[i];
    else
      for (std::int64_t i = begin; i < end; ++i) y[i] += factor * x[i];
  });
}

}  // namespace hedgehog

#pragma once
#include <limits>

#include "cuda/common.cuh"

/// Blocks that walk rows.
namespace hedgehog::cuda {

/// Largest of n elements but NaN, read by the whole block.
template <class T>
__device__ __forceinline__ Accumulator<T> largest_of(const T* x, std::int64_t n) {
  Accumulator<T> m = -std::numeric_limits<Accumulator<T>>::infinity();
  for (std::int64_t i = threadIdx.x; i < n; i += blockDim.x) {
    const Accumulator<T> v = load(x + i);
    m = v > m ? v : m;
  }
  return block_max(m);
}

/// Threads of a block that walks one row of n steps together: whole warps, `most` of them at most.
inline unsigned row_threads(std::int64_t n, unsigned most) {
  return n >= std::int64_t(most) ? most : unsigned((n + kWarp - 1) / kWarp * kWarp);
}
/// The same for rows that are mostly short: a block of one warp, or of 256 threads for a long row.
inline unsigned short_row_threads(std::int64_t n) { return n > 1024 ? 256 : kWarp; }

}  // namespace hedgehog::cuda

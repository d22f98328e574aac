#pragma once
#include <limits>

#include "cuda/common.cuh"

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

/// Threads of a block that walks rows of n elements.
inline unsigned row_threads(std::int64_t n) { return n > 1024 ? 256 : kWarp; }

}  // namespace hedgehog::cuda

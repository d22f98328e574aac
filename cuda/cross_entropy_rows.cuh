#pragma once
#include <cfloat>

#include "cuda/packet.cuh"
#include "cuda/row_blocks.cuh"

/// What the two cross entropies share on the device.
namespace hedgehog::cuda {

/// Threads for a block that walks one row, N columns a thread.
inline unsigned class_threads(std::int64_t columns, int n) {
  return row_threads((columns + n - 1) / n, 512);
}

/// e^x; with kFast by the special function unit, a few ulp off: for scores that were rounded to bf16.
template <bool kFast, class A>
__device__ __forceinline__ A shifted_exp(A x) {
  if constexpr (std::is_same_v<A, double>) return exp(x);
  else if constexpr (kFast) return __expf(x);
  else return expf(x);
}

/// What a softmax needs of a row: its largest score, and the sum of the exponentials shifted by it.
template <class A>
struct RowExpSum {
  A highest, sum;
};

/// Over the first `classes` scores, in one pass: where a larger score turns up, the sum so far is scaled down. Whole blocks
/// call it; every thread gets the result. N scores from a multiple of N on may be read beyond `classes`.
template <bool kFast, int N, class T>
__device__ RowExpSum<Accumulator<T>> row_exp_sum(const T* scores, std::int64_t classes) {
  using A = Accumulator<T>;
  // finite, so that a difference from it is never NaN
  constexpr A kLowest = std::is_same_v<A, double> ? A(-DBL_MAX) : A(-FLT_MAX);
  A highest = kLowest, sum = 0;
#pragma unroll 2
  for (std::int64_t c = std::int64_t(threadIdx.x) * N; c < classes; c += std::int64_t(blockDim.x) * N) {
    const Packet<T, N> packet = load_packet<N>(scores + c);
    A x[N], largest = highest;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      x[i] = c + i < classes ? convert<A>(packet[i]) : A(-INFINITY);
      largest = x[i] > largest ? x[i] : largest;
    }
    if (largest > highest) {
      sum *= shifted_exp<kFast>(highest - largest);
      highest = largest;
    }
#pragma unroll
    for (int i = 0; i < N; ++i) sum += shifted_exp<kFast>(x[i] - highest);
  }
  const A all = block_max(highest);
  sum = block_sum(sum * shifted_exp<kFast>(highest - all));
  return {all, sum};
}

/// The factor of the sum of losses: the given one, or 1 / number of targets that count (0 without any). One block.
template <class A>
__global__ void __launch_bounds__(1024) loss_scale_kernel(const A* given, const std::int32_t* targets, std::int64_t n, double* scale) {
  if (given) {
    if (threadIdx.x == 0) *scale = double(*given);
    return;
  }
  double count = 0;
  for (std::int64_t i = threadIdx.x; i < n; i += blockDim.x) count += targets[i] >= 0 ? 1 : 0;
  count = block_sum(count);
  if (threadIdx.x == 0) *scale = count > 0 ? 1 / count : 0.0;
}

/// loss = scale * sum of losses, in f64. One block, so that the order is fixed.
template <class A>
__global__ void __launch_bounds__(1024) loss_sum_kernel(const A* losses, std::int64_t n, const double* scale, A* loss) {
  double sum = 0;
  for (std::int64_t i = threadIdx.x; i < n; i += blockDim.x) sum += double(losses[i]);
  sum = block_sum(sum);
  if (threadIdx.x == 0) *loss = A(sum * *scale);
}

inline std::int64_t classes_of(const Attributes& a, std::int64_t columns) {
  const std::int64_t classes = a.integer("classes");
  return classes ? classes : columns;
}

constexpr std::int64_t kScaleBytes = 256;  // of the workspace, for the scale

}  // namespace hedgehog::cuda

#pragma once
#include "cuda/early_launch.cuh"
#include "cuda/packet.cuh"

/// The second stage of sums over rows: the parts that blocks left in the workspace are added in a fixed order.
namespace hedgehog::cuda {

/// Blocks that share rows between them: two for each multiprocessor of an H100. A function of the rows alone, so that sums
/// have one order on every device.
inline std::int64_t row_ranges(std::int64_t rows) {
  const std::int64_t ranges = rows / 32;
  return ranges < 1 ? 1 : ranges < 264 ? ranges : 264;
}
/// First row of range i of n.
__host__ __device__ __forceinline__ std::int64_t range_begin(std::int64_t rows, std::int64_t i, std::int64_t n) { return rows * i / n; }

constexpr unsigned kSumWarps = 16;

/// outs[y][c] (+)= sum_b partials[b][y][c], partials (ranges, gridDim.y, columns).
///
/// A block owns 32 columns; each of its warps adds every 16th part, then the first warp adds the warps' sums in order.
template <class T>
__global__ void sum_partials_kernel(const Accumulator<T>* partials, std::int64_t ranges, std::int64_t columns, Target<T> first,
                                    Target<T> second) {
  using A = Accumulator<T>;
  __shared__ A sums[kSumWarps][kWarp];
  const Target<T>& out = blockIdx.y == 0 ? first : second;
  const unsigned lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const std::int64_t c = std::int64_t(blockIdx.x) * kWarp + lane;
  A sum = 0;
  wait_for_kernels();
  if (c < columns) {
#pragma unroll 4
    for (std::int64_t b = warp; b < ranges; b += kSumWarps) sum += partials[(b * gridDim.y + blockIdx.y) * columns + c];
  }
  sums[warp][lane] = sum;
  __syncthreads();
  if (warp != 0 || c >= columns || !out) return;
  A total = 0;
#pragma unroll
  for (unsigned w = 0; w < kSumWarps; ++w) total += sums[w][lane];
  out.put(c, total);
}

template <class T>
void sum_partials(const char* op, const void* partials, std::int64_t ranges, std::int64_t columns, Target<T> first, Target<T> second = {},
                  unsigned parts = 1) {
  const dim3 grid(unsigned((columns + kWarp - 1) / kWarp), parts);
  auto launch = [&](Target<T> one, Target<T> other) {
    launch_early(op, sum_partials_kernel<T>, grid, kSumWarps * kWarp, 0, static_cast<const Accumulator<T>*>(partials), ranges, columns, one, other);
  };
  if (!first || first.data != second.data) return launch(first, second);
  launch(first, {});  // one tensor is both arguments: one after the other
  launch({}, second);
}

/// out (+)= sum_b partials[b], partials (parts, columns), in order; one thread a column, for few parts.
template <class A, class G>
__global__ void add_partials_kernel(const A* partials, std::int64_t parts, std::int64_t columns, G* out, bool adds) {
  for (std::int64_t c = blockIdx.x * std::int64_t(blockDim.x) + threadIdx.x; c < columns; c += std::int64_t(gridDim.x) * blockDim.x) {
    A sum = 0;
    for (std::int64_t b = 0; b < parts; ++b) sum += partials[b * columns + c];
    store(out + c, sum, adds);
  }
}

template <class A, class G>
void add_partials(const char* op, const A* partials, std::int64_t parts, std::int64_t columns, G* out, bool adds) {
  add_partials_kernel<<<blocks_for(columns, 256), 256, 0, stream()>>>(partials, parts, columns, out, adds);
  check_launch(op);
}

}  // namespace hedgehog::cuda

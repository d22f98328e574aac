#include "cuda/vector_product.h"

#include "cuda/linear.cuh"
#include "cuda/packet.cuh"

/// Every weight is read once and used for one multiplication a row, so only the memory counts: each thread has several
/// 16-byte loads on their way before it uses the first.
namespace hedgehog::cuda {
namespace {

constexpr const char* kName = "vector_product";
constexpr int kEach = kVector<bf16>;
constexpr int kWarpLanes = int(kWarp);

/// 16 bytes that are not needed again.
__device__ __forceinline__ uint4 stream_in(const bf16* at) { return __ldcs(reinterpret_cast<const uint4*>(at)); }

/// Calls body(j, element j as a float).
template <class Body>
__device__ __forceinline__ void for_each_element(const uint4& packet, const Body& body) {
  const unsigned words[4] = {packet.x, packet.y, packet.z, packet.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    body(2 * i, low_of(words[i]));
    body(2 * i + 1, high_of(words[i]));
  }
}

/// What follows the sum of one result.
__device__ __forceinline__ void put(const VectorProduct& p, std::int64_t row, std::int64_t column, float h) {
  const std::int64_t at = row * p.n + column;
  if (p.bias) h += load(static_cast<const bf16*>(p.bias) + column);
  if (p.h) static_cast<bf16*>(p.h)[at] = convert<bf16>(h);
  float y = activate(p.activation, h);
  if (p.addend) y += load(static_cast<const bf16*>(p.addend) + at);
  static_cast<bf16*>(p.y)[at] = convert<bf16>(y);
}

constexpr int kThreads = 512, kWarps = kThreads / kWarpLanes;

/// weight (k, n): kLanes neighbouring threads take 8 columns each of a row of the weight, the next ones those of the next
/// row. The sums of all rows meet in a fixed order: within a warp by shuffles, then warp after warp.
template <int M, int kLanes>
__global__ void __launch_bounds__(kThreads) vector_product_kernel(const VectorProduct p) {
  constexpr int kColumns = kLanes * kEach, kGroups = kThreads / kLanes, kFlight = 6;
  __shared__ float parts[kWarps][M][kColumns];
  const int lane = int(threadIdx.x) % kLanes, group = int(threadIdx.x) / kLanes;
  const std::int64_t begin = std::int64_t(blockIdx.x) * kColumns, column = begin + lane * kEach;
  const bool inside = column < p.n;
  const bf16* const x = static_cast<const bf16*>(p.x);
  const bf16* const weight = static_cast<const bf16*>(p.weight) + column;
  float sums[M][kEach] = {};
  for (std::int64_t first = group; first < p.k; first += kGroups * kFlight) {
    uint4 packets[kFlight];
    float factors[kFlight][M];
#pragma unroll
    for (int i = 0; i < kFlight; ++i) {
      const std::int64_t row = first + i * kGroups;
      packets[i] = make_uint4(0, 0, 0, 0);
      if (inside && row < p.k) packets[i] = stream_in(weight + row * p.n);
    }
#pragma unroll
    for (int i = 0; i < kFlight; ++i) {
      const std::int64_t row = first + i * kGroups;
#pragma unroll
      for (int r = 0; r < M; ++r) factors[i][r] = row < p.k && r < p.m ? load(x + r * p.ldx + row) : 0;
    }
#pragma unroll
    for (int i = 0; i < kFlight; ++i)
      for_each_element(packets[i], [&](int j, float w) {
#pragma unroll
        for (int r = 0; r < M; ++r) sums[r][j] += factors[i][r] * w;
      });
  }
  const int warp = int(threadIdx.x) / kWarpLanes;
#pragma unroll
  for (int r = 0; r < M; ++r)
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
#pragma unroll
      for (int offset = kLanes; offset < kWarpLanes; offset *= 2) sums[r][j] += __shfl_xor_sync(0xffffffffu, sums[r][j], offset);
      if (int(threadIdx.x) % kWarpLanes < kLanes) parts[warp][r][lane * kEach + j] = sums[r][j];
    }
  __syncthreads();
  for (int i = int(threadIdx.x); i < M * kColumns; i += kThreads) {
    const int r = i / kColumns, c = i % kColumns;
    if (r >= p.m || begin + c >= p.n) continue;
    float sum = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += parts[w][r][c];
    put(p, r, begin + c, sum);
  }
}

constexpr int kTransposedThreads = 256, kTransposedWarps = kTransposedThreads / kWarpLanes;

/// weight (n, k): a warp takes kRows rows of the weight, which are results.
template <int M, int kRows>
__global__ void __launch_bounds__(kTransposedThreads) vector_product_transposed_kernel(const VectorProduct p) {
  constexpr int kFlight = 3, kStep = kWarpLanes * kEach;
  static_assert(kRows * M <= kWarpLanes);
  const int lane = int(threadIdx.x) % kWarpLanes;
  const std::int64_t begin = (std::int64_t(blockIdx.x) * kTransposedWarps + threadIdx.x / kWarpLanes) * kRows;
  if (begin >= p.n) return;
  const bf16* const x = static_cast<const bf16*>(p.x);
  const bf16* const weight = static_cast<const bf16*>(p.weight);
  float sums[kRows][M] = {};
  for (std::int64_t first = lane * kEach; first < p.k; first += kStep * kFlight) {
    uint4 packets[kFlight][kRows];
#pragma unroll
    for (int i = 0; i < kFlight; ++i)
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        packets[i][r] = make_uint4(0, 0, 0, 0);
        if (first + i * kStep < p.k) packets[i][r] = stream_in(weight + min(begin + r, p.n - 1) * p.k + first + i * kStep);
      }
#pragma unroll
    for (int i = 0; i < kFlight; ++i) {
      if (first + i * kStep >= p.k) break;
#pragma unroll
      for (int v = 0; v < M; ++v) {
        if (v >= p.m) break;
        float own[kEach];
        for_each_element(*reinterpret_cast<const uint4*>(x + v * p.ldx + first + i * kStep), [&](int j, float f) { own[j] = f; });
#pragma unroll
        for (int r = 0; r < kRows; ++r) for_each_element(packets[i][r], [&](int j, float w) { sums[r][v] += own[j] * w; });
      }
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r)
#pragma unroll
    for (int v = 0; v < M; ++v) {
      const float sum = warp_sum(sums[r][v]);
      if (lane == r * M + v && v < p.m && begin + r < p.n) put(p, v, begin + r, sum);
    }
}

template <int M, int kLanes>
void launch(const VectorProduct& p) {
  constexpr std::int64_t columns = kLanes * kEach;
  vector_product_kernel<M, kLanes><<<unsigned((p.n + columns - 1) / columns), kThreads, 0, stream()>>>(p);
}

template <int M>
void launch(const VectorProduct& p) {
  if (p.transposed) {
    constexpr int rows = M == 1 ? 4 : 2;
    constexpr std::int64_t each = kTransposedWarps * rows;
    vector_product_transposed_kernel<M, rows><<<unsigned((p.n + each - 1) / each), kTransposedThreads, 0, stream()>>>(p);
    return;
  }
  // wide pieces of a row are read best, but every multiprocessor is to have some
  constexpr std::int64_t kFewestBlocks = 64;
  if (p.n >= kFewestBlocks * 8 * kEach) launch<M, 8>(p);
  else if (p.n >= kFewestBlocks * 4 * kEach) launch<M, 4>(p);
  else launch<M, 2>(p);
}

}  // namespace

bool multiply_vectors(const VectorProduct& p) {
  const bool fits = p.m <= kMostVectors && (p.transposed ? p.k % kEach == 0 && p.ldx % kEach == 0 && aligned({p.x, p.weight})
                                                         : p.n % kEach == 0 && aligned({p.weight}));
  if (!fits) return false;
  p.m == 1 ? launch<1>(p) : launch<kMostVectors>(p);
  check_launch(kName);
  return true;
}

}  // namespace hedgehog::cuda

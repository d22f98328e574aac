#include "cuda/vector_product.h"

#include "cuda/early_launch.cuh"
#include "cuda/linear.cuh"
#include "cuda/vector_product.cuh"

/// Every weight is read once and used for one multiplication a row, so only the memory counts: each thread has several
/// 16-byte loads on their way before it uses the first, and those of parameters leave while the kernel before still runs.
namespace hedgehog::cuda {
namespace {

constexpr const char* kName = "vector_product";

/// The result that one thread finishes: what goes with its sum is on its way while the sum is made.
struct Result {
  std::int64_t at;  // -1: none
  bf16 bias = {}, addend = {};

  __device__ Result(const VectorProduct& p, bool mine, std::int64_t row, std::int64_t column) : at(mine ? row * p.n + column : -1) {}
  __device__ bool mine() const { return at >= 0; }
  __device__ void fetch_bias(const VectorProduct& p, std::int64_t column) {
    if (mine() && p.bias) bias = static_cast<const bf16*>(p.bias)[column];
  }
  __device__ void fetch_addend(const VectorProduct& p) {
    if (mine() && p.addend) addend = static_cast<const bf16*>(p.addend)[at];
  }
  __device__ void put(const VectorProduct& p, float h) const {
    if (!mine()) return;
    if (p.bias) h += convert<float>(bias);
    if (p.h) static_cast<bf16*>(p.h)[at] = convert<bf16>(h);
    float y = activate(p.activation, h);
    if (p.addend) y += convert<float>(addend);
    static_cast<bf16*>(p.y)[at] = convert<bf16>(y);
  }
};

constexpr int kThreads = 512, kWarps = kThreads / kWarpLanes;
constexpr int kFlight = 6;          // loads of a thread that are on their way at once
constexpr unsigned kMostParts = 4;  // blocks that share the rows of the weight

/// weight (k, n): kLanes neighbouring threads take 8 columns each of a row of the weight, the next ones those of the next
/// row. A cluster of `parts` blocks shares the rows. The sums of all rows meet in a fixed order: within a warp by shuffles, then
/// warp after warp, then block after block.
template <int M, int kLanes>
__global__ void __launch_bounds__(kThreads, M == 1 ? 2 : 1) vector_product_kernel(const __grid_constant__ VectorProduct p, unsigned parts) {
  constexpr int kColumns = kLanes * kEach, kGroups = kThreads / kLanes;
  static_assert(M * kColumns <= kThreads);
  __shared__ float warp_sums[kWarps][M][kColumns], part_sums[kMostParts - 1][M * kColumns];
  __shared__ __align__(16) NormedRows<M> normed;
  __shared__ ClusterInbox inbox;
  start_next_kernel();
  const int thread = int(threadIdx.x), lane = thread % kLanes;
  const unsigned part = parts > 1 ? blockIdx.x % parts : 0;
  if (parts > 1) {
    if (part == 0 && thread == 0) inbox.open((parts - 1) * M * kColumns * unsigned(sizeof(float)));
    cluster_arrive_relaxed();
  }
  const std::int64_t begin = std::int64_t(parts > 1 ? blockIdx.x / parts : blockIdx.x) * kColumns;
  const int k = int(p.k), step = kGroups * int(parts);
  const bool inside = begin + lane * kEach < p.n;
  int row = int(part) * kGroups + thread / kLanes;
  const bf16* weight = static_cast<const bf16*>(p.weight) + row * p.n + begin + lane * kEach;
  const std::int64_t pitch = step * p.n;
  uint4 packets[kFlight];
  auto fetch = [&] {
#pragma unroll
    for (int i = 0; i < kFlight; ++i) {
      packets[i] = make_uint4(0, 0, 0, 0);
      if (inside && row + i * step < k) packets[i] = stream_in(weight + i * pitch);
    }
  };
  const int result_row = thread / kColumns, result_column = thread % kColumns;
  Result result(p, part == 0 && result_row < p.m && result_row < M && begin + result_column < p.n, result_row, begin + result_column);
  if (!p.parameters) wait_for_kernels();
  fetch();
  result.fetch_bias(p, begin + result_column);
  if (p.norm_weight) normed.template fetch_parameters<kThreads>(p);
  if (p.parameters) wait_for_kernels();
  result.fetch_addend(p);

  const bf16* x = static_cast<const bf16*>(p.x);
  std::int64_t ldx = p.ldx;
  if (p.norm_weight) {
    normed.template make<kThreads>(p);
    x = normed.rows[0], ldx = kMostNormed;
  }
  float sums[M][kEach] = {};
  for (int first = int(part) * kGroups; row < k; first += kFlight * step) {
    bf16 factors[kFlight][M];
#pragma unroll
    for (int i = 0; i < kFlight; ++i)
#pragma unroll
      for (int r = 0; r < M; ++r) factors[i][r] = row + i * step < k && r < p.m ? x[r * ldx + row + i * step] : convert<bf16>(0.0f);
#pragma unroll
    for (int i = 0; i < kFlight; ++i) {
      if (first + i * step >= k) break;  // no thread of the block has more
      for_each_element(packets[i], [&](int j, float w) {
#pragma unroll
        for (int r = 0; r < M; ++r) sums[r][j] += convert<float>(factors[i][r]) * w;
      });
    }
    row += kFlight * step;
    weight += kFlight * pitch;
    if (row < k) fetch();
  }

#pragma unroll
  for (int r = 0; r < M; ++r) {
    int column;
    const int count = sum_over_groups<kLanes>(sums[r], column);
#pragma unroll
    for (int j = 0; j < count; ++j) warp_sums[thread / kWarpLanes][r][lane * kEach + column + j] = sums[r][j];
  }
  __syncthreads();
  float sum = 0;
  if (result_row < M) {
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += warp_sums[w][result_row][result_column];
  }
  if (parts > 1) {
    cluster_wait();  // the first block's inbox is open
    if (part > 0 && result_row < M) inbox.send(&part_sums[part - 1][thread], 0, sum);
    if (!result.mine()) return;  // nor does one of the other blocks go on
    inbox.wait();
    for (unsigned i = 1; i < parts; ++i) sum += part_sums[i - 1][thread];
  }
  result.put(p, sum);
}

constexpr int kTransposedThreads = 256, kTransposedWarps = kTransposedThreads / kWarpLanes;

/// weight (n, k): a warp takes kRows rows of the weight, which are results.
template <int M, int kRows>
__global__ void __launch_bounds__(kTransposedThreads, M == 1 ? 3 : 1) vector_product_transposed_kernel(const __grid_constant__ VectorProduct p) {
  constexpr int kPieces = 3, kStep = kWarpLanes * kEach;
  static_assert(kRows * M <= kWarpLanes);
  __shared__ __align__(16) NormedRows<M> normed;
  start_next_kernel();
  const int lane = int(threadIdx.x) % kWarpLanes;
  const std::int64_t begin = (std::int64_t(blockIdx.x) * kTransposedWarps + threadIdx.x / kWarpLanes) * kRows;
  const bf16* x = static_cast<const bf16*>(p.x);
  std::int64_t ldx = p.ldx;
  const bf16* const weight = static_cast<const bf16*>(p.weight);
  std::int64_t first = lane * kEach;
  uint4 packets[kPieces][kRows];
  auto fetch = [&] {
#pragma unroll
    for (int i = 0; i < kPieces; ++i)
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        packets[i][r] = make_uint4(0, 0, 0, 0);
        if (begin < p.n && first + i * kStep < p.k) packets[i][r] = stream_in(weight + min(begin + r, p.n - 1) * p.k + first + i * kStep);
      }
  };
  // lane r M + v finishes row v of column r
  Result result(p, lane < kRows * M && lane % M < p.m && begin + lane / M < p.n, lane % M, begin + lane / M);
  if (!p.parameters) wait_for_kernels();
  fetch();
  result.fetch_bias(p, begin + lane / M);
  if (p.norm_weight) normed.template fetch_parameters<kTransposedThreads>(p);
  if (p.parameters) wait_for_kernels();
  result.fetch_addend(p);
  if (p.norm_weight) {
    normed.template make<kTransposedThreads>(p);
    x = normed.rows[0], ldx = kMostNormed;
  }
  if (begin >= p.n) return;

  float sums[kRows][M] = {};
  while (first < p.k) {
#pragma unroll
    for (int v = 0; v < M; ++v) {
      if (v >= p.m) break;
      uint4 factors[kPieces];
#pragma unroll
      for (int i = 0; i < kPieces; ++i) {
        factors[i] = make_uint4(0, 0, 0, 0);
        if (first + i * kStep < p.k) factors[i] = *reinterpret_cast<const uint4*>(x + v * ldx + first + i * kStep);
      }
#pragma unroll
      for (int i = 0; i < kPieces; ++i) {
        float own[kEach];
        for_each_element(factors[i], [&](int j, float f) { own[j] = f; });
#pragma unroll
        for (int r = 0; r < kRows; ++r) for_each_element(packets[i][r], [&](int j, float w) { sums[r][v] += own[j] * w; });
      }
    }
    first += kPieces * kStep;
    if (first < p.k) fetch();
  }
  float own = 0;
#pragma unroll
  for (int r = 0; r < kRows; ++r)
#pragma unroll
    for (int v = 0; v < M; ++v) {
      const float sum = warp_sum(sums[r][v]);
      if (lane == r * M + v) own = sum;
    }
  result.put(p, own);
}

template <int M, int kLanes>
void launch(const VectorProduct& p) {
  constexpr std::int64_t columns = kLanes * kEach, flight = kThreads / kLanes * kFlight;
  const std::int64_t blocks = (p.n + columns - 1) / columns;
  // all of the weight is to be on its way at once, as far as two blocks of every multiprocessor go
  unsigned parts = 1;
  while (has_early_launches() && parts < kMostParts && p.k > parts * flight && blocks * parts <= multiprocessors()) parts *= 2;
  launch_clusters_early(kName, vector_product_kernel<M, kLanes>, parts, unsigned(blocks * parts), kThreads, 0, p, parts);
}

template <int M>
void launch(const VectorProduct& p) {
  if (p.transposed) {
    constexpr int rows = M == 1 ? 4 : 2;
    constexpr std::int64_t each = kTransposedWarps * rows;
    return launch_early(kName, vector_product_transposed_kernel<M, rows>, unsigned((p.n + each - 1) / each), kTransposedThreads, 0, p);
  }
  // wide pieces of a row are read best, until too few blocks are left to share its columns: measured
  constexpr std::int64_t kBlocksOfWide = 64, kBlocksOfUsual = 24;
  if (p.n >= kBlocksOfWide * 8 * kEach) launch<M, 8>(p);
  else if (p.n >= kBlocksOfUsual * 4 * kEach) launch<M, 4>(p);
  else launch<M, 2>(p);
}

}  // namespace

bool multiply_vectors(const VectorProduct& p) {
  const bool fits = p.m <= kMostVectors && p.k < (std::int64_t(1) << 30) &&
                    (p.transposed ? p.k % kEach == 0 && p.ldx % kEach == 0 && aligned({p.x, p.weight})
                                  : p.n % kEach == 0 && aligned({p.weight}));
  const bool normed = !p.norm_weight || (p.k <= kMostNormed && p.k % kEach == 0 && p.ldx % kEach == 0 &&
                                         aligned({p.x, p.norm_weight, p.norm_bias}));
  if (!fits || !normed) return false;
  p.m == 1 ? launch<1>(p) : launch<kMostVectors>(p);
  return true;
}

}  // namespace hedgehog::cuda

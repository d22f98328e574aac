#include "ops/sample_token.h"

#include <cub/block/block_scan.cuh>
#include <cub/device/device_radix_sort.cuh>

#include "cuda/early_launch.cuh"
#include "cuda/packet.cuh"

/// The choice of the next token. Where all tokens may be chosen they are weighed in the order of their ids, tile by tile, each tile
/// against its own largest; one launch makes the choice. Where some are cut, logits become whole numbers that sort in falling
/// order; all kernels of the row then read those.
namespace hedgehog::cuda {
namespace sample_token {
namespace {

constexpr const char* kName = "sample_token";
constexpr int kThreads = 256, kEach = 4, kTile = kThreads * kEach;  // tokens that a block weighs

enum Input : int { kLogits, kToken, kPosition, kDraws };

/// A number that is smaller the larger the logit is, and its inverse. 0: NaN or +inf, which no choice survives.
template <class Word, class Real>
struct Order {
  static constexpr Word kSign = Word(1) << (8 * sizeof(Word) - 1);
  __device__ static Word key(Real x) {
    if (isnan(x) || x == Real(INFINITY)) return 0;
    x = x == Real(0) ? Real(0) : x;  // of two zeros none is larger
    Word bits;
    memcpy(&bits, &x, sizeof bits);
    return bits & kSign ? bits : Word(~(bits ^ kSign));
  }
  __device__ static Real value(Word key) {
    const Word bits = key & kSign ? key : Word(~key ^ kSign);
    Real x;
    memcpy(&x, &bits, sizeof x);
    return x;
  }
  /// Whether the most likely token can be chosen.
  __device__ static bool good(Word key) { return key != 0 && value(key) != -Real(INFINITY); }
};
template <class T>
using Word = std::conditional_t<std::is_same_v<T, double>, unsigned long long, unsigned>;
template <class T>
using OrderOf = Order<Word<T>, Accumulator<T>>;
static_assert(sizeof(Word<double>) == sizeof(double) && sizeof(Word<float>) == sizeof(float));

/// What all rows share.
struct Target {
  std::int32_t *token, *position, *draws;
  std::int64_t row, rows;

  /// Uniform of this row.
  __device__ double uniform() const { return draws_of(draws).uniform(std::uint64_t(row)); }
  /// One thread of the row's last kernel calls it. The last row moves on position and draws.
  __device__ void put(std::int32_t id) const {
    token[row] = id;
    if (row + 1 < rows) return;
    ++*position;
    put_first(draws, draws_of(draws).first + std::uint64_t(rows));
  }
};

/// How many blocks of the choice in progress are done. It cannot lie in the workspace, which holds anything. Choices follow each
/// other on the one stream, each behind a wait for the kernels before, and the last block of each leaves 0. Were a choice cut off,
/// CUDA would run nothing more in this process.
__device__ unsigned blocks_done = 0;

/// Whether this block is the last of all to call it. It then sees what the others wrote, where it reads past L1. The whole block
/// calls it.
__device__ __forceinline__ bool last_of_blocks() {
  __shared__ bool last;
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();  // what the block wrote, which this thread has met behind the barrier, is seen by whoever sees the count
    last = atomicInc(&blocks_done, gridDim.x - 1) == gridDim.x - 1;  // from there to 0
    __threadfence();
  }
  __syncthreads();
  return last;
}

/// The most likely of some tokens, the first of equals.
template <class T>
struct MostLikely {
  Word<T> key = ~Word<T>(0);
  std::int32_t id = std::numeric_limits<std::int32_t>::max();

  __device__ void take(Word<T> other, std::int32_t other_id) {
    if (other < key || (other == key && other_id < id)) key = other, id = other_id;
  }
  /// Of the whole block, for its first warp.
  __device__ void take_block() {
    __shared__ Word<T> keys[kThreads / kWarp];
    __shared__ std::int32_t ids[kThreads / kWarp];
    take_lanes(int(kWarp));
    __syncthreads();  // what an earlier call left has been read
    if (threadIdx.x % kWarp == 0) keys[threadIdx.x / kWarp] = key, ids[threadIdx.x / kWarp] = id;
    __syncthreads();
    if (threadIdx.x >= kWarp) return;
    key = keys[threadIdx.x % (kThreads / kWarp)], id = ids[threadIdx.x % (kThreads / kWarp)];
    take_lanes(kThreads / int(kWarp));
  }

 private:
  __device__ void take_lanes(int lanes) {
#pragma unroll
    for (int offset = lanes / 2; offset > 0; offset /= 2)
      take(__shfl_xor_sync(0xffffffffu, key, offset), __shfl_xor_sync(0xffffffffu, id, offset));
  }
};

/// In one launch: each block looks through a tile, and the last one to be done at what all of them found.
template <class T>
__global__ void __launch_bounds__(kThreads) sample_token_argmax_kernel(const T* logits, std::int64_t V, Word<T>* keys, std::int32_t* ids,
                                                                       const Target target) {
  start_next_kernel();
  wait_for_kernels();
  const std::int64_t first = std::int64_t(blockIdx.x) * kTile + threadIdx.x * kEach;
  MostLikely<T> best;
#pragma unroll
  for (int j = 0; j < kEach; ++j)
    if (first + j < V) best.take(OrderOf<T>::key(load(logits + first + j)), std::int32_t(first + j));
  best.take_block();
  if (threadIdx.x == 0) keys[blockIdx.x] = best.key, ids[blockIdx.x] = best.id;
  if (!last_of_blocks()) return;
  best = {};
  for (std::int64_t i = threadIdx.x; i < gridDim.x; i += kThreads) best.take(__ldcg(keys + i), __ldcg(ids + i));
  best.take_block();
  if (threadIdx.x == 0) target.put(OrderOf<T>::good(best.key) ? best.id : -1);
}

template <class T>
__global__ void sample_token_keys_kernel(const T* logits, std::int64_t V, Word<T>* keys, std::int32_t* ids) {
  const std::int64_t i = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= V) return;
  keys[i] = OrderOf<T>::key(load(logits + i));
  ids[i] = std::int32_t(i);
}

/// Weights of the sorted tokens and their sum over each tile.
template <class T>
__global__ void __launch_bounds__(kThreads) sample_token_weights_kernel(const Word<T>* keys, std::int64_t kept, double temperature,
                                                                        double* weights, double* tile_sums) {
  const double best = double(OrderOf<T>::value(keys[0]));
  const std::int64_t first = std::int64_t(blockIdx.x) * kTile + threadIdx.x * kEach;
  double sum = 0;
#pragma unroll
  for (int j = 0; j < kEach; ++j) {
    if (first + j >= kept) break;
    const double weight = exp((double(OrderOf<T>::value(keys[first + j])) - best) / temperature);
    weights[first + j] = weight;
    sum += weight;
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) tile_sums[blockIdx.x] = sum;
}

/// Weights of a tile of tokens by id, divided by that of its most likely one, and their sum. A tile with a logit that no choice
/// survives has +inf as its largest. The whole block calls it; thread 0 puts sum and largest.
template <class T>
__device__ void weigh_tile(std::int64_t tile, const T* logits, std::int64_t V, double temperature, double* weights, double* tile_sums,
                           double* tile_largest) {
  using A = Accumulator<T>;
  const std::int64_t first = tile * kTile + threadIdx.x * kEach;
  A own[kEach], largest = -A(INFINITY);
#pragma unroll
  for (int j = 0; j < kEach; ++j) own[j] = first + j < V ? load(logits + first + j) : -A(INFINITY);
#pragma unroll
  for (int j = 0; j < kEach; ++j) {
    if (isnan(own[j])) own[j] = A(INFINITY);
    largest = own[j] > largest ? own[j] : largest;
  }
  largest = block_max(largest);
  const double base = largest == -A(INFINITY) ? 0.0 : double(largest);
  double sum = 0;
#pragma unroll
  for (int j = 0; j < kEach; ++j) {
    if (first + j >= V) break;
    const double weight = exp((double(own[j]) - base) / temperature);
    weights[first + j] = weight;
    sum += weight;
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) tile_sums[tile] = sum, tile_largest[tile] = double(largest);
}

/// One of several weights in order, and their sums before it and up to it.
struct Place {
  std::int64_t index;
  double before, sum;
};

/// The first of `count` weights where the sum, from `before` on, reaches `bound`, or exceeds it; the last that is not 0 where
/// rounding leaves none. One of weight 0 is never found, unless all are. The whole block calls it.
template <bool kExceeds, class Weight>
__device__ Place find(std::int64_t count, double before, double bound, const Weight& weight) {
  using Scan = cub::BlockScan<double, kThreads>;
  __shared__ typename Scan::TempStorage scan;
  __shared__ Place found;
  __shared__ int thread, last;
  auto there = [&](double sum) { return kExceeds ? sum > bound : sum >= bound; };
  const std::int64_t each = (count + kThreads - 1) / kThreads, begin = min(count, threadIdx.x * each), end = min(count, begin + each);
  double own = 0, sum, held[kEach];
#pragma unroll
  for (int j = 0; j < kEach; ++j) held[j] = begin + j < end ? weight(begin + j) : 0.0;
#pragma unroll
  for (int j = 0; j < kEach; ++j) own += held[j];
  for (std::int64_t i = begin + kEach; i < end; ++i) own += weight(i);
  __syncthreads();  // what an earlier call left has been read
  if (threadIdx.x == 0) thread = kThreads, last = 0;
  Scan(scan).ExclusiveSum(own, sum);
  __syncthreads();
  sum += before;
  if (own > 0) {
    if (there(sum + own)) atomicMin(&thread, int(threadIdx.x));
    atomicMax(&last, int(threadIdx.x));
  }
  __syncthreads();
  if (int(threadIdx.x) == (thread < kThreads ? thread : last)) {
    Place p{begin, sum, sum};
    bool done = false;
    auto pass = [&](std::int64_t i, double w) {
      if (!(w > 0)) return;
      p = {i, sum, sum + w};
      done = there(sum += w);
    };
#pragma unroll
    for (int j = 0; j < kEach; ++j)
      if (!done) pass(begin + j, held[j]);  // 0 behind the end
    for (std::int64_t i = begin + kEach; i < end && !done; ++i) pass(i, weight(i));
    found = p;
  }
  __syncthreads();
  return found;
}

/// The same among `kept` tokens: first the tile, whose weights sum up to `tile_sum(tile)` and count by `scale(tile)`, then the token.
template <bool kExceeds, class Sum, class Scale>
__device__ Place find_token(const double* weights, std::int64_t kept, double bound, const Sum& tile_sum, const Scale& scale) {
  const Place tile = find<kExceeds>((kept + kTile - 1) / kTile, 0, bound, tile_sum);
  const std::int64_t first = tile.index * kTile;
  const double factor = scale(tile.index);
  Place token = find<kExceeds>(min(std::int64_t(kTile), kept - first), tile.before, bound,
                               [&](std::int64_t i) { return factor * __ldcg(weights + first + i); });
  token.index += first;
  return token;
}

/// Tokens by id, in one launch: each block weighs a tile, and the last one to be done chooses.
template <class T>
__global__ void __launch_bounds__(kThreads) sample_token_by_id_kernel(const T* logits, std::int64_t V, double temperature, double* weights,
                                                                      double* tile_sums, double* tile_largest, const Target target) {
  start_next_kernel();
  wait_for_kernels();
  const double uniform = target.uniform();  // here, where the logits are waited for
  weigh_tile(blockIdx.x, logits, V, temperature, weights, tile_sums, tile_largest);
  if (!last_of_blocks()) return;

  const std::int64_t tiles = gridDim.x;
  double largest = -INFINITY, total = 0;
  for (std::int64_t i = threadIdx.x; i < tiles; i += kThreads) largest = max(largest, __ldcg(tile_largest + i));
  largest = block_max(largest);
  if (isinf(largest)) {
    if (threadIdx.x == 0) target.put(-1);
    return;
  }
  auto scale = [&](std::int64_t tile) { return exp((__ldcg(tile_largest + tile) - largest) / temperature); };
  auto scaled_sum = [&](std::int64_t tile) { return __ldcg(tile_sums + tile) * scale(tile); };
  const double own = threadIdx.x < tiles ? scaled_sum(threadIdx.x) : 0.0;
  total = own;
  for (std::int64_t i = threadIdx.x + kThreads; i < tiles; i += kThreads) total += scaled_sum(i);
  total = block_sum(total);
  auto tile_sum = [&](std::int64_t tile) { return tile == threadIdx.x ? own : scaled_sum(tile); };
  const Place chosen = find_token<true>(weights, V, uniform * total, tile_sum, scale);
  if (threadIdx.x == 0) target.put(std::int32_t(chosen.index));
}

template <class T>
__global__ void __launch_bounds__(kThreads) sample_token_choose_kernel(const Word<T>* keys, const std::int32_t* ids, const double* weights,
                                                                       const double* tile_sums, std::int64_t kept, double top_p,
                                                                       const Target target) {
  if (!OrderOf<T>::good(keys[0])) {
    if (threadIdx.x == 0) target.put(-1);
    return;
  }
  double total = 0;
  for (std::int64_t tile = threadIdx.x; tile * kTile < kept; tile += kThreads) total += tile_sums[tile];
  total = block_sum(total);
  auto scale = [](std::int64_t) { return 1.0; };
  auto tile_sum = [&](std::int64_t tile) { return tile_sums[tile]; };
  if (top_p < 1) {
    const Place cut = find_token<false>(weights, kept, top_p * total, tile_sum, scale);
    kept = cut.index + 1, total = cut.sum;
  }
  const Place chosen = find_token<true>(weights, kept, target.uniform() * total, tile_sum, scale);
  if (threadIdx.x == 0) target.put(ids[chosen.index]);
}

bool takes_largest(const Attributes& a) { return a.real("temperature") == 0 || a.integer("top_k") == 1; }
bool cuts(const Attributes& a) { return Sampling{.top_k = a.integer("top_k"), .top_p = a.real("top_p")}.cuts(); }

/// Sorts by key, and in order of ids where keys are equal. space null: only says how many bytes it needs.
template <class T>
std::size_t sort(void* space, std::size_t bytes, const Word<T>* keys, Word<T>* sorted_keys, const std::int32_t* ids,
                 std::int32_t* sorted_ids, std::int64_t V) {
  // the lower half of a bf16's key says nothing
  const int begin = std::is_same_v<T, bf16> ? 16 : 0, end = 8 * int(sizeof(Word<T>));
  check(cub::DeviceRadixSort::SortPairs(space, bytes, keys, sorted_keys, ids, sorted_ids, int(V), begin, end, stream()),
        "sort of the logits");
  return bytes;
}

/// Where the parts of the workspace lie.
template <class T>
struct Space {
  // of tokens; where the most likely one is chosen keys and ids of tiles, and nothing else
  Word<T>*keys = nullptr, *sorted_keys = nullptr;
  std::int32_t *ids = nullptr, *sorted_ids = nullptr;
  double *weights = nullptr, *tile_sums = nullptr, *tile_largest = nullptr;
  void* sorting = nullptr;
  std::size_t sorting_bytes = 0;
  std::int64_t bytes = 0;

  Space(void* workspace, std::int64_t V, const Attributes& a) {
    auto take = [&](auto*& part, std::int64_t count) {
      part = reinterpret_cast<std::remove_reference_t<decltype(part)>>(static_cast<std::byte*>(workspace) + bytes);
      bytes += (count * std::int64_t(sizeof(*part)) + 255) / 256 * 256;
    };
    const std::int64_t tiles = (V + kTile - 1) / kTile;
    if (takes_largest(a)) {
      take(keys, tiles), take(ids, tiles);
      return;
    }
    take(weights, V), take(tile_sums, tiles), take(tile_largest, tiles);
    if (!cuts(a)) return;
    take(keys, V), take(sorted_keys, V), take(ids, V), take(sorted_ids, V);
    sorting_bytes = sort<T>(nullptr, 0, keys, sorted_keys, ids, sorted_ids, V);
    std::byte* rest;
    take(rest, std::int64_t(sorting_bytes));
    sorting = rest;
  }
};

std::int64_t workspace_bytes(const Attributes& a, std::span<const Meta> in) {
  std::int64_t bytes = 0;
  dispatch_floating(in[kLogits].dtype, [&](auto zero) { bytes = Space<decltype(zero)>(nullptr, in[kLogits].shape[1], a).bytes; });
  return bytes;
}

template <class T>
void choose(const Call& c, const T* logits, std::int64_t V, const Target& target) {
  const std::int64_t top_k = c.attributes.integer("top_k"), kept = top_k > 0 ? std::min(top_k, V) : V;
  const double temperature = c.attributes.real("temperature"), top_p = c.attributes.real("top_p");
  const auto all_tiles = unsigned((V + kTile - 1) / kTile), tiles = unsigned((kept + kTile - 1) / kTile);
  const Space<T> s(c.workspace, V, c.attributes);
  if (takes_largest(c.attributes))
    return launch_early(kName, sample_token_argmax_kernel<T>, all_tiles, kThreads, 0, logits, V, s.keys, s.ids, target);
  if (!cuts(c.attributes))
    return launch_early(kName, sample_token_by_id_kernel<T>, all_tiles, kThreads, 0, logits, V, temperature, s.weights, s.tile_sums,
                        s.tile_largest, target);
  sample_token_keys_kernel<<<unsigned((V + kThreads - 1) / kThreads), kThreads, 0, stream()>>>(logits, V, s.keys, s.ids);
  sort<T>(s.sorting, s.sorting_bytes, s.keys, s.sorted_keys, s.ids, s.sorted_ids, V);
  sample_token_weights_kernel<T><<<tiles, kThreads, 0, stream()>>>(s.sorted_keys, kept, temperature, s.weights, s.tile_sums);
  sample_token_choose_kernel<T><<<1, kThreads, 0, stream()>>>(s.sorted_keys, s.sorted_ids, s.weights, s.tile_sums, kept, top_p, target);
  check_launch(kName);
}

void forward(const Call& c) {
  const Ref& logits = c.inputs[kLogits];
  const std::int64_t rows = logits.shape[0], V = logits.shape[1];
  if (logits.columns < V)
    throw ShapeError("[sample_token] a window narrower than a row holds no row of logits in one piece; copy it first");
  dispatch_floating(logits.dtype, [&](auto zero) {
    using T = decltype(zero);
    for (std::int64_t b = 0; b < rows; ++b)
      choose(c, logits.as<const T>() + b * V / logits.columns * logits.stride + b * V % logits.columns, V,
             {c.inputs[kToken].as<std::int32_t>(), c.inputs[kPosition].as<std::int32_t>(), c.inputs[kDraws].as<std::int32_t>(), b, rows});
  });
}

}  // namespace
}  // namespace sample_token

void register_sample_token(KernelTable& table) {
  table["sample_token"] = {.forward = sample_token::forward, .forward_workspace = sample_token::workspace_bytes};
}

}  // namespace hedgehog::cuda

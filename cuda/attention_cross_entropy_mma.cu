#include "cuda/attention_cross_entropy_mma.cuh"
#include "cuda/early_launch.cuh"

namespace hedgehog::cuda::attention_cross_entropy {
namespace {

/// Features of a token and head, a warp each, split for the products.
__global__ void __launch_bounds__(kThreads) attention_cross_entropy_split_kernel(const __grid_constant__ MmaCall c, bool of_keys) {
  wait_for_kernels();
  const Arguments<bf16>& a = c.a;
  const std::int64_t place = std::int64_t(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp;
  if (place >= a.s.B * a.s.T * a.s.Hq) return;
  const Token of(a.s, place);
  const int lane = threadIdx.x % kWarp, F = int(a.s.F);
  const float* const x = (of_keys ? a.features_k : a.features_q).at(of.b, of.t, of.h);
  float largest = a.s.logarithmic ? -INFINITY : 0;
  bool negative = false;
  for (int r = lane; r < F; r += kWarp) {
    largest = fmaxf(largest, a.s.logarithmic ? x[r] : fabsf(x[r]));
    negative |= !a.s.logarithmic && x[r] < 0;
  }
  largest = warp_max(largest);
  if (!a.s.logarithmic) largest = largest > 0 ? logf(largest) : 0;
  if (largest == -INFINITY) largest = 0;
  const SplitFeatures& to = of_keys ? c.features_k : c.features_q;
  const std::int64_t at = (of.b * a.s.Hq + of.h) * a.s.T + of.t;
  const float factor = a.s.logarithmic ? 1 : expf(-largest);
  for (int r = lane; r < c.width; r += kWarp) {
    const float phi = r >= F ? 0 : a.s.logarithmic ? expf(x[r] - largest) : x[r] * factor;
    const bf16 high = convert<bf16>(phi);
    to.high[at * c.width + r] = high;
    to.low[at * c.width + r] = convert<bf16>(phi - convert<float>(high));
  }
  negative = __any_sync(kAll, negative);
  if (lane == 0) to.shift[at] = largest, to.smallest[at] = negative ? kSmallestSigned : kSmallestPositive;
}

/// ln(phi_q . phi_k) of one pair, out of line: those that need it are rare.
__device__ __noinline__ float exact_log_weight(const Arguments<bf16>& a, std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j) {
  return Pair<bf16>(a, Token(a.s, (b * a.s.T + i) * a.s.Hq + h), i, j).log_weight;
}

/// Running sums of a row over the columns of a lane.
struct RowSums {
  float largest_score = -INFINITY, score_sum = 0, cross = 0, own = 0, largest_log_weight = -INFINITY, weight_sum = 0;

  /// Takes `score` and ln A of the pairs that are seen, those with a score above -infinity.
  template <int kPairs>
  __device__ __forceinline__ void add(const float (&score)[kPairs], const float (&log_weight)[kPairs]) {
    float m = largest_score, w = largest_log_weight;
#pragma unroll
    for (int i = 0; i < kPairs; ++i) m = fmaxf(m, score[i]), w = fmaxf(w, log_weight[i]);
    if (m == -INFINITY) return;
    const float alpha = __expf(largest_score - m);
    // what is infinite may be of a key that a later one takes all weight from
    score_sum *= alpha, cross = alpha > 0 ? cross * alpha : 0, own *= alpha, largest_score = m;
    if (w > -INFINITY) weight_sum *= __expf(largest_log_weight - w), largest_log_weight = w;
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      const float e = __expf(score[i] - m);
      score_sum += e;
      if (e > 0) cross += e * log_weight[i], own += e * score[i];
      if (log_weight[i] > -INFINITY) weight_sum += __expf(log_weight[i] - w);
    }
  }
  /// Over the 4 lanes of the row.
  __device__ __forceinline__ void join() {
    const float m = row_max(largest_score), w = row_max(largest_log_weight);
    const float alpha = largest_score == -INFINITY ? 0 : __expf(largest_score - m);
    const float beta = largest_log_weight == -INFINITY ? 0 : __expf(largest_log_weight - w);
    score_sum = row_sum(score_sum * alpha), own = row_sum(own * alpha), weight_sum = row_sum(weight_sum * beta);
    cross = row_sum(alpha > 0 ? cross * alpha : 0);
    largest_score = m, largest_log_weight = w;
  }
};

/// Loss and entropy of 64 rows of one head; the block walks the keys, 64 at a time.
__global__ void __launch_bounds__(kThreads, 2) attention_cross_entropy_forward_mma_kernel(const __grid_constant__ MmaCall c) {
  extern __shared__ __align__(128) unsigned char memory[];
  __shared__ TokenNumbers numbers[2];
  const Arguments<bf16>& a = c.a;
  const Tile rows(memory, c, &numbers[0]), keys(memory + kTokens * 2 * (2 * c.width + c.depth), c, &numbers[1]);
  const int T = int(a.s.T), i0 = (c.tiles - 1 - int(blockIdx.x) % c.tiles) * kTokens;  // the longest first
  const std::int64_t head = blockIdx.x / unsigned(c.tiles), h = head % a.s.Hq, b = head / a.s.Hq;
  wait_for_kernels();
  rows.fetch<false, false>(c, b, h, i0);
  RowSums sums[2];
  const int end = a.s.causal ? min(i0 + kTokens, T) : T;
  for (int j0 = 0; j0 < end; j0 += kTokens) {
    if (apart(a, b, i0, j0)) continue;
    __syncthreads();  // the keys before have been read
    keys.fetch<true, false>(c, b, h, j0);
    wait_all_copies();
    __syncthreads();
    Products p(c, rows, keys);
    float score[2][2 * kTiles], log_weight[2][2 * kTiles];
    for_pairs([&](int n, int e, int i, int j) {
      const bool sees = keys.numbers->document[j] == rows.numbers->document[i] && !(a.s.causal && j0 + j > i0 + i) && i0 + i < T;
      const float product = p.features[n][e];
      float of_features = rows.numbers->shift[i] + keys.numbers->shift[j] + __logf(product);
      if (sees && !(product >= fmaxf(rows.numbers->smallest[i], keys.numbers->smallest[j]))) of_features = exact_log_weight(a, b, h, i0 + i, j0 + j);
      score[e / 2][2 * n + e % 2] = sees ? p.scores[n][e] * float(a.s.scale) : -INFINITY;
      log_weight[e / 2][2 * n + e % 2] = sees ? of_features : -INFINITY;
    });
    sums[0].add(score[0], log_weight[0]);
    sums[1].add(score[1], log_weight[1]);
  }
#pragma unroll
  for (int x = 0; x < 2; ++x) {
    RowSums& s = sums[x];
    s.join();
    const int lane = threadIdx.x % kWarp, i = i0 + int(threadIdx.x / kWarp) * 16 + lane / 4 + 8 * x;
    if (lane % 4 != 0 || i >= T) continue;
    const std::int64_t place = (b * T + i) * a.s.Hq + h;
    const bool sees = s.largest_score != -INFINITY;
    a.loss[place] = sees ? (s.largest_log_weight - s.cross / s.score_sum) + logf(s.weight_sum) : 0;
    a.entropy[place] = sees ? (s.largest_score - s.own / s.score_sum) + logf(s.score_sum) : 0;
    if (!a.saved[0]) continue;
    a.saved[0][place] = sees ? s.largest_score : INFINITY, a.saved[1][place] = sees ? s.score_sum : 1;
    a.saved[2][place] = sees ? s.largest_log_weight : INFINITY, a.saved[3][place] = sees ? s.weight_sum : 1;
  }
}

/// Pairs of the tiles in `flagged` (bits), one by one, added to what the warp's 16 tokens already have. A single pair whose product is too
/// small sends its whole tile here, which then takes as long as without tensor cores.
template <bool kOfKeys>
__device__ __noinline__ void add_flagged(const MmaCall& c, std::int64_t b, std::int64_t h, int t0, int first, int last, const unsigned* flagged,
                                         float* sums) {
  const Arguments<bf16>& a = c.a;
  const Target<float>& to = kOfKeys ? a.dfeatures_k : a.dfeatures_q;
  const int lane = threadIdx.x % kWarp, F = int(a.s.F);
  for (int x = 0; x < 16; ++x) {
    const int t = t0 + int(threadIdx.x / kWarp) * 16 + x;
    if (t >= int(a.s.T)) return;
    const Token own(a.s, (b * a.s.T + t) * a.s.Hq + h);
    for (int r = lane; r < last - first; r += kWarp) sums[r] = 0;
    for (int tile = 0; tile < c.tiles; ++tile)
      if (flagged[tile / 32] >> tile % 32 & 1) add_pairs<bf16, kOfKeys>(a, own, tile * kTokens, min((tile + 1) * kTokens, int(a.s.T)), first, last, sums);
    for (int r = first + lane; r < last; r += kWarp) static_cast<float*>(to.data)[own.at * F + r] += sums[r - first];
  }
}

/// Gradients of features first to first + kSlice - 1 of 64 tokens of one head, as rows (kOfKeys false) or as keys: the block walks the
/// keys or rows, 64 at a time.
template <int kSlice, bool kOfKeys>
__global__ void __launch_bounds__(kThreads, 2) attention_cross_entropy_backward_mma_kernel(const __grid_constant__ MmaCall c) {
  extern __shared__ __align__(128) unsigned char memory[];
  __shared__ TokenNumbers numbers[2];
  const Arguments<bf16>& a = c.a;
  const unsigned tile_bytes = kTokens * 2 * (2 * c.width + c.depth);
  const Tile own(memory, c, &numbers[0]), other(memory + tile_bytes, c, &numbers[1]);
  unsigned* const flagged = reinterpret_cast<unsigned*>(memory + 2 * tile_bytes);
  const TokenNumbers &rows = *(kOfKeys ? other : own).numbers, &keys = *(kOfKeys ? own : other).numbers;
  const int T = int(a.s.T), slices = (c.width + kSlice - 1) / kSlice, tile = int(blockIdx.x) % c.tiles;
  const int t0 = (kOfKeys ? tile : c.tiles - 1 - tile) * kTokens;  // the longest first
  const int first = int(blockIdx.x) / c.tiles % slices * kSlice;
  const std::int64_t head = blockIdx.x / unsigned(c.tiles * slices), h = head % a.s.Hq, b = head / a.s.Hq;
  wait_for_kernels();
  own.fetch<kOfKeys, true>(c, b, h, t0);
  for (int i = threadIdx.x; i < (c.tiles + 31) / 32; i += kThreads) flagged[i] = 0;
  float sums[kSlice / 8][4] = {};
  bool any = false;
  const int begin = kOfKeys && a.s.causal ? t0 : 0, end = !kOfKeys && a.s.causal ? min(t0 + kTokens, T) : T;
  for (int s0 = begin; s0 < end; s0 += kTokens) {
    if (apart(a, b, t0, s0)) continue;
    __syncthreads();  // the tile before has been read
    other.fetch<!kOfKeys, true>(c, b, h, s0);
    wait_all_copies();
    __syncthreads();
    Products p(c, own, other);
    // r = dloss (a - p) / A, A without the shifts of the two tokens
    bool small = false;
    for_pairs([&](int n, int e, int x, int y) {
      const int i = kOfKeys ? y : x, j = kOfKeys ? x : y, row = kOfKeys ? s0 + i : t0 + i, key = kOfKeys ? t0 + j : s0 + j;
      const bool sees = keys.document[j] == rows.document[i] && !(a.s.causal && key > row) && row < T;
      const float product = p.features[n][e], log_weight = rows.shift[i] + keys.shift[j] + __logf(product);
      const float of_student = __expf(log_weight - rows.largest_log_weight[i]) * rows.log_weight_factor[i];
      const float of_teacher = __expf(p.scores[n][e] * float(a.s.scale) - rows.largest_score[i]) * rows.score_factor[i];
      if (sees) small |= !(product >= fmaxf(rows.smallest[i], keys.smallest[j]));
      p.features[n][e] = sees ? rows.weight[i] * (of_student - of_teacher) / product : 0;
    });
    if (__syncthreads_or(small)) {
      any = true;
      if (threadIdx.x == 0) flagged[s0 / kTokens / 32] |= 1u << s0 / kTokens % 32;
      continue;
    }
#pragma unroll
    for (int k = 0; k < kTiles; k += 2) {
      unsigned high[4], low[4];
      pack_operand(high, p.features[k], p.features[k + 1]);
      float less[2][4];
#pragma unroll
      for (int x = 0; x < 2; ++x)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const unsigned pair = high[2 * x + e / 2];
          less[x][e] = p.features[k + x][e] - (e % 2 ? high_of(pair) : low_of(pair));
        }
      pack_operand(low, less[0], less[1]);
#pragma unroll
      for (int n = 0; n < kSlice / 8; n += 2) {
        unsigned y[4], z[4];
        other.high.right_transposed(y, 8 * k, first / 8 + n);
        other.low.right_transposed(z, 8 * k, first / 8 + n);
#pragma unroll
        for (int x = 0; x < 2; ++x) {
          multiply_add(sums[n + x], high, z[2 * x], z[2 * x + 1]);
          multiply_add(sums[n + x], low, y[2 * x], y[2 * x + 1]);
          multiply_add(sums[n + x], high, y[2 * x], y[2 * x + 1]);
        }
      }
    }
  }
  // the others' features, and A, are without their tokens' shifts: those of logarithms cancel, of features that of the own token stays
  const Target<float>& to = kOfKeys ? a.dfeatures_k : a.dfeatures_q;
  const Heads<const float>& features = kOfKeys ? a.features_k : a.features_q;
  const int lane = threadIdx.x % kWarp, F = int(a.s.F);
#pragma unroll
  for (int x = 0; x < 2; ++x) {
    const int row = int(threadIdx.x / kWarp) * 16 + lane / 4 + 8 * x, t = t0 + row;
    if (t >= T) continue;
    const float shift = own.numbers->shift[row];
    const float* const u = features.at(b, t, h);
    const std::int64_t at = ((b * T + t) * a.s.Hq + h) * F;
#pragma unroll
    for (int n = 0; n < kSlice / 8; ++n)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int r = first + 8 * n + lane % 4 * 2 + e;
        if (r < F) to.put(at + r, sums[n][2 * x + e] * __expf(a.s.logarithmic ? u[r] - shift : -shift));
      }
  }
  if (!any) return;
  __syncthreads();  // all flags are there, and what the warp adds to is written
  add_flagged<kOfKeys>(c, b, h, t0, first, min(first + kSlice, F), flagged, reinterpret_cast<float*>(memory) + threadIdx.x / kWarp * c.width);
}

std::int64_t up(std::int64_t n, std::int64_t to) { return (n + to - 1) / to * to; }

bool suits(const Sizes& s) { return s.D % 16 == 0 && s.D <= 128 && s.F <= 256 && s.T <= 1 << 24; }

MmaCall call_of(const Arguments<bf16>& a, void* workspace) {
  MmaCall c{.a = a, .width = int(up(a.s.F, 64)), .depth = int(up(a.s.D, 64)), .tiles = int(up(a.s.T, kTokens) / kTokens)};
  const std::int64_t tokens = a.s.B * a.s.Hq * a.s.T;
  bf16* at = static_cast<bf16*>(workspace);
  for (SplitFeatures* f : {&c.features_q, &c.features_k}) f->high = at, f->low = at + tokens * c.width, at += 2 * tokens * c.width;
  c.features_q.shift = reinterpret_cast<float*>(at), c.features_k.shift = c.features_q.shift + tokens;
  c.features_q.smallest = c.features_k.shift + tokens, c.features_k.smallest = c.features_q.smallest + tokens;
  const unsigned blocks = unsigned((tokens + kThreads / kWarp - 1) / (kThreads / kWarp));
  for (const bool of_keys : {false, true}) launch_early(kName, attention_cross_entropy_split_kernel, blocks, kThreads, 0, c, of_keys);
  return c;
}

template <class Kernel>
void run(Kernel kernel, const MmaCall& c, int slices, std::size_t more) {
  const std::size_t bytes = 2 * Tile::bytes(c) + more;
  allow_shared_memory(reinterpret_cast<const void*>(kernel), bytes);
  const std::int64_t blocks = c.a.s.B * c.a.s.Hq * c.tiles * slices;
  if (blocks > std::int64_t(2147483647)) throw ShapeError("[attention_cross_entropy] too many tokens and heads for one launch; use a smaller batch");
  launch_early(kName, kernel, unsigned(blocks), kThreads, bytes, c);
}

}  // namespace

bool suits_mma(const Arguments<bf16>& a) {
  const std::int64_t tiles = 2 * kTokens * 2 * (2 * up(a.s.F, 64) + up(a.s.D, 64)), flags = up(a.s.T, 32 * kTokens) / (32 * kTokens) * 4;
  return suits(a.s) && aligned(a.q) && aligned(a.k) && std::size_t(tiles + flags) + 2 * sizeof(TokenNumbers) <= largest_shared_memory();
}

std::int64_t mma_bytes(const Attributes& attributes, std::span<const Meta> inputs) {
  if (inputs[kQ].dtype != Dtype::bf16) return 0;
  const Sizes s = sizes_of(attributes, inputs);
  return suits(s) ? s.B * s.Hq * s.T * (8 * up(s.F, 64) + 16) : 0;
}

void forward_mma(const Arguments<bf16>& a, void* workspace) {
  run(attention_cross_entropy_forward_mma_kernel, call_of(a, workspace), 1, 0);
}

void backward_mma(const Arguments<bf16>& a, void* workspace) {
  const MmaCall c = call_of(a, workspace);
  const std::size_t flags = std::size_t(c.tiles + 31) / 32 * 4;
  const bool narrow = c.width == 64;
  const int slices = narrow ? 1 : (c.width + 127) / 128;
  if (a.dfeatures_q)
    run(narrow ? attention_cross_entropy_backward_mma_kernel<64, false> : attention_cross_entropy_backward_mma_kernel<128, false>, c, slices, flags);
  if (a.dfeatures_k)
    run(narrow ? attention_cross_entropy_backward_mma_kernel<64, true> : attention_cross_entropy_backward_mma_kernel<128, true>, c, slices, flags);
}

}  // namespace hedgehog::cuda::attention_cross_entropy

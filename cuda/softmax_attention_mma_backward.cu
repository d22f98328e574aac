#include "cuda/softmax_attention_mma.cuh"

/// Backward in three kernels: row statistics; dq by query tiles; dk and dv by key tiles. Scores are made twice (7 products where
/// one kernel would need 5), but every sum stays in the registers of one warp: no atomics, no partial sums in memory.
namespace hedgehog::cuda::softmax_attention {
namespace {

constexpr int kStep = 32;  // columns of scores that a warp holds at a time

template <int D>
struct QueryBlocking {
  static constexpr int kRowTiles = D <= 64 ? 2 : 1, kWarps = 4, kThreads = kWarps * int(kWarp);
  static constexpr int kWarpRows = 16 * kRowTiles, kRows = kWarps * kWarpRows;
  static constexpr int kOwnBytes = kRows * Tile<D>::kRowBytes, kTileBytes = kKeyTile * Tile<D>::kRowBytes;
  static constexpr int kBytes = 2 * kOwnBytes + 4 * kTileBytes;  // q, do; two stages of k and v
};

template <int D>
struct KeyBlocking {
  static constexpr int kRowTiles = D <= 64 ? 2 : 1, kWarps = D <= 64 ? 4 : 8, kThreads = kWarps * int(kWarp);
  static constexpr int kWarpRows = 16 * kRowTiles, kRows = kWarps * kWarpRows;
  static constexpr int kOwnBytes = kRows * Tile<D>::kRowBytes, kTileBytes = kKeyTile * Tile<D>::kRowBytes;
  static constexpr int kStatisticsBytes = 2 * kKeyTile * int(sizeof(float));
  static constexpr int kBytes = 2 * kOwnBytes + 4 * kTileBytes + 2 * kStatisticsBytes;  // k, v; two stages of q, do, statistics
};

struct Inputs {
  Heads<const bf16> q, k, v, dy;
  float *log_sum_exp, *delta;  // (B, Hq, padded): log2, +inf beyond the last token; do . o, 0 beyond
  HeadsTarget<bf16> dq, dk, dv;
  const std::int32_t* document_start;  // (B, T)
  int tokens, padded, heads, group, tiles;
  int window;  // tokens that a row sees, in kernels with a window
  bool causal;
  float scale;
};

/// Statistics of a query row, transposed for the other kernels: ln sum exp in base 2, and delta = do . o. Eight lanes a row,
/// 32 tokens of one head a block.
__global__ void __launch_bounds__(256)
    softmax_attention_statistics_kernel(const Heads<const bf16> dy, const Heads<bf16> o, const float* saved, float* log_sum_exp,
                                        float* delta, int tokens, int padded, int heads, int pieces) {
  const unsigned tiles = unsigned(padded) / 32;
  const int t = int(blockIdx.x % tiles) * 32 + int(threadIdx.x) / 8, lane = threadIdx.x % 8;
  const std::int64_t head = blockIdx.x / tiles, h = head % heads, b = head / heads;
  float sum = 0;
  if (t < tokens)
    for (int piece = lane; piece < pieces; piece += 8) {
      const uint4 x = *reinterpret_cast<const uint4*>(dy.at(b, t, h) + 8 * piece);
      const uint4 y = *reinterpret_cast<const uint4*>(o.at(b, t, h) + 8 * piece);
      const unsigned xs[4] = {x.x, x.y, x.z, x.w}, ys[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        sum += low_of(xs[i]) * low_of(ys[i]);
        sum += high_of(xs[i]) * high_of(ys[i]);
      }
    }
  sum = warp_sum<8>(sum);
  if (lane != 0) return;
  delta[head * padded + t] = sum;
  log_sum_exp[head * padded + t] = t < tokens ? saved[(b * tokens + t) * heads + h] * kLog2e : INFINITY;
}

/// dq = ds K. A block owns a tile of query rows of one head and walks the keys they see, 64 at a time, the next ones on their
/// way; a warp makes the scores of its rows in two steps of 32 keys.
template <int D, bool kWindow>
__global__ void __launch_bounds__(QueryBlocking<D>::kThreads, 2) softmax_attention_backward_query_mma_kernel(const Inputs in) {
  using S = QueryBlocking<D>;
  constexpr int kRowTiles = S::kRowTiles;
  extern __shared__ __align__(128) unsigned char memory[];
  const unsigned q_tile = shared_address(memory), dy_tile = q_tile + S::kOwnBytes;
  const unsigned k_tile = dy_tile + S::kOwnBytes, v_tile = k_tile + 2 * S::kTileBytes;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4, T = in.tokens;

  // the longest tiles of a head first
  const int i0 = (in.tiles - 1 - int(blockIdx.x % unsigned(in.tiles))) * S::kRows;
  const std::int64_t head = blockIdx.x / unsigned(in.tiles), h = head % in.heads, b = head / in.heads, hkv = h / in.group;
  const std::int32_t* start = in.document_start ? in.document_start + b * T : nullptr;
  const int end = (min(T, in.causal ? i0 + S::kRows : T) + kKeyTile - 1) / kKeyTile;
  // no row sees a key before the first token of the first row's document, or before the first row's window
  const int nearest = kWindow ? max(i0 + 1 - in.window, 0) : 0;
  const int begin = max(start ? min(max(start[i0], 0), i0) : 0, nearest) / kKeyTile;

  auto fetch_keys = [&](int n, int stage) {
    const int j0 = n * kKeyTile;
    Tile<D>::template fetch<kKeyTile, S::kThreads>(k_tile + stage * S::kTileBytes, in.k.at(b, j0, hkv), in.k.token, T - j0);
    Tile<D>::template fetch<kKeyTile, S::kThreads>(v_tile + stage * S::kTileBytes, in.v.at(b, j0, hkv), in.v.token, T - j0);
    commit_copies();
  };
  Tile<D>::template fetch<S::kRows, S::kThreads>(q_tile, in.q.at(b, i0, h), in.q.token, T - i0);
  Tile<D>::template fetch<S::kRows, S::kThreads>(dy_tile, in.dy.at(b, i0, h), in.dy.token, T - i0);
  fetch_keys(begin, 0);

  const int warp_row = warp * S::kWarpRows, first = i0 + warp_row, row = first + g;  // the lane's rows: row + 16 m + 8 half
  const Reader<D> q = reader_by_row<D>(q_tile + warp_row * Tile<D>::kRowBytes);
  const Reader<D> dy = reader_by_row<D>(dy_tile + warp_row * Tile<D>::kRowBytes);
  const float scale = in.scale * kLog2e;
  float log_sum_exp[kRowTiles][2], delta[kRowTiles][2], dq[kRowTiles][D / 8][4];
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const std::int64_t at = head * in.padded + row + 16 * m + 8 * half;
      log_sum_exp[m][half] = in.log_sum_exp[at];
      delta[m][half] = in.delta[at];
    }
#pragma unroll
    for (int n = 0; n < D / 8; ++n) dq[m][n][0] = dq[m][n][1] = dq[m][n][2] = dq[m][n][3] = 0;
  }

  for (int tile = begin; tile < end; ++tile) {
    const int stage = (tile - begin) & 1;
    wait_copies();
    __syncthreads();  // this tile is there, and all have read the one before, which the next copies overwrite
    if (tile + 1 < end) fetch_keys(tile + 1, stage ^ 1);
    const unsigned keys = k_tile + stage * S::kTileBytes, values = v_tile + stage * S::kTileBytes;
#pragma unroll 1
    for (int step = 0; step < kKeyTile; step += kStep) {
      const int j0 = tile * kKeyTile + step;
      if (first >= T || j0 >= T || (in.causal && j0 >= first + S::kWarpRows)) break;
      if (kWindow && j0 + kStep + in.window <= first + 1) continue;
      float s[kRowTiles][kStep / 8][4], dp[kRowTiles][kStep / 8][4];
      multiply_rows<D, kRowTiles, kStep / 16>(s, q, reader_by_column<D>(keys), step);
      multiply_rows<D, kRowTiles, kStep / 16>(dp, dy, reader_by_column<D>(values), step);
      if (start || j0 + kStep > T || (in.causal && j0 + kStep > first + 1) || (kWindow && j0 + in.window < first + S::kWarpRows)) {
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m)
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const int i = row + 16 * m + 8 * half, last = in.causal ? min(i, T - 1) : T - 1, left = kWindow ? i - in.window : -1;
            const int document = start ? start[min(i, T - 1)] : 0;
#pragma unroll
            for (int n = 0; n < kStep / 8; ++n)
#pragma unroll
              for (int e = 0; e < 2; ++e) {
                const int j = j0 + 8 * n + 2 * t + e;
                if (j > last || (kWindow && j <= left) || (start && start[j] != document)) s[m][n][2 * half + e] = -INFINITY;
              }
          }
      }
      unsigned ds[kRowTiles][kStep / 16][4];
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
        for (int n = 0; n < kStep / 8; ++n)
#pragma unroll
          for (int e = 0; e < 4; ++e)
            s[m][n][e] = exp2_fast(fmaf(s[m][n][e], scale, -log_sum_exp[m][e / 2])) * (dp[m][n][e] - delta[m][e / 2]);
#pragma unroll
        for (int j = 0; j < kStep / 16; ++j) pack_operand(ds[m][j], s[m][2 * j], s[m][2 * j + 1]);
      }
      add_weighted_rows<D, kRowTiles, kStep / 16>(dq, ds, reader_by_row<D>(keys), step);
    }
  }
  write_gradient<D, kRowTiles>(dq, in.scale, memory + warp_row * Tile<D>::kRowBytes, in.dq, b, first, h, T);
}

/// dk = ds^T Q and dv = P^T do. A block owns a tile of keys of one key head and walks the queries that see it, 64 at a time,
/// through the query heads of the group in order; scores are made transposed, so that a row is a key. A query beyond the
/// last token has an infinite log of the sum: its weights are 0.
template <int D, bool kWindow>
__global__ void __launch_bounds__(KeyBlocking<D>::kThreads, D <= 64 ? 2 : 1) softmax_attention_backward_key_mma_kernel(const Inputs in) {
  using S = KeyBlocking<D>;
  constexpr int kRowTiles = S::kRowTiles;
  extern __shared__ __align__(128) unsigned char memory[];
  const unsigned k_tile = shared_address(memory), v_tile = k_tile + S::kOwnBytes;
  const unsigned q_tile = v_tile + S::kOwnBytes, dy_tile = q_tile + 2 * S::kTileBytes;
  constexpr int kStatistics = 2 * S::kOwnBytes + 4 * S::kTileBytes;  // (2 stages, 2, 64): log of the sum, delta
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4, T = in.tokens;

  // the first tiles of a head are the longest
  const int j0 = int(blockIdx.x % unsigned(in.tiles)) * S::kRows, kv_heads = in.heads / in.group;
  const std::int64_t head = blockIdx.x / unsigned(in.tiles), hkv = head % kv_heads, b = head / kv_heads;
  const std::int32_t* start = in.document_start ? in.document_start + b * T : nullptr;
  int begin = in.causal ? j0 / kKeyTile : 0, end = (T + kKeyTile - 1) / kKeyTile;
  // rows behind the window of the tile's last key do not see it
  if (kWindow) end = min(end, (j0 + S::kRows - 1 + in.window + kKeyTile - 1) / kKeyTile);
  if (start) {
    // documents lie one after the other: those that start behind the tile do not see it, nor those before its first token's
    if (!in.causal) begin = min(max(start[j0], 0), j0) / kKeyTile;
    int low = begin + 1;
    while (low < end) {
      const int middle = (low + end) / 2;
      if (start[middle * kKeyTile] >= j0 + S::kRows) end = middle;
      else low = middle + 1;
    }
  }
  const int tiles = end - begin, steps = tiles * in.group;

  auto fetch_queries = [&](int n, int stage) {
    const int i0 = (begin + n % tiles) * kKeyTile;
    const std::int64_t h = hkv * in.group + n / tiles, row = (b * in.heads + h) * in.padded + i0;
    Tile<D>::template fetch<kKeyTile, S::kThreads>(q_tile + stage * S::kTileBytes, in.q.at(b, i0, h), in.q.token, T - i0);
    Tile<D>::template fetch<kKeyTile, S::kThreads>(dy_tile + stage * S::kTileBytes, in.dy.at(b, i0, h), in.dy.token, T - i0);
    if (threadIdx.x < 2 * kKeyTile / 4) {
      const int n4 = int(threadIdx.x) % (kKeyTile / 4) * 4;
      const float* from = threadIdx.x < kKeyTile / 4 ? in.log_sum_exp : in.delta;
      copy_async(k_tile + kStatistics + stage * S::kStatisticsBytes + threadIdx.x * 16, from + row + n4, true);
    }
    commit_copies();
  };
  Tile<D>::template fetch<S::kRows, S::kThreads>(k_tile, in.k.at(b, j0, hkv), in.k.token, T - j0);
  Tile<D>::template fetch<S::kRows, S::kThreads>(v_tile, in.v.at(b, j0, hkv), in.v.token, T - j0);
  fetch_queries(0, 0);

  const int warp_row = warp * S::kWarpRows, first = j0 + warp_row, row = first + g;  // the lane's keys: row + 16 m + 8 half
  const Reader<D> k = reader_by_row<D>(k_tile + warp_row * Tile<D>::kRowBytes);
  const Reader<D> v = reader_by_row<D>(v_tile + warp_row * Tile<D>::kRowBytes);
  const float scale = in.scale * kLog2e;
  float dk[kRowTiles][D / 8][4], dv[kRowTiles][D / 8][4];
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m)
#pragma unroll
    for (int n = 0; n < D / 8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) dk[m][n][e] = dv[m][n][e] = 0;

  for (int n = 0; n < steps; ++n) {
    const int stage = n & 1;
    wait_copies();
    __syncthreads();  // this tile is there, and all have read the one before, which the next copies overwrite
    if (n + 1 < steps) fetch_queries(n + 1, stage ^ 1);
    const unsigned queries = q_tile + stage * S::kTileBytes, gradients = dy_tile + stage * S::kTileBytes;
    const float* statistics = reinterpret_cast<const float*>(memory + kStatistics + stage * S::kStatisticsBytes);
#pragma unroll 1
    for (int step = 0; step < kKeyTile; step += kStep) {
      const int i0 = (begin + n % tiles) * kKeyTile + step;
      if (first >= T || i0 >= T) break;
      if ((in.causal && i0 + kStep <= first) || (kWindow && i0 >= first + S::kWarpRows - 1 + in.window)) continue;
      float s[kRowTiles][kStep / 8][4], dp[kRowTiles][kStep / 8][4];
      multiply_rows<D, kRowTiles, kStep / 16>(s, k, reader_by_column<D>(queries), step);
      multiply_rows<D, kRowTiles, kStep / 16>(dp, v, reader_by_column<D>(gradients), step);
      if (start || (in.causal && i0 < first + S::kWarpRows) || (kWindow && i0 + kStep > first + in.window)) {
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m)
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const int j = row + 16 * m + 8 * half;
            const int document = start ? start[min(j, T - 1)] : 0;
#pragma unroll
            for (int c = 0; c < kStep / 8; ++c)
#pragma unroll
              for (int e = 0; e < 2; ++e) {
                const int i = i0 + 8 * c + 2 * t + e;
                if ((in.causal && i < j) || (kWindow && i - j >= in.window) || (start && start[min(i, T - 1)] != document)) s[m][c][2 * half + e] = -INFINITY;
              }
          }
      }
      unsigned p[kRowTiles][kStep / 16][4], ds[kRowTiles][kStep / 16][4];
#pragma unroll
      for (int c = 0; c < kStep / 8; ++c) {
        const float2 log_sum_exp = *reinterpret_cast<const float2*>(statistics + step + 8 * c + 2 * t);
        const float2 delta = *reinterpret_cast<const float2*>(statistics + kKeyTile + step + 8 * c + 2 * t);
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m)
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const float weight = exp2_fast(fmaf(s[m][c][e], scale, e % 2 ? -log_sum_exp.y : -log_sum_exp.x));
            s[m][c][e] = weight;
            dp[m][c][e] = weight * (dp[m][c][e] - (e % 2 ? delta.y : delta.x));
          }
      }
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m)
#pragma unroll
        for (int j = 0; j < kStep / 16; ++j) {
          pack_operand(p[m][j], s[m][2 * j], s[m][2 * j + 1]);
          pack_operand(ds[m][j], dp[m][2 * j], dp[m][2 * j + 1]);
        }
      add_weighted_rows<D, kRowTiles, kStep / 16>(dv, p, reader_by_row<D>(gradients), step);
      add_weighted_rows<D, kRowTiles, kStep / 16>(dk, ds, reader_by_row<D>(queries), step);
    }
  }
  unsigned char* const own = memory + warp_row * Tile<D>::kRowBytes;
  if (in.dk) write_gradient<D, kRowTiles>(dk, in.scale, own, in.dk, b, first, hkv, T);
  if (in.dv) write_gradient<D, kRowTiles>(dv, 1, own + S::kOwnBytes, in.dv, b, first, hkv, T);
}

std::int64_t padded(std::int64_t tokens) { return (tokens + kPadding - 1) / kPadding * kPadding; }

template <int D>
void launch(const Arguments<bf16>& a, Inputs in) {
  const bool window = a.s.window < a.s.T;
  if (a.dq) {
    using S = QueryBlocking<D>;
    const std::int64_t tiles = (a.s.T + S::kRows - 1) / S::kRows;
    in.tiles = int(tiles);
    const auto kernel = window ? softmax_attention_backward_query_mma_kernel<D, true> : softmax_attention_backward_query_mma_kernel<D, false>;
    allow_shared_memory(reinterpret_cast<const void*>(kernel), S::kBytes);
    kernel<<<grid_of(tiles * a.s.B * a.s.Hq), S::kThreads, S::kBytes, stream()>>>(in);
    check_launch(kName);
  }
  if (a.dk || a.dv) {
    using S = KeyBlocking<D>;
    const std::int64_t tiles = (a.s.T + S::kRows - 1) / S::kRows;
    in.tiles = int(tiles);
    const auto kernel = window ? softmax_attention_backward_key_mma_kernel<D, true> : softmax_attention_backward_key_mma_kernel<D, false>;
    allow_shared_memory(reinterpret_cast<const void*>(kernel), S::kBytes);
    kernel<<<grid_of(tiles * a.s.B * a.s.Hkv), S::kThreads, S::kBytes, stream()>>>(in);
    check_launch(kName);
  }
}

}  // namespace

std::int64_t backward_mma_bytes(const Sizes& s) { return 2 * s.B * s.Hq * padded(s.T) * std::int64_t(sizeof(float)); }

bool backward_mma_fits(const Sizes& s) {
  int bytes = 0;
  dispatch_width(s.D, [&](auto width) { bytes = std::max(QueryBlocking<decltype(width)::value>::kBytes, KeyBlocking<decltype(width)::value>::kBytes); });
  return std::size_t(bytes) <= largest_shared_memory();
}

void backward_mma(const Arguments<bf16>& a) {
  const std::int64_t rows = padded(a.s.T), heads = a.s.B * a.s.Hq;
  float *log_sum_exp = static_cast<float*>(a.workspace), *delta = log_sum_exp + heads * rows;
  softmax_attention_statistics_kernel<<<grid_of(heads * rows / 32), 256, 0, stream()>>>(
      a.dy, a.o, a.log_sum_exp, log_sum_exp, delta, int(a.s.T), int(rows), int(a.s.Hq), int(a.s.D / 8));
  check_launch(kName);
  const Inputs in{a.q, a.k, a.v, a.dy, log_sum_exp, delta, a.dq, a.dk, a.dv, a.document_start,
                  int(a.s.T), int(rows), int(a.s.Hq), int(a.s.Hq / a.s.Hkv), 0, int(a.s.window), a.s.causal, float(a.s.scale)};
  dispatch_width(a.s.D, [&](auto width) { launch<decltype(width)::value>(a, in); });
}

}  // namespace hedgehog::cuda::softmax_attention

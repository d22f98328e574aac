#include "cuda/softmax_attention_mma.cuh"

namespace hedgehog::cuda::softmax_attention {
namespace {

/// A warp owns 16 kRowTiles query rows. Two row tiles share each fragment of keys and values; wide heads have no registers
/// for that and take more warps instead.
template <int D>
struct Blocking {
  static constexpr int kRowTiles = D <= 64 ? 2 : 1, kWarps = D <= 64 ? 4 : 8, kThreads = kWarps * int(kWarp);
  static constexpr int kWarpRows = 16 * kRowTiles, kRows = kWarps * kWarpRows;
  static constexpr int kTileBytes = kKeyTile * Tile<D>::kRowBytes;
  static constexpr int kBytes = kRows * Tile<D>::kRowBytes + 4 * kTileBytes;  // q; two stages of k and v
};

struct Inputs {
  Heads<const bf16> q, k, v;
  Heads<bf16> o;
  float* log_sum_exp;                  // (B, T, Hq)
  const std::int32_t* document_start;  // (B, T)
  int tokens, heads, group, tiles;
  int window;  // tokens that a row sees, in kernels with a window
  bool causal;
  float scale;
};

/// o and the log of the softmax's sum. A block owns 128 query rows of one head and walks the keys it can see, 64 at a time: the
/// next ones are on their way while these are used. Scores, weights and sums stay in registers; a row is four lanes of a warp.
template <int D, bool kWindow>
__global__ void __launch_bounds__(Blocking<D>::kThreads, 2) softmax_attention_forward_mma_kernel(const Inputs in) {
  using S = Blocking<D>;
  constexpr int kRowTiles = S::kRowTiles;
  extern __shared__ __align__(128) unsigned char memory[];
  const unsigned q_tile = shared_address(memory), k_tile = q_tile + S::kRows * Tile<D>::kRowBytes, v_tile = k_tile + 2 * S::kTileBytes;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4, T = in.tokens;

  // tiles of one head run side by side, so that its keys come from the cache; the longest first
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
  fetch_keys(begin, 0);

  const int warp_row = warp * S::kWarpRows, first = i0 + warp_row, row = first + g;  // the lane's rows: row + 16 m + 8 half
  const Reader<D> q = reader_by_row<D>(q_tile + warp_row * Tile<D>::kRowBytes);
  const float scale = in.scale * kLog2e;
  float largest[kRowTiles][2], sum[kRowTiles][2], o[kRowTiles][D / 8][4];
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m) {
    largest[m][0] = largest[m][1] = -INFINITY;
    sum[m][0] = sum[m][1] = 0;
#pragma unroll
    for (int n = 0; n < D / 8; ++n) o[m][n][0] = o[m][n][1] = o[m][n][2] = o[m][n][3] = 0;
  }

  for (int tile = begin; tile < end; ++tile) {
    const int stage = (tile - begin) & 1, j0 = tile * kKeyTile;
    wait_copies();
    __syncthreads();  // this tile is there, and all have read the one before, which the next copies overwrite
    if (tile + 1 < end) fetch_keys(tile + 1, stage ^ 1);
    if (first >= T || (in.causal && j0 >= first + S::kWarpRows) || (kWindow && j0 + kKeyTile + in.window <= first + 1)) continue;

    float s[kRowTiles][8][4];
    multiply_rows<D, kRowTiles, 4>(s, q, reader_by_column<D>(k_tile + stage * S::kTileBytes), 0);
    if (start || j0 + kKeyTile > T || (in.causal && j0 + kKeyTile > first + 1) || (kWindow && j0 + in.window < first + S::kWarpRows)) {
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int i = row + 16 * m + 8 * half, last = in.causal ? min(i, T - 1) : T - 1, left = kWindow ? i - in.window : -1;
          const int document = start ? start[min(i, T - 1)] : 0;
#pragma unroll
          for (int n = 0; n < 8; ++n)
#pragma unroll
            for (int e = 0; e < 2; ++e) {
              const int j = j0 + 8 * n + 2 * t + e;
              if (j > last || (kWindow && j <= left) || (start && start[j] != document)) s[m][n][2 * half + e] = -INFINITY;
            }
        }
    }

    unsigned weights[kRowTiles][4][4];
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float top = largest[m][half];
#pragma unroll
        for (int n = 0; n < 8; ++n) top = fmaxf(top, fmaxf(s[m][n][2 * half], s[m][n][2 * half + 1]));  // NaN comes back below
        top = row_max(top);
        // nothing seen so far: any finite base gives 2^-inf = 0
        const float seen = top == -INFINITY ? 0.0f : top, base = seen * scale;
        const float alpha = exp2_fast((largest[m][half] - seen) * scale);
        float part = 0;
#pragma unroll
        for (int n = 0; n < 8; ++n)
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            float& x = s[m][n][2 * half + e];
            x = exp2_fast(fmaf(x, scale, -base));
            part += x;
          }
        sum[m][half] = sum[m][half] * alpha + part;
        largest[m][half] = top;
#pragma unroll
        for (int n = 0; n < D / 8; ++n) o[m][n][2 * half] *= alpha, o[m][n][2 * half + 1] *= alpha;
      }
#pragma unroll
      for (int j = 0; j < 4; ++j) pack_operand(weights[m][j], s[m][2 * j], s[m][2 * j + 1]);
    }
    add_weighted_rows<D, kRowTiles, 4>(o, weights, reader_by_row<D>(v_tile + stage * S::kTileBytes), 0);
  }

#pragma unroll
  for (int m = 0; m < kRowTiles; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float total = row_sum(sum[m][half]);
      const float inverse = total == 0 ? 0.0f : 1 / total;
#pragma unroll
      for (int n = 0; n < D / 8; ++n) o[m][n][2 * half] *= inverse, o[m][n][2 * half + 1] *= inverse;
      const int i = row + 16 * m + 8 * half;
      // exp(s - inf) = 0: a row that sees nothing has no weights in backward either
      if (in.log_sum_exp && t == 0 && i < T)
        in.log_sum_exp[(b * T + i) * in.heads + h] = total == 0 ? INFINITY : largest[m][half] * in.scale + logf(total);
    }
  if (first < T) write_rows<D, kRowTiles>(o, memory + warp_row * Tile<D>::kRowBytes, in.o.at(b, first, h), in.o.token, T - first);
}

}  // namespace

bool suits_mma(const Arguments<bf16>& a) {
  const std::int64_t D = a.s.D;
  return D == a.s.Dv && (D == 32 || D == 64 || D == 96 || D == 128) && !a.mask && a.s.T <= 1 << 30 && aligned(a.q) && aligned(a.k) &&
         aligned(a.v) && aligned(a.o) && aligned(a.dy);
}

void forward_mma(const Arguments<bf16>& a) {
  dispatch_width(a.s.D, [&](auto width) {
    constexpr int D = decltype(width)::value;
    using S = Blocking<D>;
    const std::int64_t tiles = (a.s.T + S::kRows - 1) / S::kRows;
    const Inputs in{a.q, a.k, a.v, a.o, a.log_sum_exp, a.document_start, int(a.s.T), int(a.s.Hq), int(a.s.Hq / a.s.Hkv), int(tiles),
                    int(a.s.window), a.s.causal, float(a.s.scale)};
    const auto kernel = a.s.window < a.s.T ? softmax_attention_forward_mma_kernel<D, true> : softmax_attention_forward_mma_kernel<D, false>;
    allow_shared_memory(reinterpret_cast<const void*>(kernel), S::kBytes);
    kernel<<<grid_of(tiles * a.s.B * a.s.Hq), S::kThreads, S::kBytes, stream()>>>(in);
    check_launch(kName);
  });
}

}  // namespace hedgehog::cuda::softmax_attention

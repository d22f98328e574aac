#include "cuda/linear_attention_large_tile.cuh"

namespace hedgehog::cuda::linear_attention_large {
namespace {

/// One side's rows are a block's own, those of the other side are seen by all warps: values and their gradients go with keys and queries.
template <int kD>
struct BackwardMemory {
  static constexpr int kTile = LargeLanes<kD>::kTile;
  bf16 others[2 * kTile];  // the other side's weight and rows, then its features (chunk, F), one tile a sign
  bf16 own[2 * kTile];     // the own side's weight and rows, then S or R (F, Dv)
  bf16 y[kTile];           // (chunk, Dv) of the own side: dy of queries, v of keys
  bf16 others_y[kTile];    // (chunk, Dv) of the other side
  ChunkNumbers<kD> numbers;
  float den[kD], delta[kD];  // of queries, infinity for rare rows and past the end; for keys
};
static_assert(sizeof(BackwardMemory<128>) <= 227 * 1024 && 2 * (sizeof(BackwardMemory<96>) + 1024) <= 228 * 1024);

/// Starts the copies of the other side's weight and rows, of the own side's, and of values.
template <bool kKeys, int kD>
__device__ __forceinline__ void load_chunk(BackwardMemory<kD>& m, const Arguments& p, const Chunk& at, const LargeLanes<kD>& l) {
  constexpr int kTile = LargeLanes<kD>::kTile;
  const Sequence& s = p.s;
  bf16 *const keys = kKeys ? m.own : m.others, *const queries = kKeys ? m.others : m.own;
  const auto load_keys = [&] {
    load_tile<kD>(keys, s.weight_k + at.h * kD * kD, kD, kD, s.vector, l);
    load_tile<kD>(keys + kTile, s.k.at(at.b, at.t0, at.h), s.k.token, at.count, s.vector, l);
    commit_copies();
  };
  if (!kKeys) load_keys();
  load_tile<kD>(queries, s.weight_q + at.h * kD * kD, kD, kD, s.vector, l);
  load_tile<kD>(queries + kTile, s.q.at(at.b, at.t0, at.h), s.q.token, at.count, s.vector, l);
  commit_copies();
  if (kKeys) load_keys();
  load_tile<kD>(kKeys ? m.y : m.others_y, s.v.at(at.b, at.t0, at.h), s.v.token, at.count, s.vector, l);
  load_tile<kD>(kKeys ? m.others_y : m.y, p.dy.at(at.b, at.t0, at.h), p.dy.token, at.count, s.vector, l);
  commit_copies();
}
/// Product of two rows, over the 4 lanes that share them.
template <int kD>
__device__ __forceinline__ float multiply_rows(const bf16* a, const bf16* b, bool vector, int column) {
  float sum = 0;
  a += 4 * column, b += 4 * column;
#pragma unroll
  for (int i = 0; i < kD; i += 32) {
    Packet<bf16, 8> x, y;
    if (vector) x = load_packet<8>(a + i), y = load_packet<8>(b + i);
    else
      for (int e = 0; e < 8; ++e) x[e] = a[i + e], y[e] = b[i + e];
#pragma unroll
    for (int e = 0; e < 8; ++e) sum += __bfloat162float(x[e]) * __bfloat162float(y[e]);
  }
  return row_sum(sum);
}

/// Gradient of u: +-(dphi phi) summed over signs, where dphi = w features (chunk, F) + x sums^T + of_z z. Where a factor is in the
/// scale of the chunk or of the sums, its row has of_chunk or of_sums. From u, in its place, 32 columns at a time: those columns lie in
/// front, where registers have fixed numbers, and go to the end when they are done.
/// kKeys: rows are keys, w reaches from the row on; else queries, up to the row. ratio: features of keys in the scale of the sums over
/// those in the scale of the chunk, at most 1; null where documents meet, of which the scale of the sums knows one.
template <bool kKeys, int kD>
__device__ __forceinline__ void gradient_of_exponents(float (&u)[kD / 8][4], const unsigned (&w)[kD / 16][4], const bf16* features,
                                                      const bf16* x, const bf16* sums, bool has_sums, const float* chunk_shift,
                                                      const float* sums_shift, const float* ratio, const float* z,
                                                      const float (&of_z)[2], const float (&of_chunk)[2], const float (&of_sums)[2],
                                                      const LargeLanes<kD>& l) {
  constexpr int kTile = LargeLanes<kD>::kTile, kKept = kD / 8 - 4;
#pragma unroll 1
  for (int column = 0; column < kD; column += 32) {
    float du[4][4] = {}, dphi[2][4][4] = {};
    const auto for_all = [&](const float* of_features, const auto& call) {
#pragma unroll
      for (int n = 0; n < 4; ++n)
#pragma unroll
        for (int sign = 0; sign < 2; ++sign) {
          const float2 of_columns = pair_at(of_features, sign * kD + column + 8 * n + l.column);
#pragma unroll
          for (int e = 0; e < 4; ++e) call(dphi[sign][n][e], sign, n, e, e % 2 ? of_columns.y : of_columns.x);
        }
    };
    const auto through = [&](const float* shift, const float(&of_rows)[2]) {
      for_all(shift, [&](float value, int sign, int n, int e, float of_column) {
        value *= feature<kKeys>(u[n][e], sign, of_column, of_rows[e / 2]);
        du[n][e] += sign ? -value : value;
      });
    };
    if (has_sums) {
#pragma unroll 2
      for (int k = 0; k < kD; k += 16) {
        unsigned a[4];
        l.a(a, x, 16 * l.warp, k);
#pragma unroll
        for (int sign = 0; sign < 2; ++sign)
          multiply_step(dphi[sign], a, [&](unsigned(&b)[4], int n) { l.b(b, sums + sign * kTile, column + n, k); });
      }
      for_all(z, [&](float& value, int, int, int e, float of_column) { value += of_z[e / 2] * of_column; });
      if (kKeys && ratio) {
        for_all(ratio, [&](float& value, int, int, int, float of_column) { value *= of_column; });
      } else {
        through(sums_shift, of_sums);
        for_all(z, [&](float& value, int, int, int, float) { value = 0; });
      }
    }
#pragma unroll
    for (int k = 0; k < kD / 16; ++k) {
      if (kKeys ? k < l.warp : k > l.warp) continue;
#pragma unroll
      for (int sign = 0; sign < 2; ++sign)
        multiply_step(dphi[sign], w[k],
                      [&](unsigned(&b)[4], int n) { l.b_transposed(b, features + sign * kTile + column, n, 16 * k); });
    }
    through(chunk_shift, of_chunk);
#pragma unroll
    for (int n = 0; n < kD / 8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) u[n][e] = n < kKept ? u[(n + 4) % (kD / 8)][e] : du[(n + 4) % 4][e];
  }
}

/// du of the queries of a chunk, their delta, and which rows are rare. A warp has 16 queries.
template <int kD>
__global__ void __launch_bounds__(2 * kD, kD == 96 ? 2 : 1) linear_attention_large_queries_kernel(const __grid_constant__ Arguments p) {
  constexpr int kSteps = kD / 16, kTile = LargeLanes<kD>::kTile;
  BackwardMemory<kD>& m = *reinterpret_cast<BackwardMemory<kD>*>(shared_bytes());
  const Sequence& s = p.s;
  const LargeLanes<kD> l;
  const Chunk at(s, kD);
  wait_for_kernels();
  load_chunk<false, kD>(m, p, at, l);
  const auto numbers = m.numbers.fetch(p, at);
  float den[2], delta[2];
#pragma unroll
  for (int x = 0; x < 2; ++x) {
    const bool there = l.row + 8 * x < at.count;
    const std::int64_t token = at.t0 + (there ? l.row + 8 * x : 0);
    den[x] = there ? p.saved[(at.b * s.T + token) * s.H + at.h] * kLog2e : INFINITY;
    const float product = multiply_rows<kD>(p.y.at(at.b, token, at.h), p.dy.at(at.b, token, at.h), s.vector, l.column);
    delta[x] = there ? -product : 0.0f;
  }
#pragma unroll
  for (int x = 0; x < 2; ++x)
    if (l.column == 0 && l.row + 8 * x < at.count) p.delta[at.index * s.T + at.t0 + l.row + 8 * x] = delta[x];
  m.numbers.keep(numbers);
  wait_copies<2>();
  __syncthreads();  // weight_k, k and the numbers are here

  float u[kD / 8][4];
  exponents<kD>(u, m.others + kTile, m.others, l);
  wait_copies<1>();
  __syncthreads();  // weight_q and q are here; all are done with weight_k and k
  store_key_features<kD>(m.others, u, m.numbers.top, at.count, l);
  exponents<kD>(u, m.own + kTile, m.own, l);
  wait_copies<0>();
  __syncthreads();  // phi_k, dy and v are here; all are done with weight_q and q
  const bool has_sums = at.chunk > 0;
  if (has_sums) load_sums<kD>(m.own, p.sums, at.slot, l);

  // W up to the row
  const int first[2] = {m.numbers.rows[l.row], m.numbers.rows[l.row + 8]};
  const bool documents = m.numbers.rows[at.count - 1] > 0;
  unsigned w[kSteps][4] = {};
  {
    unsigned dy[kSteps][4];
#pragma unroll
    for (int k = 0; k < kSteps; ++k) l.a(dy[k], m.y, 16 * l.warp, 16 * k);
#pragma unroll 1
    for (int j = 0; j <= l.warp; ++j) {
      float scores[2][4];
      multiply_block<kD>(scores, dy, m.others_y, 16 * j, l);
#pragma unroll
      for (int n = 0; n < 2; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int column = 16 * j + 8 * n + l.column + e % 2;
          scores[n][e] += delta[e / 2];
          if ((j == l.warp && column > l.row + e / 2 * 8) || (documents && column < first[e / 2])) scores[n][e] = 0;
        }
      unsigned a[4];
      pack_operand(a, scores[0], scores[1]);
      keep_operand(w, j, a);
    }
  }

  float largest[2] = {-INFINITY, -INFINITY};
#pragma unroll
  for (int n = 0; n < kD / 8; ++n) {
    const float2 plus = pair_at(m.numbers.top, 8 * n + l.column), minus = pair_at(m.numbers.top, kD + 8 * n + l.column);
#pragma unroll
    for (int e = 0; e < 4; ++e)
      largest[e / 2] = fmaxf(largest[e / 2], fmaxf(u[n][e] + (e % 2 ? plus.y : plus.x), (e % 2 ? minus.y : minus.x) - u[n][e]));
  }
  unsigned rare = 0;
  float of_chunk[2], of_sums[2];
  for (float& x : largest) x = row_max(x);
#pragma unroll
  for (int x = 0; x < 2; ++x) {
    const bool redo = largest[x] - den[x] > -kSmallestLog;
    if (redo) rare |= 1u << (l.row + 8 * x) % 16;
    of_chunk[x] = redo ? -INFINITY : -den[x];
    of_sums[x] = first[x] < 0 ? -den[x] : -INFINITY;
  }
  mark_rare_rows(p, at, rare, l);

  wait_all_copies();
  __syncthreads();  // S is here
  gradient_of_exponents<false, kD>(u, w, m.others, m.y, m.own, has_sums, m.numbers.top, m.numbers.before, nullptr, m.numbers.z, delta,
                                   of_chunk, of_sums, l);
  store_rows<kD>(p.du, p.du.at(at.b, at.t0, at.h), u, at.count, l);
}

/// du of the keys of a chunk, and dv: the mirror image, with queries over their denominators in shared memory. A warp has 16 keys.
template <int kD>
__global__ void __launch_bounds__(2 * kD, kD == 96 ? 2 : 1) linear_attention_large_keys_kernel(const __grid_constant__ Arguments p) {
  constexpr int kSteps = kD / 16, kTile = LargeLanes<kD>::kTile;
  BackwardMemory<kD>& m = *reinterpret_cast<BackwardMemory<kD>*>(shared_bytes());
  const Sequence& s = p.s;
  const LargeLanes<kD> l;
  const Chunk at(s, kD);
  const int thread = int(threadIdx.x);
  wait_for_kernels();
  load_chunk<true, kD>(m, p, at, l);
  const auto numbers = m.numbers.fetch(p, at);
  if (thread < kD) {
    const int row = thread < at.count ? thread : 0;
    const float den = p.saved[(at.b * s.T + at.t0 + row) * s.H + at.h] * kLog2e, delta = p.delta[at.index * s.T + at.t0 + row];
    const bool rare = p.redo[at.slot * (kD / 16) + thread / 16] >> thread % 16 & 1;
    m.den[thread] = thread < at.count && !rare ? den : INFINITY;
    m.delta[thread] = thread < at.count && !rare ? delta : 0.0f;
  }
  m.numbers.keep(numbers);
  // the state before the chunk is for queries
  float* const ratio = m.numbers.before;
  ratio[thread] = exp2_fast(numbers.top - numbers.after);
  wait_copies<2>();
  __syncthreads();  // weight_q, q and the numbers are here

  float u[kD / 8][4];
  exponents<kD>(u, m.others + kTile, m.others, l);
  wait_copies<1>();
  __syncthreads();  // weight_k and k are here; all are done with weight_q and q
  const float dens[2] = {-m.den[l.row], -m.den[l.row + 8]};
  store_features<false, kD>(m.others, u, m.numbers.top, dens, l);
  exponents<kD>(u, m.own + kTile, m.own, l);
  wait_copies<0>();
  __syncthreads();  // phi_q, v and dy are here; all are done with weight_k and k
  const bool has_sums = at.chunk + 1 < s.chunks;
  if (has_sums) load_sums<kD>(m.own, p.sums, at.slot, l);

  // keys before `first` do not reach later chunks; what comes of rows past the end is not stored
  const int first = m.numbers.rows[at.count - 1];
  const float of_sums[2] = {l.row >= first ? 0.0f : -INFINITY, l.row + 8 >= first ? 0.0f : -INFINITY};
  const float of_chunk[2] = {kNothing, kNothing};
  const bool documents = m.numbers.rows[at.count - 1] > 0;
  // zeros where query 16 i + ... does not see the key of a row
  const auto hide = [&](float(&scores)[2][4], int i) {
    if (i != l.warp && !documents) return;
#pragma unroll
    for (int n = 0; n < 2; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int row = l.row + e / 2 * 8, column = 16 * i + 8 * n + l.column + e % 2;
        if (column < row || row < m.numbers.rows[column]) scores[n][e] = 0;
      }
  };

  // dv: queries of the chunk from the key on
  unsigned weights[kSteps][4] = {};
  {
    unsigned phi[2 * kSteps][4];
    feature_operands<true, kD>(phi, u, m.numbers.top, of_chunk, l);
#pragma unroll 1
    for (int i = l.warp; i < kSteps; ++i) {
      float scores[2][4];
      multiply_block<kD>(scores, phi, m.others, 16 * i, l);
      hide(scores, i);
      unsigned a[4];
      pack_operand(a, scores[0], scores[1]);
      keep_operand(weights, i, a);
    }
  }
  float dv[kD / 8][4] = {};
#pragma unroll
  for (int i = 0; i < kSteps; ++i) {
    if (i < l.warp) continue;
    multiply_step(dv, weights[i], [&](unsigned(&b)[4], int n) { l.b_transposed(b, m.others_y, n, 16 * i); });
  }
  // dv: queries of later chunks
  wait_all_copies();
  __syncthreads();  // R is here
  if (has_sums) {
#pragma unroll
    for (int k = 0; k < 2 * kSteps; ++k) {
      unsigned a[4];
      feature_operand<true, kD>(a, u, k, m.numbers.after, of_sums, l);
      const bf16* const R = m.own + (k >= kSteps ? kTile : 0);
      multiply_step(dv, a, [&](unsigned(&b)[4], int n) { l.b_transposed(b, R, n, 16 * (k % kSteps)); });
    }
  }
  store_rows<kD>(p.dv, p.dv.at(at.b, at.t0, at.h), dv, at.count, l);

  // W^T from the key on
  unsigned w[kSteps][4] = {};
  {
    unsigned v[kSteps][4];
#pragma unroll
    for (int k = 0; k < kSteps; ++k) l.a(v[k], m.y, 16 * l.warp, 16 * k);
#pragma unroll 1
    for (int i = l.warp; i < kSteps; ++i) {
      float scores[2][4];
      multiply_block<kD>(scores, v, m.others_y, 16 * i, l);
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const float2 of_columns = pair_at(m.delta, 16 * i + 8 * n + l.column);
#pragma unroll
        for (int e = 0; e < 4; ++e) scores[n][e] += e % 2 ? of_columns.y : of_columns.x;
      }
      hide(scores, i);
      unsigned a[4];
      pack_operand(a, scores[0], scores[1]);
      keep_operand(w, i, a);
    }
  }
  const float ones[2] = {1, 1};
  gradient_of_exponents<true, kD>(u, w, m.others, m.y, m.own, has_sums, m.numbers.top, m.numbers.after, documents ? nullptr : ratio,
                                  m.numbers.z, ones, of_chunk, of_sums, l);
  store_rows<kD>(p.du, p.du.at(at.b, at.t0, at.h), u, at.count, l);
}

}  // namespace

std::size_t shared_memory_of(std::int64_t D) { return D == 128 ? sizeof(BackwardMemory<128>) : sizeof(BackwardMemory<96>); }

void backward_queries(const Arguments& p, std::int64_t batch, int D) {
  const std::int64_t blocks = batch * p.s.H * p.s.chunks;
  if (D == 128) launch(linear_attention_large_queries_kernel<128>, blocks, 256, sizeof(BackwardMemory<128>), p);
  else launch(linear_attention_large_queries_kernel<96>, blocks, 192, sizeof(BackwardMemory<96>), p);
}

void backward_keys(const Arguments& p, std::int64_t batch, int D) {
  const std::int64_t blocks = batch * p.s.H * p.s.chunks;
  if (D == 128) launch(linear_attention_large_keys_kernel<128>, blocks, 256, sizeof(BackwardMemory<128>), p);
  else launch(linear_attention_large_keys_kernel<96>, blocks, 192, sizeof(BackwardMemory<96>), p);
}

}  // namespace hedgehog::cuda::linear_attention_large

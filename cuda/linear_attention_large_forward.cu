#include "cuda/linear_attention_large_tile.cuh"

namespace hedgehog::cuda::linear_attention_large {
namespace {

template <int kD>
struct AttendMemory {
  static constexpr int kTile = LargeLanes<kD>::kTile;
  bf16 keys[2 * kTile];     // weight_k and k, then phi_k (chunk, F), one tile a sign
  bf16 queries[2 * kTile];  // weight_q and q, then S (F, Dv)
  bf16 v[kTile];            // (chunk, Dv)
  ChunkNumbers<kD> numbers;
  float larger[2 * kD];  // of the shifts of the chunk and of the state
};

/// o of one chunk, and the logarithm of its denominator. A warp has 16 queries, whose exponents stay in registers.
template <int kD>
__global__ void __launch_bounds__(2 * kD, kD == 96 ? 2 : 1) linear_attention_large_forward_kernel(const __grid_constant__ Arguments p) {
  constexpr int kSteps = kD / 16, kTile = LargeLanes<kD>::kTile;
  AttendMemory<kD>& m = *reinterpret_cast<AttendMemory<kD>*>(shared_bytes());
  const Sequence& s = p.s;
  const LargeLanes<kD> l;
  const Chunk at(s, kD);
  wait_for_kernels();
  if (p.no_state && at.slot == 0 && threadIdx.x == 0) *p.no_state = 0;

  load_tile<kD>(m.keys, s.weight_k + at.h * kD * kD, kD, kD, s.vector, l);
  load_tile<kD>(m.keys + kTile, s.k.at(at.b, at.t0, at.h), s.k.token, at.count, s.vector, l);
  commit_copies();
  load_tile<kD>(m.queries, s.weight_q + at.h * kD * kD, kD, kD, s.vector, l);
  load_tile<kD>(m.queries + kTile, s.q.at(at.b, at.t0, at.h), s.q.token, at.count, s.vector, l);
  commit_copies();
  load_tile<kD>(m.v, s.v.at(at.b, at.t0, at.h), s.v.token, at.count, s.vector, l);
  commit_copies();
  m.numbers.load(p, at);
  m.larger[threadIdx.x] = fmaxf(m.numbers.top[threadIdx.x], m.numbers.before[threadIdx.x]);
  wait_copies<2>();
  __syncthreads();  // weight_k, k and the numbers are here

  float u[kD / 8][4];
  exponents<kD>(u, m.keys + kTile, m.keys, l);
  wait_copies<1>();
  __syncthreads();  // weight_q and q are here; all are done with weight_k and k
  const float valid[2] = {l.row < at.count ? 0.0f : -INFINITY, l.row + 8 < at.count ? 0.0f : -INFINITY};
  store_features<true, kD>(m.keys, u, m.numbers.top, valid, l);
  exponents<kD>(u, m.queries + kTile, m.queries, l);
  wait_copies<0>();
  __syncthreads();  // phi_k and v are here; all are done with weight_q and q
  if (at.chunk > 0) load_sums<kD>(m.queries, p.sums, at.slot, l);

  const int first[2] = {m.numbers.rows[l.row], m.numbers.rows[l.row + 8]};
  float largest[2] = {-INFINITY, -INFINITY};
  const auto find_largest = [&](const float(&shifts)[2 * kD], bool upper, bool lower) {
#pragma unroll
    for (int n = 0; n < kD / 8; ++n) {
      const float2 plus = pair_at(shifts, 8 * n + l.column), minus = pair_at(shifts, kD + 8 * n + l.column);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float value = fmaxf(u[n][e] + (e % 2 ? plus.y : plus.x), (e % 2 ? minus.y : minus.x) - u[n][e]);
        if (e / 2 ? lower : upper) largest[e / 2] = fmaxf(largest[e / 2], value);
      }
    }
  };
  if (m.numbers.rows[at.count - 1] < 0) {
    find_largest(m.larger, true, true);
  } else {
    find_largest(m.numbers.top, true, true);
    find_largest(m.numbers.before, first[0] < 0, first[1] < 0);
  }
  for (float& x : largest) x = row_max(x);

  // the chunk up to the row
  unsigned weights[kSteps][4] = {};
  float den[2] = {0, 0};
  {
    const float of_rows[2] = {-largest[0], -largest[1]};
    unsigned phi[2 * kSteps][4];
    feature_operands<false, kD>(phi, u, m.numbers.top, of_rows, l);
    const bool documents = m.numbers.rows[at.count - 1] > 0;
#pragma unroll 1
    for (int j = 0; j <= l.warp; ++j) {
      float scores[2][4];
      multiply_block<kD>(scores, phi, m.keys, 16 * j, l);
      if (j == l.warp || documents) {
#pragma unroll
        for (int n = 0; n < 2; ++n)
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const int column = 16 * j + 8 * n + l.column + e % 2;
            if (column > l.row + e / 2 * 8 || column < first[e / 2]) scores[n][e] = 0;
          }
      }
      unsigned a[4];
      pack_operand(a, scores[0], scores[1]);
#pragma unroll
      for (int e = 0; e < 4; ++e) den[e % 2] += low_of(a[e]) + high_of(a[e]);
      keep_operand(weights, j, a);
    }
  }
  float o[kD / 8][4] = {};
#pragma unroll
  for (int j = 0; j < kSteps; ++j) {
    if (j > l.warp) break;
    multiply_step(o, weights[j], [&](unsigned(&b)[4], int n) { l.b_transposed(b, m.v, n, 16 * j); });
  }
  // the state before the chunk, for rows of its document
  if (at.chunk > 0) {
    wait_all_copies();
    __syncthreads();  // S is here
    const float of_rows[2] = {first[0] < 0 ? -largest[0] : -INFINITY, first[1] < 0 ? -largest[1] : -INFINITY};
#pragma unroll
    for (int k = 0; k < 2 * kSteps; ++k) {
      unsigned a[4];
      feature_operand<false, kD>(a, u, k, m.numbers.before, of_rows, l);
      const bf16* const S = m.queries + (k >= kSteps ? kTile : 0);
      multiply_step(o, a, [&](unsigned(&b)[4], int n) { l.b_transposed(b, S, n, 16 * (k % kSteps)); });
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float2 z = pair_at(m.numbers.z, 16 * k + e / 2 * 8 + l.column);
        den[e % 2] += low_of(a[e]) * z.x + high_of(a[e]) * z.y;
      }
    }
  }

  unsigned rare = 0;
#pragma unroll
  for (int x = 0; x < 2; ++x) {
    const int row = l.row + 8 * x;
    den[x] = row_sum(den[x]);
    if (row < at.count && !(den[x] >= kSmallest)) rare |= 1u << row % 16;
    if (l.column == 0 && row < at.count && p.saved) p.saved[(at.b * s.T + at.t0 + row) * s.H + at.h] = (largest[x] + log2f(den[x])) * kLn2;
    const float inverse = 1 / den[x];
#pragma unroll
    for (int n = 0; n < kD / 8; ++n) o[n][2 * x] *= inverse, o[n][2 * x + 1] *= inverse;
  }
  mark_rare_rows(p, at, rare, l);
  store_rows<kD>(p.o, p.o.at(at.b, at.t0, at.h), o, at.count, l);
}

}  // namespace

void attend(const Arguments& p, std::int64_t batch, int D) {
  const std::int64_t blocks = batch * p.s.H * p.s.chunks;
  if (D == 128) launch(linear_attention_large_forward_kernel<128>, blocks, 256, sizeof(AttendMemory<128>), p);
  else launch(linear_attention_large_forward_kernel<96>, blocks, 192, sizeof(AttendMemory<96>), p);
}

}  // namespace hedgehog::cuda::linear_attention_large

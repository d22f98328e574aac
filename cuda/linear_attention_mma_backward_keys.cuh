#pragma once
#include "cuda/linear_attention_mma_backward.cuh"

/// Shared memory of the pass against time on tensor cores, and its rows in log space.
namespace hedgehog::cuda::linear_attention_mma {

template <int kD, bool kGeneral>
struct KeysMemory {
  static constexpr int kTile = kD * kD;
  bf16 weight_q[kTile], weight_k[kTile];         // (D, D')
  bf16 q[kTile], k[kTile], v[kTile], dy[kTile];  // (chunk, D)
  bf16 du[kTile];                                // (chunk, D')
  bf16 phi[2 * kTile];                           // (F, chunk) of queries over their denominators
  bf16 R[2 * kTile];                             // (F, Dv), in the scale of the chunk
  float y[2 * kD], added[2 * kD];                // after the chunk, and what it adds
  // of this chunk and the one before it
  float shift[2][2 * kD], den[2][(kGeneral ? 2 : 1) * kD], delta[2][kD];  // den: of either sign
  signed char rows[2][kD];
  float a[kD];  // log features of a rare row
};

/// What rows in log space add to du and dv of a warp's keys, whose log features are `u`. du is left in the tile. A call, as
/// the next, so that only it pays for its registers.
template <int kD, bool kGeneral>
__device__ __noinline__ void keys_log_space_rows(const BackwardArguments& p, unsigned long long redo, const float (&u)[kD / 8][4],
                                                 RowNorm<kGeneral> norm, float (&dv)[kD / 8][4], const float* deltas,
                                                 const signed char* rows, std::int64_t b, std::int64_t h, std::int64_t t0) {
  using Memory = KeysMemory<kD, kGeneral>;
  Memory& m = *reinterpret_cast<Memory*>(shared_bytes());
  const Lanes<kD> l;
  float du[kD / 8][4] = {}, gradients[2][2] = {};
  for (int i = 0; i < kD; ++i) {
    if (!(redo >> i & 1)) continue;
    __syncthreads();
    plain_logs<kD>(m.a, p.s.q.at(b, t0 + i, h), 0, 1, m.weight_q, exponent_scale<kGeneral>(p.s.map),
                   bias_of<kGeneral>(p.s.map, kOfQueries, h, kD), p.s.rotary, t0 + i);
    __syncthreads();
    const float den = p.saved[(b * p.s.T + t0 + i) * p.s.H + h] * kLog2e;
    const float dens[2] = {plus_norm<kGeneral>(den, p.s.map, kOfQueries, 0, b * p.s.H + h, t0 + i),
                           plus_norm<kGeneral>(den, p.s.map, kOfQueries, 1, b * p.s.H + h, t0 + i)};
#pragma unroll
    for (int x = 0; x < 2; ++x) {
      const int row = l.row + 8 * x;
      const float less[2] = {norm.plus(dens[0], 0, x), norm.plus(dens[1], 1, x)};
      float score = 0, dscore = 0;
#pragma unroll
      for (int n = 0; n < kD / 8; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int column = 8 * n + l.column + e;
          const float both = m.a[column] + u[n][2 * x + e];
          score += exp2_fast(both - less[0]) + exp2_fast(-both - less[1]);
          dscore += __bfloat162float(m.dy[place<kD>(i, column)]) * __bfloat162float(m.v[place<kD>(row, column)]);
        }
      score = row_sum(score);
      dscore = row_sum(dscore) + deltas[i];
      if (row > i || row < rows[i]) continue;
#pragma unroll
      for (int n = 0; n < kD / 8; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int column = 8 * n + l.column + e;
          const float both = m.a[column] + u[n][2 * x + e];
          const float plus = dscore * exp2_fast(both - less[0]), minus = dscore * exp2_fast(-both - less[1]);
          du[n][2 * x + e] += plus - minus;
          gradients[0][x] += plus, gradients[1][x] += minus;
          dv[n][2 * x + e] += score * __bfloat162float(m.dy[place<kD>(i, column)]);
        }
    }
  }
  if constexpr (kGeneral) {
    sum_rows(gradients, p.s.map.joint);
    if (!p.s.map.log_sums) gradients[0][0] = gradients[0][1] = gradients[1][0] = gradients[1][1] = 0;
#pragma unroll
    for (int n = 0; n < kD / 8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        du[n][e] = p.s.map.factor() * (du[n][e] - (true_feature(norm.minus(u[n][e], 0, e / 2)) * gradients[0][e / 2] -
                                                    true_feature(norm.minus(-u[n][e], 1, e / 2)) * gradients[1][e / 2]));
  }
#pragma unroll
  for (int n = 0; n < kD / 8; ++n)
#pragma unroll
    for (int x = 0; x < 2; ++x)
      *reinterpret_cast<unsigned*>(m.du + place<kD>(l.row + 8 * x, 8 * n + l.column)) = pack(du[n][2 * x], du[n][2 * x + 1]);
}

/// What rows in log space add to R and y in the scale before the chunk. That may be far above the keys of the row's document: features
/// by more than kBelowScale have lost these keys in any case, and stay finite.
template <int kD, bool kGeneral>
__device__ __noinline__ void reverse_log_space_rows(const BackwardArguments& p, unsigned long long redo, Sums<kD>& R, const float* before,
                                                    const float* deltas, const signed char* rows, std::int64_t b, std::int64_t h,
                                                    std::int64_t t0) {
  using Memory = KeysMemory<kD, kGeneral>;
  Memory& m = *reinterpret_cast<Memory*>(shared_bytes());
  const Lanes<kD> l;
  for (int i = 0; i < kD; ++i) {
    if (!(redo >> i & 1) || rows[i] >= 0) continue;
    __syncthreads();
    plain_logs<kD>(m.a, p.s.q.at(b, t0 + i, h), 0, 1, m.weight_q, exponent_scale<kGeneral>(p.s.map),
                   bias_of<kGeneral>(p.s.map, kOfQueries, h, kD), p.s.rotary, t0 + i);
    __syncthreads();
    const float den = p.saved[(b * p.s.T + t0 + i) * p.s.H + h] * kLog2e;
    const float dens[2] = {plus_norm<kGeneral>(den, p.s.map, kOfQueries, 0, b * p.s.H + h, t0 + i),
                           plus_norm<kGeneral>(den, p.s.map, kOfQueries, 1, b * p.s.H + h, t0 + i)};
#pragma unroll
    for (int s = 0; s < 2; ++s)
#pragma unroll
      for (int x = 0; x < 2; ++x) {
        const float u = m.a[l.row + 8 * x], phi = exp2_fast(fminf((s ? -u : u) + before[s * kD + l.row + 8 * x] - dens[s], kBelowScale));
        R.z[s][x] += phi * deltas[i];
#pragma unroll
        for (int n = 0; n < kD / 8; ++n)
#pragma unroll
          for (int e = 0; e < 2; ++e) R.S[s][n][2 * x + e] += phi * __bfloat162float(m.dy[place<kD>(i, 8 * n + l.column + e)]);
      }
  }
}

}  // namespace hedgehog::cuda::linear_attention_mma

#include "cuda/linear_attention_forward.cuh"
#include "cuda/linear_attention_warpgroup.cuh"

namespace hedgehog::cuda::linear_attention_mma {
namespace {

template <bool kGeneral>
using Memory = WithKeyNorm<ForwardTiles<kWide>, kGeneral>;
static_assert(3 * (sizeof(Memory<true>) + 1024) <= 228 * 1024, "three blocks a multiprocessor");

/// o and the logarithm of its denominator; the walk of linear_attention_forward_kernel with products of a warpgroup. A block that
/// meets a row to be redone in log space says so and stops: that kernel then does its whole walk.
template <bool kGeneral, bool kTurned>
__global__ void __launch_bounds__(128, 3) linear_attention_warpgroup_forward_kernel(const __grid_constant__ ForwardArguments p) {
#if HEDGEHOG_WARPGROUPS
  auto& m = *reinterpret_cast<Memory<kGeneral>*>(shared_bytes());
  SharedAddresses at(&m);
  const Sequence& s = p.s;
  const Lanes<kWide> l;
  const Walk walk(s);
  const std::int64_t b = walk.b, h = walk.h, begin = std::int64_t(walk.begin) * kWide;
  const int thread = int(threadIdx.x);
  wait_for_kernels();

  load_weight<kWide, kGeneral>(m.weight_q, s.weight_q, h, true, l);
  load_weight<kWide, kGeneral>(m.weight_k, s.weight_k, h, true, l);
  load_rows<kWide>(m.k, s.k.at(b, begin, h), s.k.token, s.T - begin, true, l);
  commit_copies();
  load_rows<kWide>(m.q, s.q.at(b, begin, h), s.q.token, s.T - begin, true, l);
  commit_copies();
  if (thread < kWide) m.rows[walk.begin & 1][thread] = document_row(s, b, begin, thread);
  if constexpr (kGeneral) m.key_norm[thread] = fetch_key_norm<kWide>(s.map, walk.index, begin);
  Sums<kWide> sums;
  start(sums, m.features, p.states, s, walk, l);
  State& S = sums.S;
  int last = -1;

  for (int chunk = walk.begin; chunk < walk.end; ++chunk) {
    at.forget();
    const std::int64_t t0 = std::int64_t(chunk) * kWide, left = s.T - t0;
    const int count = left < kWide ? int(left) : kWide;
    const bool goes_on = chunk + 1 < walk.end, ends = p.final_state && chunk + 1 == s.chunks;
    const signed char* const rows = m.rows[chunk & 1];
    wait_copies<1>();  // q may be on its way
    if constexpr (kTurned) turn_rows<kWide>(m.k, s.rotary + t0 * kWide, kWide, count - 1, true, l);
    shared_written();
    __syncthreads();  // k and rows are here; the chunk before is done with v, phi and the state
    load_rows<kWide>(m.v, s.v.at(b, t0, h), s.v.token, left, true, l);
    if (keeps(p, chunk)) keep_state(p, state_of(S, m.features, last, l), kept_slot(p, walk, chunk), l);
    RowNorm<kGeneral> norm;
    norm.fetch(s.map, kOfQueries, walk.index, t0, count, l.row);
    float u[8][4];
    enter<true>(S, at(m.weight_k), at(m.k), count, rows, last, at(m.phi), at(m.S), m.features, l, chunk_norm<kGeneral>(s.map, m.norm(), h, kWide));
    wait_all_copies();
    if constexpr (kTurned) turn_rows<kWide>(m.q, s.rotary + t0 * kWide, kWide, count - 1, true, l);
    shared_written();
    __syncthreads();  // q, v, phi and the state are here; all are done with k
    signed char next_row = -1;
    float next_norm = 0;
    if (goes_on) {
      if constexpr (kGeneral) next_norm = fetch_key_norm<kWide>(s.map, walk.index, t0 + kWide);
      load_rows<kWide>(m.k, s.k.at(b, t0 + kWide, h), s.k.token, left - kWide, true, l);
      commit_copies();
      if (thread < kWide) next_row = document_row(s, b, t0 + kWide, thread);
    }
    if constexpr (kGeneral) start_by_token<true>(u, bias_of<true>(s.map, kOfQueries, h, kWide), l.column);
    start_products();
    product<Side::straight, Side::transposed>(u, at(m.q), at(m.weight_q), !kGeneral);
    commit_products();
    finish_products();
    own(u);

    // queries in the scale of the keys, by token
    float largest[2] = {-INFINITY, -INFINITY}, den[2] = {0, 0};
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      const float2 plus = pair_at(m.features.shift, 8 * n + l.column), minus = pair_at(m.features.shift, kWide + 8 * n + l.column);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        largest[e / 2] = fmaxf(largest[e / 2], fmaxf(norm.minus(fmaf(u[n][e], norm.scale, e % 2 ? plus.y : plus.x), 0, e / 2),
                                                     norm.minus(fmaf(u[n][e], -norm.scale, e % 2 ? minus.y : minus.x), 1, e / 2)));
      }
    }
    for (float& x : largest) x = row_max(x);
    // the features of one sign go where q was, those of the other stay in registers: there is no room for all
    unsigned q[4][4];
#pragma unroll
    for (int sign = 0; sign < 2; ++sign) {
      const float less[2] = {norm.plus(largest[0], sign, 0), norm.plus(largest[1], sign, 1)};
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        float phi[2][4];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int n = 2 * k + half, column = sign * kWide + 8 * n + l.column;
          const float2 shift = pair_at(m.features.shift, column), z = pair_at(m.features.z, column);
#pragma unroll
          for (int e = 0; e < 4; ++e)
            phi[half][e] = exp2_fast(fmaf(u[n][e], sign ? -norm.scale : norm.scale, e % 2 ? shift.y : shift.x) - less[e / 2]);
#pragma unroll
          for (int x = 0; x < 2; ++x) den[x] = fmaf(phi[half][2 * x], z.x, fmaf(phi[half][2 * x + 1], z.y, den[x]));
        }
        pack_operand(q[k], phi[0], phi[1]);
        if (sign == 0) store_matrices(l.block(at(m.q), 16 * l.warp, 16 * k), q[k][0], q[k][1], q[k][2], q[k][3]);
      }
    }
    shared_written();
    __syncthreads();  // the features of queries are where q was
    float c[8][4];    // scores, then o
    start_products();
    product<Side::straight, Side::transposed>(c, at(m.q), at(m.phi), true);
    product<Side::transposed>(c, q, at(m.phi) + kTileBytes, false);
    commit_products();
    finish_products();
    own(c);
    unsigned a[4][4];
#pragma unroll
    for (int k = 0; k < 4; ++k) pack_operand(a[k], c[2 * k], c[2 * k + 1]);
    keep_triangle<true>(a, l);
    bool sees[2] = {true, true};
    if (s.document_start) {
      const int first[2] = {rows[l.row], rows[l.row + 8]};
      keep_elements(a, [&](int x, int column) { return column >= first[x]; }, l);
      sees[0] = first[0] < 0, sees[1] = first[1] < 0;
    }
#pragma unroll
    for (int x = 0; x < 2; ++x)
      if (!sees[x]) den[x] = 0;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (k > l.warp) break;
#pragma unroll
      for (int e = 0; e < 4; ++e) den[e % 2] += low_of(a[k][e]) + high_of(a[k][e]);
    }
    // the state before the chunk and the chunk up to the row; then the keys of the chunk for the next
    start_products();
    product<Side::straight, Side::transposed>(c, at(m.q), at(m.S), true);
    product<Side::transposed>(c, q, at(m.S) + kTileBytes, false);
    if (s.document_start) {
      commit_products();
      finish_products();
      own(c);
      keep_rows(c, sees);
      start_products();
    }
    product<Side::transposed>(c, a, at(m.v), false);
    commit_products();
    finish_products();
    own(c);
    bool small = false;
#pragma unroll
    for (int x = 0; x < 2; ++x) {
      const int row = l.row + 8 * x;
      den[x] = row_sum(den[x]);
      small |= row < count && den[x] < kSmallest;
      if (l.column == 0 && row < count && p.saved) p.saved[(b * s.T + t0 + row) * s.H + h] = (largest[x] + log2f(den[x])) * kLn2;
    }
    if (__syncthreads_or(small)) {  // all are done with the features of queries
      if (thread == 0) p.rare[walk.slot] = 1;
      return;
    }
    if (goes_on) {
      load_rows<kWide>(m.q, s.q.at(b, t0 + kWide, h), s.q.token, left - kWide, true, l);
      commit_copies();
    }
    last = rows[kWide - 1];
#pragma unroll
    for (int x = 0; x < 2; ++x) {
      const float inverse = 1 / den[x];
#pragma unroll
      for (int n = 0; n < 8; ++n) c[n][2 * x] *= inverse, c[n][2 * x + 1] *= inverse;
    }
    __builtin_assume(p.o.vector && p.o.data);
    store_rows<kWide>(p.o, p.o.at(b, t0, h), c, count, l);
    if (!goes_on && !ends) break;
    start_leave(S, at(m.phi), at(m.v), last, l);
    finish_products();
    own(S);
    if (ends) end_with(p, state_of(S, m.features, last, l), walk.index, l);
    if (thread < kWide) m.rows[(chunk + 1) & 1][thread] = next_row;
    if constexpr (kGeneral) m.key_norm[thread] = next_norm;
  }
  if (thread == 0) p.rare[walk.slot] = 0;
#endif
}

}  // namespace

void warpgroup_forward(const ForwardArguments& p, std::int64_t blocks) {
  with_form(p.s, [&](auto general, auto turned) {
    launch(linear_attention_warpgroup_forward_kernel<general, turned>, blocks, 128, sizeof(Memory<general>), p);
  });
}

}  // namespace hedgehog::cuda::linear_attention_mma

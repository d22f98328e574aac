#pragma once
#include "cuda/linear_attention_mma_backward.cuh"
#include "cuda/linear_attention_warpgroup.cuh"

namespace hedgehog::cuda::linear_attention_mma {

template <bool kGeneral, bool kTurned>
using WarpgroupQueriesMemory = WithAngles<WithKeyNorm<QueriesTiles<kWide>, kGeneral>, kWide, kTurned>;

/// dq and the part of dweight_q: the walk of linear_attention_backward_queries_kernel with products of a warpgroup. A block that
/// meets rows that forward has redone in log space stops; gives the chunk where it stopped, else the end of the walk.
template <bool kGeneral, bool kTurned>
__device__ __forceinline__ int walk_queries(const BackwardArguments& p, const Walk& walk) {
  auto& m = *reinterpret_cast<WarpgroupQueriesMemory<kGeneral, kTurned>*>(shared_bytes());
  SharedAddresses at(&m);
  const Sequence& s = p.s;
  const Lanes<kWide> l;
  const std::int64_t index = walk.index, b = walk.b, h = walk.h, begin = std::int64_t(walk.begin) * kWide;
  const int thread = int(threadIdx.x);

  load_weight<kWide, kGeneral>(m.weight_q, s.weight_q, h, true, l);
  load_weight<kWide, kGeneral>(m.weight_k, s.weight_k, h, true, l);
  load_rows<kWide>(m.k, s.k.at(b, begin, h), s.k.token, s.T - begin, true, l);
  if (thread < kWide) m.rows[walk.begin & 1][thread] = document_row(s, b, begin, thread);
  if constexpr (kGeneral) m.key_norm[thread] = fetch_key_norm<kWide>(s.map, index, begin);
  m.load_angles(s.rotary, begin, s.T - begin, l);
  Sums<kWide> sums;
  start(sums, m.features, p.states, s, walk, l);
  State& S = sums.S;
  int last = -1, stopped = walk.end;
  float dweight[8][4] = {}, dbias = 0;

  for (int chunk = walk.begin; chunk < walk.end; ++chunk) {
    at.forget();
    const std::int64_t t0 = std::int64_t(chunk) * kWide, left = s.T - t0;
    const int count = left < kWide ? int(left) : kWide;
    const bool goes_on = chunk + 1 < walk.end;
    const signed char* const rows = m.rows[chunk & 1];
    wait_all_copies();
    m.turn(m.k, l);
    shared_written();
    __syncthreads();  // k and rows are here; the chunk before is done with all tiles
    load_rows<kWide>(m.q, s.q.at(b, t0, h), s.q.token, left, true, l);
    load_rows<kWide>(m.v, s.v.at(b, t0, h), s.v.token, left, true, l);
    load_rows<kWide>(m.dy, p.dy.at(b, t0, h), p.dy.token, left, true, l);
    load_rows<kWide>(m.du, p.o.at(b, t0, h), p.o.token, left, true, l);
    float den[2];
#pragma unroll
    for (int x = 0; x < 2; ++x) den[x] = p.saved[(b * s.T + t0 + min(l.row + 8 * x, count - 1)) * s.H + h];
    RowNorm<kGeneral> norm;
    norm.fetch(s.map, kOfQueries, index, t0, count, l.row);
    enter<true>(S, at(m.weight_k), at(m.k), count, rows, last, at(m.phi), at(m.S), m.features, l, chunk_norm<kGeneral>(s.map, m.norm(), h, kWide));
    last = rows[kWide - 1];
    wait_all_copies();
    m.turn(m.q, l);
    shared_written();
    __syncthreads();  // v, dy, o, q, phi and the state are here; all are done with k
    p.shifts[(index * s.chunks + chunk) * 2 * kWide + thread] = m.features.shift[thread];
    signed char next_row = -1;
    if (goes_on) {
      load_rows<kWide>(m.k, s.k.at(b, t0 + kWide, h), s.k.token, left - kWide, true, l);
      if (thread < kWide) next_row = document_row(s, b, t0 + kWide, thread);
      if constexpr (kGeneral) m.key_norm[thread] = fetch_key_norm<kWide>(s.map, index, t0 + kWide);
    }

    float u[8][4];
    unsigned w[4][4];  // W up to the row
    float delta[2] = {0, 0};
    bool small = false, sees[2] = {true, true};
    {
      float dscores[8][4];
      if constexpr (kGeneral) start_by_token<true>(u, bias_of<true>(s.map, kOfQueries, h, kWide), l.column);
      start_products();
      product<Side::straight, Side::transposed>(u, at(m.q), at(m.weight_q), !kGeneral);
      product<Side::straight, Side::straight>(dscores, at(m.dy), at(m.v), true);
      commit_products();
#pragma unroll
      for (int k = 0; k < kWide; k += 16) {
        unsigned dy[4], o[4];
        load_matrices(dy, l.block(at(m.dy), 16 * l.warp, k));
        load_matrices(o, l.block(at(m.du), 16 * l.warp, k));
#pragma unroll
        for (int e = 0; e < 4; ++e) delta[e % 2] -= low_of(dy[e]) * low_of(o[e]) + high_of(dy[e]) * high_of(o[e]);
      }
      finish_products();
      own(u);
      own(dscores);
#pragma unroll
      for (int x = 0; x < 2; ++x) delta[x] = row_sum(delta[x]);
#pragma unroll
      for (int n = 0; n < 8; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) dscores[n][e] += delta[e / 2];
#pragma unroll
      for (int k = 0; k < 4; ++k) pack_operand(w[k], dscores[2 * k], dscores[2 * k + 1]);
      keep_triangle<true>(w, l);
      if (s.document_start) {
        const int first[2] = {rows[l.row], rows[l.row + 8]};
        keep_elements(w, [&](int x, int column) { return column >= first[x]; }, l);
        sees[0] = first[0] < 0, sees[1] = first[1] < 0;
      }
    }
#pragma unroll
    for (int x = 0; x < 2; ++x) {
      asm volatile("" : "+f"(den[x]));  // not to wait for it where it is read
      den[x] = l.row + 8 * x < count ? den[x] * kLog2e : INFINITY;
    }
    float largest[2] = {-INFINITY, -INFINITY};
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      const float2 plus = pair_at(m.features.shift, 8 * n + l.column), minus = pair_at(m.features.shift, kWide + 8 * n + l.column);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        largest[e / 2] = fmaxf(largest[e / 2], fmaxf(norm.minus(fmaf(u[n][e], norm.scale, e % 2 ? plus.y : plus.x), 0, e / 2),
                                                     norm.minus(fmaf(u[n][e], -norm.scale, e % 2 ? minus.y : minus.x), 1, e / 2)));
      }
    }
#pragma unroll
    for (int x = 0; x < 2; ++x) {
      const int row = l.row + 8 * x;
      small |= row_max(largest[x]) - den[x] > -kSmallestLog;
      if (l.column == 0 && row < count) {
        p.delta[index * s.T + t0 + row] = delta[x], p.denominators[index * s.T + t0 + row] = norm.plus(den[x], 0, x);
        if constexpr (kGeneral) p.denominators[s.map.count + index * s.T + t0 + row] = norm.plus(den[x], 1, x);
      }
    }
    // gradient of the features, through the state and through the chunk
    float dphi[2][8][4];
    if (s.document_start) {  // rows of a document of this chunk do not see the state
      start_products();
#pragma unroll
      for (int sign = 0; sign < 2; ++sign) product<Side::straight, Side::straight>(dphi[sign], at(m.dy), at(m.S) + sign * kTileBytes, true);
      commit_products();
      finish_products();
      own(dphi);
      keep_rows(dphi[0], sees);
      keep_rows(dphi[1], sees);
      start_products();
#pragma unroll
      for (int sign = 0; sign < 2; ++sign) product<Side::straight>(dphi[sign], w, at(m.phi) + sign * kTileBytes, false);
    } else {
      start_products();
#pragma unroll
      for (int sign = 0; sign < 2; ++sign) {
        product<Side::straight, Side::straight>(dphi[sign], at(m.dy), at(m.S) + sign * kTileBytes, true);
        product<Side::straight>(dphi[sign], w, at(m.phi) + sign * kTileBytes, false);
      }
    }
    commit_products();
    finish_products();
    own(dphi);
    // and through phi to u
    const float of_z[2] = {sees[0] ? delta[0] : 0.0f, sees[1] ? delta[1] : 0.0f};
    const float less[2][2] = {{norm.plus(den[0], 0, 0), norm.plus(den[1], 0, 1)}, {norm.plus(den[0], 1, 0), norm.plus(den[1], 1, 1)}};
    float du[8][4], gradients[2][2] = {};
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      const int column = 8 * n + l.column;
      const float2 z[2] = {pair_at(m.features.z, column), pair_at(m.features.z, kWide + column)};
      const float2 shift[2] = {pair_at(m.features.shift, column), pair_at(m.features.shift, kWide + column)};
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int x = e / 2;
        float parts[2];
#pragma unroll
        for (int sign = 0; sign < 2; ++sign) {
          const float log_phi = fmaf(u[n][e], sign ? -norm.scale : norm.scale, e % 2 ? shift[sign].y : shift[sign].x);
          parts[sign] = (dphi[sign][n][e] + of_z[x] * (e % 2 ? z[sign].y : z[sign].x)) * exp2_fast(log_phi - less[sign][x]);
          if constexpr (kGeneral) gradients[sign][x] += parts[sign];
        }
        du[n][e] = parts[0] - parts[1];
      }
    }
    if constexpr (kGeneral) through_query_norm<kWide>(du, gradients, [&](int n, int e) { return u[n][e] * norm.scale; }, norm, s.map);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      pack_operand(w[k], du[2 * k], du[2 * k + 1]);
      store_matrices(l.block(at(m.du), 16 * l.warp, 16 * k), w[k][0], w[k][1], w[k][2], w[k][3]);
    }
    shared_written();
    if (__syncthreads_or(small)) {  // du is here
      stopped = chunk;
      break;
    }
    if (thread == 0) p.redo[index * s.chunks + chunk] = 0;
    if (kGeneral && p.dbias[0]) dbias = add_bias_gradient<kWide>(dbias, m.du, count);
    start_products();
    float dq[8][4];
    product<Side::straight>(dq, w, at(m.weight_q), true);
    product<Side::transposed, Side::transposed>(dweight, at(m.q), at(m.du), false);
    commit_products();
    finish_products();
    own(dq);
    own(dweight);
    m.turn_back(dq, l);
    if (goes_on) {
      m.load_angles(s.rotary, t0 + kWide, left - kWide, l);
      start_leave(S, at(m.phi), at(m.v), last, l);
      finish_products();
      own(S);
    }
    store_rows<kWide>(p.dq, p.dq.at(b, t0, h), dq, count, l);
    if (goes_on && thread < kWide) m.rows[(chunk + 1) & 1][thread] = next_row;
  }
  store_weight_gradient<kWide>(p.dweight[0] + walk.slot * kWideTile, dweight, l);
  if (kGeneral && p.dbias[0]) store_bias_gradient<kWide>(p.dbias[0] + walk.slot * kWide, dbias, m.features.z);
  return stopped;
}

}  // namespace hedgehog::cuda::linear_attention_mma

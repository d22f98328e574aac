#pragma once
#include "cuda/linear_attention_mma_backward.cuh"
#include "cuda/linear_attention_warpgroup.cuh"

namespace hedgehog::cuda::linear_attention_mma {

/// Shared memory of walk_keys: what its sums alone need, and the rest.
template <bool kGeneral>
struct SumsTiles {
  bf16 weight_q[kWideTile];                 // (D, D')
  bf16 q[kWideTile], dy[kWideTile];         // (chunk, D)
  bf16 phi[2 * kWideTile];                  // (F, chunk) of queries over their denominators
  float y[2 * kWide], added[2 * kWide];     // after the chunk, and what it adds
  // of this chunk and the one before it
  float shift[2][2 * kWide], den[2][(kGeneral ? 2 : 1) * kWide], delta[2][kWide];  // den: of either sign
  signed char rows[2][kWide];
};
template <bool kGeneral>
struct alignas(1024) KeysTiles : SumsTiles<kGeneral> {
  alignas(1024) bf16 weight_k[kWideTile];   // (D, D')
  bf16 k[kWideTile], v[kWideTile];          // (chunk, D)
  bf16 du[kWideTile];                       // (chunk, D')
  bf16 R[2 * kWideTile];                    // (F, Dv), in the scale of the chunk
};
template <bool kGeneral, bool kTurned>
using WarpgroupSumsMemory = WithAngles<SumsTiles<kGeneral>, kWide, kTurned>;
template <bool kGeneral, bool kTurned>
using WarpgroupKeysMemory = WithAngles<KeysTiles<kGeneral>, kWide, kTurned>;

/// dk, dv and the part of dweight_k: the walk of linear_attention_backward_keys_kernel with products of a warpgroup. Walks with
/// rows in log space are not for it. With kOnlySums it gives what the segment alone adds to R and y.
template <bool kGeneral, bool kTurned, bool kOnlySums>
__device__ __forceinline__ void walk_keys(const BackwardArguments& p, const Walk& walk) {
  using Memory = std::conditional_t<kOnlySums, WarpgroupSumsMemory<kGeneral, kTurned>, WarpgroupKeysMemory<kGeneral, kTurned>>;
  auto& m = *reinterpret_cast<Memory*>(shared_bytes());
  SharedAddresses at(&m);
  const Sequence& s = p.s;
  const Lanes<kWide> l;
  const std::int64_t b = walk.b, h = walk.h;
  const int thread = int(threadIdx.x);
  ChunkNumbers<kWide, kGeneral> numbers;

  const std::int64_t end = std::int64_t(walk.end - 1) * kWide;
  load_weight<kWide, kGeneral>(m.weight_q, s.weight_q, h, true, l);
  if constexpr (!kOnlySums) load_weight<kWide, kGeneral>(m.weight_k, s.weight_k, h, true, l);
  load_rows<kWide>(m.q, s.q.at(b, end, h), s.q.token, s.T - end, true, l);
  numbers.fetch(p, walk, walk.end - 1);
  numbers.keep(m, walk.end - 1);
  m.load_angles(s.rotary, end, s.T - end, l);
  Sums<kWide> sums;  // z: y
  if (kOnlySums || (walk.segment + 1 == s.segments && !p.dfinal)) sums.clear();
  else sums.load(p.reversed, walk.slot, l);
  for (int sign = 0; sign < 2; ++sign)
    for (int x = 0; x < 2; ++x)
      if (l.column == 0) m.y[sign * kWide + l.row + 8 * x] = sums.z[sign][x];
  State& R = sums.S;
  float dweight[8][4] = {}, dbias = 0;

  for (int chunk = walk.end - 1; chunk >= walk.begin; --chunk) {
    at.forget();
    const std::int64_t t0 = std::int64_t(chunk) * kWide, left = s.T - t0;
    const int count = left < kWide ? int(left) : kWide;
    const signed char* const rows = m.rows[chunk & 1];
    const float *const deltas = m.delta[chunk & 1], *const dens = m.den[chunk & 1], *const shift = m.shift[chunk & 1];
    wait_all_copies();
    m.turn(m.q, l);
    shared_written();
    __syncthreads();  // q and the numbers of the rows are here; the chunk after is done with all tiles
    if constexpr (!kOnlySums) {
      load_rows<kWide>(m.k, s.k.at(b, t0, h), s.k.token, left, true, l);
      load_rows<kWide>(m.v, s.v.at(b, t0, h), s.v.token, left, true, l);
    }
    load_rows<kWide>(m.dy, p.dy.at(b, t0, h), p.dy.token, left, true, l);
    const int first = rows[count - 1];  // keys before it do not reach later chunks
    const bool cut = first >= 0;

    // queries over their denominators, by feature
    {
      float u[8][4];
      if constexpr (kGeneral) start_by_feature<true>(u, bias_of<true>(s.map, kOfQueries, h, kWide), l.row);
      start_products();
      product<Side::transposed, Side::straight>(u, at(m.weight_q), at(m.q), !kGeneral);
      commit_products();
      finish_products();
      own(u);
#pragma unroll
      for (int sign = 0; sign < 2; ++sign) {
        unsigned phi[8][2];
#pragma unroll
        for (int x = 0; x < 2; ++x) {
          const int row = sign * kWide + l.row + 8 * x;
          const float of_row = shift[row];
          float sum = 0;
#pragma unroll
          for (int n = 0; n < 8; ++n) {
            const int token = 8 * n + l.column;
            const float2 den = pair_at(dens + (kGeneral ? sign * kWide : 0), token), delta = pair_at(deltas, token);
            const float of_map = exponent_scale<kGeneral>(s.map), scale = sign ? -of_map : of_map;
            const float e0 = exp2_fast((u[n][2 * x] * scale + of_row) - den.x), e1 = exp2_fast((u[n][2 * x + 1] * scale + of_row) - den.y);
            phi[n][x] = pack(e0, e1);
            if (!cut) sum += e0 * delta.x + e1 * delta.y;
            else sum += (rows[token] < 0 ? e0 * delta.x : 0.0f) + (rows[token + 1] < 0 ? e1 * delta.y : 0.0f);
          }
          sum = row_sum(sum);
          if (l.column == 0) m.added[row] = sum;
        }
#pragma unroll
        for (int k = 0; k < 4; ++k)
          store_matrices(l.block(at(m.phi), sign * kWide + 16 * l.warp, 16 * k), phi[2 * k][0], phi[2 * k][1], phi[2 * k + 1][0], phi[2 * k + 1][1]);
      }
    }
    if constexpr (!kOnlySums) {
      store_tile(at(m.R), 0, R[0], l);
      store_tile(at(m.R), kWide, R[1], l);
    }
    wait_all_copies();
    if constexpr (!kOnlySums) m.turn(m.k, l);
    shared_written();
    __syncthreads();  // k, v, dy, phi and R are here; all are done with q
    if (chunk > walk.begin) load_rows<kWide>(m.q, s.q.at(b, t0 - kWide, h), s.q.token, kWide, true, l);
    if (chunk > 0 || p.reaches_initial(walk)) numbers.fetch(p, walk, chunk - 1);

    if constexpr (!kOnlySums) {
      // keys by token
      unsigned k_phi[8][4], w[4][4];
      const bool reaches[2] = {l.row >= first, l.row + 8 >= first};
      {
        float u[8][4];
        RowNorm<kGeneral> norm;
        norm.fetch(s.map, kOfKeys, walk.index, t0, count, l.row);
        if constexpr (kGeneral) start_by_token<true>(u, bias_of<true>(s.map, kOfKeys, h, kWide), l.column);
        start_products();
        product<Side::straight, Side::transposed>(u, at(m.k), at(m.weight_k), !kGeneral);
        commit_products();
        finish_products();
        own(u);
#pragma unroll
        for (int sign = 0; sign < 2; ++sign)
#pragma unroll
          for (int k = 0; k < 4; ++k) {
            float phi[2][4];
#pragma unroll
            for (int half = 0; half < 2; ++half) {
              const int n = 2 * k + half;
              const float2 of_columns = pair_at(shift, sign * kWide + 8 * n + l.column);
#pragma unroll
              for (int e = 0; e < 4; ++e)
                phi[half][e] = exp2_fast(u[n][e] * (sign ? -norm.scale : norm.scale) -
                                         norm.plus(e % 2 ? of_columns.y : of_columns.x, sign, e / 2));
            }
            pack_operand(k_phi[sign * 4 + k], phi[0], phi[1]);
          }
        if (count < kWide) {  // rows that are not there
#pragma unroll
          for (int x = 0; x < 2; ++x)
            if (l.row + 8 * x >= count)
#pragma unroll
              for (int k = 0; k < 8; ++k) k_phi[k][x] = k_phi[k][2 + x] = 0;
        }
      }
      // dv: queries of later chunks, then those of the chunk from the key on
      {
        unsigned a[4][4];
        {
          float scores[8][4], dscores[8][4];
          start_products();
          product<Side::transposed>(scores, k_phi, at(m.phi), true);
          product<Side::straight, Side::straight>(dscores, at(m.v), at(m.dy), true);
          commit_products();
          finish_products();
          own(scores);
          own(dscores);
#pragma unroll
          for (int n = 0; n < 8; ++n) {
            const float2 delta = pair_at(deltas, 8 * n + l.column);
#pragma unroll
            for (int e = 0; e < 4; ++e) dscores[n][e] += e % 2 ? delta.y : delta.x;
          }
#pragma unroll
          for (int k = 0; k < 4; ++k) {
            pack_operand(a[k], scores[2 * k], scores[2 * k + 1]);
            pack_operand(w[k], dscores[2 * k], dscores[2 * k + 1]);
          }
        }
        keep_triangle<false>(a, l);
        keep_triangle<false>(w, l);
        if (cut) {
          const auto same_document = [&](int x, int column) { return l.row + 8 * x >= rows[column]; };
          keep_elements(a, same_document, l);
          keep_elements(w, same_document, l);
        }
        float dv[8][4];
        start_products();
        product<Side::transposed>(dv, k_phi, at(m.R), true);
        if (cut) {
          commit_products();
          finish_products();
          own(dv);
          keep_rows(dv, reaches);
          start_products();
        }
        product<Side::transposed>(dv, a, at(m.dy), false);
        commit_products();
        finish_products();
        own(dv);
        store_rows<kWide>(p.dv, p.dv.at(b, t0, h), dv, count, l);
      }

      // gradient of the features and through phi to u
      {
        float dphi[2][8][4], du[8][4], gradients[2][2] = {};
        start_products();
#pragma unroll
        for (int sign = 0; sign < 2; ++sign) product<Side::straight, Side::straight>(dphi[sign], at(m.v), at(m.R) + sign * kTileBytes, true);
        if (cut) {
          commit_products();
          finish_products();
          own(dphi);
          keep_rows(dphi[0], reaches);
          keep_rows(dphi[1], reaches);
          start_products();
        }
#pragma unroll
        for (int sign = 0; sign < 2; ++sign) product<Side::straight>(dphi[sign], w, at(m.phi) + sign * kTileBytes, false);
        commit_products();
        finish_products();
        own(dphi);
        const float of_y[2] = {reaches[0] ? 1.0f : 0.0f, reaches[1] ? 1.0f : 0.0f};
#pragma unroll
        for (int n = 0; n < 8; ++n) {
          const int column = 8 * n + l.column;
          const float2 y[2] = {pair_at(m.y, column), pair_at(m.y, kWide + column)};
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            float parts[2];
#pragma unroll
            for (int sign = 0; sign < 2; ++sign) {
              const unsigned phi = k_phi[sign * 4 + n / 2][n % 2 * 2 + e / 2];
              parts[sign] = (dphi[sign][n][e] + of_y[e / 2] * (e % 2 ? y[sign].y : y[sign].x)) * (e % 2 ? high_of(phi) : low_of(phi));
              if constexpr (kGeneral) gradients[sign][e / 2] += parts[sign];
            }
            du[n][e] = parts[0] - parts[1];
          }
        }
        if constexpr (kGeneral) through_norm<kWide>(du, gradients, k_phi, shift, s.map, l);
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          pack_operand(w[k], du[2 * k], du[2 * k + 1]);
          store_matrices(l.block(at(m.du), 16 * l.warp, 16 * k), w[k][0], w[k][1], w[k][2], w[k][3]);
        }
      }
      shared_written();
      if (chunk > 0 || p.reaches_initial(walk)) numbers.keep(m, chunk - 1);
      __syncthreads();  // du and the numbers of the chunk before are here
      float dk[8][4];
      start_products();
      product<Side::straight>(dk, w, at(m.weight_k), true);
      product<Side::transposed, Side::transposed>(dweight, at(m.k), at(m.du), false);
      commit_products();
      finish_products();
      own(dk);
      own(dweight);
      m.turn_back(dk, l);
      store_rows<kWide>(p.dk, p.dk.at(b, t0, h), dk, count, l);
      if (kGeneral && p.dbias[1]) dbias = add_bias_gradient<kWide>(dbias, m.du, count);
      if (chunk == walk.begin && !p.reaches_initial(walk)) break;
    } else {
      numbers.keep(m, chunk - 1);
      __syncthreads();  // the numbers of the chunk before are here
    }

    if (chunk > walk.begin) m.load_angles(s.rotary, t0 - kWide, kWide, l);
    // queries of the chunk, as the keys before it see them; those of a later document have seen no state from here
    if (cut) {
      start_add(R, at(m.phi), at(m.dy), true, [&](int token) { return rows[token] < 0; }, l);
    } else {
      start_products();
      start_add(R, at(m.phi), at(m.dy), false);
      commit_products();
      finish_products();
    }
    own(R);
    const float* const before = m.shift[(chunk - 1) & 1];
    const bool begins = rows[0] >= 0;
#pragma unroll
    for (int sign = 0; sign < 2; ++sign) {
      float factor[2];
#pragma unroll
      for (int x = 0; x < 2; ++x) {
        const int row = sign * kWide + l.row + 8 * x;
        factor[x] = begins ? 0.0f : exp2_fast(before[row] - shift[row]);
        if (l.column == 0) m.y[row] = ((cut ? 0.0f : m.y[row]) + m.added[row]) * factor[x];
      }
      scale_rows(R[sign], factor);
    }
  }
  if (kOnlySums || p.reaches_initial(walk)) {
    __syncwarp();
    for (int sign = 0; sign < 2; ++sign)
      for (int x = 0; x < 2; ++x) sums.z[sign][x] = m.y[sign * kWide + l.row + 8 * x];
    sums.store(p.reversed, kOnlySums ? walk.slot - 1 : p.walks + walk.index, l);
  }
  if constexpr (!kOnlySums) store_weight_gradient<kWide>(p.dweight[1] + walk.slot * kWideTile, dweight, l);
  if (kGeneral && !kOnlySums && p.dbias[1]) store_bias_gradient<kWide>(p.dbias[1] + walk.slot * kWide, dbias, m.y);
}

}  // namespace hedgehog::cuda::linear_attention_mma

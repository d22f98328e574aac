#include "cuda/linear_attention_mma_backward_keys.cuh"

namespace hedgehog::cuda::linear_attention_mma {
namespace {

template <int kTiles>
__device__ __forceinline__ void copy(float (&to)[kTiles][4], const float (&from)[kTiles][4]) {
#pragma unroll
  for (int n = 0; n < kTiles; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) to[n][e] = from[n][e];
}

/// dk, dv and the part of dweight_k of one batch element, head and segment. One block walks the chunks from the last to the
/// first with the sums over later queries in registers: the mirror image of the pass in the order of time, with queries by
/// feature in shared memory and keys by token in registers. With kOnlySums it gives what the segment alone adds to R and y.
template <int kD, bool kGeneral, bool kTurned, bool kOnlySums>
__global__ void __launch_bounds__(2 * kD, kD == 64 ? 2 : 6)
    linear_attention_backward_keys_kernel(const __grid_constant__ BackwardArguments p) {
  constexpr int kSteps = kD / 16, kHalf = kD / 2;
  using Memory = KeysMemory<kD, kGeneral>;
  Memory& m = *reinterpret_cast<Memory*>(shared_bytes());
  const Sequence& s = p.s;
  const Lanes<kD> l;
  const Walk walk(s);
  wait_for_kernels();
  if (kOnlySums && walk.segment == 0) return;
  if (p.handover && p.handover[walk.slot] >= walk.end) return;  // done by the warpgroup's kernel
  const std::int64_t index = walk.index, b = walk.b, h = walk.h;
  const int thread = int(threadIdx.x);
  ChunkNumbers<kD, kGeneral> numbers;

  const std::int64_t last = std::int64_t(walk.end - 1) * kD;
  load_weight<kD, kGeneral>(m.weight_q, s.weight_q, h, s.vector, l);
  load_weight<kD, kGeneral>(m.weight_k, s.weight_k, h, s.vector, l);
  load_rows<kD>(m.q, s.q.at(b, last, h), s.q.token, s.T - last, s.vector, l);
  numbers.fetch(p, walk, walk.end - 1);
  numbers.keep(m, walk.end - 1);
  Sums<kD> R;  // z: y
  if (kOnlySums || (walk.segment + 1 == s.segments && !p.dfinal)) R.clear();
  else R.load(p.reversed, walk.slot, l);
  float dweight[kD / 8][4] = {}, dbias = 0;

  for (int chunk = walk.end - 1; chunk >= walk.begin; --chunk) {
    const std::int64_t t0 = std::int64_t(chunk) * kD, left = s.T - t0;
    const int count = left < kD ? int(left) : kD;
    const signed char* const rows = m.rows[chunk & 1];
    const float *const deltas = m.delta[chunk & 1], *const dens = m.den[chunk & 1], *const shift = m.shift[chunk & 1];
    wait_all_copies();
    if constexpr (kTurned) turn_rows<kD>(m.q, s.rotary + t0 * kD, kD, count - 1, s.vector, l);
    __syncthreads();  // q and the numbers of the rows are here; the chunk after is done with all tiles
    if constexpr (!kOnlySums) {
      load_rows<kD>(m.k, s.k.at(b, t0, h), s.k.token, left, s.vector, l);
      load_rows<kD>(m.v, s.v.at(b, t0, h), s.v.token, left, s.vector, l);
    }
    load_rows<kD>(m.dy, p.dy.at(b, t0, h), p.dy.token, left, s.vector, l);
    const unsigned long long redo = p.redo[index * s.chunks + chunk];
    const int first = rows[count - 1];  // keys before it do not reach later chunks
    const bool cut = first >= 0;

    // queries over their denominators, by feature
    {
      float u[kD / 8][4];
      start_by_feature<kGeneral>(u, bias_of<kGeneral>(s.map, kOfQueries, h, kD), l.row);
      multiply<kD>(u, [&](unsigned(&a)[4], int k) { l.a_transposed(a, m.weight_q, 16 * l.warp, k); },
                   [&](unsigned(&b)[4], int n, int k) { l.b(b, m.q, n, k); });
#pragma unroll
      for (int sign = 0; sign < 2; ++sign)
#pragma unroll
        for (int x = 0; x < 2; ++x) {
          const int row = sign * kD + l.row + 8 * x;
          const float of_row = shift[row];
          float sum = 0;
#pragma unroll
          for (int n = 0; n < kD / 8; ++n) {
            const int token = 8 * n + l.column;
            const float2 den = pair_at(dens + (kGeneral ? sign * kD : 0), token), delta = pair_at(deltas, token);
            const float of_map = exponent_scale<kGeneral>(s.map), scale = sign ? -of_map : of_map;
            const unsigned both = pack(exp2_fast((u[n][2 * x] * scale + of_row) - den.x),
                                       exp2_fast((u[n][2 * x + 1] * scale + of_row) - den.y));
            *reinterpret_cast<unsigned*>(m.phi + place<kD>(row, token)) = both;
            const bool keep0 = !cut || rows[token] < 0, keep1 = !cut || rows[token + 1] < 0;
            sum += (keep0 ? low_of(both) * delta.x : 0.0f) + (keep1 ? high_of(both) * delta.y : 0.0f);
          }
          sum = row_sum(sum);
          if (l.column == 0) m.added[row] = sum;
        }
    }
    if constexpr (!kOnlySums) {
      const float ones[2][2] = {{1, 1}, {1, 1}};
      R.publish(ones, m.R, m.y, l);
    }
    wait_all_copies();
    if constexpr (kTurned && !kOnlySums) turn_rows<kD>(m.k, s.rotary + t0 * kD, kD, count - 1, s.vector, l);
    __syncthreads();  // k, v, dy, phi and R are here; all are done with q
    if (chunk > walk.begin) load_rows<kD>(m.q, s.q.at(b, t0 - kD, h), s.q.token, kD, s.vector, l);
    if (chunk > 0 || p.reaches_initial(walk)) numbers.fetch(p, walk, chunk - 1);

    if constexpr (!kOnlySums) {
      // keys by token
      float dv[kD / 8][4] = {};
      unsigned k_phi[2 * kSteps][4];
      const bool valid[2] = {l.row < count, l.row + 8 < count};
      {
        RowNorm<kGeneral> norm;
        norm.fetch(s.map, kOfKeys, index, t0, count, l.row);
        float u[kD / 8][4];
        start_by_token<kGeneral>(u, bias_of<kGeneral>(s.map, kOfKeys, h, kD), l.column);
        multiply<kD>(u, [&](unsigned(&a)[4], int k) { l.a(a, m.k, 16 * l.warp, k); },
                     [&](unsigned(&b)[4], int n, int k) { l.b_transposed(b, m.weight_k, n, k); });
#pragma unroll
        for (int n = 0; n < kD / 8; ++n)
#pragma unroll
          for (int e = 0; e < 4; ++e) u[n][e] *= norm.scale;
        if (redo) {
          float of_keys[kD / 8][4], more[kD / 8][4];
          copy(of_keys, u);
          copy(more, dv);
          keys_log_space_rows<kD, kGeneral>(p, redo, of_keys, norm, more, deltas, rows, b, h, t0);
          copy(dv, more);
        }
#pragma unroll
        for (int sign = 0; sign < 2; ++sign) {
          float phi[kD / 8][4];
#pragma unroll
          for (int n = 0; n < kD / 8; ++n) {
            const float2 of_columns = pair_at(shift, sign * kD + 8 * n + l.column);
#pragma unroll
            for (int e = 0; e < 4; ++e)
              phi[n][e] = valid[e / 2] ? exp2_fast((sign ? -u[n][e] : u[n][e]) -
                                                   norm.plus(e % 2 ? of_columns.y : of_columns.x, sign, e / 2))
                                       : 0.0f;
          }
#pragma unroll
          for (int k = 0; k < kSteps; ++k) pack_operand(k_phi[sign * kSteps + k], phi[2 * k], phi[2 * k + 1]);
        }
      }
      const bool reaches[2] = {l.row >= first, l.row + 8 >= first};
      unsigned w[kSteps][4];

      // dv: queries of later chunks, then those of the chunk from the key on
#pragma unroll
      for (int k = 0; k < 2 * kSteps; ++k) {
        unsigned a[4] = {k_phi[k][0], k_phi[k][1], k_phi[k][2], k_phi[k][3]};
        if (cut) keep_rows(a, reaches);
        multiply_step(dv, a, [&](unsigned(&b)[4], int n) { l.b_transposed(b, m.R, n, 16 * k); });
      }
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
        if (i < l.warp) continue;
        float scores[2][4] = {}, dscores[2][4] = {};
#pragma unroll
        for (int k = 0; k < 2 * kSteps; ++k)
          multiply_step(scores, k_phi[k], [&](unsigned(&b)[4], int) { l.b_transposed(b, m.phi, 16 * i, 16 * k); });
#pragma unroll
        for (int k = 0; k < kD; k += 16) {
          unsigned v[4];
          l.a(v, m.v, 16 * l.warp, k);
          multiply_step(dscores, v, [&](unsigned(&b)[4], int) { l.b(b, m.dy, 16 * i, k); });
        }
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          const float2 delta = pair_at(deltas, 16 * i + 8 * n + l.column);
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const int column = 16 * i + 8 * n + l.column + e % 2, row = l.row + e / 2 * 8;
            dscores[n][e] += e % 2 ? delta.y : delta.x;
            if (column < row || (cut && row < rows[column])) scores[n][e] = dscores[n][e] = 0;
          }
        }
        unsigned a[4];
        pack_operand(a, scores[0], scores[1]);
        pack_operand(w[i], dscores[0], dscores[1]);
        multiply_step(dv, a, [&](unsigned(&b)[4], int n) { l.b_transposed(b, m.dy, n, 16 * i); });
      }
      store_rows<kD>(p.dv, p.dv.at(b, t0, h), dv, count, l);

      // gradient of the features, half of u at a time, and through phi to u
      float du[kD / 8][4], gradients[2][2] = {};
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float dphi[2][kHalf / 8][4] = {};
#pragma unroll
        for (int k = 0; k < kD; k += 16) {
          unsigned v[4];
          l.a(v, m.v, 16 * l.warp, k);
          if (cut) keep_rows(v, reaches);
#pragma unroll
          for (int sign = 0; sign < 2; ++sign)
            multiply_step(dphi[sign], v, [&](unsigned(&b)[4], int n) { l.b(b, m.R, sign * kD + half * kHalf + n, k); });
        }
#pragma unroll
        for (int i = 0; i < kSteps; ++i) {
          if (i < l.warp) continue;
#pragma unroll
          for (int sign = 0; sign < 2; ++sign)
            multiply_step(dphi[sign], w[i], [&](unsigned(&b)[4], int n) { l.b(b, m.phi, sign * kD + half * kHalf + n, 16 * i); });
        }
#pragma unroll
        for (int n = 0; n < kHalf / 8; ++n) {
          const int tile = half * (kHalf / 8) + n, column = 8 * tile + l.column;
          const float2 y[2] = {pair_at(m.y, column), pair_at(m.y, kD + column)};
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            float parts[2];
#pragma unroll
            for (int sign = 0; sign < 2; ++sign) {
              const unsigned phi = k_phi[sign * kSteps + tile / 2][tile % 2 * 2 + e / 2];
              const float of_y = reaches[e / 2] ? (e % 2 ? y[sign].y : y[sign].x) : 0.0f;
              parts[sign] = (dphi[sign][n][e] + of_y) * (e % 2 ? high_of(phi) : low_of(phi));
              if constexpr (kGeneral) gradients[sign][e / 2] += parts[sign];
            }
            du[tile][e] = parts[0] - parts[1];
          }
        }
      }
      if constexpr (kGeneral) through_norm<kD>(du, gradients, k_phi, shift, s.map, l);
      if (redo) {
#pragma unroll
        for (int n = 0; n < kD / 8; ++n)
#pragma unroll
          for (int x = 0; x < 2; ++x) {
            const unsigned more = *reinterpret_cast<const unsigned*>(m.du + place<kD>(l.row + 8 * x, 8 * n + l.column));
            du[n][2 * x] += low_of(more), du[n][2 * x + 1] += high_of(more);
          }
      }
      {
        float dk[kD / 8][4];
        through_weight<kD>(dk, du, m.weight_k, m.du, l);
        if constexpr (kTurned) turn_back<kD>(dk, s.rotary + t0 * kD, kD, count - 1, s.vector, l);
        store_rows<kD>(p.dk, p.dk.at(b, t0, h), dk, count, l);
      }
    }
    if (chunk > 0 || p.reaches_initial(walk)) numbers.keep(m, chunk - 1);
    __syncthreads();  // du and the numbers of the chunk before are here
    if constexpr (!kOnlySums) {
      add_weight_gradient<kD>(dweight, m.k, m.du, l);
      if (kGeneral && p.dbias[1]) dbias = add_bias_gradient<kD>(dbias, m.du, count);
      if (chunk == walk.begin && !p.reaches_initial(walk)) break;
    }

    // queries of the chunk, as the keys before it see them; those of a later document have seen no state from here
    const float* const before = m.shift[(chunk - 1) & 1];
    const bool begins = rows[0] >= 0;
    if (cut) R.clear();
    R.add(m.phi, m.dy, cut, [&](int token) { return rows[token] < 0; }, l);
    float factor[2][2];
#pragma unroll
    for (int sign = 0; sign < 2; ++sign)
#pragma unroll
      for (int x = 0; x < 2; ++x) {
        const int row = sign * kD + l.row + 8 * x;
        R.z[sign][x] += m.added[row];
        factor[sign][x] = begins ? 0.0f : exp2_fast(before[row] - shift[row]);
      }
    R.scale(factor);
    if (redo) {
      Sums<kD> more = R;
      reverse_log_space_rows<kD, kGeneral>(p, redo, more, before, deltas, rows, b, h, t0);
      R = more;
    }
  }
  if (kOnlySums || p.reaches_initial(walk)) R.store(p.reversed, kOnlySums ? walk.slot - 1 : p.walks + walk.index, l);
  if constexpr (!kOnlySums) store_weight_gradient<kD>(p.dweight[1] + walk.slot * kD * kD, dweight, l);
  if constexpr (kGeneral && !kOnlySums)
    if (p.dbias[1]) store_bias_gradient<kD>(p.dbias[1] + walk.slot * kD, dbias, m.y);
}

template <int kD>
void run(const BackwardArguments& p, std::int64_t batch) {
  const std::int64_t blocks = batch * p.s.H * p.s.segments;
  with_form(p.s, [&](auto general, auto turned) {
    constexpr std::size_t kBytes = sizeof(KeysMemory<kD, general>);
    if (p.s.segments > 1) {
      if (p.handover) warpgroup_backward(p, WarpgroupPass::sums);
      launch(linear_attention_backward_keys_kernel<kD, general, turned, true>, blocks, 2 * kD, kBytes, p);
      scan_reversed(p, batch, kD, 2 * kD);
      if (p.handover) warpgroup_backward(p, WarpgroupPass::keys);
    }
    launch(linear_attention_backward_keys_kernel<kD, general, turned, false>, blocks, 2 * kD, kBytes, p);
  });
}

}  // namespace

void backward_keys(const BackwardArguments& p, std::int64_t batch, int D) {
  return D == 64 ? run<64>(p, batch) : run<32>(p, batch);
}

}  // namespace hedgehog::cuda::linear_attention_mma

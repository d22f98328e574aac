#include "cuda/linear_attention_mma_backward.cuh"

namespace hedgehog::cuda::linear_attention_mma {
namespace {

template <int kD>
struct QueriesMemory : QueriesTiles<kD> {
  float key_norm[2][kD];  // (signs, chunk)
  // of the rare rows
  bool redo[kD];
  float delta[kD], a[kD], du_state[kD], part[kD / 16][kD], gradients[kD / 16][2];
};

/// Rows that forward has redone in log space: their du and dq, row after row by the whole block. A call, so that only
/// it pays for its registers.
template <int kD, bool kGeneral>
__device__ __noinline__ void queries_log_space_rows(const BackwardArguments& p, const KeyState<kD>& state, const signed char* rows,
                                                    std::int64_t b, std::int64_t h, std::int64_t t0, int count) {
  constexpr int kWarps = kD / 16;
  const GeneralMap& map = p.s.map;
  const float scale = exponent_scale<kGeneral>(map);
  const std::int64_t index = b * p.s.H + h;
  QueriesMemory<kD>& m = *reinterpret_cast<QueriesMemory<kD>*>(shared_bytes());
  const Lanes<kD> l;
  float* const logs = reinterpret_cast<float*>(m.S);  // (chunk, D'): the state has been read
  plain_logs<kD>(logs, p.s.k.at(b, t0, h), p.s.k.token, count, m.weight_k, scale, bias_of<kGeneral>(map, kOfKeys, h, kD), p.s.rotary, t0);
  for (int i = 0; i < count; ++i) {
    if (!m.redo[i]) continue;
    plain_logs<kD>(m.a, p.s.q.at(b, t0 + i, h), 0, 1, m.weight_q, scale, bias_of<kGeneral>(map, kOfQueries, h, kD), p.s.rotary, t0 + i);
    __syncthreads();
    const float den = p.saved[(b * p.s.T + t0 + i) * p.s.H + h] * kLog2e, delta = m.delta[i];
    const bf16* const dy = p.dy.at(b, t0 + i, h);
    const int first = rows[i] < 0 ? 0 : rows[i];
    const float dens[2] = {plus_norm<kGeneral>(den, map, kOfQueries, 0, index, t0 + i),
                           plus_norm<kGeneral>(den, map, kOfQueries, 1, index, t0 + i)};
    float du[kD / 32] = {}, gradients[2] = {0, 0};
    for (int j = first + l.warp; j <= i; j += kWarps) {
      float dscore = 0;
      for (int d = l.lane; d < kD; d += 32) dscore += __bfloat162float(dy[d]) * __bfloat162float(m.v[place<kD>(j, d)]);
      dscore = warp_sum(dscore) + delta;
      const float less[2] = {plus_norm<kGeneral>(dens[0], map, kOfKeys, 0, index, t0 + j),
                             plus_norm<kGeneral>(dens[1], map, kOfKeys, 1, index, t0 + j)};
      for (int x = 0; x < kD / 32; ++x) {
        const float u = m.a[l.lane + 32 * x] + logs[j * kD + l.lane + 32 * x];
        const float plus = dscore * exp2_fast(u - less[0]), minus = dscore * exp2_fast(-u - less[1]);
        du[x] += plus - minus;
        gradients[0] += plus, gradients[1] += minus;
      }
    }
    for (int x = 0; x < kD / 32; ++x) m.part[l.warp][l.lane + 32 * x] = du[x];
#pragma unroll
    for (int x = 0; x < 2; ++x) {
      float sum = 0;
#pragma unroll
      for (int s = 0; s < 2; ++s) {
        float dot = 0;
#pragma unroll
        for (int n = 0; n < kD / 8; ++n)
#pragma unroll
          for (int e = 0; e < 2; ++e) dot += state.sums.S[s][n][2 * x + e] * __bfloat162float(dy[8 * n + l.column + e]);
        dot = row_sum(dot) + delta * state.sums.z[s][x];
        const float u = m.a[l.row + 8 * x];
        const float g = state.sums.z[s][x] > 0 ? exp2_fast((s ? -u : u) + state.shift[s][x] - dens[s]) * dot : 0.0f;
        sum += s ? -g : g;
        if (l.column == 0 && rows[i] < 0) gradients[s] += g;
      }
      if (l.column == 0) m.du_state[l.row + 8 * x] = rows[i] < 0 ? sum : 0.0f;
    }
    if constexpr (kGeneral) {
      for (int s = 0; s < 2; ++s) {
        const float sum = warp_sum(gradients[s]);
        if (l.lane == 0) m.gradients[l.warp][s] = sum;
      }
    }
    __syncthreads();
    if (threadIdx.x < kD) {
      float sum = m.du_state[threadIdx.x];
      for (int w = 0; w < kWarps; ++w) sum += m.part[w][threadIdx.x];
      if constexpr (kGeneral) {
        const float u = m.a[threadIdx.x];
        for (int s = 0; s < 2 && map.normalises(kOfQueries); ++s) {
          float of_sign = 0;
          for (int w = 0; w < kWarps; ++w) of_sign += m.gradients[w][s];
          const float p_of_sign = true_feature((s ? -u : u) - map.at(kOfQueries, s, index, t0 + i));
          sum -= (s ? -p_of_sign : p_of_sign) * of_sign;
        }
        sum *= map.factor();
      }
      m.a[threadIdx.x] = sum;
      m.du[place<kD>(i, int(threadIdx.x))] = __float2bfloat16(sum);
    }
    __syncthreads();
    if (threadIdx.x < kD && p.dq.data) {
      float sum = 0;
      for (int e = 0; e < kD; ++e) sum += m.a[e] * __bfloat162float(m.weight_q[place<kD>(int(threadIdx.x), e)]);
      m.part[0][threadIdx.x] = sum;
    }
    __syncthreads();
    if (threadIdx.x < kD && p.dq.data)
      p.dq.put(p.dq.at(b, t0 + i, h) + threadIdx.x,
               turned_back_element<kD>(m.part[0], int(threadIdx.x), p.s.rotary ? p.s.rotary + (t0 + i) * kD : nullptr));
    __syncthreads();
  }
}

/// dq, the part of dweight_q of one batch element, head and segment, and what the pass against time needs. One block walks the
/// chunks of a segment; states are made again as in forward, and stay in registers with the sum of dweight_q.
template <int kD, bool kGeneral, bool kTurned>
__global__ void __launch_bounds__(2 * kD, kD == 64 ? 2 : 6)
    linear_attention_backward_queries_kernel(const __grid_constant__ BackwardArguments p) {
  constexpr int kSteps = kD / 16, kHalf = kD / 2;
  QueriesMemory<kD>& m = *reinterpret_cast<QueriesMemory<kD>*>(shared_bytes());
  const Sequence& s = p.s;
  const Lanes<kD> l;
  const Walk walk(s);
  wait_for_kernels();
  // chunks before it have been done by the warpgroup's kernel
  const int first_chunk = p.handover ? p.handover[walk.slot] : walk.begin;
  if (first_chunk >= walk.end) return;
  const std::int64_t index = walk.index, b = walk.b, h = walk.h, begin = std::int64_t(walk.begin) * kD;
  const int thread = int(threadIdx.x);

  load_weight<kD, kGeneral>(m.weight_q, s.weight_q, h, s.vector, l);
  load_weight<kD, kGeneral>(m.weight_k, s.weight_k, h, s.vector, l);
  load_rows<kD>(m.k, s.k.at(b, begin, h), s.k.token, s.T - begin, s.vector, l);
  if (thread < kD) m.rows[walk.begin & 1][thread] = document_row(s, b, begin, thread);
  if constexpr (kGeneral) m.key_norm[0][thread] = fetch_key_norm<kD>(s.map, index, begin);
  KeyState<kD> state;
  state.start(p.states, s, walk, l);
  float dweight[kD / 8][4] = {}, dbias = 0;
  if (p.handover) load_weight_gradient<kD>(dweight, p.dweight[0] + walk.slot * kD * kD, l);

  for (int chunk = walk.begin; chunk < walk.end; ++chunk) {
    const std::int64_t t0 = std::int64_t(chunk) * kD, left = s.T - t0;
    const int count = left < kD ? int(left) : kD;
    const bool goes_on = chunk + 1 < walk.end;
    const signed char* const rows = m.rows[chunk & 1];
    wait_all_copies();
    if constexpr (kTurned) turn_rows<kD>(m.k, s.rotary + t0 * kD, kD, count - 1, s.vector, l);
    __syncthreads();  // k and rows are here; the chunk before is done with all tiles
    load_rows<kD>(m.v, s.v.at(b, t0, h), s.v.token, left, s.vector, l);
    load_rows<kD>(m.dy, p.dy.at(b, t0, h), p.dy.token, left, s.vector, l);
    load_rows<kD>(m.du, p.o.at(b, t0, h), p.o.token, left, s.vector, l);
    load_rows<kD>(m.q, s.q.at(b, t0, h), s.q.token, left, s.vector, l);
    float den[2];
#pragma unroll
    for (int x = 0; x < 2; ++x) {
      const int row = l.row + 8 * x;
      den[x] = row < count ? p.saved[(b * s.T + t0 + row) * s.H + h] * kLog2e : INFINITY;
    }
    RowNorm<kGeneral> norm;
    norm.fetch(s.map, kOfQueries, index, t0, count, l.row);
    state.enter(m.weight_k, m.k, count, rows, m.phi, m.S, m.features, l, chunk_norm<kGeneral>(s.map, m.key_norm[0], h, kD));
    wait_all_copies();
    if constexpr (kTurned) turn_rows<kD>(m.q, s.rotary + t0 * kD, kD, count - 1, s.vector, l);
    __syncthreads();  // v, dy, o, q, phi and the state are here; all are done with k
    p.shifts[(index * s.chunks + chunk) * 2 * kD + thread] = m.features.shift[thread];
    signed char next_row = -1;
    if (goes_on) {
      load_rows<kD>(m.k, s.k.at(b, t0 + kD, h), s.k.token, left - kD, s.vector, l);
      if (thread < kD) next_row = document_row(s, b, t0 + kD, thread);
      if constexpr (kGeneral) m.key_norm[0][thread] = fetch_key_norm<kD>(s.map, index, t0 + kD);
    }

    float u[kD / 8][4], largest[2] = {-INFINITY, -INFINITY};
    start_by_token<kGeneral>(u, bias_of<kGeneral>(s.map, kOfQueries, h, kD), l.column);
    multiply<kD>(u, [&](unsigned(&a)[4], int k) { l.a(a, m.q, 16 * l.warp, k); },
                 [&](unsigned(&b)[4], int n, int k) { l.b_transposed(b, m.weight_q, n, k); });
    query_exponents<kD>(u, largest, m.features.shift, l, norm);
    float delta[2] = {0, 0};
#pragma unroll
    for (int k = 0; k < kD; k += 16) {
      unsigned dy[4], o[4];
      l.a(dy, m.dy, 16 * l.warp, k);
      l.a(o, m.du, 16 * l.warp, k);
#pragma unroll
      for (int e = 0; e < 4; ++e) delta[e % 2] -= low_of(dy[e]) * low_of(o[e]) + high_of(dy[e]) * high_of(o[e]);
    }
    bool small = false, sees[2] = {true, true};
    int first[2] = {0, 0};
#pragma unroll
    for (int x = 0; x < 2; ++x) {
      const int row = l.row + 8 * x;
      delta[x] = row_sum(delta[x]);
      const bool redo = row_max(largest[x]) - den[x] > -kSmallestLog;
      if (redo) den[x] = INFINITY;
      small |= redo;
      if (l.column == 0) {
        m.redo[row] = redo;
        m.delta[row] = delta[x];
        if (row < count) {
          p.delta[index * s.T + t0 + row] = delta[x], p.denominators[index * s.T + t0 + row] = norm.plus(den[x], 0, x);
          if constexpr (kGeneral) p.denominators[s.map.count + index * s.T + t0 + row] = norm.plus(den[x], 1, x);
        }
      }
      if (s.document_start) first[x] = rows[row], sees[x] = first[x] < 0;
    }
    // W up to the row
    unsigned w[kSteps][4];
#pragma unroll
    for (int j = 0; j < kSteps; ++j) {
      if (j > l.warp) continue;
      float scores[2][4] = {};
#pragma unroll
      for (int k = 0; k < kD; k += 16) {
        unsigned dy[4];
        l.a(dy, m.dy, 16 * l.warp, k);
        multiply_step(scores, dy, [&](unsigned(&b)[4], int) { l.b(b, m.v, 16 * j, k); });
      }
#pragma unroll
      for (int n = 0; n < 2; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int column = 16 * j + 8 * n + l.column + e % 2;
          scores[n][e] += delta[e / 2];
          if (column > l.row + e / 2 * 8 || column < first[e / 2]) scores[n][e] = 0;
        }
      pack_operand(w[j], scores[0], scores[1]);
    }
    // gradient of the features, half of u at a time, and through phi to u
    float du[kD / 8][4], gradients[2][2] = {};
    const float less[2][2] = {{norm.plus(den[0], 0, 0), norm.plus(den[1], 0, 1)}, {norm.plus(den[0], 1, 0), norm.plus(den[1], 1, 1)}};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float dphi[2][kHalf / 8][4] = {};
#pragma unroll
      for (int k = 0; k < kD; k += 16) {
        unsigned dy[4];
        l.a(dy, m.dy, 16 * l.warp, k);
        if (s.document_start) keep_rows(dy, sees);
#pragma unroll
        for (int sign = 0; sign < 2; ++sign)
          multiply_step(dphi[sign], dy, [&](unsigned(&b)[4], int n) { l.b(b, m.S, sign * kD + half * kHalf + n, k); });
      }
#pragma unroll
      for (int j = 0; j < kSteps; ++j) {
        if (j > l.warp) continue;
#pragma unroll
        for (int sign = 0; sign < 2; ++sign)
          multiply_step(dphi[sign], w[j], [&](unsigned(&b)[4], int n) { l.b(b, m.phi, sign * kD + half * kHalf + n, 16 * j); });
      }
#pragma unroll
      for (int n = 0; n < kHalf / 8; ++n) {
        const int column = half * kHalf + 8 * n + l.column;
        const float2 z[2] = {pair_at(m.features.z, column), pair_at(m.features.z, kD + column)};
        const float2 shift[2] = {pair_at(m.features.shift, column), pair_at(m.features.shift, kD + column)};
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int x = e / 2;
          const float value = u[half * (kHalf / 8) + n][e];
          const float of_z = sees[x] ? delta[x] : 0.0f;
          float parts[2];
#pragma unroll
          for (int sign = 0; sign < 2; ++sign) {
            const float log_phi = (sign ? -value : value) + (e % 2 ? shift[sign].y : shift[sign].x);
            parts[sign] = (dphi[sign][n][e] + of_z * (e % 2 ? z[sign].y : z[sign].x)) * exp2_fast(log_phi - less[sign][x]);
            if constexpr (kGeneral) gradients[sign][x] += parts[sign];
          }
          du[half * (kHalf / 8) + n][e] = parts[0] - parts[1];
        }
      }
    }
    if constexpr (kGeneral) through_query_norm<kD>(du, gradients, [&](int n, int e) { return u[n][e]; }, norm, s.map);
    {
      float dq[kD / 8][4];
      through_weight<kD>(dq, du, m.weight_q, m.du, l);
      if constexpr (kTurned) turn_back<kD>(dq, s.rotary + t0 * kD, kD, count - 1, s.vector, l);
      if (chunk >= first_chunk) store_rows<kD>(p.dq, p.dq.at(b, t0, h), dq, count, l);
    }

    // du is here; all are done with the state, and with phi of other warps
    const bool any = __syncthreads_or(small);
    if (any) {
      const KeyState<kD> copy = state;
      queries_log_space_rows<kD, kGeneral>(p, copy, rows, b, h, t0, count);
    }
    if (thread == 0) {
      unsigned long long bits = 0;
      for (int i = 0; any && i < count; ++i) bits |= (unsigned long long)(m.redo[i] != 0) << i;
      p.redo[index * s.chunks + chunk] = bits;
    }
    if (chunk >= first_chunk) add_weight_gradient<kD>(dweight, m.q, m.du, l);
    if (kGeneral && p.dbias[0]) dbias = add_bias_gradient<kD>(dbias, m.du, count);
    if (goes_on) {
      state.leave(m.phi, m.v, rows[kD - 1], m.features, l);
      if (thread < kD) m.rows[(chunk + 1) & 1][thread] = next_row;
    }
  }
  store_weight_gradient<kD>(p.dweight[0] + walk.slot * kD * kD, dweight, l);
  if (kGeneral && p.dbias[0]) store_bias_gradient<kD>(p.dbias[0] + walk.slot * kD, dbias, m.features.z);
}

template <int kD>
void run(const BackwardArguments& p, std::int64_t batch) {
  with_form(p.s, [&](auto general, auto turned) {
    launch(linear_attention_backward_queries_kernel<kD, general, turned>, batch * p.s.H * p.s.segments, 2 * kD, sizeof(QueriesMemory<kD>), p);
  });
}

}  // namespace

void backward_queries(const BackwardArguments& p, std::int64_t batch, int D) {
  return D == 64 ? run<64>(p, batch) : run<32>(p, batch);
}

}  // namespace hedgehog::cuda::linear_attention_mma

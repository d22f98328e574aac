#include "cuda/linear_attention_mma.cuh"

#include "cuda/linear_attention_forward.cuh"
#include "cuda/linear_attention_mma_bidirectional.cuh"

namespace hedgehog::cuda::linear_attention_mma {
namespace {

template <int kD>
struct ForwardMemory : ForwardTiles<kD> {
  bool redo[kD];
  // of the rare rows
  float a[kD];
  union {
    float part[kD / 16][kD + 1];
    float key_norm[2][kD];  // of the next chunk, when rare rows are done
  };
};
static_assert(3 * (sizeof(ForwardMemory<64>) + 1024) <= 228 * 1024, "three blocks a multiprocessor");

/// Rows of a chunk that lost their denominator to later keys, with the exponents of their own keys only. One row after the
/// other by the whole block: warps share out keys, the state is summed where it lies. A call, so that only it pays for its
/// registers.
template <int kD, bool kGeneral>
__device__ __noinline__ void forward_log_space_rows(const ForwardArguments& p, const KeyState<kD>& state, const signed char* rows,
                                                    std::int64_t b, std::int64_t h, std::int64_t t0, int count) {
  constexpr int kWarps = kD / 16;
  const float scale = exponent_scale<kGeneral>(p.s.map);
  const std::int64_t index = b * p.s.H + h;
  ForwardMemory<kD>& m = *reinterpret_cast<ForwardMemory<kD>*>(shared_bytes());
  const Lanes<kD> l;
  float* const logs = reinterpret_cast<float*>(m.S);  // (chunk, D'): the state has been read
  float* const before = m.features.z;                 // of the state before the chunk; z has been read, too
  plain_logs<kD>(logs, p.s.k.at(b, t0, h), p.s.k.token, count, m.weight_k, scale, bias_of<kGeneral>(p.s.map, kOfKeys, h, kD), p.s.rotary, t0);
  if (l.column == 0)
    for (int s = 0; s < 2; ++s)
      for (int x = 0; x < 2; ++x) before[s * kD + l.row + 8 * x] = state.log_sum(s, x);
  __syncthreads();
  for (int i = 0; i < count; ++i) {
    if (!m.redo[i]) continue;
    plain_logs<kD>(m.a, p.s.q.at(b, t0 + i, h), 0, 1, m.weight_q, scale, bias_of<kGeneral>(p.s.map, kOfQueries, h, kD), p.s.rotary, t0 + i);
    __syncthreads();
    const int first = rows[i] < 0 ? 0 : rows[i];
    const float of_query[2] = {plus_norm<kGeneral>(0, p.s.map, kOfQueries, 0, index, t0 + i),
                               plus_norm<kGeneral>(0, p.s.map, kOfQueries, 1, index, t0 + i)};
    const auto of_pair = [&](int j, int sign) { return plus_norm<kGeneral>(of_query[sign], p.s.map, kOfKeys, sign, index, t0 + j); };
    float largest = -INFINITY;
    for (int e = l.lane; e < kD; e += 32) {
      for (int j = first; j <= i; ++j) {
        const float u = m.a[e] + logs[j * kD + e];
        largest = fmaxf(largest, fmaxf(u - of_pair(j, 0), -u - of_pair(j, 1)));
      }
      if (rows[i] < 0) largest = fmaxf(largest, fmaxf(m.a[e] + before[e] - of_query[0], before[kD + e] - m.a[e] - of_query[1]));
    }
    largest = warp_max(largest);
    float o[kD / 32] = {}, den = 0;
    for (int j = first + l.warp; j <= i; j += kWarps) {
      const float less[2] = {largest + of_pair(j, 0), largest + of_pair(j, 1)};
      float score = 0;
      for (int e = l.lane; e < kD; e += 32) {
        const float u = m.a[e] + logs[j * kD + e];
        score += exp2_fast(u - less[0]) + exp2_fast(-u - less[1]);
      }
      score = warp_sum(score);
      den += score;
      for (int x = 0; x < kD / 32; ++x) o[x] += score * __bfloat162float(m.v[place<kD>(j, l.lane + 32 * x)]);
    }
    for (int x = 0; x < kD / 32; ++x) m.part[l.warp][l.lane + 32 * x] = o[x];
    if (l.lane == 0) m.part[l.warp][kD] = den;
    __syncwarp();
    if (rows[i] < 0) {
      float weight[2][2];
#pragma unroll
      for (int s = 0; s < 2; ++s)
#pragma unroll
        for (int x = 0; x < 2; ++x) {
          const float u = m.a[l.row + 8 * x];
          weight[s][x] = state.sums.z[s][x] > 0 ? exp2_fast((s ? -u : u) + state.shift[s][x] - (largest + of_query[s])) : 0.0f;
        }
      auto over_rows = [](float x) {
        for (int offset = 4; offset < 32; offset *= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
        return x;
      };
      auto sum = [&](const auto& of) {
        return over_rows(weight[0][0] * of(0, 0) + weight[0][1] * of(0, 1) + weight[1][0] * of(1, 0) + weight[1][1] * of(1, 1));
      };
#pragma unroll
      for (int n = 0; n < kD / 8; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const float total = sum([&](int s, int x) { return state.sums.S[s][n][2 * x + e]; });
          if (l.lane < 4) m.part[l.warp][8 * n + l.column + e] += total;
        }
      const float total = sum([&](int s, int x) { return state.sums.z[s][x]; });
      if (l.lane == 0) m.part[l.warp][kD] += total;
    }
    __syncthreads();
    if (threadIdx.x < kD) {
      float value = 0;
      den = 0;
      for (int w = 0; w < kWarps; ++w) value += m.part[w][threadIdx.x], den += m.part[w][kD];
      p.o.put(p.o.at(b, t0 + i, h) + threadIdx.x, value / den);
      if (threadIdx.x == 0 && p.saved) p.saved[(b * p.s.T + t0 + i) * p.s.H + h] = (largest + log2f(den)) * kLn2;
    }
    __syncthreads();
  }
}

/// o and the logarithm of its denominator. One block a batch element, head and segment walks the chunks with the state of keys in
/// registers. By feature, it makes phi of the keys; by token, phi of the queries, which stay in registers as operands of the
/// products with the keys of the chunk and with the state before it. Nothing but q, k, v is read, in time for the next chunk.
template <int kD, bool kGeneral, bool kTurned>
__global__ void __launch_bounds__(2 * kD, kD == 64 ? 3 : 8) linear_attention_forward_kernel(const __grid_constant__ ForwardArguments p) {
  constexpr int kSteps = kD / 16;
  ForwardMemory<kD>& m = *reinterpret_cast<ForwardMemory<kD>*>(shared_bytes());
  const Sequence& s = p.s;
  const Lanes<kD> l;
  const Walk walk(s);
  wait_for_kernels();
  if (p.no_state && walk.slot == 0 && threadIdx.x == 0) *p.no_state = 0;
  if (p.rare && p.rare[walk.slot] == 0) return;
  const std::int64_t b = walk.b, h = walk.h, begin = std::int64_t(walk.begin) * kD;
  const int thread = int(threadIdx.x);

  load_weight<kD, kGeneral>(m.weight_q, s.weight_q, h, s.vector, l);
  load_weight<kD, kGeneral>(m.weight_k, s.weight_k, h, s.vector, l);
  load_rows<kD>(m.k, s.k.at(b, begin, h), s.k.token, s.T - begin, s.vector, l);
  load_rows<kD>(m.q, s.q.at(b, begin, h), s.q.token, s.T - begin, s.vector, l);
  if (thread < kD) m.rows[walk.begin & 1][thread] = document_row(s, b, begin, thread);
  if constexpr (kGeneral) m.key_norm[0][thread] = fetch_key_norm<kD>(s.map, walk.index, begin);
  KeyState<kD> state;
  state.start(p.states, s, walk, l);

  for (int chunk = walk.begin; chunk < walk.end; ++chunk) {
    const std::int64_t t0 = std::int64_t(chunk) * kD, left = s.T - t0;
    const int count = left < kD ? int(left) : kD;
    const bool goes_on = chunk + 1 < walk.end, ends = p.final_state && chunk + 1 == s.chunks;
    const signed char* const rows = m.rows[chunk & 1];
    wait_all_copies();
    if constexpr (kTurned)
      for (bf16* const tile : {m.k, m.q}) turn_rows<kD>(tile, s.rotary + t0 * kD, kD, count - 1, s.vector, l);
    __syncthreads();  // q, k and rows are here; the chunk before is done with v
    load_rows<kD>(m.v, s.v.at(b, t0, h), s.v.token, left, s.vector, l);
    if (keeps(p, chunk)) keep_state(p, state, kept_slot(p, walk, chunk), l);
    RowNorm<kGeneral> norm;
    norm.fetch(s.map, kOfQueries, walk.index, t0, count, l.row);
    state.enter(m.weight_k, m.k, count, rows, m.phi, m.S, m.features, l, chunk_norm<kGeneral>(s.map, m.key_norm[0], h, kD));
    wait_all_copies();
    __syncthreads();  // v, phi and the state are here; all are done with k
    signed char next_row = -1;
    float next_norm = 0;
    if (goes_on) {
      if constexpr (kGeneral) next_norm = fetch_key_norm<kD>(s.map, walk.index, t0 + kD);
      load_rows<kD>(m.k, s.k.at(b, t0 + kD, h), s.k.token, left - kD, s.vector, l);
      if (thread < kD) next_row = document_row(s, b, t0 + kD, thread);
    }

    // queries in the scale of the keys, by token
    unsigned q[2 * kSteps][4];
    float largest[2] = {-INFINITY, -INFINITY}, den[2] = {0, 0};
    {
      float u[kD / 8][4];
      start_by_token<kGeneral>(u, bias_of<kGeneral>(s.map, kOfQueries, h, kD), l.column);
      multiply<kD>(u, [&](unsigned(&a)[4], int k) { l.a(a, m.q, 16 * l.warp, k); },
                   [&](unsigned(&b)[4], int n, int k) { l.b_transposed(b, m.weight_q, n, k); });
      __syncwarp();
      if (goes_on) load_rows<kD>(m.q, s.q.at(b, t0 + kD, h), s.q.token, left - kD, s.vector, l);
      query_exponents<kD>(u, largest, m.features.shift, l, norm);
      for (float& x : largest) x = row_max(x);
      query_operands<kD>(q, u, largest, m.features.shift, l, norm);
    }

    // the state before the chunk, for rows of its document
    float o[kD / 8][4] = {};
#pragma unroll
    for (int k = 0; k < 2 * kSteps; ++k) {
      multiply_step(o, q[k], [&](unsigned(&b)[4], int n) { l.b_transposed(b, m.S, n, 16 * k); });
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float2 z = pair_at(m.features.z, 16 * k + e / 2 * 8 + l.column);
        den[e % 2] += low_of(q[k][e]) * z.x + high_of(q[k][e]) * z.y;
      }
    }
    int first[2] = {0, 0};
    if (s.document_start) {
#pragma unroll
      for (int x = 0; x < 2; ++x) {
        first[x] = rows[l.row + 8 * x];
        if (first[x] < 0) continue;
        den[x] = 0;
#pragma unroll
        for (int n = 0; n < kD / 8; ++n) o[n][2 * x] = o[n][2 * x + 1] = 0;
      }
    }
    // the chunk up to the row
#pragma unroll
    for (int j = 0; j < kSteps; ++j) {
      if (j > l.warp) break;
      float scores[2][4] = {};
#pragma unroll
      for (int k = 0; k < 2 * kSteps; ++k)
        multiply_step(scores, q[k], [&](unsigned(&b)[4], int) { l.b_transposed(b, m.phi, 16 * j, 16 * k); });
      if (j == l.warp || s.document_start) {
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
      multiply_step(o, a, [&](unsigned(&b)[4], int n) { l.b_transposed(b, m.v, n, 16 * j); });
    }

    bool small = false;
#pragma unroll
    for (int x = 0; x < 2; ++x) {
      const int row = l.row + 8 * x;
      den[x] = row_sum(den[x]);
      const bool redo = row < count && den[x] < kSmallest;
      small |= redo;
      if (l.column == 0) {
        m.redo[row] = redo;
        if (row < count && p.saved) p.saved[(b * s.T + t0 + row) * s.H + h] = (largest[x] + log2f(den[x])) * kLn2;
      }
      const float inverse = 1 / den[x];
#pragma unroll
      for (int n = 0; n < kD / 8; ++n) o[n][2 * x] *= inverse, o[n][2 * x + 1] *= inverse;
    }
    store_rows<kD>(p.o, p.o.at(b, t0, h), o, count, l);

    // all are done with the state, and with phi of other warps
    if (__syncthreads_or(small)) {
      const KeyState<kD> copy = state;
      forward_log_space_rows<kD, kGeneral>(p, copy, rows, b, h, t0, count);
    }
    if (goes_on || ends) state.leave(m.phi, m.v, rows[kD - 1], m.features, l);
    if (ends) end_with(p, state, walk.index, l);
    if (goes_on) {
      if (thread < kD) m.rows[(chunk + 1) & 1][thread] = next_row;
      if constexpr (kGeneral) m.key_norm[0][thread] = next_norm;
    }
  }
}

/// What a call needs beside its results.
template <class Operand>
void take(Workspace& w, ForwardArguments& p, const Attributes& attributes, std::span<const Operand> inputs) {
  const Shape& q = inputs[kQ].shape;
  const Segments g = segments_of(q, Pass::forward);
  const std::int64_t slots = state_slots(q, g, inputs[kInitialState].given);
  if (slots > 0) p.states = w.take_slots(slots, q[3], true), p.local = w.take<float>(slots * 2 * q[3]);
  describe(p.s.map, attributes, q, w.take_log_sums(attributes, q));
  p.rare = w.take<int>(q[0] * q[2] * g.count);
}

template <int kD>
void run(const ForwardArguments& p, std::int64_t blocks) {
  with_form(p.s, [&](auto general, auto turned) {
    launch(linear_attention_forward_kernel<kD, general, turned>, blocks, 2 * kD, sizeof(ForwardMemory<kD>), p);
  });
}

}  // namespace

bool supports(const Attributes& attributes, std::span<const Meta> inputs) {
  if (!suits_tensor_cores(attributes, inputs) || !feature_map_of("linear_attention", attributes).logarithmic()) return false;
  const bool states = has_states(attributes, inputs);
  if (states && !attributes.flag("causal")) return false;
  if ((states || !attributes.flag("causal")) && (inputs[kDocumentStart].given || is_general(attributes, inputs))) return false;
  const std::int64_t D = inputs[kQ].shape[3];
  return D == 32 || D == 64;
}

bool applies_rotary(const Attributes& attributes, std::span<const Meta> inputs) {
  return attributes.flag("causal") && !attributes.flag("final_state") && !is_general(attributes, inputs);
}

std::int64_t forward_workspace(const Attributes& attributes, std::span<const Meta> inputs) {
  const Shape& q = inputs[kQ].shape;
  if (!attributes.flag("causal")) return bidirectional_forward_workspace(q);
  Workspace w;
  ForwardArguments p{};
  take(w, p, attributes, inputs);
  return w.used;
}

std::vector<Meta> kept(const Attributes& attributes, std::span<const Meta> inputs) {
  const std::int64_t bytes = Kept(attributes, inputs).bytes;
  return bytes > 0 ? std::vector<Meta>{{Shape{bytes / size_of(Dtype::f32)}, Dtype::f32}} : std::vector<Meta>{};
}

void forward(const Call& c) {
  if (!c.attributes.flag("causal")) return bidirectional_forward(c);
  const Shape& q = c.inputs[kQ].shape;
  const bool ends = c.attributes.flag("final_state");
  Workspace w{static_cast<std::byte*>(c.workspace)};
  ForwardArguments p{.s = sequence_of(c, Pass::forward), .o = HeadsTarget<bf16>("linear_attention", c.outputs[0], false),
                     .saved = c.saved[0].as<float>()};
  take(w, p, c.attributes, c.inputs);
  (ends ? p.final_state : p.no_state) = c.outputs[1].as<float>();
  const Kept kept(c);
  p.kept = kept.states;
  p.kept_segments = kept.segments.count, p.kept_length = kept.segments.length, p.kept_final = kept.final_slot;
  if (kept.log_sums) p.s.map.log_sums = kept.log_sums;
  if (p.s.map.log_sums) make_log_sums(p.s, q[0], int(q[3]));
  if (p.states.S) make_states(p.s, p.states, p.local, c.inputs[kInitialState].as<const float>(), q[0], int(q[3]));
  const std::int64_t blocks = q[0] * q[2] * p.s.segments;
  if (p.s.warpgroups && p.o.vector) warpgroup_forward(p, blocks);
  else p.rare = nullptr;
  return q[3] == 64 ? run<64>(p, blocks) : run<32>(p, blocks);
}

}  // namespace hedgehog::cuda::linear_attention_mma

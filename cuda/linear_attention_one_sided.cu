#include "cuda/linear_attention_one_sided.cuh"

#include "cuda/linear_attention_one_sided_tile.cuh"

namespace hedgehog::cuda::linear_attention_one_sided {
namespace {

struct ForwardArguments {
  Sequence s;
  OneSidedMap map;
  HeadsTarget<bf16> o;
  float* saved;  // (B, T, H) or null
  SumSlots states;  // causal: before each segment
  Totals keys;      // not causal
  float* no_state;  // the second output, one 0, or null
};

template <int kD>
struct ForwardMemory {
  static constexpr int kTile = kD * kD;
  bf16 weight_q[kTile], weight_k[kTile];  // (D, D')
  bf16 q[kTile];                          // (chunk, D)
  // of this chunk and the next, so that one barrier a chunk will do
  bf16 k[2][kTile], v[2][kTile];  // (chunk, D); k becomes phi
  bf16 S[2][kTile];               // (F, Dv)
  float z[2][kD];
  signed char rows[2][kD];
};
static_assert(3 * (sizeof(ForwardMemory<64>) + 1024) <= 228 * 1024, "three blocks a multiprocessor");

/// o and its denominator. One block a batch element, head and segment walks the chunks with the state of keys in registers. A warp
/// has 16 tokens: features of its keys go to shared memory, those of its queries stay in registers as operands of the products with
/// the keys of the chunk and with the state before it. Where all queries see all keys, the state is that of all, and walks are of
/// queries alone.
template <int kD, bool kCausal>
__global__ void __launch_bounds__(2 * kD, kD == 64 ? 3 : 8)
    linear_attention_one_sided_forward_kernel(const __grid_constant__ ForwardArguments p) {
  constexpr int kSteps = kD / 16;
  ForwardMemory<kD>& m = *reinterpret_cast<ForwardMemory<kD>*>(shared_bytes());
  const Sequence& s = p.s;
  const Lanes<kD> l;
  const Walk walk(s);
  wait_for_kernels();
  if (p.no_state && walk.slot == 0 && threadIdx.x == 0) *p.no_state = 0;
  const std::int64_t b = walk.b, h = walk.h;
  const int thread = int(threadIdx.x);
  const auto load_keys = [&](int chunk) {
    const std::int64_t t0 = std::int64_t(chunk) * kD;
    load_rows<kD>(m.k[chunk & 1], s.k.at(b, t0, h), s.k.token, s.T - t0, s.vector, l);
    load_rows<kD>(m.v[chunk & 1], s.v.at(b, t0, h), s.v.token, s.T - t0, s.vector, l);
    if (thread < kD) m.rows[chunk & 1][thread] = document_row(s, b, t0, thread);
  };
  const auto load_queries = [&](int chunk) {
    const std::int64_t t0 = std::int64_t(chunk) * kD;
    load_rows<kD>(m.q, s.q.at(b, t0, h), s.q.token, s.T - t0, s.vector, l);
  };

  const bf16* const weight_q = load_map<kD>(m.weight_q, s.weight_q, s, walk, l);
  const bf16* const weight_k = kCausal ? load_map<kD>(m.weight_k, s.weight_k, s, walk, l) : nullptr;
  load_queries(walk.begin);
  FeatureSums<kD> state;
  if constexpr (kCausal) {
    load_keys(walk.begin);
    if (walk.segment == 0) state.clear();
    else state.load(p.states, s.state_slot(walk.index, walk.segment), l);
  } else {
    load_totals<kD, 1>(m.S[0], m.z[0], p.keys, walk.index, l);
  }
  wait_all_copies();
  __syncthreads();  // the weights, or all that is shared, are here

  for (int chunk = walk.begin; chunk < walk.end; ++chunk) {
    const std::int64_t t0 = std::int64_t(chunk) * kD, left = s.T - t0;
    const int count = left < kD ? int(left) : kD;
    const bool goes_on = chunk + 1 < walk.end;
    const signed char* const rows = m.rows[chunk & 1];
    bf16 *const phi = m.k[chunk & 1], *const v = m.v[chunk & 1], *const S = m.S[kCausal ? chunk & 1 : 0];
    float* const z = m.z[kCausal ? chunk & 1 : 0];
    wait_all_copies();
    __syncwarp();  // the warp's rows are here
    if constexpr (kCausal) {
      float u[kD / 8][4];
      unsigned k[kSteps][4];
      features_of_rows<kD>(u, phi, weight_k, bias_of<true>(s.map, kOfKeys, h, kD), p.map, l);
      pack_rows(k, u);
      __syncwarp();
      store_operands<kD>(phi, k, l);
      state.show(S, z, l);
      __syncthreads();  // features, v and the state are here; all are done with the chunk before
      if (goes_on) load_keys(chunk + 1);
    }

    unsigned q[kSteps][4];
    {
      float u[kD / 8][4];
      features_of_rows<kD>(u, m.q, weight_q, bias_of<true>(s.map, kOfQueries, h, kD), p.map, l);
      pack_rows(q, u);
      __syncwarp();
      if (goes_on) load_queries(chunk + 1);
    }
    // the state before the chunk, for rows of its document
    float o[kD / 8][4] = {}, den[2] = {0, 0};
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      multiply_step(o, q[k], [&](unsigned(&of)[4], int n) { l.b_transposed(of, S, n, 16 * k); });
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float2 of_columns = pair_at(z, 16 * k + e / 2 * 8 + l.column);
        den[e % 2] += low_of(q[k][e]) * of_columns.x + high_of(q[k][e]) * of_columns.y;
      }
    }
    int first[2] = {0, 0};
    if (kCausal && s.document_start) {
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
      if (!kCausal || j > l.warp) break;
      float scores[2][4] = {};
#pragma unroll
      for (int k = 0; k < kSteps; ++k) multiply_step(scores, q[k], [&](unsigned(&of)[4], int) { l.b(of, phi, 16 * j, 16 * k); });
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
      multiply_step(o, a, [&](unsigned(&of)[4], int n) { l.b_transposed(of, v, n, 16 * j); });
    }
#pragma unroll
    for (int x = 0; x < 2; ++x) {
      const int row = l.row + 8 * x;
      den[x] = row_sum(den[x]);
      if (l.column == 0 && row < count && p.saved) p.saved[(b * s.T + t0 + row) * s.H + h] = den[x];
      const float inverse = den[x] == 0 ? 0.0f : 1 / den[x];
#pragma unroll
      for (int n = 0; n < kD / 8; ++n) o[n][2 * x] *= inverse, o[n][2 * x + 1] *= inverse;
    }
    store_rows<kD>(p.o, p.o.at(b, t0, h), o, count, l);
    if constexpr (kCausal) {
      if (!goes_on) break;
      const int last = rows[kD - 1];
      if (last >= 0) state.clear();
      state.template absorb<kOfKeys>(phi, v, nullptr, last > 0, [&](int token) { return leaves<kOfKeys>(rows, last, token); }, l);
    }
  }
}

template <int kD, bool kCausal>
void run(const ForwardArguments& p, std::int64_t blocks) {
  launch(linear_attention_one_sided_forward_kernel<kD, kCausal>, blocks, 2 * kD, sizeof(ForwardMemory<kD>), p);
}

}  // namespace

bool supports(const Attributes& attributes, std::span<const Meta> inputs) {
  if (!suits_tensor_cores(attributes, inputs) || has_states(attributes, inputs)) return false;
  if (!attributes.flag("causal") && inputs[kDocumentStart].given) return false;
  const std::int64_t D = inputs[kQ].shape[3];
  return !feature_map_of("linear_attention", attributes).logarithmic() && (D == 32 || D == 64);
}

std::int64_t forward_workspace(const Attributes& attributes, std::span<const Meta> inputs) {
  Workspace w;
  take_sums(w, inputs[kQ].shape, attributes.flag("causal"));
  if (!attributes.flag("causal")) take_totals(w, inputs[kQ].shape, inputs[kQ].shape[3]);
  return w.used;
}

void forward(const Call& c) {
  const Shape& q = c.inputs[kQ].shape;
  const bool causal = c.attributes.flag("causal");
  Workspace w{static_cast<std::byte*>(c.workspace)};
  BackwardArguments keys{};
  keys.s = sequence_of(c), keys.map = OneSidedMap(c.attributes), keys.causal = causal;
  keys.sums = take_sums(w, q, causal);
  if (!causal) keys.totals = take_totals(w, q, q[3]);
  make_sums(keys, kOfKeys, q[0], int(q[3]));
  const ForwardArguments p{keys.s, keys.map, HeadsTarget<bf16>("linear_attention", c.outputs[0], false), c.saved[0].as<float>(),
                           keys.sums, keys.totals, c.outputs[1].as<float>()};
  const std::int64_t blocks = q[0] * q[2] * p.s.segments;
  if (q[3] == 64) causal ? run<64, true>(p, blocks) : run<64, false>(p, blocks);
  else causal ? run<32, true>(p, blocks) : run<32, false>(p, blocks);
}

}  // namespace hedgehog::cuda::linear_attention_one_sided

#include "cuda/linear_attention_mma_bidirectional.cuh"

namespace hedgehog::cuda::linear_attention_mma {
namespace {

struct QueriesArguments {
  Sequence s;
  Totals keys;
  HeadsTarget<bf16> o;
  float* saved;  // (B, T, H) or null
  float* no_state;  // the second output, one 0, or null
};

template <int kD>
struct QueriesMemory {
  static constexpr int kTile = kD * kD;
  bf16 weight_q[kTile];    // (D, D')
  bf16 S[2 * kTile];       // (F, Dv)
  bf16 q[2][kTile];        // (chunk, D), of this chunk and the next
  float shift[2 * kD], z[2 * kD];
};
static_assert(4 * (sizeof(QueriesMemory<64>) + 1024) <= 228 * 1024, "four blocks a multiprocessor");

/// o and the logarithm of its denominator from the sums over all keys. One block a batch element, head and segment; once the sums are
/// there, its warps go their own ways, each with 16 queries of a chunk.
template <int kD>
__global__ void __launch_bounds__(2 * kD, kD == 64 ? 4 : 8)
    linear_attention_all_keys_forward_kernel(const __grid_constant__ QueriesArguments p) {
  constexpr int kSteps = kD / 16;
  QueriesMemory<kD>& m = *reinterpret_cast<QueriesMemory<kD>*>(shared_bytes());
  const Sequence& s = p.s;
  const Lanes<kD> l;
  const Walk walk(s);
  wait_for_kernels();
  if (p.no_state && walk.slot == 0 && threadIdx.x == 0) *p.no_state = 0;
  const std::int64_t b = walk.b, h = walk.h;
  const auto load = [&](int chunk) {
    const std::int64_t t0 = std::int64_t(chunk) * kD;
    load_rows<kD>(m.q[chunk & 1], s.q.at(b, t0, h), s.q.token, s.T - t0, s.vector, l);
  };

  load_rows<kD>(m.weight_q, s.weight_q + h * kD * kD, kD, kD, s.vector, l);
  load_totals<kD>(m.S, m.z, p.keys, walk.index, l);
  m.shift[threadIdx.x] = p.keys.shift[walk.index * 2 * kD + threadIdx.x];
  load(walk.begin);
  wait_all_copies();
  __syncthreads();

  for (int chunk = walk.begin; chunk < walk.end; ++chunk) {
    const std::int64_t t0 = std::int64_t(chunk) * kD, left = s.T - t0;
    wait_all_copies();
    __syncwarp();  // the warp's queries are here; it is done with those before
    if (chunk + 1 < walk.end) load(chunk + 1);

    unsigned q[2 * kSteps][4];
    float largest[2] = {-INFINITY, -INFINITY}, den[2] = {0, 0};
    {
      float u[kD / 8][4] = {};
      multiply<kD>(u, [&](unsigned(&a)[4], int k) { l.a(a, m.q[chunk & 1], 16 * l.warp, k); },
                   [&](unsigned(&w)[4], int n, int k) { l.b_transposed(w, m.weight_q, n, k); });
      query_exponents<kD>(u, largest, m.shift, l);
      for (float& x : largest) x = row_max(x);
      query_operands<kD>(q, u, largest, m.shift, l);
    }
    float o[kD / 8][4] = {};
#pragma unroll
    for (int k = 0; k < 2 * kSteps; ++k) {
      multiply_step(o, q[k], [&](unsigned(&of)[4], int n) { l.b_transposed(of, m.S, n, 16 * k); });
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float2 z = pair_at(m.z, 16 * k + e / 2 * 8 + l.column);
        den[e % 2] += low_of(q[k][e]) * z.x + high_of(q[k][e]) * z.y;
      }
    }
#pragma unroll
    for (int x = 0; x < 2; ++x) {
      const int row = l.row + 8 * x;
      den[x] = row_sum(den[x]);
      if (l.column == 0 && row < left && p.saved) p.saved[(b * s.T + t0 + row) * s.H + h] = (largest[x] + log2f(den[x])) * kLn2;
      const float inverse = 1 / den[x];
#pragma unroll
      for (int n = 0; n < kD / 8; ++n) o[n][2 * x] *= inverse, o[n][2 * x + 1] *= inverse;
    }
    store_rows<kD>(p.o, p.o.at(b, t0, h), o, left, l);
  }
}

/// How the two passes of forward are cut into blocks.
struct ForwardPlan {
  Segments keys, queries;
  explicit ForwardPlan(const Shape& q) : keys(even_segments(q, kThreeEach)), queries(even_segments(q, kFourEach)) {}
};

}  // namespace

std::int64_t bidirectional_forward_workspace(const Shape& q) {
  Workspace w;
  take_parts(w, q, ForwardPlan(q).keys.count);
  take_totals(w, q);
  return w.used;
}

void bidirectional_forward(const Call& c) {
  const Shape& q = c.inputs[kQ].shape;
  const std::int64_t heads = q[0] * q[2];
  const int D = int(q[3]);
  const ForwardPlan plan(q);
  const Sequence s = sequence_of(c, Pass::forward);
  Workspace w{static_cast<std::byte*>(c.workspace)};
  const SumSlots parts = take_parts(w, q, plan.keys.count);
  const Totals keys = take_totals(w, q);
  sum_keys(cut(s, plan.keys), parts, q[0], D);
  sum_segments(parts, keys, heads, plan.keys.count, D, 2 * D);
  const QueriesArguments p{cut(s, plan.queries), keys, HeadsTarget<bf16>("linear_attention", c.outputs[0], false), c.saved[0].as<float>(),
                           c.outputs[1].as<float>()};
  const std::int64_t blocks = heads * plan.queries.count;
  if (D == 64) launch(linear_attention_all_keys_forward_kernel<64>, blocks, 128, sizeof(QueriesMemory<64>), p);
  else launch(linear_attention_all_keys_forward_kernel<32>, blocks, 64, sizeof(QueriesMemory<32>), p);
}

}  // namespace hedgehog::cuda::linear_attention_mma

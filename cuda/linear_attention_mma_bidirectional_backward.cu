#include "cuda/linear_attention_mma_backward.cuh"
#include "cuda/linear_attention_mma_bidirectional.cuh"

namespace hedgehog::cuda::linear_attention_mma {
namespace {

struct QueriesArguments {
  Sequence s;
  Heads<bf16> o, dy;
  const float* saved;  // (B, T, H) natural logarithm of the denominator
  Totals keys;
  HeadsTarget<bf16> dq;
  SumSlots reversed;  // R and y of each segment; null where no gradient of keys and values is wanted
  float* dweight;     // (B H segments, D, D')
};

template <int kD>
struct QueriesMemory {
  static constexpr int kTile = kD * kD;
  bf16 weight_q[kTile];                        // (D, D')
  bf16 S[2 * kTile];                           // (F, Dv)
  bf16 q[2][kTile], dy[2][kTile], o[2][kTile];  // (chunk, D), of this chunk and the next
  bf16 phi[2][kTile];                          // (chunk, D') of either sign, over the denominator
  bf16 du[kTile];                              // (chunk, D')
  bf16 delta[2][kD];                           // rounded, and what is left
  float shift[2 * kD], z[2 * kD];
};
static_assert(2 * (sizeof(QueriesMemory<64>) + 1024) <= 228 * 1024, "two blocks a multiprocessor");

/// Rows of features times delta: a product whose right operand has delta in two columns, rounded and what is left.
template <int kD>
__device__ __forceinline__ void add_delta(float (&y)[4], const unsigned (&phi)[4], const bf16 (&delta)[2][kD], int k, const Lanes<kD>& l) {
  const int part = l.lane / 4;
  unsigned b[2] = {0, 0};
  if (part < 2) {
    b[0] = *reinterpret_cast<const unsigned*>(&delta[part][k + l.column]);
    b[1] = *reinterpret_cast<const unsigned*>(&delta[part][k + 8 + l.column]);
  }
  multiply_add(y, phi, b[0], b[1]);
}

/// dq, the part of dweight_q and R and y of one batch element, head and segment. A warp has 16 queries of a chunk, then 16 features of
/// either sign in the sums over the chunk.
template <int kD>
__global__ void __launch_bounds__(2 * kD, kD == 64 ? 2 : 4)
    linear_attention_all_keys_backward_queries_kernel(const __grid_constant__ QueriesArguments p) {
  constexpr int kHalf = kD / 2;
  QueriesMemory<kD>& m = *reinterpret_cast<QueriesMemory<kD>*>(shared_bytes());
  const Sequence& s = p.s;
  const Lanes<kD> l;
  const Walk walk(s);
  wait_for_kernels();
  const std::int64_t b = walk.b, h = walk.h;
  float den[2];  // of the next chunk, as its tiles
  const auto load = [&](int chunk) {
    const std::int64_t t0 = std::int64_t(chunk) * kD, left = s.T - t0;
    load_rows<kD>(m.q[chunk & 1], s.q.at(b, t0, h), s.q.token, left, s.vector, l);
    load_rows<kD>(m.dy[chunk & 1], p.dy.at(b, t0, h), p.dy.token, left, s.vector, l);
    load_rows<kD>(m.o[chunk & 1], p.o.at(b, t0, h), p.o.token, left, s.vector, l);
#pragma unroll
    for (int x = 0; x < 2; ++x) {
      const int row = l.row + 8 * x;
      den[x] = row < left ? p.saved[(b * s.T + t0 + row) * s.H + h] : INFINITY;
    }
  };

  load_rows<kD>(m.weight_q, s.weight_q + h * kD * kD, kD, kD, s.vector, l);
  load_totals<kD>(m.S, m.z, p.keys, walk.index, l);
  m.shift[threadIdx.x] = p.keys.shift[walk.index * 2 * kD + threadIdx.x];
  load(walk.begin);
  Sums<kD> R;
  R.clear();
  float y[2][4] = {}, dweight[kD / 8][4] = {};

  for (int chunk = walk.begin; chunk < walk.end; ++chunk) {
    const std::int64_t t0 = std::int64_t(chunk) * kD, left = s.T - t0;
    const bf16 *const q = m.q[chunk & 1], *const dy = m.dy[chunk & 1], *const o = m.o[chunk & 1];
    const float log_den[2] = {den[0] * kLog2e, den[1] * kLog2e};
    wait_all_copies();
    __syncthreads();  // the chunk is here; all are done with the tiles of the one before
    if (chunk + 1 < walk.end) load(chunk + 1);

    float u[kD / 8][4] = {}, delta[2] = {0, 0};
    multiply<kD>(u, [&](unsigned(&a)[4], int k) { l.a(a, q, 16 * l.warp, k); },
                 [&](unsigned(&w)[4], int n, int k) { l.b_transposed(w, m.weight_q, n, k); });
#pragma unroll
    for (int k = 0; k < kD; k += 16) {
      unsigned of_dy[4], of_o[4];
      l.a(of_dy, dy, 16 * l.warp, k);
      l.a(of_o, o, 16 * l.warp, k);
#pragma unroll
      for (int e = 0; e < 4; ++e) delta[e % 2] -= low_of(of_dy[e]) * low_of(of_o[e]) + high_of(of_dy[e]) * high_of(of_o[e]);
    }
#pragma unroll
    for (int x = 0; x < 2; ++x) {
      delta[x] = row_sum(delta[x]);
      if (l.column > 0) continue;
      const bf16 rounded = __float2bfloat16(delta[x]);
      m.delta[0][l.row + 8 * x] = rounded;
      m.delta[1][l.row + 8 * x] = __float2bfloat16(delta[x] - __bfloat162float(rounded));
    }
    // gradient of the features, half of u at a time, and through phi to u
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float dphi[2][kHalf / 8][4] = {};
#pragma unroll
      for (int k = 0; k < kD; k += 16) {
        unsigned a[4];
        l.a(a, dy, 16 * l.warp, k);
#pragma unroll
        for (int sign = 0; sign < 2; ++sign)
          multiply_step(dphi[sign], a, [&](unsigned(&of)[4], int n) { l.b(of, m.S, sign * kD + half * kHalf + n, k); });
      }
#pragma unroll
      for (int n = 0; n < kHalf / 8; ++n) {
        const int tile = half * (kHalf / 8) + n, column = 8 * tile + l.column;
        const float2 z[2] = {pair_at(m.z, column), pair_at(m.z, kD + column)};
        const float2 shift[2] = {pair_at(m.shift, column), pair_at(m.shift, kD + column)};
        float phi[2][4];
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const float value = u[tile][e];
          u[tile][e] = 0;
#pragma unroll
          for (int sign = 0; sign < 2; ++sign) {
            phi[sign][e] = exp2_fast(fmaf(value, sign ? -kLog2e : kLog2e, e % 2 ? shift[sign].y : shift[sign].x) - log_den[e / 2]);
            const float part = (dphi[sign][n][e] + delta[e / 2] * (e % 2 ? z[sign].y : z[sign].x)) * phi[sign][e];
            u[tile][e] += sign ? -part : part;
          }
        }
#pragma unroll
        for (int sign = 0; sign < 2; ++sign)
#pragma unroll
          for (int x = 0; x < 2; ++x)
            *reinterpret_cast<unsigned*>(m.phi[sign] + place<kD>(l.row + 8 * x, column)) = pack(phi[sign][2 * x], phi[sign][2 * x + 1]);
      }
    }
    {
      float dq[kD / 8][4];
      through_weight<kD>(dq, u, m.weight_q, m.du, l);
      store_rows<kD>(p.dq, p.dq.at(b, t0, h), dq, left, l);
    }

    __syncthreads();  // phi, du and delta are here
    add_weight_gradient<kD>(dweight, q, m.du, l);
    if (!p.reversed.S) continue;
#pragma unroll
    for (int k = 0; k < kD; k += 16) {
      unsigned phi[2][4];
#pragma unroll
      for (int sign = 0; sign < 2; ++sign) {
        l.a_transposed(phi[sign], m.phi[sign], 16 * l.warp, k);
        add_delta<kD>(y[sign], phi[sign], m.delta, k, l);
      }
#pragma unroll
      for (int n = 0; n < kD / 8; n += 2) {
        unsigned of[4];
        l.b_transposed(of, dy, 8 * n, k);
#pragma unroll
        for (int sign = 0; sign < 2; ++sign) {
          multiply_add(R.S[sign][n], phi[sign], of[0], of[1]);
          multiply_add(R.S[sign][n + 1], phi[sign], of[2], of[3]);
        }
      }
    }
  }
  store_weight_gradient<kD>(p.dweight + walk.slot * kD * kD, dweight, l);
  if (!p.reversed.S) return;
  // the columns of delta lie in the lanes that store z
  for (int sign = 0; sign < 2; ++sign)
    for (int x = 0; x < 2; ++x) R.z[sign][x] = y[sign][2 * x] + y[sign][2 * x + 1];
  R.store(p.reversed, walk.slot, l);
}

struct KeysArguments {
  Sequence s;
  const float* shift;  // (B H, F)
  Totals queries;      // R and y
  HeadsTarget<bf16> dk, dv;
  float* dweight;      // (B H segments, D, D')
};

template <int kD>
struct KeysMemory {
  static constexpr int kTile = kD * kD;
  bf16 weight_k[kTile];           // (D, D')
  bf16 R[2 * kTile];              // (F, Dv)
  bf16 k[2][kTile], v[2][kTile];  // (chunk, D), of this chunk and the next
  bf16 du[kTile];                 // (chunk, D')
  float shift[2 * kD], y[2 * kD];
};
static_assert(3 * (sizeof(KeysMemory<64>) + 1024) <= 228 * 1024, "three blocks a multiprocessor");

/// dk, dv and the part of dweight_k of one batch element, head and segment. A warp has 16 keys of a chunk.
template <int kD>
__global__ void __launch_bounds__(2 * kD, kD == 64 ? 3 : 6)
    linear_attention_all_keys_backward_keys_kernel(const __grid_constant__ KeysArguments p) {
  constexpr int kSteps = kD / 16, kHalf = kD / 2;
  KeysMemory<kD>& m = *reinterpret_cast<KeysMemory<kD>*>(shared_bytes());
  const Sequence& s = p.s;
  const Lanes<kD> l;
  const Walk walk(s);
  wait_for_kernels();
  const std::int64_t b = walk.b, h = walk.h;
  const auto load = [&](int chunk) {
    const std::int64_t t0 = std::int64_t(chunk) * kD;
    load_rows<kD>(m.k[chunk & 1], s.k.at(b, t0, h), s.k.token, s.T - t0, s.vector, l);
    load_rows<kD>(m.v[chunk & 1], s.v.at(b, t0, h), s.v.token, s.T - t0, s.vector, l);
  };

  load_rows<kD>(m.weight_k, s.weight_k + h * kD * kD, kD, kD, s.vector, l);
  load_totals<kD>(m.R, m.y, p.queries, walk.index, l);
  m.shift[threadIdx.x] = p.shift[walk.index * 2 * kD + threadIdx.x];
  load(walk.begin);
  float dweight[kD / 8][4] = {};

  for (int chunk = walk.begin; chunk < walk.end; ++chunk) {
    const std::int64_t t0 = std::int64_t(chunk) * kD, left = s.T - t0;
    const bf16 *const k_tile = m.k[chunk & 1], *const v = m.v[chunk & 1];
    wait_all_copies();
    __syncthreads();  // the chunk is here; all are done with the tiles of the one before
    if (chunk + 1 < walk.end) load(chunk + 1);

    unsigned phi[2 * kSteps][4];
    {
      float u[kD / 8][4] = {};
      multiply<kD>(u, [&](unsigned(&a)[4], int k) { l.a(a, k_tile, 16 * l.warp, k); },
                   [&](unsigned(&w)[4], int n, int k) { l.b_transposed(w, m.weight_k, n, k); });
      const bool valid[2] = {l.row < left, l.row + 8 < left};
#pragma unroll
      for (int sign = 0; sign < 2; ++sign) {
        float of[kD / 8][4];
#pragma unroll
        for (int n = 0; n < kD / 8; ++n) {
          const float2 shift = pair_at(m.shift, sign * kD + 8 * n + l.column);
#pragma unroll
          for (int e = 0; e < 4; ++e)
            of[n][e] = valid[e / 2] ? exp2_fast(fmaf(u[n][e], sign ? -kLog2e : kLog2e, -(e % 2 ? shift.y : shift.x))) : 0.0f;
        }
#pragma unroll
        for (int k = 0; k < kSteps; ++k) pack_operand(phi[sign * kSteps + k], of[2 * k], of[2 * k + 1]);
      }
    }
    if (p.dv) {
      float dv[kD / 8][4] = {};
#pragma unroll
      for (int k = 0; k < 2 * kSteps; ++k)
        multiply_step(dv, phi[k], [&](unsigned(&of)[4], int n) { l.b_transposed(of, m.R, n, 16 * k); });
      store_rows<kD>(p.dv, p.dv.at(b, t0, h), dv, left, l);
    }
    // gradient of the features, half of u at a time, and through phi to u
    float du[kD / 8][4];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float dphi[2][kHalf / 8][4] = {};
#pragma unroll
      for (int k = 0; k < kD; k += 16) {
        unsigned a[4];
        l.a(a, v, 16 * l.warp, k);
#pragma unroll
        for (int sign = 0; sign < 2; ++sign)
          multiply_step(dphi[sign], a, [&](unsigned(&of)[4], int n) { l.b(of, m.R, sign * kD + half * kHalf + n, k); });
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
            const unsigned pair = phi[sign * kSteps + tile / 2][tile % 2 * 2 + e / 2];
            parts[sign] = (dphi[sign][n][e] + (e % 2 ? y[sign].y : y[sign].x)) * (e % 2 ? high_of(pair) : low_of(pair));
          }
          du[tile][e] = parts[0] - parts[1];
        }
      }
    }
    {
      float dk[kD / 8][4];
      through_weight<kD>(dk, du, m.weight_k, m.du, l);
      store_rows<kD>(p.dk, p.dk.at(b, t0, h), dk, left, l);
    }
    __syncthreads();  // du is here
    add_weight_gradient<kD>(dweight, k_tile, m.du, l);
  }
  store_weight_gradient<kD>(p.dweight + walk.slot * kD * kD, dweight, l);
}

/// How the passes are cut into blocks, and what they leave for each other.
struct BackwardPlan {
  Segments sums, queries, keys;
  SumSlots parts;  // of keys, then of queries
  Totals of_keys, of_queries;
  float* dweight[2];
  HeadsTarget<bf16> dk, dv;  // by query head, where several share a key head
  std::int64_t bytes;

  BackwardPlan(const Shape& q, std::int64_t key_heads, std::byte* workspace)
      : sums(even_segments(q, kThreeEach)), queries(even_segments(q, kTwoEach)), keys(even_segments(q, kThreeEach)) {
    Workspace w{workspace};
    const std::int64_t matrices = q[0] * q[2] * q[3] * q[3];
    parts = take_parts(w, q, std::max(sums.count, queries.count));
    of_keys = take_totals(w, q);
    of_queries = take_totals(w, q);
    dweight[0] = w.take<float>(matrices * queries.count);
    dweight[1] = w.take<float>(matrices * keys.count);
    if (key_heads < q[2]) dk = take_group_part(w, q), dv = take_group_part(w, q);
    bytes = w.used;
  }
};

template <int kD>
void run(const Call& c) {
  const Shape& q = c.inputs[kQ].shape;
  const std::int64_t batch = q[0], heads = q[0] * q[2];
  const auto target = [&](int i) { return HeadsTarget<bf16>("linear_attention", c, i); };
  const BackwardPlan plan(q, c.inputs[kK].shape[2], static_cast<std::byte*>(c.workspace));
  const HeadsTarget<bf16> dk = plan.dk ? plan.dk : target(kK), dv = plan.dv ? plan.dv : target(kV);
  const Heads<bf16> o("linear_attention", c.outputs[0]), dy("linear_attention", c.dy[0]);
  Sequence s = sequence_of(c, Pass::backward);
  s.vector = s.vector && aligned(o) && aligned(dy);
  const bool of_keys = c.dx[kK] || c.dx[kV] || c.dx[kWeightK];

  sum_keys(cut(s, plan.sums), plan.parts, batch, kD);
  sum_segments(plan.parts, plan.of_keys, heads, plan.sums.count, kD, 2 * kD);
  const SumSlots reversed = of_keys ? SumSlots{.S = plan.parts.S, .z = plan.parts.z} : SumSlots{};
  launch(linear_attention_all_keys_backward_queries_kernel<kD>, heads * plan.queries.count, 2 * kD, sizeof(QueriesMemory<kD>),
         QueriesArguments{cut(s, plan.queries), o, dy, c.saved[0].as<const float>(), plan.of_keys, target(kQ), reversed, plan.dweight[0]});
  if (of_keys) {
    sum_segments(reversed, plan.of_queries, heads, plan.queries.count, kD, 2 * kD);
    launch(linear_attention_all_keys_backward_keys_kernel<kD>, heads * plan.keys.count, 2 * kD, sizeof(KeysMemory<kD>),
           KeysArguments{cut(s, plan.keys), plan.of_keys.shift, plan.of_queries, dk, dv, plan.dweight[1]});
  }
  sum_groups(c, dk, dv);
  sum_weight_parts(c, plan.dweight[0], plan.queries.count, plan.dweight[1], plan.keys.count);
}

}  // namespace

std::int64_t bidirectional_backward_workspace(const Shape& q, std::int64_t key_heads) { return BackwardPlan(q, key_heads, nullptr).bytes; }

void bidirectional_backward(const Call& c) {
  if (c.inputs[kQ].shape[3] == 64) run<64>(c);
  else run<32>(c);
}

}  // namespace hedgehog::cuda::linear_attention_mma

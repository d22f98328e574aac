#include "cuda/linear_attention_one_sided.cuh"
#include "cuda/linear_attention_one_sided_tile.cuh"

namespace hedgehog::cuda::linear_attention_one_sided {
namespace {

template <int kD>
struct BackwardMemory {
  static constexpr int kTile = kD * kD;
  bf16 own_weight[kTile], other_weight[kTile];  // (D, D')
  bf16 own[kTile], own_values[kTile];           // (chunk, D)
  bf16 other[2][kTile];                         // (chunk, D) of this chunk and the next; becomes phi
  bf16 other_values[kTile];                     // (chunk, D)
  bf16 du[kTile];                               // (chunk, D'); o until its rows are used up
  bf16 S[kTile];                                // (F, D) of the sums before the chunk
  float z[kD];                                  // the same
  float dbias[kD / 16][kD];                     // of each warp's rows
  // of this chunk and the next
  float deltas[2][kD];
  signed char rows[2][kD];
};
static_assert(3 * (sizeof(BackwardMemory<64>) + 1024) <= 228 * 1024, "three blocks a multiprocessor");

/// Adds the rows of a warp that are under `count`, by column. The gradient of a bias is what is left of differences that cancel, so they
/// are not rounded first.
template <int kD>
__device__ __forceinline__ void add_bias_rows(float* sums, const float (&du)[kD / 8][4], int count, const Lanes<kD>& l) {
#pragma unroll
  for (int n = 0; n < kD / 8; ++n)
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      float sum = (l.row < count ? du[n][e] : 0.0f) + (l.row + 8 < count ? du[n][2 + e] : 0.0f);
#pragma unroll
      for (int offset = 4; offset < 32; offset *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
      if (l.lane < 4) sums[8 * n + l.column + e] += sum;
    }
}

/// Gradients of queries and of their map in the order of time, or of keys, their map and v against it. One block walks the chunks of a
/// batch element, head and segment; the sums over the other side's tokens that it has passed stay in registers. With [a, alpha] for
/// [dy, delta] of queries and [v, 1] of keys both are
///
///   W_ij = [a, alpha]_own,i . [a, alpha]_other,j      for pairs of the chunk that see each other
///   dphi = W phi_other + [a, alpha]_own [S, z]^T      S, z: sum phi_other [a, alpha]^T over the chunks before
///
/// and for keys dv = A^T dy + phi S, with queries over their denominators everywhere. Where all see all, the sums are over the whole other
/// side, and there are no pairs.
template <int kD, Of kOf, bool kCausal>
__global__ void __launch_bounds__(2 * kD, kD == 64 ? 3 : 8)
    linear_attention_one_sided_backward_kernel(const __grid_constant__ BackwardArguments p) {
  constexpr int kSteps = kD / 16;
  constexpr bool kKeys = kOf == kOfKeys;
  using Own = Side<kOf>;
  constexpr Of kOther = Own::kOther;
  BackwardMemory<kD>& m = *reinterpret_cast<BackwardMemory<kD>*>(shared_bytes());
  const Sequence& s = p.s;
  const Lanes<kD> l;
  const Walk walk(s);
  wait_for_kernels();
  const std::int64_t b = walk.b, h = walk.h;
  const auto load_other = [&](int chunk) { Side<kOther>::template load_x<kD>(m.other[chunk & 1], s, walk, std::int64_t(chunk) * kD, l); };

  const bf16* const own_weight = load_map<kD>(m.own_weight, Own::weight(s), s, walk, l);
  const bf16* const other_weight = kCausal ? load_map<kD>(m.other_weight, Side<kOther>::weight(s), s, walk, l) : nullptr;
  TokenNumbers<kD, kOther> numbers;
  int next = chunk_of<kOther>(walk, 0);
  FeatureSums<kD> sums;
  if constexpr (kCausal) {
    load_other(next);
    numbers.fetch(p, walk, next, l);
    if (kKeys ? walk.segment + 1 == s.segments : walk.segment == 0) sums.clear();
    else sums.load(p.sums, kKeys ? walk.slot : s.state_slot(walk.index, walk.segment), l);
  } else {
    load_totals<kD, 1>(m.S, m.z, p.totals, walk.index, l);
  }
  float dweight[kD / 8][4] = {};
  for (int column = l.lane; column < kD; column += 32) m.dbias[l.warp][column] = 0;

  const int chunks = walk.end - walk.begin;
  for (int i = 0; i < chunks; ++i) {
    const int chunk = next;
    const std::int64_t t0 = std::int64_t(chunk) * kD, left = s.T - t0;
    const int count = left < kD ? int(left) : kD;
    const bool goes_on = i + 1 < chunks;
    const signed char* const rows = m.rows[chunk & 1];
    const float* const deltas = m.deltas[chunk & 1];
    bf16* const phi = m.other[chunk & 1];
    wait_all_copies();
    __syncthreads();  // weights and the other side's x are here; all are done with the chunk before
    Own::template load_x<kD>(m.own, s, walk, t0, l);
    Own::template load_values<kD>(m.own_values, p, walk, t0, l);
    if constexpr (kCausal) Side<kOther>::template load_values<kD>(m.other_values, p, walk, t0, l);
    if constexpr (!kKeys) load_rows<kD>(m.du, p.o.at(b, t0, h), p.o.token, left, s.vector, l);
    float inverse[2] = {1, 1}, delta[2] = {1, 1};
    if constexpr (!kKeys) {
#pragma unroll
      for (int x = 0; x < 2; ++x) inverse[x] = l.row + 8 * x < count ? p.saved[(b * s.T + t0 + l.row + 8 * x) * s.H + h] : 0.0f;
    }
    if constexpr (kCausal) {
      float u[kD / 8][4];
      unsigned operands[kSteps][4];
      features_of_rows<kD>(u, phi, other_weight, bias_of<true>(s.map, kOther, h, kD), p.map, l);
      numbers.divide(u);
      pack_rows(operands, u);
      __syncwarp();
      store_operands<kD>(phi, operands, l);
      numbers.keep(m.deltas[chunk & 1], m.rows[chunk & 1]);
      sums.show(m.S, m.z, l);
    }
    wait_all_copies();
    __syncthreads();  // the chunk and the sums before it are here
    if (goes_on) {
      next = chunk_of<kOther>(walk, i + 1);
      if constexpr (kCausal) load_other(next);
    }

    unsigned own[kSteps][4];
    {
      float u[kD / 8][4];
      features_of_rows<kD>(u, m.own, own_weight, bias_of<true>(s.map, kOf, h, kD), p.map, l);
      pack_rows(own, u);
    }
    if constexpr (!kKeys) {
      delta[0] = delta[1] = 0;
#pragma unroll
      for (int k = 0; k < kD; k += 16) {
        unsigned dy[4], o[4];
        l.a(dy, m.own_values, 16 * l.warp, k);
        l.a(o, m.du, 16 * l.warp, k);
#pragma unroll
        for (int e = 0; e < 4; ++e) delta[e % 2] -= low_of(dy[e]) * low_of(o[e]) + high_of(dy[e]) * high_of(o[e]);
      }
#pragma unroll
      for (int x = 0; x < 2; ++x) {
        const int row = l.row + 8 * x;
        delta[x] = row_sum(delta[x]);
        inverse[x] = inverse[x] == 0 ? 0.0f : 1 / inverse[x];
        if (l.column == 0 && row < count) {
          p.delta[walk.index * s.T + t0 + row] = delta[x];
          p.inverse[walk.index * s.T + t0 + row] = inverse[x];
        }
      }
    }
    // what a row sees: all of the sums or nothing, and of the chunk tokens of its document
    const int last = kCausal ? rows[count - 1] : -1;
    const bool cut = last >= 0;
    int first[2] = {0, 0};
    bool sees[2] = {true, true};
    if (kCausal && s.document_start) {
#pragma unroll
      for (int x = 0; x < 2; ++x) {
        const int row = l.row + 8 * x;
        if (!kKeys) first[x] = rows[row];
        sees[x] = kKeys ? row >= last : first[x] < 0;
      }
    }
    // zeros for pairs that do not see each other; columns from 16 j on
    const auto hide = [&](float (&of)[2][4], int j) {
#pragma unroll
      for (int n = 0; n < 2; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int column = 16 * j + 8 * n + l.column + e % 2, row = l.row + e / 2 * 8;
          if (kKeys ? column < row || (cut && row < rows[column]) : column > row || column < first[e / 2]) of[n][e] = 0;
        }
    };
    if constexpr (kKeys) {
      float dv[kD / 8][4] = {};
#pragma unroll
      for (int k = 0; k < kSteps; ++k) {
        unsigned a[4] = {own[k][0], own[k][1], own[k][2], own[k][3]};
        if (cut) keep_rows(a, sees);
        multiply_step(dv, a, [&](unsigned(&of)[4], int n) { l.b_transposed(of, m.S, n, 16 * k); });
      }
#pragma unroll
      for (int j = 0; j < kSteps; ++j) {
        if (!kCausal || j < l.warp) continue;
        float scores[2][4] = {};
        unsigned a[4];
#pragma unroll
        for (int k = 0; k < kSteps; ++k) multiply_step(scores, own[k], [&](unsigned(&of)[4], int) { l.b(of, phi, 16 * j, 16 * k); });
        hide(scores, j);
        pack_operand(a, scores[0], scores[1]);
        multiply_step(dv, a, [&](unsigned(&of)[4], int n) { l.b_transposed(of, m.other_values, n, 16 * j); });
      }
      store_rows<kD>(p.dv, p.dv.at(b, t0, h), dv, count, l);
    }

    float du[kD / 8][4] = {};
#pragma unroll
    for (int k = 0; k < kD; k += 16) {
      unsigned a[4];
      l.a(a, m.own_values, 16 * l.warp, k);
      if (kCausal && s.document_start) keep_rows(a, sees);
      multiply_step(du, a, [&](unsigned(&of)[4], int n) { l.b(of, m.S, n, k); });
    }
#pragma unroll
    for (int j = 0; j < kSteps; ++j) {
      if (!kCausal || (kKeys ? j < l.warp : j > l.warp)) continue;
      float w[2][4] = {};
      unsigned a[4];
#pragma unroll
      for (int k = 0; k < kD; k += 16) {
        l.a(a, m.own_values, 16 * l.warp, k);
        multiply_step(w, a, [&](unsigned(&of)[4], int) { l.b(of, m.other_values, 16 * j, k); });
      }
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const float2 of_columns = kKeys ? pair_at(deltas, 16 * j + 8 * n + l.column) : float2{};
#pragma unroll
        for (int e = 0; e < 4; ++e) w[n][e] += kKeys ? (e % 2 ? of_columns.y : of_columns.x) : delta[e / 2];
      }
      hide(w, j);
      pack_operand(a, w[0], w[1]);
      multiply_step(du, a, [&](unsigned(&of)[4], int n) { l.b_transposed(of, phi, n, 16 * j); });
    }
#pragma unroll
    for (int n = 0; n < kD / 8; ++n) {
      const float2 z = pair_at(m.z, 8 * n + l.column);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const unsigned pair = own[n / 2][n % 2 * 2 + e / 2];
        const float of_z = sees[e / 2] ? delta[e / 2] * (e % 2 ? z.y : z.x) : 0.0f;
        du[n][e] = (du[n][e] + of_z) * inverse[e / 2] * p.map.slope(e % 2 ? high_of(pair) : low_of(pair));
      }
    }
    if (p.dbias[kOf]) add_bias_rows<kD>(m.dbias[l.warp], du, count, l);
    if (own_weight) {
      float dx[kD / 8][4];
      through_weight<kD>(dx, du, own_weight, m.du, l);
      store_rows<kD>(p.dx[kOf], p.dx[kOf].at(b, t0, h), dx, count, l);
      __syncthreads();  // du is here
    } else {
      store_rows<kD>(p.dx[kOf], p.dx[kOf].at(b, t0, h), du, count, l);
    }
    if (p.dweight[kOf]) add_weight_gradient<kD>(dweight, m.own, m.du, l);
    if constexpr (kCausal) {
      if (!goes_on) break;
      numbers.fetch(p, walk, next, l);
      if (cut) sums.clear();
      sums.template absorb<kOther>(phi, m.other_values, deltas, cut, [&](int token) { return leaves<kOther>(rows, last, token); }, l);
    }
  }
  if (p.dweight[kOf]) store_weight_gradient<kD>(p.dweight[kOf] + walk.slot * kD * kD, dweight, l);
  if (p.dbias[kOf] && threadIdx.x < kD) {
    float dbias = 0;
    for (const auto& of_warp : m.dbias) dbias += of_warp[threadIdx.x];
    p.dbias[kOf][walk.slot * kD + threadIdx.x] = dbias;
  }
}

template <int kD, Of kOf>
void run(const BackwardArguments& p, std::int64_t blocks) {
  const auto kernel = p.causal ? linear_attention_one_sided_backward_kernel<kD, kOf, true>
                               : linear_attention_one_sided_backward_kernel<kD, kOf, false>;
  launch(kernel, blocks, 2 * kD, sizeof(BackwardMemory<kD>), p);
}
template <Of kOf>
void run(const BackwardArguments& p, std::int64_t blocks, int D) {
  D == 64 ? run<64, kOf>(p, blocks) : run<32, kOf>(p, blocks);
}

constexpr int kWeights[2] = {kWeightQ, kWeightK}, kBiases[2] = {kBiasQ, kBiasK};

/// What a call needs beside its results; with grouped heads also the gradients of k and v by query head.
template <class Operand>
void take(Workspace& w, BackwardArguments& p, const Attributes& attributes, std::span<const Operand> inputs) {
  const Shape& q = inputs[kQ].shape;
  p.causal = attributes.flag("causal");
  const std::int64_t heads = q[0] * q[2], T = q[1], D = q[3], walks = heads * segments_of(q, p.causal).count;
  p.sums = take_sums(w, q, p.causal);
  if (!p.causal) p.totals = take_totals(w, q, q[3]);
  p.delta = w.take<float>(heads * T);
  p.inverse = w.take<float>(heads * T);
  for (int of : {kOfQueries, kOfKeys}) {
    if (inputs[std::size_t(kWeights[of])].given) p.dweight[of] = w.take<float>(walks * D * D);
    if (inputs[std::size_t(kBiases[of])].given) p.dbias[of] = w.take<float>(walks * D);
  }
  if (inputs[kK].shape[2] == q[2]) return;
  p.dx[kOfKeys] = take_group_part(w, q);
  p.dv = take_group_part(w, q);
}

}  // namespace

std::int64_t backward_workspace(const Attributes& attributes, std::span<const Meta> inputs) {
  Workspace w;
  BackwardArguments p{};
  take(w, p, attributes, inputs);
  return w.used;
}

void backward(const Call& c) {
  if (!c.dy[0]) return write_zeros(c);
  const Shape& q = c.inputs[kQ].shape;
  const std::int64_t batch = q[0], D = q[3];
  const auto target = [&](int i) { return HeadsTarget<bf16>("linear_attention", c, i); };
  BackwardArguments p{};
  p.s = sequence_of(c);
  p.map = OneSidedMap(c.attributes);
  p.o = Heads<bf16>("linear_attention", c.outputs[0]);
  p.dy = Heads<bf16>("linear_attention", c.dy[0]);
  p.s.vector = p.s.vector && aligned(p.o) && aligned(p.dy);
  p.saved = c.saved[0].as<const float>();
  p.dx[kOfQueries] = target(kQ), p.dx[kOfKeys] = target(kK), p.dv = target(kV);
  Workspace w{static_cast<std::byte*>(c.workspace)};
  take(w, p, c.attributes, c.inputs);
  for (int of : {kOfQueries, kOfKeys}) {
    if (!c.dx[std::size_t(kWeights[of])]) p.dweight[of] = nullptr;
    if (!c.dx[std::size_t(kBiases[of])]) p.dbias[of] = nullptr;
  }
  const std::int64_t blocks = batch * q[2] * p.s.segments;

  make_sums(p, kOfKeys, batch, int(D));
  run<kOfQueries>(p, blocks, int(D));
  if (c.dx[kK] || c.dx[kV] || c.dx[kWeightK] || c.dx[kBiasK]) {
    make_sums(p, kOfQueries, batch, int(D));
    run<kOfKeys>(p, blocks, int(D));
  }
  sum_groups(c, p.dx[kOfKeys], p.dv);
  sum_weight_parts(c, p.dweight[kOfQueries], p.s.segments, p.dweight[kOfKeys], p.s.segments);
  sum_parts(c, kBiasQ, kBiasK, D, p.dbias[kOfQueries], p.s.segments, p.dbias[kOfKeys], p.s.segments);
}

}  // namespace hedgehog::cuda::linear_attention_one_sided

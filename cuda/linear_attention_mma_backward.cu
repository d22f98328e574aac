#include "cuda/linear_attention_mma_backward.cuh"

#include "cuda/linear_attention_mma.cuh"
#include "cuda/linear_attention_mma_bidirectional.cuh"

namespace hedgehog::cuda::linear_attention_mma {
namespace {

/// What a call needs beside its results; with grouped heads also the gradients of k and v by query head.
template <class Operand>
void take(Workspace& w, BackwardArguments& p, const Attributes& attributes, std::span<const Operand> inputs) {
  const Shape& q = inputs[kQ].shape;
  const Segments g = segments_of(q, Pass::backward);
  const std::int64_t heads = q[0] * q[2], T = q[1], D = q[3];
  const bool general = is_general(attributes, inputs);
  const bool initial = inputs[kInitialState].given, final = attributes.flag("final_state");
  if (g.count > 1 || initial || final) p.reversed = w.take_slots(heads * (g.count + (initial ? 1 : 0)), D, false);
  if (final) p.dshift = w.take<float>(heads * 2 * D), p.no_gradient = w.take<bf16>(D);
  p.shifts = w.take<float>(heads * g.chunks * 2 * D);
  p.delta = w.take<float>(heads * T);
  p.denominators = w.take<float>((general ? 2 : 1) * heads * T);
  p.redo = w.take<unsigned long long>(heads * g.chunks);
  for (float*& part : p.dweight) part = w.take<float>(heads * g.count * D * D);
  for (int side = 0; side < 2; ++side)
    if (inputs[std::size_t(side ? kBiasK : kBiasQ)].given) p.dbias[side] = w.take<float>(heads * g.count * D);
  p.walks = int(heads * g.count);
  p.handover = w.take<int>(p.walks);
  if (inputs[kK].shape[2] == q[2]) return;
  p.dk = take_group_part(w, q);
  p.dv = take_group_part(w, q);
}

struct WeightArguments {
  const float* parts[2];    // (B, H, segments, matrix) of queries and keys
  Target<bf16> dweight[2];  // (H, matrix)
  unsigned segments[2], batch, heads, matrix;
};

/// Sums the parts of all batch elements and segments in order, one thread an element; the second half of the blocks is that of
/// keys.
__global__ void linear_attention_backward_weight_kernel(const WeightArguments p) {
  const unsigned half = gridDim.x / 2, side = blockIdx.x / half;
  const unsigned i = blockIdx.x % half * 256 + threadIdx.x, h = i / p.matrix;
  wait_for_kernels();
  if (i >= p.heads * p.matrix || !p.dweight[side]) return;
  const unsigned segments = p.segments[side];
  const float* part = p.parts[side] + std::int64_t(h) * segments * p.matrix + i % p.matrix;
  const std::int64_t other_heads = std::int64_t(p.heads - 1) * segments * p.matrix;
  float sum = 0;
  unsigned segment = 0;
  constexpr unsigned kTogether = 16;
  for (unsigned left = p.batch * segments; left > 0; left -= left < kTogether ? left : kTogether) {
    // the last ones are on their way together, too
    float value[kTogether];
#pragma unroll
    for (unsigned i = 0; i < kTogether; ++i) {
      value[i] = i < left ? *part : 0.0f;
      part += p.matrix;
      if (++segment == segments) segment = 0, part += other_heads;
    }
#pragma unroll
    for (unsigned i = 0; i < kTogether; ++i) sum += value[i];
  }
  p.dweight[side].put(i, sum);
}

/// Gradients of key heads from those of the query heads that share them.
struct GroupArguments {
  const bf16* parts[2];      // (B, T, H, D) of k and v
  HeadsTarget<bf16> sum[2];  // (B, T, H / group, D)
  std::int64_t vectors, T;   // vectors: B T H / group
  int heads, group, D;       // heads: of keys
};

/// One thread for 8 elements of a key head, and of k or v.
__global__ void linear_attention_backward_group_kernel(const GroupArguments p) {
  const std::int64_t pieces = p.D / 8, i = std::int64_t(blockIdx.x) * 256 + threadIdx.x;
  const int side = i >= p.vectors * pieces;
  const std::int64_t at = i - side * p.vectors * pieces, vector = quotient(at, pieces), piece = at - vector * pieces;
  wait_for_kernels();
  if (vector >= p.vectors || !p.sum[side]) return;
  const std::int64_t token = quotient(vector, p.heads), h = vector - token * p.heads, b = quotient(token, p.T);
  float sum[8] = {};
  for (int g = 0; g < p.group; ++g) {
    float part[8];
    load_packet<8>(p.parts[side] + ((token * p.heads + h) * p.group + g) * p.D + piece * 8, part);
#pragma unroll
    for (int e = 0; e < 8; ++e) sum[e] += part[e];
  }
  const std::int64_t to = p.sum[side].at(b, token - b * p.T, h) + piece * 8;
  for (int e = 0; e < 8; ++e) p.sum[side].put(to + e, sum[e]);
}

}  // namespace

void write_zeros(const Call& c) {
  for (std::size_t i = 0; i < c.dx.size(); ++i) {
    const Ref& x = c.dx[i];
    if (!x || c.modes[i] != Mode::write) continue;
    const std::size_t size = std::size_t(size_of(x.dtype));
    const std::size_t pitch = std::size_t(x.stride) * size, width = std::size_t(x.columns) * size;
    const bool whole = x.columns == x.stride || x.columns == x.size();
    check(whole ? cudaMemsetAsync(x.data, 0, std::size_t(x.size()) * size, stream())
                : cudaMemset2DAsync(x.data, pitch, 0, width, std::size_t(x.size() / x.columns), stream()),
          "linear_attention");
  }
  note_launch(false);
}

void sum_parts(const Call& c, Input of_query_map, Input of_key_map, std::int64_t matrix, const float* query_parts,
               std::int64_t query_segments, const float* key_parts, std::int64_t key_segments, bool joined) {
  const Shape& q = c.inputs[kQ].shape;
  const Target<bf16> dweight[2] = {query_parts ? Target<bf16>(c, of_query_map) : Target<bf16>(),
                                   key_parts ? Target<bf16>(c, of_key_map) : Target<bf16>()};
  const auto add = [&](const Target<bf16>& of_queries, const Target<bf16>& of_keys) {
    const WeightArguments p{{query_parts, key_parts}, {of_queries, of_keys}, {unsigned(query_segments), unsigned(key_segments)},
                            joined ? 1u : unsigned(q[0]), unsigned(q[2]), unsigned(matrix)};
    launch(linear_attention_backward_weight_kernel, 2 * ((q[2] * matrix + 255) / 256), 256, 0, p);
  };
  if (!dweight[0] && !dweight[1]) return;
  if (dweight[0].data != dweight[1].data) return add(dweight[0], dweight[1]);
  add(dweight[0], {});  // one tensor is both maps: one after the other
  add({}, dweight[1]);
}

void sum_weight_parts(const Call& c, const float* query_parts, std::int64_t query_segments, const float* key_parts, std::int64_t key_segments,
                      bool joined) {
  const std::int64_t D = c.inputs[kQ].shape[3];
  sum_parts(c, kWeightQ, kWeightK, D * D, query_parts, query_segments, key_parts, key_segments, joined);
}

HeadsTarget<bf16> take_group_part(Workspace& w, const Shape& q) {
  return HeadsTarget<bf16>("linear_attention", {w.take<bf16>(q.size()), q, Dtype::bf16, q.size(), q.size(), true}, false);
}

void sum_groups(const Call& c, const HeadsTarget<bf16>& dk, const HeadsTarget<bf16>& dv) {
  const Shape &q = c.inputs[kQ].shape, &k = c.inputs[kK].shape;
  if (k[2] == q[2] || (!c.dx[kK] && !c.dx[kV])) return;
  const auto target = [&](int i) { return HeadsTarget<bf16>("linear_attention", c, i); };
  const std::int64_t vectors = k[0] * k[1] * k[2];
  const GroupArguments p{{static_cast<const bf16*>(dk.data), static_cast<const bf16*>(dv.data)}, {target(kK), target(kV)}, vectors, k[1],
                         int(k[2]), int(q[2] / k[2]), int(k[3])};
  launch(linear_attention_backward_group_kernel, (2 * vectors * (k[3] / 8) + 255) / 256, 256, 0, p);
}

std::int64_t backward_workspace(const Attributes& attributes, std::span<const Meta> inputs) {
  if (!attributes.flag("causal")) return bidirectional_backward_workspace(inputs[kQ].shape, inputs[kK].shape[2]);
  Workspace w;
  BackwardArguments p{};
  take(w, p, attributes, inputs);
  return w.used;
}

void backward(const Call& c) {
  const float* const dfinal = c.attributes.flag("final_state") ? c.dy[1].as<const float>() : nullptr;
  if (!c.dy[0] && !dfinal) return write_zeros(c);
  if (!c.attributes.flag("causal")) return bidirectional_backward(c);
  const Shape& q = c.inputs[kQ].shape;
  const std::int64_t B = q[0], D = q[3];
  auto target = [&](int i) { return HeadsTarget<bf16>("linear_attention", c, i); };
  BackwardArguments p{};
  p.s = sequence_of(c, Pass::backward);
  p.o = Heads<bf16>("linear_attention", c.outputs[0]);
  p.saved = c.saved[0].as<const float>();
  p.dq = target(kQ), p.dk = target(kK), p.dv = target(kV);
  Workspace w{static_cast<std::byte*>(c.workspace)};
  take(w, p, c.attributes, c.inputs);
  if (c.dy[0]) {
    p.dy = Heads<bf16>("linear_attention", c.dy[0]);
  } else {  // one row of zeros for all tokens
    check(cudaMemsetAsync(p.no_gradient, 0, std::size_t(D) * sizeof(bf16), stream()), "linear_attention");
    note_launch(false);
    p.dy.data = p.no_gradient;
  }
  p.s.vector = p.s.vector && aligned(p.o) && aligned(p.dy);
  p.s.warpgroups = p.s.warpgroups && p.s.vector;
  if (!p.s.warpgroups) p.handover = nullptr;
  const Kept kept(c);
  p.states = kept.states, p.final_slot = kept.final_slot;
  describe(p.s.map, c.attributes, q, kept.log_sums);
  p.dfinal = dfinal;
  if (c.dx[kInitialState]) p.dinitial = Target<float>(c, kInitialState);
  const bool of_keys = c.dx[kK] || c.dx[kV] || c.dx[kWeightK] || c.dx[kBiasK] || p.dinitial;

  if (of_keys && p.dfinal) begin_reversed(p, B, int(D));
  if (p.handover) {
    warpgroup_backward(p, WarpgroupPass::queries);
    if (of_keys && p.s.segments == 1) warpgroup_backward(p, WarpgroupPass::keys);
  }
  backward_queries(p, B, int(D));
  if (of_keys) backward_keys(p, B, int(D));
  if (p.dinitial) end_reversed(p, B, int(D));
  if (of_keys && p.dfinal) add_shift_gradients(p, B, int(D));
  sum_groups(c, p.dk, p.dv);
  sum_weight_parts(c, p.dweight[0], p.s.segments, p.dweight[1], p.s.segments);
  sum_parts(c, kBiasQ, kBiasK, D, p.dbias[0], p.s.segments, p.dbias[1], p.s.segments);
}

}  // namespace hedgehog::cuda::linear_attention_mma

#include "cuda/linear_attention_large.cuh"

#include "cuda/linear_attention_large_tile.cuh"

namespace hedgehog::cuda::linear_attention_large {
namespace {

using namespace linear_attention_mma;
using linear_attention_large::Arguments;

/// Sums, shifts and marks, of which both passes have some.
Arguments take_sums(Workspace& w, const Shape& q) {
  const std::int64_t D = q[3], slots = q[0] * q[2] * ((q[1] + D - 1) / D), rows = slots * 2 * D;
  Arguments p{};
  p.sums = {w.take<bf16>(rows * D), w.take<float>(rows)};
  p.shifts = {w.take<float>(rows), w.take<float>(rows), w.take<float>(rows)};
  p.redo = w.take<unsigned short>(slots * (D / 16));
  p.any_redo = w.take<int>(1);
  return p;
}
/// With grouped heads, the gradient of v by query head, too.
Arguments take_backward(Workspace& w, const Shape& q, std::int64_t key_heads) {
  Arguments p = take_sums(w, q);
  p.du = take_group_part(w, q);
  p.delta = w.take<float>(q[0] * q[1] * q[2]);
  if (key_heads != q[2]) p.dv = take_group_part(w, q);
  return p;
}

}  // namespace

bool supports(const Attributes& attributes, std::span<const Meta> inputs) {
  if (!suits_tensor_cores(attributes, inputs) || !attributes.flag("causal") || is_general(attributes, inputs) || has_states(attributes, inputs))
    return false;
  const std::int64_t D = inputs[kQ].shape[3];
  return (D == 96 || D == 128) && shared_memory_of(D) <= largest_shared_memory();
}

std::int64_t forward_workspace(const Attributes&, std::span<const Meta> inputs) {
  Workspace w;
  take_sums(w, inputs[kQ].shape);
  return w.used;
}

std::int64_t backward_workspace(const Attributes&, std::span<const Meta> inputs) {
  Workspace w;
  take_backward(w, inputs[kQ].shape, inputs[kK].shape[2]);
  return w.used;
}

void forward(const Call& c) {
  const Shape& q = c.inputs[kQ].shape;
  const std::int64_t B = q[0];
  const int D = int(q[3]);
  Workspace w{static_cast<std::byte*>(c.workspace)};
  Arguments p = take_sums(w, q);
  p.s = sequence_of(c, Pass::forward);
  p.saved = c.saved[0].as<float>();
  p.o = HeadsTarget<bf16>("linear_attention", c.outputs[0], false);
  p.no_state = c.outputs[1].as<float>();
  sum_chunks(p, false, B, D);
  scan_chunks(p, false, B, D);
  attend(p, B, D);
  add_rare_rows(p, Rare::forward, B, D);
}

void backward(const Call& c) {
  if (!c.dy[0]) return write_zeros(c);
  const Shape& q = c.inputs[kQ].shape;
  const std::int64_t B = q[0], key_heads = c.inputs[kK].shape[2];
  const int D = int(q[3]);
  Workspace w{static_cast<std::byte*>(c.workspace)};
  Arguments p = take_backward(w, q, key_heads);
  p.s = sequence_of(c, Pass::backward);
  p.saved = c.saved[0].as<float>();
  p.y = Heads<bf16>("linear_attention", c.outputs[0]);
  p.dy = Heads<bf16>("linear_attention", c.dy[0]);
  p.s.vector = p.s.vector && aligned(p.y) && aligned(p.dy);
  if (key_heads == q[2]) p.dv = HeadsTarget<bf16>("linear_attention", c, kV);

  // parts of dweight lie where the sums were, which nobody reads any more; there are no more of them than chunks
  float* const parts = reinterpret_cast<float*>(p.sums.S);
  const auto products = [&](const KeyHeads& x, const bf16* weight, const HeadsTarget<bf16>& dx, int of_weight) {
    if (!dx && !c.dx[std::size_t(of_weight)]) return;
    const int ranges =
        multiply_weight({x, weight, p.du, dx, c.dx[std::size_t(of_weight)] ? parts : nullptr, q[1], int(q[2]), p.s.vector}, B, D);
    if (of_weight == kWeightQ) sum_weight_parts(c, parts, ranges, nullptr, 0, true);
    else sum_weight_parts(c, nullptr, 0, parts, ranges, true);
  };

  sum_chunks(p, false, B, D);
  scan_chunks(p, false, B, D);
  backward_queries(p, B, D);
  if (c.dx[kQ] || c.dx[kWeightQ]) {
    add_rare_rows(p, Rare::queries, B, D);
    products({p.s.q, 1}, p.s.weight_q, HeadsTarget<bf16>("linear_attention", c, kQ), kWeightQ);
  }
  if (!c.dx[kK] && !c.dx[kV] && !c.dx[kWeightK]) return;
  sum_chunks(p, true, B, D);
  scan_chunks(p, true, B, D);
  backward_keys(p, B, D);
  add_rare_rows(p, Rare::keys, B, D);
  if (key_heads == q[2]) {
    products(p.s.k, p.s.weight_k, HeadsTarget<bf16>("linear_attention", c, kK), kWeightK);
  } else {
    // dk by query head takes the place of du
    products(p.s.k, p.s.weight_k, c.dx[kK] ? p.du : HeadsTarget<bf16>(), kWeightK);
    sum_groups(c, p.du, p.dv);
  }
}

}  // namespace hedgehog::cuda::linear_attention_large

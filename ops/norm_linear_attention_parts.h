#pragma once
#include <algorithm>
#include <array>

#include "core/op.h"

/// norm_linear_attention_step as calls of the two ops that it is made of, on every device. Internal to ops/ and cuda/.
namespace hedgehog::norm_linear_attention_detail {

enum Input : int { kX, kNormWeight, kNormBias, kWeight, kBias, kState, kWeightQ, kWeightK, kBiasQ, kBiasK, kRotary, kInputs };
constexpr int kLinearInputs = kBias + 1;                // the first are norm_linear's
constexpr int kStepInputs = 3 + kInputs - kLinearInputs;  // q, k, v and the others are linear_attention_step's

/// Heads in the columns of the projection: those of queries, of keys, of values.
struct PackedHeads {
  std::int64_t Hq, Hkv, D, columns;

  PackedHeads(const Attributes& a, const Shape& weight) : Hq(a.integer("heads")), Hkv(a.integer("key_heads")), columns(weight.last()) {
    if (Hkv == 0) Hkv = Hq;
    D = columns / (Hq + 2 * Hkv);
  }
  std::int64_t heads(int part) const { return part == 0 ? Hq : Hkv; }
  std::int64_t first_column(int part) const { return D * (part == 0 ? 0 : part == 1 ? Hq : Hq + Hkv); }
};

inline Attributes linear_attributes(const Attributes& a) {
  return {{"norm", a.text("norm")}, {"activation", "none"}, {"transpose_weight", false}, {"eps", a.real("eps")}};
}
inline Attributes step_attributes(const Attributes& a) { return {{"map", a.text("map")}, {"temperature", a.real("temperature")}}; }

inline std::span<const Meta> linear_inputs(std::span<const Meta> in) { return in.first(kLinearInputs); }
inline std::array<Meta, kStepInputs> step_inputs(const PackedHeads& s, std::span<const Meta> in) {
  std::array<Meta, kStepInputs> out;
  const Meta& x = in[kX];
  for (int part = 0; part < 3; ++part) out[std::size_t(part)] = {Shape{x.shape[0], x.shape[1], s.heads(part), s.D}, x.dtype};
  std::copy(in.begin() + kLinearInputs, in.end(), out.begin() + 3);
  return out;
}

/// Bytes of the projection in the workspace; what the two ops need follows.
inline std::int64_t packed_bytes(const Meta& x, const Meta& weight) {
  return (x.shape.rows() * weight.shape.last() * size_of(x.dtype) + 255) / 256 * 256;
}

/// One op after the other.
inline void forward_parts(const Call& c, const Kernel& norm_linear, const Kernel& linear_attention_step) {
  const Ref &x = c.inputs[kX], &weight = c.inputs[kWeight];
  const PackedHeads s(c.attributes, weight.shape);
  const std::int64_t B = x.shape[0], n = x.shape[1], element = size_of(x.dtype), size = B * n * s.columns;
  auto* const block = static_cast<std::byte*>(c.workspace);
  void* const rest = block + packed_bytes({x.shape, x.dtype}, {weight.shape, weight.dtype});
  const Ref packed{block, {B, n, s.columns}, x.dtype, size, size, true};
  const Attributes first = linear_attributes(c.attributes), second = step_attributes(c.attributes);
  norm_linear({.attributes = first, .inputs = c.inputs.first(kLinearInputs), .outputs = {&packed, 1}, .workspace = rest});

  std::array<Ref, kStepInputs> in;
  for (int part = 0; part < 3; ++part)
    in[std::size_t(part)] = {block + s.first_column(part) * element, {B, n, s.heads(part), s.D}, x.dtype, s.heads(part) * s.D, s.columns, true};
  std::copy(c.inputs.begin() + kLinearInputs, c.inputs.end(), in.begin() + 3);
  linear_attention_step({.attributes = second, .inputs = in, .outputs = c.outputs, .workspace = rest});
}

}  // namespace hedgehog::norm_linear_attention_detail

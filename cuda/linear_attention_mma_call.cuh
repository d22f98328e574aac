#pragma once
#include "cuda/linear_attention_mma_tile.cuh"

/// Addresses of a call's tensors, and what of them may be reached 16 bytes at a time.
namespace hedgehog::cuda::linear_attention_mma {

/// Arguments of linear_attention, in order.
enum Input : int { kQ, kK, kV, kWeightQ, kWeightK, kBiasQ, kBiasK, kDocumentStart, kMask, kInitialState };

inline bool aligned(const void* data, std::int64_t batch = 0, std::int64_t token = 0, std::int64_t head = 0) {
  return reinterpret_cast<std::uintptr_t>(data) % 16 == 0 && batch % 8 == 0 && token % 8 == 0 && head % 8 == 0;
}
inline bool aligned(const Heads<bf16>& x) { return aligned(x.data, x.batch, x.token, x.head); }

inline Sequence sequence_of(const Call& c) {
  auto heads = [&](int i) { return Heads<bf16>("linear_attention", c.inputs[std::size_t(i)]); };
  auto weight = [&](int i) { return c.inputs[std::size_t(i)].as<const bf16>(); };
  const Shape& q = c.inputs[kQ].shape;
  Sequence s{heads(kQ), heads(kK), heads(kV), weight(kWeightQ), weight(kWeightK), c.inputs[kDocumentStart].as<const std::int32_t>(),
             q[1], int(q[2]), false};
  s.vector = aligned(s.q) && aligned(s.k) && aligned(s.v) && aligned(s.weight_q) && aligned(s.weight_k);
  return s;
}

inline Target target_of(const Ref& x, bool adds) {
  if (!x) return {};
  const Heads<bf16> rows("linear_attention", x);
  const bool f32 = x.dtype == Dtype::f32;
  return {x.data, rows.batch, rows.token, rows.head, f32, adds, !f32 && !adds && aligned(rows)};
}

}  // namespace hedgehog::cuda::linear_attention_mma

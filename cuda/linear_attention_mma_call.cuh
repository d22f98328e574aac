#pragma once
#include <algorithm>

#include "cuda/linear_attention_mma_state.cuh"
#include "cuda/stream.h"

/// Addresses of a call's tensors, and what of them may be reached 16 bytes at a time.
namespace hedgehog::cuda::linear_attention_mma {

/// Arguments of linear_attention, in order.
enum Input : int { kQ, kK, kV, kWeightQ, kWeightK, kBiasQ, kBiasK, kDocumentStart, kMask, kInitialState };

/// How the chunks of a sequence are shared out to blocks.
struct Segments {
  int chunks, count, length;  // length: chunks a segment
};
/// One segment where batch and heads fill the device; else about `blocks` in all, with their states summed beforehand. From the
/// shape alone, so that the sums have one order.
inline Segments segments_of(const Shape& q, std::int64_t blocks) {
  constexpr std::int64_t kFew = 128, kShortest = 4;
  const std::int64_t heads = q[0] * q[2], chunks = (q[1] + q[3] - 1) / q[3];
  const std::int64_t wanted = heads <= kFew ? std::min(blocks / heads, chunks / kShortest) : 1;
  const std::int64_t length = wanted > 1 ? (chunks + wanted - 1) / wanted : chunks;
  return {int(chunks), int((chunks + length - 1) / length), int(length)};
}
/// Blocks that a pass is cut into: an H100 holds 396 of forward at a time, and 264 of backward, whose last round is fuller with
/// three rounds of half as long walks than with two.
constexpr std::int64_t kForwardBlocks = 384, kBackwardBlocks = 768;

/// Parts of the workspace, each 256-byte aligned; without a base it counts bytes.
struct Workspace {
  std::byte* base = nullptr;
  std::int64_t used = 0;

  template <class T>
  T* take(std::int64_t count) {
    T* const at = base ? reinterpret_cast<T*>(base + used) : nullptr;
    used += (count * std::int64_t(sizeof(T)) + 255) / 256 * 256;
    return at;
  }
  /// Slots for all segments; none for one segment.
  SumSlots take_slots(const Shape& q, const Segments& g) {
    const std::int64_t rows = g.count > 1 ? q[0] * q[2] * g.count * 2 * q[3] : 0;
    return {take<float>(rows * q[3]), take<float>(rows), take<float>(rows), take<float>(rows)};
  }
};

/// Fills the slots with the states before each segment but the first.
void make_states(const Sequence& s, const SumSlots& states, std::int64_t batch, int D);
/// What the keys of each segment alone add, with products of a warpgroup: part of make_states.
void warpgroup_states(const Sequence& s, const SumSlots& states, std::int64_t blocks);

inline Sequence sequence_of(const Call& c, std::int64_t blocks) {
  auto heads = [&](int i) { return Heads<bf16>("linear_attention", c.inputs[std::size_t(i)]); };
  auto weight = [&](int i) { return c.inputs[std::size_t(i)].as<const bf16>(); };
  const Shape& q = c.inputs[kQ].shape;
  const Segments g = segments_of(q, blocks);
  Sequence s{heads(kQ), heads(kK), heads(kV), weight(kWeightQ), weight(kWeightK), c.inputs[kDocumentStart].as<const std::int32_t>(),
             q[1], int(q[2]), false, g.chunks, g.count, g.length};
  s.vector = aligned(s.q) && aligned(s.k) && aligned(s.v) && aligned({s.weight_q, s.weight_k});
  s.warpgroups = s.vector && q[3] == 64 && has_warpgroups();
  return s;
}

}  // namespace hedgehog::cuda::linear_attention_mma

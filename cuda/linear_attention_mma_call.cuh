#pragma once
#include <algorithm>
#include <span>

#include "cuda/linear_attention_mma_state.cuh"
#include "cuda/stream.h"
#include "ops/linear_attention_sizes.h"

/// Addresses of a call's tensors, and what of them may be reached 16 bytes at a time.
namespace hedgehog::cuda::linear_attention_mma {

using linear_attention_detail::Input;
using enum linear_attention_detail::Input;

/// How the chunks of a sequence are shared out to blocks.
struct Segments {
  int chunks, count, length;  // length: chunks a segment
};
/// Segments that leave the device idle least, if `held` blocks run at a time, which take as long as the longest of them: a walk costs
/// its chunks and `ends` more, segments at all cost `sums` chunks for what is made beforehand. From the shape alone, so that sums have
/// one order.
inline Segments cut_walks(const Shape& q, std::int64_t held, std::int64_t ends, std::int64_t sums) {
  constexpr std::int64_t kShortest = 4, kRounds = 4;
  const std::int64_t heads = q[0] * q[2], chunks = (q[1] + q[3] - 1) / q[3];
  Segments best{int(chunks), 1, int(chunks)};
  std::int64_t least = 0;
  for (std::int64_t wanted = 1; wanted == 1 || (wanted <= chunks / kShortest && wanted * heads <= kRounds * held); ++wanted) {
    const std::int64_t length = (chunks + wanted - 1) / wanted, count = (chunks + length - 1) / length;
    const std::int64_t cost = (heads * count + held - 1) / held * (length + ends) + (count > 1 ? sums : 0);
    if (wanted == 1 || cost < least) least = cost, best = {int(chunks), int(count), int(length)};
  }
  return best;
}
enum class Pass : int { forward, backward };
/// Segments of causal walks; an H100 holds 2 to 8 blocks a multiprocessor. Measured: cuda/README.md.
inline Segments segments_of(const Shape& q, Pass pass) {
  const bool wide = q[3] == 64;
  return cut_walks(q, 132 * (pass == Pass::forward ? (wide ? 3 : 8) : (wide ? 2 : 6)), 1, 12);
}

/// Whether features of a token are normalised, and whether those of both signs together.
inline bool is_joint(const Attributes& attributes) { return attributes.text("map") == "hedgehog-joint"; }
inline bool is_normalised(const Attributes& attributes) { return attributes.text("map") == "hedgehog-softmax" || is_joint(attributes); }

/// Whether a call needs more than the plain map with weights and without biases; of its tensors or their descriptions.
template <class Operand>
bool is_general(const Attributes& attributes, std::span<const Operand> inputs) {
  return attributes.text("map") != "hedgehog" || !inputs[kWeightQ].given || inputs[kBiasQ].given || inputs[kBiasK].given;
}

/// Whether a call begins from a state or gives one.
template <class Operand>
bool has_states(const Attributes& attributes, std::span<const Operand> inputs) {
  return attributes.flag("final_state") || inputs[kInitialState].given;
}

/// What the kernels on tensor cores ask of a call, whatever its heads and map: bf16, heads of one width throughout, chunk 0 and no mask.
inline bool suits_tensor_cores(const Attributes& attributes, std::span<const Meta> inputs) {
  if (attributes.integer("chunk") != 0 || inputs[kQ].dtype != Dtype::bf16) return false;
  for (int i : {kWeightQ, kWeightK, kBiasQ, kBiasK})
    if (inputs[std::size_t(i)].given && inputs[std::size_t(i)].dtype != Dtype::bf16) return false;
  if (inputs[kMask].given) return false;
  const std::int64_t D = inputs[kQ].shape[3];
  return inputs[kV].shape[3] == D && (!inputs[kWeightQ].given || inputs[kWeightQ].shape[2] == D);
}

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
  /// `slots` of sums in heads of D, of 2 D features or so many, with shifts or without.
  SumSlots take_slots(std::int64_t slots, std::int64_t D, bool shifts, std::int64_t features = 0) {
    const std::int64_t rows = slots * (features ? features : 2 * D);
    return {take<float>(rows * D), take<float>(rows), shifts ? take<float>(rows) : nullptr};
  }
  /// Room for the sums that normalise features, if the map does; "hedgehog-joint" has none of queries.
  float* take_log_sums(const Attributes& attributes, const Shape& q) {
    return is_normalised(attributes) ? take<float>((is_joint(attributes) ? 2 : 4) * q[0] * q[1] * q[2]) : nullptr;
  }
};

/// Slots of the states before segments, by Sequence::state_slot.
inline std::int64_t state_slots(const Shape& q, const Segments& g, bool initial) { return q[0] * q[2] * (g.count - (initial ? 0 : 1)); }
/// What forward keeps for backward, if anything: states before each segment of backward, after those of all heads the final ones, and the
/// sums that normalise features.
struct Kept {
  Segments segments;
  std::int64_t final_slot = 0;  // the first of the final states
  SumSlots states;
  float* log_sums = nullptr;
  std::int64_t bytes = 0;

  /// Without a base it counts bytes.
  template <class Operand>
  Kept(const Attributes& attributes, std::span<const Operand> inputs, std::byte* base = nullptr)
      : segments(segments_of(inputs[kQ].shape, Pass::backward)) {
    if (!attributes.flag("causal")) return;
    const Shape& q = inputs[kQ].shape;
    Workspace w{base};
    final_slot = state_slots(q, segments, inputs[kInitialState].given);
    states = w.take_slots(final_slot + (attributes.flag("final_state") ? q[0] * q[2] : 0), q[3], true);
    log_sums = w.take_log_sums(attributes, q);
    bytes = w.used;
  }
  explicit Kept(const Call& c) : Kept(c.attributes, c.inputs, c.saved.size() > 1 ? c.saved[1].as<std::byte>() : nullptr) {}
};

/// Names the map of a call; log_sums: where its sums are, if it has some.
inline void describe(GeneralMap& map, const Attributes& attributes, const Shape& q, float* log_sums) {
  map.count = q[0] * q[1] * q[2], map.T = q[1];
  map.joint = is_joint(attributes), map.one_sign = attributes.text("map") == "exp";
  if (map.one_sign) map.scale = float(attributes.real("temperature")) * kLog2e;
  if (map.joint) map.scale = 2 * kLog2e;
  map.log_sums = log_sums;
}
/// Fills s.map.log_sums.
void make_log_sums(const Sequence& s, std::int64_t batch, int D);
/// Fills the slots with the states before each segment. initial_state (B, H, F, D + 2), or null: nothing before the first.
void make_states(const Sequence& s, const SumSlots& states, float* local, const float* initial_state, std::int64_t batch, int D);
/// Turns what each segment alone adds into the states before each segment, in slots of so many features. local: (slots, F) shifts of
/// what each adds, or null where features have no logarithm.
void scan_states(const Sequence& s, const SumSlots& states, const float* local, const float* initial_state, std::int64_t batch, int D,
                 int features);
/// What the keys of each segment alone add, with products of a warpgroup: part of make_states.
void warpgroup_states(const Sequence& s, const SumSlots& states, float* local, std::int64_t blocks);

/// Calls f(general, turned) with the compile-time form of the kernels that a call needs.
template <class F>
void with_form(const Sequence& s, const F& f) {
  if (s.map.general && s.rotary) throw Error("[linear_attention] no kernel turns queries of a general map");  // see applies_rotary
  if (s.map.general) return f(std::true_type{}, std::false_type{});
  s.rotary ? f(std::false_type{}, std::true_type{}) : f(std::false_type{}, std::false_type{});
}

inline Sequence sequence_of(const Call& c, Pass pass) {
  const Shape& q = c.inputs[kQ].shape;
  const std::int64_t q_heads = q[2];
  auto heads = [&](int i) { return Heads<bf16>("linear_attention", c.inputs[std::size_t(i)]); };
  auto key_heads = [&](int i) { return KeyHeads{heads(i), unsigned(q_heads / c.inputs[std::size_t(i)].shape[2])}; };
  auto weight = [&](int i) { return c.inputs[std::size_t(i)].as<const bf16>(); };
  const Segments g = segments_of(q, pass);
  Sequence s{heads(kQ), key_heads(kK), key_heads(kV), weight(kWeightQ), weight(kWeightK), c.inputs[kDocumentStart].as<const std::int32_t>(),
             q[1], int(q[2]), false, c.inputs[kInitialState].given, g.chunks, g.count, g.length};
  s.vector = aligned(s.q) && aligned(s.k) && aligned(s.v) && aligned({s.weight_q, s.weight_k, c.inputs[kRotary].data});
  s.map.general = is_general(c.attributes, c.inputs);
  s.map.bias[kOfQueries] = weight(kBiasQ), s.map.bias[kOfKeys] = weight(kBiasK);
  s.rotary = c.inputs[kRotary].as<const float>();
  s.warpgroups = s.vector && q[3] == 64 && has_warpgroups();
  return s;
}

}  // namespace hedgehog::cuda::linear_attention_mma

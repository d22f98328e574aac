#pragma once
#include <algorithm>

#include "core/op.h"
#include "ops/feature_map_rows.h"
#include "ops/worker_tasks.h"

/// What the kernels of linear attention share, on every device. Internal to ops/ and cuda/.
namespace hedgehog::linear_attention_detail {

enum Input : int { kQ, kK, kV, kWeightQ, kWeightK, kBiasQ, kBiasK, kDocumentStart, kMask, kInitialState, kRotary, kInputs };

struct Sizes {
  std::int64_t B, T, Hq, Hkv, D, Dv, width, F, chunk;
  FeatureMap map;
  bool causal, final_state;

  constexpr std::int64_t group() const { return Hq / Hkv; }
  constexpr std::int64_t tasks() const { return B * Hkv; }  // one batch element and key head: its query heads share dk and dv
  constexpr std::int64_t chunks() const { return (T + chunk - 1) / chunk; }
  Shape state_shape() const { return Shape{B, Hq, F, Dv + 2}; }
};

/// Extents alone; chunk 1.
inline Sizes extents_of(const FeatureMap& map, const Shape& q, const Shape& k, const Shape& v, const Shape* weight) {
  const std::int64_t width = weight ? (*weight)[2] : q[3];
  return {q[0], q[1], q[2], k[2], q[3], v[3], width, map.features(width), 1, map, true, false};
}

inline Sizes sizes_of(const Attributes& a, const Shape& q, const Shape& k, const Shape& v, const Shape* weight) {
  Sizes s = extents_of(feature_map_of("linear_attention", a), q, k, v, weight);
  s.causal = a.flag("causal");
  s.final_state = a.flag("final_state");
  // one quadratic chunk is cheaper than two with a state between them up to here
  constexpr std::int64_t kWhole = 128, kDefaultChunk = 64;
  s.chunk = a.integer("chunk");
  if (s.chunk == 0) s.chunk = s.causal && s.T <= kWhole ? kWhole : kDefaultChunk;
  s.chunk = std::min(s.chunk, s.T);
  return s;
}

inline Sizes sizes_of(const Call& c) {
  return sizes_of(c.attributes, c.inputs[kQ].shape, c.inputs[kK].shape, c.inputs[kV].shape,
                  c.inputs[kWeightQ].given ? &c.inputs[kWeightQ].shape : nullptr);
}

/// Arguments of linear_attention_step, and its extents; T counts the tokens of the call.
enum StepInput : int { kStepQ, kStepK, kStepV, kState, kStepWeightQ, kStepWeightK, kStepBiasQ, kStepBiasK, kStepRotary };

template <class In>
Sizes step_sizes(const Attributes& a, const In& in, const char* op = "linear_attention_step") {
  return extents_of(feature_map_of(op, a), in[kStepQ].shape, in[kStepK].shape, in[kStepV].shape,
                    in[kStepWeightQ].given ? &in[kStepWeightQ].shape : nullptr);
}

/// `infer` of linear_attention_step for an op that ends with one, in whose name it raises errors.
Layout infer_step(const Op& op, const Attributes& attributes, std::span<const Meta> inputs);

/// Running sums of keys: row r holds exp(-shift_r) times the true sums.
template <class T>
struct State {
  T *S = nullptr, *z = nullptr, *shift = nullptr;  // (F, Dv), (F), (F)
  bool filled = false;                             // some key is in it

  void take(Carver& carver, const Sizes& s) {
    S = carver.take<T>(s.F * s.Dv);
    z = carver.take<T>(s.F);
    shift = carver.take<T>(s.F);
  }
};

/// One query head of one batch element: addresses of its data.
template <class T>
struct Head {
  const T *weight_q = nullptr, *weight_k = nullptr, *bias_q = nullptr, *bias_k = nullptr;
  std::int64_t b, h, hkv;
  const std::int32_t *mask = nullptr, *document_start = nullptr;  // (T)
  const T* rotary = nullptr;                                      // (T, D)

  Head(const Call& c, const Sizes& s, std::int64_t batch, std::int64_t head) : b(batch), h(head), hkv(head / s.group()) {
    auto part = [&](Input i, std::int64_t size) { return c.inputs[i] ? c.inputs[i].template as<T>() + head * size : nullptr; };
    weight_q = part(kWeightQ, s.D * s.width);
    weight_k = part(kWeightK, s.D * s.width);
    bias_q = part(kBiasQ, s.width);
    bias_k = part(kBiasK, s.width);
    rotary = c.inputs[kRotary].as<T>();
    if (c.inputs[kMask]) mask = c.inputs[kMask].as<std::int32_t>() + batch * s.T;
    if (c.inputs[kDocumentStart]) document_start = c.inputs[kDocumentStart].as<std::int32_t>() + batch * s.T;
  }
  bool visible(std::int64_t t) const { return !mask || mask[t] != 0; }
};

void forward_cpu(const Call& c);
void backward_cpu(const Call& c);
std::int64_t forward_bytes(const Sizes& s, Dtype dtype);
std::int64_t backward_bytes(const Sizes& s, Dtype dtype);

/// Which path of the normaliser a wrong composition forgets; `mask_first` masks k before the map.
enum class Lost { nothing, normaliser_to_k, normaliser_to_q, mask_first };
Tensors composed(const Attributes& a, const Tensors& in, Lost lost);

/// One more of linear_attention_slow_calls().
void count_slow_call();

}  // namespace hedgehog::linear_attention_detail

#include "ops/hybrid_attention.h"

#include "ops/attention_check.h"
#include "ops/attention_window.h"
#include "ops/elementwise.h"
#include "ops/feature_map.h"
#include "ops/hybrid_attention_parts.h"
#include "ops/matmul.h"
#include "ops/reduce.h"
#include "ops/shape.h"

namespace hedgehog {

extern const Op kHybridAttention, kLinearAttention, kSoftmaxAttention;

namespace hybrid_attention_detail {
namespace {

Layout infer(const Attributes& attributes, std::span<const Meta> in) {
  const Op& op = kHybridAttention;
  const Meta& q = in[kQ];
  check_attention_heads(op, q, in[kK], in[kV]);
  check_attention_maps(op, attributes, q, in.subspan(kWeightQ, 4));
  check_token_numbers(op, "document_start", in[kDocumentStart], q);
  if (in[kLogFactor].given) {
    check_dtype(op, "log_factor", in[kLogFactor], accumulator_of(q.dtype), q.dtype == Dtype::bf16 ? nullptr : "q");
    check_shape(op, "log_factor", in[kLogFactor], Shape{q.shape[2]}, "(Hq)", "q", q);
  }
  const double scale = attributes.real("scale");
  if (!(scale >= 0)) fail(op, fmt::format("scale must be positive, or 0 for 1 / sqrt(D), but is {}", scale));
  if (attributes.integer("window") < 1)
    fail(op, fmt::format("window must be at least 1, each token itself, but is {}; linear_attention has no window", attributes.integer("window")));
  if (attributes.integer("chunk") < 0) fail(op, fmt::format("chunk must be positive, or 0 to let the op choose, but is {}", attributes.integer("chunk")));
  const Sizes s = sizes_of(attributes, in);
  Layout layout;
  layout.outputs = {{Shape{s.B, s.T, s.Hq, s.Dv}, q.dtype}};
  layout.saved = {{Shape{s.B, s.T, s.Hq}, s.accumulator()}};
  if (q.dtype != Dtype::bf16) {
    layout.forward_workspace = bytes(Pass::forward, cpu(), attributes, in);
    layout.backward_workspace = bytes(Pass::backward, cpu(), attributes, in);
  }
  return layout;
}

std::pair<Work, Work> cost(const Attributes& a, std::span<const Meta> in, std::span<const Meta> out) {
  const Sizes s = sizes_of(a, in);
  const std::vector<Meta> near{in[kQ], in[kK], in[kV], in[kDocumentStart], Meta{{}, Dtype::f32, false}};
  auto work = kSoftmaxAttention.cost({{"causal", true}, {"scale", s.scale}, {"window", s.window}}, near, out);
  if (s.behind == 0) return work;
  const auto linear = kLinearAttention.cost(linear_attributes(a), linear_inputs(s, in), out);
  const double merged = 6.0 * double(s.rows() * s.Dv);
  return {{work.first.flops + linear.first.flops + merged}, {work.second.flops + linear.second.flops + merged}};
}

/// What a wrong composition forgets.
enum class Lost { nothing, normaliser, maximum };

Tensor heads_first(const Tensor& x) { return permute(x, {0, 2, 1, 3}); }

/// Weights (B, H, T, T) of pairs before the window, as if every pair were, and the exponent (B, H, T, 1) that belongs to each row.
struct LinearWeights {
  Tensor weights, exponent;
};
LinearWeights linear_weights(const Attributes& a, const Tensors& in, const Sizes& s) {
  const std::string& map = a.text("map");
  const auto features = [&](const Tensor& x, int side) {
    return heads_first(feature_map(x, in[std::size_t(kWeightQ + side)], in[std::size_t(kBiasQ + side)], map, a.real("temperature"), s.logarithmic));
  };
  const Tensor q = features(in[kQ], 0), k = features(repeat_heads(in[kK], s.group()), 1);
  if (!s.logarithmic) return {matmul(q, k, false, true), {}};
  const Tensor c = detach(max(k, 2, true));  // (B, H, 1, F): any shift a feature is exact
  const Tensor m = detach(max(q + c, 3, true));
  return {matmul(exp(q + c - m), exp(k - c), false, true), m};
}

/// 1 where pairs (1 or B, 1, T, T) are of one document.
Tensor same_document(const Tensors& in, const Sizes& s, Dtype dtype) {
  const Tensor start = cast(in[kDocumentStart], dtype);
  return relu(1.0 - square(reshape(start, Shape{s.B, 1, s.T, 1}) - reshape(start, Shape{s.B, 1, 1, s.T})));
}

Tensors composed(const Attributes& a, const Tensors& given, Lost lost) {
  Tensors in = given;
  in.resize(kInputs);
  if (in[kQ].dtype() == Dtype::bf16) {
    for (Tensor& x : in)
      if (x && x.dtype() == Dtype::bf16) x = cast(x, Dtype::f32);
    return {cast(composed(a, in, lost)[0], Dtype::bf16)};
  }
  std::vector<Meta> metas;
  for (const Tensor& x : in) metas.push_back(x ? Meta{x.shape(), x.dtype(), true} : Meta{{}, Dtype::f32, false});
  const Sizes s = sizes_of(a, metas);
  const Dtype dtype = in[kQ].dtype();
  const Tensor v = heads_first(repeat_heads(in[kV], s.group()));
  const Tensor near = reshape(in_window(s.T, s.window, dtype), Shape{1, 1, s.T, s.T});
  Tensor seen;
  if (in[kDocumentStart]) seen = same_document(in, s, dtype);
  constexpr double kHidden = 1e30;
  const Tensor in_reach = seen ? near * seen : near;
  Tensor scores = scale(matmul(heads_first(in[kQ]), heads_first(repeat_heads(in[kK], s.group())), false, true), s.scale);
  scores = causal_mask(scores * in_reach + kHidden * (in_reach - 1.0), -kHidden);
  if (s.maximum) {
    const Tensor c = max(scores, 3, true);
    scores = scores - (lost == Lost::maximum ? detach(c) : c);
  }
  if (in[kLogFactor]) scores = scores + reshape(in[kLogFactor], Shape{1, s.Hq, 1, 1});
  Tensor base = detach(max(scores, 3, true));  // (B, H, T, 1), so that exponentials stay in range; it cancels
  LinearWeights linear;
  if (s.behind > 0) {
    linear = linear_weights(a, in, s);
    if (linear.exponent) base = max(concat({base, linear.exponent}, 3), 3, true);
    else base = relu(base);
    linear.weights = causal_mask(linear.weights, 0) * exp((linear.exponent ? linear.exponent : scale(base, 0)) - base) * (1.0 - near);
    if (seen) linear.weights = linear.weights * seen;
  }
  Tensor weights = causal_mask(exp(scores - base), 0) * in_reach;
  if (linear.weights) weights = weights + linear.weights;
  const Tensor normaliser = sum(weights, 3, true);
  return {heads_first(matmul(weights, v) / (lost == Lost::normaliser ? detach(normaliser) : normaliser))};
}

struct SampleShape {
  std::int64_t B = 2, T = 13, Hq = 4, Hkv = 2, D = 3, Dv = 5, width = 6;
};
Sample sample(std::string label, Attributes attributes, const SampleShape& s, bool weights = true, bool bias = false, bool factor = true,
              bool has_documents = false, bool reaches = true) {
  const std::string map = attributes.contains("map") ? attributes.text("map") : "hedgehog";
  // where no row reaches beyond its window, neither maps nor the factor matter
  const auto optional = [&](bool given, const SampleInput& in) { return !given ? omitted() : reaches ? in : constant_input(in); };
  const std::int64_t width = weights ? s.width : s.D;
  const SampleInput weight = normal({s.Hq, s.D, width}, 0.5), shift = normal({s.Hq, width}, 0.5, map == "relu" ? 1 : 0);
  const auto heads = [&](std::int64_t H) { return map == "identity" ? positive({s.B, s.T, H, s.D}, 0.5) : normal({s.B, s.T, H, s.D}, 0.8); };
  return {std::move(label),
          std::move(attributes),
          {heads(s.Hq), heads(s.Hkv), normal({s.B, s.T, s.Hkv, s.Dv}), optional(weights, weight), optional(weights, weight),
           optional(bias, shift), optional(bias, shift), optional(factor, normal({s.Hq}, 0.5)), optional(has_documents, documents({s.B, s.T}))}};
}

std::vector<Sample> samples() {
  std::vector<Sample> list;
  const SampleShape usual;
  for (const char* map : {"hedgehog", "hedgehog-softmax", "hedgehog-joint", "elu", "relu", "exp", "identity"}) {
    const bool identity = std::string(map) == "identity";
    list.push_back(sample(map, {{"map", map}, {"window", 4}, {"temperature", std::string(map) == "exp" ? 0.75 : 1.0}}, usual, !identity, !identity));
  }
  list.push_back(sample("documents", {{"window", 3}, {"chunk", 4}}, {.B = 3, .T = 19, .Hq = 2, .Hkv = 1}, true, false, true, true));
  list.push_back(sample("no factor", {{"window", 5}, {"scale", 0.3}}, {.T = 17, .Hq = 2, .Hkv = 2}, false, false, false));
  list.push_back(sample("maximum", {{"window", 4}, {"maximum", true}}, usual, true, false, true));
  list.push_back(sample("maximum and documents", {{"window", 2}, {"maximum", true}}, {.T = 23, .Hq = 2}, true, false, false, true));
  list.push_back(sample("window alone", {{"window", 4}, {"linear", false}}, usual, true, false, true, false, false));
  list.push_back(sample("shorter than the window", {{"window", 64}}, {.T = 7}, true, false, true, false, false));
  list.push_back(sample("one behind", {{"window", 6}}, {.B = 3, .T = 7, .Hq = 2, .Hkv = 1}));
  list.push_back(sample("window of one", {{"window", 1}}, {.T = 9, .Hq = 2, .Hkv = 1}));
  list.push_back(sample("several chunks", {{"window", 16}}, {.B = 1, .T = 150, .Hq = 2, .Hkv = 2, .D = 2, .Dv = 3, .width = 2}));
  return list;
}

Fault fault(const char* name, const char* what, Lost lost, const char* only) {
  return {name, what, {}, [lost](const Attributes& a, const Tensors& in) { return composed(a, in, lost); }, only};
}

}  // namespace
}  // namespace hybrid_attention_detail

namespace ha = hybrid_attention_detail;

const Op kHybridAttention{
    .name = "hybrid_attention",
    .arguments = {{"q"}, {"k"}, {"v"}, {"weight_q", true}, {"weight_k", true}, {"bias_q", true}, {"bias_k", true}, {"log_factor", true, true, true},
                  {"document_start", true, false}},
    .results = {"o"},
    .saved_names = {"log_denominator"},
    .attributes = {{"map", "hedgehog"}, {"window", 64}, {"temperature", 1.0}, {"scale", 0.0}, {"maximum", false}, {"linear", true}, {"chunk", 0}},
    .infer = ha::infer,
    .forward = {[](const Call& c) { ha::forward(c, ha::cpu()); }},
    .backward = {[](const Call& c) { ha::backward(c, ha::cpu()); }},
    .reads = {.inputs = (1u << ha::kInputs) - 1, .outputs = bits(0), .saved = bits(0)},
    .strided = bits(ha::kQ, ha::kK, ha::kV),
    .cost = ha::cost,
    .reference = [](const Attributes& a, const Tensors& in) { return ha::composed(a, in, ha::Lost::nothing); },
    .formula_forward = "e = gamma exp(scale q k^T) in the window;  l = phi_q phi_k^T before it;  o = (e v + l v) / (sum e + sum l)",
    .formula_backward = "a = (e + l) / den (do v^T - sum(do o));  window: dscore = a;  before it: as linear_attention;  dlog_factor = sum of a in the window",
    .samples = ha::samples(),
    .faults = {ha::fault("normaliser", "the gradient of the sum that both parts share is forgotten", ha::Lost::normaliser, "hedgehog"),
               ha::fault("maximum", "the largest score is taken for a constant", ha::Lost::maximum, "maximum")},
};

Tensor hybrid_attention(const Tensor& q, const Tensor& k, const Tensor& v, const HybridAttentionOptions& o, SourceLine where) {
  return apply(kHybridAttention,
               {{"map", o.map}, {"window", o.window}, {"temperature", o.temperature}, {"scale", o.scale}, {"maximum", o.maximum},
                {"linear", o.linear}, {"chunk", o.chunk}},
               {q, k, v, o.weight_q, o.weight_k, o.bias_q, o.bias_k, o.log_factor, o.document_start}, where)[0];
}

}  // namespace hedgehog

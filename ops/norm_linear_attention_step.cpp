#include "ops/norm_linear_attention_step.h"

#include <fmt/format.h>

#include "ops/check.h"
#include "ops/linear_attention_sizes.h"
#include "ops/norm_linear.h"
#include "ops/norm_linear_attention_parts.h"
#include "ops/shape.h"

namespace hedgehog {

extern const Op kNormLinear, kLinearAttentionStep, kNormLinearAttentionStep;

namespace {

using namespace norm_linear_attention_detail;

Layout infer(const Attributes& a, std::span<const Meta> in) {
  const Op& op = kNormLinearAttentionStep;
  const Meta &x = in[kX], &weight = in[kWeight];
  check_rank(op, "x", x, 3, "(B, n, C)");
  const Layout linear = infer_norm_linear(op, linear_attributes(a), linear_inputs(in), "C", "(Hq + 2 Hkv) D");
  const std::int64_t heads = a.integer("heads"), key_heads = a.integer("key_heads");
  if (heads < 1) fail(op, fmt::format("heads must be at least 1, but is {}", heads));
  if (key_heads < 0) fail(op, fmt::format("key_heads must be at least 1, or 0 for as many as heads, but is {}", key_heads));
  if (key_heads > 0 && heads % key_heads != 0)
    fail(op, fmt::format("heads must be a multiple of key_heads, but is {} with {}; change one of them", heads, key_heads));
  const PackedHeads s(a, weight.shape);
  if (s.D < 1 || s.D * (s.Hq + 2 * s.Hkv) != s.columns)
    fail(op, fmt::format("weight must be (C, (Hq + 2 Hkv) D) with Hq = {} and Hkv = {}, but its {} columns are no multiple of {}; change heads",
                         s.Hq, s.Hkv, s.columns, s.Hq + 2 * s.Hkv));
  if (in[kRotary].given && s.D % 2 != 0)
    fail(op, fmt::format("D must be even where rotary is given, since features turn in pairs, but weight {} has heads of {}; change heads",
                         weight.shape.text(), s.D));
  Layout layout = linear_attention_detail::infer_step(op, step_attributes(a), step_inputs(s, in));
  layout.forward_workspace = packed_bytes(x, weight) + std::max(linear.forward_workspace, layout.forward_workspace);
  return layout;
}

Tensors composed(const Attributes& a, const Tensors& in) {
  const Shape& x = in[kX].shape();
  const PackedHeads s(a, in[kWeight].shape());
  const Tensor packed = norm_linear(in[kX], in[kNormWeight], in[kNormBias], in[kWeight], in[kBias], {.norm = a.text("norm"), .eps = a.real("eps")});
  const Tensors parts = split(packed, {s.Hq * s.D, s.Hkv * s.D, s.Hkv * s.D});
  auto heads = [&](int part) { return reshape(parts[std::size_t(part)], {x[0], x[1], s.heads(part), s.D}); };
  return {linear_attention_step(heads(0), heads(1), heads(2), in[kState],
                                {.weight_q = in[kWeightQ],
                                 .weight_k = in[kWeightK],
                                 .bias_q = in[kBiasQ],
                                 .bias_k = in[kBiasK],
                                 .map = a.text("map"),
                                 .temperature = a.real("temperature"),
                                 .rotary = in[kRotary]})};
}

std::pair<Work, Work> cost(const Attributes& a, std::span<const Meta> in, std::span<const Meta> out) {
  const PackedHeads s(a, in[kWeight].shape);
  const Meta packed{Shape{in[kX].shape[0], in[kX].shape[1], s.columns}, in[kX].dtype};
  const Work linear = kNormLinear.cost(linear_attributes(a), linear_inputs(in), {&packed, 1}).first;
  const Work step = kLinearAttentionStep.cost(step_attributes(a), step_inputs(s, in), out).first;
  return {Work{linear.flops + step.flops}, Work{}};
}

std::vector<Sample> samples() {
  std::vector<Sample> list;
  list.push_back({"smallest",
                  {{"eps", 0.5}},
                  {normal({1, 1, 1}), normal({1}), normal({1}), normal({1, 3}), normal({3}), positive({1, 1, 2, 3}), omitted(), omitted(),
                   omitted(), omitted(), omitted()}});
  list.push_back({"several tokens",
                  {{"heads", 2}, {"key_heads", 1}},
                  {normal({2, 3, 5}), normal({5}), normal({5}), normal({5, 16}), normal({16}), positive({2, 2, 10, 6}), normal({2, 4, 5}),
                   normal({2, 4, 5}), normal({2, 5}), normal({2, 5}), normal({3, 4})}});
  list.push_back({"another map",
                  {{"heads", 3}, {"norm", "rms"}, {"map", "exp"}, {"temperature", 0.75}},
                  {normal({2, 1, 7}), normal({7}), omitted(), normal({7, 27}), omitted(), positive({2, 3, 6, 5}), normal({3, 3, 6}, 0.5, 1),
                   normal({3, 3, 6}, 0.5, 1), omitted(), omitted(), omitted()}});
  // one token and heads of 64: sizes of which a kernel does all in one launch, of sums of one round and of two
  list.push_back({"heads of 64",
                  {{"heads", 2}, {"key_heads", 1}},
                  {normal({1, 1, 200}, 1, 0.5), normal({200}, 0.5, 1), normal({200}), normal({200, 256}, 0.07), normal({256}),
                   positive({1, 2, 128, 66}), normal({2, 64, 64}, 0.1), normal({2, 64, 64}, 0.1), normal({2, 64}), normal({2, 64}),
                   normal({1, 64})}});
  list.push_back({"heads of 64, wide",
                  {{"norm", "rms"}},
                  {normal({1, 1, 1000}, 2), normal({1000}, 0.5, 1), omitted(), normal({1000, 192}, 0.03), omitted(),
                   positive({1, 1, 128, 66}), normal({1, 64, 64}, 0.1), normal({1, 64, 64}, 0.1), omitted(), omitted(), omitted()}});
  return list;
}

}  // namespace

const Op kNormLinearAttentionStep{
    .name = "norm_linear_attention_step",
    .arguments = {{"x", false, false}, {"norm_weight", false, false, true}, {"norm_bias", true, false, true}, {"weight", false, false},
                  {"bias", true, false}, {"state", false, false, true}, {"weight_q", true, false}, {"weight_k", true, false},
                  {"bias_q", true, false}, {"bias_k", true, false}, {"rotary", true, false, true}},
    .results = {"o"},
    .constant_outputs = bits(0),
    .attributes = {{"heads", 1}, {"key_heads", 0}, {"norm", "layer"}, {"eps", 1e-5}, {"map", "hedgehog"}, {"temperature", 1.0}},
    .infer = infer,
    .forward = {[](const Call& c) { forward_parts(c, kNormLinear.forward.cpu, kLinearAttentionStep.forward.cpu); }},
    .updates = bits(kState),
    .cost = cost,
    .reference = composed,
    .formula_forward = "q, k, v = norm(x) weight + bias;  o = linear_attention_step(q, k, v, state)",
    .samples = samples(),
};

Tensor norm_linear_attention_step(const Tensor& x, const Tensor& norm_weight, const Tensor& norm_bias, const Tensor& weight,
                                  const Tensor& bias, const Tensor& state, const NormLinearAttentionStepOptions& o, SourceLine where) {
  return apply(kNormLinearAttentionStep,
               {{"heads", o.heads},
                {"key_heads", o.key_heads},
                {"norm", o.norm},
                {"eps", o.eps},
                {"map", o.attention.map},
                {"temperature", o.attention.temperature}},
               {x, norm_weight, norm_bias, weight, bias, state, o.attention.weight_q, o.attention.weight_k, o.attention.bias_q,
                o.attention.bias_k, o.attention.rotary},
               where)[0];
}

}  // namespace hedgehog

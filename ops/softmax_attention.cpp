#include "ops/softmax_attention.h"

#include <fmt/format.h>

#include "ops/attention_check.h"
#include "ops/attention_window.h"
#include "ops/elementwise.h"
#include "ops/matmul.h"
#include "ops/reduce.h"
#include "ops/shape.h"
#include "ops/softmax.h"
#include "ops/softmax_attention_sizes.h"

namespace hedgehog {

extern const Op kSoftmaxAttention;

namespace softmax_attention_detail {
namespace {

Layout infer(const Attributes& attributes, std::span<const Meta> in) {
  const Op& op = kSoftmaxAttention;
  const Meta& q = in[kQ];
  check_attention_heads(op, q, in[kK], in[kV]);
  check_token_numbers(op, "document_start", in[kDocumentStart], q);
  check_token_numbers(op, "mask", in[kMask], q);
  const double scale = attributes.real("scale");
  if (!(scale >= 0)) fail(op, fmt::format("scale must be positive, or 0 for 1 / sqrt(D), but is {}", scale));
  check_window(op, attributes.integer("window"), attributes.flag("causal"));
  const Sizes s = sizes_of(attributes, q.shape, in[kK].shape, in[kV].shape);
  Layout layout;
  layout.outputs = {{Shape{s.B, s.T, s.Hq, s.Dv}, q.dtype}};
  layout.saved = {{Shape{s.B, s.T, s.Hq}, accumulator_of(q.dtype)}};
  layout.forward_workspace = forward_bytes(s, q.dtype);
  layout.backward_workspace = backward_bytes(s, q.dtype);
  return layout;
}

std::pair<Work, Work> cost(const Attributes& a, std::span<const Meta> in, std::span<const Meta>) {
  const Sizes s = sizes_of(a, in[kQ].shape, in[kK].shape, in[kV].shape);
  const double w = double(s.window), seen = s.causal ? w - w * (w - 1) / 2 / double(s.T) : double(s.T);  // the first rows see fewer
  const double pairs = double(s.B * s.Hq) * double(s.T) * seen;
  return {{2 * pairs * double(s.D + s.Dv)}, {2 * pairs * double(3 * s.D + 2 * s.Dv)}};
}

/// The composed form. `loses_row_term`: the softmax is differentiated as if its sum were constant.
Tensors composed(const Attributes& a, Tensors in, bool loses_row_term) {
  in.resize(kInputs);
  const Sizes s = sizes_of(a, in[kQ].shape(), in[kK].shape(), in[kV].shape());
  auto heads_first = [](const Tensor& x) { return permute(x, {0, 2, 1, 3}); };
  const Tensor q = heads_first(in[kQ]), k = heads_first(repeat_heads(in[kK], s.group())), v = heads_first(repeat_heads(in[kV], s.group()));
  const Dtype dtype = q.dtype();
  Tensor visible;  // (B, 1, T, T), (B, 1, 1, T) or (1, 1, T, T), 1 where j may be seen from i
  if (in[kDocumentStart]) {
    const Tensor start = cast(in[kDocumentStart], dtype);
    visible = relu(1.0 - square(reshape(start, Shape{s.B, 1, s.T, 1}) - reshape(start, Shape{s.B, 1, 1, s.T})));
  }
  if (in[kMask]) {
    const Tensor mask = reshape(cast(in[kMask], dtype), Shape{s.B, 1, 1, s.T});
    visible = visible ? visible * mask : mask;
  }
  if (s.window < s.T) {
    const Tensor near = reshape(in_window(s.T, s.window, dtype), Shape{1, 1, s.T, s.T});
    visible = visible ? visible * near : near;
  }
  // finite, so that a row without any visible key gives numbers that the second masking turns into 0
  constexpr double kHidden = 1e30;
  Tensor scores = scale(matmul(q, k, false, true), s.scale);
  if (visible) scores = scores * visible + kHidden * (visible - 1.0);
  if (s.causal) scores = causal_mask(scores, -kHidden);
  Tensor p = loses_row_term ? exp(scores - detach(logsumexp(scores, 3, true))) : softmax(scores);
  if (visible) p = p * visible;
  if (s.causal) p = causal_mask(p, 0);
  return {heads_first(matmul(p, v))};
}

Sample sample(std::string label, Attributes attributes, Shape q, std::int64_t Hkv, std::int64_t Dv, bool has_documents = false,
              bool has_mask = false) {
  const Shape tokens{q[0], q[1]};
  return {std::move(label), std::move(attributes),
          {normal(q), normal({q[0], q[1], Hkv, q[3]}), normal({q[0], q[1], Hkv, Dv}), has_documents ? documents(tokens) : omitted(),
           has_mask ? mask(tokens) : omitted()}};
}

std::vector<Sample> samples() {
  std::vector<Sample> list;
  for (bool causal : {true, false}) {
    const std::string suffix = causal ? " causal" : " bidirectional";
    const Attributes a{{"causal", causal}};
    list.push_back(sample("grouped heads" + suffix, a, {2, 7, 6, 4}, 3, 5));
    list.push_back(sample("documents" + suffix, a, {3, 13, 2, 5}, 1, 4, true));
    list.push_back(sample("mask" + suffix, {{"causal", causal}, {"scale", 0.7}}, {2, 11, 3, 4}, 3, 4, false, true));
    list.push_back(sample("documents and mask" + suffix, a, {2, 17, 4, 3}, 2, 5, true, true));
    list.push_back(sample("several tiles" + suffix, a, {1, 67, 2, 3}, 2, 5));
    list.push_back({"one token" + suffix, a,
                    {constant_input(normal({2, 1, 2, 3})), constant_input(normal({2, 1, 1, 3})), normal({2, 1, 1, 4})}});
  }
  list.push_back(sample("window", {{"window", 5}}, {2, 13, 4, 3}, 2, 5));
  list.push_back(sample("window and documents", {{"window", 3}}, {2, 17, 2, 3}, 1, 4, true, true));
  list.push_back(sample("window of several tiles", {{"window", 40}}, {1, 135, 1, 2}, 1, 3));
  // more keys than a tile has columns
  Sample wide = sample("wide", {}, {1, 530, 1, 2}, 1, 1);
  list.push_back(wide);
  return list;
}

}  // namespace
}  // namespace softmax_attention_detail

namespace sa = softmax_attention_detail;

const Op kSoftmaxAttention{
    .name = "softmax_attention",
    .arguments = {{"q"}, {"k"}, {"v"}, {"document_start", true, false}, {"mask", true, false}},
    .results = {"o"},
    .saved_names = {"log_sum_exp"},
    .attributes = {{"causal", true}, {"scale", 0.0}, {"window", 0}},
    .infer = sa::infer,
    .forward = {sa::forward_cpu},
    .backward = {sa::backward_cpu},
    .reads = {.inputs = (1u << sa::kInputs) - 1, .outputs = bits(0), .saved = bits(0)},
    .strided = bits(0, 1, 2),
    .cost = sa::cost,
    .reference = [](const Attributes& a, const Tensors& in) { return sa::composed(a, in, false); },
    .formula_forward = "s = scale q k^T;  p = softmax(s);  o = p v",
    .formula_backward = "ds = p (do v^T - sum(do o));  dq = scale ds k;  dk = scale ds^T q;  dv = p^T do",
    .samples = sa::samples(),
    .faults = {{"softmax row term", "the sum over the row in the gradient of the softmax is forgotten", {},
                [](const Attributes& a, const Tensors& in) { return sa::composed(a, in, true); }, "grouped heads causal"}},
};

Tensor softmax_attention(const Tensor& q, const Tensor& k, const Tensor& v, const SoftmaxAttentionOptions& o, SourceLine where) {
  return apply(kSoftmaxAttention, {{"causal", o.causal}, {"scale", o.scale}, {"window", o.window}}, {q, k, v, o.document_start, o.mask}, where)[0];
}

}  // namespace hedgehog

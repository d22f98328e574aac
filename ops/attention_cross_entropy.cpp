#include "ops/attention_cross_entropy.h"

#include <fmt/format.h>

#include "ops/attention_check.h"
#include "ops/attention_cross_entropy_sizes.h"
#include "ops/elementwise.h"
#include "ops/matmul.h"
#include "ops/reduce.h"
#include "ops/shape.h"
#include "ops/softmax.h"

namespace hedgehog {

extern const Op kAttentionCrossEntropy;

namespace attention_cross_entropy_detail {
namespace {

Layout infer(const Attributes& attributes, std::span<const Meta> in) {
  const Op& op = kAttentionCrossEntropy;
  const Meta &q = in[kQ], &k = in[kK], &features = in[kFeaturesQ];
  check_attention_heads(op, q, k, k);
  check_token_numbers(op, "document_start", in[kDocumentStart], q);
  check_token_numbers(op, "mask", in[kMask], q);
  const double scale = attributes.real("scale");
  if (!(scale >= 0)) fail(op, fmt::format("scale must be positive, or 0 for 1 / sqrt(D), but is {}", scale));
  for (const auto& [name, x] : {std::pair{"features_q", &features}, std::pair{"features_k", &in[kFeaturesK]}}) {
    check_rank(op, name, *x, 4, "(B, T, Hq, F)");
    check_dtype(op, name, *x, accumulator_of(q.dtype), q.dtype == Dtype::bf16 ? nullptr : "q");
    check_shape(op, name, *x, Shape{q.shape[0], q.shape[1], q.shape[2], features.shape[3]}, "(B, T, Hq, F)", "q", q);
  }
  const Sizes s = sizes_of(attributes, in);
  const Meta rows{Shape{s.B, s.T, s.Hq}, accumulator_of(q.dtype)};
  Layout layout;
  layout.outputs = {rows, rows};
  layout.saved = {rows, rows, rows, rows};
  layout.forward_workspace = workspace_bytes(s, q.dtype, false);
  layout.backward_workspace = workspace_bytes(s, q.dtype, true);
  return layout;
}

std::pair<Work, Work> cost(const Attributes& a, std::span<const Meta> in, std::span<const Meta>) {
  const Sizes s = sizes_of(a, in);
  const double pairs = double(s.B * s.Hq) * double(s.T) * (s.causal ? double(s.T + 1) / 2 : double(s.T));
  return {{2 * pairs * double(s.D + s.F)}, {2 * pairs * double(s.D + 3 * s.F)}};
}

Tensor heads_first(const Tensor& x) { return permute(x, {0, 2, 1, 3}); }

/// 1 where key j may be seen from row i, (B, 1, T, T) or (B, 1, 1, T); empty: everywhere.
Tensor visibility(const Tensors& in, const Sizes& s, Dtype dtype) {
  Tensor visible;
  if (in[kDocumentStart]) {
    const Tensor start = cast(in[kDocumentStart], dtype);
    visible = relu(1.0 - square(reshape(start, Shape{s.B, 1, s.T, 1}) - reshape(start, Shape{s.B, 1, 1, s.T})));
  }
  if (!in[kMask]) return visible;
  const Tensor mask = reshape(cast(in[kMask], dtype), Shape{s.B, 1, 1, s.T});
  return visible ? visible * mask : mask;
}

/// ln(phi_q . phi_k) of all pairs.
Tensor log_weights(const Tensor& q, const Tensor& k, bool logarithmic) {
  if (!logarithmic) return log(matmul(q, k, false, true));
  // one shift a token keeps the exponentials in range, and is added again
  const Tensor of_q = detach(max(q, 3, true)), of_k = detach(max(k, 3, true));
  return log(matmul(exp(q - of_q), exp(k - of_k), false, true)) + of_q + permute(of_k, {0, 1, 3, 2});
}

/// `loses_normaliser`: differentiated as if the student's sum over a row were constant.
Tensors composed(const Attributes& a, const Tensors& given, bool loses_normaliser) {
  Tensors in = given;
  in.resize(kInputs);
  const Dtype dtype = in[kFeaturesQ].dtype();
  const Shape &q_shape = in[kQ].shape(), &k_shape = in[kK].shape();
  const double scale_given = a.real("scale");
  const Sizes s{q_shape[0], q_shape[1], q_shape[2], k_shape[2], q_shape[3], in[kFeaturesQ].shape()[3], a.flag("causal"),
                a.flag("logarithmic"), scale_given == 0 ? 1 / std::sqrt(double(q_shape[3])) : scale_given};
  const auto wide = [&](const Tensor& x) { return x.dtype() == dtype ? x : cast(x, dtype); };
  const Tensor visible = visibility(in, s, dtype);
  constexpr double kHidden = 1e30;
  const auto hidden = [&](Tensor x) {
    if (visible) x = x * visible + kHidden * (visible - 1.0);
    return s.causal ? causal_mask(x, -kHidden) : x;
  };
  const auto shown = [&](Tensor x) {
    if (visible) x = x * visible;
    return s.causal ? causal_mask(x, 0) : x;
  };
  const Tensor scores = scale(matmul(heads_first(wide(in[kQ])), heads_first(repeat_heads(wide(in[kK]), s.group())), false, true), s.scale);
  const Tensor log_p = log_softmax(hidden(scores)), p = shown(exp(log_p));
  const Tensor weights = hidden(log_weights(heads_first(in[kFeaturesQ]), heads_first(in[kFeaturesK]), s.logarithmic));
  const Tensor log_a = loses_normaliser ? weights - detach(logsumexp(weights, 3, true)) : log_softmax(weights);
  const auto by_token = [&](const Tensor& x) { return permute(reshape(negate(sum(x, 3, true)), Shape{s.B, s.Hq, s.T}), {0, 2, 1}); };
  return {by_token(p * shown(log_a)), detach(by_token(p * shown(log_p)))};
}

struct SampleShape {
  std::int64_t B = 2, T = 11, Hq = 4, Hkv = 2, D = 3, F = 5;
};

Sample sample(std::string label, Attributes attributes, const SampleShape& s, bool has_documents = false, bool has_mask = false) {
  const bool logarithmic = !attributes.contains("logarithmic") || attributes.flag("logarithmic");
  const Shape features{s.B, s.T, s.Hq, s.F};
  const SampleInput x = logarithmic ? normal(features) : positive(features);
  return {std::move(label), std::move(attributes),
          {normal({s.B, s.T, s.Hq, s.D}), normal({s.B, s.T, s.Hkv, s.D}), x, x, has_documents ? documents({s.B, s.T}) : omitted(),
           has_mask ? mask({s.B, s.T}) : omitted()}};
}

std::vector<Sample> samples() {
  std::vector<Sample> list;
  for (bool causal : {true, false}) {
    const std::string suffix = causal ? " causal" : " bidirectional";
    const Attributes a{{"causal", causal}};
    list.push_back(sample("logarithms" + suffix, a, {}));
    list.push_back(sample("features" + suffix, {{"causal", causal}, {"logarithmic", false}}, {.T = 7, .Hkv = 4}));
    list.push_back(sample("documents" + suffix, a, {.T = 13, .Hkv = 1}, true));
    list.push_back(sample("mask" + suffix, {{"causal", causal}, {"scale", 0.7}}, {.B = 3, .T = 9}, false, true));
    list.push_back(sample("documents and mask" + suffix, a, {.T = 17, .Hq = 2}, true, true));
    list.push_back(sample("several tiles" + suffix, a, {.B = 1, .T = 67, .Hq = 1, .Hkv = 1}));
  }
  list.push_back(sample("smallest", {}, {.B = 1, .T = 4, .Hq = 1, .Hkv = 1, .D = 1, .F = 3}));
  return list;
}

}  // namespace
}  // namespace attention_cross_entropy_detail

namespace ace = attention_cross_entropy_detail;

const Op kAttentionCrossEntropy{
    .name = "attention_cross_entropy",
    .arguments = {{"q", false, false}, {"k", false, false}, {"features_q", false, true, true}, {"features_k", false, true, true},
                  {"document_start", true, false}, {"mask", true, false}},
    .results = {"loss", "entropy"},
    .constant_outputs = bits(1),
    .saved_names = {"largest_score", "score_sum", "largest_log_weight", "weight_sum"},
    .attributes = {{"causal", true}, {"scale", 0.0}, {"logarithmic", true}},
    .infer = ace::infer,
    .forward = {ace::forward_cpu},
    .backward = {ace::backward_cpu},
    .reads = {.inputs = (1u << ace::kInputs) - 1, .saved = bits(0, 1, 2, 3)},
    .strided = bits(ace::kQ, ace::kK),
    .cost = ace::cost,
    .reference = [](const Attributes& a, const Tensors& in) { return ace::composed(a, in, false); },
    .formula_forward = "p = softmax(scale q k^T);  A = phi_q phi_k^T;  a = A / sum_j A;  loss = -sum_j p ln a;  entropy = -sum_j p ln p",
    .formula_backward = "r = dloss (a - p) / A;  dphi_q = r phi_k;  dphi_k = r^T phi_q;  times phi where logarithms are given",
    .samples = ace::samples(),
    .faults = {{"normaliser", "the sum of a row of the student's weights is taken for constant", {},
                [](const Attributes& a, const Tensors& in) { return ace::composed(a, in, true); }, "logarithms causal"}},
};

AttentionCrossEntropyResult attention_cross_entropy(const Tensor& q, const Tensor& k, const Tensor& features_q, const Tensor& features_k,
                                                    const AttentionCrossEntropyOptions& o, SourceLine where) {
  const Tensors results = apply(kAttentionCrossEntropy, {{"causal", o.causal}, {"scale", o.scale}, {"logarithmic", o.logarithmic}},
                                {q, k, features_q, features_k, o.document_start, o.mask}, where);
  return {results[0], results[1]};
}

}  // namespace hedgehog

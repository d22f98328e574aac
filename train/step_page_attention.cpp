#include "train/step_page_attention.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "core/device.h"
#include "core/error.h"
#include "ops/ops.h"
#include "train/analysis.h"
#include "train/page.h"

namespace hedgehog {

namespace {

using Json = nlohmann::ordered_json;

// arguments of linear_attention
enum { kQ, kK, kV, kWeightQ, kWeightK, kBiasQ, kBiasK, kDocumentStart, kMask, kInitialState, kRotary };

/// An argument as a tensor of its own in f64, as it was when the entry ran; of q, k and v the first row of the batch.
Tensor argument(const Stepper& stepper, std::size_t entry, std::size_t index) {
  const Tensor& x = stepper.entries()[entry].inputs.at(index);
  if (!x) return {};
  std::vector<double> values = stepper.trace().value(x, entry);
  Shape shape = x.shape();
  if (index <= kV) {
    shape.set(0, 1);
    values.resize(std::size_t(shape.size()));
  }
  return constant(shape, values, Dtype::f64);
}

/// (1, T, Hkv, D) with one head for each query head.
Tensor for_query_heads(const Tensor& x, std::int64_t heads) {
  const std::int64_t T = x.shape()[1], own = x.shape()[2], D = x.shape()[3], group = heads / own;
  if (group == 1) return x;
  const std::vector<double> from = x.to_vector();
  std::vector<double> all(std::size_t(T * heads * D));
  for (std::int64_t t = 0; t < T; ++t)
    for (std::int64_t h = 0; h < heads; ++h)
      std::copy_n(from.begin() + (t * own + h / group) * D, D, all.begin() + (t * heads + h) * D);
  return constant({1, T, heads, D}, all, Dtype::f64);
}

std::string why_not(const Entry& e) {
  if (!e.attributes.flag("causal")) return "attention that sees both sides has no running state and no triangle of weights";
  if (e.inputs.at(kMask)) return "the weights of masked sequences are not drawn";
  if (e.inputs.at(kInitialState)) return "the sequence goes on from an earlier state, whose tokens have no weights of their own";
  return {};
}

Json measures_json(const WeightMeasures& m) {
  Json json = Json::object();
  for (const MeasureColumn& c : measure_columns()) json[c.title] = chart_number(m.*c.value);
  return json;
}

/// Weights of the leading tokens, 0 where a token is not seen.
Json weights_json(const LayerVectors& vectors, const WeightSource& source, std::int64_t head, std::int64_t shown) {
  const std::int64_t T = vectors.tokens;
  std::vector<double> scores(std::size_t(shown * T)), logarithms(scores.size());
  attention_scores(vectors, head, 0, shown, scores.data());
  HeadWeights(vectors, source, head).rows(0, shown, scores.data(), logarithms.data());
  Json all = Json::array();
  for (std::int64_t i = 0; i < shown; ++i)
    for (std::int64_t j = 0; j < shown; ++j)
      all.push_back(j > i || j < vectors.first_seen(i) ? Json(0) : chart_number(std::exp(logarithms[std::size_t(i * T + j)])));
  return all;
}

Json head_columns(const std::vector<double>& x, std::int64_t heads, std::int64_t columns, std::int64_t head, std::int64_t shown, bool logarithmic) {
  Json all = Json::array();
  for (std::int64_t t = 0; t < shown; ++t)
    for (std::int64_t c = 0; c < columns; ++c) {
      const double v = x[std::size_t((t * heads + head) * columns + c)];
      all.push_back(chart_number(logarithmic ? std::exp(v) : v));
    }
  return all;
}

}  // namespace

Json step_attention(const Stepper& stepper, std::size_t index, std::int64_t numbers) {
  const Entry& e = stepper.entries().at(index);
  if (e.op->name != "linear_attention" || e.backward) return nullptr;
  if (const std::string reason = why_not(e); !reason.empty()) return {{"note", reason}};
  const no_grad guard;
  const OnDevice cpu(cpu_device());
  const std::string& map = e.attributes.text("map");
  const auto given = [&](std::size_t i) { return argument(stepper, index, i); };
  const std::int64_t H = e.inputs[kQ].shape()[2];
  Tensor q = given(kQ), k = for_query_heads(given(kK), H);
  const Tensor v = for_query_heads(given(kV), H), table = given(kRotary);
  if (table) q = rotary(q, table), k = rotary(k, table);
  const bool logarithmic = map.starts_with("hedgehog") || map == "exp";
  const double temperature = e.attributes.real("temperature");
  const Tensor phi_q = feature_map(q, given(kWeightQ), given(kBiasQ), map, temperature, logarithmic);
  const Tensor phi_k = feature_map(k, given(kWeightK), given(kBiasK), map, temperature, logarithmic);
  const std::int64_t T = q.shape()[1], F = phi_k.shape()[3], columns = v.shape()[3];
  LayerVectors vectors{T, H, q.shape()[3], q.to_vector(), k.to_vector(), {}};
  if (const Tensor& start = e.inputs[kDocumentStart])
    for (const double s : stepper.trace().value(start, index)) {
      vectors.document_start.push_back(std::int32_t(s));
      if (std::int64_t(vectors.document_start.size()) == T) break;
    }
  const std::vector<double> features = phi_k.to_vector(), values = v.to_vector();
  const std::vector<WeightSource> sources{
      softmax_weights(), {.name = map, .features = F, .q = phi_q.to_vector(), .k = features, .logarithmic = logarithmic}};
  std::int64_t shown = T;
  while (shown > 1 && H * shown * (2 * shown + F + columns) > numbers) --shown;
  Json heads = Json::array();
  try {
    const auto measures = measure_layer(vectors, sources, {});
    for (std::int64_t h = 0; h < H; ++h)
      heads.push_back({{"softmax", weights_json(vectors, sources[0], h, shown)},
                       {"weights", weights_json(vectors, sources[1], h, shown)},
                       {"phi", head_columns(features, H, F, h, shown, logarithmic)},
                       {"v", head_columns(values, H, columns, h, shown, false)},
                       {"measures", {{"softmax", measures_json(measures[0][std::size_t(h)])}, {"map", measures_json(measures[1][std::size_t(h)])}}}});
  } catch (const Error& error) {
    return {{"note", error.what()}};
  }
  return {{"map", map}, {"batch", e.inputs[kQ].shape()[0]}, {"tokens", T}, {"shown", shown}, {"features", F}, {"columns", columns},
          {"document_start", vectors.document_start}, {"heads", std::move(heads)}};
}

}  // namespace hedgehog

#include "train/step_page_attention.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>

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

/// An argument as a tensor of its own in f64, as it was when the entry ran; or the first row of its batch.
Tensor argument(const Stepper& stepper, std::size_t entry, std::size_t index, bool first_row) {
  const Tensor& x = stepper.entries()[entry].inputs.at(index);
  if (!x) return {};
  std::vector<double> values = stepper.trace().value(x, entry);
  Shape shape = x.shape();
  if (first_row) {
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

/// Queries and keys as the map sees them, of one sequence.
struct Mapped {
  Tensor q, k, v, phi_q, phi_k;  // (1, T, H, …); v may be empty
  std::string map;
  bool logarithmic = false;
  std::vector<std::int32_t> document_start;
};

bool has_logarithm(const std::string& map) { return map.starts_with("hedgehog") || map == "exp"; }

Mapped of_linear_attention(const Stepper& stepper, std::size_t index) {
  const Entry& e = stepper.entries()[index];
  const auto given = [&](std::size_t i) { return argument(stepper, index, i, i <= kV); };
  const std::int64_t H = e.inputs[kQ].shape()[2];
  Mapped m{given(kQ), for_query_heads(given(kK), H), for_query_heads(given(kV), H), {}, {}, e.attributes.text("map"), false, {}};
  if (const Tensor table = given(kRotary)) m.q = rotary(m.q, table), m.k = rotary(m.k, table);
  m.logarithmic = has_logarithm(m.map);
  const double temperature = e.attributes.real("temperature");
  m.phi_q = feature_map(m.q, given(kWeightQ), given(kBiasQ), m.map, temperature, m.logarithmic);
  m.phi_k = feature_map(m.k, given(kWeightK), given(kBiasK), m.map, temperature, m.logarithmic);
  if (const Tensor& start = e.inputs[kDocumentStart]) {
    const std::vector<double> all = stepper.trace().value(start, index);
    m.document_start.assign(all.begin(), all.begin() + m.q.shape()[1]);
  }
  return m;
}

bool is_map(const Entry& e) { return e.op->name == "feature_map" && !e.backward; }

/// The entry of the queries' map for that of the keys'.
std::optional<std::size_t> queries_of(const Stepper& stepper, std::size_t keys) {
  const std::vector<Entry>& all = stepper.entries();
  const Entry& k = all[keys];
  std::size_t q = keys, before = 0;
  for (std::size_t i = 0; i < keys; ++i)
    if (is_map(all[i])) q = i, ++before;
  if (q == keys || before % 2 == 0) return {};
  if (all[q].outputs[0].shape() != k.outputs[0].shape() || all[q].attributes.describe() != k.attributes.describe()) return {};
  for (std::size_t i = keys + 1; i < all.size() && !is_map(all[i]); ++i)
    if (all[i].op->name == "causal_mask" && !all[i].backward) return q;
  return {};
}

Mapped of_feature_maps(const Stepper& stepper, std::size_t queries, std::size_t keys) {
  const Attributes& a = stepper.entries()[keys].attributes;
  Mapped m{argument(stepper, queries, 0, true), argument(stepper, keys, 0, true), {}, {}, {}, a.text("map"), has_logarithm(a.text("map")), {}};
  const auto map = [&](const Tensor& x, std::size_t entry) {
    return feature_map(x, argument(stepper, entry, 1, false), argument(stepper, entry, 2, false), m.map, a.real("temperature"), m.logarithmic);
  };
  m.phi_q = map(m.q, queries);
  m.phi_k = map(m.k, keys);
  return m;
}

Json mapped_json(const Mapped& m, std::int64_t numbers) {
  const std::int64_t T = m.q.shape()[1], H = m.q.shape()[2], F = m.phi_k.shape()[3], columns = m.v ? m.v.shape()[3] : 0;
  const LayerVectors vectors{T, H, m.q.shape()[3], m.q.to_vector(), m.k.to_vector(), m.document_start};
  const std::vector<double> features = m.phi_k.to_vector(), values = m.v ? m.v.to_vector() : std::vector<double>{};
  const std::vector<WeightSource> sources{
      softmax_weights(), {.name = m.map, .features = F, .q = m.phi_q.to_vector(), .k = features, .logarithmic = m.logarithmic}};
  std::int64_t shown = T;
  while (shown > 1 && H * shown * (2 * shown + F + columns) > numbers) --shown;
  Json heads = Json::array();
  const auto measures = measure_layer(vectors, sources, {});
  for (std::int64_t h = 0; h < H; ++h)
    heads.push_back({{"softmax", weights_json(vectors, sources[0], h, shown)},
                     {"weights", weights_json(vectors, sources[1], h, shown)},
                     {"phi", head_columns(features, H, F, h, shown, m.logarithmic)},
                     {"v", head_columns(values, H, columns, h, shown, false)},
                     {"measures", {{"softmax", measures_json(measures[0][std::size_t(h)])}, {"map", measures_json(measures[1][std::size_t(h)])}}}});
  return {{"map", m.map},   {"tokens", T},          {"shown", shown},
          {"features", F},  {"columns", columns},   {"document_start", m.document_start},
          {"heads", std::move(heads)}};
}

}  // namespace

Json step_attention(const Stepper& stepper, std::size_t index, std::int64_t numbers) {
  const Entry& e = stepper.entries().at(index);
  const bool whole = e.op->name == "linear_attention" && !e.backward;
  const std::size_t queries = is_map(e) ? queries_of(stepper, index).value_or(index) : index;
  if (!whole && queries == index) return nullptr;
  if (const std::string reason = whole ? why_not(e) : ""; !reason.empty()) return {{"note", reason}};
  const no_grad guard;
  const OnDevice cpu(cpu_device());
  try {
    Json json = mapped_json(whole ? of_linear_attention(stepper, index) : of_feature_maps(stepper, queries, index), numbers);
    json["batch"] = e.inputs[0].shape()[0];
    if (!whole) json["queries"] = queries;
    else if (!e.inputs[kWeightQ] && (e.attributes.text("map") == "identity" || e.attributes.text("map") == "exp")) json["unmapped"] = true;
    return json;
  } catch (const Error& error) {
    // numbers that are not finite have no weights
    return {{"note", error.what()}};
  }
}

}  // namespace hedgehog

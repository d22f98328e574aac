#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "core/random.h"
#include "train/analysis.h"
#include "train/training_step.h"

namespace hedgehog {

namespace {

Tensor tensor_of(const LayerVectors& v, const std::vector<double>& values, Dtype dtype) {
  return constant({1, v.tokens, v.heads, v.width}, values, dtype);
}

WeightSource source_of(std::string name, const Tensor& q, const Tensor& k, bool logarithmic) {
  return {.name = std::move(name), .features = q.shape().last(), .q = q.to_vector(), .k = k.to_vector(), .logarithmic = logarithmic};
}

/// Heads spread over the layers, and over the heads of a layer.
std::vector<std::pair<std::int64_t, std::int64_t>> spread_heads(std::int64_t layers, std::int64_t heads, std::int64_t most) {
  const std::int64_t count = std::min(most, layers * heads);
  std::vector<std::pair<std::int64_t, std::int64_t>> chosen;
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t index = count == 1 ? 0 : i * (layers * heads - 1) / (count - 1);
    chosen.emplace_back(index / heads, index % heads);
  }
  return chosen;
}

constexpr std::int64_t kSide = 128;     // most cells a side of a picture
constexpr std::uint32_t kPoints = 400;  // pairs of a scatter plot

/// Where a picture's pairs lie: a row of each of equal stretches, and any token that it sees.
std::vector<std::pair<std::int64_t, std::int64_t>> drawn_pairs(const LayerVectors& v, std::uint64_t seed) {
  std::vector<std::pair<std::int64_t, std::int64_t>> pairs;
  const Random random{seed, 0x70616972, 0};
  for (std::uint32_t p = 0; p < kPoints; ++p) {
    // more rows from the end, where there are more pairs
    const double place = std::sqrt((p + random.uniform(2 * p)) / kPoints);
    const std::int64_t i = std::min(v.tokens - 1, std::int64_t(place * double(v.tokens))), first = v.first_seen(i);
    pairs.emplace_back(i, first + random.below(2 * p + 1, std::uint32_t(i - first + 1)));
  }
  return pairs;
}

HeadPicture draw(const LayerVectors& v, const WeightSource& source, std::int64_t layer, std::int64_t head,
                 const std::vector<std::pair<std::int64_t, std::int64_t>>& pairs) {
  const std::int64_t T = v.tokens, side = std::min(T, kSide);
  HeadPicture picture{layer, head, source.name, side, std::vector<double>(std::size_t(side * side)), {}, {}};
  std::vector<double> seen(picture.cells.size()), scores(static_cast<std::size_t>(T)), weights(scores.size());
  const HeadWeights all(v, source, head);
  auto next = pairs.begin();
  for (std::int64_t i = 0; i < T; ++i) {
    attention_scores(v, head, i, i + 1, scores.data());
    all.rows(i, i + 1, scores.data(), weights.data());
    for (std::int64_t j = v.first_seen(i); j <= i; ++j) {
      const std::size_t cell = std::size_t(i * side / T * side + j * side / T);
      picture.cells[cell] += std::exp(weights[std::size_t(j)]);
      ++seen[cell];
    }
    for (; next != pairs.end() && next->first == i; ++next) {
      picture.score.push_back(scores[std::size_t(next->second)]);
      picture.log_weight.push_back(weights[std::size_t(next->second)]);
    }
  }
  for (std::size_t cell = 0; cell < seen.size(); ++cell)
    if (seen[cell] > 0) picture.cells[cell] /= seen[cell];
  return picture;
}

}  // namespace

std::vector<LayerVectors> read_vectors(const Gpt& model, const Batch& text, bool documents) {
  const no_grad guard;
  AttentionContext context;
  std::vector<AttentionHeads> heads;
  context.heads = &heads;
  const Tensor tokens = input({1, text.time}, "tokens", Dtype::i32);
  copy_ids(text.tokens, tokens);
  if (documents) {
    context.document_start = input({1, text.time}, "document_start", Dtype::i32);
    copy_ids(text.document_start, context.document_start);
  }
  model.hidden(tokens, context);
  std::vector<LayerVectors> layers;
  for (const AttentionHeads& h : heads) {
    LayerVectors v{text.time, h.q.shape()[2], h.q.shape()[3], h.q.to_vector(), h.k.to_vector(), {}};
    if (documents) v.document_start = text.document_start;
    for (const auto* side : {&v.q, &v.k})
      if (!std::all_of(side->begin(), side->end(), [](double x) { return std::isfinite(x); }))
        throw Error(fmt::format("[analyze] layer {} has queries or keys that are not finite: the model's weights are damaged, or training broke them", layers.size() + 1));
    layers.push_back(std::move(v));
  }
  return layers;
}

std::vector<WeightSource> parameter_free_maps(const LayerVectors& v, std::int64_t layer, std::uint64_t seed) {
  const no_grad guard;
  const Tensor q = tensor_of(v, v.q, Dtype::f64), k = tensor_of(v, v.k, Dtype::f64);
  std::vector<WeightSource> all;
  auto add = [&](const char* name, const char* map, double temperature, bool log) {
    all.push_back(source_of(name, feature_map(q, {}, {}, map, temperature, log), feature_map(k, {}, {}, map, temperature, log), log));
  };
  add("hedgehog", "hedgehog", 1, true);
  add("elu", "elu", 1, false);
  add("relu", "relu", 1, false);
  add("exp(1)", "exp", 1, true);
  add("exp(2)", "exp", 2, true);
  all.push_back(source_of("cosformer", cosformer_features(q, v.tokens), cosformer_features(k, v.tokens), false));
  const std::int64_t draws = performer_feature_count({}, v.width);
  // the draws that a model with this attention and seed has
  const Tensor w = constant({draws, v.width}, performer_projection(draws, v.width, {seed, std::uint32_t(layer), 0x70657266u}), Dtype::f64);
  all.push_back(source_of("performer", performer_features(q, w), performer_features(k, w), true));
  // the products of taylor_features, without their D^2 / 2 features
  all.push_back({.name = "taylor", .of_score = [](double s) { return std::log(1 + s + s * s / 2); }});
  return all;
}

WeightSource weights_of(const Gpt& model, std::int64_t layer, const LayerVectors& v, std::string name) {
  const no_grad guard;
  const Dtype dtype = model.options().dtype;
  const MappedHeads mapped = model.attention(layer).features({tensor_of(v, v.q, dtype), tensor_of(v, v.k, dtype), {}, {}});
  return source_of(std::move(name), mapped.q, mapped.k, mapped.logarithmic);
}

std::vector<WeightSource> sources_of(const Gpt& model, const Gpt* student, std::int64_t layer, const LayerVectors& v, std::uint64_t seed) {
  std::vector<WeightSource> sources{softmax_weights()};
  if (model.options().attention != "softmax") {
    sources.push_back(weights_of(model, layer, v, model.options().attention));
    return sources;
  }
  if (student) sources.push_back(weights_of(*student, layer, v, "student: " + student->options().attention));
  for (WeightSource& map : parameter_free_maps(v, layer, seed)) sources.push_back(std::move(map));
  return sources;
}

LengthAnalysis analyse_length(const Gpt& model, const SourcesOfLayer& sources_of_layer, const std::vector<Batch>& texts, bool documents,
                              const AnalysisOptions& options) {
  LengthAnalysis result{texts.at(0).time, std::int64_t(texts.size()), {}};
  AnalysisOptions each = options;
  each.pairs = std::max<std::int64_t>(1, options.pairs / result.texts);
  const std::size_t L = std::size_t(model.options().layers), H = std::size_t(model.options().heads);
  for (const Batch& text : texts) {
    const std::vector<LayerVectors> layers = read_vectors(model, text, documents);
    for (std::size_t l = 0; l < L; ++l) {
      const std::vector<WeightSource> sources = sources_of_layer(std::int64_t(l), layers[l]);
      const auto measured = measure_layer(layers[l], sources, each);
      if (result.maps.empty())
        for (const WeightSource& s : sources) result.maps.push_back({s.name, {L, std::vector<WeightMeasures>(H)}});
      for (std::size_t s = 0; s < sources.size(); ++s)
        for (std::size_t h = 0; h < H; ++h) result.maps[s].heads[l][h] += measured[s][h].scaled(1 / double(texts.size()));
    }
    ++each.seed;
  }
  return result;
}

LengthAnalysis analyse_length(const Gpt& model, const Gpt* student, const std::vector<Batch>& texts, bool documents, const AnalysisOptions& options) {
  return analyse_length(
      model, [&](std::int64_t layer, const LayerVectors& v) { return sources_of(model, student, layer, v, options.seed); }, texts, documents, options);
}

std::vector<HeadPicture> draw_heads(const Gpt& model, const Gpt* student, const Batch& text, bool documents, std::int64_t most,
                                    const AnalysisOptions& options) {
  const std::vector<LayerVectors> layers = read_vectors(model, text, documents);
  std::vector<HeadPicture> pictures;
  for (const auto& [layer, head] : spread_heads(model.options().layers, model.options().heads, most)) {
    const LayerVectors& v = layers[std::size_t(layer)];
    const auto pairs = drawn_pairs(v, options.seed);
    for (const WeightSource& source : sources_of(model, student, layer, v, options.seed)) pictures.push_back(draw(v, source, layer, head, pairs));
  }
  return pictures;
}

void check_student(const Gpt& model, const Gpt& student) {
  const GptOptions &m = model.options(), &s = student.options();
  if (m.attention != "softmax")
    throw UsageError(fmt::format("--student puts another model's maps beside softmax attention, but the checkpoint has {} attention; leave --student "
                                 "out, or give a softmax model as --checkpoint", m.attention));
  if (s.attention == "softmax")
    throw UsageError("--student has softmax attention, which has no maps; give a model of linear attention that was distilled from the checkpoint");
  const auto check = [](const char* what, std::int64_t wanted, std::int64_t given) {
    if (wanted != given)
      throw UsageError(fmt::format("--student has {} {}, but the checkpoint has {}; give a student of the checkpoint's shape", given, what, wanted));
  };
  check("layers", m.layers, s.layers);
  check("heads", m.heads, s.heads);
  check("channels", m.width, s.width);
  check("channels a query", m.query_width(), s.query_width());
}

}  // namespace hedgehog

#include "train/fidelity.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <memory>
#include <numeric>

#include "core/error.h"
#include "core/nearest_name.h"
#include "nn/distillation.h"
#include "train/interrupt.h"
#include "train/split.h"
#include "train/utf8.h"

namespace hedgehog {
namespace {

constexpr const char* kAbove = "above Hedgehog";

/// A distilled map's student, or none for one that stands as it is.
using Students = std::vector<std::unique_ptr<Gpt>>;

/// W is the identity at first.
std::unique_ptr<Gpt> student_of(const Gpt& teacher, const FidelityMap& map) {
  if (map.attention.empty()) return nullptr;
  GptOptions options = student_options(teacher.options(), map.attention);
  options.map_weights = true;
  return std::make_unique<Gpt>(options);
}

/// The same model, computing in f32: bf16 would round the features' logarithms by more than some maps differ.
std::unique_ptr<Gpt> in_f32(const Gpt& model) {
  GptOptions options = model.options();
  options.dtype = Dtype::f32;
  auto copy = std::make_unique<Gpt>(options);
  copy_weights(model, *copy);
  return copy;
}

/// Divergence of every map, mean over heads, layers and texts.
std::vector<double> divergences(const Gpt& teacher, const std::vector<FidelityMap>& maps, const Students& students,
                                const std::vector<Batch>& texts) {
  const auto sources_of_layer = [&](std::int64_t layer, const LayerVectors& v) {
    std::vector<WeightSource> sources{softmax_weights()}, plain = parameter_free_maps(v, layer, teacher.options().seed);
    for (std::size_t m = 0; m < maps.size(); ++m) {
      if (students[m]) {
        sources.push_back(weights_of(*students[m], layer, v, maps[m].name));
        continue;
      }
      const auto found = std::find_if(plain.begin(), plain.end(), [&](const WeightSource& s) { return s.name == maps[m].plain; });
      if (found == plain.end()) throw Error(fmt::format("[fidelity] analyze has no map '{}'", maps[m].plain));
      sources.push_back(*found);
    }
    return sources;
  };
  // rank correlations are not asked for
  const LengthAnalysis analysis = analyse_length(teacher, sources_of_layer, texts, false, {.pairs = 1});
  std::vector<double> result;
  for (std::size_t m = 0; m < maps.size(); ++m) result.push_back(analysis.maps.at(m + 1).mean().divergence);
  return result;
}

/// The student of the best of the plan's learning rates.
std::unique_ptr<Gpt> distilled(const Gpt& teacher, const FidelityMap& map, const BatchSource& source, const FidelityPlan& plan,
                               const std::function<bool()>& stopped, Fidelity& found) {
  std::unique_ptr<Gpt> best;
  for (const double rate : plan.rates) {
    std::unique_ptr<Gpt> student = student_of(teacher, map);
    MapDistillation distillation = plan.distillation;
    distillation.learning_rate = rate;
    distillation.final_learning_rate = rate / 10;
    distillation.context = plan.length;
    std::vector<double> losses;
    try {
      losses = distil_maps(teacher, *student, source, distillation, stopped);
    } catch (const DistillationDiverged&) {
      if (!best && rate == plan.rates.back()) throw;
      continue;
    }
    const std::ptrdiff_t tail = std::max<std::ptrdiff_t>(1, std::ptrdiff_t(losses.size() / 10));
    const double last = std::accumulate(losses.end() - tail, losses.end(), 0.0) / double(tail);
    if (best && last >= found.last_loss) continue;
    best = std::move(student);
    found.learning_rate = rate, found.first_loss = losses.front(), found.last_loss = last;
  }
  return best;
}

}  // namespace

const std::vector<FidelityMap>& fidelity_maps() {
  static const std::vector<FidelityMap> maps = {{"hedgehog", "hedgehog", "", "W", "lowest, flat"},
                                                {"hedgehog-softmax", "hedgehog-softmax", "", "W", ""},
                                                {"hedgehog-joint", "hedgehog-joint", "", "W", ""},
                                                {"exp", "exp", "", "W", ""},
                                                {"t2r", "t2r", "", "W, b", kAbove},
                                                {"elu", "elu", "", "W", ""},
                                                {"hedgehog-untrained", "", "hedgehog", "-", kAbove},
                                                {"exp-untrained", "", "exp(1)", "-", ""},
                                                {"relu", "", "relu", "-", ""},
                                                {"elu-untrained", "", "elu", "-", kAbove},
                                                {"performer", "", "performer", "-", kAbove},
                                                {"cosformer", "", "cosformer", "-", kAbove},
                                                {"taylor", "", "taylor", "-", ""}};
  return maps;
}

std::vector<FidelityMap> parse_fidelity_maps(const std::string& text) {
  std::vector<std::string> names, wanted;
  for (const FidelityMap& map : fidelity_maps()) names.push_back(map.name);
  for (const std::string& name : split(text, ',')) {
    if (std::find(names.begin(), names.end(), name) == names.end()) {
      const std::string nearest = nearest_name(name, names);
      throw UsageError(
          fmt::format("--maps: there is no map '{}'; {}", valid_utf8(name),
                      nearest.empty() ? fmt::format("there are {}", fmt::join(names, ", ")) : fmt::format("did you mean {}?", nearest)));
    }
    if (std::find(wanted.begin(), wanted.end(), name) != wanted.end())
      throw UsageError(fmt::format("--maps names {} twice; leave one out", name));
    wanted.push_back(name);
  }
  std::vector<FidelityMap> maps;
  for (const FidelityMap& map : fidelity_maps())
    if (std::find(wanted.begin(), wanted.end(), map.name) != wanted.end()) maps.push_back(map);
  return maps;
}

std::vector<Batch> fidelity_pieces(const TokenDataset& text, const std::string& what, std::int64_t span, std::int64_t spans,
                                   std::int64_t length) {
  const std::int64_t tokens = std::int64_t(text.validation().size()), whole = tokens / span;
  if (whole == 0)
    throw UsageError(
        fmt::format("{} is too short: it has {} tokens, but fidelity is measured on {} in a row; give a longer text", what, tokens, span));
  const std::int64_t count = std::min(spans, whole), pieces = span / length;
  std::vector<Batch> batches;
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t place = count == 1 ? 0 : i * (whole - 1) / (count - 1);
    for (std::int64_t p = 0; p < pieces; ++p) batches.push_back(text.validation_batch(place * pieces + p, 1, length));
  }
  return batches;
}

FidelityTexts fidelity_texts(const TokenDataset& text, const TokenDataset& other, const FidelityPlan& plan) {
  constexpr std::int64_t kMost = kFidelityMultiples.back();
  FidelityTexts texts;
  for (std::size_t l = 0; l < kFidelityMultiples.size(); ++l)
    texts.held_out[l] =
        fidelity_pieces(text, "the part of --data that is held out", kMost * plan.length, plan.spans, kFidelityMultiples[l] * plan.length);
  texts.other = fidelity_pieces(other, "--other", plan.length, kMost * plan.spans, plan.length);
  return texts;
}

std::vector<Fidelity> measure_fidelity(const Gpt& teacher, const BatchSource& source, const FidelityTexts& texts, const FidelityPlan& plan,
                                       const std::function<bool()>& stopped) {
  std::vector<Fidelity> result(plan.maps.size());
  const std::unique_ptr<Gpt> copy = teacher.options().dtype == Dtype::bf16 ? in_f32(teacher) : nullptr;
  const Gpt& measured = copy ? *copy : teacher;
  Students students;
  for (const FidelityMap& map : plan.maps) students.push_back(student_of(measured, map));
  const std::vector<double> before = divergences(measured, plan.maps, students, texts.held_out[0]);
  for (std::size_t m = 0; m < plan.maps.size(); ++m) {
    result[m].before = before[m];
    if (!students[m]) continue;
    students[m] = distilled(teacher, plan.maps[m], source, plan, stopped, result[m]);
    if (copy) students[m] = in_f32(*students[m]);
  }
  for (std::size_t l = 0; l < texts.held_out.size(); ++l) {
    if (stopped()) throw Stopped{};
    const std::vector<double> at = divergences(measured, plan.maps, students, texts.held_out[l]);
    for (std::size_t m = 0; m < at.size(); ++m) result[m].held_out[l] = at[m];
  }
  const std::vector<double> at = divergences(measured, plan.maps, students, texts.other);
  for (std::size_t m = 0; m < at.size(); ++m) result[m].other = at[m];
  return result;
}

}  // namespace hedgehog

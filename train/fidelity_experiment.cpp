#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <iterator>
#include <limits>
#include <utility>

#include "core/error.h"
#include "train/evaluation.h"
#include "train/experiment_training.h"
#include "train/experiments.h"
#include "train/fidelity.h"
#include "train/utf8.h"

namespace hedgehog {
namespace {

namespace fs = std::filesystem;
using Json = ExperimentJson;

constexpr const char* kStories = "stories";
constexpr const char* kShakespeare = "shakespeare";
constexpr std::size_t kStoryBytes = 1'000'000;
constexpr std::int64_t kLossBatches = 100;  // at most, of the teacher's loss on text held out
/// The divergence of maps that are flat with length grows at most by this factor to 8 times the length; the paper gives no number.
constexpr double kFlatUpTo = 1.2;

bool given(const ReproduceRequest& request, const char* option) { return request.config && request.config->was_set(option); }

std::string data_of(const ReproduceRequest& request) { return given(request, "data") ? request.config->text("data") : kShakespeare; }

std::string other_of(const ReproduceRequest& request) {
  if (given(request, "other")) return request.config->text("other");
  return data_of(request) == kStories ? kShakespeare : kStories;
}

std::int64_t length_of(const ReproduceRequest& request) { return request.small() ? 64 : 256; }
std::int64_t longest_of(const ReproduceRequest& request) { return kFidelityMultiples.back() * length_of(request); }

std::vector<FidelityMap> maps_of(const ReproduceRequest& request) {
  if (given(request, "maps")) return parse_fidelity_maps(request.config->text("maps"));
  return request.small() ? parse_fidelity_maps("hedgehog,exp,t2r,elu,hedgehog-untrained,relu,elu-untrained,performer,cosformer")
                         : fidelity_maps();
}

FidelityPlan plan_of(const ReproduceRequest& request) {
  FidelityPlan plan;
  plan.length = length_of(request);
  plan.maps = maps_of(request);
  plan.distillation.steps = request.small() ? 400 : 1000;
  plan.distillation.rows = request.small() ? 8 : 16;
  plan.rates = {1e-2, 3e-2, 1e-1};
  return plan;
}

/// A softmax model that maps are distilled from.
///
/// name      of its positions, in parts and tables
/// training  options of train that it has besides
/// title     of its positions, in sentences
struct Teacher {
  std::string name, training, title;
};
/// With rotary positions a map meets distances beyond L, which distillation never showed it; without, more of the same.
const std::vector<Teacher>& teachers() {
  static const std::vector<Teacher> all = {{"rotary", "positions=rotary", "rotary positions"},
                                           {"none", "positions=none short_convolution=4", "no positions, but a short convolution"}};
  return all;
}

/// A teacher's context is the longest length, so that what changes with length are the maps, not a model beyond what it knows.
std::string training_of(const ReproduceRequest& request, const Teacher& teacher) {
  const std::string shape = request.small()
                                ? "preset=char-cpu batch=3 steps=1000"
                                : "layers=4 heads=4 width=256 batch=8 steps=2500 dropout=0.1 beta2=0.99 learning_rate=1e-3";
  return fmt::format("{} attention=softmax context={} {}", shape, longest_of(request), teacher.training);
}

std::int64_t tokens_of(const ReproduceRequest& request) {
  return request.config && request.config->has("training_tokens") ? request.config->integer("training_tokens") : 0;
}

std::vector<std::int64_t> seeds_of(const ReproduceRequest& request) {
  return request.seeds_or(request.small() ? std::vector<std::int64_t>{1} : std::vector<std::int64_t>{1, 2, 3});
}

/// What can be told to be wrong before a text is read.
void check_texts(const ReproduceRequest& request) {
  const std::string data = data_of(request), other = other_of(request);
  if (given(request, "tokenizer"))
    throw UsageError("fidelity reads texts as bytes, so that every other text can be read too; leave --tokenizer out");
  for (const auto& [option, where] : {std::pair{"data", data}, {"other", other}}) {
    if (where == "-")
      throw UsageError(fmt::format("fidelity reads --{} anew for every part, which standard input cannot give; give a file", option));
    std::error_code error;  // a path that cannot be looked at is not there
    if (where != kStories && where != kShakespeare && !fs::exists(where, error))
      throw FileError(
          fmt::format("--{}: there is no file or directory '{}'; give one, {} or {}", option, valid_utf8(where), kStories, kShakespeare));
  }
  if (data == other) throw UsageError(fmt::format("--other={} is the teacher's own text; give another", other));
  const std::int64_t bytes = std::int64_t(bytes_at(data));  // a tenth is held out, a byte a token
  if (bytes > 0 && bytes < 10 * longest_of(request))
    throw UsageError(
        fmt::format("--data={} is too short: its {} bytes leave {} tokens to measure on, but fidelity is measured up to {} tokens in a "
                    "row, {} times the {} that maps are distilled at; give a longer text",
                    data, bytes, bytes / 10, longest_of(request), kFidelityMultiples.back(), length_of(request)));
}

Json settings_json(const ReproduceRequest& request) {
  check_texts(request);
  const FidelityPlan plan = plan_of(request);
  std::vector<std::string> maps;
  for (const FidelityMap& map : plan.maps) maps.push_back(map.name);
  const auto name = [](const std::string& where) { return fs::path(where).filename().string(); };
  Json training;
  for (const Teacher& teacher : teachers()) training[teacher.name] = training_of(request, teacher);
  return {{"data", name(data_of(request))},
          {"bytes", bytes_at(data_of(request))},
          {"other", name(other_of(request))},
          {"other_bytes", bytes_at(other_of(request))},
          {"training", training},
          {"training_tokens", tokens_of(request)},
          {"maps", fmt::format("{}", fmt::join(maps, " "))},
          {"length", plan.length},
          {"spans", plan.spans},
          {"distillation_steps", plan.distillation.steps},
          {"distillation_rows", plan.distillation.rows},
          {"distillation_learning_rates", plan.rates}};
}

std::string part_name(const Teacher& teacher, std::int64_t seed) { return fmt::format("{}-seed{}", teacher.name, seed); }

std::vector<ExperimentPart> parts_of(const ReproduceRequest& request) {
  std::vector<ExperimentPart> parts;
  for (const std::int64_t seed : seeds_of(request))
    for (const Teacher& teacher : teachers()) parts.push_back({part_name(teacher, seed)});
  return parts;
}

/// The built-in stories one after another, as anyone would read them.
TextSource story_text() {
  TextSource source;
  source.name = source.where = kStories;
  const StoryCorpus corpus;
  for (std::int64_t row = 0; source.text.size() < kStoryBytes; ++row) source.text += corpus.render(corpus.row(1, row, false).tokens) + "\n";
  return source;
}

/// Documents are joined, as the paper joins inputs to longer ones.
TextSource text_at(const char* option, const std::string& where) {
  TextSource source;
  try {
    source = where == kStories ? story_text() : read_text(where);
  } catch (const FileError& error) {
    throw FileError(fmt::format("--{}: {}", option, error.what()));
  }
  source.document_starts = {0};
  return source;
}

/// The plan of the teacher, cut to --training_tokens.
TrainingPlan teacher_plan(const ReproduceRequest& request, const Teacher& teacher, std::int64_t seed, std::int64_t vocabulary) {
  TrainingPlan plan = training_plan(training_config(fmt::format("{} seed={}", training_of(request, teacher), seed)), vocabulary);
  if (const std::int64_t tokens = tokens_of(request); tokens > 0) {
    plan.schedule.steps = std::max<std::int64_t>(1, tokens / (plan.rows * plan.model.context));
    plan.schedule.warmup = std::min(plan.schedule.warmup, plan.schedule.steps / 10);
  }
  plan.measure_every = plan.schedule.steps;
  return plan;
}

Json run_teacher(const Teacher& teacher, std::int64_t seed, const PartContext& context) {
  const ReproduceRequest& request = context.request;
  const TokenizerPointer tokenizer = byte_tokenizer();
  const TokenDataset text = TokenDataset::from_text(text_at("data", data_of(request)), *tokenizer);
  const TokenDataset other = TokenDataset::whole(text_at("other", other_of(request)), *tokenizer);
  const FidelityPlan plan = plan_of(request);
  const FidelityTexts texts = fidelity_texts(text, other, plan);  // a text too short is refused before the teacher takes its time
  const TrainingPlan training = teacher_plan(request, teacher, seed, tokenizer->size());
  const TextSourceBatches source(text, data_of(request), std::uint64_t(seed), training.model.context);
  const TrainedModel trained = train_model(
      training, source, [](const Gpt&) { return 0.0; }, context.stopped);
  if (trained.diverged) throw Error("[fidelity] the softmax model's loss was not finite: there is nothing to put maps beside");
  const double loss = Evaluator(*trained.model, training.rows, training.model.context, false).mean_loss(source, kLossBatches);
  const TextSourceBatches rows(text, data_of(request), std::uint64_t(seed), plan.length);
  const std::vector<Fidelity> found = measure_fidelity(*trained.model, rows, texts, plan, context.stopped);
  Json maps;
  for (std::size_t m = 0; m < found.size(); ++m) {
    const Fidelity& f = found[m];
    const auto number = [](double value) { return std::isfinite(value) ? Json(value) : Json(nullptr); };
    Json& json = maps[plan.maps[m].name];
    json["before"] = number(f.before);
    for (std::size_t l = 0; l < f.held_out.size(); ++l) json[fmt::format("{}x", kFidelityMultiples[l])] = number(f.held_out[l]);
    json["other"] = number(f.other);
    if (f.learning_rate > 0)
      json["distillation"] = {{"learning_rate", f.learning_rate}, {"first_loss", f.first_loss}, {"last_loss", f.last_loss}};
  }
  return {{"teacher_loss", loss}, {"teacher_seconds", trained.seconds}, {"maps", std::move(maps)}};
}

Json run_part(const ExperimentPart& part, const PartContext& context) {
  for (const std::int64_t seed : seeds_of(context.request))
    for (const Teacher& teacher : teachers())
      if (part.name == part_name(teacher, seed)) return run_teacher(teacher, seed, context);
  throw Error(fmt::format("[fidelity] no part is called {}", part.name));
}

/// The parts of one teacher that are there.
PartResults parts_of_teacher(const ReproduceRequest& request, const Teacher& teacher, const PartResults& results) {
  PartResults own;
  for (const std::int64_t seed : seeds_of(request))
    if (const auto found = results.find(part_name(teacher, seed)); found != results.end()) own.insert(*found);
  return own;
}

/// The columns of numbers: names in a part, titles in the table.
std::vector<std::pair<std::string, std::string>> number_columns(const ReproduceRequest& request) {
  std::vector<std::pair<std::string, std::string>> columns{{"before", "before"}};
  for (const std::int64_t m : kFidelityMultiples)
    columns.emplace_back(fmt::format("{}x", m), fmt::format("{}×: {} tokens", m, m * length_of(request)));
  columns.emplace_back("other", "other text");
  return columns;
}

std::vector<double> values_of(const PartResults& results, const std::string& map, const std::string& column) {
  std::vector<double> values;
  for (const auto& [name, part] : results)
    if (const Json& value = part.result.at("maps").at(map).at(column); value.is_number()) values.push_back(value.get<double>());
  return values;
}

double mean_of(const PartResults& results, const std::string& map, const std::string& column) {
  const MeanError mean = mean_and_error(values_of(results, map, column));
  return mean.count > 0 ? mean.mean : std::numeric_limits<double>::infinity();
}

/// Infinite where either is missing.
double growth(const PartResults& results, const std::string& map) {
  const double from = mean_of(results, map, "1x");
  return std::isfinite(from) ? mean_of(results, map, "8x") / from : from;
}

/// Which of the others are not above Hedgehog, and where: "elu (4×, 8×)".
std::vector<std::string> not_above(const PartResults& results, const std::vector<std::string>& others) {
  std::vector<std::string> names;
  for (const std::string& map : others) {
    std::vector<std::string> places;
    for (const auto& [column, title] : {std::pair{"1x", "1×"}, {"2x", "2×"}, {"4x", "4×"}, {"8x", "8×"}, {"other", "other text"}})
      if (!(mean_of(results, "hedgehog", column) < mean_of(results, map, column))) places.push_back(title);
    if (!places.empty()) names.push_back(fmt::format("{} ({})", map, fmt::join(places, ", ")));
  }
  return names;
}

/// One line for each statement that the paper or the toy distillation beside it makes and that these maps can tell.
void add_orderings(const Teacher& teacher, const std::vector<FidelityMap>& maps, const PartResults& results, Findings& f) {
  const auto there = [&](const std::string& name) {
    return std::ranges::any_of(maps, [&](const FidelityMap& m) { return m.name == name; });
  };
  if (!there("hedgehog") || results.empty()) return;
  Json& figures = f.figures[teacher.name]["orderings"];
  std::string line;
  const auto compare = [&](const std::string& title, const std::vector<std::string>& names) {
    std::vector<std::string> others;
    std::ranges::copy_if(names, std::back_inserter(others), there);
    if (others.empty()) return;
    const std::vector<std::string> not_so = not_above(results, others);
    line += fmt::format("below {}: {}; ", title, not_so.empty() ? "yes" : fmt::format("not for {}", fmt::join(not_so, ", ")));
    figures["below " + title] = not_so.empty();
  };
  compare("exp without negation", {"exp", "exp-untrained"});
  compare("ReLU and T2R", {"t2r", "relu"});
  compare("1+ELU", {"elu", "elu-untrained"});
  std::vector<std::string> all;
  for (const FidelityMap& map : maps)
    if (map.name != "hedgehog") all.push_back(map.name);
  compare("every other map here", all);
  const double ratio = growth(results, "hedgehog");
  f.notes.push_back(fmt::format("orderings, {}: Hedgehog {}flat with length: {} (8×/1× = {:.2f}; called flat up to {})", teacher.name, line,
                                ratio <= kFlatUpTo ? "yes" : "no", ratio, kFlatUpTo));
  figures["flat with length"] = ratio <= kFlatUpTo;
}

void add_notes(const ReproduceRequest& request, const PartResults& results, Findings& f) {
  const FidelityPlan plan = plan_of(request);
  const auto name = [](const std::string& where) { return fs::path(where).filename().string(); };
  f.notes.push_back(
      "orderings: the paper's numbers could not be recovered, only that Hedgehog is lowest, on other data too, and flat with length; yes: "
      "at every length and on the other text");
  for (const Teacher& teacher : teachers())
    f.notes.push_back(fmt::format("positions {}: a softmax model on bytes of '{}', {} in a row, {}", teacher.name, name(data_of(request)),
                                  longest_of(request), teacher.title));
  f.notes.push_back(
      fmt::format("maps are distilled at {} tokens, and measured on text held out, all lengths on the same {} stretches, and on '{}'; "
                  "documents are joined. With rotary positions the distances beyond {} are new to the maps",
                  plan.length, plan.spans, name(other_of(request)), plan.length));
  f.notes.push_back(
      fmt::format("KL(softmax || map), nats a row: mean over rows, heads, layers and texts; before: W is the identity. All maps that learn "
                  "take {} steps of {} rows, and of the learning rates {} the one of the lower loss at the end",
                  plan.distillation.steps, plan.distillation.rows, fmt::join(plan.rates, ", ")));
  f.notes.push_back(
      "exp, elu and t2r learn a matrix a head as Hedgehog does, t2r (ReLU) a bias too; untrained: W is the identity; relu, performer, "
      "cosformer and taylor have nothing to distil");
  for (const auto& [part, result] : results)
    f.notes.push_back(
        fmt::format("{}: softmax model of {:.4f} nats a byte on the text held out", part, result.result.at("teacher_loss").get<double>()));
}

/// Rows, figures and chart of one teacher's maps.
void add_teacher(const ReproduceRequest& request, const Teacher& teacher, const PartResults& results, Findings& f) {
  std::vector<ChartLine> lines;
  for (const FidelityMap& map : maps_of(request)) {
    std::vector<std::string> row{teacher.name, map.name, map.learns, map.paper};
    for (const auto& [name, title] : number_columns(request)) {
      const std::vector<double> values = values_of(results, map.name, name);
      f.figures[teacher.name][map.name][name] = values;
      row.push_back(name == "before" && map.attention.empty() ? "" : text_of(mean_and_error(values), 3));
    }
    const double ratio = growth(results, map.name);
    row.insert(row.end() - 1, std::isfinite(ratio) ? fmt::format("{:.2f}", ratio) : "-");
    row.push_back(std::to_string(results.size()));
    f.rows.push_back(std::move(row));
    ChartLine line{map.name, {}, {}};
    for (const std::int64_t m : kFidelityMultiples) {
      line.x.push_back(double(m * length_of(request)));
      line.y.push_back(mean_of(results, map.name, fmt::format("{}x", m)));
    }
    lines.push_back(std::move(line));
  }
  Json chart = chart_of(fmt::format("KL from softmax on held-out text (nats a row), teacher with {}", teacher.title), "tokens", lines);
  chart["zero"] = false;
  chart["log"] = true;
  f.charts.push_back(std::move(chart));
}

Findings collect(const ReproduceRequest& request, const PartResults& results) {
  Findings f;
  f.columns = {"positions", "map", "learns", "paper"};
  for (const auto& [name, title] : number_columns(request)) f.columns.push_back(title);
  f.columns.insert(f.columns.end() - 1, "8×/1×");
  f.columns.push_back("seeds");
  for (const Teacher& teacher : teachers()) {
    const PartResults own = parts_of_teacher(request, teacher, results);
    add_teacher(request, teacher, own, f);
    add_orderings(teacher, maps_of(request), own, f);
  }
  add_notes(request, results, f);
  return f;
}

}  // namespace

Experiment fidelity_experiment() {
  return {
      "fidelity",
      "KL from softmax after distillation: Hedgehog lowest, on other data too, and flat with length (ordering only: no number is known)",
      settings_json,
      parts_of,
      run_part,
      collect};
}

}  // namespace hedgehog

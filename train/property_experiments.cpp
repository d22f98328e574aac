#include <fmt/format.h>

#include <cmath>

#include "core/error.h"
#include "train/analysis.h"
#include "train/analysis_texts.h"
#include "train/evaluation.h"
#include "train/experiment_training.h"
#include "train/experiments.h"
#include "train/map_distillation.h"

namespace hedgehog {
namespace {

using Json = ExperimentJson;

/// Weights are called spiky whose entropy is nearer to that of softmax than to uniform weights: (H - H_softmax) / (ln n - H_softmax), with
/// entropies as shares of ln n, is below this.
constexpr double kSpikyBelow = 0.5;
/// Weights are called monotone whose order within rows is that of q.k up to this rank correlation.
constexpr double kMonotoneFrom = 0.9;

constexpr const char* kDistilled = "hedgehog, distilled";

/// Names in analysis.json, as the tables call them, and what Table 2 says; the paper's text calls Hedgehog both.
struct PaperRow {
  const char *map, *title, *spiky, *monotone;
};
const std::vector<PaperRow>& paper_rows() {
  static const std::vector<PaperRow> rows = {{"softmax", "softmax", "yes", "yes"},
                                             {kDistilled, "Hedgehog, distilled", "yes", "yes"},
                                             {"hedgehog", "Hedgehog, not trained", "", ""},
                                             {"taylor", "Taylor-2", "yes", "yes"},
                                             {"elu", "1+ELU", "no", "no"},
                                             {"relu", "ReLU", "", ""},
                                             {"cosformer", "cosFormer", "no", "no"},
                                             {"performer", "Performer", "no", "no"},
                                             {"exp(1)", "exp, t = 1", "", ""},
                                             {"exp(2)", "exp, t = 2", "", ""}};
  return rows;
}

/// The softmax model that the maps are put beside.
TrainingPlan plan_of(const ReproduceRequest& request, std::int64_t seed) {
  TrainingPlan plan;
  GptOptions& m = plan.model;
  m.layers = request.small() ? 2 : 4;
  m.heads = request.small() ? 2 : 4;
  m.width = request.small() ? 64 : 256;
  m.context = 160;
  m.attention = "softmax";
  m.positions = "none";
  m.norm = "rms";
  m.init = "mimetic";
  m.tied_head = false;
  m.embedding_init = 1;
  m.short_convolution = 4;
  m.seed = std::uint64_t(seed);
  plan.rows = 16;
  plan.optimizer.beta2 = 0.95;
  const std::int64_t steps = request.small() ? 3000 : 10000;
  plan.schedule = {ScheduleKind::kCosine, 3e-3, 1e-5, 200, steps};
  plan.measure_every = steps;
  return plan;
}

MapDistillation distillation_of(const ReproduceRequest& request) { return {.steps = request.small() ? 400 : 2000}; }
constexpr std::int64_t kTexts = 8;

bool takes_checkpoint(const ReproduceRequest& request) { return request.config && request.config->was_set("checkpoint"); }

Json settings_json(const ReproduceRequest& request) {
  const MapDistillation distillation = distillation_of(request);
  Json json{{"distillation_steps", distillation.steps}, {"distillation_rows", distillation.rows}, {"distillation_learning_rate", distillation.learning_rate},
            {"texts", kTexts}};
  if (takes_checkpoint(request)) {
    json["checkpoint"] = request.config->text("checkpoint");
    return json;
  }
  const TrainingPlan plan = plan_of(request, 1);
  json.update({{"data", "stories"}, {"layers", plan.model.layers}, {"heads", plan.model.heads}, {"width", plan.model.width},
               {"context", plan.model.context}, {"rows", plan.rows}, {"steps", plan.schedule.steps}, {"learning_rate", plan.schedule.peak}});
  return json;
}

std::vector<ExperimentPart> parts_of(const ReproduceRequest& request) {
  if (takes_checkpoint(request)) return {{"checkpoint"}};
  std::vector<ExperimentPart> parts;
  for (const std::int64_t seed : request.seeds_or(request.small() ? std::vector<std::int64_t>{1} : std::vector<std::int64_t>{1, 2, 3}))
    parts.push_back({fmt::format("seed{}", seed)});
  return parts;
}

/// Share of the scores q.k / sqrt(D) of visible pairs that lie below -1, where the products of Taylor's features rise again.
double share_below(const Gpt& teacher, const std::vector<Batch>& texts, bool documents) {
  std::int64_t below = 0, all = 0;
  std::vector<double> scores(static_cast<std::size_t>(texts.at(0).time));
  for (const Batch& text : texts)
    for (const LayerVectors& v : read_vectors(teacher, text, documents))
      for (std::int64_t head = 0; head < v.heads; ++head)
        for (std::int64_t i = 0; i < v.tokens; ++i) {
          attention_scores(v, head, i, i + 1, scores.data());
          for (std::int64_t j = v.first_seen(i); j <= i; ++j, ++all) below += scores[std::size_t(j)] < -1;
        }
  return double(below) / double(all);
}

/// Distils maps from the teacher, and measures all of them on texts that training did not see.
Json measure(const Gpt& teacher, const BatchSource& source, const std::vector<Batch>& texts, bool documents, const PartContext& context) {
  GptOptions options = teacher.options();
  options.attention = "hedgehog";
  options.map_init_gain = 1;
  Gpt student(options);
  const std::vector<double> losses = distil_maps(teacher, student, source, distillation_of(context.request), context.stopped);
  const LengthAnalysis analysis = analyse_length(teacher, &student, texts, documents, {});
  Json maps;
  for (const MapAnalysis& map : analysis.maps) {
    Json measures;
    for (const MeasureColumn& c : measure_columns()) {
      const double value = map.mean().*c.value;
      measures[c.name] = std::isfinite(value) ? Json(value) : Json(nullptr);
    }
    maps[map.name.starts_with("student") ? kDistilled : map.name] = std::move(measures);
  }
  return {{"length", analysis.length}, {"scores_below_minus_1", share_below(teacher, texts, documents)}, {"maps", std::move(maps)},
          {"distillation_losses", losses}};
}

Json run_checkpoint(const PartContext& context) {
  const std::filesystem::path found = find_checkpoint(context.request.config->text("checkpoint"));
  const Checkpoint checkpoint = load_checkpoint(found, false);
  const Gpt& teacher = *checkpoint.model;
  if (teacher.options().attention != "softmax")
    throw UsageError(fmt::format("--checkpoint={} has {} attention, but maps are put beside softmax attention; give a run of --attention=softmax, or none to "
                                 "train one", context.request.config->text("checkpoint"), teacher.options().attention));
  Config run("train");
  set_options(run, checkpoint.run, found);
  const RunData data = load_data(run, checkpoint.tokenizer);
  const AnalysisTexts texts(Config("analyze"), checkpoint, found);
  return measure(teacher, *data.source, texts.of_length(teacher.options().context, kTexts), texts.documents(), context);
}

Json run_part(const ExperimentPart& part, const PartContext& context) {
  if (part.name == "checkpoint") return run_checkpoint(context);
  const std::int64_t seed = std::stoll(part.name.substr(4));
  TrainingPlan plan = plan_of(context.request, seed);
  StoryBatches source(std::uint64_t(seed), plan.model.context, 512);
  source.set_rows_per_step(plan.rows);
  plan.model.vocabulary = std::int64_t(source.corpus().vocabulary().size());
  const TrainedModel trained = train_model(plan, source, [](const Gpt&) { return 0.0; }, context.stopped);
  if (trained.diverged) throw Error("the softmax model's loss was not finite: there is nothing to put maps beside");
  Evaluator evaluator(*trained.model, 32, plan.model.context, false);
  const double loss = evaluator.mean_loss(source);
  Json json = measure(*trained.model, source, story_texts(std::uint64_t(seed), plan.model.context, kTexts), false, context);
  json.update({{"validation_loss", loss}, {"exact_entropy", source.floor()}, {"training_seconds", trained.seconds}});
  return json;
}

/// A measure of one map, a value a part.
std::vector<double> values_of(const PartResults& results, const std::string& map, const char* measure) {
  std::vector<double> values;
  for (const auto& [name, part] : results)
    if (const Json& m = part.result.at("maps").at(map).at(measure); m.is_number()) values.push_back(m.get<double>());
  return values;
}

double mean_of(const PartResults& results, const char* map, const char* measure) { return mean_and_error(values_of(results, map, measure)).mean; }

void add_common_notes(const ReproduceRequest& request, const PartResults& results, Findings& f) {
  f.notes.push_back("yes and no of the paper: Table 2, and for Hedgehog its text. Values ± standard error over models, means over layers and heads");
  for (const auto& [name, part] : results) {
    if (part.result.contains("validation_loss"))
      f.notes.push_back(fmt::format("{}: softmax model of {:.4f} nats a token on stories, whose exact entropy is {:.4f}", name,
                                    part.result["validation_loss"].get<double>(), part.result["exact_entropy"].get<double>()));
  }
  if (!takes_checkpoint(request))
    f.notes.push_back("the paper looked at BERT finetuned on CoLA; here a GPT is trained from scratch, with causal attention, on the built-in stories");
  for (const PaperRow& row : paper_rows())
    for (const MeasureColumn& c : measure_columns()) f.figures[row.map][c.name] = values_of(results, row.map, c.name);
}

Findings collect_spikiness(const ReproduceRequest& request, const PartResults& results) {
  Findings f;
  f.columns = {"map", "paper: spiky", "ours", "entropy, nats", "share of ln n", "towards uniform", "KL from softmax, nats"};
  const double softmax = mean_of(results, "softmax", "entropy_share");
  for (const PaperRow& row : paper_rows()) {
    const double towards = (mean_of(results, row.map, "entropy_share") - softmax) / (1 - softmax);
    const auto text = [&](const char* measure) { return text_of(mean_and_error(values_of(results, row.map, measure)), 3); };
    f.rows.push_back({row.title, row.spiky, towards < kSpikyBelow ? "yes" : "no", text("entropy"), text("entropy_share"), fmt::format("{:.0f} %", 100 * towards),
                      text("divergence")});
    f.figures[row.map]["towards_uniform"] = towards;
  }
  f.notes.push_back(fmt::format("spiky: the entropy lies less than {:.0f} % of the way from softmax to uniform weights; Hedgehog has one row for each state of its maps",
                                100 * kSpikyBelow));
  f.notes.push_back("low entropy alone is no likeness: weights may be spiky in the wrong places, which the KL divergence shows");
  add_common_notes(request, results, f);
  return f;
}

Findings collect_monotonicity(const ReproduceRequest& request, const PartResults& results) {
  Findings f;
  f.columns = {"map", "paper: monotone", "ours", "rank in rows", "rank pooled"};
  for (const PaperRow& row : paper_rows()) {
    const auto text = [&](const char* measure) { return text_of(mean_and_error(values_of(results, row.map, measure)), 3); };
    f.rows.push_back({row.title, row.monotone, mean_of(results, row.map, "rank_in_rows") >= kMonotoneFrom ? "yes" : "no", text("rank_in_rows"), text("rank_pooled")});
  }
  f.notes.push_back(fmt::format("monotone: Spearman's rank correlation of weights with q·k within rows is at least {}; pooled: over the pairs of all rows "
                                "together, where each row has a normaliser of its own, for softmax too", kMonotoneFrom));
  std::vector<double> below;
  for (const auto& [name, part] : results) below.push_back(100 * part.result.at("scores_below_minus_1").get<double>());
  f.notes.push_back(fmt::format("Taylor-2, 1 + s + s²/2, grows again as the score s falls below -1: it is monotone only where scores stay above, as the paper found in "
                                "BERT; here {} % of them lie below", text_of(mean_and_error(below), 1)));
  add_common_notes(request, results, f);
  return f;
}

}  // namespace

Experiment spikiness_experiment() {
  return {"spikiness",
          "softmax, Taylor-2 and Hedgehog attention is spiky (of low entropy), 1+ELU, Performer and cosFormer is not (Table 2)",
          settings_json,
          parts_of,
          run_part,
          collect_spikiness};
}

Experiment monotonicity_experiment() {
  return {"monotonicity",
          "the weights of softmax, Taylor-2 and Hedgehog rise with q·k, those of 1+ELU, Performer and cosFormer do not (Table 2)",
          settings_json,
          parts_of,
          run_part,
          collect_monotonicity};
}

}  // namespace hedgehog

#include <fmt/format.h>

#include <utility>

#include "core/error.h"
#include "train/experiment_training.h"
#include "train/experiments.h"
#include "train/recall_task.h"

namespace hedgehog {
namespace {

using Json = ExperimentJson;

/// A task, and the options of train that softmax attention learns it with.
struct RecallSetting {
  std::string name, title;
  RecallOptions task;
  std::string training;
};

constexpr const char* kShape = "layers=2 heads=1 norm=rms tied_head=false embedding_init=1 weight_decay=0 beta2=0.95 ";
/// Queries, keys and values see the tokens before, and attention starts by copying from like places.
constexpr const char* kConvolution = "positions=none short_convolution=4 init=mimetic ";
/// Nothing but positions helps: the first layer has to learn to look at the token before. Hedgehog's maps start at 2 I, twice as
/// spiky as the identity. Of rotary and learned positions each task has those with which softmax and Hedgehog reach 99 %.
constexpr const char* kPlain = "map_init_gain=2 ";

RecallOptions task(RecallForm form, std::int64_t vocabulary, std::int64_t length, std::int64_t pairs) {
  RecallOptions options;
  options.form = form;
  options.vocabulary = vocabulary;
  options.length = length;
  options.pairs = pairs;
  return options;
}

std::vector<RecallSetting> small_settings(const std::string& plain) {
  return {{"plain", "4 of 8 keys, 32 tokens; learned positions, no convolution, heads of 32", task(RecallForm::repeated, 16, 32, 4),
           plain + "positions=learned width=32 batch=32 steps=8000 evaluate_every=250 warmup=100 learning_rate=5e-3 min_learning_rate=2e-4"}};
}

std::vector<RecallSetting> gpu_settings(const std::string& convolution, const std::string& plain) {
  std::vector<RecallSetting> all = {
      {"plain", "the paper's form, 20 keys, 128 tokens; rotary positions, no convolution, heads of 64",
       task(RecallForm::repeated, 40, 128, 20),
       plain + "positions=rotary width=64 batch=64 steps=20000 evaluate_every=500 warmup=500 learning_rate=2e-3 min_learning_rate=1e-4"}};
  for (const auto& [length, pairs] : {std::pair(64, 8), {256, 32}, {512, 64}})
    all.push_back(
        {fmt::format("queries{}", length),
         fmt::format("{} pairs of 256 keys, then each asked once, {} tokens; with a short convolution, heads of 64", pairs, length),
         task(RecallForm::multi_query, 512, length, pairs),
         convolution + "width=64 batch=64 steps=3000 evaluate_every=200 warmup=200 learning_rate=3e-3 min_learning_rate=1e-4"});
  return all;
}

std::vector<RecallSetting> settings_of(const ReproduceRequest& request) {
  const std::string convolution = std::string(kShape) + kConvolution, plain = std::string(kShape) + kPlain;
  const std::string training =
      convolution + fmt::format("batch=32 steps={} evaluate_every=50 warmup=100 learning_rate=1e-2 min_learning_rate=3e-4 ",
                                request.small() ? 600 : 1500);
  std::vector<RecallSetting> all = {{"convolution", "the paper's form, 20 keys, 128 tokens; with a short convolution, heads of 32",
                                     task(RecallForm::repeated, 40, 128, 20), training + "width=32"},
                                    {"narrow", "the same with heads of 16, which are narrower than there are keys",
                                     task(RecallForm::repeated, 40, 128, 20), training + "width=16"}};
  const std::vector<RecallSetting> more = request.small() ? small_settings(plain) : gpu_settings(convolution, plain);
  all.insert(all.end(), more.begin(), more.end());
  return all;
}

const std::vector<std::string>& maps_of(const ReproduceRequest& request) {
  static const std::vector<std::string> small = {"softmax", "hedgehog", "elu"},
                                        all = {"softmax", "hedgehog", "taylor", "hedgehog-softmax", "hedgehog-joint", "exp",
                                               "elu",     "relu",     "t2r",    "performer",        "cosformer"};
  return request.small() ? small : all;
}

std::vector<std::int64_t> seeds_of(const ReproduceRequest& request) {
  return request.seeds_or(request.small() ? std::vector<std::int64_t>{1} : std::vector<std::int64_t>{1, 2, 3});
}

/// Paper's accuracy after training from scratch, Tables 2 and 3; empty: none given.
std::string paper_accuracy(const std::string& map) {
  if (map == "softmax" || map == "taylor" || map == "hedgehog") return "100.0";
  if (map == "elu" || map == "performer" || map == "cosformer") return "17.0";
  return "";
}

std::string part_name(const RecallSetting& setting, const std::string& map, std::int64_t seed) {
  return fmt::format("{}-{}-seed{}", setting.name, map, seed);
}

Json settings_json(const ReproduceRequest& request) {
  Json json;
  for (const RecallSetting& s : settings_of(request))
    json[s.name] = {{"form", s.task.form == RecallForm::repeated ? "repeated" : "multi_query"},
                    {"vocabulary", s.task.vocabulary},
                    {"length", s.task.length},
                    {"pairs", s.task.pairs},
                    {"training_rows", s.task.training_rows},
                    {"test_rows", s.task.test_rows},
                    {"first_pairs", s.task.first_pairs},
                    {"growth_steps", s.task.growth_steps},
                    {"training", s.training}};
  return json;
}

std::vector<ExperimentPart> parts_of(const ReproduceRequest& request) {
  std::vector<ExperimentPart> parts;
  for (const std::int64_t seed : seeds_of(request))
    for (const RecallSetting& setting : settings_of(request))
      for (const std::string& map : maps_of(request)) parts.push_back({part_name(setting, map, seed)});
  return parts;
}

Json run_setting(const RecallSetting& setting, const std::string& map, std::int64_t seed, const PartContext& context) {
  const Config config =
      training_config(fmt::format("{} context={} attention={} seed={}", setting.training, setting.task.length, map, seed));
  const TrainingPlan plan = training_plan(config, setting.task.vocabulary);
  const RecallBatches source(setting.task, std::uint64_t(seed), plan.rows);
  constexpr std::int64_t kRows = 50, kCurveBatches = 8;  // rows at once; batches of a point on the way
  const TrainedModel trained = train_model(
      plan, source, [&](const Gpt& model) { return measure_answers(model, source, kRows, kCurveBatches).share(); }, context.stopped);
  const RecallAnswers answers = measure_answers(*trained.model, source, kRows);
  Json steps = Json::array(), accuracies = Json::array(), losses = Json::array();
  for (const TrainingPoint& point : trained.curve) {
    steps.push_back(point.step);
    accuracies.push_back(point.measure);
    losses.push_back(point.loss);
  }
  return {{"accuracy", answers.last_share()},
          {"all_answers", answers.share()},
          {"parameters", trained.model->parameters().count()},
          {"training_seconds", trained.seconds},
          {"diverged", trained.diverged},
          {"steps", steps},
          {"accuracies", accuracies},
          {"losses", losses}};
}

Json run_part(const ExperimentPart& part, const PartContext& context) {
  for (const RecallSetting& setting : settings_of(context.request))
    for (const std::int64_t seed : seeds_of(context.request))
      for (const std::string& map : maps_of(context.request))
        if (part.name == part_name(setting, map, seed)) return run_setting(setting, map, seed, context);
  throw Error(fmt::format("[recall] no part is called {}", part.name));
}

Findings collect(const ReproduceRequest& request, const PartResults& results) {
  Findings f;
  f.columns = {"task", "map", "paper, %", "last answers right, %", "all answers right, %", "seeds", "seconds a run"};
  for (const RecallSetting& setting : settings_of(request)) {
    std::vector<ChartLine> lines;
    for (const std::string& map : maps_of(request)) {
      std::vector<double> accuracy, all, seconds;
      for (const std::int64_t seed : seeds_of(request)) {
        const auto found = results.find(part_name(setting, map, seed));
        if (found == results.end()) continue;
        const Json& r = found->second.result;
        accuracy.push_back(100 * r.at("accuracy").get<double>());
        all.push_back(100 * r.at("all_answers").get<double>());
        seconds.push_back(found->second.seconds);
        ChartLine line{fmt::format("{}, seed {}", map, seed), {}, {}};
        for (const Json& x : r.at("steps")) line.x.push_back(x.get<double>());
        for (const Json& y : r.at("accuracies")) line.y.push_back(100 * y.get<double>());
        lines.push_back(std::move(line));
      }
      f.rows.push_back({setting.name, map, setting.task.form == RecallForm::repeated ? paper_accuracy(map) : "",
                        text_of(mean_and_error(accuracy), 1), text_of(mean_and_error(all), 1), std::to_string(accuracy.size()),
                        seconds.empty() ? "-" : fmt::format("{:.0f}", mean_and_error(seconds).mean)});
      f.figures[setting.name][map] = {{"accuracy", accuracy}, {"all_answers", all}};
    }
    f.charts.push_back(chart_of(setting.title + ": all answers right (%)", "step", lines));
    f.notes.push_back(fmt::format("{}: {}", setting.name, setting.title));
  }
  f.notes.push_back(
      "last answers, which the paper counts: the value of the last key of each of 2,000 fresh rows; all answers: of every key that came "
      "before. Training asks for all. 10,000 sequences train in the paper, fresh ones here");
  return f;
}

}  // namespace

Experiment recall_experiment() {
  return {"recall",
          "associative recall from scratch: softmax, Taylor-2 and Hedgehog 100 %, 1+ELU, Performer and cosFormer 17 % (Tables 2 and 3)",
          settings_json,
          parts_of,
          run_part,
          collect};
}

}  // namespace hedgehog

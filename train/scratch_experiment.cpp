#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>

#include "core/error.h"
#include "train/evaluation.h"
#include "train/experiment_training.h"
#include "train/experiments.h"
#include "train/setup.h"
#include "train/token_shards.h"

namespace hedgehog {
namespace {

namespace fs = std::filesystem;
using Json = ExperimentJson;

/// An attention to compare.
///
/// training  its options of train
/// paper     perplexity in the paper's Table 7; empty: none
/// main      compared over all seeds; the others with the first seed alone
struct Variant {
  std::string name, training, paper;
  bool main = false;
};

std::vector<Variant> variants_of(const ReproduceRequest& request) {
  std::vector<Variant> all = {{"softmax", "attention=softmax", "18.6", true},
                              {"elu", "attention=elu", "25.6", true},
                              {"hedgehog", "attention=hedgehog", "20.8", true}};
  if (request.small()) return all;
  all.push_back({"hedgehog-window64", "attention=hedgehog window=64", "", true});
  // Taylor's and cosFormer's features have no fast kernels on a GPU with heads of 64
  for (const char* map : {"hedgehog-softmax", "hedgehog-joint", "exp", "relu", "t2r"})
    all.push_back({map, fmt::format("attention={}", map), "", false});
  all.push_back({"performer", "attention=performer performer_features=64", "26.8", false});
  return all;
}

/// nanoGPT's recipe on Shakespeare's characters; about 30M parameters on byte pairs of a text that is given.
std::string training_of(const ReproduceRequest& request) {
  if (request.small()) return "preset=char-cpu evaluate_every=200";
  return "layers=8 heads=8 width=512 context=1024 batch=16 positions=rotary qk_norm=true init=gpt2 map_init_gain=3 weight_decay=0.1 "
         "beta2=0.95 warmup=200";
}

/// Peak learning rates that each variant chooses from by short runs; empty: the recipe's.
std::vector<std::string> rates_of(const ReproduceRequest& request) {
  return request.small() ? std::vector<std::string>{} : std::vector<std::string>{"1e-3", "2e-3", "3e-3"};
}
constexpr std::int64_t kRateShare = 4;  // a short run has a quarter of the tokens
constexpr std::int64_t kEpochs = 1;     // of a text that is given; with three, 1+ELU catches up: Hedgehog closes less of a smaller gap

bool given(const ReproduceRequest& request, const char* option) { return request.config && request.config->was_set(option); }

std::string data_of(const ReproduceRequest& request) {
  if (given(request, "data")) return request.config->text("data");
  if (request.small()) return "shakespeare";
  throw UsageError("scratch --size=gpu needs --data: a text file, or a directory of them, whose documents end with a line <|endoftext|>");
}

std::string tokenizer_of(const ReproduceRequest& request) {
  if (given(request, "tokenizer")) return request.config->text("tokenizer");
  if (holds_token_shards(data_of(request))) return "of the shards";
  return request.small() ? "char" : "bpe";
}

std::int64_t tokens_of(const ReproduceRequest& request) {
  return request.config && request.config->has("training_tokens") ? request.config->integer("training_tokens") : 0;
}

Json settings_json(const ReproduceRequest& request) {
  Json json{{"training", training_of(request)},
            {"learning_rates", rates_of(request)},
            {"data", fs::path(data_of(request)).filename().string()},
            {"bytes", bytes_at(data_of(request))},
            {"tokenizer", fs::path(tokenizer_of(request)).filename().string()},
            {"training_tokens", tokens_of(request)}};
  for (const Variant& v : variants_of(request)) json["attention " + v.name] = v.training;
  return json;
}

std::vector<std::int64_t> seeds_of(const ReproduceRequest& request, const Variant& variant) {
  const auto seeds = request.seeds_or(request.small() ? std::vector<std::int64_t>{1} : std::vector<std::int64_t>{1, 2, 3});
  return variant.main ? seeds : std::vector<std::int64_t>{seeds.front()};
}

std::string run_name(const Variant& variant, std::int64_t seed) { return fmt::format("{}-seed{}", variant.name, seed); }
std::string rate_name(const Variant& variant, const std::string& rate) { return fmt::format("rate-{}-{}", variant.name, rate); }

std::vector<ExperimentPart> parts_of(const ReproduceRequest& request) {
  std::vector<ExperimentPart> parts;
  std::size_t most = 0;
  for (const Variant& v : variants_of(request)) {
    for (const std::string& rate : rates_of(request)) parts.push_back({rate_name(v, rate)});
    most = std::max(most, seeds_of(request, v).size());
  }
  for (std::size_t i = 0; i < most; ++i)
    for (const Variant& v : variants_of(request)) {
      const auto seeds = seeds_of(request, v);
      if (i >= seeds.size()) continue;
      ExperimentPart part{run_name(v, seeds[i])};
      for (const std::string& rate : rates_of(request)) part.needs.push_back(rate_name(v, rate));
      parts.push_back(std::move(part));
    }
  return parts;
}

/// The rate with the lowest validation loss among those that are there; empty: none.
std::string best_rate(const ReproduceRequest& request, const Variant& v, const PartResults& results) {
  std::string best;
  double lowest = std::numeric_limits<double>::infinity();
  for (const std::string& rate : rates_of(request)) {
    const auto found = results.find(rate_name(v, rate));
    if (found == results.end() || !found->second.result.at("loss").is_number()) continue;
    if (const double loss = found->second.result.at("loss").get<double>(); loss < lowest) lowest = loss, best = rate;
  }
  return best;
}

/// The options of train for a run of `tokens` tokens (0: the recipe's number of steps, or kEpochs).
Config config_of(const ReproduceRequest& request, const Variant& v, std::int64_t seed, const std::string& rate) {
  Config config = training_config(fmt::format("{} {} seed={}", training_of(request), v.training, seed));
  config.set("data", data_of(request), OptionSource::kFlag);
  // token shards have one, and say so where another is asked for
  if (given(request, "tokenizer") || !holds_token_shards(data_of(request))) config.set("tokenizer", tokenizer_of(request), OptionSource::kFlag);
  if (!config.has("preset")) config.apply_preset("tiny");  // no other is chosen then; flags win over its values
  if (!rate.empty()) config.set("learning_rate", rate, OptionSource::kFlag);
  return config;
}

void set_steps(Config& config, const ReproduceRequest& request, std::int64_t epoch, std::int64_t share) {
  const std::int64_t each = config.integer("batch") * config.integer("context");
  const std::int64_t tokens = tokens_of(request) ? tokens_of(request) : request.small() ? config.integer("steps") * each : kEpochs * epoch;
  const std::int64_t steps = std::max<std::int64_t>(1, tokens / share / each);
  const auto set = [&](const char* name, std::int64_t value) { config.set(name, std::to_string(value), OptionSource::kFlag); };
  set("steps", steps);
  set("warmup", std::min<std::int64_t>(config.integer("warmup"), steps / 10));
  if (!request.small()) set("evaluate_every", std::max<std::int64_t>(1, steps / 10));
}

Json train_variant(const Variant& v, std::int64_t seed, const std::string& rate, std::int64_t share, const PartContext& context) {
  constexpr std::int64_t kCurveBatches = 40;  // validation batches of a point on the way
  Config config = config_of(context.request, v, seed, rate);
  const RunData data = load_data(config);
  set_steps(config, context.request, data.source->training_tokens(), share);
  const TrainingPlan plan = training_plan(config, data.tokenizer->size());
  std::unique_ptr<Evaluator> evaluator;
  const TrainedModel trained = train_model(
      plan, *data.source,
      [&](const Gpt& model) {
        if (!evaluator) evaluator = std::make_unique<Evaluator>(model, plan.rows, plan.model.context, data.source->documents());
        return evaluator->mean_loss(*data.source, kCurveBatches);
      },
      context.stopped);
  const double loss = trained.diverged ? std::numeric_limits<double>::quiet_NaN() : evaluator->mean_loss(*data.source);
  Json steps = Json::array(), losses = Json::array();
  for (const TrainingPoint& p : trained.curve) steps.push_back(p.step), losses.push_back(p.measure);
  return {{"loss", loss},
          {"perplexity", std::exp(loss)},
          {"diverged", trained.diverged},
          {"learning_rate", plan.schedule.peak},
          {"parameters", trained.model->parameters().count()},
          {"vocabulary", data.tokenizer->size()},
          {"tokens", plan.schedule.steps * plan.rows * plan.model.context},
          {"training_seconds", trained.seconds},
          {"steps", steps},
          {"validation_losses", losses}};
}

Json run_part(const ExperimentPart& part, const PartContext& context) {
  const ReproduceRequest& request = context.request;
  for (const Variant& v : variants_of(request)) {
    for (const std::string& rate : rates_of(request))
      if (part.name == rate_name(v, rate)) return train_variant(v, seeds_of(request, v).front(), rate, kRateShare, context);
    for (const std::int64_t seed : seeds_of(request, v)) {
      if (part.name != run_name(v, seed)) continue;
      const std::string rate = best_rate(request, v, context.results);
      if (rate.empty() && !rates_of(request).empty()) throw Error(fmt::format("[scratch] {} diverged with every learning rate", v.name));
      return train_variant(v, seed, rate, 1, context);
    }
  }
  throw Error(fmt::format("[scratch] no part is called {}", part.name));
}

/// A finite number of a part, or NaN.
double number(const Json& result, const char* name) {
  return result.contains(name) && result.at(name).is_number() ? result.at(name).get<double>() : std::numeric_limits<double>::quiet_NaN();
}

/// Perplexities by seed of the parts that are there and did not diverge.
std::map<std::int64_t, double> perplexities(const ReproduceRequest& request, const Variant& v, const PartResults& results) {
  std::map<std::int64_t, double> all;
  for (const std::int64_t seed : seeds_of(request, v))
    if (const auto found = results.find(run_name(v, seed)); found != results.end())
      if (const double p = number(found->second.result, "perplexity"); std::isfinite(p)) all[seed] = p;
  return all;
}

ChartLine curve_of(const std::string& name, const Json& result) {
  ChartLine line{name, {}, {}};
  for (const Json& x : result.at("steps")) line.x.push_back(x.get<double>());
  for (const Json& y : result.at("validation_losses")) line.y.push_back(y.is_number() ? y.get<double>() : NAN);
  return line;
}

Findings collect(const ReproduceRequest& request, const PartResults& results) {
  Findings f;
  f.columns = {"attention", "paper, perplexity", "perplexity", "gap closed, %", "learning rate", "parameters", "tokens",
               "seeds",     "seconds a run"};
  const std::vector<Variant> variants = variants_of(request);
  const auto softmax = perplexities(request, variants[0], results), elu = perplexities(request, variants[1], results);
  std::vector<ChartLine> lines;
  for (const Variant& v : variants) {
    std::vector<double> values, shares, seconds;
    Json last;
    for (const auto& [seed, perplexity] : perplexities(request, v, results)) {
      const PartResult& part = results.at(run_name(v, seed));
      last = part.result;
      values.push_back(perplexity);
      seconds.push_back(number(last, "training_seconds"));
      lines.push_back(curve_of(run_name(v, seed), last));
      if (v.name == "softmax" || v.name == "elu" || !softmax.contains(seed) || !elu.contains(seed)) continue;
      if (const double share = share_of_gap(softmax.at(seed), elu.at(seed), perplexity); std::isfinite(share))
        shares.push_back(100 * share);
    }
    f.rows.push_back({v.name, v.paper, text_of(mean_and_error(values), 3), text_of(mean_and_error(shares), 1),
                      last.is_null() ? "-" : fmt::format("{:g}", number(last, "learning_rate")),
                      last.is_null() ? "-" : count_text(number(last, "parameters")),
                      last.is_null() ? "-" : count_text(number(last, "tokens")), std::to_string(values.size()),
                      seconds.empty() ? "-" : fmt::format("{:.0f}", mean_and_error(seconds).mean)});
    f.figures[v.name] = {{"perplexity", values}, {"gap_closed_percent", shares}};
    for (const std::string& rate : rates_of(request))
      if (const auto found = results.find(rate_name(v, rate)); found != results.end())
        f.figures[v.name]["rates"][rate] = number(found->second.result, "loss");
  }
  f.charts.push_back(chart_of("Validation loss (nats a token)", "step", lines));
  f.charts[0]["zero"] = false;
  f.notes.push_back(fmt::format("paper: WikiText-103, 125M parameters, GPT-2's tokens; here: {}, tokens: {}",
                                fs::path(data_of(request)).filename().string(), tokenizer_of(request)));
  f.notes.push_back("gap closed: (elu - other) / (elu - softmax) by perplexity, the mean over seeds; Hedgehog in the paper: 68.6 %");
  if (!rates_of(request).empty())
    f.notes.push_back(
        "each attention with the best of the same learning rates, chosen by runs of a quarter of the tokens with the first seed");
  return f;
}

}  // namespace

double share_of_gap(double softmax, double elu, double other) {
  return softmax < elu ? (elu - other) / (elu - softmax) : std::numeric_limits<double>::quiet_NaN();
}

Experiment scratch_experiment() {
  return {
      "scratch",
      "language modelling from scratch, WikiText-103: perplexity 18.6 softmax, 25.6 1+ELU, 20.8 Hedgehog, which closes 68.6 % of the gap",
      settings_json,
      parts_of,
      run_part,
      collect};
}

}  // namespace hedgehog

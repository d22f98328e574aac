#include <fmt/format.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "train/checkpoint.h"
#include "train/commands.h"
#include "train/evaluation.h"
#include "train/setup.h"

namespace hedgehog {

int eval_command(Config& config) {
  configure_threads_from(config);
  Checkpoint checkpoint = load_checkpoint(find_checkpoint(config.text("checkpoint")), false);
  // the data as the run read it, unless asked otherwise
  Config run("train");
  for (const auto& [name, value] : checkpoint.run.options) run.set(name, value, OptionSource::kCheckpoint);
  if (config.was_set("data")) run.set("data", config.text("data"), OptionSource::kFlag);
  if (config.was_set("batch")) run.set("batch", std::to_string(config.integer("batch")), OptionSource::kFlag);
  const RunData data = load_data(run, checkpoint.tokenizer);
  const Gpt& model = *checkpoint.model;
  Evaluator evaluator(model, run.integer("batch"), model.options().context, data.source->documents());
  const double loss = evaluator.mean_loss(*data.source, config.integer("evaluate_batches")), floor = data.source->floor();
  std::vector<RecallRow> recall;
  if (data.stories) recall = measure_recall(model, *data.stories, run.integer("batch"));
  if (config.flag("json")) {
    nlohmann::json out{{"loss", loss}, {"perplexity", std::exp(loss)}, {"step", checkpoint.run.step}, {"data", data.name}};
    if (!std::isnan(floor)) out["entropy"] = floor;
    for (const RecallRow& r : recall) out["recall"][r.name] = {{"questions", r.questions}, {"right", r.right}};
    fmt::print("{}\n", out.dump(2));
    return kGood;
  }
  fmt::print("data        {}\n", data.source->describe());
  fmt::print("checkpoint  step {}, {} attention, {} parameters\n", checkpoint.run.step, model.options().attention, count_text(double(model.parameters().count())));
  fmt::print("loss        {:.4f} nats a token, perplexity {:.3f}, {:.4f} bits a token\n", loss, std::exp(loss), loss / std::log(2.0));
  if (!std::isnan(floor)) fmt::print("entropy     {:.4f} nats a token: {:+.2f} %\n", floor, 100 * (loss / floor - 1));
  for (const RecallRow& r : recall) fmt::print("{:<32} {:>6} of {:>6} right, {:.1f} %\n", r.name, r.right, r.questions, 100 * r.share());
  return kGood;
}

}  // namespace hedgehog

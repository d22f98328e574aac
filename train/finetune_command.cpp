#include <fmt/format.h>

#include <chrono>
#include <cmath>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "train/checkpoint.h"
#include "train/commands.h"
#include "train/interrupt.h"
#include "train/metrics.h"
#include "train/run_directory.h"
#include "train/setup.h"
#include "train/text_batches.h"
#include "train/text_classes.h"

namespace hedgehog {
namespace {

ClassTraining training_of(const Config& config) {
  ClassTraining o;
  o.epochs = config.integer("epochs");
  o.batch = config.integer("batch");
  if (config.has("length")) o.length = config.integer("length");
  if (config.was_set("finetune_learning_rate")) o.learning_rate = config.real("finetune_learning_rate");
  if (config.was_set("dropout")) o.dropout = config.real("dropout");
  o.seed = std::uint64_t(config.integer("seed"));
  return o;
}

std::vector<std::string> as_texts(const std::vector<std::int32_t>& labels) {
  std::vector<std::string> texts;
  for (const std::int32_t label : labels) texts.push_back(std::to_string(label));
  return texts;
}

}  // namespace

int finetune_command(Config& config) {
  for (const char* option : {"from", "data", "out"})
    if (!config.was_set(option)) throw UsageError(fmt::format("finetune needs --{}; see hedgehog finetune --help", option));
  check_new_directory(config.text("out"));
  const OnDevice guard(configure_machine(config));
  const Checkpoint encoder = load_checkpoint(find_checkpoint(config.text("from")), false);
  const LabelledTexts data = read_labelled_texts(config.text("data"));
  const ClassTraining options = training_of(config);
  check_text_length(encoder.model->options(), encoder.tokenizer->frame(), options.length);
  Gpt model = with_classes(*encoder.model, data.classes(), options);
  fmt::print("data        {}: {} texts of {} classes\n", config.text("data"), data.texts.size(), data.classes());
  fmt::print("model       {} layers, width {}, {} parameters\n", model.options().layers, model.options().width,
             count_text(double(model.parameters().count())));
  InterruptGuard interrupt;
  RunState run = encoder.run;
  run.data = config.text("data");
  const auto start = std::chrono::steady_clock::now();
  double sum = 0;
  std::int64_t shown = 0, all = 0;
  train_classes(model, *encoder.tokenizer, data, options, [&](std::int64_t done, std::int64_t steps, double loss) {
    run.step = done, all = steps;
    run.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    sum += loss;
    if (done % 50 == 0 || done == steps) {
      fmt::print(stderr, "step {}/{}  loss {:.4f}  {:.0f} s\n", done, steps, sum / double(done - shown), run.seconds);
      sum = 0, shown = done;
    }
    return !interrupt.interrupted();
  });
  if (run.step < all) {
    fmt::print(stderr, "interrupted after {} of {} steps: nothing was written\n", run.step, all);
    return kInterrupted;
  }
  save_checkpoint(config.text("out"), model, *encoder.tokenizer, run, false);
  fmt::print("trained     {} steps in {:.0f} s\n", run.step, run.seconds);
  fmt::print("written     {}\n", config.text("out"));
  fmt::print("measure     ./hedgehog eval --checkpoint={} --data=held_out.tsv\n", config.text("out"));
  return kGood;
}

int evaluate_classes(const Config& config, const Gpt& model, const Tokenizer& tokenizer) {
  if (!config.was_set("data"))
    throw UsageError("the checkpoint tells classes of texts: give labelled ones, label TAB text a line, by --data=FILE");
  for (const char* option : {"stride", "words", "evaluate_batches", "linear_branch"})
    if (config.was_set(option))
      throw UsageError(fmt::format("--{} belongs to language models, but the checkpoint tells classes of texts; leave it out", option));
  const LabelledTexts data = read_labelled_texts(config.text("data"));
  if (data.classes() > model.options().classes)
    throw UsageError(fmt::format("a label of --data is {}, but the checkpoint tells {} classes", data.classes() - 1,
                                 model.options().classes));
  const std::int64_t length = config.has("length") ? config.integer("length") : 0;
  const std::vector<std::string> found = as_texts(classes_of(model, tokenizer, data.texts, length, config.integer("batch")));
  const std::vector<std::string> wanted = as_texts(data.labels);
  const double right = accuracy(found, wanted), correlation = matthews_correlation(found, wanted);
  if (config.flag("json")) {
    nlohmann::json out{{"data", config.text("data")}, {"texts", data.texts.size()}, {"accuracy", right}};
    out["matthews_correlation"] = std::isfinite(correlation) ? nlohmann::json(correlation) : nlohmann::json(nullptr);
    fmt::print("{}\n", out.dump());
    return kGood;
  }
  fmt::print("texts                 {}\n", data.texts.size());
  fmt::print("accuracy              {:.4f}\n", right);
  if (std::isfinite(correlation)) fmt::print("Matthews correlation  {:.4f}\n", correlation);
  else fmt::print("Matthews correlation  undefined: all texts, or all answers, are of one class\n");
  return kGood;
}

}  // namespace hedgehog

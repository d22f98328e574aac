#include <fmt/format.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "train/checkpoint.h"
#include "train/commands.h"
#include "train/evaluation.h"
#include "train/setup.h"
#include "train/sliding_windows.h"
#include "train/text_classes.h"

namespace hedgehog {

namespace {

/// A text that the run did not hold back from training: all of it is evaluated, however short.
class WholeText : public BatchSource {
 public:
  WholeText(TokenDataset dataset, std::string name, std::int64_t context)
      : dataset_(std::move(dataset)), name_(std::move(name)), context_(context) {}
  Batch training(std::int64_t, std::int64_t, std::int64_t) const override { throw Error("[eval] there are no training rows"); }
  std::int64_t validation_batches(std::int64_t rows) const override { return dataset_.validation_batches(rows, context_); }
  Batch validation(std::int64_t index, std::int64_t rows) const override { return dataset_.validation_batch(index, rows, context_); }
  bool documents() const override { return dataset_.packed(); }
  std::string describe() const override {
    return fmt::format("{}: {} tokens, {} documents", name_, dataset_.validation().size(), dataset_.document_count());
  }

 private:
  TokenDataset dataset_;
  std::string name_;
  std::int64_t context_;
};

/// The shape that rows of --length have. Throws UsageError where the model has no positions for them.
GptOptions evaluated_options(const Config& config, const Gpt& model) {
  GptOptions o = model.options();
  if (!config.has("length")) return o;
  const std::int64_t length = config.integer("length");
  if (o.positions == "learned" && length > o.context)
    throw UsageError(fmt::format("--length={} is longer than the {} learned positions of the model; give at most that", length, o.context));
  o.context = length;
  return o;
}

/// What --data names, or the data as the run read it.
RunData evaluation_data(const Config& config, const Checkpoint& checkpoint, const std::filesystem::path& found, std::int64_t context) {
  const bool slides = config.has("stride");
  const auto windows = [&](std::span<const std::int32_t> tokens, const std::string& name) {
    return std::make_unique<SlidingWindows>(std::vector(tokens.begin(), tokens.end()), name, context, config.integer("stride"));
  };
  if (config.has("data") && config.text("data") != "stories") {
    RunData data;
    TokenDataset whole = whole_data(config.text("data"), checkpoint.tokenizer, data);
    if (slides) data.source = windows(whole.validation(), data.name);
    else data.source = std::make_unique<WholeText>(std::move(whole), data.name, context);
    return data;
  }
  Config run("train");
  set_options(run, checkpoint.run, found);
  if (config.has("data")) run.set("data", config.text("data"), OptionSource::kFlag);
  if (config.has("length")) run.set("context", std::to_string(context), OptionSource::kFlag);
  RunData data = load_data(run, checkpoint.tokenizer);
  if (config.has("length") && data.stories)
    throw UsageError("--length cuts a text into rows, but the built-in stories are rows of their own; give --data=FILE");
  if (!slides) return data;
  const auto* const text = dynamic_cast<const TextSourceBatches*>(data.source.get());
  if (!text) throw UsageError("--stride slides over a text, but the built-in stories are rows of their own; give --data=FILE");
  data.source = windows(text->dataset().validation(), data.name);
  return data;
}

/// Refuses --words where they are not known, or not all tokens are counted.
void check_words(const Config& config, const RunData& data) {
  if (config.integer("evaluate_batches") > 0)
    throw UsageError("--words divides by the words of the whole text, but --evaluate_batches counts a part of its tokens; leave one of them out");
  if (data.words == 0) throw UsageError("--words needs the text itself, not tokens or a run's own data; give it by --data=FILE");
}

}  // namespace

int eval_command(Config& config) {
  for (const char* option : {"predictions", "references", "prediction_column", "reference_column", "positive"})
    if (config.was_set(option) && !config.has("metric"))
      throw UsageError(fmt::format("--{} belongs to --metric; say which, as --metric=accuracy,f1", option));
  const OnDevice guard(configure_machine(config));
  if (config.has("metric")) return metric_command(config);
  const std::filesystem::path found = find_checkpoint(config.text("checkpoint"));
  const Checkpoint checkpoint = load_checkpoint(found, false);
  if (checkpoint.model->options().classes > 0) return evaluate_classes(config, *checkpoint.model, *checkpoint.tokenizer);
  const GptOptions shape = evaluated_options(config, *checkpoint.model);
  const RunData data = evaluation_data(config, checkpoint, found, shape.context);
  for (const std::string& note : data.notes) fmt::print(stderr, "note: {}\n", note);
  const Gpt& model = *checkpoint.model;
  const std::int64_t rows = config.integer("batch");
  check_evaluation_memory(shape, rows, data.source->documents());
  const bool linear = config.flag("linear_branch"), words = config.flag("words");
  if (words) check_words(config, data);
  if (!linear && (model.options().window == 0 || model.options().attention == "softmax"))
    throw UsageError(fmt::format("--linear_branch=false leaves out the linear attention before a window, but this model has {} attention without one; "
                                 "give a checkpoint that was trained with --window and a feature map", model.options().attention));
  AttentionContext attention;
  attention.linear = linear;
  Evaluator evaluator(model, rows, shape.context, data.source->documents(), {}, attention);
  const SummedLoss sum = evaluator.sum_loss(*data.source, config.integer("evaluate_batches"));
  const double loss = sum.mean(), per_word = words ? std::exp(sum.nats / double(data.words)) : 0, floor = data.source->floor();
  std::vector<RecallRow> recall;
  if (data.stories && linear) recall = measure_recall(model, *data.stories, rows);
  if (config.flag("json")) {
    nlohmann::json out{{"loss", loss}, {"perplexity", std::exp(loss)}, {"step", checkpoint.run.step}, {"data", data.name}};
    out["tokens"] = sum.tokens;
    if (config.has("stride")) out["stride"] = config.integer("stride");
    if (words) out["words"] = data.words, out["word_perplexity"] = per_word;
    if (!linear) out["linear_branch"] = false;
    if (!std::isnan(floor)) out["entropy"] = floor;
    for (const RecallRow& r : recall) out["recall"][r.name] = {{"questions", r.questions}, {"right", r.right}};
    fmt::print("{}\n", out.dump(2));
    return kGood;
  }
  fmt::print("data        {}\n", data.source->describe());
  fmt::print("checkpoint  step {}, {} attention, {} parameters\n", checkpoint.run.step, model.options().attention, count_text(double(model.parameters().count())));
  if (!linear) fmt::print("attention   within the window of {} tokens alone\n", model.options().window);
  fmt::print("loss        {:.4f} nats a token, perplexity {:.3f}, {:.4f} bits a token\n", loss, std::exp(loss), loss / std::log(2.0));
  if (words) fmt::print("words       {} for {} tokens: perplexity {:.3f} a word\n", data.words, sum.tokens, per_word);
  if (!std::isnan(floor)) fmt::print("entropy     {:.4f} nats a token: {:+.2f} %\n", floor, 100 * (loss / floor - 1));
  for (const RecallRow& r : recall) fmt::print("{:<32} {:>6} of {:>6} right, {:.1f} %\n", r.name, r.right, r.questions, 100 * r.share());
  return kGood;
}

}  // namespace hedgehog

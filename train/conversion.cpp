#include "train/conversion.h"

#include <fmt/format.h>

#include <chrono>
#include <cmath>

#include "core/error.h"
#include "train/lora_adapter.h"
#include "train/progress.h"
#include "train/report.h"
#include "train/schedule.h"
#include "train/trainer.h"

namespace hedgehog {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

/// A fresh optimiser: no moments of an earlier stage, no gradients.
void forget_moments(Gpt& model) {
  const FlatParameters& flat = model.parameters().flatten();
  for (const Tensor& t : {flat.first_moment, flat.second_moment, flat.gradients}) t.fill(0);
}

bool every_parameter(const std::string&) { return true; }

}  // namespace

double ConversionFigures::kept() const { return std::exp(reference() - student()); }

Conversion::Conversion(const Checkpoint& teacher, const RunData& data, ConversionOptions options)
    : teacher_(*teacher.model), source_(*data.source), options_(std::move(options)), first_step_(teacher.run.step) {
  GptOptions o = student_options(teacher_.options(), options_.attention);
  const std::int64_t length = options_.shape.context;
  if (o.positions == "learned" && length > o.context)
    throw UsageError(fmt::format("--length={} is longer than the {} learned positions of the model; give at most that", length, o.context));
  o.context = std::max(o.context, length);  // rotary and no positions know no limit
  o.seed = options_.seed;
  if (options_.finetune != "none") {
    GptOptions trained = o;
    if (options_.finetune == "lora") trained.lora = options_.lora;
    predicted_ = check_memory(trained, options_.shape, options_.optimizer);
  }
  if (options_.distill != "none") {
    const Gpt declared = Gpt::declared(teacher_.options());
    const Cost cost = TrainingStep::predict(o, options_.shape, options_.optimizer, distils_from(declared, options_.distill));
    if (cost.peak > predicted_.peak) predicted_ = cost;
  }
  student_ = std::make_unique<Gpt>(o);
  copy_weights(teacher_, *student_);
}

void Conversion::say(const std::string& text) const {
  if (!options_.quiet) fmt::print(stderr, "{}\n", text);
}

double Conversion::validation_loss(const Gpt& model) {
  const StepShape& s = options_.shape;
  Evaluator evaluator(model, s.rows, s.context, s.documents, arena_);
  const double loss = evaluator.mean_loss(source_, options_.evaluate_batches);
  if (!std::isfinite(loss)) throw Error(fmt::format("the validation loss is {}: {}", loss, evaluator.explain_failure().cause));
  return loss;
}

Divergence Conversion::divergence() {
  const StepShape& s = options_.shape;
  return DivergenceMeter(teacher_, *student_, s.rows, s.context, s.documents, arena_).measure(source_, options_.evaluate_batches);
}

StepRecord Conversion::train_step(const Gpt& model, TrainingStep& step, const Stage& stage, std::int64_t index,
                                  double learning_rate) const {
  std::vector<Batch> batches;
  for (std::int64_t k = 0; k < options_.shape.micro_batches; ++k)
    batches.push_back(source_.training(stage.first_step + index, k * options_.shape.rows, options_.shape.rows));
  const StepResult result = step.run(batches, learning_rate);
  if (result.failed)
    throw Error(fmt::format("{}, step {}: the loss is {} and the gradient norm {}; first non-finite value: {}. The learning rate was "
                            "{:.3g}: try a smaller one", stage.name, index + 1, result.loss, result.gradient_norm,
                            step.explain_failure(batches).cause, learning_rate));
  StepRecord record;
  record.step = index + 1;
  record.loss = result.loss;
  record.learning_rate = learning_rate;
  record.gradient_norm = result.gradient_norm;
  record.layer_gradient_norms = layer_norms(model, result.parameter_norms);
  record.tokens = record.step * options_.shape.rows * options_.shape.context * options_.shape.micro_batches;
  return record;
}

StageEffort Conversion::train(Gpt& model, const Stage& stage) {
  forget_moments(model);
  TrainingStep step(model, options_.shape, stage.optimizer, options_.seed, arena_, stage.loss);
  const Schedule schedule{ScheduleKind::kCosine, stage.learning_rate, stage.learning_rate / 10,
                          std::min<std::int64_t>(100, stage.steps / 10), stage.steps};
  std::optional<LogWriter> log;
  if (!stage.log.empty()) log.emplace(stage.log);
  Progress::Options shown;
  shown.quiet = options_.quiet;
  Progress progress(shown);
  SmoothedMean smoothed;
  const auto start = Clock::now();
  std::int64_t i = 0;
  for (; i < stage.steps && !guard_.interrupted(); ++i) {
    StepRecord record = train_step(model, step, stage, i, learning_rate(schedule, i));
    record.seconds = seconds_since(start);
    record.tokens_per_second = double(record.tokens) / record.seconds;
    smoothed.add(record.loss);
    if (log) log->append(record);
    progress.update({i + 1, stage.steps, record.loss, smoothed.value(), record.learning_rate, record.tokens_per_second, 0, 0,
                     record.seconds / double(i + 1) * double(stage.steps - i - 1)});
  }
  progress.finish();
  return {i, seconds_since(start)};
}

void Conversion::distil(const fs::path& directory, ConversionFigures& figures) {
  say(fmt::format("distilling the maps of {} layers by {}: {} steps", student_->options().layers, options_.distill,
                  options_.distill_steps));
  OptimizerOptions optimizer = options_.optimizer;
  optimizer.weight_decay = 0;
  student_->parameters().train_only(is_map);
  figures.distillation = train(*student_, {"distillation", options_.distill_steps, options_.distill_learning_rate, optimizer,
                                           distils_from(teacher_, options_.distill), first_step_, directory / "distillation.jsonl"});
  student_->parameters().train_only(every_parameter);
  figures.after = divergence();
  figures.distilled = validation_loss(*student_);
}

StageEffort Conversion::train_on_text(std::unique_ptr<Gpt>& model, const Stage& stage) {
  if (options_.finetune == "all") return train(*model, stage);
  GptOptions o = model->options();
  o.lora = options_.lora;
  Gpt updated(o);
  copy_weights(*model, updated);
  updated.parameters().train_only([](const std::string& name) { return is_map(name) || is_lora(name); });
  const StageEffort effort = train(updated, stage);
  if (model == student_ && !options_.lora_out.empty()) export_adapter(options_.lora_out, updated);
  *model = merge_lora(updated);
  return effort;
}

void Conversion::finetune(const fs::path& directory, ConversionFigures& figures) {
  Stage stage{"finetuning", options_.finetune_steps, options_.finetune_learning_rate, options_.optimizer, next_token_loss,
              first_step_ + options_.distill_steps, directory / "log.jsonl"};
  say(fmt::format("finetuning the student: {} steps", stage.steps));
  figures.finetuning = train_on_text(student_, stage);
  figures.finetuned = validation_loss(*student_);
  if (!options_.finetune_teacher || guard_.interrupted()) return;
  say(fmt::format("finetuning a copy of the teacher: {} steps", stage.steps));
  auto copy = std::make_unique<Gpt>(teacher_.options());
  copy_weights(teacher_, *copy);
  stage.name = "finetuning the teacher";
  stage.log.clear();
  train_on_text(copy, stage);
  if (guard_.interrupted()) return;  // as long as the student, or not at all
  figures.finetuned_teacher = validation_loss(*copy);
}

ConversionFigures Conversion::run(const fs::path& directory) {
  ConversionFigures figures;
  figures.teacher = validation_loss(teacher_);
  figures.swapped = validation_loss(*student_);
  figures.before = divergence();
  if (options_.distill != "none" && !guard_.interrupted()) distil(directory, figures);
  if (options_.finetune != "none" && !guard_.interrupted()) finetune(directory, figures);
  figures.interrupted = guard_.interrupted();
  return figures;
}

}  // namespace hedgehog

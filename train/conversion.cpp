#include "train/conversion.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <iterator>

#include "core/error.h"
#include "train/lora_adapter.h"
#include "train/progress.h"
#include "train/report.h"
#include "train/schedule.h"
#include "train/trainer.h"
#include "train/window_factor.h"

namespace hedgehog {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

constexpr const char* const kStages[] = {"distillation", "finetuning", "finetuning the teacher"};
constexpr double kOtherMachine = 2e-3;  // of a loss: what bf16 on a GPU differs from f32 by
constexpr std::int64_t kMatchedTexts = 4;  // rows that tell a window's factors: thousands of tokens a head

/// A fresh optimiser: no moments of an earlier stage, no gradients.
void forget_moments(Gpt& model) {
  const FlatParameters& flat = model.parameters().flatten();
  for (const Tensor& t : {flat.first_moment, flat.second_moment, flat.gradients}) t.fill(0);
}

/// Removes an adapter that an earlier sitting wrote, which did not live to say so; it is written again with the same bits.
void drop_adapter(const fs::path& folder) {
  std::error_code ignored;
  if (!fs::exists(folder / "adapter_config.json", ignored)) return;
  for (const auto& entry : fs::directory_iterator(folder, ignored))
    if (entry.path().filename() != "adapter_config.json" && entry.path().filename() != "adapter_model.safetensors") return;
  fs::remove_all(folder, ignored);
}

bool every_parameter(const std::string&) { return true; }

}  // namespace

double ConversionFigures::kept() const { return std::exp(reference() - student()); }

Conversion::Conversion(const Checkpoint& teacher, const RunData& data, ConversionOptions options)
    : teacher_(*teacher.model), source_(*data.source), options_(std::move(options)), first_step_(teacher.run.step) {
  GptOptions o = student_options(teacher_.options(), options_.attention);
  o.window = options_.window;
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

bool Conversion::is_due(const char* stage) const {
  const auto place = [](std::string_view name) { return std::find(std::begin(kStages), std::end(kStages), name) - std::begin(kStages); };
  return point_.stage.empty() || place(stage) >= place(point_.stage);
}

void Conversion::match_window_to_maps() {
  if (options_.window == 0) return;
  std::vector<Batch> texts;
  for (std::int64_t row = 0; row < kMatchedTexts; ++row) texts.push_back(source_.training(first_step_, row, 1));
  match_window(teacher_, *student_, texts, options_.shape.documents);
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

void Conversion::save(Gpt& model, const Stage& stage, const TrainingStep* step) {
  point_.stage = stage.name;
  point_.step = step ? std::int64_t(slot_of(step->step_state(), kStep)) : 0;
  point_.step_slots = step ? step->step_state().to_vector() : std::vector<double>(kStepStateSize, 0);
  save_(model, point_);
}

void Conversion::train(Gpt& model, const Stage& stage, StageEffort& effort) {
  std::int64_t i = point_.stage == stage.name && stage.saved ? point_.step : 0;
  if (i == 0) {
    forget_moments(model);
    effort = {};
  }
  TrainingStep step(model, options_.shape, stage.optimizer, options_.seed, arena_, stage.loss);
  if (i > 0) step.step_state().copy_from(point_.step_slots);
  const Schedule schedule{ScheduleKind::kCosine, stage.learning_rate, stage.learning_rate / 10,
                          std::min<std::int64_t>(100, stage.steps / 10), stage.steps};
  std::optional<LogWriter> log;
  if (!stage.log.empty()) {
    truncate_log(stage.log, i);
    log.emplace(stage.log);
  }
  Progress::Options shown;
  shown.quiet = options_.quiet;
  Progress progress(shown);
  SmoothedMean smoothed;
  const auto start = Clock::now();
  const double before = effort.seconds;
  if (i == 0 && stage.saved) save(model, stage, nullptr);
  for (const std::int64_t first = i; i < stage.steps && !interrupted();) {
    StepRecord record = train_step(model, step, stage, i, learning_rate(schedule, i));
    ++i;
    stopped_ = stage.steps_before + i == options_.stop_at;
    record.seconds = effort.seconds = before + seconds_since(start);
    effort.steps = i;
    record.tokens_per_second = double(record.tokens) / record.seconds;
    smoothed.add(record.loss);
    if (log) log->append(record);
    progress.update({i, stage.steps, record.loss, smoothed.value(), record.learning_rate, record.tokens_per_second, 0, 0,
                     (effort.seconds - before) / double(i - first) * double(stage.steps - i)});
    if (stage.saved && options_.save_every > 0 && i % options_.save_every == 0 && i < stage.steps) save(model, stage, &step);
  }
  progress.finish();
  if (stage.saved) save(model, stage, &step);
}

void Conversion::distil(const fs::path& directory) {
  ConversionFigures& figures = point_.figures;
  say(fmt::format("distilling the maps of {} layers by {}: {} steps", student_->options().layers, options_.distill,
                  options_.distill_steps));
  OptimizerOptions optimizer = options_.optimizer;
  optimizer.weight_decay = 0;
  student_->parameters().train_only(is_map);
  train(*student_, {kStages[0], options_.distill_steps, options_.distill_learning_rate, optimizer,
                    distils_from(teacher_, options_.distill), first_step_, directory / "distillation.jsonl"}, figures.distillation);
  student_->parameters().train_only(every_parameter);
  match_window_to_maps();
  figures.after = divergence();
  figures.distilled = validation_loss(*student_);
}

void Conversion::train_on_text(std::unique_ptr<Gpt>& model, const Stage& stage, StageEffort& effort) {
  if (options_.finetune == "all") return train(*model, stage, effort);
  save(*model, stage, nullptr);
  GptOptions o = model->options();
  o.lora = options_.lora;
  Gpt updated(o);
  copy_weights(*model, updated);
  updated.parameters().train_only([](const std::string& name) { return is_map(name) || is_lora(name); });
  train(updated, stage, effort);
  // an interrupted stage is repeated
  if (model == student_ && !options_.lora_out.empty() && !interrupted()) {
    if (resumed_) drop_adapter(options_.lora_out);
    export_adapter(options_.lora_out, updated);
  }
  *model = merge_lora(updated);
}

void Conversion::finetune(const fs::path& directory) {
  const Stage stage{kStages[1], options_.finetune_steps, options_.finetune_learning_rate, options_.optimizer, next_token_loss,
                    first_step_ + options_.distill_steps, directory / "log.jsonl", options_.distill_steps, options_.finetune == "all"};
  say(fmt::format("finetuning the student: {} steps", stage.steps));
  train_on_text(student_, stage, point_.figures.finetuning);
  point_.figures.finetuned = validation_loss(*student_);
}

void Conversion::finetune_teacher() {
  const Stage stage{kStages[2], options_.finetune_steps, options_.finetune_learning_rate, options_.optimizer, next_token_loss,
                    first_step_ + options_.distill_steps, {}, options_.distill_steps + options_.finetune_steps,
                    options_.finetune == "all"};
  say(fmt::format("finetuning a copy of the teacher: {} steps", stage.steps));
  std::unique_ptr<Gpt> copy = std::move(point_.model);
  if (!copy) {
    copy = std::make_unique<Gpt>(teacher_.options());
    copy_weights(teacher_, *copy);
  }
  StageEffort effort;
  train_on_text(copy, stage, effort);
  if (interrupted()) return;  // as long as the student, or not at all
  point_.figures.finetuned_teacher = validation_loss(*copy);
}

ConversionFigures Conversion::run(const fs::path& directory, const Save& save, ConversionPoint from) {
  save_ = save, point_ = std::move(from), resumed_ = !point_.stage.empty();
  // roundings of another machine aside, the teacher's loss is what it was
  if (const double was = point_.figures.teacher; resumed_ && !(std::abs(validation_loss(teacher_) - was) <= kOtherMachine * was))
    throw UsageError("--from is not the teacher that the conversion began with: its validation loss is another one; give that back, or start anew");
  if (point_.stage == kStages[0] || point_.stage == kStages[1]) student_ = std::move(point_.model);
  ConversionFigures& figures = point_.figures;
  if (point_.stage.empty()) {
    match_window_to_maps();
    figures.teacher = validation_loss(teacher_);
    figures.swapped = validation_loss(*student_);
    figures.before = divergence();
  }
  const auto stage = [&](const char* name, bool asked, const auto& work) {
    if (asked && is_due(name) && !interrupted()) work();
  };
  stage(kStages[0], options_.distill != "none", [&] { distil(directory); });
  stage(kStages[1], options_.finetune != "none", [&] { finetune(directory); });
  stage(kStages[2], options_.finetune != "none" && options_.finetune_teacher, [&] { finetune_teacher(); });
  figures.interrupted = interrupted();
  return figures;
}

}  // namespace hedgehog

#include "train/trainer.h"

#include <fmt/format.h>

#include <cmath>

#include "core/error.h"
#include "train/atomic_directory.h"
#include "train/ceilings.h"
#include "train/files.h"
#include "train/run_directory.h"

namespace hedgehog {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

namespace {
double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }
}  // namespace

Trainer::Trainer(Config config, RunData data) : config_(std::move(config)), data_(std::move(data)) {
  prepare();
  if (config_.has("minutes")) {
    schedule_.steps = steps_for_minutes(config_.real("minutes"));
    config_.set("steps", std::to_string(schedule_.steps), OptionSource::kFlag);
  }
  directory_ = make_run_directory(config_.has("out") ? config_.text("out") : "",
                                  fmt::format("{}-{}", data_.name, config_.text("attention")));
  mark_latest(directory_);
  if (!data_.piped.empty()) keep_piped_text();
  write_file(directory_ / "config.toml", config_.to_toml());
}

Trainer::Trainer(Config config, RunData data, Checkpoint checkpoint, fs::path directory)
    : config_(std::move(config)), data_(std::move(data)), model_(std::move(checkpoint.model)), run_(std::move(checkpoint.run)),
      resumed_(true), directory_(std::move(directory)) {
  if (run_.data_fingerprint != data_.fingerprint)
    throw UsageError(fmt::format("the data has changed since the checkpoint was made ({} now, {} then); resume needs the same data",
                                 data_.fingerprint, run_.data_fingerprint));
  prepare();
  step_->step_state().copy_from(run_.step_slots);
  truncate_log(directory_ / "log.jsonl", run_.step);
  mark_latest(directory_);
}

void Trainer::prepare() {
  const GptOptions o = model_ ? model_->options() : gpt_options(config_, data_.tokenizer->size());
  StepShape shape{config_.integer("batch"), o.context, config_.integer("gradient_accumulation"), data_.source->documents()};
  const OptimizerOptions optimizer = optimizer_options(config_);
  schedule_ = schedule_of(config_);
  Bytes held = 0;
  if (model_) {
    const FlatParameters& flat = model_->parameters().flatten();
    for (const Tensor& t : {flat.weights, flat.copies, flat.gradients, flat.first_moment, flat.second_moment})
      if (t) held += t.size() * size_of(t.dtype());
  }
  const Cost cost = check_memory(o, shape, optimizer, memory_options(config_), held);
  if (!model_) model_ = std::make_unique<Gpt>(o);
  step_ = std::make_unique<TrainingStep>(*model_, shape, optimizer, std::uint64_t(config_.integer("seed")), arena_);
  evaluator_ = std::make_unique<Evaluator>(*model_, shape.rows, o.context, shape.documents, arena_);
  flops_per_step_ = cost.own_flops();  // utilisation counts the model's own work
  tokens_per_step_ = shape.rows * shape.context * shape.micro_batches;
  announce(cost);
}

/// Standard input cannot be read again: --resume and eval read the run's copy.
void Trainer::keep_piped_text() {
  const fs::path kept = directory_ / "stdin.txt";
  replace_file(kept, data_.piped);
  data_.piped = {};
  config_.set("data", kept.string(), OptionSource::kFlag);
  fmt::print(stderr, "note: the text of standard input is kept in {}\n", kept.string());
}

void Trainer::announce(const Cost& cost) const {
  if (config_.flag("quiet")) return;
  fmt::print(stderr, "{}\n", config_.resolved_text());
  for (const std::string& note : data_.notes) fmt::print(stderr, "note: {}\n", note);
  const auto machine = machine_description();
  fmt::print(stderr, "data        {}\n", data_.source->describe());
  if (current_device().host())
    fmt::print(stderr, "device      {}, {} threads, {}\n", machine.at("processor"), machine.at("threads"), machine.at("blas"));
  else fmt::print(stderr, "device      {}, {}\n", current_device().description(), name_of(model_->options().dtype));
  fmt::print(stderr, "model       {} parameters\n", count_text(double(model_->parameters().count())));
  fmt::print(stderr, "memory      {}\n", memory_text(cost));
  fmt::print(stderr, "step        {} tokens, {}\n\n", tokens_per_step_, flops_text(cost.flops));
  if (const auto tokens = data_.source->training_tokens(); tokens > 0 && tokens < model_->parameters().count() / 10)
    fmt::print(stderr, "warning: {} training tokens are few for {} parameters; expect the model to learn them by heart\n\n", tokens,
               model_->parameters().count());
}

StepResult Trainer::step_without_update(std::int64_t step) {
  const Tensor& slots = step_->step_state();
  set_slot(slots, kNonFinite, 1);  // while it is up, the optimiser leaves everything alone
  const StepResult result = step_->run(step_batches(step), slot_of(slots, kLearningRate));
  set_slot(slots, kNonFinite, 0);
  model_->parameters().flatten().gradients.fill(0);
  return result;
}

std::int64_t Trainer::steps_for_minutes(double minutes) {
  step_without_update(0);
  const auto start = Clock::now();
  int count = 0;
  while (count < 3 || (seconds_since(start) < 2 && count < 50)) step_without_update(++count);
  const double each = seconds_since(start) / count;
  return std::max<std::int64_t>(1, std::int64_t(minutes * 60 / each));
}

std::vector<Batch> Trainer::step_batches(std::int64_t step) const {
  std::vector<Batch> batches;
  const std::int64_t rows = config_.integer("batch");
  for (std::int64_t k = 0; k < config_.integer("gradient_accumulation"); ++k)
    batches.push_back(data_.source->training(step, k * rows, rows));
  return batches;
}

std::vector<std::string> layer_names(const GptOptions& options) {
  std::vector<std::string> names{"embedding"};
  for (std::int64_t i = 0; i < options.layers; ++i) names.push_back(fmt::format("block {}", i));
  names.push_back(options.tied_head ? "final norm" : "final norm and head");
  return names;
}

std::vector<double> layer_norms(const Gpt& model, const std::vector<double>& parameter_norms) {
  const Tensors& all = model.parameters().all();
  const std::int64_t layers = model.options().layers;
  std::vector<double> sums(std::size_t(layers + 2), 0.0);
  for (std::size_t i = 0; i < all.size(); ++i) {
    const std::string& name = all[i].name();
    std::size_t layer = name.starts_with("ln_f") || name.starts_with("lm_head") ? std::size_t(layers + 1) : 0;
    if (name.starts_with("h.")) layer = std::size_t(std::stoll(name.substr(2))) + 1;
    sums[layer] += parameter_norms[i] * parameter_norms[i];
  }
  for (double& s : sums) s = std::sqrt(s);
  return sums;
}

void Trainer::fail_non_finite(std::int64_t step, const std::string& symptom, const NonFinite& cause) const {
  const fs::path last = recover(directory_ / "last"), report = directory_ / "non_finite.txt";
  const std::string where = cause.report.empty() ? "" : write_non_finite(report, step, symptom, cause) ? fmt::format(" ({} has more)", report.string()) : "";
  std::error_code ignored;
  throw Error(fmt::format("step {}: {}; first non-finite value: {}{}. The learning rate was {:.3g}: try a smaller --learning_rate or a "
                          "longer --warmup. {}",
                          step, symptom, cause.cause, where, learning_rate(schedule_, step - 1),
                          fs::exists(last, ignored) ? fmt::format("The last good checkpoint is untouched in {}", last.string())
                                                    : "No checkpoint was saved yet"));
}

bool Trainer::write_non_finite(const fs::path& file, std::int64_t step, const std::string& symptom, const NonFinite& cause) const {
  std::string text = fmt::format("step {}: {}; learning rate {:.3g}\n\nthe first number that is not finite\n{}", step, symptom, learning_rate(schedule_, step - 1), cause.report);
  if (!finite_norms_.empty()) {
    text += fmt::format("\ngradient norms of step {}, the last that was finite\n", finite_step_);
    const Tensors& all = model_->parameters().all();
    for (std::size_t p = 0; p < all.size() && p < finite_norms_.size(); ++p) text += fmt::format("  {:<32} {:.4g}\n", all[p].name(), finite_norms_[p]);
  }
  try {
    replace_file(file, text);
  } catch (const Error&) {
    return false;  // what went wrong first is what must be said
  }
  return true;
}

bool Trainer::pauses_after(std::int64_t steps) const {
  const std::int64_t evaluate_every = config_.integer("evaluate_every"), save_every = config_.integer("save_every");
  return steps >= schedule_.steps || model_->redraws_before(steps) || steps == config_.integer("stop_at") ||
         (evaluate_every > 0 && steps % evaluate_every == 0) || (save_every > 0 && steps % save_every == 0);
}

StepRecord Trainer::train_one(std::int64_t step, bool ahead) {
  const auto start = Clock::now();
  StepRecord record;
  record.learning_rate = learning_rate(schedule_, step);
  if (step_->unfinished() == 0) {
    model_->redraw_before(step);
    step_->submit(step_batches(step), record.learning_rate);
  }
  // a GPU gets the next step before this one's result is waited for
  if (ahead && !current_device().host() && !pauses_after(step + 1))
    step_->submit(step_batches(step + 1), learning_rate(schedule_, step + 1));
  const StepResult result = step_->finish();
  if (result.failed)
    fail_non_finite(step + 1, fmt::format("the loss is {} and the gradient norm {}", result.loss, result.gradient_norm),
                    step_->explain_failure(step_batches(step)));
  run_.step = step + 1;
  run_.tokens += tokens_per_step_;
  run_.seconds += seconds_since(start);
  record.step = run_.step;
  record.loss = result.loss;
  record.gradient_norm = result.gradient_norm;
  record.layer_gradient_norms = layer_norms(*model_, result.parameter_norms);
  finite_norms_ = result.parameter_norms;
  finite_step_ = run_.step;
  record.tokens = run_.tokens;
  record.tokens_per_second = double(tokens_per_step_) / seconds_since(start);
  record.seconds = run_.seconds;
  return record;
}

void Trainer::evaluate(StepRecord& record, Progress& progress) {
  const double loss = validation_loss();
  if (!std::isfinite(loss)) fail_non_finite(run_.step, fmt::format("the validation loss is {}", loss), evaluator_->explain_failure());
  record.validation_loss = loss;
  run_.rising_validations = loss > run_.last_validation ? run_.rising_validations + 1 : 0;
  run_.last_validation = loss;
  const double floor = data_.source->floor();
  progress.note(fmt::format("step {:>6}  validation loss {:.4f}{}", run_.step, loss,
                            std::isnan(floor) ? "" : fmt::format("  ({:+.1f} % over the exact entropy)", 100 * (loss / floor - 1))));
  // stories are never seen twice: there a rise is not learning by heart
  if (run_.rising_validations == 3 && data_.source->training_tokens() > 0)
    progress.note("warning: the validation loss rose three times running; the model is learning its data by heart (more data, a smaller "
                  "model or --dropout help)");
  if (loss < run_.best_validation) {
    run_.best_validation = loss;
    if (config_.integer("save_every") > 0) save("best");
  }
}

void Trainer::save(const char* name) {
  // diverged weights must not replace a good checkpoint, and no step has run with these yet
  const StepResult next = step_without_update(run_.step);
  if (!std::isfinite(next.loss) || !std::isfinite(next.gradient_norm))
    fail_non_finite(run_.step, fmt::format("the update leads to a loss of {} and a gradient norm of {}", next.loss, next.gradient_norm),
                    step_->explain_failure(step_batches(run_.step)));
  run_.step_slots = step_->step_state().to_vector();
  run_.data = config_.has("data") ? config_.text("data") : "stories";
  run_.data_fingerprint = data_.fingerprint;
  run_.machine = machine_description();
  run_.options.clear();
  for (const auto& [option, value] : config_.values()) run_.options[option] = value;
  run_.options["device"] = current_device().name();  // resume goes on where it was, not on whatever is found then
  save_checkpoint(directory_ / name, *model_, *data_.tokenizer, run_);
}

Ending Trainer::run() {
  const std::int64_t steps = schedule_.steps, evaluate_every = config_.integer("evaluate_every"), save_every = config_.integer("save_every");
  LogWriter log(directory_ / "log.jsonl");
  Progress::Options options;
  options.quiet = config_.flag("quiet");
  Progress progress(options);
  const double peak = options.quiet ? 0 : measured_peak_flops(0.05);
  SmoothedMean smoothed;
  const InterruptGuard guard;
  const auto start = Clock::now();
  const std::int64_t first = run_.step;
  while (run_.step < steps) {
    StepRecord record = train_one(run_.step, !guard.interrupted());
    smoothed.add(record.loss);
    const bool last = run_.step == steps, interrupted = guard.interrupted() && step_->unfinished() == 0;
    const bool stop = interrupted || run_.step == config_.integer("stop_at");
    if (last || (evaluate_every > 0 && run_.step % evaluate_every == 0)) evaluate(record, progress);
    if (last || record.validation_loss || run_.step % config_.integer("log_every") == 0) log.append(record);
    const double elapsed = seconds_since(start), per_step = elapsed / double(run_.step - first);
    progress.update({run_.step, steps, record.loss, smoothed.value(), record.learning_rate, double(tokens_per_step_) / per_step,
                     flops_per_step_ / per_step, peak, per_step * double(steps - run_.step)});
    if (last || stop || (save_every > 0 && run_.step % save_every == 0)) save("last");
    if (stop && !last) {
      progress.finish();
      return interrupted ? Ending::interrupted : Ending::stopped;
    }
  }
  progress.finish();
  return Ending::finished;
}

void Trainer::write_report_page(NamedValues summary, std::vector<ReportSample> samples) const {
  Report report;
  report.title = fmt::format("{}, {} attention", data_.name, model_->options().attention);
  report.log = read_log(directory_ / "log.jsonl");
  report.floor = data_.source->floor();
  report.summary = std::move(summary);
  report.configuration = config_.values();
  report.layer_names = layer_names(model_->options());
  report.samples = std::move(samples);
  write_report(directory_ / "report.html", report);
  const LossCurve curve{"training, smoothed", report.log};
  write_file(directory_ / "loss.svg", loss_curve_svg(std::span(&curve, 1), report.floor, report.title));
}

}  // namespace hedgehog

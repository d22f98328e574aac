#pragma once
#include <chrono>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "train/checkpoint.h"
#include "train/evaluation.h"
#include "train/interrupt.h"
#include "train/log.h"
#include "train/progress.h"
#include "train/report.h"
#include "train/setup.h"

namespace hedgehog {

/// How training ended.
enum class Ending { finished, stopped, interrupted };  // stopped: --stop_at

/// The groups that gradient norms are shown by: embedding, each block, final norm (with the classifier if it is not tied).
std::vector<std::string> layer_names(const GptOptions& options);
/// Gradient norm of each group, from those of the parameters in order.
std::vector<double> layer_norms(const Gpt& model, const std::vector<double>& parameter_norms);

/// One training run: a model, its data, its directory. The directory gets config.toml, log.jsonl, report.html, and the
/// checkpoints `last` and `best`.
class Trainer {
 public:
  /// A new run.
  Trainer(Config config, RunData data);
  /// Goes on from a checkpoint in `directory`.
  Trainer(Config config, RunData data, Checkpoint checkpoint, std::filesystem::path directory);

  /// Trains to the last step, or until Ctrl-C (then the checkpoint is saved). Throws Error when the loss, a gradient or
  /// the validation loss is not finite, or would be with the weights that are to be saved: the last good checkpoint stays, and the message names
  /// op, step and statistics.
  Ending run();

  Gpt& model() { return *model_; }
  const RunData& data() const { return data_; }
  const RunState& state() const { return run_; }
  const Config& config() const { return config_; }
  const std::filesystem::path& directory() const { return directory_; }
  /// Validation loss over the whole validation set.
  double validation_loss() { return evaluator_->mean_loss(*data_.source, config_.integer("evaluate_batches")); }
  /// Losses of batches of the run's own shape.
  Evaluator& evaluator() { return *evaluator_; }
  /// Writes report.html and loss.svg from the log, with these headline figures and samples.
  void write_report_page(NamedValues summary, std::vector<ReportSample> samples) const;

 private:
  void prepare();
  void keep_piped_text();
  void announce(const Cost& cost) const;
  /// Loss and gradient norm of a step's batches with the present weights; nothing changes.
  StepResult step_without_update(std::int64_t step);
  std::int64_t steps_for_minutes(double minutes);
  std::vector<Batch> step_batches(std::int64_t step) const;
  /// `ahead`: whether a GPU may be given the step after it too.
  StepRecord train_one(std::int64_t step, bool ahead);
  /// Whether something is done between so many steps and the next one: validation, checkpoint, end, or a draw of random features.
  bool pauses_after(std::int64_t steps) const;
  void evaluate(StepRecord& record, Progress& progress);
  /// Writes a checkpoint; throws as `run` if the next step's loss or gradient would not be finite.
  void save(const char* name);
  [[noreturn]] void fail_non_finite(std::int64_t step, const std::string& symptom, const NonFinite& cause) const;
  /// Writes what is known of the failure, with the gradient norms of the last good step. False if it cannot be written.
  bool write_non_finite(const std::filesystem::path& file, std::int64_t step, const std::string& symptom, const NonFinite& cause) const;

  Config config_;
  RunData data_;
  std::unique_ptr<Gpt> model_;
  RunState run_;
  bool resumed_ = false;
  std::filesystem::path directory_;
  std::shared_ptr<Arena> arena_ = std::make_shared<Arena>();
  std::unique_ptr<TrainingStep> step_;
  std::unique_ptr<Evaluator> evaluator_;
  Schedule schedule_;
  double flops_per_step_ = 0;
  std::int64_t tokens_per_step_ = 0;
  std::vector<double> finite_norms_;  // gradient norm of each parameter in the last step that was finite
  std::int64_t finite_step_ = 0;
};

}  // namespace hedgehog

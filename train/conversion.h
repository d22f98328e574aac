#pragma once
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "nn/distillation.h"
#include "train/checkpoint.h"
#include "train/distillation_step.h"
#include "train/interrupt.h"
#include "train/log.h"
#include "train/setup.h"

namespace hedgehog {

/// How a softmax model is converted; names as on the command line.
struct ConversionOptions {
  std::string attention = "hedgehog";
  std::int64_t window = 0;  // of the student, tokens that it sees by softmax; 0: none
  std::string distill = "weights";  // weights, output, none
  std::int64_t distill_steps = 0;
  double distill_learning_rate = 0;
  std::string finetune = "all";  // all, lora, none
  LoraOptions lora;
  std::string lora_out;          // where the student's updates are written (train/lora_adapter.h); empty: nowhere
  std::int64_t finetune_steps = 0;
  double finetune_learning_rate = 0;
  bool finetune_teacher = false;
  StepShape shape;            // of both stages
  OptimizerOptions optimizer;
  std::uint64_t seed = 1;
  std::int64_t evaluate_batches = 0;
  std::int64_t save_every = 0;  // steps; 0: between stages and on Ctrl-C only
  std::int64_t stop_at = 0;     // steps of all stages after which to stop as Ctrl-C does; 0: none
  bool quiet = false;
};

/// What a stage took.
struct StageEffort {
  std::int64_t steps = 0;
  double seconds = 0;
};

/// What a conversion measured; losses over the validation set, nats a token.
struct ConversionFigures {
  double teacher = 0, swapped = 0;  // swapped: the student before any training
  std::optional<double> distilled, finetuned, finetuned_teacher;
  Divergence before;                // of the student's weights of attention from the teacher's, on the teacher's queries and keys
  std::optional<Divergence> after;  // distillation
  StageEffort distillation, finetuning;
  bool interrupted = false;

  /// Of the student as it is written.
  double student() const { return finetuned ? *finetuned : distilled ? *distilled : swapped; }
  /// What the student is compared with: the teacher, finetuned as long if that was asked for.
  double reference() const { return finetuned_teacher ? *finetuned_teacher : teacher; }
  /// Share of what the swap cost that was won back: (swapped - student) / (swapped - reference). 1: as good as the teacher.
  double recovered() const { return (swapped - student()) / (swapped - reference()); }
  /// Perplexity of the reference over that of the student. 1: as good as the teacher.
  double kept() const;
};

/// Where a conversion stands. The stages are, in order, "distillation", "finetuning", "finetuning the teacher"; "" before the first.
///
/// model       that is being trained, its moments with it
/// step        steps of the stage that are done
/// step_slots  the optimiser's
struct ConversionPoint {
  std::string stage;
  std::int64_t step = 0;
  ConversionFigures figures;
  std::unique_ptr<Gpt> model;
  std::vector<double> step_slots;
};

/// Turns a softmax model into one of linear attention: the weights are copied, the feature maps of all layers distilled together from
/// the frozen teacher, and the student finetuned on the text. Distillation is without the window, on all tokens before; what a student with
/// a window loses is measured with it, and before it is used it is matched to the maps (match_window).
/// Source: Zhang et al. 2024, arXiv:2402.04347, section 4.2.
class Conversion {
 public:
  using Save = std::function<void(Gpt& model, const ConversionPoint& point)>;

  /// Throws UsageError as student_options, for rows longer than the model's positions, and where a step does not fit the memory.
  Conversion(const Checkpoint& teacher, const RunData& data, ConversionOptions options);

  /// All stages, or those from `from` on; the logs of their steps go to distillation.jsonl and log.jsonl in `directory`. On Ctrl-C the stage
  /// ends where it is and the ones after it are left out. Throws Error when a loss or gradient is not finite.
  ///
  /// save  called with what run goes on from later, bit for bit: at both ends of every stage, every options.save_every steps and on Ctrl-C.
  ///       Low-rank updates are not saved: their stage begins again
  ConversionFigures run(const std::filesystem::path& directory, const Save& save, ConversionPoint from = {});
  Gpt& student() { return *student_; }
  /// Takes the student of an earlier sitting, which has this one's shape.
  void take_student(std::unique_ptr<Gpt> student) { student_ = std::move(student); }
  /// Most memory that a step of the two stages takes, as predicted.
  const Cost& predicted() const { return predicted_; }

 private:
  struct Stage {
    std::string name;
    std::int64_t steps;
    double learning_rate;
    OptimizerOptions optimizer;
    StepLoss loss;
    std::int64_t first_step;        // in the data
    std::filesystem::path log;      // empty: none
    std::int64_t steps_before = 0;  // of the stages before it
    bool saved = true;              // false: steps cannot be gone on with
  };
  /// Trains a model on the text, all of it or low-rank updates and the maps.
  void train_on_text(std::unique_ptr<Gpt>& model, const Stage& stage, StageEffort& effort);
  void train(Gpt& model, const Stage& stage, StageEffort& effort);
  /// Whether a stage is the one to go on with, or comes after it.
  bool is_due(const char* stage) const;
  bool interrupted() const { return stopped_ || guard_.interrupted(); }
  void save(Gpt& model, const Stage& stage, const TrainingStep* step);
  void match_window_to_maps();
  StepRecord train_step(const Gpt& model, TrainingStep& step, const Stage& stage, std::int64_t index, double learning_rate) const;
  double validation_loss(const Gpt& model);
  Divergence divergence();
  void distil(const std::filesystem::path& directory);
  void finetune(const std::filesystem::path& directory);
  void finetune_teacher();
  void say(const std::string& text) const;

  const Gpt& teacher_;
  const BatchSource& source_;
  ConversionOptions options_;
  std::int64_t first_step_;
  Cost predicted_;
  std::unique_ptr<Gpt> student_;
  Save save_;
  ConversionPoint point_;  // step, model and slots only until its stage goes on
  std::shared_ptr<Arena> arena_ = std::make_shared<Arena>();
  InterruptGuard guard_;
  bool stopped_ = false;  // at options.stop_at
  bool resumed_ = false;
};

}  // namespace hedgehog

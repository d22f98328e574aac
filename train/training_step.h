#pragma once
#include <deque>
#include <functional>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/executor.h"
#include "nn/gpt.h"
#include "train/data.h"
#include "train/non_finite.h"

namespace hedgehog {

/// AdamW and clipping; names as on the command line.
struct OptimizerOptions {
  double beta1 = 0.9;
  double beta2 = 0.99;
  double epsilon = 1e-8;
  double weight_decay = 0.1;
  double clip = 1;
};

/// The shape of one optimiser step.
struct StepShape {
  std::int64_t rows = 1;           // of a micro-batch
  std::int64_t context = 1;        // tokens a row
  std::int64_t micro_batches = 1;
  bool documents = false;          // whether rows hold several documents that must not see each other
  Bytes arena = kUnlimited;        // most that activations and workspaces may take, as far as recomputation gets there
  static constexpr Bytes kUnlimited = std::numeric_limits<Bytes>::max();
};

/// What a step lowers: the loss of ids (B, T) as an entry of the list, times `scale` (1), which is one over the valid targets of the
/// whole step.
using StepLoss = std::function<Tensor(const Gpt& model, const Tensor& tokens, const Tensor& targets, const Tensor& scale,
                                      const AttentionContext& context)>;
/// The mean loss of the next token.
Tensor next_token_loss(const Gpt& model, const Tensor& tokens, const Tensor& targets, const Tensor& scale, const AttentionContext& context);

struct StepResult {
  double loss = 0;                         // mean over all valid targets of the step; nats a token, unless another loss is given
  double gradient_norm = 0;                // before clipping
  std::vector<double> parameter_norms;     // gradient norm of each parameter, in order
  bool failed = false;                     // the loss or a gradient was not finite; nothing was changed
};

/// Forward, backward and update of a model, recorded once and run in planned memory, on a GPU as one replayed graph.
///
/// One micro-batch: one program. Several: the gradient program runs once for each, then the update program.
///
/// A GPU need not wait for the host between steps: submit() the next one, then finish() the one before.
class TrainingStep {
 public:
  TrainingStep(Gpt& model, const StepShape& shape, const OptimizerOptions& optimizer, std::uint64_t seed,
               std::shared_ptr<Arena> arena = {}, const StepLoss& loss = next_token_loss);

  /// One step on micro_batches batches. With a non-finite loss or gradient norm nothing is changed and failed() is true.
  StepResult run(std::span<const Batch> batches, double learning_rate);
  /// Starts a step. At most two may be unfinished. After a failed step later ones change nothing either.
  void submit(std::span<const Batch> batches, double learning_rate);
  /// The result of the oldest unfinished step; waits for it.
  StepResult finish();
  std::size_t unfinished() const { return unfinished_.size(); }
  bool failed() const { return slot_of(step_state_, kNonFinite) != 0; }
  /// After a failed step on these batches: which op made the first non-finite number, where, and from what inputs.
  NonFinite explain_failure(std::span<const Batch> batches);

  /// The optimiser's slots: learning rate, step, random step, flag (ops/optimizer.h).
  const Tensor& step_state() const { return step_state_; }
  /// FLOPs of a whole step (all micro-batches), and its memory.
  Cost cost() const;
  Executor& gradient_executor() { return *gradients_; }

  /// Memory and FLOPs of a step of this shape, without running or allocating anything: parameters, gradients, moments and
  /// inputs are persistent, the rest is the arena. FLOPs include those of recomputation, which `repeated` counts.
  static Cost predict(const GptOptions& model, const StepShape& shape, const OptimizerOptions& optimizer,
                      const StepLoss& loss = next_token_loss);

 private:
  struct Recorded {
    Tensor tokens, targets, scale, documents, step_state;
    Program gradients, update;
  };
  static Recorded record_step(Gpt& model, const StepShape& shape, const OptimizerOptions& optimizer, const StepLoss& loss);
  void stage(const Batch& batch, double scale, double learning_rate, double first_sequence);
  void fetch_loss();

  struct Unfinished {
    std::int64_t losses = 0;  // of micro-batches that were fetched
    double loss = 0;
  };

  StepShape shape_;
  Tensor tokens_, targets_, scale_, documents_, step_state_, gradient_buffer_;
  std::shared_ptr<Feed> feed_;
  std::unique_ptr<Executor> gradients_, update_;
  std::unique_ptr<Readback> losses_, norms_;
  std::deque<Unfinished> unfinished_;
  std::size_t parameters_ = 0;
};

/// Ids that a model of this kind reads: an input, or only its shape for a declared model.
Tensor ids_input(const Gpt& model, const Shape& shape, const char* name);

/// Copies a batch's rows into input tensors; throws Error if the sizes differ.
void copy_ids(const std::vector<std::int32_t>& from, const Tensor& to);

}  // namespace hedgehog

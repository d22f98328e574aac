#pragma once
#include <memory>
#include <string>
#include <vector>

#include "nn/distillation.h"
#include "train/batch_source.h"
#include "train/training_step.h"

namespace hedgehog {

/// What a TrainingStep of the student lowers when its maps are distilled from the teacher: distillation_loss, ids of padding included.
/// The teacher must outlive the step.
StepLoss distils_from(const Gpt& teacher, const std::string& by);

/// Mean KL divergence of a student's attention from its teacher's, nats a row.
struct Divergence {
  std::vector<std::vector<double>> heads;  // [layer][head]
  double mean() const;
};

/// Measures a student beside its teacher on batches of one shape, all layers in one pass and without gradients.
class DivergenceMeter {
 public:
  DivergenceMeter(const Gpt& teacher, const Gpt& student, std::int64_t rows, std::int64_t context, bool documents,
                  std::shared_ptr<Arena> arena = {});
  /// Over the valid targets of validation batches first … first + count - 1 (0: all).
  Divergence measure(const BatchSource& source, std::int64_t count = 0);

 private:
  void add(const Batch& batch, Divergence& sums);

  std::int64_t rows_;
  Tensor tokens_, documents_;
  std::unique_ptr<Executor> executor_;
};

}  // namespace hedgehog

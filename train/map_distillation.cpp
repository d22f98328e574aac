#include "train/map_distillation.h"

#include "train/distillation_step.h"
#include "train/interrupt.h"

namespace hedgehog {

std::vector<double> distil_maps(const Gpt& teacher, Gpt& student, const BatchSource& source, const MapDistillation& plan,
                                const std::function<bool()>& stopped) {
  student.parameters().train_only(is_map);
  StepShape shape;
  shape.rows = plan.rows, shape.context = plan.context > 0 ? plan.context : teacher.options().context, shape.documents = source.documents();
  OptimizerOptions optimizer;
  optimizer.beta2 = 0.999, optimizer.weight_decay = 0, optimizer.clip = 0;
  TrainingStep step(student, shape, optimizer, teacher.options().seed, {}, distils_from(teacher, "weights"));
  std::vector<double> losses;
  for (std::int64_t s = 0; s < plan.steps; ++s) {
    if (stopped()) throw Stopped{};
    const Batch batch = source.training(s, 0, plan.rows);
    const double rate = plan.learning_rate + (plan.final_learning_rate - plan.learning_rate) * double(s) / double(plan.steps);
    const StepResult result = step.run({&batch, 1}, rate);
    if (result.failed) throw DistillationDiverged("[distil_maps] the loss or a gradient is not finite: " + step.explain_failure({&batch, 1}).cause);
    losses.push_back(result.loss);
  }
  return losses;
}

}  // namespace hedgehog

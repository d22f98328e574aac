#include "train/experiments.h"

namespace hedgehog {

const std::vector<Experiment>& experiment_table() {
  static const std::vector<Experiment> table = {
      recall_experiment(),
      scratch_experiment(),
      spikiness_experiment(),
      monotonicity_experiment(),
      efficiency_experiment(),
      fidelity_experiment(),
  };
  return table;
}

}  // namespace hedgehog

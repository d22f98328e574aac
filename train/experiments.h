#pragma once
#include "train/reproduce.h"

namespace hedgehog {

/// The experiments of the paper, each in a file of its own.
Experiment recall_experiment();
Experiment spikiness_experiment();
Experiment monotonicity_experiment();
Experiment efficiency_experiment();

}  // namespace hedgehog

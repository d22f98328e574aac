#pragma once
#include "train/reproduce.h"

namespace hedgehog {

/// The experiments of the paper, each in a file of its own.
Experiment recall_experiment();
Experiment scratch_experiment();
Experiment spikiness_experiment();
Experiment monotonicity_experiment();
Experiment efficiency_experiment();
Experiment fidelity_experiment();

/// Share of the gap between 1+ELU and softmax that another attention closes, by their perplexities:
///
///   (elu - other) / (elu - softmax);  NaN where softmax is not better than 1+ELU
double share_of_gap(double softmax, double elu, double other);

}  // namespace hedgehog

#pragma once
#include "train/reproduce.h"

namespace hedgehog {

/// The experiments of the paper, each in a file of its own.
Experiment recall_experiment();

}  // namespace hedgehog

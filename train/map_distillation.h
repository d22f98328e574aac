#pragma once
#include <cstdint>
#include <functional>
#include <vector>

#include "core/error.h"
#include "nn/gpt.h"
#include "train/batch_source.h"

namespace hedgehog {

/// How an experiment distils maps.
struct MapDistillation {
  std::int64_t steps = 300, rows = 8;
  double learning_rate = 1e-2, final_learning_rate = 1e-3;  // of Adam, falling in a straight line
  std::int64_t context = 0;                                 // tokens a row of the source; 0: the teacher's context
};

/// A loss or a gradient is not finite: most often the learning rate is too high.
struct DistillationDiverged : Error {
  using Error::Error;
};

/// Trains the feature maps of `student` so that its weights of attention are those of `teacher`, all layers in one pass over the teacher's
/// queries and keys; nothing else of the student changes. Returns the loss of every step, the mean KL divergence, nats a row.
///
/// teacher  softmax attention; student: linear attention with maps that learn, of the same layers, heads and width
/// stopped  asked before every step; once true, Stopped is thrown
///
/// Throws DistillationDiverged naming the first number that is not finite.
/// Source: Zhang et al. 2024, arXiv:2402.04347, section 4.2.
std::vector<double> distil_maps(const Gpt& teacher, Gpt& student, const BatchSource& source, const MapDistillation& plan,
                                const std::function<bool()>& stopped);

}  // namespace hedgehog

#pragma once
#include "core/tensor.h"

namespace hedgehog {

/// Slots of the step state, a state tensor f64 (8): the values that change from step to step. Ops read them there and
/// never as attributes, so that a recorded program or a replayed graph sees the present ones.
enum StepState : int {
  kLearningRate = 0,   // set by the host before each step
  kStep = 1,           // updates done so far; adamw adds 1
  kRngStep = 2,        // step of random draws; adamw adds 1
  kNonFinite = 3,      // not 0: the loss or a gradient was not finite. Only the host clears it; updates wait until then
  kSeed = 4,           // of random draws, a whole number below 2^53
  kFirstSequence = 5,  // place of this micro-batch's first sequence in the global batch, set by the host
  kStepStateSize = 8,  // the other slots are reserved and 0
};

/// One slot, wherever the state lives. Reading waits for the device.
inline void set_slot(const Tensor& step, StepState slot, double value) { step.write(&value, slot, 1); }
inline double slot_of(const Tensor& step, StepState slot) {
  double value = 0;
  step.read(&value, slot, 1);
  return value;
}

/// A fresh step state: zeros but for the seed.
inline Tensor step_state(std::uint64_t seed = 0) {
  const Tensor step = state({kStepStateSize}, Dtype::f64, "step");
  set_slot(step, kSeed, double(seed));
  return step;
}

}  // namespace hedgehog

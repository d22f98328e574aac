#pragma once
#include "core/tape.h"
#include "ops/step_state.h"

namespace hedgehog {

/// Sets random elements to 0 and scales the others up, so that the mean stays.
///
///   y = x / (1 - rate) where u >= rate, else 0
///   u = uniform [0, 1) of Philox(seed, id, rng step) at the element's index in the global batch
///
/// x       (B, ...)  f32 | f64 | bf16 (CUDA); B sequences from number kFirstSequence of the global batch on
/// step    f64 (8)   see StepState; read: kSeed, kRngStep, kFirstSequence
/// rate    in [0, 1), unitless; 0 gives x itself
/// id      which dropout of the model, 0 or more: two with the same id drop the same elements
/// returns (B, ...)
///
/// Backward: dx = dy / (1 - rate) where u >= rate, else 0. The mask is drawn again, so the step must not change between
///           forward and backward.
/// Saved:    nothing; reads step.
/// Throws:   ShapeError if rate is outside [0, 1), id negative, or step not f64 (8).
/// Source:   Srivastava et al. 2014, "Dropout", in the inverted form; generator: Salmon et al. 2011.
Tensor dropout(const Tensor& x, const Tensor& step, double rate, std::int64_t id, SourceLine where = SourceLine::current());

}  // namespace hedgehog

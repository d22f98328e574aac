#pragma once
#include "core/tape.h"
#include "ops/step_state.h"

namespace hedgehog {

/// Columns of the table of spans, f64 (S, 5): which slice of the flat buffers each parameter is, and how it is trained.
/// Spans are in ascending order and do not overlap.
enum SpanColumn : int {
  kSpanOffset = 0,        // elements
  kSpanLength = 1,        // elements
  kSpanLearningRate = 2,  // factor on the learning rate
  kSpanDecay = 3,         // factor on the weight decay: 0 for biases, norms and maps
  kSpanFrozen = 4,        // not 0: neither counted in the norm nor updated
  kSpanColumns = 5,
};

/// Euclidean norms of the gradients, and the watch over non-finite values.
///
///   norms[s] = sqrt(sum over span s of gradient^2),  0 where frozen
///   norms[S] = sqrt(sum_s norms[s]^2)
///   step[kNonFinite] = 1 if norms[S] or the loss is not finite
///
/// gradients  (P)      f32 | f64 | bf16 (CUDA), flat
/// spans      f64 (S, 5), see SpanColumn
/// loss       one element, f32 | f64, or none
/// step       f64 (8), see StepState; kNonFinite is raised, never cleared
/// returns    norms f64 (S + 1); sums in f64, in a fixed order. Not differentiable
///
/// Throws:    ShapeError on wrong shapes or dtypes; Error if a span lies outside the buffer or overlaps the one before
///            (CUDA: its norm is NaN).
Tensor gradient_norm(const Tensor& gradients, const Tensor& spans, const Tensor& loss, const Tensor& step,
                     SourceLine where = SourceLine::current());

/// Constants of adamw; all unitless.
struct AdamW {
  double beta1 = 0.9;         // of the first moment
  double beta2 = 0.999;       // of the second moment
  double epsilon = 1e-8;
  double weight_decay = 0.0;  // decoupled, times the span's factor
  double clip = 0.0;          // largest norm of all gradients together; 0: off
};

/// One AdamW step over flat buffers, in one pass; clears the gradients behind it.
///
///   g = gradient * min(1, clip / norms[S])
///   m = beta1 m + (1 - beta1) g,   v = beta2 v + (1 - beta2) g^2
///   w = w - lr (m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + epsilon) + weight_decay * decay factor * w)
///   lr = step[kLearningRate] * learning-rate factor,   t = step[kStep] + 1
///
/// weights, gradients, first_moment, second_moment  (P)  f32 | f64, one dtype, flat; all overwritten
/// spans      f64 (S, 5), see SpanColumn; a frozen span only has its gradients cleared
/// norms      f64 (S + 1) of gradient_norm
/// step       f64 (8), see StepState; kStep and kRngStep are raised by 1
/// copy       (P) bf16, the compute copy of the weights, or none: gets every updated weight, rounded; frozen spans keep
///            what they have
///
/// While step[kNonFinite] is not 0 nothing at all is touched. Not differentiable.
/// Throws:    ShapeError on wrong shapes, dtypes or constants; Error on wrong spans, as gradient_norm (CUDA: left to that).
/// Source:    Loshchilov, Hutter 2017, arXiv:1711.05101, algorithm 2 with a constant schedule multiplier.
void adamw(const Tensor& weights, const Tensor& gradients, const Tensor& first_moment, const Tensor& second_moment, const Tensor& spans,
           const Tensor& norms, const Tensor& step, const AdamW& options = {}, const Tensor& copy = {},
           SourceLine where = SourceLine::current());

}  // namespace hedgehog

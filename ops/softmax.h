#pragma once
#include "core/tape.h"

namespace hedgehog {

/// Softmax over the last axis.
///
///   y_i = e^(x_i - m) / sum_j e^(x_j - m),   m = max_j x_j
///
/// x       (..., C)  f32 | f64 | bf16 (CUDA); -inf is allowed and gets 0, but a row of -inf alone gives NaN
/// returns (..., C), dtype of x; rows sum to 1
///
/// Backward: dx = y * (dy - sum_j dy_j y_j).
/// Saved:    nothing; reads y.
/// Throws:   ShapeError if x has no axis or is i32.
Tensor softmax(const Tensor& x, SourceLine where = SourceLine::current());

/// Logarithm of the softmax over the last axis.
///
///   y_i = x_i - m - ln sum_j e^(x_j - m),   m = max_j x_j
///
/// x       (..., C)  f32 | f64 | bf16 (CUDA)
/// returns (..., C), dtype of x; each element at most 0
///
/// Backward: dx = dy - e^y sum_j dy_j.
/// Saved:    nothing; reads y.
/// Throws:   ShapeError if x has no axis or is i32.
Tensor log_softmax(const Tensor& x, SourceLine where = SourceLine::current());

}  // namespace hedgehog

#pragma once
#include "core/tape.h"

namespace hedgehog {

/// Layer normalisation over the last axis.
///
///   xhat = (x - mean) * rstd,   rstd = 1 / sqrt(var + eps)
///   y    = xhat * weight + bias
///
/// x       (..., C)  f32 | f64 | bf16 (CUDA)
/// weight  (C)       dtype of x, f32 for bf16
/// bias    (C)       dtype of weight, or none
/// eps     > 0, default 1e-5, unitless
/// returns (..., C)
///
/// Backward: dbias = sum_n dy;  dweight = sum_n dy * xhat;
///           dx = rstd * (g - mean_c(g) - xhat * mean_c(g * xhat)),  g = dy * weight
/// Saved:    mean (N), rstd (N), N rows; in the dtype of x, f32 for bf16.
/// Throws:   ShapeError if weight or bias is not (C), dtypes differ from these, or eps is not above 0.
/// Source:   Ba, Kiros, Hinton 2016, arXiv:1607.06450, section 3.
Tensor layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias = {}, double eps = 1e-5,
                  SourceLine where = SourceLine::current());

/// Root mean square normalisation over the last axis.
///
///   y = x * rstd * weight,   rstd = 1 / sqrt(mean_c(x^2) + eps)
///
/// x       (..., C)  f32 | f64 | bf16 (CUDA)
/// weight  (C)       dtype of x, f32 for bf16
/// eps     > 0, default 1e-5, unitless
/// returns (..., C)
///
/// Backward: xhat = x * rstd;  dweight = sum_n dy * xhat;
///           dx = rstd * (g - xhat * mean_c(g * xhat)),  g = dy * weight
/// Saved:    rstd (N), N rows; in the dtype of x, f32 for bf16.
/// Throws:   ShapeError if weight is not (C), dtypes differ from these, or eps is not above 0.
/// Source:   Zhang, Sennrich 2019, arXiv:1910.07467, equation 4.
Tensor rms_norm(const Tensor& x, const Tensor& weight, double eps = 1e-5, SourceLine where = SourceLine::current());

/// A normalised sum, and the sum itself for the next residual.
struct NormedSum {
  Tensor y;    // (..., C) normalised
  Tensor sum;  // (..., C) x + residual
};

/// layer_norm of x + residual, in one pass over memory.
///
///   sum = x + residual,   y = layer_norm(sum, weight, bias)
///
/// x, residual (..., C), same shape and dtype; weight, bias, eps as in layer_norm
/// sum is rounded to its dtype before it is normalised
///
/// Backward: dx = dresidual = dsum + gradient of the norm; dweight, dbias as in layer_norm.
/// Saved:    mean (N), rstd (N), as in layer_norm; reads sum, not x and residual.
/// Throws:   as layer_norm, and if residual is not like x.
NormedSum add_layer_norm(const Tensor& x, const Tensor& residual, const Tensor& weight, const Tensor& bias = {}, double eps = 1e-5,
                         SourceLine where = SourceLine::current());

/// rms_norm of x + residual, in one pass over memory.
///
///   sum = x + residual,   y = rms_norm(sum, weight)
///
/// x, residual (..., C), same shape and dtype; weight, eps as in rms_norm
/// sum is rounded to its dtype before it is normalised
///
/// Backward: dx = dresidual = dsum + gradient of the norm; dweight as in rms_norm.
/// Saved:    rstd (N), as in rms_norm; reads sum, not x and residual.
/// Throws:   as rms_norm, and if residual is not like x.
NormedSum add_rms_norm(const Tensor& x, const Tensor& residual, const Tensor& weight, double eps = 1e-5,
                       SourceLine where = SourceLine::current());

}  // namespace hedgehog

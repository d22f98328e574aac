#pragma once
#include <string>

#include "core/tape.h"

namespace hedgehog {

/// Affine map of the last axis, with activation and addend in the same pass.
///
///   h = x weight + bias
///   y = activation(h) + addend
///
/// x           (..., K)  f32 | f64; may be rows with a stride
/// weight      (K, N)    dtype of x
/// bias        (N)       dtype of x, or none
/// addend      (..., N)  dtype of x, or none: the residual
/// activation  "none" | "gelu" | "gelu_erf" | "silu" | "relu"
///               gelu: h / (1 + exp(-2 u)), u = sqrt(2/pi) (h + 0.044715 h^3), which is the tanh form
///               gelu_erf: h erfc(-h / sqrt(2)) / 2, which is GELU itself
///               silu: h / (1 + exp(-h));  relu: max(h, 0)
/// returns     (..., N)
///
/// Backward: dh = dy * activation'(h) (dy itself without activation); dx = dh weight^T;  dweight = x^T dh;
///           dbias = sum over rows of dh;  daddend = dy.
/// Saved:    h (..., N), only with an activation.
/// Throws:   ShapeError if weight is not (K, N), bias not (N), addend not (..., N), dtypes differ, or the activation is
///           not one of the five.
/// Source:   GELU: Hendrycks, Gimpel 2016, arXiv:1606.08415, section 2.
Tensor linear(const Tensor& x, const Tensor& weight, const Tensor& bias = {}, const Tensor& addend = {},
              const std::string& activation = "none", SourceLine where = SourceLine::current());

}  // namespace hedgehog

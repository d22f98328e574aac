#pragma once
#include <string>

#include "core/tape.h"

namespace hedgehog {

/// Perceptron of two layers over the last axis: linear with an activation, then linear.
///
///   h = x weight_1 + bias_1;   g = activation(h)
///   y = g weight_2 + bias_2 + addend
///
/// x           (..., K)  f32 | f64 | bf16 (CUDA); may be rows with a stride
/// weight_1    (K, N)    dtype of x
/// weight_2    (N, M)    dtype of x
/// bias_1      (N)       dtype of x, or none
/// bias_2      (M)       dtype of x, or none
/// addend      (..., M)  dtype of x, or none: the residual
/// activation  "gelu" | "gelu_erf" | "silu" | "relu", as linear defines them
/// returns     (..., M)
///
/// Backward: daddend = dy;  dbias_2 = sum over rows of dy;  dweight_2 = g^T dy;
///           dh = (dy weight_2^T) * activation'(h);
///           dbias_1 = sum over rows of dh;  dweight_1 = x^T dh;  dx = dh weight_1^T.
/// Saved:    h and g, both (..., N). In bf16 dh is rounded when it is made, before its sums and products.
/// Throws:   ShapeError if weight_1 is not (K, N), weight_2 not (N, M), bias_1 not (N), bias_2 not (M), addend not (..., M),
///           dtypes differ, or the activation is not one of the four.
Tensor mlp(const Tensor& x, const Tensor& weight_1, const Tensor& weight_2, const Tensor& bias_1 = {}, const Tensor& bias_2 = {},
           const Tensor& addend = {}, const std::string& activation = "gelu", SourceLine where = SourceLine::current());

}  // namespace hedgehog

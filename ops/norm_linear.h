#pragma once
#include <string>

#include "core/tape.h"

namespace hedgehog {

struct NormLinearOptions {
  std::string norm = "layer";       // or "rms"
  std::string activation = "none";  // or "gelu", "gelu_erf", "silu", "relu", as linear defines them
  bool transpose_weight = false;
  double eps = 1e-5;                // above 0, unitless
};

/// A norm and the linear layer behind it in one pass, for decoding: a row is so short that whoever multiplies it can normalise
/// it for itself.
///
///   n = layer_norm(x, norm_weight, norm_bias)   or rms_norm(x, norm_weight)
///   y = activation(n weight + bias)
///
/// x            (..., K)  f32 | f64 | bf16 (CUDA)
/// norm_weight  (K)       dtype of x, f32 for bf16
/// norm_bias    (K)       like norm_weight, or none; none with "rms"
/// weight       (K, N)    dtype of x; with transpose_weight (N, K), and then there is neither bias nor activation: a classifier
/// bias         (N)       dtype of x, or none
/// returns      (..., N); n is rounded to the dtype of x before it is multiplied, as it is where the two are ops of their own
///
/// Backward: none; training keeps n for the weight's gradient.
/// Saved:    nothing.
/// Throws:   ShapeError if norm_weight or norm_bias is not (K), weight not (K, N) or (N, K), bias not (N), dtypes differ from these,
///           norm or activation is not one of those, norm_bias comes with "rms", bias or activation with transpose_weight, or eps is
///           not above 0.
Tensor norm_linear(const Tensor& x, const Tensor& norm_weight, const Tensor& norm_bias, const Tensor& weight, const Tensor& bias = {},
                   const NormLinearOptions& options = {}, SourceLine where = SourceLine::current());

/// `infer` of norm_linear for an op that begins with one, in whose name it raises errors. Internal to ops/.
Layout infer_norm_linear(const Op& op, const Attributes& attributes, std::span<const Meta> inputs, const char* width = "K",
                         const char* columns = "N");

}  // namespace hedgehog

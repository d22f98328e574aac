#pragma once
#include <string>

#include "nn/lora.h"
#include "nn/parameters.h"
#include "ops/ops.h"

namespace hedgehog {

struct Norm;

/// y = activation(x weight + bias) + addend. weight (in, out), named NAME.weight; bias named NAME.bias. With a low-rank update
/// y = activation(x weight + bias + lora(x)) + addend.
struct Linear {
  Tensor weight, bias;
  Lora lora;  // or none

  Linear() = default;
  Linear(Parameters& parameters, const std::string& name, std::int64_t in, std::int64_t out, bool with_bias, Init init);
  /// `step`: the optimiser's step state, for the update's dropout in training.
  Tensor operator()(const Tensor& x, const Tensor& addend = {}, const std::string& activation = "none", const Tensor& step = {}) const;
  /// The same of norm(x) without an addend, in one pass and without a gradient: for decoding.
  Tensor step(const Tensor& x, const Norm& norm, const std::string& activation = "none") const;
};

/// Layer norm ("layer") or RMS norm ("rms") over the last axis; eps as theirs.
struct Norm {
  std::string kind;
  Tensor weight, bias;
  double eps = 1e-5;

  Norm() = default;
  Norm(Parameters& parameters, const std::string& name, const std::string& kind, std::int64_t width, bool with_bias, double eps = 1e-5);
  Tensor operator()(const Tensor& x) const;
};

/// Dropout on a residual branch; with rate 0 it records nothing. `step` is the optimiser's step state, whose random step
/// keys the draws; every instance has an id of its own.
struct Dropout {
  double rate = 0;
  std::int64_t id = 0;
  Tensor operator()(const Tensor& x, const Tensor& step) const;
};

/// The perceptron of a block: out(activation(fc(x))) + residual. Gated, fc makes two halves (Shazeer 2020, arXiv:2002.05202; with silu
/// SwiGLU):
///
///   out(activation(g) * u) + residual,   (g, u) = fc(x)
struct Mlp {
  Linear fc, out;
  std::string activation;
  bool gated = false;
  Dropout dropout;
  Tensor operator()(const Tensor& x, const Tensor& residual, const Tensor& step) const;
  /// Decoding: out(activation(fc(norm(x)))) + x.
  Tensor step(const Tensor& x, const Norm& norm) const;
};

}  // namespace hedgehog

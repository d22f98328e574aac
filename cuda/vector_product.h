#pragma once
#include <cstdint>

#include "ops/activation.h"

namespace hedgehog::cuda {

/// Most rows of x that multiply_vectors takes.
constexpr std::int64_t kMostVectors = 4;

/// Longest rows that multiply_vectors normalises.
constexpr std::int64_t kMostNormed = 2048;

/// A few rows through a linear layer, as decoding needs it.
///
///   h = x' W + bias;  y = activation(h) + addend,   all bf16, sums f32, each result rounded once
///
/// x' is x, or its norm with f32 weights, rounded to bf16.
/// A row has the same bits whatever rows go with it.
struct VectorProduct {
  std::int64_t m = 0, n = 0, k = 0;
  const void* x = nullptr;       // (m, k), rows ldx elements apart
  std::int64_t ldx = 0;
  const float* norm_weight = nullptr;  // (k), null: x is not normalised
  const float* norm_bias = nullptr;    // (k), or null
  float eps = 0;
  bool centred = false;          // layer norm, else RMS norm
  const void* weight = nullptr;  // (k, n)
  bool transposed = false;       // weight is (n, k)
  const void* bias = nullptr;    // (n), or null
  bool parameters = false;       // all weights and biases, the norm's too, are parameters, which may be read before the kernels before are done
  const void* addend = nullptr;  // (m, n), or null
  Activation activation = Activation::none;
  void* h = nullptr;             // (m, n), or null
  void* y = nullptr;             // (m, n)
};

/// Enqueues the product and returns true; false, and nothing is done, where there are more rows, longer ones with a norm, or
/// sizes and addresses do not allow 16-byte accesses.
bool multiply_vectors(const VectorProduct& product);

}  // namespace hedgehog::cuda

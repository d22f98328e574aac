#pragma once
#include "cuda/common.cuh"
#include "ops/activation.h"
#include "ops/normal.h"

/// What follows a linear layer's product, and what goes before its backward products.
namespace hedgehog::cuda {

template <class A>
__device__ __forceinline__ A sigmoid(A x) {
  if constexpr (std::is_same_v<A, double>) return 1 / (1 + exp(-x));
  else return 1 / (1 + expf(-x));
}

template <class A>
__device__ __forceinline__ A activate(Activation kind, A h) {
  switch (kind) {
    case Activation::gelu: return h * sigmoid(A(kGelu) * h * (A(1) + A(kGeluCube) * h * h));
    case Activation::gelu_erf: return h * vector_normal(h).below;
    case Activation::silu: return h * sigmoid(h);
    case Activation::relu: return h < A(0) ? A(0) : h;  // NaN stays NaN
    default: return h;
  }
}

/// Derivative of activate.
template <class A>
__device__ __forceinline__ A slope(Activation kind, A h) {
  switch (kind) {
    case Activation::gelu: {
      const A square = h * h, s = sigmoid(A(kGelu) * h * (A(1) + A(kGeluCube) * square));
      return s + s * (A(1) - s) * A(kGelu) * h * (A(1) + A(3 * kGeluCube) * square);
    }
    case Activation::gelu_erf: {
      const Normal<A> n = vector_normal(h);
      return n.below + h * n.density;
    }
    case Activation::silu: {
      const A s = sigmoid(h);
      return s * (A(1) + h * (A(1) - s));
    }
    case Activation::relu: return h > A(0) ? A(1) : A(0);
    default: return A(1);
  }
}

}  // namespace hedgehog::cuda

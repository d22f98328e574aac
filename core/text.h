#pragma once
#include "core/tensor.h"

namespace hedgehog {

/// Human-readable elements, for lessons and examples.
std::string text(const Tensor& tensor, int digits = 5);
void print(const Tensor& tensor);

/// The same tensor, called so from now on: in messages and in the stepper.
Tensor named(const Tensor& tensor, std::string name);

}  // namespace hedgehog

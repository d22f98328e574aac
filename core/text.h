#pragma once
#include "core/tensor.h"

namespace hedgehog {

/// Human-readable elements, for lessons and examples.
std::string text(const Tensor& tensor, int digits = 5);
void print(const Tensor& tensor);

}  // namespace hedgehog

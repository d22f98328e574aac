#pragma once
#include "core/tensor.h"

namespace hedgehog {

/// Moves tensors of one dtype into one flat storage, in order, each aligned to `alignment` elements;
/// returns the flat tensor. Afterwards each tensor is a slice of it. Gaps are zero.
Tensor flatten_storage(const Tensors& tensors, Role role, std::string name, std::int64_t alignment = 16);

}  // namespace hedgehog

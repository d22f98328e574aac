#pragma once
#include "cuda/kernels.h"

namespace hedgehog::cuda {

// parts of register_elementwise
void register_unary(KernelTable& table);  // affine to floor_at
void register_masks(KernelTable& table);  // causal_mask and mask_fill

}  // namespace hedgehog::cuda

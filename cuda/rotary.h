#pragma once
#include "core/op.h"

namespace hedgehog::cuda {

/// y (+)= the vectors of x (B, T, H, D) turned by the table (T, D) of rotary, or turned back by it; layout "half". x may be y; without
/// data it stands for zeros. y has the dtype of x, or f32 where x is bf16.
void rotate_heads(const Ref& x, const Ref& table, bool back, const Ref& y, bool adds);

}  // namespace hedgehog::cuda

#pragma once
#include "cuda/walk.cuh"

/// Launchers that move elements, shared by the families. `op` is named when a launch fails.
namespace hedgehog::cuda {

/// to (+)= from along a walk over {to, from}, converted where the dtypes differ.
void move(const char* op, const detail::Walk<2>& walk, void* to, Dtype to_dtype, const void* from, Dtype from_dtype, bool adds);
/// y = value; y may be rows with a stride.
void fill(const char* op, const Ref& y, double value);
/// A gradient whose upstream counts as zeros: dx (+)= 0.
inline void add_nothing(const char* op, const Ref& dx, Mode mode) {
  if (mode == Mode::write) fill(op, dx, 0);
}

}  // namespace hedgehog::cuda

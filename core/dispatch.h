#pragma once
#include <utility>

#include "core/op.h"

namespace hedgehog {

[[noreturn]] void refuse_dtype(Dtype dtype);

/// Calls f(T{}) with the element type of a computing dtype on the CPU: f32 or f64.
template <class F>
void dispatch(Dtype dtype, F&& f) {
  if (dtype == Dtype::f32) return f(float{});
  if (dtype == Dtype::f64) return f(double{});
  refuse_dtype(dtype);
}

/// The same for ops that only move elements: i32 and bf16 too (bf16 as its bits).
template <class F>
void dispatch_any(Dtype dtype, F&& f) {
  if (dtype == Dtype::i32) return f(std::int32_t{});
  if (dtype == Dtype::bf16) return f(std::uint16_t{});
  dispatch(dtype, std::forward<F>(f));
}

/// For sizes of CPU workspace: bf16, which only other devices compute in, needs none of it, so f is not called.
template <class F>
void dispatch_workspace(Dtype dtype, F&& f) {
  if (dtype != Dtype::bf16) dispatch(dtype, std::forward<F>(f));
}

}  // namespace hedgehog

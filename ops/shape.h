#pragma once
#include <vector>

#include "core/tape.h"

/// Ops that give elements another shape, order, number or dtype. reshape and split are views: they share the memory of
/// their argument and cost nothing.
namespace hedgehog {

/// The same elements, row-major, in another shape.
///
/// x       any shape and dtype
/// shape   as many elements
/// returns a view of x with that shape (of a contiguous copy, if x is a view whose rows the new shape would cut)
///
/// Backward: dx = dy in the shape of x; the gradient is the same view of the gradient of x, nothing is computed.
/// Saved:    nothing.
/// Throws:   ShapeError if the numbers of elements differ.
Tensor reshape(const Tensor& x, const Shape& shape, SourceLine where = SourceLine::current());

/// Cuts x into neighbouring parts along one axis.
///
///   Tensors qkv = split(linear(x, w), {C, C, C});   // (B, T, 3C) -> three (B, T, C), none of them copied
///
/// x       any shape and dtype
/// sizes   extents of the parts along the axis, each at least 1; their sum is the extent of x
/// axis    negative counts from the end
/// returns views of x (of a contiguous copy, if x is a view that already lies in rows shorter than needed)
///
/// Backward: each part's gradient is written into its own columns of dx; a part without a gradient counts as 0.
/// Saved:    nothing.
/// Throws:   ShapeError if x has no such axis or the sizes do not sum to its extent.
Tensors split(const Tensor& x, const std::vector<std::int64_t>& sizes, int axis = -1, SourceLine where = SourceLine::current());

/// Joins tensors along one axis.
///
/// parts   at least one; equal shapes but for that axis, one dtype of any
/// axis    negative counts from the end
/// returns the shape of the parts with the sum of their extents along the axis
///
/// Backward: each part gets its window of dy.
/// Saved:    nothing.
/// Throws:   ShapeError if the list is empty, the axis does not exist, or another extent or the dtypes differ.
Tensor concat(const Tensors& parts, int axis = -1, SourceLine where = SourceLine::current());

/// Changes the order of the axes: axis i of the result is axis order[i] of x. Copies.
///
///   permute(x, {0, 2, 1, 3})   // (B, T, H, D) -> (B, H, T, D)
///
/// x       any shape and dtype
/// order   each axis once
/// returns extents of x in that order
///
/// Backward: dx = dy in the inverse order.
/// Saved:    nothing.
/// Throws:   ShapeError if order does not name each axis once.
Tensor permute(const Tensor& x, const std::vector<std::int64_t>& order, SourceLine where = SourceLine::current());

/// Repeats each head `times` times in a row: grouped keys and values as a full set of heads.
///
///   y[.., h * times + r, :] = x[.., h, :],   0 <= r < times
///
/// x       (..., H, D), at least two axes, any dtype; (B, T, H, D) in attention
/// times   at least 1
/// returns (..., H * times, D)
///
/// Backward: dx[.., h, :] = sum_r dy[.., h * times + r, :].
/// Saved:    nothing.
/// Throws:   ShapeError if x has fewer than two axes or times is under 1.
/// Source:   Ainslie et al. 2023, arXiv:2305.13245.
Tensor repeat_heads(const Tensor& x, std::int64_t times, SourceLine where = SourceLine::current());

/// The same numbers in another dtype, rounded to nearest even. x itself if it has the dtype already.
///
/// x       any shape, any dtype
/// dtype   f32 | f64 | bf16
/// returns the shape of x
///
/// Backward: dx = dy in the dtype of x.
/// Saved:    nothing.
/// Throws:   ShapeError if dtype is i32.
Tensor cast(const Tensor& x, Dtype dtype, SourceLine where = SourceLine::current());

/// x itself, or a copy if x is a view whose memory cuts the vectors along its last axis, so that they cannot be walked.
inline Tensor whole_vectors(const Tensor& x) {
  const bool cut = x && x.shape().rank() > 0 && !x.contiguous() && x.columns() % x.shape().last() != 0;
  return cut ? contiguous(x) : x;
}

}  // namespace hedgehog

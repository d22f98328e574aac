#pragma once
#include "core/tape.h"

/// Reductions over all elements or over one axis. x is f32 | f64 | bf16 (CUDA), and the result has its dtype; axis may be
/// negative and then counts from the end; keep leaves the reduced axis with extent 1 instead of dropping it.
namespace hedgehog {

/// Sum of all elements.
///
///   y = sum_i x_i
///
/// x       any shape
/// returns (), dtype of x
///
/// Partial sums are f64 over blocks that depend on the shape alone: the bits do not depend on the number of threads.
/// Backward: dx_i = dy.
/// Saved:    nothing.
Tensor sum(const Tensor& x, SourceLine where = SourceLine::current());

/// Sum over one axis.
///
/// x       any shape of at least one axis
/// returns the shape of x without that axis, or with extent 1 there (keep)
///
/// Backward: dx = dy, repeated along the axis.
/// Saved:    nothing.
/// Throws:   ShapeError if x has no such axis.
Tensor sum(const Tensor& x, int axis, bool keep = false, SourceLine where = SourceLine::current());

/// Mean of all elements: the sum divided by their number.
///
/// x       any shape
/// returns (), dtype of x
///
/// Backward: dx_i = dy / n.
/// Saved:    nothing.
Tensor mean(const Tensor& x, SourceLine where = SourceLine::current());

/// Mean over one axis of extent n.
///
/// x       any shape of at least one axis
/// returns the shape of x without that axis, or with extent 1 there (keep)
///
/// Backward: dx = dy / n, repeated along the axis.
/// Saved:    nothing.
/// Throws:   ShapeError if x has no such axis.
Tensor mean(const Tensor& x, int axis, bool keep = false, SourceLine where = SourceLine::current());

/// Largest element along one axis. A NaN there makes the result NaN.
///
/// x       any shape of at least one axis
/// returns the shape of x without that axis, or with extent 1 there (keep)
///
/// Backward: dx = dy at the first of the largest elements, else 0.
/// Saved:    where it is, i32, shape of y.
/// Throws:   ShapeError if x has no such axis.
Tensor max(const Tensor& x, int axis, bool keep = false, SourceLine where = SourceLine::current());

/// Logarithm of a sum of exponentials along one axis, shifted by the maximum m so that nothing overflows.
///
///   y = m + ln sum_i e^(x_i - m)
///
/// x       any shape of at least one axis; -inf is allowed (all -inf gives -inf)
/// returns the shape of x without that axis, or with extent 1 there (keep)
///
/// Backward: dx_i = dy * e^(x_i - y).
/// Saved:    nothing; reads x and y.
/// Throws:   ShapeError if x has no such axis.
Tensor logsumexp(const Tensor& x, int axis = -1, bool keep = false, SourceLine where = SourceLine::current());

}  // namespace hedgehog

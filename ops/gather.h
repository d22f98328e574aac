#pragma once
#include "core/tape.h"

namespace hedgehog {

/// Rows of a table by number.
///
///   y[..., c] = table[index[...], c]
///
/// table   (V, C)  f32 | f64 | bf16 (CUDA)
/// index   (...)   i32, each in [0, V)
/// returns (..., C), dtype of table
///
/// Backward: dtable[v] = sum of dy over the places where index = v, in order.
/// Saved:    nothing; reads index.
/// Throws:   ShapeError on wrong axes or dtypes; Error if an index is outside the table, naming it and its position (on
///           CUDA its row is NaN instead).
Tensor gather_rows(const Tensor& table, const Tensor& index, SourceLine where = SourceLine::current());

/// One element of each row by number; -1 takes none.
///
///   y[...] = x[..., index[...]],   0 where index = -1
///
/// x       (..., V)  f32 | f64 | bf16 (CUDA)
/// index   (...)     i32, each in [-1, V)
/// returns (...), dtype of x
///
/// Backward: dx = dy at the element taken, 0 elsewhere.
/// Saved:    nothing; reads index.
/// Throws:   ShapeError on wrong axes or dtypes; Error if an index is outside the row, naming it and its position (on CUDA
///           the result is NaN instead).
Tensor gather_last(const Tensor& x, const Tensor& index, SourceLine where = SourceLine::current());

}  // namespace hedgehog

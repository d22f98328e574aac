#pragma once
#include <string>

#include "core/tape.h"
#include "ops/rotary_scaling.h"

namespace hedgehog {

/// Cosines and sines of rotary positions, made once and shared by all layers.
///
///   angle[t, i] = (t + offset) * f_i,   f_i = scaled(base^(-2 i / D)),   computed and reduced in f64
///   table[t]    = (cos angle[t, 0..D/2), sin angle[t, 0..D/2))
///
/// length     T, tokens
/// dimension  D, even
/// base       above 0, default 10000
/// offset     i32 (1), position of t = 0 in tokens (an input or a state, for decoding), or none: 0
/// dtype      f32 | f64, of the tensors to be rotated; f32 for bf16
/// scaling    of the frequencies f_i (ops/rotary_scaling.h)
/// returns    (T, D), without gradient
///
/// Throws:    ShapeError if D is odd, T or D below 1, base not above 0, offset not i32 (1), or the scaling has a factor below 1, no
///            0 < low < high, or a negative context.
Tensor rotary_table(std::int64_t length, std::int64_t dimension, double base = 10000, const Tensor& offset = {},
                    Dtype dtype = Dtype::f32, const RotaryScaling& scaling = {}, SourceLine where = SourceLine::current());

/// Rotates pairs of features by angles that grow with the position, so that products of two rotated vectors depend on
/// the distance of their positions only.
///
///   (y1, y2) = (x1 cos - x2 sin, x2 cos + x1 sin) for every pair i of x[b, t, h]
///
/// x       (B, T, H, D)  f32 | f64 | bf16 (CUDA), D even; may be rows with a stride
/// table   (T, D)        of rotary_table, dtype of x, f32 for bf16
/// layout  "half": pair i is (i, i + D/2), as in Llama checkpoints; "pairs": (2 i, 2 i + 1), as in the paper
/// returns (B, T, H, D)
///
/// Backward: dx is dy rotated by the negative angles.
/// Saved:    nothing; reads table.
/// Throws:   ShapeError if D is odd, table is not (T, D), dtypes differ, or the layout is neither.
/// Source:   Su et al. 2021, arXiv:2104.09864, equation 34.
Tensor rotary(const Tensor& x, const Tensor& table, const std::string& layout = "half", SourceLine where = SourceLine::current());

/// The same with a table of its own; for several layers make the table once.
Tensor rotary(const Tensor& x, double base = 10000, const std::string& layout = "half", const Tensor& offset = {},
              SourceLine where = SourceLine::current());

}  // namespace hedgehog

#pragma once
#include "core/tape.h"

namespace hedgehog {

/// Matrix product over the last two axes.
///
///   y[.., i, j] = sum_k A[.., i, k] B[.., k, j],   A = a or its transpose, B = b or its transpose
///
///   matmul(q, k, false, true)   // (B, H, T, D), (B, H, T, D) -> (B, H, T, T)
///   matmul(x, w)                // (B, T, C), (C, N) -> (B, T, N): one product with B·T rows
///
/// a            (..., M, K), or (..., K, M) if transpose_a;  f32 | f64 | bf16
/// b            (..., K, N), or (..., N, K) if transpose_b;  dtype of a; leading axes of a, or none
/// returns      (..., M, N)
///
/// With a b of two axes the leading axes of a become rows of one product, and so does the gradient of b (unless a is
/// transposed: then b is used, and its gradient summed, product after product).
/// Backward: dA = dy B^T, dB = A^T dy, transposed where the argument is; db is summed over the leading axes it lacks.
/// Saved:    nothing; reads a and b.
/// Throws:   ShapeError if an argument has fewer than two axes, the inner extents or the leading axes differ, or the
///           dtypes do.
Tensor matmul(const Tensor& a, const Tensor& b, bool transpose_a = false, bool transpose_b = false,
              SourceLine where = SourceLine::current());

}  // namespace hedgehog

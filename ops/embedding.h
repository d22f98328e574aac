#pragma once
#include "core/tape.h"

namespace hedgehog {

/// Vectors of tokens, plus learned vectors of positions if given.
///
///   y[b, t] = table[tokens[b, t]] + positions[t + offset]
///
/// tokens     (..., T)  i32, each in [0, V)
/// table      (V, C)    f32 | f64 | bf16 (CUDA)
/// positions  (P, C)    dtype of table, or none; P at least T + offset
/// offset     position of t = 0, in tokens, default 0
/// returns    (..., T, C)
///
/// Backward: dtable[v] = sum of dy over the tokens v, in order;  dpositions[t + offset] = sum_b dy[b, t].
///           With a parameter as table (its gradient adds up) the cost does not depend on V.
/// Saved:    nothing; reads tokens.
/// Throws:   ShapeError on wrong axes or dtypes, or if T + offset exceeds P; Error if a token is outside the table,
///           naming it, its position and V (CUDA: the token's row is NaN, and no gradient comes of it).
Tensor embedding(const Tensor& tokens, const Tensor& table, const Tensor& positions = {}, std::int64_t offset = 0,
                 SourceLine where = SourceLine::current());

}  // namespace hedgehog

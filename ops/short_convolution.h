#pragma once
#include "core/tape.h"

namespace hedgehog {

/// Causal depthwise convolution over a few tokens: every channel mixes the token with those just before it. On queries,
/// keys and values it lets attention compare what precedes two tokens, which recall of pairs needs, in one layer.
///
///   y[b, t, c] = sum_j weight[j, c] x[b, t - j, c]     over j < K with t - j inside the token's document
///
/// x               (B, T, C)  f32 | f64 | bf16 (CUDA)
/// weight          (K, C)     dtype of x; row j weighs the token j steps back
/// document_start  (B, T)     i32, optional: start of each token's document in its row; without it a row is one document
/// returns         (B, T, C)
///
/// Backward: dx[b, t, c] = sum_j weight[j, c] dy[b, t + j, c] over the t + j of the same document;
///           dweight[j, c] = sum_{b, t} dy[b, t, c] x[b, t - j, c].
/// Saved:    nothing; reads x, weight and document_start.
/// Throws:   ShapeError if x is not (B, T, C), weight not (K, C), document_start not i32 (B, T), or the dtypes differ.
/// Source:   Fu et al. 2023 (H3, the shift SSM), arXiv:2212.14052, section 3.1; Poli et al. 2023 (Hyena), arXiv:2302.10866,
///           section 3.2.
Tensor short_convolution(const Tensor& x, const Tensor& weight, const Tensor& document_start = {},
                         SourceLine where = SourceLine::current());

/// The same for the next tokens of a stream.
///
/// x        (B, n, C)      f32 | f64 | bf16 (CUDA): the next n tokens, usually 1
/// weight   (K, C)         K at least 2
/// state    (B, K - 1, C)  state, overwritten: the last K - 1 tokens, oldest first; zeros before the first token;
///                         dtype of x, f32 for bf16
/// returns  (B, n, C), equal to the rows of short_convolution over the whole sequence up to rounding
///
/// Backward: none.
/// Saved:    nothing.
/// Throws:   ShapeError on wrong shapes or dtypes.
Tensor short_convolution_step(const Tensor& x, const Tensor& weight, const Tensor& state,
                              SourceLine where = SourceLine::current());

}  // namespace hedgehog

#pragma once
#include "core/tape.h"

namespace hedgehog {

/// Features of cosFormer: rectified, and weighed by a cosine of the distance.
///
///   r = max(x, 1e-6),   a_i = pi i / (2 M),   i = 1, 2, ... the position
///   phi(x_i) = [r sin a_i, r cos a_i],   so that phi(q_i) . phi(k_j) = r(q_i) . r(k_j) cos(pi (i - j) / (2 M))
///
/// They go into linear_attention with the map "identity", and decoding takes one token after the other:
///
///   cosformer_features(q, 1024)             // tokens 1 ... T, T at most 1024
///   cosformer_features(q, 1024, position)   // tokens position + 1 ...
///
/// x       (B, T, H, D)   f32 | f64 | bf16 (CUDA); may be rows with a stride
/// length  M, tokens, at least T: no two tokens may lie further apart, as weights would be negative. With an offset the caller's to keep
/// offset  i32 (1), position of t = 0 in tokens, counted from 0 as rotary_table does (an input or a state, for decoding), or none: 0
/// returns (B, T, H, 2 D)  dtype of x; angles in f64
///
/// Backward: dx = dphi_sin sin a_i + dphi_cos cos a_i where x > 1e-6, else 0.
/// Saved:    nothing; reads x and offset.
/// Throws:   ShapeError if x has not 4 axes, T exceeds length, or offset is not i32 (1).
/// Source:   Qin et al. 2022, arXiv:2202.08791, section 3.3.
Tensor cosformer_features(const Tensor& x, std::int64_t length, const Tensor& offset = {}, SourceLine where = SourceLine::current());

}  // namespace hedgehog

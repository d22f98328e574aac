#pragma once
#include "core/tape.h"

namespace hedgehog {

/// Features of the Taylor map of second order, whose products are the first terms of the exponential:
///
///   phi(q) . phi(k) = 1 + s + s^2 / 2,   s = q . k / sqrt(D)
///   phi(x) = [1, x / D^(1/4), x_i x_j / sqrt(2 D)]   full:    all D^2 pairs (i, j), i first
///                                                   compact: pairs i <= j, those with i < j times sqrt(2)
///
/// They go into linear_attention with the map "identity".
///
///   LinearAttentionOptions o;
///   o.map = "identity";
///   linear_attention(taylor_features(q), taylor_features(k), v, o);
///
/// x       (B, T, H, D)  f32 | f64 | bf16 (CUDA); may be rows with a stride
/// compact half of the products, which the full map has twice
/// returns (B, T, H, F)  dtype of x; F = 1 + D + D^2, compact 1 + D + D (D + 1) / 2: 153 for D = 16
///
/// 1 + s + s^2 / 2 grows again below s = -1: with such scores the map is not monotonous.
///
/// Backward: with G the gradient of the pairs as a matrix, dx = dphi_1 / D^(1/4) + (G + G^T) x / sqrt(2 D);
///           compact: the pairs i < j weigh sqrt(2).
/// Saved:    nothing; reads x.
/// Throws:   ShapeError if x has not 4 axes.
/// Source:   Arora et al. 2024, arXiv:2402.18668, section 4; as a baseline: Zhang et al. 2024, arXiv:2402.04347, section 4.1.
Tensor taylor_features(const Tensor& x, bool compact = true, SourceLine where = SourceLine::current());

/// F of taylor_features.
constexpr std::int64_t taylor_feature_count(std::int64_t D, bool compact = true) { return 1 + D + (compact ? D * (D + 1) / 2 : D * D); }

}  // namespace hedgehog

#pragma once
#include <vector>

#include "core/random.h"
#include "core/tape.h"

namespace hedgehog {

/// Logarithms of Performer's positive random features (FAVOR+), whose products estimate the exponential without bias:
///
///   E[phi(q) . phi(k)] = exp(q . k / sqrt(D))   for rows w_r of the projection that are standard normal
///   ln phi_r(x) = w_r . y - |y|^2 / 2 - ln(F) / 2,   y = x / D^(1/4)
///   hyperbolic:   both w_r and -w_r: first all of w_r . y, then all of -w_r . y
///
/// They go into linear_attention with the map "exp", which needs logarithms for its exact stabilisation:
///
///   LinearAttentionOptions o;
///   o.map = "exp";
///   linear_attention(performer_features(q, w), performer_features(k, w), v, o);
///
/// x           (B, T, H, D)  f32 | f64 | bf16 (CUDA); may be rows with a stride
/// projection  (m, D)        dtype of x, f32 for bf16; of performer_projection, the same for queries and keys; gets no gradient
/// hyperbolic  two features a row
/// returns     (B, T, H, F)  dtype of x; F = m, hyperbolic 2 m. In bf16 a logarithm is rounded to 8 bits, so a large |x| costs digits
///
/// Backward: with h = dphi (hyperbolic: its first half minus its second),
///           dx = (W^T h - y sum_r dphi_r) / D^(1/4).
/// Saved:    nothing; reads x and projection.
/// Throws:   ShapeError if x has not 4 axes, or the projection is not (m, D) of the dtype above.
/// Source:   Choromanski et al. 2021, arXiv:2009.14794, lemma 1 and section 2.3.
Tensor performer_features(const Tensor& x, const Tensor& projection, bool hyperbolic = false, SourceLine where = SourceLine::current());

/// A random projection with orthogonal rows: blocks of D rows from the QR decomposition of a Gaussian matrix, each row then of another
/// length. Rows of different blocks are independent; the last block may be cut.
///
/// rows        m
/// dimension   D
/// random      the stream to draw from; equal streams give equal numbers on every machine up to rounding in f64
/// equal_norms all rows have the length sqrt(D); otherwise that of a Gaussian vector, with which each row is standard normal
/// returns     (m, D), row-major
///
/// Throws:     ShapeError if rows or dimension are below 1.
/// Source:     Choromanski et al. 2021, arXiv:2009.14794, section 2.4.
std::vector<double> performer_projection(std::int64_t rows, std::int64_t dimension, const Random& random, bool equal_norms = false);

}  // namespace hedgehog

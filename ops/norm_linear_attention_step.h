#pragma once
#include <string>

#include "ops/linear_attention_step.h"

namespace hedgehog {

struct NormLinearAttentionStepOptions {
  std::int64_t heads = 1, key_heads = 0;  // Hq and Hkv; 0 key heads: as many as heads
  std::string norm = "layer";             // or "rms"
  double eps = 1e-5;                      // above 0, unitless
  LinearAttentionStepOptions attention = {};  // maps and rotary, (n, D)
};

/// A norm, the projection to queries, keys and values, and linear attention's step in one pass, for decoding: with one token
/// each launch costs more than what it computes.
///
///   q, k, v = columns of norm_linear(x, norm_weight, norm_bias, weight, bias), in this order, as heads
///   o       = linear_attention_step(q, k, v, state)
///
/// x            (B, n, C)  f32 | f64 | bf16 (CUDA): the next n tokens, usually 1
/// norm_weight  (C)        dtype of x, f32 for bf16
/// norm_bias    (C)        like norm_weight, or none; none with "rms"
/// weight       (C, (Hq + 2 Hkv) D)  dtype of x
/// bias         ((Hq + 2 Hkv) D)     dtype of x, or none
/// state        (B, Hq, F, D + 2)    state, overwritten; it, the maps and the rotary table are as in linear_attention_step
/// returns      (B, n, Hq, D); the norm and q, k, v are rounded to the dtype of x on their way, as they are between the two ops
///
/// On a GPU with clusters (Hopper and later) it is one launch for one row of bf16, heads of 64 and C up to 2048 with the map "hedgehog";
/// else one op after the other.
///
/// Backward: none.
/// Saved:    nothing.
/// Throws:   ShapeError where norm_linear or linear_attention_step would, if heads is not above 0 or key_heads not a divisor of it,
///           x not (B, n, C), or the columns of weight are not those of so many heads.
Tensor norm_linear_attention_step(const Tensor& x, const Tensor& norm_weight, const Tensor& norm_bias, const Tensor& weight,
                                  const Tensor& bias, const Tensor& state, const NormLinearAttentionStepOptions& options,
                                  SourceLine where = SourceLine::current());

}  // namespace hedgehog

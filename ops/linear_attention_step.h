#pragma once
#include <string>

#include "core/tape.h"

namespace hedgehog {

/// Maps of linear_attention_step, as in LinearAttentionOptions, and the positions of its tokens.
struct LinearAttentionStepOptions {
  Tensor weight_q = {}, weight_k = {};  // (Hq, D, D'), both or neither
  Tensor bias_q = {}, bias_k = {};      // (Hq, D')
  std::string map = "hedgehog";
  double temperature = 1;
  Tensor rotary = {};  // (n, D), table of rotary_table: queries and keys are turned before they are mapped
};

/// Decoding with linear attention: takes tokens into the state and reads it, at a cost that does not depend on how many
/// came before.
///
///   c' = max(c, ln phi_k);  S = exp(c - c') S + exp(ln phi_k - c') v^T;  z likewise with 1 in place of v
///   o  = q^T S / (q . z),   q = exp(ln phi_q + c' - m)
///
/// q        (B, n, Hq, D)   f32 | f64 | bf16 (CUDA): the next n tokens, usually 1; k, v, weights and biases likewise
/// k        (B, n, Hkv, D)
/// v        (B, n, Hkv, Dv)
/// state    (B, Hq, F, Dv + 2)  state, overwritten: [S | z | c] as linear_attention returns it; zeros before the first token;
///                              f32 where q is bf16
/// rotary   (n, D)  table of rotary_table, dtype of q, f32 for bf16, or none: q and k are first turned as by rotary in layout "half",
///                  and not rounded in between
/// returns  (B, n, Hq, Dv), equal to the rows of linear_attention over the whole sequence up to rounding, which there is of turned
///          vectors, too
///
/// Backward: none.
/// Saved:    nothing.
/// Throws:   ShapeError on wrong shapes or dtypes, one weight without the other, unknown map, odd D with rotary.
/// Source:   Katharopoulos et al. 2020, arXiv:2006.16236, section 3.4.
Tensor linear_attention_step(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& state,
                             const LinearAttentionStepOptions& options = {}, SourceLine where = SourceLine::current());

}  // namespace hedgehog

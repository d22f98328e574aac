#pragma once
#include <string>

#include "core/tape.h"

namespace hedgehog {

/// Optional arguments and attributes of hybrid_attention. An empty tensor is an argument left out.
struct HybridAttentionOptions {
  Tensor weight_q = {}, weight_k = {};  // (Hq, D, D'), both or neither: maps of queries and keys
  Tensor bias_q = {}, bias_k = {};      // (Hq, D'), each needs the weights
  Tensor log_factor = {};               // (Hq): ln gamma, the weight of the window beside what lies before it; none: 0
  Tensor document_start = {};           // i32 (B, T): index of the first token of each token's document
  std::int64_t window = 64;             // tokens that a row sees by softmax, itself and those just before it
  std::string map = "hedgehog";         // as feature_map
  double temperature = 1;               // of the map "exp"
  double scale = 0;                     // of the scores in the window, unitless; 0: 1 / sqrt(D)
  bool maximum = false;                 // scores are taken less their largest in the window
  bool linear = true;                   // false: nothing before the window is seen
  std::int64_t chunk = 0;               // of the linear part, tokens; 0: chosen by size
};

/// Causal attention that is softmax's in a window of the last tokens, and linear attention's before it, under one normaliser.
///
///   e_ij = gamma_h exp(scale q_i . k_j - c_i)    i - window < j <= i;  c_i = 0, or with `maximum` max_j (scale q_i . k_j) there
///   l_ij = phi_q(q_i) . phi_k(k_j)               j <= i - window
///   o_i  = (sum_j e_ij v_j + sum_j l_ij v_j) / (sum_j e_ij + sum_j l_ij)    over the tokens j of i's document
///
/// q       (B, T, Hq, D)    f32 | f64 | bf16 (CUDA); q, k, v may be windows of one packed tensor
/// k       (B, T, Hkv, D)   Hq is a multiple of Hkv; query head h reads key head h / (Hq / Hkv)
/// v       (B, T, Hkv, Dv)
/// options see above; log_factor is f32 where q is bf16, the other parameters have the dtype of q
/// returns (B, T, Hq, Dv), dtype of q
///
/// Where phi_q . phi_k is exp(scale q . k) and gamma 1, this is softmax attention. c_i is not one of the shifts that make exponentials
/// safe (those are exact, in both parts): the linear part is not scaled by it, so it is another function of q and k; it is there
/// because the authors' LoLCATs have it.
///
/// Any T, D, Dv and D' up to 256 work. The linear part costs the same for every token, the window 2 window (D + Dv) FLOPs of each.
///
/// Backward: with P = (e + l) / den, G = do, A_ij = P_ij (G_i . v_j - G_i . o_i): each part is its own op's backward with the
///           denominator and o of the whole; dscore = A;  dlog_factor_h = sum of A over the window;  with `maximum` the sum over the
///           row's window is taken from the gradient of its largest score.
/// Saved:    ln of the denominator in true scale (B, T, Hq), f32 where q is bf16.
/// Throws:   ShapeError on wrong shapes or dtypes, Hq not a multiple of Hkv, one weight without the other, unknown map, a window below 1.
/// Source:   Zhang et al. 2024, arXiv:2410.10254 (LoLCATs), equation 7; Arora et al. 2024, arXiv:2402.18668 (Based).
Tensor hybrid_attention(const Tensor& q, const Tensor& k, const Tensor& v, const HybridAttentionOptions& options = {},
                        SourceLine where = SourceLine::current());

}  // namespace hedgehog

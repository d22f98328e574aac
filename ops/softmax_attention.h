#pragma once
#include "core/tape.h"

namespace hedgehog {

/// Optional arguments and attributes of softmax_attention. An empty tensor is an argument left out.
struct SoftmaxAttentionOptions {
  Tensor document_start = {};  // i32 (B, T): index of the first token of each token's document
  Tensor mask = {};            // i32 (B, T): 1 where there is a token, 0 for padding
  bool causal = true;
  double scale = 0;            // of the scores, unitless; 0: 1 / sqrt(D)
  std::int64_t window = 0;     // tokens that a row sees, itself and those just before it, if causal; 0: all
};

/// Softmax attention in tiles: the (T, T) scores are never whole in memory.
///
///   s_ij = scale q_i . k_j,   p_ij = exp(s_ij) / sum_m exp(s_im)
///   o_i  = sum_j p_ij v_j     over the unmasked tokens j of i's document, j <= i if causal,
///                              i - window < j if there is a window
///
/// q       (B, T, Hq, D)    f32 | f64 | bf16 (CUDA); q, k, v may be windows of one packed tensor
/// k       (B, T, Hkv, D)   dtype of q; Hq is a multiple of Hkv; query head h reads key head h / (Hq / Hkv)
/// v       (B, T, Hkv, Dv)  dtype of q
/// returns (B, T, Hq, Dv), dtype of q. A row that sees no token gives 0 and no gradient.
///
/// Backward: dP = do V^T;  ds_ij = p_ij (dP_ij - do_i . o_i);  dq = scale ds K;  dk = scale ds^T Q;  dv = P^T do.
/// Saved:    ln sum_j exp(s_ij), (B, T, Hq), f32 (f64 for f64); tiles of P are made again from it.
/// Throws:   ShapeError on wrong shapes or dtypes, Hq not a multiple of Hkv, a negative scale or window, a window that is
///           not causal.
/// Source:   Dao et al. 2022, arXiv:2205.14135, algorithms 1 and 4.
Tensor softmax_attention(const Tensor& q, const Tensor& k, const Tensor& v, const SoftmaxAttentionOptions& options = {},
                         SourceLine where = SourceLine::current());

/// Decoding with softmax attention: appends tokens to a cache and attends to everything in it.
///
/// q         (B, n, Hq, D)      f32 | f64 | bf16 (CUDA): the next n tokens, usually 1
/// k, v      (B, n, Hkv, D)     dtype of q
/// cache     (B, P, 2, Hkv, D)  state, dtype of q: keys [.., 0, ..] and values [.., 1, ..] of up to P tokens; rows
///                              [position, position + n) are written
/// position  (1) i32            tokens in the cache so far; all layers read it, the caller raises it by n after the last
/// scale     0: 1 / sqrt(D)
/// returns   (B, n, Hq, D), dtype of q
///
/// Backward: none.
/// Saved:    nothing.
/// Throws:   ShapeError on wrong shapes or dtypes; Error when the cache has no room for n more tokens (CUDA: NaN,
///           and the cache is left as it is).
Tensor softmax_attention_step(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cache, const Tensor& position,
                              double scale = 0, SourceLine where = SourceLine::current());

}  // namespace hedgehog

#pragma once
#include <string>

#include "core/tape.h"

namespace hedgehog {

/// Optional arguments and attributes of linear_attention. An empty tensor is an argument left out.
struct LinearAttentionOptions {
  Tensor weight_q = {}, weight_k = {};  // (Hq, D, D'), both or neither: maps of queries and keys
  Tensor bias_q = {}, bias_k = {};      // (Hq, D'), each needs the weights
  Tensor document_start = {};           // i32 (B, T): index of the first token of each token's document
  Tensor mask = {};                     // i32 (B, T): 1 where there is a token, 0 for padding
  Tensor initial_state = {};            // (B, Hq, F, Dv + 2), belongs to the document of the first token
  Tensor rotary = {};                   // (T, D), table of rotary_table: queries and keys are turned before they are mapped
  std::string map = "hedgehog";         // as feature_map
  bool causal = true;
  double temperature = 1;               // of the map "exp"
  std::int64_t chunk = 0;               // tokens a chunk; 0: chosen by size
  bool final_state = false;             // return the state after the last token
};

struct LinearAttentionResult {
  Tensor o;            // (B, T, Hq, Dv)
  Tensor final_state;  // (B, Hq, F, Dv + 2), of the document of the last token; one 0 unless asked for
};

/// Normalised linear attention with its feature maps in the same op; phi is never stored whole.
///
///   A_ij = phi_q(q_i) . phi_k(k_j)
///   o_i  = sum_j A_ij v_j / sum_j A_ij    over the unmasked tokens j of i's document, j <= i if causal
///
/// q       (B, T, Hq, D)    f32 | f64 | bf16 (CUDA); q, k, v may be windows of one packed tensor
/// k       (B, T, Hkv, D)   Hq is a multiple of Hkv; query head h reads key head h / (Hq / Hkv)
/// v       (B, T, Hkv, Dv)
/// options see above; the map of keys is one per query head. Weights and biases have the dtype of q; states are f32 where q is bf16
/// returns o, and the state on request
///
/// With a rotary table (dtype of q, f32 for bf16; no gradient) q and k stand for the vectors turned by it, as by rotary in layout
/// "half" and rounded like them, and their gradients are turned back.
///
/// Scores are not scaled. A row that sees no token gives o = 0 and no gradient. Masked tokens produce an o of their own (they
/// are hidden as keys, not as queries).
///
/// Any T, chunk, D, Dv and D' up to 256 work; without weights F up to 512. Documents are cut where document_start changes, also inside a chunk.
///
/// Exact stabilisation (exp-type maps): keys enter as exp(ln phi_k,r - c_r), c_r the running maximum over the visible keys of
/// the document, one scalar a feature; queries as exp(ln phi_q,r + c_r - m_i). Rows whose denominator in this scale is under
/// 2^-60, because later keys of the chunk dominate, are redone in log space; linear_attention_log_space_rows() counts them.
/// On tensor cores a document that starts inside a chunk loses keys that lie more than 138 nats below those of the document before it.
/// No epsilon, no clamp. "relu" and "elu" have the floors of feature_map; with "identity" q and k hold positive features, and a
/// row whose denominator is 0 gives 0.
///
/// State, last axis [S (Dv) | z (1) | c (1)]: row r stands for the true sums exp(c_r) S_r and exp(c_r) z_r; c is 0 for maps
/// without logarithm. A row of an exp-type map with z <= 0 is empty, so zeros are the state before the first token.
/// Gradients of both states are the partial derivatives with respect to the three blocks as stored, c included. Where tensor
/// cores make a state (CUDA, bf16), keys' features enter it as bf16 numbers, and the gradient of c is that of these.
///
/// Backward, with phi_q divided by the denominator, G = do, delta_i = -G_i . o_i, W_ij = G_i . v_j + delta_i:
///   dphi_q = W phi_k,   dphi_k = W^T phi_q,   dv = A^T G   (sums over visible pairs, chunk by chunk with states)
/// then through the maps as in feature_map. delta carries the gradient of the normaliser.
/// Saved:    ln of the denominator in true scale (B, T, Hq), or the denominator for maps without logarithm; f32 where
///           q is bf16. On a GPU also what its kernels need (Device::kept).
/// Throws:   ShapeError on wrong shapes or dtypes, Hq not a multiple of Hkv, one weight without the other, unknown map, odd D with rotary.
/// Source:   Zhang et al. 2024, arXiv:2402.04347; chunkwise form: Yang et al. 2024, arXiv:2312.06635.
LinearAttentionResult linear_attention(const Tensor& q, const Tensor& k, const Tensor& v, const LinearAttentionOptions& options = {},
                                       SourceLine where = SourceLine::current());

/// Rows that forward passes of this process have redone in log space so far (CPU).
std::int64_t linear_attention_log_space_rows();
/// Calls, forward or backward, that no kernel on tensor cores has taken so far (CUDA), as they are launched or captured: those in f32 and
/// f64, which have none, and in bf16 those of other shapes and options, right, but many times slower.
std::int64_t linear_attention_slow_calls();

}  // namespace hedgehog

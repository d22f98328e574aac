#pragma once
#include "core/tape.h"

namespace hedgehog {

/// Optional arguments and attributes of attention_cross_entropy. An empty tensor is an argument left out.
struct AttentionCrossEntropyOptions {
  Tensor document_start = {};  // i32 (B, T): index of the first token of each token's document
  Tensor mask = {};            // i32 (B, T): 1 where there is a token, 0 for padding
  bool causal = true;
  double scale = 0;            // of the teacher's scores, unitless; 0: 1 / sqrt(D)
  bool logarithmic = true;     // features are given as their logarithms
};

struct AttentionCrossEntropyResult {
  Tensor loss;     // (B, T, Hq) nats, cross entropy of a row of the student's weights under the teacher's
  Tensor entropy;  // (B, T, Hq) nats, of the teacher's row, a constant: loss - entropy is the KL divergence
};

/// How far the weights of linear attention are from those of a softmax teacher, by row; the loss that distils feature maps. In tiles:
/// the (T, T) weights are never whole in memory.
///
///   p_ij = softmax_j(scale q_i . k_j)        teacher
///   A_ij = phi_q,i . phi_k,j,   a_ij = A_ij / sum_m A_im
///   loss_i = - sum_j p_ij ln a_ij,   entropy_i = - sum_j p_ij ln p_ij    over the unmasked tokens j of i's document, j <= i if causal
///
/// q, k        (B, T, Hq, D), (B, T, Hkv, D)  of the teacher, f32 | f64 | bf16 (CUDA), no gradient; Hq is a multiple of Hkv
/// features_q  (B, T, Hq, F)  as feature_map gives them, with log unless `logarithmic` is false; dtype of q, or f32 for bf16
/// features_k  (B, T, Hq, F)  of keys, one map a query head
/// returns     loss and entropy, f32 (f64 for f64). A row that sees no token gives 0 and no gradient.
///
/// Logarithms stand any finite number: pairs whose features are far apart are summed in log space. Features themselves must make
/// A_ij positive; where A_ij is 0 and p_ij is not, the loss is infinite.
///
/// Backward: with g = dloss and r_ij = g_i (a_ij - p_ij) / A_ij
///           dphi_q,i = sum_j r_ij phi_k,j,   dphi_k,j = sum_i r_ij phi_q,i,   times phi where logarithms are given.
/// Saved:    of scores and of ln A_ij the largest of a row and the sum of exponentials less it, (B, T, Hq) each; tiles are made again
///           from them. Their logarithm instead of the two would be rounded, and with it p and a as a whole, which nearly cancel.
/// Throws:   ShapeError on wrong shapes or dtypes, Hq not a multiple of Hkv, a negative scale.
/// Source:   Zhang et al. 2024, arXiv:2402.04347, section 4.2: there the (T, T) weights of both are kept.
AttentionCrossEntropyResult attention_cross_entropy(const Tensor& q, const Tensor& k, const Tensor& features_q, const Tensor& features_k,
                                                    const AttentionCrossEntropyOptions& options = {},
                                                    SourceLine where = SourceLine::current());

}  // namespace hedgehog

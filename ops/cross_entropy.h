#pragma once
#include "core/tape.h"

namespace hedgehog {

/// A loss, and what each token adds to it.
struct TokenLosses {
  Tensor loss;    // () scale * sum of losses
  Tensor losses;  // (...) nats a token, 0 where ignored; carries no gradient
};

/// Cross entropy of class scores against targets.
///
///   losses[n] = ln sum_v exp(logits[n, v]) - logits[n, targets[n]],   0 where targets[n] = -1
///   loss      = scale * sum_n losses[n]
///
/// logits   (..., V)  f32 | f64 | bf16 (CUDA)
/// targets  (...)     i32, each in [0, classes), or -1: ignored
/// scale    (1)       dtype of the losses, without gradient; none: 1 / number of targets that count (0 if there are none)
/// classes  the first so many of V count, the rest is padding; 0 (default): all
/// returns  loss (), the sum in f64 in order; losses (...); both in the dtype of logits, f32 for bf16
///
/// Backward: dlogits = dloss * scale * (softmax(logits) - onehot(targets)), 0 where ignored and in the padding.
/// Saved:    highest (N) = max_v logits, sum (N) = sum_v exp(logits - highest), N rows, in the dtype of the losses;
///           reads logits, targets, scale.
/// Throws:   ShapeError on wrong axes or dtypes; Error if a target is outside the classes, naming it and its position
///           (CUDA: its loss is NaN).
TokenLosses cross_entropy(const Tensor& logits, const Tensor& targets, const Tensor& scale = {}, std::int64_t classes = 0,
                          SourceLine where = SourceLine::current());

/// Cross entropy of a linear classifier; its logits exist for one tile of tokens (CPU: at most 512, at most 8 MiB; CUDA: at
/// most 256 MiB, or 128 tokens) at a time, in the dtype of x.
///
///   logits = x weight^T,   then as cross_entropy
///
/// With bf16 both logits and dlogits are rounded to bf16: the loss, summed in f32, is that of the rounded logits.
///
/// x        (..., C)  f32 | f64 | bf16 (CUDA)
/// weight   (V, C)    dtype of x
/// targets, scale, classes, results: as in cross_entropy
///
/// Backward: dx = dlogits weight, dweight = dlogits^T x. Both are made for dloss = 1 in forward, when a gradient is
///           wanted, while a tile of logits is there; backward multiplies them by dloss.
/// Saved:    dx (N, C) in the dtype of x, dweight (V, C) in that of the losses, N rows; reads nothing else.
/// Throws:   as cross_entropy, and ShapeError if weight is not (V, C).
TokenLosses classifier_cross_entropy(const Tensor& x, const Tensor& weight, const Tensor& targets, const Tensor& scale = {},
                                     std::int64_t classes = 0, SourceLine where = SourceLine::current());

}  // namespace hedgehog

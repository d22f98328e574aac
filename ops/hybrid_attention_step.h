#pragma once
#include <string>

#include "core/tape.h"

namespace hedgehog {

/// Maps and window of hybrid_attention_step, as in HybridAttentionOptions.
struct HybridAttentionStepOptions {
  Tensor weight_q = {}, weight_k = {};  // (Hq, D, D'), both or neither
  Tensor bias_q = {}, bias_k = {};      // (Hq, D')
  Tensor log_factor = {};               // (Hq)
  std::string map = "hedgehog";
  double temperature = 1;
  double scale = 0;  // of the scores in the window, unitless; 0: 1 / sqrt(D)
  bool maximum = false;
  bool linear = true;
};

/// Decoding with hybrid_attention: the last tokens are in a cache, those before them in the state of linear attention. A token enters
/// the cache at the place of the one that leaves the window, which goes into the state. The cost does not depend on how many came before.
///
/// q         (B, n, Hq, D)        f32 | f64 | bf16 (CUDA): the next n tokens, usually 1
/// k, v      (B, n, Hkv, D)       dtype of q
/// state     (B, Hq, F, D + 2)    state, overwritten: as linear_attention_step has it; zeros before the first token; f32 where q is bf16
/// cache     (B, W, 2, Hkv, D)    state, overwritten, dtype of q: keys [.., 0, ..] and values [.., 1, ..] of the last W tokens, W the window;
///                                token i is at i mod W
/// position  (1) i32              tokens so far; all layers read it, the caller raises it by n after the last
/// returns   (B, n, Hq, D), equal to the rows of hybrid_attention over the whole sequence up to rounding
///
/// Backward: none.
/// Saved:    nothing.
/// Throws:   ShapeError on wrong shapes or dtypes, one weight without the other, unknown map.
/// Source:   as hybrid_attention.
Tensor hybrid_attention_step(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& state, const Tensor& cache, const Tensor& position,
                             const HybridAttentionStepOptions& options = {}, SourceLine where = SourceLine::current());

}  // namespace hedgehog

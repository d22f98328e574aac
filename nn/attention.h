#pragma once
#include <string>
#include <vector>

#include "nn/attention_features.h"
#include "nn/layers.h"

namespace hedgehog {

/// What one layer of attention works on: queries and keys, turned by their positions, and values, each (B, T, H, D); o is what it makes
/// of them. Where keys and values are shared by query heads, k and v have fewer heads in attention itself; those who look are given all.
struct AttentionHeads {
  Tensor q, k, v, o;
};

/// Features of queries and keys, (B, T, H, F).
struct MappedHeads {
  Tensor q, k;
  bool logarithmic;  // their logarithms instead; with a decay gate those of keys hold it
};

/// Whether features of an attention have smooth logarithms, which is what a decay gate needs: the Hedgehog maps, "exp" and "performer".
bool has_log_features(const std::string& kind);

/// What a model, and attention in it, needs to know besides its tokens. All optional.
struct AttentionContext {
  Tensor document_start = {};  // i32 (B, T): start of each token's document in its row; attention stays inside it
  Tensor step = {};            // the optimiser's step state, for dropout in training
  bool linear = true;          // false: where attention has a window, nothing before it is seen
  Tensor rotary = {};          // table of rotary_table(T, D), shared by all layers; empty: no rotary positions
  std::vector<AttentionHeads>* heads = nullptr;  // each layer adds its own, for those who distil or look at attention
  Tensor token_types = {};     // i32 (B, T), of a model that has such; empty: all 0
};

/// What one layer remembers of a stream: the attention's state, the keys and values in its window if it has one, and the last
/// queries, keys and values if a short convolution mixes them.
struct AttentionState {
  Tensor attention, window, convolution;
};

/// Whether the feature maps of this attention have a matrix a head for queries and one for keys; `asked`: as map_weights.
bool has_map_weights(const std::string& attention, bool asked);

/// Multi-head attention, causal unless asked otherwise: packed projection, short convolution of queries, keys and values, norm of queries
/// and keys (both if asked), rotary positions, softmax or linear attention, output projection. The projection is one tensor (B, T, Q + K +
/// V); q, k, v are windows of it. Q is C but for "taylor", whose queries and keys are narrower; K and V are as wide as Q and C, or with
/// grouped queries as the part of their heads that key_heads is.
///
/// With qk_norm queries and keys are RMS-normed before positions turn them and maps see them, all heads with the same D gains:
///
///   q_i <- gain_q q_i / sqrt(mean(q_i^2) + 1e-5)     k_j likewise
///
/// so that scores stay in range however large the projection grows. Source: Henry et al. 2020, arXiv:2010.04245, with gains a dimension as
/// in OLMo 2 and Qwen3.
///
/// With a decay gate every head h learns one number g_h >= 0, by which it forgets a token:
///
///   A_ij = phi_q(q_i) . phi_k(k_j) exp(-g_h (i - j)),   g = softplus(w) = ln(1 + e^w)
///   o_i  = sum_j A_ij v_j / sum_j A_ij
///
/// The normaliser takes exp(-g i) away again, so g j, j the position in the document, is added to the logarithms of key j's features,
/// where linear attention keeps its running shift: no power overflows. Logarithms and attention are in f32 for a model in bf16; g T in f32
/// is exact to g T 2^-24, which is the relative error of a weight.
/// Heads start at g = -ln(1 - 2^-e), e from 5 to 12 spread evenly over them, as the eight heads of RetNet have: half of a weight is lost in 22
/// to 2,839 tokens. One head alone has e = 12. No weight decay.
/// Source: Sun et al. 2023, arXiv:2307.08621, section 2 (g fixed, no normaliser); here g is learnt.
class Attention {
 public:
  struct Options {
    std::int64_t heads = 1, width = 1;
    std::int64_t key_heads = 0;     // of keys and values, a divisor of heads; 0: as many
    std::string kind = "hedgehog";  // softmax, or a map of linear attention
    bool causal = true;             // false: a token sees those behind it too; there are no steps then
    FeatureOptions features;
    std::int64_t layer = 0;         // number of the layer, for random features
    std::uint64_t seed = 1;         // of random features
    bool decay_gate = false;        // keys lose weight with every token, see above
    std::int64_t window = 0;        // tokens that are seen by softmax, linear attention is for those before; 0: one kind sees all
    bool bias = false;              // of the output projection
    bool attention_bias = false;    // of queries, keys and values
    double map_init_gain = 1;
    bool map_weights = false;            // of exp, elu and relu, which have none of their own
    std::int64_t short_convolution = 0;  // tokens that it spans; 0: none
    bool qk_norm = false;                // queries and keys are RMS-normed
    double norm_eps = 1e-5;              // of these norms
    bool mimetic = false;                // keys start as queries, the output projection as the values' transpose
    double mimetic_output = 1;           // times this
    Init init, output_init;
    Dropout dropout;
  };
  Attention() = default;
  Attention(Parameters& parameters, const std::string& name, const Options& options);
  /// Gives the projections that `options` names a low-rank update; dropouts get the ids first_id and first_id + 1.
  void add_lora(Parameters& parameters, const std::string& name, const LoraOptions& options, std::int64_t first_id);

  /// x (B, T, C); returns residual + attention(x).
  Tensor operator()(const Tensor& x, const Tensor& residual, const AttentionContext& context) const;
  /// o (B, T, H, D) of heads that may come from another model: what this layer's attention makes of their queries, keys and values.
  Tensor attend(const AttentionHeads& heads, const AttentionContext& context = {}) const;
  /// Gives Performer's projection another draw, in place.
  void redraw(std::int64_t draw) { features_.redraw(draw); }
  /// Performer's random vectors, (m, D); none of other attentions.
  const Tensor& projection() const { return features_.projection(); }
  /// Features that this layer's maps give the queries and keys of `heads`, f32 of a model in bf16. Throws ShapeError for softmax, which has none.
  MappedHeads features(const AttentionHeads& heads) const;
  /// x + attention(norm(x)) for one token a stream, x (B, 1, C); advances `state` in place. position i32 (1):
  /// of this token; rotary: the table of that position, or none.
  Tensor step(const Tensor& x, const Norm& norm, const AttentionState& state, const Tensor& position, const Tensor& rotary) const;
  /// The empty state of `batch` streams.
  AttentionState empty_state(std::int64_t batch, std::int64_t capacity, Dtype dtype) const;

 private:
  /// Windows of the packed projection; queries and keys are normed if asked, and turned if there is a table.
  AttentionHeads heads_of(const Tensor& packed, const Tensor& rotary) const;
  void start_values_unmixed(Parameters& parameters);
  void start_decay(Parameters& parameters);
  void start_mimetic(Parameters& parameters);
  /// Weights and biases of the maps, in the options of an op that has them.
  template <class OpOptions>
  void give_maps(OpOptions& o) const;
  Tensor linear(const AttentionHeads& heads, const AttentionContext& context, const Tensor& rotary) const;
  /// Features, or their logarithms; with positions, which broadcast to (B, T, H, 1), the decay gate's part is in those of keys.
  MappedHeads mapped(const AttentionHeads& heads, const Tensor& positions) const;
  /// Positions of T tokens in their documents, counted from 0.
  Tensor positions(std::int64_t tokens, const Tensor& document_start) const;
  Tensor decaying(const AttentionHeads& heads, const AttentionContext& context) const;
  Tensor decaying_step(const AttentionHeads& heads, const AttentionState& state, const Tensor& position) const;
  Tensor hybrid(const AttentionHeads& heads, const AttentionContext& context) const;
  Tensor hybrid_step(const AttentionHeads& heads, const AttentionState& state, const Tensor& position) const;
  Tensor output(const Tensor& o, const Tensor& residual, const Tensor& dropout_step) const;
  std::int64_t packed() const { return queries_ + keys_ + values_; }
  /// Keys or values (B, T, Hkv, D) once for every query head, (B, T, H, D).
  Tensor for_all_heads(const Tensor& x) const;

  Options options_;
  std::int64_t queries_ = 0, keys_ = 0, values_ = 0;  // Q, K, V: widths of all heads together
  Linear qkv_, output_;
  AttentionFeatures features_;
  Tensor convolution_;              // (tokens, Q + K + V), of queries, keys and values
  Norm norm_q_, norm_k_;            // (D), or none
  Tensor map_q_, map_k_;            // (H, D, D), of the Hedgehog maps and T2R; of others with map_weights
  Tensor map_bias_q_, map_bias_k_;  // (H, D), of T2R
  Tensor log_factor_;               // (H), of the window
  Tensor decay_gate_;               // (H), w
};

}  // namespace hedgehog

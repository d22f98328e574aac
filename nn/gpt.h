#pragma once
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "nn/attention.h"
#include "nn/layers.h"

namespace hedgehog {

/// The shape of a model: a GPT, or an encoder such as BERT. Letters: L layers, H heads, C width, T context, V vocabulary.
struct GptOptions {
  std::int64_t layers = 2;
  std::int64_t heads = 2;
  std::int64_t key_heads = 0;  // heads of keys and values, each for as many query heads (grouped-query attention); 0: as many as heads
  std::int64_t width = 64;
  std::int64_t context = 128;
  std::int64_t vocabulary = 256;
  std::int64_t vocabulary_multiple = 1;  // tables get rows up to a multiple of this, which tensor cores like; the surplus is never scored
  std::string attention = "hedgehog";  // softmax, or a feature map of linear attention
  std::int64_t window = 0;             // tokens that attention sees by softmax, linear attention those before; softmax none; 0: no window
  bool qk_norm = false;                // queries and keys are RMS-normed before positions and maps (nn/attention.h)
  bool decay_gate = false;             // every head learns how fast keys lose weight with the distance (nn/attention.h)
  FeatureOptions features;             // of the attentions "taylor", "performer" and "cosformer"
  std::string positions = "rotary";    // rotary, learned, none
  double rotary_base = 10000;
  RotaryScaling rotary_scaling = {};
  std::string norm = "layer";          // layer, rms
  double norm_eps = 1e-5;
  std::string activation = "gelu";     // gelu, gelu_erf, silu, relu
  bool gated_mlp = false;              // (nn/layers.h); with silu: SwiGLU
  std::int64_t mlp_width = 0;          // numbers between the two layers of the MLP; 0: 4 width
  bool bias = false;                   // of linear layers and norms
  bool attention_bias = false;         // of queries, keys and values alone, as Qwen2 has them
  double dropout = 0;
  bool tied_head = true;               // the classifier's matrix is the token embedding's
  double embedding_init = 0.02;        // standard deviation of the embeddings at the start
  std::int64_t short_convolution = 0;  // queries, keys and values mix this many tokens, themselves and those before; 0: none
  // default: 1/sqrt(fan_in); gpt2: 0.02; both with residual outputs / sqrt(2 L). mimetic: default, but keys start as queries,
  // the attention's output projection as the transpose of the values' and an untied classifier as the embedding, so that
  // attention copies from like places from the start (after Trockman and Kolter 2023, arXiv:2305.09828)
  std::string init = "default";
  double map_init_gain = 1;            // feature maps start at this times the identity
  bool map_weights = false;            // exp, elu and relu work on x W too, with a matrix a head as Hedgehog's: for fair comparisons
  bool causal = true;                  // false: an encoder, whose tokens see all of their document; it predicts no next token
  bool post_norm = false;              // of encoders: norms are of the residual stream behind each sum, none is at its end
  bool embedding_norm = false;         // the summed embeddings are normed
  std::int64_t token_types = 0;        // types of tokens, each a vector that is added to their embeddings; 0: none
  bool pooler = false;                 // of encoders: a layer with tanh over the first token
  std::int64_t classes = 0;            // of encoders with a pooler: classes of a text; 0: no classifier
  Dtype dtype = Dtype::f32;
  std::uint64_t seed = 1;
  std::optional<LoraOptions> lora = {};  // low-rank updates, for finetuning: merge_lora() before decoding or saving

  /// Heads of keys and values, numbers between the layers of the MLP: the defaults resolved.
  std::int64_t shared_heads() const { return key_heads ? key_heads : heads; }
  std::int64_t hidden_width() const { return mlp_width ? mlp_width : 4 * width; }
  /// Width of a head's queries and keys.
  std::int64_t query_width() const { return hedgehog::query_width(attention, features, width / heads); }
  /// Most tokens that the model tells apart: the context of learned positions, cosFormer's length; else as good as no limit.
  std::int64_t longest() const;
};

/// Norm, attention and MLP, each added to the residual stream:
///
///   x = x + attention(norm_1(x))
///   x = x + mlp(norm_2(x))
///
/// or with post_norm
///
///   x = norm_1(x + attention(x))
///   x = norm_2(x + mlp(x))
struct Block {
  Norm norm_1, norm_2;
  Attention attention;
  Mlp mlp;
  bool post_norm = false;
  Tensor operator()(Tensor x, const AttentionContext& context) const;
  /// x + attention, before the norm that post_norm puts behind it.
  Tensor attended(const Tensor& x, const AttentionContext& context) const;
};

/// What a GPT remembers between tokens: one state a layer. Linear attention: constant in size; softmax: a cache of keys
/// and values.
struct DecodingState {
  std::vector<AttentionState> layers;
  Tensor position;  // i32 (1): position of the token that is read next
  /// All tensors that decoding overwrites, without the position; zeros before the first token.
  Tensors memory() const;
};

/// A decoder-only Transformer: embedding, L blocks, final norm, classifier (tied to the embedding unless asked otherwise).
/// Or with causal = false an encoder: embedding, L blocks, norm; hidden() gives a vector a token, pooled() and classify() one a text.
/// A batch of texts of several lengths is padded at the end and has document_start = length where the padding is, 0 before: it is a
/// document of its own then, which sees no text and is seen by none.
///
///   Gpt model(options);
///   Program step = record([&] {
///     auto [loss, losses] = model.loss(tokens, targets);
///     backward(loss);
///     return Tensors{loss};
///   });
///
/// Parameter names are GPT-2's: wte.weight, wpe.weight, h.0.ln_1.weight, h.0.attn.c_attn.weight (in, out), …, ln_f.weight; a gated MLP has
/// both halves of its first layer in h.0.mlp.c_fc.weight (C, 2 M);
/// the feature maps are h.0.attn.map_q.weight and map_k.weight (H, D, D), for T2R with map_q.bias and map_k.bias (H, D); the short
/// convolution is h.0.attn.conv.weight (K, 3 C), the norms of queries and keys h.0.attn.q_norm.weight and k_norm.weight (D), the decay gate
/// h.0.attn.decay_gate (H); an untied classifier is lm_head.weight (V, C). Encoders have
/// wtt.weight (types, C), ln_e, pooler and classifier. V is rounded up to a multiple of vocabulary_multiple.
class Gpt {
 public:
  /// Throws ShapeError naming the option if the sizes do not fit together.
  explicit Gpt(const GptOptions& options) : Gpt(options, Parameters::Start::drawn) {}
  /// All parameters 0, for those who have others to put there.
  static Gpt blank(const GptOptions& options);
  /// A model of shapes without memory: programs of it are recorded and planned, never run.
  static Gpt declared(const GptOptions& options);

  /// Final hidden states of tokens i32 (B, T): (B, T, C).
  Tensor hidden(const Tensor& tokens, const AttentionContext& context = {}) const;
  /// What every layer of attention works on when the model reads tokens i32 (B, T), with what it makes of it; nothing above the last
  /// layer's attention is computed.
  std::vector<AttentionHeads> heads(const Tensor& tokens, const AttentionContext& context = {}) const;
  /// Mean loss over the targets (B, T) that are not -1, or their sum times `scale` (1); and the loss of each token (B, T).
  TokenLosses loss(const Tensor& tokens, const Tensor& targets, const Tensor& scale = {},
                      const AttentionContext& context = {}) const;
  /// Of an encoder with a pooler: tanh(x_0 W + b) of the first of every row's hidden states (B, T, C), which makes (B, C).
  Tensor pooled(const Tensor& hidden) const;
  /// Logits (B, classes) of pooled texts (B, C).
  Tensor classify(const Tensor& pooled) const;
  /// Logits (…, V) of hidden states (…, C).
  Tensor logits(const Tensor& hidden) const;
  /// Logits (B, V) after one more token each, tokens i32 (B, 1). The state is advanced in place; its position is the
  /// caller's to raise.
  Tensor decode(const Tensor& tokens, DecodingState& state) const;
  /// An empty state for `batch` streams; `capacity` tokens for the cache of softmax attention. Throws ShapeError if learned
  /// positions or cosFormer have fewer.
  DecodingState decoding_state(std::int64_t batch, std::int64_t capacity) const;

  /// Whether training draws Performer's projections anew before step `step`, counted from 0, as features.performer_redraw asks.
  bool redraws_before(std::int64_t step) const;
  /// Draws them if so: step s has draw s / performer_redraw, so that a resumed run has the same. Recorded programs compute with the new
  /// draw from then on; no step may be unfinished.
  void redraw_before(std::int64_t step);

  const Attention& attention(std::int64_t layer) const { return blocks_[std::size_t(layer)].attention; }
  const GptOptions& options() const { return options_; }
  /// Rows of the token table, the surplus included.
  static std::int64_t table_rows(const GptOptions& options);
  Parameters& parameters() { return *parameters_; }
  const Parameters& parameters() const { return *parameters_; }

 private:
  Gpt(const GptOptions& options, Parameters::Start start);
  void add_lora(const LoraOptions& options);
  /// What the first block reads; puts the table of rotary positions into `context`.
  Tensor embed(const Tensor& tokens, AttentionContext& context) const;
  Tensor rotary_angles(std::int64_t length, const Tensor& offset) const;
  void need_causal(const char* what) const;
  Tensor of_vocabulary(const Tensor& all) const;  // without the rows that pad the table

  GptOptions options_;
  std::unique_ptr<Parameters> parameters_;
  Tensor token_table_, position_table_, type_table_, head_;  // head_ (V, C) is token_table_ when tied
  Dropout embedding_dropout_;
  std::vector<Block> blocks_;
  Norm final_norm_, embedding_norm_;  // or none
  Linear pooler_, classifier_;        // or none
};

/// Number of parameters of a GPT of this shape, without building it. Throws as Gpt does.
std::int64_t parameter_count(const GptOptions& options);

}  // namespace hedgehog

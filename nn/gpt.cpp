#include "nn/gpt.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <tuple>

#include "core/error.h"
#include "core/text.h"

namespace hedgehog {
namespace {

Init weight_init(const GptOptions& o, std::int64_t fan_in) {
  return Init::normal(o.init == "gpt2" ? 0.02 : 1 / std::sqrt(double(fan_in)));
}
/// Outputs that are added to the residual stream 2 L times start smaller, so that the sum does not grow with depth.
Init residual_init(const GptOptions& o, std::int64_t fan_in) {
  Init init = weight_init(o, fan_in);
  init.scale /= std::sqrt(2.0 * double(o.layers));
  return init;
}

/// Embeddings with those of token types, the first where none are given, and their norm, where the model has them.
Tensor typed_and_normed(Tensor x, const Tensor& table, const Tensor& types, const Norm& norm) {
  if (table) x = x + gather_rows(table, types ? types : constant({1}, {0}, Dtype::i32, "type"));
  return norm.weight ? norm(x) : x;
}

[[noreturn]] void refuse(const std::string& message) { throw ShapeError("[gpt] " + message); }

void check_encoder(const GptOptions& o) {
  if (o.token_types < 0 || o.classes < 0 || o.classes == 1)
    refuse(fmt::format("token_types must be at least 0, and classes 0, for none, or at least 2, got {} and {}", o.token_types, o.classes));
  if (o.causal && (o.post_norm || o.pooler || o.classes > 0))
    refuse("post_norm, pooler and classes are those of encoders: causal must be false");
  if (o.causal) return;
  if (o.window > 0 || o.short_convolution > 0 || o.decay_gate)
    refuse("an encoder sees tokens on both sides, but window, short_convolution and decay_gate look back: they must be off");
  if (!o.tied_head) refuse("an encoder scores no tokens, so that it has no classifier of them: tied_head must be true");
  if (o.classes > 0 && !o.pooler) refuse("classes are told from pooled texts: pooler must be true");
}

void check(const GptOptions& o) {
  if (o.layers < 1 || o.heads < 1 || o.width < 1 || o.context < 1 || o.vocabulary < 1 || o.vocabulary_multiple < 1)
    refuse(fmt::format("layers, heads, width, context and vocabulary must be at least 1, got {}, {}, {}, {}, {}", o.layers, o.heads,
                       o.width, o.context, o.vocabulary));
  if (o.width % o.heads) refuse(fmt::format("heads must divide width, got {} heads and width {}", o.heads, o.width));
  if (o.key_heads < 0 || o.heads % o.shared_heads())
    refuse(fmt::format("key_heads must divide heads, or be 0 for as many, got {} and {} heads", o.key_heads, o.heads));
  if (o.key_heads && o.key_heads != o.heads && o.init == "mimetic")
    refuse(fmt::format("init 'mimetic' starts keys as queries, so it needs as many key heads as heads, got {} and {}", o.key_heads, o.heads));
  if (o.mlp_width < 0) refuse(fmt::format("mlp_width must be 0, for 4 times the width, or at least 1, got {}", o.mlp_width));
  if (const RotaryScaling& s = o.rotary_scaling; !(s.factor >= 1) || !(s.low > 0) || !(s.high > s.low) || !(s.original >= 0))
    refuse(fmt::format("rotary_scaling must have a factor of at least 1, 0 < low < high and an original context of at least 0, got {}, {}, {}, {}",
                       s.factor, s.low, s.high, s.original));
  if (!(o.norm_eps > 0) || !(o.rotary_base > 0))
    refuse(fmt::format("norm_eps and rotary_base must be above 0, got {} and {}", o.norm_eps, o.rotary_base));
  const FeatureOptions& f = o.features;
  if (f.taylor_dim < 1 || f.taylor_dim > 30)
    refuse(fmt::format("taylor_dim must be from 1 to 30, whose 496 features linear attention takes, got {}", f.taylor_dim));
  if (f.performer_features < 0 || f.performer_features > 512)
    refuse(fmt::format("performer_features must be from 1 to 512, or 0 to choose by the heads' width, got {}", f.performer_features));
  if (f.performer_hyperbolic && f.performer_features % 2)
    refuse(fmt::format("performer_hyperbolic makes two features a vector: performer_features must be even, got {}", f.performer_features));
  if (f.performer_redraw < 0 || f.performer_draw < 0)
    refuse(fmt::format("performer_redraw must be 0, for never, or at least 1 step, and performer_draw at least 0, got {} and {}",
                       f.performer_redraw, f.performer_draw));
  if (f.performer_redraw > 0 && o.attention != "performer")
    refuse(fmt::format("performer_redraw draws the random features of performer anew, but the attention is {}", o.attention));
  if (f.cosformer_length != 0 && f.cosformer_length < o.context)
    refuse(fmt::format("cosformer_length must be at least the context of {} tokens, or 0 for that, got {}", o.context, f.cosformer_length));
  if (o.positions == "rotary" && o.query_width() % 2)
    refuse(o.attention == "taylor" ? fmt::format("rotary positions need an even taylor_dim, got {}", o.query_width())
                                   : fmt::format("rotary positions need an even head width, got width / heads = {}", o.query_width()));
  if (!(o.dropout >= 0 && o.dropout < 1)) refuse(fmt::format("dropout must be at least 0 and below 1, got {}", o.dropout));
  if (!(o.embedding_init > 0)) refuse(fmt::format("embedding_init must be above 0, got {}", o.embedding_init));
  if (o.window < 0) refuse(fmt::format("window must be 0, for none, or at least 1 token, got {}", o.window));
  if (o.window > 0 && (o.attention == "taylor" || o.attention == "performer" || o.attention == "cosformer"))
    refuse(fmt::format("a window goes with softmax and with the feature maps that are part of linear attention, not with {}", o.attention));
  if (o.decay_gate && !has_log_features(o.attention))
    refuse(fmt::format("a decay gate is part of the logarithms of features, which hedgehog, hedgehog-softmax, hedgehog-joint, exp and "
                       "performer have, but the attention is {}", o.attention));
  if (o.decay_gate && o.window > 0) refuse(fmt::format("a decay gate does not go with a window, got a window of {} tokens", o.window));
  if (o.short_convolution < 0 || o.short_convolution == 1 || o.short_convolution > 64)
    refuse(fmt::format("short_convolution must be 0, or 2 to 64 tokens, got {}", o.short_convolution));
  check_encoder(o);
  if (o.lora) check_lora(*o.lora, o.width);
  for (const auto& [name, value, choices] :
       {std::tuple{"positions", o.positions, std::vector<std::string>{"rotary", "learned", "none"}},
        std::tuple{"norm", o.norm, std::vector<std::string>{"layer", "rms"}},
        std::tuple{"activation", o.activation, std::vector<std::string>{"gelu", "gelu_erf", "silu", "relu"}},
        std::tuple{"init", o.init, std::vector<std::string>{"default", "gpt2", "mimetic"}},
        std::tuple{"attention", o.attention,
                   std::vector<std::string>{"softmax", "hedgehog", "hedgehog-softmax", "hedgehog-joint", "elu", "relu", "exp", "t2r", "taylor",
                                            "cosformer", "performer"}}})
    if (std::find(choices.begin(), choices.end(), value) == choices.end())
      refuse(fmt::format("{} '{}' is not known; choose one of {}", name, value, fmt::join(choices, ", ")));
}

FeatureOptions features_of(const GptOptions& o) {
  FeatureOptions f = o.features;
  if (f.cosformer_length == 0) f.cosformer_length = o.context;
  return f;
}

Block make_block(Parameters& p, const GptOptions& o, std::int64_t layer) {
  const std::string name = fmt::format("h.{}", layer);
  auto dropout = [&](std::int64_t place) { return Dropout{o.dropout, 1 + 2 * layer + place}; };
  Block block;
  block.norm_1 = Norm(p, name + ".ln_1", o.norm, o.width, o.bias, o.norm_eps);
  block.attention = Attention(p, name + ".attn",
                              {.heads = o.heads,
                               .width = o.width,
                               .key_heads = o.shared_heads(),
                               .kind = o.attention,
                               .causal = o.causal,
                               .features = features_of(o),
                               .layer = layer,
                               .seed = o.seed,
                               .decay_gate = o.decay_gate,
                               .window = o.window,
                               .bias = o.bias,
                               .attention_bias = o.bias || o.attention_bias,
                               .map_init_gain = o.map_init_gain,
                               .map_weights = o.map_weights,
                               .short_convolution = o.short_convolution,
                               .qk_norm = o.qk_norm,
                               .norm_eps = o.norm_eps,
                               .mimetic = o.init == "mimetic",
                               .mimetic_output = std::sqrt(2 / double(o.layers)),
                               .init = weight_init(o, o.width),
                               .output_init = residual_init(o, o.width),
                               .dropout = dropout(0)});
  block.norm_2 = Norm(p, name + ".ln_2", o.norm, o.width, o.bias, o.norm_eps);
  const std::int64_t hidden = o.hidden_width();
  block.mlp.fc = Linear(p, name + ".mlp.c_fc", o.width, (o.gated_mlp ? 2 : 1) * hidden, o.bias, weight_init(o, o.width));
  block.mlp.out = Linear(p, name + ".mlp.c_proj", hidden, o.width, o.bias, residual_init(o, hidden));
  block.mlp.activation = o.activation;
  block.mlp.gated = o.gated_mlp;
  block.mlp.dropout = dropout(1);
  block.post_norm = o.post_norm;
  return block;
}

}  // namespace

Tensor Block::operator()(Tensor x, const AttentionContext& context) const {
  x = attended(x, context);
  if (!post_norm) return named(mlp(norm_2(x), named(x, "middle"), context.step), "out");
  x = named(norm_1(x), "middle");
  return named(norm_2(mlp(x, x, context.step)), "out");
}

Tensor Block::attended(const Tensor& x, const AttentionContext& context) const { return attention(post_norm ? x : norm_1(x), x, context); }

std::int64_t GptOptions::longest() const {
  std::int64_t most = std::int64_t(1) << 40;
  if (positions == "learned") most = context;
  if (attention == "cosformer") most = std::min(most, features.cosformer_length ? features.cosformer_length : context);
  return most;
}

Gpt Gpt::blank(const GptOptions& options) { return Gpt(options, Parameters::Start::blank); }
Gpt Gpt::declared(const GptOptions& options) { return Gpt(options, Parameters::Start::declared); }

Gpt::Gpt(const GptOptions& options, Parameters::Start start) : options_(options) {
  check(options_);
  parameters_ = std::make_unique<Parameters>(options_.dtype, options_.seed, start);
  Parameters& p = *parameters_;
  const std::int64_t rows = table_rows(options_);
  token_table_ = p.add("wte.weight", {rows, options_.width}, Init::normal(options_.embedding_init), 1);
  if (options_.positions == "learned")
    position_table_ = p.add("wpe.weight", {options_.context, options_.width}, Init::normal(options_.embedding_init), 1);
  if (options_.token_types > 0)
    type_table_ = p.add("wtt.weight", {options_.token_types, options_.width}, Init::normal(options_.embedding_init), 1);
  if (options_.embedding_norm) embedding_norm_ = Norm(p, "ln_e", options_.norm, options_.width, options_.bias, options_.norm_eps);
  embedding_dropout_ = {options_.dropout, 0};
  for (std::int64_t i = 0; i < options_.layers; ++i) blocks_.push_back(make_block(p, options_, i));
  if (!options_.post_norm) final_norm_ = Norm(p, "ln_f", options_.norm, options_.width, options_.bias, options_.norm_eps);
  head_ = options_.tied_head ? token_table_
                             : p.add("lm_head.weight", {rows, options_.width}, weight_init(options_, options_.width), 1);
  if (options_.pooler) pooler_ = Linear(p, "pooler", options_.width, options_.width, true, weight_init(options_, options_.width));
  if (options_.classes > 0)
    classifier_ = Linear(p, "classifier", options_.width, options_.classes, true, weight_init(options_, options_.width));
  if (options_.init == "mimetic" && !options_.tied_head && p.drawn()) {
    std::vector<double> like = p.values(token_table_);
    for (double& x : like) x /= options_.embedding_init * std::sqrt(double(options_.width));
    p.assign(head_, like);
  }
  if (options_.lora) add_lora(*options_.lora);  // last: the draws of the other parameters stay as they are
}

void Gpt::add_lora(const LoraOptions& o) {
  const std::int64_t C = options_.width, M = options_.hidden_width();
  for (std::size_t i = 0; i < blocks_.size(); ++i) {
    const std::string name = fmt::format("h.{}", i);
    const std::int64_t id = 1 + 2 * options_.layers + 4 * std::int64_t(i);  // after the other dropouts
    blocks_[i].attention.add_lora(*parameters_, name + ".attn", o, id);
    if (o.has("mlp")) blocks_[i].mlp.fc.lora = Lora(*parameters_, name + ".mlp.c_fc", C, (options_.gated_mlp ? 2 : 1) * M, o, id + 2);
    if (o.has("mlp_output")) blocks_[i].mlp.out.lora = Lora(*parameters_, name + ".mlp.c_proj", M, C, o, id + 3);
  }
}

Tensor Gpt::embed(const Tensor& tokens, AttentionContext& context) const {
  if (position_table_ && tokens.shape().last() > options_.context)
    throw ShapeError(fmt::format("[gpt] {} tokens a row exceed the context of {} that learned positions have", tokens.shape().last(),
                                 options_.context));
  const Scope scope("embedding");
  if (options_.positions == "rotary") context.rotary = rotary_angles(tokens.shape().last(), {});
  Tensor x = embedding(tokens, token_table_, position_table_);
  if (context.token_types && !type_table_) throw ShapeError("[gpt] token types are given, but the model has none: token_types is 0");
  x = typed_and_normed(x, type_table_, context.token_types, embedding_norm_);
  return named(embedding_dropout_(x, context.step), "x");
}

Tensor Gpt::hidden(const Tensor& tokens, const AttentionContext& given) const {
  AttentionContext context = given;
  Tensor x = embed(tokens, context);
  for (std::size_t i = 0; i < blocks_.size(); ++i) {
    const Scope scope(fmt::format("block{}", i));
    x = blocks_[i](x, context);
  }
  return options_.post_norm ? x : final_norm_(x);
}

std::vector<AttentionHeads> Gpt::heads(const Tensor& tokens, const AttentionContext& given) const {
  std::vector<AttentionHeads> all;
  AttentionContext context = given;
  context.heads = &all;
  Tensor x = embed(tokens, context);
  for (std::size_t i = 0; i < blocks_.size(); ++i) {
    const Scope scope(fmt::format("block{}", i));
    if (i + 1 < blocks_.size()) x = blocks_[i](x, context);
    else blocks_[i].attended(x, context);
  }
  return all;
}

TokenLosses Gpt::loss(const Tensor& tokens, const Tensor& targets, const Tensor& scale, const AttentionContext& context) const {
  need_causal("be trained or scored as a language model");
  const Tensor x = hidden(tokens, context);
  const Scope scope("classifier");
  return classifier_cross_entropy(x, head_, targets, scale, options_.vocabulary);
}

std::int64_t Gpt::table_rows(const GptOptions& o) { return (o.vocabulary + o.vocabulary_multiple - 1) / o.vocabulary_multiple * o.vocabulary_multiple; }

Tensor Gpt::of_vocabulary(const Tensor& all) const {
  const std::int64_t surplus = all.shape().last() - options_.vocabulary;
  return surplus ? split(all, {options_.vocabulary, surplus})[0] : all;
}

void Gpt::need_causal(const char* what) const {
  if (!options_.causal)
    refuse(fmt::format("an encoder, whose tokens see those behind them, predicts no next token and cannot {}; hedgehog embed makes "
                       "vectors of texts with it", what));
}

Tensor Gpt::pooled(const Tensor& hidden) const {
  if (!options_.pooler) throw ShapeError("[gpt] the model has no pooler: pooler is false");
  const Scope scope("pooler");
  const std::int64_t B = hidden.shape()[0], T = hidden.shape()[1];
  std::vector<double> first;
  for (std::int64_t b = 0; b < B; ++b) first.push_back(double(b * T));
  return tanh(pooler_(gather_rows(reshape(hidden, {B * T, options_.width}), constant({B}, first, Dtype::i32, "first"))));
}

Tensor Gpt::classify(const Tensor& pooled) const {
  if (options_.classes == 0) throw ShapeError("[gpt] the model has no classifier of texts: classes is 0");
  return classifier_(pooled);
}

Tensor Gpt::logits(const Tensor& hidden) const {
  need_causal("score tokens");
  return of_vocabulary(matmul(hidden, head_, false, true));
}

Tensors DecodingState::memory() const {
  Tensors all;
  for (const AttentionState& layer : layers) {
    all.push_back(layer.attention);
    if (layer.window) all.push_back(layer.window);
    if (layer.convolution) all.push_back(layer.convolution);
  }
  return all;
}

DecodingState Gpt::decoding_state(std::int64_t batch, std::int64_t capacity) const {
  need_causal("write text");
  if (options_.lora) throw ShapeError("[gpt] low-rank updates are not decoded with; give merge_lora(model)");
  if (capacity > options_.longest())
    throw ShapeError(fmt::format("[gpt] a stream of {} tokens exceeds the {} of {} that {} have", capacity,
                                 position_table_ ? "context" : "length", options_.longest(),
                                 position_table_ ? "learned positions" : "cosFormer's weights"));
  DecodingState s;
  for (const Block& block : blocks_) s.layers.push_back(block.attention.empty_state(batch, capacity, options_.dtype));
  s.position = state({1}, Dtype::i32, "position");
  return s;
}

bool Gpt::redraws_before(std::int64_t step) const {
  const FeatureOptions& f = options_.features;
  return f.performer_redraw > 0 && step / f.performer_redraw != f.performer_draw;
}

void Gpt::redraw_before(std::int64_t step) {
  if (!redraws_before(step)) return;
  options_.features.performer_draw = step / options_.features.performer_redraw;
  for (Block& block : blocks_) block.attention.redraw(options_.features.performer_draw);
}

Tensor Gpt::rotary_angles(std::int64_t length, const Tensor& offset) const {
  return rotary_table(length, options_.query_width(), options_.rotary_base, offset, accumulator_of(options_.dtype), options_.rotary_scaling);
}

Tensor Gpt::decode(const Tensor& tokens, DecodingState& state) const {
  Tensor x = embedding(tokens, token_table_), angles;
  if (position_table_) x = x + embedding(reshape(state.position, {1, 1}), position_table_);
  x = typed_and_normed(x, type_table_, {}, embedding_norm_);
  if (options_.positions == "rotary") angles = rotary_angles(1, state.position);
  for (std::size_t i = 0; i < blocks_.size(); ++i) {
    const Scope scope(fmt::format("block{}", i));
    x = blocks_[i].attention.step(x, blocks_[i].norm_1, state.layers[i], state.position, angles);
    x = blocks_[i].mlp.step(x, blocks_[i].norm_2);
  }
  const Scope scope("classifier");
  const Tensor all = norm_linear(x, final_norm_.weight, final_norm_.bias, head_, {},
                                 {.norm = final_norm_.kind, .transpose_weight = true, .eps = final_norm_.eps});
  return reshape(of_vocabulary(all), {tokens.shape()[0], options_.vocabulary});
}

std::int64_t parameter_count(const GptOptions& options) {
  check(options);
  const std::int64_t c = options.width, d = c / options.heads, shared = options.shared_heads(), m = options.hidden_width();
  const std::int64_t packed = (options.heads + shared) * options.query_width() + shared * d, fc = (options.gated_mlp ? 2 : 1) * m;
  const std::int64_t maps =
      has_map_weights(options.attention, options.map_weights) ? 2 * options.heads * d * (d + (options.attention == "t2r" ? 1 : 0)) : 0;
  const std::int64_t norm = c * (options.bias && options.norm == "layer" ? 2 : 1);
  const std::int64_t bias = options.bias ? packed + c + fc + c : options.attention_bias ? packed : 0;
  const std::int64_t factors = (options.window > 0 && options.attention != "softmax") || options.decay_gate ? options.heads : 0;
  const std::int64_t qk_norm = options.qk_norm ? 2 * options.query_width() : 0;
  const std::int64_t positions = options.positions == "learned" ? options.context * c : 0;
  std::int64_t lora = 0;
  if (options.lora)
    for (const auto& [target, both] : {std::pair{"attention", c + packed}, {"attention_output", 2 * c}, {"mlp", c + fc}, {"mlp_output", m + c}})
      if (options.lora->has(target)) lora += options.lora->rank * both;
  const std::int64_t block =
      packed * c + c * c + c * fc + m * c + maps + packed * options.short_convolution + qk_norm + bias + factors + 2 * norm + lora;
  const std::int64_t linear = c * c + c;
  const std::int64_t norms = (options.embedding_norm ? norm : 0) + (options.post_norm ? 0 : norm);
  const std::int64_t encoder = options.token_types * c + (options.pooler ? linear : 0) + options.classes * (c + 1);
  return Gpt::table_rows(options) * c * (options.tied_head ? 1 : 2) + positions + options.layers * block + encoder + norms;
}

}  // namespace hedgehog

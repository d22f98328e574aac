#include "nn/attention.h"

#include <cmath>
#include <numeric>

#include "core/error.h"
#include "core/text.h"

namespace hedgehog {
namespace {

/// phi_q . phi_k as it is at the start, for heads of D: with this factor the window starts with the weight that a token before it has, where
/// exp(score) is 1. Queries and keys are near 0, or with a norm normal numbers: then the mean of exp(g (q + k)), g the maps' gain, is exp(g^2).
double usual_weight(const std::string& map, double D, double normed_gain) {
  if (map == "hedgehog") return 2 * D * std::exp(normed_gain * normed_gain);
  if (map == "exp") return D * std::exp(normed_gain * normed_gain);
  if (map == "hedgehog-softmax") return 2 / D;
  if (map == "hedgehog-joint") return 1 / (2 * D);
  if (map == "relu" || map == "t2r") return D / 6;  // of normal numbers: D / (2 pi)
  return D;
}

// a rounded logarithm would be a feature that is wrong by a share of its size
Tensor wide(const Tensor& x) { return x ? cast(x, accumulator_of(x.dtype())) : x; }

}  // namespace

bool has_log_features(const std::string& kind) { return kind.starts_with("hedgehog") || kind == "exp" || kind == "performer"; }

bool has_map_weights(const std::string& attention, bool asked) {
  if (attention == "exp" || attention == "elu" || attention == "relu") return asked;
  return attention.starts_with("hedgehog") || attention == "t2r";
}

Attention::Attention(Parameters& parameters, const std::string& name, const Options& options)
    : options_(options), features_(options.kind, options.features, options.width / options.heads, parameters.dtype(), options.seed,
                                   options.layer, parameters.declared()) {
  if (options_.key_heads == 0) options_.key_heads = options.heads;
  const std::int64_t width = options.width / options.heads, query_width = hedgehog::query_width(options.kind, options.features, width);
  queries_ = options.heads * query_width, keys_ = options_.key_heads * query_width, values_ = options_.key_heads * width;
  qkv_ = Linear(parameters, name + ".c_attn", options.width, packed(), options.attention_bias, options.init);
  output_ = Linear(parameters, name + ".c_proj", options.width, options.width, options.bias, options.output_init);
  if (options.short_convolution > 0) {
    convolution_ = parameters.add(name + ".conv.weight", {options.short_convolution, packed()},
                                  Init::uniform(2 / std::sqrt(double(options.short_convolution))), 0);
    if (parameters.drawn()) start_values_unmixed(parameters);
  }
  if (options.qk_norm) {
    norm_q_ = Norm(parameters, name + ".q_norm", "rms", query_width, false, options.norm_eps);
    norm_k_ = Norm(parameters, name + ".k_norm", "rms", query_width, false, options.norm_eps);
  }
  if (options.mimetic && parameters.drawn()) start_mimetic(parameters);
  if (options.window > 0 && options.kind != "softmax") {
    log_factor_ = parameters.add(name + ".log_factor", {options.heads}, Init::zeros(), 0, true);
    const double gain = has_map_weights(options.kind, options.map_weights) ? options.map_init_gain : 1;
    const double weight = usual_weight(options.kind, double(options.width / options.heads), options.qk_norm ? gain : 0);
    if (parameters.drawn()) parameters.assign(log_factor_, std::vector<double>(std::size_t(options.heads), std::log(weight)));
  }
  if (options.decay_gate) {
    decay_gate_ = parameters.add(name + ".decay_gate", {options.heads}, Init::zeros(), 0, true);
    if (parameters.drawn()) start_decay(parameters);
  }
  if (!has_map_weights(options.kind, options.map_weights)) return;
  const std::int64_t D = options.width / options.heads;
  map_q_ = parameters.add(name + ".map_q.weight", {options.heads, D, D}, Init::identity(options.map_init_gain), 0);
  map_k_ = parameters.add(name + ".map_k.weight", {options.heads, D, D}, Init::identity(options.map_init_gain), 0);
  if (options.kind != "t2r") return;
  map_bias_q_ = parameters.add(name + ".map_q.bias", {options.heads, D}, Init::zeros(), 0);
  map_bias_k_ = parameters.add(name + ".map_k.bias", {options.heads, D}, Init::zeros(), 0);
}

void Attention::add_lora(Parameters& parameters, const std::string& name, const LoraOptions& o, std::int64_t first_id) {
  const std::int64_t C = options_.width;
  if (o.has("attention")) qkv_.lora = Lora(parameters, name + ".c_attn", C, packed(), o, first_id);
  if (o.has("attention_output")) output_.lora = Lora(parameters, name + ".c_proj", C, C, o, first_id + 1);
}

// Queries and keys start with positive weights: tokens in like company are then alike, which is where recall begins. Values
// start as the token itself, so that what is recalled is what was said there.
void Attention::start_values_unmixed(Parameters& parameters) {
  const std::int64_t first = queries_ + keys_, all = packed();
  std::vector<double> weight = parameters.values(convolution_);
  for (std::int64_t j = 0; j < options_.short_convolution; ++j)
    for (std::int64_t c = first; c < all; ++c) weight[std::size_t(j * all + c)] = j == 0 ? 1 : 0;
  parameters.assign(convolution_, weight);
}

void Attention::start_decay(Parameters& parameters) {
  const std::int64_t H = options_.heads;
  std::vector<double> gate;
  for (std::int64_t h = 0; h < H; ++h) {
    const double exponent = H == 1 ? 12 : 5 + 7 * double(h) / double(H - 1);
    gate.push_back(std::log(std::expm1(-std::log1p(-std::exp2(-exponent)))));
  }
  parameters.assign(decay_gate_, gate);
}

void Attention::start_mimetic(Parameters& parameters) {
  const std::size_t C = std::size_t(options_.width), Q = std::size_t(queries_), all = 2 * Q + C;
  std::vector<double> packed = parameters.values(qkv_.weight), out(C * C);
  for (std::size_t i = 0; i < C; ++i) {
    for (std::size_t j = 0; j < Q; ++j) packed[i * all + Q + j] = packed[i * all + j];
    for (std::size_t j = 0; j < C; ++j) out[j * C + i] = options_.mimetic_output * packed[i * all + 2 * Q + j];
  }
  parameters.assign(qkv_.weight, packed);
  parameters.assign(output_.weight, out);
}

AttentionHeads Attention::heads_of(const Tensor& packed, const Tensor& rotary) const {
  const std::int64_t B = packed.shape()[0], T = packed.shape()[1], H = options_.heads, Hkv = options_.key_heads;
  auto heads = [&](const Tensor& part, std::int64_t n) { return reshape(part, {B, T, n, part.shape().last() / n}); };
  if (!rotary || options_.qk_norm) {
    const Tensors parts = split(packed, {queries_, keys_, values_});
    const auto placed = [&](const Tensor& part, std::int64_t n, const Norm& norm) {
      const Tensor x = options_.qk_norm ? norm(heads(part, n)) : heads(part, n);
      return rotary ? hedgehog::rotary(x, rotary) : x;
    };
    return {named(placed(parts[0], H, norm_q_), "q"), named(placed(parts[1], Hkv, norm_k_), "k"), named(heads(parts[2], Hkv), "v"), {}};
  }
  // queries and keys turn by the same angles: in one pass, as the heads of both
  const Tensors parts = split(packed, {queries_ + keys_, values_});
  const Tensor turned = hedgehog::rotary(heads(parts[0], H + Hkv), rotary);
  const Tensors both = split(reshape(turned, {B, T, queries_ + keys_}), {queries_, keys_});
  return {named(heads(both[0], H), "q"), named(heads(both[1], Hkv), "k"), named(heads(parts[1], Hkv), "v"), {}};
}

Tensor Attention::for_all_heads(const Tensor& x) const {
  if (!x || x.shape()[2] == options_.heads) return x;
  const Shape& s = x.shape();
  const std::int64_t group = options_.heads / s[2];
  const Tensor ones = constant({group, 1}, std::vector<double>(std::size_t(group), 1), x.dtype(), "group");
  return reshape(reshape(x, {s[0], s[1], s[2], 1, s[3]}) * ones, {s[0], s[1], options_.heads, s[3]});
}

Tensor Attention::output(const Tensor& o, const Tensor& residual, const Tensor& dropout_step) const {
  const Tensor joined = reshape(o, residual.shape());
  if (options_.dropout.rate > 0 && dropout_step)
    return residual + options_.dropout(output_(joined, {}, "none", dropout_step), dropout_step);
  return output_(joined, residual, "none", dropout_step);
}

Tensor Attention::operator()(const Tensor& x, const Tensor& residual, const AttentionContext& context) const {
  const Scope scope("attention");
  Tensor packed = qkv_(x, {}, "none", context.step);
  if (convolution_) packed = short_convolution(packed, convolution_, context.document_start);
  // linear attention turns vectors as it loads them, unless features are made of them before
  const bool on_load = !context.heads && options_.kind != "softmax" && options_.window == 0 && !features_.any() && !decay_gate_;
  AttentionHeads heads = heads_of(packed, on_load ? Tensor{} : context.rotary);
  heads.o = named(on_load ? linear(heads, context, context.rotary) : attend(heads, context), "o");
  if (context.heads) context.heads->push_back({heads.q, for_all_heads(heads.k), for_all_heads(heads.v), heads.o});
  return output(heads.o, residual, context.step);
}

Tensor Attention::attend(const AttentionHeads& heads, const AttentionContext& context) const {
  if (options_.kind != "softmax") return options_.window > 0 ? hybrid(heads, context) : linear(heads, context, {});
  SoftmaxAttentionOptions o;
  o.document_start = context.document_start;
  o.window = options_.window;
  o.causal = options_.causal;
  return softmax_attention(heads.q, heads.k, heads.v, o);
}

template <class OpOptions>
void Attention::give_maps(OpOptions& o) const {
  o.weight_q = map_q_;
  o.weight_k = map_k_;
  o.bias_q = map_bias_q_;
  o.bias_k = map_bias_k_;
}

Tensor Attention::linear(const AttentionHeads& heads, const AttentionContext& context, const Tensor& rotary) const {
  if (decay_gate_) return decaying(heads, context);
  LinearAttentionOptions o;
  give_maps(o);
  o.map = features_.map();
  o.document_start = context.document_start;
  o.rotary = rotary;
  o.causal = options_.causal;
  return linear_attention(features_(heads.q), features_(heads.k), heads.v, o).o;
}

Tensor Attention::hybrid(const AttentionHeads& heads, const AttentionContext& context) const {
  HybridAttentionOptions o;
  give_maps(o);
  o.log_factor = log_factor_;
  o.map = features_.map();
  o.window = options_.window;
  o.linear = context.linear;
  o.document_start = context.document_start;
  return hybrid_attention(heads.q, heads.k, heads.v, o);
}

Tensor Attention::hybrid_step(const AttentionHeads& heads, const AttentionState& state, const Tensor& position) const {
  HybridAttentionStepOptions o;
  give_maps(o);
  o.log_factor = log_factor_;
  o.linear = options_.kind != "softmax";
  o.map = o.linear ? features_.map() : "identity";
  return hybrid_attention_step(heads.q, heads.k, heads.v, state.attention, state.window, position, o);
}

MappedHeads Attention::features(const AttentionHeads& heads) const {
  if (options_.kind == "softmax") throw ShapeError("[attention] softmax attention has no features: give a model of linear attention");
  return mapped(heads, decay_gate_ ? positions(heads.q.shape()[1], {}) : Tensor{});
}

MappedHeads Attention::mapped(const AttentionHeads& heads, const Tensor& positions) const {
  const std::string map = features_.map();
  const bool logarithmic = has_log_features(options_.kind);
  const auto of = [&](const Tensor& x, const Tensor& weight, const Tensor& bias) {
    return features_.any() ? features_(wide(x)) : feature_map(wide(x), wide(weight), wide(bias), map, 1, logarithmic);
  };
  // every query head has a map of keys of its own
  MappedHeads both{of(heads.q, map_q_, map_bias_q_), of(for_all_heads(heads.k), map_k_, map_bias_k_), logarithmic};
  if (!positions) return both;
  const Tensor gate = reshape(decay_gate_, {options_.heads, 1});
  both.k = both.k + positions * logsumexp(concat({gate, gate * 0.0}), -1, true);  // softplus, without overflow
  return both;
}

Tensor Attention::positions(std::int64_t tokens, const Tensor& document_start) const {
  std::vector<double> counted(static_cast<std::size_t>(tokens));
  std::iota(counted.begin(), counted.end(), 0.0);
  const Tensor all = constant({tokens, 1, 1}, counted, decay_gate_.dtype(), "positions");
  if (!document_start) return all;
  const Shape& s = document_start.shape();
  return all - reshape(cast(document_start, all.dtype()), {s[0], s[1], 1, 1});
}

Tensor Attention::decaying(const AttentionHeads& heads, const AttentionContext& context) const {
  const MappedHeads features = mapped(heads, positions(heads.q.shape()[1], context.document_start));
  LinearAttentionOptions o;
  o.map = "exp";
  o.document_start = context.document_start;
  return cast(linear_attention(features.q, features.k, wide(for_all_heads(heads.v)), o).o, heads.v.dtype());
}

Tensor Attention::decaying_step(const AttentionHeads& heads, const AttentionState& state, const Tensor& position) const {
  const MappedHeads features = mapped(heads, cast(position, decay_gate_.dtype()));
  const Tensor v = wide(for_all_heads(heads.v));
  return cast(linear_attention_step(features.q, features.k, v, state.attention, {.map = "exp"}), heads.v.dtype());
}

Tensor Attention::step(const Tensor& x, const Norm& norm, const AttentionState& state, const Tensor& position, const Tensor& rotary) const {
  const Scope scope("attention");
  LinearAttentionStepOptions o;
  give_maps(o);
  o.map = features_.map();
  if (!features_.any()) o.rotary = rotary;
  const bool softmax = options_.kind == "softmax";
  if (!softmax && options_.window == 0 && !convolution_ && !options_.qk_norm && !features_.any() && !decay_gate_)
    return output(norm_linear_attention_step(x, norm.weight, norm.bias, qkv_.weight, qkv_.bias, state.attention,
                                             {.heads = options_.heads, .key_heads = options_.key_heads, .norm = norm.kind, .eps = norm.eps,
                                              .attention = o}),
                  x, {});
  Tensor packed = qkv_.step(x, norm);
  if (convolution_) packed = short_convolution_step(packed, convolution_, state.convolution);
  if (options_.window > 0) return output(hybrid_step(heads_of(packed, rotary), state, position), x, {});
  if (softmax) {
    const AttentionHeads h = heads_of(packed, rotary);
    return output(softmax_attention_step(h.q, h.k, h.v, state.attention, position), x, {});
  }
  if (decay_gate_) return output(decaying_step(heads_of(packed, rotary), state, position), x, {});
  const AttentionHeads h = heads_of(packed, features_.any() ? rotary : Tensor{});
  return output(linear_attention_step(features_(h.q, position), features_(h.k, position), h.v, state.attention, o), x, {});
}

AttentionState Attention::empty_state(std::int64_t batch, std::int64_t capacity, Dtype dtype) const {
  const std::int64_t H = options_.heads, Hkv = options_.key_heads, D = options_.width / H;
  AttentionState s;  // zeros are the empty state
  const bool softmax = options_.kind == "softmax";
  if (options_.window > 0) s.window = state({batch, options_.window, 2, Hkv, D}, dtype, "window_cache");
  s.attention = softmax && options_.window == 0 ? state({batch, capacity, 2, Hkv, D}, dtype, "key_value_cache")
                                           : state({batch, H, softmax ? D : features_.count(), D + 2}, accumulator_of(dtype), "attention_state");
  if (convolution_) s.convolution = state({batch, options_.short_convolution - 1, packed()}, accumulator_of(dtype), "convolution_state");
  return s;
}

}  // namespace hedgehog

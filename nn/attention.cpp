#include "nn/attention.h"

#include <cmath>

namespace hedgehog {

Attention::Attention(Parameters& parameters, const std::string& name, const Options& options)
    : options_(options), qkv_(parameters, name + ".c_attn", options.width, 3 * options.width, options.bias, options.init),
      output_(parameters, name + ".c_proj", options.width, options.width, options.bias, options.output_init) {
  if (options.short_convolution > 0) {
    convolution_ = parameters.add(name + ".conv.weight", {options.short_convolution, 3 * options.width},
                                  Init::uniform(2 / std::sqrt(double(options.short_convolution))), 0);
    if (!parameters.declared()) start_values_unmixed(parameters);
  }
  if (options.mimetic && !parameters.declared()) start_mimetic(parameters);
  if (!options.kind.starts_with("hedgehog")) return;
  const std::int64_t D = options.width / options.heads;
  map_q_ = parameters.add(name + ".map_q.weight", {options.heads, D, D}, Init::identity(options.map_init_gain), 0);
  map_k_ = parameters.add(name + ".map_k.weight", {options.heads, D, D}, Init::identity(options.map_init_gain), 0);
}

// Queries and keys start with positive weights: tokens in like company are then alike, which is where recall begins. Values
// start as the token itself, so that what is recalled is what was said there.
void Attention::start_values_unmixed(Parameters& parameters) {
  const std::int64_t C = options_.width;
  std::vector<double> weight = parameters.values(convolution_);
  for (std::int64_t j = 0; j < options_.short_convolution; ++j)
    for (std::int64_t c = 2 * C; c < 3 * C; ++c) weight[std::size_t(j * 3 * C + c)] = j == 0 ? 1 : 0;
  parameters.assign(convolution_, weight);
}

void Attention::start_mimetic(Parameters& parameters) {
  const std::size_t C = std::size_t(options_.width);
  std::vector<double> packed = parameters.values(qkv_.weight), out(C * C);
  for (std::size_t i = 0; i < C; ++i)
    for (std::size_t j = 0; j < C; ++j) {
      packed[i * 3 * C + C + j] = packed[i * 3 * C + j];
      out[j * C + i] = options_.mimetic_output * packed[i * 3 * C + 2 * C + j];
    }
  parameters.assign(qkv_.weight, packed);
  parameters.assign(output_.weight, out);
}

Attention::Heads Attention::heads_of(const Tensor& packed, const Tensor& rotary) const {
  const std::int64_t B = packed.shape()[0], T = packed.shape()[1], C = options_.width, H = options_.heads;
  auto heads = [&](const Tensor& part) { return reshape(part, {B, T, H, C / H}); };
  if (!rotary) {
    const Tensors parts = split(packed, {C, C, C});
    return {heads(parts[0]), heads(parts[1]), heads(parts[2])};
  }
  // queries and keys turn by the same angles: in one pass, as twice the heads
  const Tensors parts = split(packed, {2 * C, C});
  const Tensor turned = hedgehog::rotary(reshape(parts[0], {B, T, 2 * H, C / H}), rotary);
  const Tensors both = split(reshape(turned, {B, T, 2 * C}), {C, C});
  return {heads(both[0]), heads(both[1]), heads(parts[1])};
}

Tensor Attention::output(const Tensor& o, const Tensor& residual, const Tensor& dropout_step) const {
  const Tensor joined = reshape(o, residual.shape());
  if (options_.dropout.rate > 0 && dropout_step) return residual + options_.dropout(output_(joined), dropout_step);
  return output_(joined, residual);
}

Tensor Attention::operator()(const Tensor& x, const Tensor& residual, const AttentionContext& context) const {
  const Scope scope("attention");
  Tensor packed = qkv_(x);
  if (convolution_) packed = short_convolution(packed, convolution_, context.document_start);
  if (options_.kind == "softmax") {
    const auto [q, k, v] = heads_of(packed, context.rotary);
    SoftmaxAttentionOptions o;
    o.document_start = context.document_start;
    return output(softmax_attention(q, k, v, o), residual, context.step);
  }
  const auto [q, k, v] = heads_of(packed, {});
  LinearAttentionOptions o;
  o.weight_q = map_q_;
  o.weight_k = map_k_;
  o.map = options_.kind;
  o.document_start = context.document_start;
  o.rotary = context.rotary;
  return output(linear_attention(q, k, v, o).o, residual, context.step);
}

Tensor Attention::step(const Tensor& x, const Norm& norm, const AttentionState& state, const Tensor& position, const Tensor& rotary) const {
  const Scope scope("attention");
  LinearAttentionStepOptions o;
  o.weight_q = map_q_;
  o.weight_k = map_k_;
  o.map = options_.kind;
  o.rotary = rotary;
  const bool softmax = options_.kind == "softmax";
  if (!softmax && !convolution_)
    return output(norm_linear_attention_step(x, norm.weight, norm.bias, qkv_.weight, qkv_.bias, state.attention,
                                             {.heads = options_.heads, .norm = norm.kind, .attention = o}),
                  x, {});
  Tensor packed = qkv_.step(x, norm);
  if (convolution_) packed = short_convolution_step(packed, convolution_, state.convolution);
  if (softmax) {
    const auto [q, k, v] = heads_of(packed, rotary);
    return output(softmax_attention_step(q, k, v, state.attention, position), x, {});
  }
  const auto [q, k, v] = heads_of(packed, {});
  return output(linear_attention_step(q, k, v, state.attention, o), x, {});
}

AttentionState Attention::empty_state(std::int64_t batch, std::int64_t capacity, Dtype dtype) const {
  const std::int64_t H = options_.heads, D = options_.width / H;
  AttentionState s;  // zeros are the empty state
  s.attention = options_.kind == "softmax" ? state({batch, capacity, 2, H, D}, dtype, "key_value_cache")
                                           : state({batch, H, map_q_ ? 2 * D : D, D + 2}, accumulator_of(dtype), "attention_state");
  if (convolution_) s.convolution = state({batch, options_.short_convolution - 1, 3 * options_.width}, accumulator_of(dtype), "convolution_state");
  return s;
}

}  // namespace hedgehog

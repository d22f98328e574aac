#include "nn/attention.h"

#include <utility>

namespace hedgehog {

Attention::Attention(Parameters& parameters, const std::string& name, const Options& options)
    : options_(options), qkv_(parameters, name + ".c_attn", options.width, 3 * options.width, options.bias, options.init),
      output_(parameters, name + ".c_proj", options.width, options.width, options.bias, options.output_init) {
  if (!options.kind.starts_with("hedgehog")) return;
  const std::int64_t D = options.width / options.heads;
  map_q_ = parameters.add(name + ".map_q.weight", {options.heads, D, D}, Init::identity(options.map_init_gain), 0);
  map_k_ = parameters.add(name + ".map_k.weight", {options.heads, D, D}, Init::identity(options.map_init_gain), 0);
}

Attention::Heads Attention::project(const Tensor& x, const Tensor& rotary) const {
  const std::int64_t B = x.shape()[0], T = x.shape()[1], C = options_.width, H = options_.heads;
  const Tensors parts = split(qkv_(x), {C, C, C});
  auto heads = [&](const Tensor& part) { return reshape(part, {B, T, H, C / H}); };
  Heads h{heads(parts[0]), heads(parts[1]), heads(parts[2])};
  if (rotary) {
    h.q = hedgehog::rotary(h.q, rotary);
    h.k = hedgehog::rotary(h.k, rotary);
  }
  return h;
}

Tensor Attention::output(const Tensor& o, const Tensor& residual, const Tensor& dropout_step) const {
  const Tensor joined = reshape(o, residual.shape());
  if (options_.dropout.rate > 0 && dropout_step) return residual + options_.dropout(output_(joined), dropout_step);
  return output_(joined, residual);
}

Tensor Attention::operator()(const Tensor& x, const Tensor& residual, const AttentionContext& context) const {
  const Scope scope("attention");
  const auto [q, k, v] = project(x, context.rotary);
  if (options_.kind == "softmax") {
    SoftmaxAttentionOptions o;
    o.document_start = context.document_start;
    return output(softmax_attention(q, k, v, o), residual, context.step);
  }
  LinearAttentionOptions o;
  o.weight_q = map_q_;
  o.weight_k = map_k_;
  o.map = options_.kind;
  o.document_start = context.document_start;
  return output(linear_attention(q, k, v, o).o, residual, context.step);
}

Tensor Attention::step(const Tensor& x, const Tensor& residual, const Tensor& state, const Tensor& position, const Tensor& rotary) const {
  const Scope scope("attention");
  const auto [q, k, v] = project(x, rotary);
  if (options_.kind == "softmax") return output(softmax_attention_step(q, k, v, state, position), residual, {});
  LinearAttentionStepOptions o;
  o.weight_q = map_q_;
  o.weight_k = map_k_;
  o.map = options_.kind;
  return output(linear_attention_step(q, k, v, state, o), residual, {});
}

Tensor Attention::empty_state(std::int64_t batch, std::int64_t capacity, Dtype dtype) const {
  const std::int64_t H = options_.heads, D = options_.width / H;
  if (options_.kind == "softmax") return hedgehog::state({batch, capacity, 2, H, D}, dtype, "key_value_cache");
  return hedgehog::state({batch, H, map_q_ ? 2 * D : D, D + 2}, dtype, "attention_state");  // zeros are the empty state
}

}  // namespace hedgehog

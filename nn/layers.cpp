#include "nn/layers.h"

namespace hedgehog {

Linear::Linear(Parameters& parameters, const std::string& name, std::int64_t in, std::int64_t out, bool with_bias, Init init)
    : weight(parameters.add(name + ".weight", {in, out}, init, 1)) {
  if (with_bias) bias = parameters.add(name + ".bias", {out}, Init::zeros(), 0);
}

namespace {

Tensor activated(const Tensor& x, const std::string& activation) {
  if (activation == "gelu") return gelu(x);
  if (activation == "gelu_erf") return gelu_erf(x);
  if (activation == "silu") return silu(x);
  return activation == "relu" ? relu(x) : x;
}

}  // namespace

Tensor Linear::operator()(const Tensor& x, const Tensor& addend, const std::string& activation, const Tensor& step) const {
  if (!lora) return linear(x, weight, bias, addend, activation);
  if (activation == "none") return linear(x, weight, bias, lora(x, addend, step));
  const Tensor y = activated(linear(x, weight, bias, lora(x, {}, step)), activation);
  return addend ? y + addend : y;
}

Tensor Linear::step(const Tensor& x, const Norm& norm, const std::string& activation) const {
  return norm_linear(x, norm.weight, norm.bias, weight, bias, {.norm = norm.kind, .activation = activation, .eps = norm.eps});
}

Norm::Norm(Parameters& parameters, const std::string& name, const std::string& kind, std::int64_t width, bool with_bias, double eps)
    : kind(kind), weight(parameters.add(name + ".weight", {width}, Init::ones(), 0, true)), eps(eps) {
  if (with_bias && kind == "layer") bias = parameters.add(name + ".bias", {width}, Init::zeros(), 0, true);
}

Tensor Norm::operator()(const Tensor& x) const { return kind == "rms" ? rms_norm(x, weight, eps) : layer_norm(x, weight, bias, eps); }

Tensor Dropout::operator()(const Tensor& x, const Tensor& step) const {
  return rate > 0 && step ? dropout(x, step, rate, id) : x;
}

namespace {

Tensor gate(const Tensor& both, const std::string& activation) {
  const std::int64_t width = both.shape().last() / 2;
  const Tensors parts = split(both, {width, width});
  return activated(parts[0], activation) * parts[1];
}

}  // namespace

Tensor Mlp::operator()(const Tensor& x, const Tensor& residual, const Tensor& step) const {
  const Scope scope("mlp");
  const bool drops = dropout.rate > 0 && step;
  const Tensor added = drops ? Tensor{} : residual;
  const Tensor y = gated                 ? out(gate(fc(x, {}, "none", step), activation), added, "none", step)
                   : fc.lora || out.lora ? out(fc(x, {}, activation, step), added, "none", step)
                                         : mlp(x, fc.weight, out.weight, fc.bias, out.bias, added, activation);
  return drops ? residual + dropout(y, step) : y;
}

Tensor Mlp::step(const Tensor& x, const Norm& norm) const {
  const Scope scope("mlp");
  return out(gated ? gate(fc.step(x, norm), activation) : fc.step(x, norm, activation), x);
}

}  // namespace hedgehog

#include "nn/lora.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "nn/gpt.h"
#include "ops/ops.h"

namespace hedgehog {

bool LoraOptions::has(const std::string& target) const { return std::find(targets.begin(), targets.end(), target) != targets.end(); }

void check_lora(const LoraOptions& o, std::int64_t width) {
  auto refuse = [](const std::string& what) { throw ShapeError("[lora] " + what); };
  if (o.rank < 1 || o.rank > width) refuse(fmt::format("the rank must be from 1 to the model's width of {}, got {}", width, o.rank));
  if (!(o.alpha > 0) || !std::isfinite(o.alpha)) refuse(fmt::format("alpha must be a number greater than 0, got {}", o.alpha));
  if (!(o.dropout >= 0 && o.dropout < 1)) refuse(fmt::format("dropout must be from 0 to below 1, got {}", o.dropout));
  const std::vector<std::string> known{"attention", "attention_output", "mlp", "mlp_output"};
  if (o.targets.empty()) refuse(fmt::format("names no layer to update; choose among {}", fmt::join(known, ", ")));
  for (const std::string& target : o.targets)
    if (std::find(known.begin(), known.end(), target) == known.end())
      refuse(fmt::format("target '{}' is not known; choose among {}", target, fmt::join(known, ", ")));
}

Lora::Lora(Parameters& parameters, const std::string& name, std::int64_t in, std::int64_t out, const LoraOptions& options, std::int64_t id)
    : a(parameters.add(name + ".lora_a", {in, options.rank}, Init::normal(1 / std::sqrt(double(in))), 0)),
      b(parameters.add(name + ".lora_b", {options.rank, out}, Init::zeros(), 0)),
      scale(options.alpha / double(options.rank)), dropout(options.dropout), id(id) {}

Tensor Lora::operator()(const Tensor& x, const Tensor& addend, const Tensor& step) const {
  const Scope scope_name("lora");
  const Tensor kept = dropout > 0 && step ? hedgehog::dropout(x, step, dropout, id) : x;
  return linear(linear(kept, a) * scale, b, {}, addend);
}

bool is_lora(const std::string& parameter) { return parameter.ends_with(".lora_a") || parameter.ends_with(".lora_b"); }

Gpt merge_lora(const Gpt& model) {
  if (!model.options().lora) throw ShapeError("[merge_lora] the model has no low-rank updates to merge");
  const LoraOptions& lora = *model.options().lora;
  const double scale = lora.alpha / double(lora.rank);
  GptOptions o = model.options();
  o.lora.reset();
  Gpt merged(o);
  const Parameters& from = model.parameters();
  for (const Tensor& to : merged.parameters().all()) {
    std::vector<double> weight = from.values(from.find(to.name()));
    const std::string layer = to.name().substr(0, to.name().rfind('.'));
    const auto update = std::find_if(from.all().begin(), from.all().end(), [&](const Tensor& t) { return t.name() == layer + ".lora_a"; });
    if (to.name().ends_with(".weight") && update != from.all().end()) {
      const std::vector<double> a = from.values(*update), b = from.values(from.find(layer + ".lora_b"));
      const std::size_t in = std::size_t(to.shape()[0]), out = std::size_t(to.shape()[1]), rank = a.size() / in;
      for (std::size_t i = 0; i < in; ++i)
        for (std::size_t r = 0; r < rank; ++r)
          for (std::size_t j = 0; j < out; ++j) weight[i * out + j] += scale * a[i * rank + r] * b[r * out + j];
    }
    merged.parameters().assign(to, weight);
  }
  return merged;
}

}  // namespace hedgehog

#include "cuda/linear_products.h"
#include "cuda/norm.cuh"
#include "cuda/vector_product.h"

namespace hedgehog::cuda {
namespace {

enum Input : int { kX, kNormWeight, kNormBias, kWeight, kBias };

/// x (m, k), weight (k, n).
struct Sizes {
  std::int64_t m, n, k;
  Sizes(const Shape& x, const Shape& weight) : m(x.size() / weight[0]), n(weight[1]), k(weight[0]) {}
};

/// Few rows go through both in one launch, many first through the norm.
void forward(const Call& c) {
  const Ref &x = c.inputs[kX], &norm_weight = c.inputs[kNormWeight], &norm_bias = c.inputs[kNormBias], &weight = c.inputs[kWeight],
            &bias = c.inputs[kBias];
  const Sizes s(x.shape, weight.shape);
  const bool centred = c.attributes.text("norm") == "layer";
  const Activation activation = activation_of(c.attributes.text("activation"));
  if (x.dtype == Dtype::bf16 && multiply_vectors({.m = s.m,
                                                  .n = s.n,
                                                  .k = s.k,
                                                  .x = x.data,
                                                  .ldx = s.k,
                                                  .norm_weight = norm_weight.as<float>(),
                                                  .norm_bias = norm_bias.as<float>(),
                                                  .eps = float(c.attributes.real("eps")),
                                                  .centred = centred,
                                                  .weight = weight.data,
                                                  .bias = bias.data,
                                                  .parameters = are_parameters(weight, bias) && are_parameters(norm_weight, norm_bias),
                                                  .activation = activation,
                                                  .y = c.outputs[0].data}))
    return;
  const Ref n = packed(c.workspace, x.shape, x.dtype), inputs[] = {x, norm_weight, norm_bias}, saved[2] = {};
  norm_forward({c.attributes, inputs, {&n, 1}, saved}, {"norm_linear", centred, false});
  forward_layer({.x = n,
                 .weight = weight,
                 .bias = bias.data,
                 .parameters = are_parameters(weight, bias),
                 .activation = activation,
                 .sums = reinterpret_cast<float*>(static_cast<std::byte*>(c.workspace) + aligned_bytes(s.m, s.k, x.dtype)),
                 .y = c.outputs[0].data});
}

std::int64_t workspace(const Attributes&, std::span<const Meta> in) {
  const Sizes s(in[kX].shape, in[kWeight].shape);
  return aligned_bytes(s.m, s.k, in[kX].dtype) + sums_bytes(s.m, s.n, in[kX].dtype, in[kBias].given);
}

}  // namespace

void register_norm_linear(KernelTable& table) { table["norm_linear"] = {.forward = forward, .forward_workspace = workspace}; }

}  // namespace hedgehog::cuda

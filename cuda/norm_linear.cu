#include "cuda/blas.h"
#include "cuda/linear_products.h"
#include "cuda/norm.cuh"
#include "cuda/vector_product.h"

namespace hedgehog::cuda {
namespace {

enum Input : int { kX, kNormWeight, kNormBias, kWeight, kBias };

/// x (m, k), weight (k, n), or transposed (n, k).
struct Sizes {
  std::int64_t m, n, k;
  bool transposed;
  Sizes(const Attributes& a, const Shape& x, const Shape& weight)
      : m(x.rows()), n(0), k(x.last()), transposed(a.flag("transpose_weight")) {
    n = weight[transposed ? 0 : 1];
  }
};

/// Few rows go through both in one launch, many first through the norm.
void forward(const Call& c) {
  const Ref &x = c.inputs[kX], &norm_weight = c.inputs[kNormWeight], &norm_bias = c.inputs[kNormBias], &weight = c.inputs[kWeight],
            &bias = c.inputs[kBias];
  const Sizes s(c.attributes, x.shape, weight.shape);
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
                                                  .transposed = s.transposed,
                                                  .bias = bias.data,
                                                  .parameters = are_parameters(weight, bias) && are_parameters(norm_weight, norm_bias),
                                                  .activation = activation,
                                                  .y = c.outputs[0].data}))
    return;
  const Ref n = packed(c.workspace, x.shape, x.dtype), inputs[] = {x, norm_weight, norm_bias}, saved[2] = {};
  norm_forward({c.attributes, inputs, {&n, 1}, saved}, {"norm_linear", centred, false});
  if (s.transposed) {
    Product p;
    p.dtype = p.result = x.dtype;
    p.transpose_b = true;
    p.m = s.m, p.n = s.n, p.k = s.k;
    p.a = n.data, p.lda = s.k;
    p.b = weight.data, p.ldb = s.k;
    p.d = c.outputs[0].data, p.ldd = s.n;
    return multiply(p);
  }
  forward_layer({.x = n,
                 .weight = weight,
                 .bias = bias.data,
                 .parameters = are_parameters(weight, bias),
                 .activation = activation,
                 .sums = reinterpret_cast<float*>(static_cast<std::byte*>(c.workspace) + aligned_bytes(s.m, s.k, x.dtype)),
                 .y = c.outputs[0].data});
}

std::int64_t workspace(const Attributes& a, std::span<const Meta> in) {
  const Sizes s(a, in[kX].shape, in[kWeight].shape);
  return aligned_bytes(s.m, s.k, in[kX].dtype) + sums_bytes(s.m, s.n, in[kX].dtype, in[kBias].given);
}

}  // namespace

void register_norm_linear(KernelTable& table) { table["norm_linear"] = {.forward = forward, .forward_workspace = workspace}; }

}  // namespace hedgehog::cuda

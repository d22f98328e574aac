#include "cuda/common.cuh"
#include "cuda/linear_products.h"

namespace hedgehog::cuda {
namespace {

Activation kind_of(const Attributes& a) { return activation_of(a.text("activation")); }

struct Sizes {
  std::int64_t m, n, k;
  Sizes(const Shape& x, const Shape& weight) : m(x.size() / weight[0]), n(weight[1]), k(weight[0]) {}
};

void forward(const Call& c) {
  forward_layer({.x = c.inputs[0],
                 .weight = c.inputs[1],
                 .bias = c.inputs[2].data,
                 .parameters = are_parameters(c.inputs[1], c.inputs[2]),
                 .addend = c.inputs[3].data,
                 .activation = kind_of(c.attributes),
                 .h = c.saved[0].data,
                 .sums = static_cast<float*>(c.workspace),
                 .y = c.outputs[0].data});
}

void backward(const Call& c) {
  const Ref &x = c.inputs[0], &weight = c.inputs[1], &dx = c.dx[0], &dweight = c.dx[1], &dbias = c.dx[2], &daddend = c.dx[3], &dy = c.dy[0];
  if (!dy) return zero_gradients(c);
  const Sizes s(x.shape, weight.shape);
  const Activation kind = kind_of(c.attributes);
  const Dtype dtype = x.dtype;
  const bool active = kind != Activation::none;
  auto* const workspace = static_cast<std::byte*>(c.workspace);
  std::byte* const partials = workspace + (active ? aligned_bytes(s.m, s.n, dtype) : 0);
  auto* const scratch = reinterpret_cast<float*>(partials + partial_bytes(s.m, s.n, dtype));
  const void* const dh = active ? workspace : dy.data;
  if (dx || dweight || dbias)
    slope_and_sums(kind, dtype, dy.data, c.saved[0].data, active ? workspace : nullptr, dbias ? partials : nullptr, s.m, s.n);
  if (dbias) add_sums(dtype, partials, s.m, dbias, adds(c, 2));
  if (dx) input_gradient(dh, weight, dx, adds(c, 0));
  if (dweight) weight_gradient(x, dh, dweight, adds(c, 1), scratch);
  // last: daddend may lie on dy
  if (daddend) add_upstream(dy, daddend, adds(c, 3));
}

std::int64_t forward_workspace(const Attributes&, std::span<const Meta> in) {
  const Sizes s(in[0].shape, in[1].shape);
  return sums_bytes(s.m, s.n, in[0].dtype, in[2].given);
}

std::int64_t backward_workspace(const Attributes& a, std::span<const Meta> in) {
  const Sizes s(in[0].shape, in[1].shape);
  std::int64_t bytes = kind_of(a) != Activation::none ? aligned_bytes(s.m, s.n, in[0].dtype) : 0;
  bytes += partial_bytes(s.m, s.n, in[0].dtype);
  // whether x is rows with a stride is not known here
  if (in[0].dtype == Dtype::bf16) bytes += s.k * s.n * 4;
  return bytes;
}

}  // namespace

void register_linear(KernelTable& table) { table["linear"] = {forward, backward, forward_workspace, backward_workspace}; }

}  // namespace hedgehog::cuda

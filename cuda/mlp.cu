#include "cuda/common.cuh"
#include "cuda/linear_products.h"

namespace hedgehog::cuda {
namespace {

/// x (m, k), weight_1 (k, n), weight_2 (n, out).
struct Sizes {
  std::int64_t m, k, n, out;
  Sizes(const Shape& x, const Shape& weight_1, const Shape& weight_2)
      : m(x.size() / weight_1[0]), k(weight_1[0]), n(weight_1[1]), out(weight_2[1]) {}
  Shape inner() const { return {m, n}; }
};

Activation kind_of(const Attributes& a) { return activation_of(a.text("activation")); }

void forward(const Call& c) {
  const Ref &x = c.inputs[0], &weight_1 = c.inputs[1], &weight_2 = c.inputs[2];
  const Sizes s(x.shape, weight_1.shape, weight_2.shape);
  void* const g = c.saved[1] ? c.saved[1].data : c.workspace;
  auto* const sums = reinterpret_cast<float*>(static_cast<std::byte*>(c.workspace) + aligned_bytes(s.m, s.n, x.dtype));
  forward_layer({.x = x,
                 .weight = weight_1,
                 .bias = c.inputs[3].data,
                 .parameters = are_parameters(weight_1, c.inputs[3]),
                 .activation = kind_of(c.attributes),
                 .h = c.saved[0].data,
                 .sums = sums,
                 .y = g});
  if (!c.outputs[0]) return;
  forward_layer({.x = packed(g, s.inner(), x.dtype),
                 .weight = weight_2,
                 .bias = c.inputs[4].data,
                 .parameters = are_parameters(weight_2, c.inputs[4]),
                 .addend = c.inputs[5].data,
                 .sums = sums,
                 .y = c.outputs[0].data});
}

void backward(const Call& c) {
  const Ref &x = c.inputs[0], &weight_1 = c.inputs[1], &weight_2 = c.inputs[2], &h = c.saved[0], &g = c.saved[1], &dy = c.dy[0];
  const Ref &dx = c.dx[0], &dweight_1 = c.dx[1], &dweight_2 = c.dx[2], &dbias_1 = c.dx[3], &dbias_2 = c.dx[4], &daddend = c.dx[5];
  if (!dy) return zero_gradients(c);
  const Sizes s(x.shape, weight_1.shape, weight_2.shape);
  const Activation kind = kind_of(c.attributes);
  const Dtype dtype = x.dtype;
  auto* const dh = static_cast<std::byte*>(c.workspace);
  std::byte* const partials = dh + aligned_bytes(s.m, s.n, dtype);  // of one bias after the other
  auto* const scratch = reinterpret_cast<float*>(partials + std::max(partial_bytes(s.m, s.n, dtype), partial_bytes(s.m, s.out, dtype)));
  auto add_bias = [&](const Ref& dbias, bool add, const void* rows) {
    slope_and_sums(Activation::none, dtype, rows, nullptr, nullptr, partials, s.m, dbias.size());
    add_sums(dtype, partials, s.m, dbias, add);
  };

  if (dweight_2) weight_gradient(packed(g.data, s.inner(), dtype), dy.data, dweight_2, adds(c, 2), scratch);
  if (dbias_2) add_bias(dbias_2, adds(c, 4), dy.data);

  if (dx || dweight_1 || dbias_1) {
    const Ref inner = packed(dh, s.inner(), dtype);
    const bool fused = kind == Activation::gelu && input_gradient(dy.data, weight_2, inner, false, h.data);
    if (!fused) {
      input_gradient(dy.data, weight_2, inner, false);
      slope_and_sums(kind, dtype, dh, h.data, dh, dbias_1 ? partials : nullptr, s.m, s.n);
      if (dbias_1) add_sums(dtype, partials, s.m, dbias_1, adds(c, 3));
    } else if (dbias_1) {
      add_bias(dbias_1, adds(c, 3), dh);
    }
    if (dx) input_gradient(dh, weight_1, dx, adds(c, 0));
    if (dweight_1) weight_gradient(x, dh, dweight_1, adds(c, 1), scratch);
  }
  // last: daddend may lie on dy
  if (daddend) add_upstream(dy, daddend, adds(c, 5));
}

std::int64_t forward_workspace(const Attributes&, std::span<const Meta> in) {
  const Sizes s(in[0].shape, in[1].shape, in[2].shape);
  const Dtype dtype = in[0].dtype;
  return aligned_bytes(s.m, s.n, dtype) +  // g where it is not saved
         std::max(sums_bytes(s.m, s.n, dtype, in[3].given), sums_bytes(s.m, s.out, dtype, in[4].given));
}

std::int64_t backward_workspace(const Attributes&, std::span<const Meta> in) {
  const Sizes s(in[0].shape, in[1].shape, in[2].shape);
  const Dtype dtype = in[0].dtype;
  std::int64_t bytes = aligned_bytes(s.m, s.n, dtype) + std::max(partial_bytes(s.m, s.n, dtype), partial_bytes(s.m, s.out, dtype));
  // whether x is rows with a stride is not known here
  if (dtype == Dtype::bf16) bytes += s.n * std::max(s.k, s.out) * 4;
  return bytes;
}

}  // namespace

void register_mlp(KernelTable& table) { table["mlp"] = {forward, backward, forward_workspace, backward_workspace}; }

}  // namespace hedgehog::cuda

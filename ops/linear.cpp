#include "ops/linear.h"

#include "ops/activation.h"
#include "core/dispatch.h"
#include "ops/check.h"
#include "ops/elementwise.h"
#include "ops/linear_kernels.h"
#include "ops/matmul.h"
#include "ops/rows.h"
#include "ops/shape.h"

namespace hedgehog {

extern const Op kLinear;

Activation activation_of(const std::string& name, const char* op) {
  if (name == "none") return Activation::none;
  if (name == "gelu") return Activation::gelu;
  if (name == "gelu_erf") return Activation::gelu_erf;
  if (name == "silu") return Activation::silu;
  if (name == "relu") return Activation::relu;
  fail(op, fmt::format("activation must be none, gelu, gelu_erf, silu or relu, but is '{}'", name));
}

namespace {

Activation activation_of(const Attributes& a) { return hedgehog::activation_of(a.text("activation")); }

Layout infer_linear(const Attributes& a, std::span<const Meta> in) {
  const Meta &x = in[0], &weight = in[1], &bias = in[2], &addend = in[3];
  const Activation kind = activation_of(a);
  check_floating(kLinear, "x", x);
  if (x.shape.rank() < 1) fail(kLinear, "x must be (..., K), but is a scalar; reshape it to (1)");
  check_rank(kLinear, "weight", weight, 2, "(K, N)");
  if (weight.shape[0] != x.shape.last())
    fail(kLinear, fmt::format("weight must be (K, N) with K = {} to match x {}, but is {}", x.shape.last(), x.shape.text(),
                              weight.shape.text()));
  check_dtype(kLinear, "weight", weight, x.dtype, "x");
  Meta y{x.shape, x.dtype, true};
  y.shape.set(-1, weight.shape[1]);
  if (bias.given) {
    check_dtype(kLinear, "bias", bias, x.dtype, "x");
    check_shape(kLinear, "bias", bias, {weight.shape[1]}, "(N)", "weight", weight);
  }
  if (addend.given) {
    check_dtype(kLinear, "addend", addend, x.dtype, "x");
    check_shape(kLinear, "addend", addend, y.shape, "(..., N)", "x", x);
  }
  const std::int64_t element = size_of(x.dtype), rows = y.shape.rows(), columns = y.shape.last();
  Layout layout{{y}, {}};
  if (kind != Activation::none) {
    layout.saved = {y};
    layout.backward_workspace = (y.shape.size() + 15) / 16 * 16 * element;  // dh
  }
  if (bias.given) layout.backward_workspace += row_blocks(rows) * padded_row(columns) * element;
  return layout;
}

template <class T>
void linear_forward(const Call& c) {
  const T *bias = c.inputs[2].as<T>(), *addend = c.inputs[3].as<T>();
  const Activation kind = activation_of(c.attributes);
  T* const y = c.outputs[0].as<T>();
  T* const h = kind == Activation::none ? y : c.saved[0] ? c.saved[0].as<T>() : y;
  linear_rows(c.inputs[0], c.inputs[1], bias, addend, kind, h, y);
}

template <class T>
void linear_backward(const Call& c) {
  const Ref &x = c.inputs[0], &weight = c.inputs[1], &dx = c.dx[0], &dweight = c.dx[1], &dbias = c.dx[2], &daddend = c.dx[3];
  const std::int64_t k = weight.shape[0], n = weight.shape[1], m = x.size() / k;
  const Activation kind = activation_of(c.attributes);
  const T* const dy = c.dy[0].as<T>();
  const bool active = kind != Activation::none;
  T* const workspace = static_cast<T*>(c.workspace);
  T* const partials = dbias ? workspace + (active ? (m * n + 15) / 16 * 16 : 0) : nullptr;
  const T* dh = dy;
  if (active && (dx || dweight || dbias)) dh = workspace;
  if (dbias || dh != dy) linear_dh(kind, dy, active ? c.saved[0].as<T>() : nullptr, workspace, partials, m, n);
  if (dbias) add_blocks<T>(partials, row_blocks(m), padded_row(n), n, dbias.as<T>(), c.modes[2]);
  if (dx) linear_dx(dh, weight, dx, c.modes[0]);
  if (dweight) linear_dweight(x, dh, dweight, c.modes[1]);
  // last: daddend may lie on dy
  if (daddend && daddend.data != c.dy[0].data) scale_into<T>(dy, 1, daddend.as<T>(), m * n, c.modes[3]);
}

void backward_linear(const Call& c) {
  dispatch(c.inputs[0].dtype, [&](auto zero) { linear_backward<decltype(zero)>(c); });
}

Tensors composed_linear(const Attributes& a, const Tensors& in) {
  const std::int64_t k = in[1].shape()[0], n = in[1].shape()[1];
  // the primitive takes no vectors
  Tensor y = in[0].shape().rank() == 1 ? reshape(matmul(reshape(in[0], {1, k}), in[1]), {n}) : matmul(in[0], in[1]);
  if (in[2]) y = add(y, in[2]);
  switch (activation_of(a)) {
    case Activation::none: break;
    case Activation::gelu: y = gelu(y); break;
    case Activation::gelu_erf: y = gelu_erf(y); break;
    case Activation::silu: y = silu(y); break;
    case Activation::relu: y = relu(y); break;
  }
  if (in[3]) y = add(y, in[3]);
  return {y};
}

}  // namespace

const Op kLinear{
    .name = "linear",
    .arguments = {{"x"}, {"weight"}, {"bias", true}, {"addend", true}},
    .results = {"y"},
    .saved_names = {"h"},
    .attributes = {{"activation", "none"}},
    .infer = infer_linear,
    .forward = {[](const Call& c) { dispatch(c.inputs[0].dtype, [&](auto zero) { linear_forward<decltype(zero)>(c); }); }},
    .backward = {backward_linear},
    .reads = {.inputs = bits(0, 1), .saved = bits(0)},
    .strided = bits(0),
    .alias_backward = {{0, 3}},
    .cost = [](const Attributes& a, std::span<const Meta> in, std::span<const Meta> out) {
      const double product = 2.0 * double(in[0].shape.size()) * double(out[0].shape.last());
      const double each = double(out[0].shape.size()) * ((a.text("activation") == "none" ? 0 : 30) + in[2].given + in[3].given);
      return std::pair{Work{product + each}, Work{2 * product + each}};
    },
    .reference = composed_linear,
    .formula_forward = "h = x weight + bias;  y = activation(h) + addend",
    .formula_backward = "dh = dy * activation'(h);  dx = dh weight^T;  dweight = x^T dh;  dbias = sum_rows dh;  daddend = dy",
    .samples =
        {
            {"smallest", {}, {normal({1}), normal({1, 1}), omitted(), omitted()}},
            {"batch", {}, {normal({2, 3, 5}), normal({5, 7}), omitted(), omitted()}},
            {"bias", {}, {normal({4, 5}), normal({5, 3}), normal({3}), omitted()}},
            {"residual", {}, {normal({2, 3, 5}), normal({5, 7}), normal({7}), normal({2, 3, 7})}},
            {"gelu", {{"activation", "gelu"}}, {normal({2, 3, 5}), normal({5, 7}), normal({7}), omitted()}},
            {"gelu residual", {{"activation", "gelu"}}, {normal({4, 3}), normal({3, 5}), omitted(), normal({4, 5})}},
            {"gelu_erf", {{"activation", "gelu_erf"}}, {normal({3, 2, 5}), normal({5, 7}), normal({7}), normal({3, 2, 7})}},
            {"silu", {{"activation", "silu"}}, {normal({3, 5}), normal({5, 7}), normal({7}), normal({3, 7})}},
            {"relu", {{"activation", "relu"}}, {normal({3, 2, 5}), normal({5, 7}), normal({7}), omitted()}},
            {"tiles", {{"activation", "gelu"}}, {normal({197, 3}), normal({3, 17}), normal({17}), omitted()}},
        },
    .faults =
        {
            {"unbent", "the slope of the activation is forgotten: dh = dy",
             [](const Call& c) {
               Attributes plain = c.attributes;
               plain.set({"activation", "none"});
               backward_linear({plain, c.inputs, c.outputs, c.saved, c.dy, c.dx, c.modes, c.workspace});
             },
             {}, "gelu"},
            {"late bias", "the bias is added after the activation's slope: dbias = sum_rows dy", {},
             [](const Attributes& a, const Tensors& in) {
               Tensors parts = in;
               parts[2] = detach(in[2]);
               const Tensor y = composed_linear(a, parts)[0];
               return Tensors{add(y, subtract(in[2], detach(in[2])))};
             },
             "silu"},
        },
};

Tensor linear(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& addend, const std::string& activation,
              SourceLine where) {
  return apply(kLinear, {{"activation", activation}}, {whole_vectors(x), weight, bias, addend}, where)[0];
}

}  // namespace hedgehog

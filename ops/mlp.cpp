#include "ops/mlp.h"

#include "core/dispatch.h"
#include "ops/check.h"
#include "ops/elementwise.h"
#include "ops/linear.h"
#include "ops/linear_kernels.h"
#include "ops/matmul.h"
#include "ops/rows.h"
#include "ops/shape.h"

namespace hedgehog {

extern const Op kMlp;

namespace {

Activation activation_of(const Attributes& a) { return hedgehog::activation_of(a.text("activation")); }

std::int64_t padded(std::int64_t elements) { return (elements + 15) / 16 * 16; }

Layout infer_mlp(const Attributes& a, std::span<const Meta> in) {
  const Meta &x = in[0], &weight_1 = in[1], &weight_2 = in[2], &bias_1 = in[3], &bias_2 = in[4], &addend = in[5];
  const std::string activation = a.text("activation");
  if (activation == "none") fail(kMlp, "activation must be gelu, gelu_erf, silu or relu, but is 'none'; two layers without one are a single linear");
  if (activation != "gelu" && activation != "gelu_erf" && activation != "silu" && activation != "relu")
    fail(kMlp, fmt::format("activation must be gelu, gelu_erf, silu or relu, but is '{}'", activation));
  check_floating(kMlp, "x", x);
  if (x.shape.rank() < 1) fail(kMlp, "x must be (..., K), but is a scalar; reshape it to (1)");
  check_rank(kMlp, "weight_1", weight_1, 2, "(K, N)");
  check_rank(kMlp, "weight_2", weight_2, 2, "(N, M)");
  if (weight_1.shape[0] != x.shape.last())
    fail(kMlp, fmt::format("weight_1 must be (K, N) with K = {} to match x {}, but is {}", x.shape.last(), x.shape.text(), weight_1.shape.text()));
  if (weight_2.shape[0] != weight_1.shape[1])
    fail(kMlp, fmt::format("weight_2 must be (N, M) with N = {} to match weight_1 {}, but is {}", weight_1.shape[1], weight_1.shape.text(),
                           weight_2.shape.text()));
  check_dtype(kMlp, "weight_1", weight_1, x.dtype, "x");
  check_dtype(kMlp, "weight_2", weight_2, x.dtype, "x");
  Meta h{x.shape, x.dtype, true}, y = h;
  h.shape.set(-1, weight_1.shape[1]);
  y.shape.set(-1, weight_2.shape[1]);
  if (bias_1.given) {
    check_dtype(kMlp, "bias_1", bias_1, x.dtype, "x");
    check_shape(kMlp, "bias_1", bias_1, {weight_1.shape[1]}, "(N)", "weight_1", weight_1);
  }
  if (bias_2.given) {
    check_dtype(kMlp, "bias_2", bias_2, x.dtype, "x");
    check_shape(kMlp, "bias_2", bias_2, {weight_2.shape[1]}, "(M)", "weight_2", weight_2);
  }
  if (addend.given) {
    check_dtype(kMlp, "addend", addend, x.dtype, "x");
    check_shape(kMlp, "addend", addend, y.shape, "(..., M)", "x", x);
  }
  const std::int64_t element = size_of(x.dtype), rows = y.shape.rows();
  const std::int64_t summed = std::max(bias_1.given ? h.shape.last() : 0, bias_2.given ? y.shape.last() : 0);
  Layout layout{{y}, {h, h}};
  layout.forward_workspace = h.shape.size() * element;                                                 // g where it is not saved
  layout.backward_workspace = (padded(h.shape.size()) + row_blocks(rows) * padded_row(summed)) * element;  // dh, sums of either bias
  return layout;
}

template <class T>
void mlp_forward(const Call& c) {
  const Ref &x = c.inputs[0], &weight_1 = c.inputs[1], &weight_2 = c.inputs[2];
  const Shape inner{x.size() / weight_1.shape[0], weight_1.shape[1]};
  T* const g = c.saved[1] ? c.saved[1].as<T>() : static_cast<T*>(c.workspace);
  T* const h = c.saved[0] ? c.saved[0].as<T>() : g;
  T* const y = c.outputs[0].as<T>();
  linear_rows<T>(x, weight_1, c.inputs[3].as<T>(), nullptr, activation_of(c.attributes), h, g);
  if (!y) return;
  linear_rows<T>(packed(g, inner, x.dtype), weight_2, c.inputs[4].as<T>(), c.inputs[5].as<T>(), Activation::none, y, y);
}

template <class T>
void mlp_backward(const Call& c, Activation kind) {
  const Ref &x = c.inputs[0], &weight_1 = c.inputs[1], &weight_2 = c.inputs[2], &g = c.saved[1];
  const Ref &dx = c.dx[0], &dweight_1 = c.dx[1], &dweight_2 = c.dx[2], &dbias_1 = c.dx[3], &dbias_2 = c.dx[4], &daddend = c.dx[5];
  const std::int64_t n = weight_2.shape[0], width = weight_2.shape[1], m = x.size() / weight_1.shape[0];
  const T* const dy = c.dy[0].as<T>();
  T* const dh = static_cast<T*>(c.workspace);
  T* const partials = dh + padded(m * n);
  if (dbias_2) {
    linear_dh<T>(Activation::none, dy, nullptr, nullptr, partials, m, width);
    add_blocks<T>(partials, row_blocks(m), padded_row(width), width, dbias_2.as<T>(), c.modes[4]);
  }
  if (dweight_2) linear_dweight<T>(g, dy, dweight_2, c.modes[2]);
  if (dx || dweight_1 || dbias_1) {
    linear_dx<T>(dy, weight_2, packed(dh, g.shape, x.dtype), Mode::write);
    linear_dh<T>(kind, dh, c.saved[0].as<T>(), dh, dbias_1 ? partials : nullptr, m, n);
  }
  if (dbias_1) add_blocks<T>(partials, row_blocks(m), padded_row(n), n, dbias_1.as<T>(), c.modes[3]);
  if (dx) linear_dx<T>(dh, weight_1, dx, c.modes[0]);
  if (dweight_1) linear_dweight<T>(x, dh, dweight_1, c.modes[1]);
  // last: daddend may lie on dy
  if (daddend && daddend.data != c.dy[0].data) scale_into<T>(dy, 1, daddend.as<T>(), m * width, c.modes[5]);
}

void backward_mlp(const Call& c, Activation kind) {
  dispatch(c.inputs[0].dtype, [&](auto zero) { mlp_backward<decltype(zero)>(c, kind); });
}

Tensors composed_mlp(const Attributes& a, const Tensors& in) {
  return {linear(linear(in[0], in[1], in[3], {}, a.text("activation")), in[2], in[4], in[5])};
}

}  // namespace

const Op kMlp{
    .name = "mlp",
    .arguments = {{"x"}, {"weight_1"}, {"weight_2"}, {"bias_1", true}, {"bias_2", true}, {"addend", true}},
    .results = {"y"},
    .saved_names = {"h", "g"},
    .attributes = {{"activation", "gelu"}},
    .infer = infer_mlp,
    .forward = {[](const Call& c) { dispatch(c.inputs[0].dtype, [&](auto zero) { mlp_forward<decltype(zero)>(c); }); }},
    .backward = {[](const Call& c) { backward_mlp(c, activation_of(c.attributes)); }},
    .reads = {.inputs = bits(0, 1, 2), .saved = bits(0, 1)},
    .strided = bits(0),
    .alias_backward = {{0, 5}},
    .saved_alone = true,
    .cost = [](const Attributes&, std::span<const Meta> in, std::span<const Meta> out) {
      const double rows = double(in[0].shape.rows()), n = double(in[1].shape[1]), width = out[0].given ? double(in[2].shape[1]) : 0;
      const double products = 2 * rows * n * (double(in[0].shape.last()) + width);
      const double each = rows * n * (30 + in[3].given) + rows * width * (in[4].given + in[5].given);
      return std::pair{Work{products + each}, Work{2 * products + each}};
    },
    .reference = composed_mlp,
    .formula_forward = "h = x weight_1 + bias_1;  g = activation(h);  y = g weight_2 + bias_2 + addend",
    .formula_backward =
        "daddend = dy;  dbias_2 = sum_rows dy;  dweight_2 = g^T dy;  dh = (dy weight_2^T) * activation'(h);  "
        "dbias_1 = sum_rows dh;  dweight_1 = x^T dh;  dx = dh weight_1^T",
    .samples =
        {
            {"smallest", {}, {normal({1}), normal({1, 1}), normal({1, 1}), omitted(), omitted(), omitted()}},
            {"gelu", {}, {normal({2, 3, 5}), normal({5, 11}), normal({11, 7}), normal({11}), normal({7}), normal({2, 3, 7})}},
            {"plain", {}, {normal({4, 5}), normal({5, 7}), normal({7, 3}), omitted(), omitted(), omitted()}},
            {"residual", {}, {normal({3, 5}), normal({5, 11}), normal({11, 7}), omitted(), omitted(), normal({3, 7})}},
            {"gelu_erf", {{"activation", "gelu_erf"}}, {normal({2, 3, 5}), normal({5, 11}), normal({11, 7}), normal({11}), normal({7}), normal({2, 3, 7})}},
            {"silu", {{"activation", "silu"}}, {normal({3, 5}), normal({5, 11}), normal({11, 7}), normal({11}), omitted(), normal({3, 7})}},
            {"relu", {{"activation", "relu"}}, {normal({3, 2, 5}), normal({5, 11}), normal({11, 7}), omitted(), normal({7}), omitted()}},
            {"tiles", {}, {normal({197, 3}), normal({3, 17}), normal({17, 5}), normal({17}), normal({5}), omitted()}},
        },
    .faults =
        {
            {"unbent", "the slope of the activation is forgotten: dh = dy weight_2^T",
             [](const Call& c) { backward_mlp(c, Activation::none); }, {}, "gelu"},
            {"late bias", "the first bias is added after the activation's slope: dbias_1 = sum_rows dy weight_2^T", {},
             [](const Attributes& a, const Tensors& in) {
               Tensors parts = in;
               parts[3] = detach(in[3]);
               const Tensor y = composed_mlp(a, parts)[0];
               const Tensor nothing = reshape(subtract(in[3], detach(in[3])), {1, in[3].shape()[0]});
               return Tensors{add(y, reshape(matmul(nothing, detach(in[2])), {in[2].shape()[1]}))};
             },
             "silu"},
        },
};

Tensor mlp(const Tensor& x, const Tensor& weight_1, const Tensor& weight_2, const Tensor& bias_1, const Tensor& bias_2, const Tensor& addend,
           const std::string& activation, SourceLine where) {
  return apply(kMlp, {{"activation", activation}}, {whole_vectors(x), weight_1, weight_2, bias_1, bias_2, addend}, where)[0];
}

}  // namespace hedgehog

#include "ops/norm_linear.h"

#include "core/dispatch.h"
#include "core/parallel.h"
#include "ops/activation.h"
#include "ops/blas.h"
#include "ops/check.h"
#include "ops/linear.h"
#include "ops/linear_kernels.h"
#include "ops/matmul.h"
#include "ops/norm.h"
#include "ops/norm_row.h"
#include "ops/shape.h"

namespace hedgehog {

extern const Op kNormLinear;

namespace {

enum Input : int { kX, kNormWeight, kNormBias, kWeight, kBias };

bool is_centred(const Attributes& a) { return a.text("norm") == "layer"; }

template <class T>
void forward(const Call& c) {
  const Ref& x = c.inputs[kX];
  const std::int64_t columns = x.shape.last();
  const T eps = T(c.attributes.real("eps")), *const weight = c.inputs[kNormWeight].as<T>(), *const bias = c.inputs[kNormBias].as<T>();
  const bool centred = is_centred(c.attributes);
  T* const n = static_cast<T*>(c.workspace);
  parallel_for(x.shape.rows(), std::max<std::int64_t>(1, 4096 / columns), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t at = begin * columns; at < end * columns; at += columns) {
      const T* const in = x.as<T>() + at;
      centred ? norm_row<true>(in, columns, eps, weight, bias, n + at) : norm_row<false>(in, columns, eps, weight, bias, n + at);
    }
  });
  T* const y = c.outputs[0].as<T>();
  if (c.attributes.flag("transpose_weight")) {
    const T* const rows = c.inputs[kWeight].as<T>();
    const std::int64_t results = c.outputs[0].shape.last();
    return gemm<T>(false, true, x.shape.rows(), results, columns, T(1), n, columns, rows, columns, T(0), y, results);
  }
  linear_rows<T>(packed(n, x.shape, x.dtype), c.inputs[kWeight], c.inputs[kBias].as<T>(), nullptr, activation_of(c.attributes.text("activation")), y,
                 y);
}

Tensors composed(const Attributes& a, const Tensors& in) {
  const double eps = a.real("eps");
  const Tensor n = is_centred(a) ? layer_norm(in[kX], in[kNormWeight], in[kNormBias], eps) : rms_norm(in[kX], in[kNormWeight], eps);
  if (a.flag("transpose_weight")) {
    const Tensor y = matmul(reshape(n, {n.shape().rows(), n.shape().last()}), in[kWeight], false, true);
    Shape shape = in[kX].shape();
    shape.set(-1, in[kWeight].shape()[0]);
    return {reshape(y, shape)};
  }
  return {linear(n, in[kWeight], in[kBias], {}, a.text("activation"))};
}

}  // namespace

Layout infer_norm_linear(const Op& op, const Attributes& a, std::span<const Meta> in, const char* width, const char* columns) {
  const Meta &x = in[kX], &weight = in[kWeight], &bias = in[kBias];
  const std::string& norm = a.text("norm");
  if (norm != "layer" && norm != "rms") fail(op, fmt::format("norm must be layer or rms, but is '{}'", norm));
  const bool centred = is_centred(a);
  const bool transposed = a.flag("transpose_weight"), active = activation_of(a.text("activation"), op.name.c_str()) != Activation::none;
  if (transposed && (active || bias.given)) fail(op, "transpose_weight is for products without bias and activation; leave these out");
  check_floating(op, "x", x);
  if (x.shape.rank() < 1) fail(op, "x must be (..., K), but is a scalar; reshape it to (1)");
  for (Input i : {kNormWeight, kNormBias}) {
    if (!in[i].given) continue;
    const char* name = i == kNormBias ? "norm_bias" : "norm_weight";
    check_dtype(op, name, in[i], accumulator_of(x.dtype), x.dtype == Dtype::bf16 ? nullptr : "x");
    check_shape(op, name, in[i], {x.shape.last()}, fmt::format("({})", width).c_str(), "x", x);
  }
  if (in[kNormBias].given && !centred) fail(op, "norm_bias must be left out with norm = rms, which has none");
  if (!(a.real("eps") > 0)) fail(op, fmt::format("eps must be above 0, but is {}; 1e-5 is usual", a.real("eps")));
  const std::string form = transposed ? fmt::format("({}, {})", columns, width) : fmt::format("({}, {})", width, columns);
  check_rank(op, "weight", weight, 2, form.c_str());
  if (weight.shape[transposed] != x.shape.last())
    fail(op, fmt::format("weight must be {} with {} = {} to match x {}, but is {}", form, width, x.shape.last(), x.shape.text(), weight.shape.text()));
  check_dtype(op, "weight", weight, x.dtype, "x");
  if (bias.given) {
    check_dtype(op, "bias", bias, x.dtype, "x");
    check_shape(op, "bias", bias, {weight.shape[1]}, fmt::format("({})", columns).c_str(), "weight", weight);
  }
  Meta y{x.shape, x.dtype, true};
  y.shape.set(-1, weight.shape[!transposed]);
  Layout layout{{y}, {}};
  layout.forward_workspace = x.shape.size() * size_of(x.dtype);  // n
  return layout;
}

const Op kNormLinear{
    .name = "norm_linear",
    .arguments = {{"x", false, false}, {"norm_weight", false, false, true}, {"norm_bias", true, false, true}, {"weight", false, false},
                  {"bias", true, false}},
    .results = {"y"},
    .constant_outputs = bits(0),
    .attributes = {{"norm", "layer"}, {"activation", "none"}, {"transpose_weight", false}, {"eps", 1e-5}},
    .infer = [](const Attributes& a, std::span<const Meta> in) { return infer_norm_linear(kNormLinear, a, in); },
    .forward = {[](const Call& c) { dispatch(c.inputs[kX].dtype, [&](auto zero) { forward<decltype(zero)>(c); }); }},
    .cost = [](const Attributes& a, std::span<const Meta> in, std::span<const Meta> out) {
      const double product = 2.0 * double(in[kX].shape.size()) * double(out[0].shape.last());
      const double each = double(out[0].shape.size()) * ((a.text("activation") == "none" ? 0 : 30) + in[kBias].given);
      return std::pair{Work{product + each + 8.0 * double(in[kX].shape.size())}, Work{}};
    },
    .reference = composed,
    .formula_forward = "y = activation(norm(x) weight + bias)",
    .samples =
        {
            {"smallest", {{"eps", 0.5}}, {normal({1}), normal({1}), normal({1}), normal({1, 1}), normal({1})}},
            {"layer", {}, {normal({2, 3, 5}), normal({5}), normal({5}), normal({5, 7}), omitted()}},
            {"rms", {{"norm", "rms"}}, {normal({3, 5}), normal({5}), omitted(), normal({5, 7}), normal({7})}},
            {"silu", {{"activation", "silu"}}, {normal({3, 11}), normal({11}), omitted(), normal({11, 7}), normal({7})}},
            {"relu", {{"norm", "rms"}, {"activation", "relu"}}, {normal({2, 2, 5}), normal({5}), omitted(), normal({5, 3}), omitted()}},
            {"transposed", {{"transpose_weight", true}}, {normal({2, 3, 5}), normal({5}), normal({5}), normal({7, 5}), omitted()}},
            // sizes of which kernels take a few rows in one pass, one and several, each with sums of more than one round
            {"one row",
             {{"activation", "gelu"}},
             {normal({1, 1, 768}, 1, 0.5), normal({768}, 0.5, 1), normal({768}), normal({768, 48}, 0.1), normal({48})}},
            {"few rows", {}, {normal({3, 200}, 2, 5), normal({200}, 0.5, 1), normal({200}), normal({200, 2056}, 0.2), normal({2056})}},
            {"long rows", {{"norm", "rms"}}, {normal({2, 2040}), normal({2040}, 0.5, 1), omitted(), normal({2040, 24}, 0.1), omitted()}},
            {"classifier",
             {{"transpose_weight", true}},
             {normal({1, 768}), normal({768}, 0.5, 1), normal({768}), normal({77, 768}, 0.1), omitted()}},
            {"few rows of a classifier",
             {{"norm", "rms"}, {"transpose_weight", true}},
             {normal({3, 200}), normal({200}, 0.5, 1), omitted(), normal({77, 200}, 0.2), omitted()}},
            {"longest row", {}, {normal({1, 2056}), normal({2056}, 0.5, 1), normal({2056}), normal({2056, 16}, 0.1), normal({16})}},
        },
};

Tensor norm_linear(const Tensor& x, const Tensor& norm_weight, const Tensor& norm_bias, const Tensor& weight, const Tensor& bias,
                   const NormLinearOptions& o, SourceLine where) {
  return apply(kNormLinear, {{"norm", o.norm}, {"activation", o.activation}, {"transpose_weight", o.transpose_weight}, {"eps", o.eps}},
               {x, norm_weight, norm_bias, weight, bias}, where)[0];
}

}  // namespace hedgehog

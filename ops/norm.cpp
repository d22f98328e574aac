#include "ops/norm.h"

#include "core/dispatch.h"
#include "ops/check.h"
#include "ops/elementwise.h"
#include "ops/norm_row.h"
#include "ops/reduce.h"
#include "ops/rows.h"
#include "ops/shape.h"

namespace hedgehog {

extern const Op kLayerNorm, kAddLayerNorm, kRmsNorm, kAddRmsNorm;

namespace {

/// The four ops are one pair of kernels: with or without mean and bias, with or without a residual.
template <bool kCentred, bool kAdded>
struct Norm {
  static constexpr int kWeight = kAdded ? 2 : 1, kBias = kWeight + 1, kRstd = kCentred ? 1 : 0;

  static const Op& op() {
    if constexpr (kCentred) return kAdded ? kAddLayerNorm : kLayerNorm;
    else return kAdded ? kAddRmsNorm : kRmsNorm;
  }

  /// Weights are f32 where x is bf16: near 1, where they start, bf16 has steps of 2^-8 that hide most updates.
  static void check_parameter(const Meta& parameter, const char* name, const Meta& x) {
    check_dtype(op(), name, parameter, accumulator_of(x.dtype), x.dtype == Dtype::bf16 ? nullptr : "x");
    check_shape(op(), name, parameter, {x.shape.last()}, "(C)", "x", x);
  }

  static Layout infer(const Attributes& a, std::span<const Meta> in) {
    const Meta &x = in[0], &weight = in[kWeight];
    check_floating(op(), "x", x);
    if (x.shape.rank() < 1) fail(op(), "x must be (..., C), but is a scalar; reshape it to (1)");
    if constexpr (kAdded) {
      check_dtype(op(), "residual", in[1], x.dtype, "x");
      check_shape(op(), "residual", in[1], x.shape, "(..., C)", "x", x);
    }
    const std::int64_t columns = x.shape.last(), rows = x.shape.rows();
    check_parameter(weight, "weight", x);
    if constexpr (kCentred)
      if (in[kBias].given) check_parameter(in[kBias], "bias", x);
    if (!(a.real("eps") > 0)) fail(op(), fmt::format("eps must be above 0, but is {}; 1e-5 is usual", a.real("eps")));
    const Meta row{{rows}, accumulator_of(x.dtype), true};
    Layout layout;
    layout.outputs.assign(kAdded ? 2 : 1, x);
    layout.saved.assign(kCentred ? 2 : 1, row);
    layout.backward_workspace = 3 * row_blocks(rows) * padded_row(columns) * size_of(x.dtype);
    return layout;
  }

  template <class T>
  static void forward(const Call& c) {
    const Ref& x = c.inputs[0];
    const std::int64_t columns = x.shape.last();
    const T eps = T(c.attributes.real("eps"));
    const T* const weight = c.inputs[kWeight].as<T>();
    const T* const bias = kCentred ? c.inputs[kBias].as<T>() : nullptr;
    parallel_for(x.shape.rows(), std::max<std::int64_t>(1, 4096 / columns), [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t r = begin; r < end; ++r) {
        const T* in = x.as<T>() + r * columns;
        if constexpr (kAdded) {
          const T* residual = c.inputs[1].as<T>() + r * columns;
          T* sum = c.outputs[1].as<T>() + r * columns;
#pragma omp simd
          for (std::int64_t i = 0; i < columns; ++i) sum[i] = in[i] + residual[i];
          in = sum;
        }
        const auto [mean, rstd] = norm_row<kCentred>(in, columns, eps, weight, bias, c.outputs[0].as<T>() + r * columns);
        if (kCentred && c.saved[0]) c.saved[0].as<T>()[r] = mean;
        if (c.saved[kRstd]) c.saved[kRstd].as<T>()[r] = rstd;
      }
    });
  }

  template <class T>
  static void store(const Ref& to, Mode mode, std::int64_t at, const T* row, std::int64_t columns) {
    if (!to) return;
    T* out = to.as<T>() + at;
    if (mode == Mode::write) {
      std::copy_n(row, columns, out);
    } else {
#pragma omp simd
      for (std::int64_t i = 0; i < columns; ++i) out[i] += row[i];
    }
  }

  /// One block of rows: its dx, and its part of dweight and dbias.
  template <class T>
  static void backward_rows(const Call& c, std::int64_t begin, std::int64_t end, T* row, T* dweight, T* dbias) {
    const std::int64_t columns = c.inputs[0].shape.last();
    const T* const weight = c.inputs[kWeight].as<T>();
    const Ref& normed = kAdded ? c.outputs[1] : c.inputs[0];
    const bool wants_dx = c.dx[0] || (kAdded && c.dx[1]);
    for (std::int64_t r = begin; r < end; ++r) {
      const std::int64_t at = r * columns;
      const T* dsum = kAdded && c.dy[1] ? c.dy[1].as<T>() + at : nullptr;
      if (const T* dy = c.dy[0].as<T>()) {
        dy += at;
        const T* x = normed.as<T>() + at;
        const T rstd = c.saved[kRstd].as<T>()[r];
        const T mean = kCentred ? c.saved[0].as<T>()[r] : T(0);
        T g_sum = 0, g_xhat = 0;
#pragma omp simd reduction(+ : g_sum, g_xhat)
        for (std::int64_t i = 0; i < columns; ++i) {
          const T g = dy[i] * weight[i], xhat = (x[i] - mean) * rstd;
          row[i] = g;
          dweight[i] += dy[i] * xhat;
          dbias[i] += dy[i];
          g_sum += g;
          g_xhat += g * xhat;
        }
        if (!wants_dx) continue;
        const T a = kCentred ? g_sum / T(columns) : T(0), b = g_xhat / T(columns);
#pragma omp simd
        for (std::int64_t i = 0; i < columns; ++i) row[i] = rstd * (row[i] - a - (x[i] - mean) * rstd * b);
        if (dsum) {
#pragma omp simd
          for (std::int64_t i = 0; i < columns; ++i) row[i] += dsum[i];
        }
      } else if (dsum) {
        std::copy_n(dsum, columns, row);
      } else {
        std::fill_n(row, columns, T(0));
      }
      store(c.dx[0], c.modes[0], at, row, columns);
      if constexpr (kAdded) store(c.dx[1], c.modes[1], at, row, columns);
    }
  }

  template <class T>
  static void backward(const Call& c) {
    const std::int64_t columns = c.inputs[0].shape.last(), rows = c.inputs[0].shape.rows();
    const std::int64_t blocks = row_blocks(rows), stride = padded_row(columns);
    T* const workspace = static_cast<T*>(c.workspace);
    T* const dweights = workspace + blocks * stride;
    T* const dbiases = dweights + blocks * stride;
    parallel_tasks(blocks, [&](std::int64_t b) {
      std::fill_n(dweights + b * stride, columns, T(0));
      std::fill_n(dbiases + b * stride, columns, T(0));
      backward_rows(c, rows * b / blocks, rows * (b + 1) / blocks, workspace + b * stride, dweights + b * stride, dbiases + b * stride);
    });
    if (const Ref& dweight = c.dx[kWeight]) add_blocks(dweights, blocks, stride, columns, dweight.as<T>(), c.modes[kWeight]);
    if constexpr (kCentred)
      if (const Ref& dbias = c.dx[kBias]) add_blocks(dbiases, blocks, stride, columns, dbias.as<T>(), c.modes[kBias]);
  }

  static void run_forward(const Call& c) {
    dispatch(c.inputs[0].dtype, [&](auto zero) { forward<decltype(zero)>(c); });
  }
  static void run_backward(const Call& c) {
    dispatch(c.inputs[0].dtype, [&](auto zero) { backward<decltype(zero)>(c); });
  }

  /// `freeze_mean` and `freeze_scale` cut the gradient through the statistics, as a wrong backward would.
  static Tensors composed(const Attributes& a, const Tensors& in, bool freeze_mean = false, bool freeze_scale = false) {
    const double eps = a.real("eps");
    const Tensor sum = kAdded ? add(in[0], in[1]) : in[0];
    const bool rounded = sum.dtype() == Dtype::bf16;
    const Tensor x = rounded ? cast(sum, Dtype::f32) : sum;
    Tensor centred = x;
    if constexpr (kCentred) {
      const Tensor average = mean(x, -1, true);
      centred = subtract(x, freeze_mean ? detach(average) : average);
    }
    const Tensor rstd = reciprocal(sqrt(shift(mean(square(centred), -1, true), eps)));
    Tensor y = multiply(multiply(centred, freeze_scale ? detach(rstd) : rstd), in[kWeight]);
    if constexpr (kCentred)
      if (in[kBias]) y = add(y, in[kBias]);
    if (rounded) y = cast(y, Dtype::bf16);
    if constexpr (kAdded) return {y, sum};
    else return {y};
  }

  static std::pair<Work, Work> cost(const Attributes&, std::span<const Meta> in, std::span<const Meta>) {
    const double n = double(in[0].shape.size());
    return {Work{(kCentred ? 8 : 5) * n}, Work{(kCentred ? 16 : 12) * n}};
  }

  static Op make() {
    Op op;
    op.name = std::string(kAdded ? "add_" : "") + (kCentred ? "layer_norm" : "rms_norm");
    op.arguments = {{"x"}};
    if (kAdded) op.arguments.push_back({"residual"});
    op.arguments.push_back({.name = "weight", .wide = true});
    if (kCentred) op.arguments.push_back({.name = "bias", .optional = true, .wide = true});
    op.results = kAdded ? std::vector<std::string>{"y", "sum"} : std::vector<std::string>{"y"};
    op.saved_names = kCentred ? std::vector<std::string>{"mean", "rstd"} : std::vector<std::string>{"rstd"};
    op.attributes = {{"eps", 1e-5}};
    op.infer = infer;
    op.forward.cpu = run_forward;
    op.backward.cpu = run_backward;
    op.reads = {.inputs = kAdded ? bits(kWeight) : bits(0, kWeight), .outputs = kAdded ? bits(1) : bits(),
                .saved = kCentred ? bits(0, 1) : bits(0)};
    // a row is read whole before its results are written
    op.alias = op.alias_backward = {{0, 0}};
    if (kAdded) {
      op.alias = {{0, 1}, {1, 1}, {0, 0}, {1, 0}};
      op.alias_backward = {{0, 0}, {0, 1}, {1, 0}, {1, 1}};
    }
    op.cost = cost;
    op.reference = [](const Attributes& a, const Tensors& in) { return composed(a, in); };
    const std::string sum = kAdded ? "sum = x + residual;  " : "", of = kAdded ? "sum" : "x";
    op.formula_forward = sum + (kCentred ? "xhat = (" + of + " - mean) rstd;  y = xhat weight + bias"
                                         : "xhat = " + of + " rstd;  y = xhat weight");
    op.formula_backward = std::string("g = dy weight;  dx = ") + (kAdded ? "dresidual = dsum + " : "") + "rstd (g - " +
                          (kCentred ? "mean_c(g) - " : "") + "xhat mean_c(g xhat));  dweight = sum_n dy xhat" +
                          (kCentred ? ";  dbias = sum_n dy" : "");
    op.samples = samples();
    op.faults = faults();
    return op;
  }

  static Sample sample(const char* label, Shape shape, bool bias, Attributes attributes = {}) {
    std::vector<SampleInput> inputs{normal(shape)};
    if (kAdded) inputs.push_back(normal(shape));
    inputs.push_back(normal({shape.last()}));
    if (kCentred) inputs.push_back(bias ? normal({shape.last()}) : omitted());
    return {label, std::move(attributes), std::move(inputs)};
  }
  static std::vector<Sample> samples() {
    return {sample("one row", {1, 3}, true), sample("matrix", {4, 7}, true), sample("batch", {2, 3, 5}, true),
            sample("wide", {3, 37}, false, {{"eps", 0.1}}), sample("blocks", {67, 3}, true)};
  }

  static std::vector<Fault> faults() {
    std::vector<Fault> all{{"scale", "the gradient through rstd is forgotten: no xhat mean_c(g xhat)", {},
                            [](const Attributes& a, const Tensors& in) { return composed(a, in, false, true); }, {}}};
    if (kCentred)
      all.push_back({"mean", "the gradient through the mean is forgotten: no mean_c(g)", {},
                     [](const Attributes& a, const Tensors& in) { return composed(a, in, true, false); }, {}});
    if (kAdded)
      all.push_back({"skip", "the gradient of the sum itself is forgotten: dx without dsum",
                     [](const Call& c) {
                       std::vector<Ref> dy(c.dy.begin(), c.dy.end());
                       dy[1].data = nullptr;
                       run_backward({c.attributes, c.inputs, c.outputs, c.saved, dy, c.dx, c.modes, c.workspace});
                     },
                     {}, {}});
    return all;
  }
};

}  // namespace

const Op kLayerNorm = Norm<true, false>::make();
const Op kAddLayerNorm = Norm<true, true>::make();
const Op kRmsNorm = Norm<false, false>::make();
const Op kAddRmsNorm = Norm<false, true>::make();

Tensor layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, double eps, SourceLine where) {
  return apply(kLayerNorm, {{"eps", eps}}, {x, weight, bias}, where)[0];
}

Tensor rms_norm(const Tensor& x, const Tensor& weight, double eps, SourceLine where) {
  return apply(kRmsNorm, {{"eps", eps}}, {x, weight}, where)[0];
}

NormedSum add_layer_norm(const Tensor& x, const Tensor& residual, const Tensor& weight, const Tensor& bias, double eps, SourceLine where) {
  const Tensors results = apply(kAddLayerNorm, {{"eps", eps}}, {x, residual, weight, bias}, where);
  return {results[0], results[1]};
}

NormedSum add_rms_norm(const Tensor& x, const Tensor& residual, const Tensor& weight, double eps, SourceLine where) {
  const Tensors results = apply(kAddRmsNorm, {{"eps", eps}}, {x, residual, weight}, where);
  return {results[0], results[1]};
}

}  // namespace hedgehog

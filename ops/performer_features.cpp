#include "ops/performer_features.h"

#include <cmath>

#include "core/dispatch.h"
#include "ops/blas.h"
#include "ops/check.h"
#include "ops/elementwise.h"
#include "ops/head_rows.h"
#include "ops/matmul.h"
#include "ops/reduce.h"
#include "ops/shape.h"
#include "ops/worker_tasks.h"

namespace hedgehog {

extern const Op kPerformerFeatures;

namespace {

constexpr const char* kName = "performer_features";
constexpr std::int64_t kTile = 64;  // tokens at once

struct Sizes {
  std::int64_t B, T, H, D, m, F;
  bool hyperbolic;
  std::int64_t tasks() const { return B * H; }
};

template <class In>
Sizes sizes_of(const Attributes& attributes, const In& in) {
  const Shape& x = in[0].shape;
  const bool hyperbolic = attributes.flag("hyperbolic");
  const std::int64_t m = in[1].shape[0];
  return {x[0], x[1], x[2], x[3], m, hyperbolic ? 2 * m : m, hyperbolic};
}

Layout infer(const Attributes& attributes, std::span<const Meta> in) {
  const Op& op = kPerformerFeatures;
  const Meta &x = in[0], &projection = in[1];
  check_floating(op, "x", x);
  check_rank(op, "x", x, 4, "(B, T, H, D)");
  check_dtype(op, "projection", projection, accumulator_of(x.dtype), x.dtype == Dtype::bf16 ? nullptr : "x");
  if (projection.shape.rank() != 2 || projection.shape[1] != x.shape[3])
    fail(op, fmt::format("projection must have shape (m, D) = (any, {}) to match x {}, but has {}", x.shape[3], x.shape.text(),
                         projection.shape.text()));
  const Sizes s = sizes_of(attributes, in);
  Layout layout;
  layout.outputs = {{Shape{s.B, s.T, s.H, s.F}, x.dtype}};
  dispatch_workspace(x.dtype, [&](auto zero) {
    Carver carver;
    for (std::int64_t w = 0; w < worker_count(s.tasks()); ++w) carver.take<decltype(zero)>(kTile * (s.m + s.D));
    layout.backward_workspace = carver.used();
  });
  return layout;
}

template <class T>
T factor_of(const Sizes& s) {
  return T(std::pow(double(s.D), -0.25));
}

template <class T>
void forward(const Call& c) {
  const Sizes s = sizes_of(c.attributes, c.inputs);
  const HeadRows<T> x(kName, c.inputs[0]), y(kName, c.outputs[0]);
  const T* const projection = c.inputs[1].as<T>();
  const T factor = factor_of<T>(s), constant = T(std::log(double(s.F)) / 2);
  worker_tasks(s.tasks(), [&](std::int64_t task, std::int64_t) {
    const std::int64_t b = task / s.H, h = task % s.H;
    for (std::int64_t t0 = 0; t0 < s.T; t0 += kTile) {
      const std::int64_t n = std::min(kTile, s.T - t0);
      gemm_serial<T>(false, true, n, s.m, s.D, factor, x.at(b, t0, h), x.row, projection, s.D, T(0), y.at(b, t0, h), y.row);
      for (std::int64_t i = 0; i < n; ++i) {
        const T* __restrict from = x.at(b, t0 + i, h);
        T* __restrict row = y.at(b, t0 + i, h);
        T square = 0;
        for (std::int64_t d = 0; d < s.D; ++d) square += from[d] * from[d];
        const T less = factor * factor * square / 2 + constant;
        for (std::int64_t r = 0; r < s.m && s.hyperbolic; ++r) row[s.m + r] = -row[r] - less;
        for (std::int64_t r = 0; r < s.m; ++r) row[r] -= less;
      }
    }
  });
}

/// `norm`: whether -|y|^2 / 2 is differentiated too.
template <class T>
void backward(const Call& c, bool norm) {
  const Sizes s = sizes_of(c.attributes, c.inputs);
  const HeadRows<T> x(kName, c.inputs[0]), dy(kName, c.dy[0]), dx(kName, c.dx[0]);
  if (!dx) return;
  const T* const projection = c.inputs[1].as<T>();
  const T factor = factor_of<T>(s);
  const bool add = c.modes[0] == Mode::accumulate;
  Carver carver(c.workspace);
  std::vector<T*> scratch;
  for (std::int64_t w = 0; w < worker_count(s.tasks()); ++w) scratch.push_back(carver.take<T>(kTile * (s.m + s.D)));
  worker_tasks(s.tasks(), [&](std::int64_t task, std::int64_t worker) {
    const std::int64_t b = task / s.H, h = task % s.H;
    T* const g = scratch[std::size_t(worker)];
    T* const products = g + kTile * s.m;  // (n, D): W^T h / D^(1/4)
    for (std::int64_t t0 = 0; t0 < s.T; t0 += kTile) {
      const std::int64_t n = std::min(kTile, s.T - t0);
      for (std::int64_t i = 0; i < n; ++i) {
        const T* __restrict upstream = dy.at(b, t0 + i, h);
        for (std::int64_t r = 0; r < s.m; ++r) g[i * s.m + r] = s.hyperbolic ? upstream[r] - upstream[s.m + r] : upstream[r];
      }
      gemm_serial<T>(false, false, n, s.D, s.m, factor, g, s.m, projection, s.D, T(0), products, s.D);
      for (std::int64_t i = 0; i < n; ++i) {
        const T* __restrict upstream = dy.at(b, t0 + i, h);
        const T* __restrict from = x.at(b, t0 + i, h);
        T* __restrict to = dx.at(b, t0 + i, h);
        T all = 0;
        for (std::int64_t r = 0; r < s.F && norm; ++r) all += upstream[r];
        for (std::int64_t d = 0; d < s.D; ++d) {
          const T sum = products[i * s.D + d] - factor * factor * all * from[d];
          to[d] = add ? to[d] + sum : sum;
        }
      }
    }
  });
}

Tensors reference(const Attributes& a, const Tensors& in) {
  const Tensor& x = in[0];
  const Tensor w = in[1].dtype() == x.dtype() ? in[1] : cast(in[1], x.dtype());
  const double D = double(x.shape()[3]), F = double(w.shape()[0]) * (a.flag("hyperbolic") ? 2 : 1);
  const Tensor y = scale(x, std::pow(D, -0.25));
  const Tensor less = affine(sum(square(y), 3, true), 0.5, std::log(F) / 2), products = matmul(y, w, false, true);
  if (!a.flag("hyperbolic")) return {products - less};
  return {concat({products - less, -products - less})};
}

std::vector<Sample> samples() {
  std::vector<Sample> list;
  for (const bool hyperbolic : {false, true}) {
    const std::string name = hyperbolic ? "hyperbolic" : "positive";
    const Attributes a{{"hyperbolic", hyperbolic}};
    list.push_back({name, a, {normal({2, 5, 3, 4}), normal({6, 4})}});
    list.push_back({name + ", several tiles", a, {normal({1, 67, 2, 3}), normal({5, 3})}});
    list.push_back({name + ", smallest", a, {normal({1, 1, 1, 1}), normal({1, 1})}});
  }
  list.push_back({"wide", {}, {normal({1, 35, 1, 37}), normal({41, 37})}});
  return list;
}

}  // namespace

const Op kPerformerFeatures{
    .name = kName,
    .arguments = {{"x"}, {"projection", false, false, true}},
    .results = {"log_phi"},
    .attributes = {{"hyperbolic", false}},
    .infer = infer,
    .forward = {[](const Call& c) { dispatch(c.inputs[0].dtype, [&](auto zero) { forward<decltype(zero)>(c); }); }},
    .backward = {[](const Call& c) { dispatch(c.inputs[0].dtype, [&](auto zero) { backward<decltype(zero)>(c, true); }); }},
    .reads = {.inputs = bits(0, 1)},
    .strided = bits(0),
    .cost =
        [](const Attributes& a, std::span<const Meta> in, std::span<const Meta>) {
          const Sizes s = sizes_of(a, in);
          const double rows = double(s.B * s.T * s.H), product = 2 * rows * double(s.m * s.D);
          return std::pair{Work{product + rows * double(s.F)}, Work{product + 2 * rows * double(s.F)}};
        },
    .reference = reference,
    .formula_forward = "ln phi = [W y, -W y] - |y|^2 / 2 - ln(F) / 2,  y = x / D^(1/4);  without -W y unless hyperbolic",
    .formula_backward = "h = dphi+ - dphi-;  dx = (W^T h - y sum dphi) / D^(1/4)",
    .samples = samples(),
    .faults = {{"norm", "the term |y|^2 is taken for a constant",
                [](const Call& c) { dispatch(c.inputs[0].dtype, [&](auto zero) { backward<decltype(zero)>(c, false); }); }}},
};

Tensor performer_features(const Tensor& x, const Tensor& projection, bool hyperbolic, SourceLine where) {
  return apply(kPerformerFeatures, {{"hyperbolic", hyperbolic}}, {whole_vectors(x), projection}, where)[0];
}

std::vector<double> performer_projection(std::int64_t rows, std::int64_t dimension, const Random& random, bool equal_norms) {
  if (rows < 1 || dimension < 1)
    throw ShapeError(fmt::format("[performer_projection] rows and dimension must be at least 1, but are {} and {}", rows, dimension));
  const std::size_t m = std::size_t(rows), D = std::size_t(dimension);
  std::vector<double> out(m * D);
  for (std::size_t i = 0; i < out.size(); ++i) out[i] = random.normal(i);
  auto project = [&](double* row, const double* unit) {
    double product = 0;
    for (std::size_t d = 0; d < D; ++d) product += row[d] * unit[d];
    for (std::size_t d = 0; d < D; ++d) row[d] -= product * unit[d];
  };
  auto norm = [&](auto element) {
    double square = 0;
    for (std::size_t d = 0; d < D; ++d) square += element(d) * element(d);
    return std::sqrt(square);
  };
  // Gram-Schmidt, twice: what rounding leaves of the rows before is gone after the second time
  for (std::size_t r = 0; r < m; ++r) {
    double* const row = &out[r * D];
    for (int pass = 0; pass < 2; ++pass)
      for (std::size_t before = r / D * D; before < r; ++before) project(row, &out[before * D]);
    const double length = norm([&](std::size_t d) { return row[d]; });
    for (std::size_t d = 0; d < D; ++d) row[d] /= length;
  }
  for (std::size_t r = 0; r < m; ++r) {
    const double length = equal_norms ? std::sqrt(double(D)) : norm([&](std::size_t d) { return random.normal((m + r) * D + d); });
    for (std::size_t d = 0; d < D; ++d) out[r * D + d] *= length;
  }
  return out;
}

}  // namespace hedgehog

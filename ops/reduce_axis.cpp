#include <cmath>
#include <limits>

#include "core/dispatch.h"
#include "ops/broadcast.h"
#include "ops/math.h"
#include "ops/reduce.h"
#include "ops/reduce_layout.h"

namespace hedgehog {
namespace {

using namespace detail;

/// x as (outer, n, inner), where n is the axis.
struct AxisView {
  std::int64_t outer = 1, n = 1, inner = 1;
  AxisView(const Attributes& a, const Shape& x) {
    const int axis = axis_of(a, x);
    for (int i = 0; i < x.rank(); ++i) (i < axis ? outer : i == axis ? n : inner) *= x[i];
  }
  std::int64_t grain() const { return std::max<std::int64_t>(1, kRun / (n * std::min(inner, kSumTile))); }
  std::int64_t tiles() const { return (inner + kSumTile - 1) / kSumTile; }
};

/// Calls body(offset of the first element in x, offset in y, width) for tiles of up to kSumTile results side by side.
template <class Body>
void for_each_tile(const AxisView& v, const Body& body) {
  parallel_for(v.outer * v.tiles(), v.grain(), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      const std::int64_t o = t / v.tiles(), from = t % v.tiles() * kSumTile;
      body(o * v.n * v.inner + from, o * v.inner + from, std::min(kSumTile, v.inner - from));
    }
  });
}

/// Position of the first largest element, or of the first NaN.
template <class T>
std::int64_t first_largest(const T* x, std::int64_t n) {
  T m = x[0];
  int nan = 0;
#pragma omp simd reduction(max : m) reduction(| : nan)
  for (std::int64_t i = 0; i < n; ++i) {
    m = x[i] > m ? x[i] : m;
    nan |= x[i] != x[i];
  }
  std::int64_t i = 0;
  while (nan ? x[i] == x[i] : x[i] != m) ++i;
  return i;
}

template <class T>
void max_forward(const Call& c) {
  const AxisView v(c.attributes, c.inputs[0].shape);
  const T* x = c.inputs[0].as<T>();
  T* y = c.outputs[0].as<T>();
  std::int32_t* where = c.saved[0].as<std::int32_t>();
  for_each_tile(v, [&](std::int64_t first, std::int64_t to, std::int64_t width) {
    if (v.inner == 1) {
      const std::int64_t i = first_largest(x + first, v.n);
      y[to] = x[first + i];
      if (where) where[to] = std::int32_t(i);
      return;
    }
    T best[kSumTile];
    std::int32_t index[kSumTile];
    std::copy_n(x + first, width, best);
    std::fill_n(index, width, 0);
    for (std::int64_t k = 1; k < v.n; ++k) {
      const T* row = x + first + k * v.inner;
#pragma omp simd
      for (std::int64_t i = 0; i < width; ++i) {
        // the first NaN wins and stays
        const bool better = (row[i] > best[i] || row[i] != row[i]) && best[i] == best[i];
        best[i] = better ? row[i] : best[i];
        index[i] = better ? std::int32_t(k) : index[i];
      }
    }
    std::copy_n(best, width, y + to);
    if (where) std::copy_n(index, width, where + to);
  });
}

template <class T, bool kAll>
void max_backward(const Call& c) {
  if (!c.dx[0]) return;
  const AxisView v(c.attributes, c.inputs[0].shape);
  const T* dy = c.dy[0].as<T>();
  T* dx = c.dx[0].as<T>();
  const std::int32_t* where = c.saved[0].as<std::int32_t>();
  const bool adds = c.modes[0] == Mode::accumulate;
  auto term = [&](std::int64_t from, std::int64_t in, std::int64_t k) __attribute__((always_inline)) {
    const T upstream = dy ? dy[from] : T(0);
    const T g = kAll || where[from] == std::int32_t(k) ? upstream : T(0);
    dx[in] = adds ? dx[in] + g : g;
  };
  for_each_tile(v, [&](std::int64_t first, std::int64_t from, std::int64_t width) {
    if (v.inner == 1) {
#pragma omp simd
      for (std::int64_t k = 0; k < v.n; ++k) term(from, first + k, k);
      return;
    }
    for (std::int64_t k = 0; k < v.n; ++k)
#pragma omp simd
      for (std::int64_t i = 0; i < width; ++i) term(from + i, first + k * v.inner + i, k);
  });
}

template <class T>
T logsumexp_row(const T* x, std::int64_t n) {
  T m = x[0];
#pragma omp simd reduction(max : m)
  for (std::int64_t i = 0; i < n; ++i) m = x[i] > m ? x[i] : m;
  const T shift = std::isfinite(m) ? m : T(0);  // -inf - -inf would be NaN
  T s = 0;
#pragma omp simd reduction(+ : s)
  for (std::int64_t i = 0; i < n; ++i) s += vector_exp(x[i] - shift);
  return shift + std::log(s);
}

template <class T>
void logsumexp_forward(const Call& c) {
  const AxisView v(c.attributes, c.inputs[0].shape);
  const T* x = c.inputs[0].as<T>();
  T* y = c.outputs[0].as<T>();
  for_each_tile(v, [&](std::int64_t first, std::int64_t to, std::int64_t width) {
    if (v.inner == 1) {
      y[to] = logsumexp_row(x + first, v.n);
      return;
    }
    T m[kSumTile], s[kSumTile];
    std::copy_n(x + first, width, m);
    for (std::int64_t k = 1; k < v.n; ++k) {
      const T* row = x + first + k * v.inner;
#pragma omp simd
      for (std::int64_t i = 0; i < width; ++i) m[i] = row[i] > m[i] ? row[i] : m[i];
    }
    for (std::int64_t i = 0; i < width; ++i) m[i] = std::isfinite(m[i]) ? m[i] : T(0);
    std::fill_n(s, width, T(0));
    for (std::int64_t k = 0; k < v.n; ++k) {
      const T* row = x + first + k * v.inner;
#pragma omp simd
      for (std::int64_t i = 0; i < width; ++i) s[i] += vector_exp(row[i] - m[i]);
    }
    for (std::int64_t i = 0; i < width; ++i) y[to + i] = m[i] + std::log(s[i]);
  });
}

template <bool kWeighted, class T>
[[gnu::always_inline]] inline T logsumexp_term(T x, T y, T dy) {
  const T weight = vector_exp(x - y);
  // all -inf: y is -inf too, and x - y would be NaN
  return !kWeighted ? dy : x == -std::numeric_limits<T>::infinity() ? T(0) : dy * weight;
}

template <class T, bool kWeighted>
void logsumexp_backward(const Call& c) {
  if (!c.dx[0]) return;
  const AxisView v(c.attributes, c.inputs[0].shape);
  const T* x = c.inputs[0].as<T>();
  const T* y = c.outputs[0].as<T>();
  const T* dy = c.dy[0].as<T>();
  T* dx = c.dx[0].as<T>();
  if (!dy) {
    if (c.modes[0] == Mode::write) std::fill_n(dx, c.dx[0].size(), T(0));
    return;
  }
  with_mode(c.modes[0], [&](auto adds) {
    for_each_tile(v, [&](std::int64_t first, std::int64_t from, std::int64_t width) {
      if (v.inner == 1) {
        const T yi = y[from], g = dy[from];
#pragma omp simd
        for (std::int64_t i = first; i < first + v.n; ++i) dx[i] = (adds ? dx[i] : T(0)) + logsumexp_term<kWeighted>(x[i], yi, g);
        return;
      }
      for (std::int64_t k = 0; k < v.n; ++k) {
        const std::int64_t at = first + k * v.inner;
#pragma omp simd
        for (std::int64_t i = 0; i < width; ++i)
          dx[at + i] = (adds ? dx[at + i] : T(0)) + logsumexp_term<kWeighted>(x[at + i], y[from + i], dy[from + i]);
      }
    });
  });
}

std::pair<Work, Work> max_cost(const Attributes&, std::span<const Meta> in, std::span<const Meta>) {
  return {Work{double(in[0].shape.size())}, Work{0}};
}
std::pair<Work, Work> logsumexp_cost(const Attributes&, std::span<const Meta> in, std::span<const Meta>) {
  const double n = double(in[0].shape.size());
  return {Work{13 * n}, Work{12 * n}};
}

}  // namespace

extern const Op kMax, kLogsumexp;

const Op kMax{
    .name = "max",
    .arguments = {{"x"}},
    .results = {"y"},
    .saved_names = {"index"},
    .attributes = {{"axis", -1}, {"keep", false}},
    .infer =
        [](const Attributes& a, std::span<const Meta> in) {
          Layout layout = reduce_layout("max", a, in[0]);
          layout.forward_workspace = 0;
          layout.saved = {{layout.outputs[0].shape, Dtype::i32}};
          return layout;
        },
    .forward = {[](const Call& c) { dispatch(c.inputs[0].dtype, [&](auto zero) { max_forward<decltype(zero)>(c); }); }},
    .backward = {[](const Call& c) { dispatch(c.dx[0].dtype, [&](auto zero) { max_backward<decltype(zero), false>(c); }); }},
    .reads = {0, 0, bits(0)},
    .cost = max_cost,
    .formula_forward = "y = max_i x_i over the axis",
    .formula_backward = "dx_i = dy where i is the first of the largest, else 0",
    .samples = axis_samples(),
    .faults = {{"all", "every element of the axis gets the gradient",
                [](const Call& c) { dispatch(c.dx[0].dtype, [&](auto zero) { max_backward<decltype(zero), true>(c); }); }, {}, "middle"}},
};

const Op kLogsumexp{
    .name = "logsumexp",
    .arguments = {{"x"}},
    .results = {"y"},
    .attributes = {{"axis", -1}, {"keep", false}},
    .infer =
        [](const Attributes& a, std::span<const Meta> in) {
          Layout layout = reduce_layout("logsumexp", a, in[0]);
          layout.forward_workspace = 0;
          return layout;
        },
    .forward = {[](const Call& c) { dispatch(c.inputs[0].dtype, [&](auto zero) { logsumexp_forward<decltype(zero)>(c); }); }},
    .backward = {[](const Call& c) { dispatch(c.dx[0].dtype, [&](auto zero) { logsumexp_backward<decltype(zero), true>(c); }); }},
    .reads = {bits(0), bits(0)},
    .cost = logsumexp_cost,
    .formula_forward = "y = m + ln sum_i e^(x_i - m), m = max_i x_i, over the axis",
    .formula_backward = "dx_i = dy e^(x_i - y)",
    .samples = axis_samples(),
    .faults = {{"weights", "the weights e^(x - y) are missing",
                [](const Call& c) { dispatch(c.dx[0].dtype, [&](auto zero) { logsumexp_backward<decltype(zero), false>(c); }); }, {}, "middle"}},
};

Tensor max(const Tensor& x, int axis, bool keep, SourceLine where) {
  return apply(kMax, {{"axis", axis}, {"keep", keep}}, {x}, where)[0];
}
Tensor logsumexp(const Tensor& x, int axis, bool keep, SourceLine where) {
  return apply(kLogsumexp, {{"axis", axis}, {"keep", keep}}, {x}, where)[0];
}

}  // namespace hedgehog

#include "ops/softmax.h"

#include <fmt/format.h>

#include <cmath>

#include "core/dispatch.h"
#include "core/error.h"
#include "core/parallel.h"
#include "ops/math.h"

namespace hedgehog {
namespace {

std::int64_t grain(std::int64_t columns) { return std::max<std::int64_t>(1, 4096 / columns); }

template <class T>
T largest(const T* x, std::int64_t n) {
  T m = x[0];
#pragma omp simd reduction(max : m)
  for (std::int64_t i = 0; i < n; ++i) m = x[i] > m ? x[i] : m;
  return m;
}

template <class T>
void softmax_row(const T* x, T* y, std::int64_t n) {
  const T m = largest(x, n);
  T s = 0;
#pragma omp simd reduction(+ : s)
  for (std::int64_t i = 0; i < n; ++i) {
    y[i] = vector_exp(x[i] - m);
    s += y[i];
  }
  const T scale = T(1) / s;
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) y[i] *= scale;
}

template <class T>
void log_softmax_row(const T* x, T* y, std::int64_t n) {
  const T m = largest(x, n);
  T s = 0;
#pragma omp simd reduction(+ : s)
  for (std::int64_t i = 0; i < n; ++i) s += vector_exp(x[i] - m);
  const T ln = std::log(s);
  // not x - (m + ln): a large m would swallow ln
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) y[i] = (x[i] - m) - ln;
}

template <class T, bool kLog>
void softmax_forward(const Call& c) {
  const T* x = c.inputs[0].as<T>();
  T* y = c.outputs[0].as<T>();
  const std::int64_t n = c.inputs[0].shape.last();
  parallel_for(c.inputs[0].shape.rows(), grain(n), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) kLog ? log_softmax_row(x + r * n, y + r * n, n) : softmax_row(x + r * n, y + r * n, n);
  });
}

/// kSummed false: wrong, without the sum that couples the elements of a row.
template <class T, bool kLog, bool kSummed, bool kAdds>
void softmax_backward_row(const T* y, const T* dy, T* dx, std::int64_t n) {
  T s = 0;
#pragma omp simd reduction(+ : s)
  for (std::int64_t i = 0; i < n; ++i) s += kLog ? dy[i] : dy[i] * y[i];
  if (!kSummed) s = 0;
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) {
    const T g = kLog ? dy[i] - vector_exp(y[i]) * s : y[i] * (dy[i] - s);
    dx[i] = kAdds ? dx[i] + g : g;
  }
}

template <class T, bool kLog, bool kSummed>
void softmax_backward(const Call& c) {
  if (!c.dx[0]) return;
  const T* y = c.outputs[0].as<T>();
  const T* dy = c.dy[0].as<T>();
  T* dx = c.dx[0].as<T>();
  const std::int64_t n = c.inputs[0].shape.last();
  const bool adds = c.modes[0] == Mode::accumulate;
  if (!dy) {
    if (!adds) std::fill_n(dx, c.dx[0].size(), T(0));
    return;
  }
  parallel_for(c.inputs[0].shape.rows(), grain(n), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r)
      adds ? softmax_backward_row<T, kLog, kSummed, true>(y + r * n, dy + r * n, dx + r * n, n)
           : softmax_backward_row<T, kLog, kSummed, false>(y + r * n, dy + r * n, dx + r * n, n);
  });
}

template <bool kLog>
void softmax_forward_any(const Call& c) {
  dispatch(c.inputs[0].dtype, [&](auto zero) { softmax_forward<decltype(zero), kLog>(c); });
}
template <bool kLog, bool kSummed>
void softmax_backward_any(const Call& c) {
  dispatch(c.dx[0].dtype, [&](auto zero) { softmax_backward<decltype(zero), kLog, kSummed>(c); });
}

Layout softmax_layout(const char* op, const Meta& x) {
  if (!is_floating(x.dtype)) fail(op, fmt::format("x must be f32, f64 or bf16, but is {}; use cast first", name_of(x.dtype)));
  if (x.shape.rank() < 1) fail(op, fmt::format("x must have shape (..., C), but has {}; reshape it to (1)", x.shape.text()));
  return Layout{{x}, {}};
}

std::pair<Work, Work> softmax_cost(const Attributes&, std::span<const Meta> in, std::span<const Meta>) {
  const double n = double(in[0].shape.size());
  return {Work{13 * n}, Work{4 * n}};
}
std::pair<Work, Work> log_softmax_cost(const Attributes&, std::span<const Meta> in, std::span<const Meta>) {
  const double n = double(in[0].shape.size());
  return {Work{14 * n}, Work{13 * n}};
}

std::vector<Sample> softmax_samples() {
  return {{"heads", {}, {normal({2, 3, 4, 5})}}, {"odd", {}, {normal({3, 67}, 2)}}, {"shifted", {}, {normal({4, 7}, 1, 100)}}, {"two", {}, {normal({2})}}};
}

}  // namespace

extern const Op kSoftmax, kLogSoftmax;

const Op kSoftmax{
    .name = "softmax",
    .arguments = {{"x"}},
    .results = {"y"},
    .infer = [](const Attributes&, std::span<const Meta> in) { return softmax_layout("softmax", in[0]); },
    .forward = {softmax_forward_any<false>},
    .backward = {softmax_backward_any<false, true>},
    .reads = {0, bits(0)},
    .alias = {{0, 0}},
    .alias_backward = {{0, 0}},
    .cost = softmax_cost,
    .formula_forward = "y_i = e^(x_i - m) / sum_j e^(x_j - m), m = max_j x_j",
    .formula_backward = "dx = y (dy - sum_j dy_j y_j)",
    .samples = softmax_samples(),
    .faults = {{"sum", "the sum over the row is missing", softmax_backward_any<false, false>, {}, {}}},
};

const Op kLogSoftmax{
    .name = "log_softmax",
    .arguments = {{"x"}},
    .results = {"y"},
    .infer = [](const Attributes&, std::span<const Meta> in) { return softmax_layout("log_softmax", in[0]); },
    .forward = {softmax_forward_any<true>},
    .backward = {softmax_backward_any<true, true>},
    .reads = {0, bits(0)},
    .alias = {{0, 0}},
    .alias_backward = {{0, 0}},
    .cost = log_softmax_cost,
    .formula_forward = "y_i = x_i - m - ln sum_j e^(x_j - m), m = max_j x_j",
    .formula_backward = "dx = dy - e^y sum_j dy_j",
    .samples = softmax_samples(),
    .faults = {{"sum", "the sum over the row is missing", softmax_backward_any<true, false>, {}, {}}},
};

Tensor softmax(const Tensor& x, SourceLine where) { return apply(kSoftmax, {}, {x}, where)[0]; }
Tensor log_softmax(const Tensor& x, SourceLine where) { return apply(kLogSoftmax, {}, {x}, where)[0]; }

}  // namespace hedgehog

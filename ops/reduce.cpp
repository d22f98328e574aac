#include "ops/reduce.h"

#include "core/dispatch.h"
#include "ops/broadcast.h"
#include "ops/reduce_layout.h"

namespace hedgehog {
namespace {

using namespace detail;

/// The result seen with its reduced axes, so that it broadcasts to x.
Ref keeping_axes(const Call& c) {
  Ref y = c.outputs[0];
  y.shape = kept_shape(c.attributes, c.inputs[0].shape);
  return y;
}

double sum_factor(const Call& c, bool is_mean) {
  return is_mean ? double(c.outputs[0].size()) / double(c.inputs[0].size()) : 1.0;
}

template <class T, bool kMean>
void sum_forward(const Call& c) {
  const T* x = c.inputs[0].as<T>();
  const Ref y = keeping_axes(c);
  const Walk<3> walk = walk_over(c.inputs[0].shape, y, c.inputs[0], c.inputs[0]);
  sum_to(walk, y.as<T>(), SamePlace{}, sum_factor(c, kMean), Mode::write, c.workspace,
         [&](const Offsets<3>& at, std::int64_t i, auto, auto sx, auto) { return x[at[1] + i * sx]; });
}

template <class T>
void sum_backward(const Call& c, double factor) {
  if (!c.dx[0]) return;
  const T* dy = c.dy[0].as<T>();
  T* dx = c.dx[0].as<T>();
  const Walk<2> walk = walk_over(c.inputs[0].shape, c.dx[0], keeping_axes(c));
  with_mode(c.modes[0], [&](auto adds) {
    for_each_run(walk, [&](const Offsets<2>& at, std::int64_t n) {
      with_steps(walk.step(), [&](auto sx, auto sy) {
#pragma omp simd
        for (std::int64_t i = 0; i < n; ++i) {
          T& to = dx[at[0] + i * sx];
          const T g = dy ? dy[at[1] + i * sy] * T(factor) : T(0);
          to = adds ? to + g : g;
        }
      });
    });
  });
}

template <bool kMean, bool kUsesFactor>
void sum_backward_any(const Call& c) {
  dispatch(c.dx[0].dtype, [&](auto zero) { sum_backward<decltype(zero)>(c, kUsesFactor ? sum_factor(c, kMean) : 1.0); });
}

/// Wrong: the gradient reaches only the first element that a result sums.
template <class T>
void sum_backward_first(const Call& c) {
  if (!c.dx[0]) return;
  const Walk<2> walk = walk_over(c.inputs[0].shape, c.dx[0], keeping_axes(c));
  for (std::int64_t e = 0, last = -1; e < c.inputs[0].size(); ++e) {
    const Offsets<2> at = walk.at(e);
    T& dx = c.dx[0].as<T>()[at[0]];
    const T g = c.dy[0] && at[1] > last ? c.dy[0].as<T>()[at[1]] : T(0);
    dx = c.modes[0] == Mode::accumulate ? dx + g : g;
    last = std::max(last, at[1]);
  }
}

std::pair<Work, Work> sum_cost(const Attributes&, std::span<const Meta> in, std::span<const Meta>) {
  const double n = double(in[0].shape.size());
  return {Work{n}, Work{n}};
}
std::vector<Sample> sum_samples() {
  std::vector<Sample> samples = axis_samples();
  samples.push_back({"all", {{"all", true}}, {normal({2, 3, 5})}});
  samples.push_back({"all kept", {{"all", true}, {"keep", true}}, {normal({3, 4})}});
  samples.push_back({"long", {{"axis", 0}}, {normal({3, 601})}});
  return samples;
}

}  // namespace

extern const Op kSum, kMean;

const Op kSum{
    .name = "sum",
    .arguments = {{"x"}},
    .results = {"y"},
    .attributes = {{"axis", -1}, {"all", false}, {"keep", false}},
    .infer = [](const Attributes& a, std::span<const Meta> in) { return reduce_layout("sum", a, in[0]); },
    .forward = {[](const Call& c) { dispatch(c.inputs[0].dtype, [&](auto zero) { sum_forward<decltype(zero), false>(c); }); }},
    .backward = {sum_backward_any<false, true>},
    .cost = sum_cost,
    .formula_forward = "y = sum_i x_i over the axis, or over all",
    .formula_backward = "dx_i = dy",
    .samples = sum_samples(),
    .faults = {{"first", "only the first element of a sum gets the gradient",
                [](const Call& c) { dispatch(c.dx[0].dtype, [&](auto zero) { sum_backward_first<decltype(zero)>(c); }); }, {}, "all"}},
};

const Op kMean{
    .name = "mean",
    .arguments = {{"x"}},
    .results = {"y"},
    .attributes = {{"axis", -1}, {"all", false}, {"keep", false}},
    .infer = [](const Attributes& a, std::span<const Meta> in) { return reduce_layout("mean", a, in[0]); },
    .forward = {[](const Call& c) { dispatch(c.inputs[0].dtype, [&](auto zero) { sum_forward<decltype(zero), true>(c); }); }},
    .backward = {sum_backward_any<true, true>},
    .cost = sum_cost,
    .formula_forward = "y = (1 / n) sum_i x_i over the axis, or over all; n elements",
    .formula_backward = "dx_i = dy / n",
    .samples = sum_samples(),
    .faults = {{"n", "the division by n is missing", sum_backward_any<true, false>, {}, "all"}},
};

Tensor sum(const Tensor& x, SourceLine where) { return apply(kSum, {{"all", true}}, {x}, where)[0]; }
Tensor sum(const Tensor& x, int axis, bool keep, SourceLine where) {
  return apply(kSum, {{"axis", axis}, {"keep", keep}}, {x}, where)[0];
}
Tensor mean(const Tensor& x, SourceLine where) { return apply(kMean, {{"all", true}}, {x}, where)[0]; }
Tensor mean(const Tensor& x, int axis, bool keep, SourceLine where) {
  return apply(kMean, {{"axis", axis}, {"keep", keep}}, {x}, where)[0];
}
}  // namespace hedgehog

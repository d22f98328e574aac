#include <fmt/format.h>

#include "core/dispatch.h"
#include "core/error.h"
#include "ops/broadcast.h"
#include "ops/elementwise.h"
#include "ops/elementwise_formulas.h"

namespace hedgehog {
namespace {

using namespace detail;

/// Calls body(offset in rows with a stride, offset in the contiguous side, n) for runs of neighbours, in parallel.
template <class Body>
void for_each_row(const Ref& x, const Body& body) {
  if (x.columns == x.size()) {
    parallel_for(x.size(), kRun, [&](std::int64_t begin, std::int64_t end) { body(begin, begin, end - begin); });
    return;
  }
  parallel_for(x.size() / x.columns, std::max<std::int64_t>(1, kRun / x.columns), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) body(r * x.stride, r * x.columns, x.columns);
  });
}

template <class F, class T>
void unary_forward(const Call& c) {
  const F f = make_formula<F>(c.attributes);
  for_each_row(c.inputs[0], [&](std::int64_t from, std::int64_t to, std::int64_t n) {
    const T* x = c.inputs[0].as<T>() + from;
    T* y = c.outputs[0].as<T>() + to;
#pragma omp simd
    for (std::int64_t i = 0; i < n; ++i) y[i] = f.value(x[i]);
  });
}

template <class F, bool kWrong, class T>
void unary_backward(const Call& c) {
  constexpr bool kReadsX = F::reads.inputs != 0, kReadsY = F::reads.outputs != 0;
  const F f = make_formula<F>(c.attributes);
  if (!c.dx[0]) return;
  const bool adds = c.modes[0] == Mode::accumulate;
  for_each_row(c.dx[0], [&](std::int64_t to, std::int64_t from, std::int64_t n) {
    const T *x = kReadsX ? c.inputs[0].as<T>() + to : nullptr, *y = kReadsY ? c.outputs[0].as<T>() + from : nullptr;
    const T* dy = c.dy[0].as<T>() + from;
    T* dx = c.dx[0].as<T>() + to;
#pragma omp simd
    for (std::int64_t i = 0; i < n; ++i) {
      const T xi = kReadsX ? x[i] : T(0), yi = kReadsY ? y[i] : T(0);
      dx[i] = (adds ? dx[i] : T(0)) + dy[i] * (kWrong ? f.wrong_slope(xi, yi) : f.slope(xi, yi));
    }
  });
}

template <class F>
void unary_backward_any(const Call& c) {
  dispatch(c.dx[0].dtype, [&](auto zero) { unary_backward<F, false, decltype(zero)>(c); });
}

struct Unary {
  std::string name, forward, backward;
  double flops;  // an element and direction
  std::vector<Sample> samples;
  std::string mistake;           // what wrong_slope gets wrong
  std::string only_sample = {};  // where that shows
  std::vector<Attributes::Item> attributes = {};
};

template <class F>
Op unary(Unary u) {
  Op op;
  op.name = u.name;
  op.arguments = {{"x"}};
  op.results = {"y"};
  op.attributes = u.attributes;
  op.infer = [name = u.name](const Attributes&, std::span<const Meta> in) {
    if (!is_floating(in[0].dtype))
      fail(name.c_str(), fmt::format("x must be f32, f64 or bf16, but is {}; use cast first", name_of(in[0].dtype)));
    return Layout{{in[0]}, {}};
  };
  op.forward.cpu = [](const Call& c) {
    dispatch(c.inputs[0].dtype, [&](auto zero) { unary_forward<F, decltype(zero)>(c); });
  };
  op.backward.cpu = unary_backward_any<F>;
  op.reads = F::reads;
  op.strided = bits(0);
  op.alias = {{0, 0}};
  op.alias_backward = {{0, 0}};
  op.cost = [flops = u.flops](const Attributes&, std::span<const Meta> in, std::span<const Meta>) {
    const double n = double(in[0].shape.size());
    return std::pair{Work{flops * n}, Work{(flops + 1) * n}};
  };
  op.formula_forward = u.forward;
  op.formula_backward = u.backward;
  op.samples = u.samples;
  op.faults = {{"slope", u.mistake, unary_backward<F, true, double>, {}, u.only_sample}};
  return op;
}

std::vector<Sample> usual_samples() {
  return {{"axes", {}, {normal({2, 3, 5})}}, {"odd", {}, {normal({7, 13})}}, {"one", {}, {normal({1})}}, {"scalar", {}, {normal({})}}};
}
std::vector<Sample> positive_samples() {
  return {{"axes", {}, {positive({2, 3, 5})}}, {"odd", {}, {positive({7, 13})}}, {"one", {}, {positive({1})}}};
}
std::vector<Sample> kink_samples() {
  return {{"axes", {}, {away_from_zero({2, 3, 5})}}, {"odd", {}, {away_from_zero({7, 13})}}, {"one", {}, {positive({1})}}};
}

}  // namespace

extern const Op kAffine, kNegate, kExp, kLog, kTanh, kSigmoid, kSquare, kSqrt, kReciprocal, kRelu, kGelu, kGeluErf, kSilu, kEluPlusOne, kFloorAt;

const Op kAffine = unary<Affine>({"affine", "y = x * scale + shift", "dx = dy * scale", 2,
    {{"both", {{"scale", -2.5}, {"shift", 0.75}}, {normal({2, 3, 5})}}, {"scale", {{"scale", 0.5}}, {normal({7, 13})}},
     {"one", {{"scale", 3.0}, {"shift", -1.0}}, {normal({1})}}, {"shift", {{"shift", 2.0}}, {normal({3, 4})}}},
    "the factor is missing", "both", {{"scale", 1.0}, {"shift", 0.0}}});
const Op kNegate = unary<Negate>({"negate", "y = -x", "dx = -dy", 1, usual_samples(), "the sign is missing"});
const Op kExp = unary<Exp>({"exp", "y = e^x", "dx = dy * y", 10, usual_samples(), "the factor y is missing"});
const Op kLog = unary<Log>({"log", "y = ln x", "dx = dy / x", 10, positive_samples(), "the division by x is missing"});
const Op kTanh = unary<Tanh>({"tanh", "y = tanh x", "dx = dy * (1 - y^2)", 12, usual_samples(), "y is not squared"});
const Op kSigmoid = unary<Sigmoid>({"sigmoid", "y = 1 / (1 + e^-x)", "dx = dy * y * (1 - y)", 12, usual_samples(), "the factor 1 - y is missing"});
const Op kSquare = unary<Square>({"square", "y = x^2", "dx = dy * 2 x", 1, usual_samples(), "the factor 2 is missing"});
const Op kSqrt = unary<Sqrt>({"sqrt", "y = sqrt x", "dx = dy / (2 y)", 1, positive_samples(), "the factor 2 is missing"});
const Op kReciprocal = unary<Reciprocal>({"reciprocal", "y = 1 / x", "dx = -dy * y^2", 1, positive_samples(), "the sign is missing"});
const Op kRelu = unary<Relu>({"relu", "y = max(x, 0)", "dx = dy where y > 0, else 0", 1, kink_samples(), "the mask is missing", "odd"});
const Op kGelu = unary<Gelu>({"gelu", "y = x (1 + t) / 2, t = tanh(k (x + 0.044715 x^3)), k = sqrt(2 / pi)",
    "dx = dy * ((1 + t) / 2 + x (1 - t^2) k (1 + 3 * 0.044715 x^2) / 2)", 20, usual_samples(), "the slope of tanh is missing"});
const Op kGeluErf = unary<GeluErf>({"gelu_erf", "y = x Phi(x), Phi(x) = erfc(-x / sqrt 2) / 2",
    "dx = dy * (Phi(x) + x e^(-x^2 / 2) / sqrt(2 pi))", 25, usual_samples(), "the slope of Phi is missing"});
const Op kSilu = unary<Silu>({"silu", "y = x s, s = 1 / (1 + e^-x)", "dx = dy * s (1 + x (1 - s))", 13, usual_samples(), "the slope of s is missing"});
const Op kEluPlusOne = unary<EluPlusOne>({"elu_plus_one", "y = x + 1 for x > 0, else e^x", "dx = dy * min(y, 1)", 11, kink_samples(),
    "y is used on both sides", "odd"});
const Op kFloorAt = unary<FloorAt>({"floor_at", "y = max(x, value)", "dx = dy where x >= value, else 0", 1,
    {{"odd", {{"value", 0.05}}, {away_from_zero({7, 13})}}, {"axes", {{"value", -0.05}}, {away_from_zero({2, 3, 5})}},
     {"default", {}, {away_from_zero({2, 3})}}, {"one", {{"value", 1e-6}}, {positive({1})}}},
    "the mask is missing", "odd", {{"value", 0.0}}});

Tensor affine(const Tensor& x, double scale, double shift, SourceLine where) {
  return apply(kAffine, {{"scale", scale}, {"shift", shift}}, {x}, where)[0];
}
Tensor scale(const Tensor& x, double factor, SourceLine where) { return affine(x, factor, 0, where); }
Tensor shift(const Tensor& x, double amount, SourceLine where) { return affine(x, 1, amount, where); }
Tensor negate(const Tensor& x, SourceLine where) { return apply(kNegate, {}, {x}, where)[0]; }
Tensor exp(const Tensor& x, SourceLine where) { return apply(kExp, {}, {x}, where)[0]; }
Tensor log(const Tensor& x, SourceLine where) { return apply(kLog, {}, {x}, where)[0]; }
Tensor tanh(const Tensor& x, SourceLine where) { return apply(kTanh, {}, {x}, where)[0]; }
Tensor sigmoid(const Tensor& x, SourceLine where) { return apply(kSigmoid, {}, {x}, where)[0]; }
Tensor square(const Tensor& x, SourceLine where) { return apply(kSquare, {}, {x}, where)[0]; }
Tensor sqrt(const Tensor& x, SourceLine where) { return apply(kSqrt, {}, {x}, where)[0]; }
Tensor reciprocal(const Tensor& x, SourceLine where) { return apply(kReciprocal, {}, {x}, where)[0]; }
Tensor relu(const Tensor& x, SourceLine where) { return apply(kRelu, {}, {x}, where)[0]; }
Tensor gelu(const Tensor& x, SourceLine where) { return apply(kGelu, {}, {x}, where)[0]; }
Tensor gelu_erf(const Tensor& x, SourceLine where) { return apply(kGeluErf, {}, {x}, where)[0]; }
Tensor silu(const Tensor& x, SourceLine where) { return apply(kSilu, {}, {x}, where)[0]; }
Tensor elu_plus_one(const Tensor& x, SourceLine where) { return apply(kEluPlusOne, {}, {x}, where)[0]; }
Tensor floor_at(const Tensor& x, double value, SourceLine where) { return apply(kFloorAt, {{"value", value}}, {x}, where)[0]; }

}  // namespace hedgehog

#include <fmt/format.h>

#include "core/dispatch.h"
#include "core/error.h"
#include "ops/broadcast.h"
#include "ops/elementwise.h"
#include "ops/elementwise_formulas.h"
#include "ops/reduce.h"
#include "ops/shape.h"

namespace hedgehog {
namespace {

using namespace detail;

/// with_steps for a result that never repeats: fewer cases to compile.
template <class Body>
void with_argument_steps(const Offsets<3>& s, const Body& body) {
  if (s[0] == 1 && s[1] == 1 && s[2] == 1) return body(One{}, One{}, One{});
  if (s[0] == 1 && s[1] == 1 && s[2] == 0) return body(One{}, One{}, Zero{});
  if (s[0] == 1 && s[1] == 0 && s[2] == 1) return body(One{}, Zero{}, One{});
  body(s[0], s[1], s[2]);
}

std::int64_t terms_bytes(std::int64_t elements) { return (elements * 8 + 63) / 64 * 64; }

template <class F, class T>
void binary_forward(const Call& c) {
  const T* a = c.inputs[0].as<T>();
  const T* b = c.inputs[1].as<T>();
  T* y = c.outputs[0].as<T>();
  const Walk<3> walk = walk_over(c.outputs[0].shape, c.outputs[0], c.inputs[0], c.inputs[1]);
  for_each_run(walk, [&](const Offsets<3>& at, std::int64_t n) {
    with_argument_steps(walk.step(), [&](auto sy, auto sa, auto sb) {
#pragma omp simd
      for (std::int64_t i = 0; i < n; ++i) y[at[0] + i * sy] = F::value(a[at[1] + i * sa], b[at[2] + i * sb]);
    });
  });
}

/// Gradient of argument kSide in the shape of y, before it is summed to the argument's shape: to is laid out like y.
template <class F, int kSide, class T>
void binary_terms(const Call& c, T* to, Mode mode) {
  constexpr bool kReadsA = F::reads.inputs & 1u, kReadsB = F::reads.inputs >> 1 & 1u, kReadsY = F::reads.outputs & 1u;
  const T *a = c.inputs[0].as<T>(), *b = c.inputs[1].as<T>(), *y = c.outputs[0].as<T>(), *dy = c.dy[0].as<T>();
  const Walk<3> walk = walk_over(c.outputs[0].shape, c.outputs[0], c.inputs[0], c.inputs[1]);
  const bool adds = mode == Mode::accumulate;
  for_each_run(walk, [&](const Offsets<3>& at, std::int64_t n) {
    with_argument_steps(walk.step(), [&](auto sy, auto sa, auto sb) {
#pragma omp simd
      for (std::int64_t i = 0; i < n; ++i) {
        const std::int64_t here = at[0] + i * sy;
        const T va = kReadsA ? a[at[1] + i * sa] : T(0), vb = kReadsB ? b[at[2] + i * sb] : T(0), vy = kReadsY ? y[here] : T(0);
        const T g = kSide == 0 ? F::da(dy[here], vy, va, vb) : F::db(dy[here], vy, va, vb);
        to[here] = (adds ? to[here] : T(0)) + g;
      }
    });
  });
}

template <class F, int kSide, class T>
void binary_gradient(const Call& c) {
  const Ref &dx = c.dx[kSide], &y = c.outputs[0];
  if (!dx) return;
  if (dx.size() == y.size() && dx.columns == dx.size()) return binary_terms<F, kSide, T>(c, dx.as<T>(), c.modes[kSide]);
  // a repeated argument, or rows with a stride: the terms are made first, then summed in an order that ignores strides
  T* const terms = static_cast<T*>(c.workspace);
  void* const partials = static_cast<std::byte*>(c.workspace) + terms_bytes(y.size());
  binary_terms<F, kSide, T>(c, terms, Mode::write);
  const Walk<3> walk = walk_over(y.shape, flat(dx), y, y);
  sum_to(walk, dx.as<T>(), Place(dx), 1.0, c.modes[kSide], partials,
         [terms](const Offsets<3>& at, std::int64_t i, auto, auto step, auto) { return terms[at[1] + i * step]; });
}

template <class F>
void binary_forward_any(const Call& c) {
  dispatch(c.outputs[0].dtype, [&](auto zero) { binary_forward<F, decltype(zero)>(c); });
}

template <class F>
void binary_backward_any(const Call& c) {
  dispatch(c.outputs[0].dtype, [&](auto zero) {
    using T = decltype(zero);
    binary_gradient<F, 0, T>(c);
    binary_gradient<F, 1, T>(c);
  });
}

Layout binary_layout(const char* op, const Meta& a, const Meta& b) {
  if (!is_floating(a.dtype) || a.dtype != b.dtype)
    fail(op, fmt::format("a and b must have one dtype of f32, f64 and bf16, but are {} and {}; use cast first", name_of(a.dtype),
                         name_of(b.dtype)));
  const int rank = std::max(a.shape.rank(), b.shape.rank());
  Shape y;
  for (int i = -rank; i < 0; ++i) {
    const std::int64_t m = -i <= a.shape.rank() ? a.shape[i] : 1, n = -i <= b.shape.rank() ? b.shape[i] : 1;
    if (m != n && m != 1 && n != 1)
      fail(op, fmt::format("a {} and b {} do not broadcast: axis {} has {} against {}; make the extents equal, or one of them 1",
                           a.shape.text(), b.shape.text(), i, m, n));
    y.push_back(std::max(m, n));
  }
  Layout layout{{{y, a.dtype}}, {}};
  // whether an argument has rows with a stride is not known here
  layout.backward_workspace = terms_bytes(y.size()) + std::max(sum_workspace(a.shape.size()), sum_workspace(b.shape.size()));
  return layout;
}

std::vector<Sample> binary_samples(const std::function<SampleInput(Shape)>& b) {
  return {{"row", {}, {normal({7, 5}), b({5})}},
          {"same", {}, {normal({2, 3, 4, 5}), b({2, 3, 4, 5})}},
          {"column", {}, {normal({2, 3, 5}), b({3, 1})}},
          {"scalar", {}, {normal({3, 4}), b({})}},
          {"both", {}, {normal({2, 1, 3, 1, 6}), b({4, 1, 5, 6})}},
          {"inner", {}, {normal({3, 1}), b({2, 3, 4})}},
          {"first", {}, {normal({2}), b({3, 1})}},
          {"long", {}, {normal({1, 600}), b({3, 600})}},
          {"one", {}, {normal({1}), b({1})}},
          {"fixed", {}, {normal({2, 3}), constant_input(b({3}))}}};
}

template <class F>
Op binary(std::string name, std::string forward, std::string backward, std::vector<std::pair<int, int>> alias_backward,
          std::vector<Sample> samples) {
  Op op;
  op.name = name;
  op.arguments = {{"a"}, {"b"}};
  op.results = {"y"};
  op.infer = [name](const Attributes&, std::span<const Meta> in) { return binary_layout(name.c_str(), in[0], in[1]); };
  op.forward.cpu = binary_forward_any<F>;
  op.backward.cpu = binary_backward_any<F>;
  op.reads = F::reads;
  op.strided = bits(0, 1);
  op.alias = {{0, 0}, {1, 0}};
  op.alias_backward = std::move(alias_backward);
  op.cost = [](const Attributes&, std::span<const Meta>, std::span<const Meta> out) {
    const double n = double(out[0].shape.size());
    return std::pair{Work{n}, Work{4 * n}};
  };
  op.formula_forward = std::move(forward);
  op.formula_backward = std::move(backward);
  op.samples = std::move(samples);
  return op;
}

template <class F>
Op with_fault(Op op, std::string what, std::string only_sample = {}) {
  const Kernel wrong = [](const Call& c) {
    binary_gradient<F, 0, double>(c);
    binary_gradient<F, 1, double>(c);
  };
  op.faults = {{"term", std::move(what), wrong, {}, std::move(only_sample)}};
  return op;
}

// what people write by mistake
struct MultiplySwapped : Multiply {
  template <class T> static T da(T dy, T, T a, T) { return dy * a; }
};
struct DivideUndivided : Divide {
  template <class T> static T da(T dy, T, T, T) { return dy; }
};

/// Add whose second gradient comes from the first row alone.
Tensors add_without_sum(const Attributes&, const Tensors& x) {
  const Tensors rows = split(x[0], {1, x[0].shape()[0] - 1}, 0);
  return {concat({add(rows[0], x[1]), add(rows[1], detach(x[1]))}, 0)};
}

SampleInput normal_input(Shape shape) { return normal(shape); }
SampleInput positive_input(Shape shape) { return positive(shape); }

}  // namespace

extern const Op kAdd, kSubtract, kMultiply, kDivide;

// dy may become the gradient that is computed last, or any that equals dy
const Op kAdd = [] {
  Op op = binary<Add>("add", "y = a + b", "da = dy, db = dy, summed to the shapes of a and b", {{0, 0}, {0, 1}},
                      binary_samples(normal_input));
  op.faults = {{"row", "the gradient of a repeated argument is not summed", {}, add_without_sum, "row"}};
  return op;
}();
const Op kSubtract = with_fault<Add>(
    binary<Subtract>("subtract", "y = a - b", "da = dy, db = -dy, summed to the shapes of a and b", {{0, 0}, {0, 1}},
                     binary_samples(normal_input)),
    "the sign of db is missing", "row");
const Op kMultiply = with_fault<MultiplySwapped>(
    binary<Multiply>("multiply", "y = a * b", "da = dy * b, db = dy * a, summed to the shapes of a and b", {{0, 1}},
                     binary_samples(normal_input)),
    "da is multiplied by a");
const Op kDivide = with_fault<DivideUndivided>(
    binary<Divide>("divide", "y = a / b", "da = dy / b, db = -dy * y / b, summed to the shapes of a and b", {{0, 1}},
                   binary_samples(positive_input)),
    "da is not divided by b");

Tensor add(const Tensor& a, const Tensor& b, SourceLine where) { return apply(kAdd, {}, {a, b}, where)[0]; }
Tensor subtract(const Tensor& a, const Tensor& b, SourceLine where) { return apply(kSubtract, {}, {a, b}, where)[0]; }
Tensor multiply(const Tensor& a, const Tensor& b, SourceLine where) { return apply(kMultiply, {}, {a, b}, where)[0]; }
Tensor divide(const Tensor& a, const Tensor& b, SourceLine where) { return apply(kDivide, {}, {a, b}, where)[0]; }

Tensor operator+(Operand a, Operand b) { return add(a.tensor, b.tensor, a.where); }
Tensor operator-(Operand a, Operand b) { return subtract(a.tensor, b.tensor, a.where); }
Tensor operator*(Operand a, Operand b) { return multiply(a.tensor, b.tensor, a.where); }
Tensor operator/(Operand a, Operand b) { return divide(a.tensor, b.tensor, a.where); }
Tensor operator-(Operand x) { return negate(x.tensor, x.where); }
Tensor operator+(Operand x, double a) { return affine(x.tensor, 1, a, x.where); }
Tensor operator+(double a, Operand x) { return affine(x.tensor, 1, a, x.where); }
Tensor operator-(Operand x, double a) { return affine(x.tensor, 1, -a, x.where); }
Tensor operator-(double a, Operand x) { return affine(x.tensor, -1, a, x.where); }
Tensor operator*(Operand x, double a) { return affine(x.tensor, a, 0, x.where); }
Tensor operator*(double a, Operand x) { return affine(x.tensor, a, 0, x.where); }
Tensor operator/(Operand x, double a) { return affine(x.tensor, 1 / a, 0, x.where); }
Tensor operator/(double a, Operand x) { return affine(reciprocal(x.tensor, x.where), a, 0, x.where); }

}  // namespace hedgehog

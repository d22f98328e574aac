#include <fmt/format.h>

#include <type_traits>

#include "core/dispatch.h"
#include "core/error.h"
#include "ops/broadcast.h"
#include "ops/shape.h"

namespace hedgehog {
namespace {

using namespace detail;

Dtype dtype_from(const std::string& name) {
  for (const Dtype d : {Dtype::f32, Dtype::f64, Dtype::bf16})
    if (name == name_of(d)) return d;
  fail("cast", fmt::format("dtype must be f32, f64 or bf16, but is '{}'; integers come from constant(shape, values, Dtype::i32)", name));
}

template <class F>
void dispatch_numbers(Dtype dtype, F&& f) {
  if (dtype == Dtype::bf16) return f(BFloat16{});
  if (dtype == Dtype::i32) return f(std::int32_t{});
  dispatch(dtype, std::forward<F>(f));
}

template <class To, class From>
To converted(From x) {
  if constexpr (std::is_same_v<From, BFloat16>) return To(float(x));
  else if constexpr (std::is_same_v<To, BFloat16>) return BFloat16(float(x));
  else return To(x);
}

/// to (+)= from, both contiguous. The sum of two bf16 is rounded once.
template <class To, class From>
void convert(const From* from, To* to, std::int64_t size, bool add) {
  parallel_for(size, kRun, [&](std::int64_t begin, std::int64_t end) {
    if (add) {
#pragma omp simd
      for (std::int64_t i = begin; i < end; ++i) {
        if constexpr (std::is_same_v<To, BFloat16>) to[i] = BFloat16(float(to[i]) + converted<float>(from[i]));
        else to[i] += converted<To>(from[i]);
      }
    } else {
#pragma omp simd
      for (std::int64_t i = begin; i < end; ++i) to[i] = converted<To>(from[i]);
    }
  });
}

void convert_any(const Ref& from, const Ref& to, bool add) {
  dispatch_numbers(from.dtype, [&](auto a) {
    dispatch_numbers(to.dtype, [&](auto b) {
      convert(from.as<decltype(a)>(), to.as<decltype(b)>(), to.size(), add);
    });
  });
}

void cast_forward(const Call& c) { convert_any(c.inputs[0], c.outputs[0], false); }

void cast_backward(const Call& c) {
  if (!c.dx[0]) return;
  if (c.dy[0]) return convert_any(c.dy[0], c.dx[0], c.modes[0] == Mode::accumulate);
  if (c.modes[0] == Mode::write) std::fill_n(c.dx[0].as<char>(), c.dx[0].size() * size_of(c.dx[0].dtype), char(0));
}

void cast_backward_lost(const Call& c) {
  if (c.modes[0] == Mode::write) std::fill_n(c.dx[0].as<char>(), c.dx[0].size() * size_of(c.dx[0].dtype), char(0));
}

}  // namespace

extern const Op kCast;

// a bf16 or f32 result is too coarse for central differences in f64, so the samples cast to f64
const Op kCast{
    .name = "cast",
    .arguments = {{"x"}},
    .results = {"y"},
    .attributes = {{"dtype", "f32"}},
    .infer = [](const Attributes& a, std::span<const Meta> in) { return Layout{{{in[0].shape, dtype_from(a.text("dtype"))}}, {}}; },
    .forward = {cast_forward},
    .backward = {cast_backward},
    .cost = [](const Attributes&, std::span<const Meta>, std::span<const Meta>) { return std::pair{Work{0}, Work{0}}; },
    .formula_forward = "y = x rounded to dtype",
    .formula_backward = "dx = dy in the dtype of x",
    .samples = {{"f64", {{"dtype", "f64"}}, {normal({2, 3, 5})}}, {"one", {{"dtype", "f64"}}, {normal({1})}}},
    .faults = {{"lost", "the gradient stops at the cast", cast_backward_lost, {}, {}}},
};

Tensor cast(const Tensor& x, Dtype dtype, SourceLine where) {
  if (x && x.dtype() == dtype) return x;
  return apply(kCast, {{"dtype", name_of(dtype)}}, {x}, where)[0];
}

}  // namespace hedgehog

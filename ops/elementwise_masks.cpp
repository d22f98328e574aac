#include <fmt/format.h>

#include "core/dispatch.h"
#include "core/error.h"
#include "ops/broadcast.h"
#include "ops/elementwise.h"

namespace hedgehog {
namespace {

using namespace detail;

void require_floating(const char* op, const char* argument, const Meta& x) {
  if (!is_floating(x.dtype))
    fail(op, fmt::format("{} must be f32, f64 or bf16, but is {}; use cast first", argument, name_of(x.dtype)));
}

Layout causal_mask_infer(const Attributes&, std::span<const Meta> in) {
  require_floating("causal_mask", "scores", in[0]);
  const Shape& s = in[0].shape;
  if (s.rank() < 2 || s[-1] != s[-2])
    fail("causal_mask", fmt::format("scores must have shape (..., T, T), but has {}; give one score a query and key", s.text()));
  return Layout{{in[0]}, {}};
}

template <class T>
void causal_mask_forward(const Call& c) {
  const std::int64_t t = c.inputs[0].shape.last();
  const T* x = c.inputs[0].as<T>();
  T* y = c.outputs[0].as<T>();
  const T value = T(c.attributes.real("value"));
  parallel_for(c.inputs[0].shape.rows(), std::max<std::int64_t>(1, kRun / t), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) {
      const std::int64_t seen = r % t + 1;
      if (x != y) std::copy_n(x + r * t, seen, y + r * t);
      std::fill_n(y + r * t + seen, t - seen, value);
    }
  });
}

template <class T, bool kMasked>
void causal_mask_backward(const Call& c) {
  const std::int64_t t = c.inputs[0].shape.last();
  const T* dy = c.dy[0].as<T>();
  T* dx = c.dx[0].as<T>();
  if (!dx) return;
  const bool adds = c.modes[0] == Mode::accumulate;
  parallel_for(c.inputs[0].shape.rows(), std::max<std::int64_t>(1, kRun / t), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) {
      const std::int64_t seen = dy ? (kMasked ? r % t + 1 : t) : 0;
      const T* from = dy + (dy ? r * t : 0);
      T* to = dx + r * t;
      if (adds) {
#pragma omp simd
        for (std::int64_t j = 0; j < seen; ++j) to[j] += from[j];
      } else {
        if (to != from) std::copy_n(from, seen, to);
        std::fill_n(to + seen, t - seen, T(0));
      }
    }
  });
}

template <bool kMasked>
void causal_mask_backward_any(const Call& c) {
  dispatch(c.dx[0].dtype, [&](auto zero) { causal_mask_backward<decltype(zero), kMasked>(c); });
}

Layout mask_fill_infer(const Attributes&, std::span<const Meta> in) {
  require_floating("mask_fill", "x", in[0]);
  const Shape &x = in[0].shape, &m = in[1].shape;
  if (in[1].dtype != Dtype::i32)
    fail("mask_fill", fmt::format("mask must be i32, but is {}; make it with constant(shape, values, Dtype::i32)", name_of(in[1].dtype)));
  bool fits = m.rank() <= x.rank();
  for (int i = -1; fits && i >= -m.rank(); --i) fits = m[i] == x[i] || m[i] == 1;
  if (!fits)
    fail("mask_fill", fmt::format("mask must broadcast to x {}, but has {}; each of its extents must be that of x, or 1", x.text(), m.text()));
  return Layout{{in[0]}, {}};
}

template <class T>
void mask_fill_forward(const Call& c) {
  const T* x = c.inputs[0].as<T>();
  const std::int32_t* mask = c.inputs[1].as<std::int32_t>();
  T* y = c.outputs[0].as<T>();
  const T value = T(c.attributes.real("value"));
  const Walk<3> walk = walk_over(c.outputs[0].shape, c.outputs[0], c.inputs[0], c.inputs[1]);
  for_each_run(walk, [&](const Offsets<3>& at, std::int64_t n) {
    with_steps(walk.step(), [&](auto sy, auto sx, auto sm) {
#pragma omp simd
      for (std::int64_t i = 0; i < n; ++i) {
        const T kept = x[at[1] + i * sx];
        y[at[0] + i * sy] = mask[at[2] + i * sm] != 0 ? kept : value;
      }
    });
  });
}

template <class T, bool kMasked>
void mask_fill_backward(const Call& c) {
  const std::int32_t* mask = c.inputs[1].as<std::int32_t>();
  const T* dy = c.dy[0].as<T>();
  T* dx = c.dx[0].as<T>();
  if (!dx) return;
  const Walk<3> walk = walk_over(c.dx[0].shape, c.dx[0], c.outputs[0], c.inputs[1]);
  with_mode(c.modes[0], [&](auto adds) {
    for_each_run(walk, [&](const Offsets<3>& at, std::int64_t n) {
      with_steps(walk.step(), [&](auto sx, auto sy, auto sm) {
#pragma omp simd
        for (std::int64_t i = 0; i < n; ++i) {
          T& to = dx[at[0] + i * sx];
          const T upstream = dy ? dy[at[1] + i * sy] : T(0);
          const T g = !kMasked || mask[at[2] + i * sm] != 0 ? upstream : T(0);
          to = adds ? to + g : g;
        }
      });
    });
  });
}

template <bool kMasked>
void mask_fill_backward_any(const Call& c) {
  dispatch(c.dx[0].dtype, [&](auto zero) { mask_fill_backward<decltype(zero), kMasked>(c); });
}

std::pair<Work, Work> moves_only(const Attributes&, std::span<const Meta>, std::span<const Meta>) { return {Work{0}, Work{0}}; }

}  // namespace

extern const Op kCausalMask, kMaskFill;

const Op kCausalMask{
    .name = "causal_mask",
    .arguments = {{"scores"}},
    .results = {"y"},
    .attributes = {{"value", -std::numeric_limits<double>::infinity()}},
    .infer = causal_mask_infer,
    .forward = {[](const Call& c) { dispatch(c.inputs[0].dtype, [&](auto zero) { causal_mask_forward<decltype(zero)>(c); }); }},
    .backward = {causal_mask_backward_any<true>},
    .alias = {{0, 0}},
    .alias_backward = {{0, 0}},
    .cost = moves_only,
    .formula_forward = "y[.., i, j] = scores[.., i, j] for j <= i, else value",
    .formula_backward = "dscores = dy for j <= i, else 0",
    .samples = {{"heads", {{"value", 0.0}}, {normal({2, 3, 5, 5})}},
                {"odd", {{"value", -2.5}}, {normal({7, 7})}},
                {"one", {{"value", 0.0}}, {normal({1, 1})}}},
    .faults = {{"mask", "the gradient passes through masked scores", causal_mask_backward_any<false>, {}, "heads"}},
};

const Op kMaskFill{
    .name = "mask_fill",
    .arguments = {{"x"}, {"mask", false, false}},
    .results = {"y"},
    .attributes = {{"value", 0.0}},
    .infer = mask_fill_infer,
    .forward = {[](const Call& c) { dispatch(c.inputs[0].dtype, [&](auto zero) { mask_fill_forward<decltype(zero)>(c); }); }},
    .backward = {mask_fill_backward_any<true>},
    .reads = {bits(1)},
    .strided = bits(0),
    .alias = {{0, 0}},
    .alias_backward = {{0, 0}},
    .cost = moves_only,
    .formula_forward = "y = mask != 0 ? x : value",
    .formula_backward = "dx = dy where mask != 0, else 0",
    .samples = {{"same", {{"value", -3.0}}, {normal({4, 9}), mask({4, 9})}},
                {"keys", {{"value", 0.5}}, {normal({2, 3, 4, 7}), mask({7})}},
                {"rows", {}, {normal({2, 3, 5}), mask({3, 1})}},
                {"one", {{"value", 1.0}}, {normal({1}), mask({1})}}},
    .faults = {{"mask", "the gradient passes through masked elements", mask_fill_backward_any<false>, {}, "same"}},
};

Tensor causal_mask(const Tensor& scores, double value, SourceLine where) {
  return apply(kCausalMask, {{"value", value}}, {scores}, where)[0];
}
Tensor mask_fill(const Tensor& x, const Tensor& mask, double value, SourceLine where) {
  return apply(kMaskFill, {{"value", value}}, {x, mask}, where)[0];
}

}  // namespace hedgehog

#include "ops/rotary.h"

#include <cmath>

#include "core/dispatch.h"
#include "ops/check.h"
#include "ops/elementwise.h"
#include "ops/rotary_vector.h"
#include "ops/rows.h"
#include "ops/shape.h"

namespace hedgehog {

extern const Op kRotaryTable, kRotary;

namespace {

RotaryScaling scaling_of(const Attributes& a) {
  return {.factor = a.real("factor"), .low = a.real("low"), .high = a.real("high"), .original = a.real("original")};
}

Layout infer_table(const Attributes& a, std::span<const Meta> in) {
  const std::int64_t length = a.integer("length"), dimension = a.integer("dimension");
  const std::string& dtype = a.text("dtype");
  if (length < 1) fail(kRotaryTable, fmt::format("length must be at least 1, but is {}", length));
  if (dimension < 2 || dimension % 2 != 0)
    fail(kRotaryTable,
         fmt::format("dimension must be even and at least 2, since features turn in pairs, but is {}; choose another head size", dimension));
  if (!(a.real("base") > 0)) fail(kRotaryTable, fmt::format("base must be above 0, but is {}; 10000 is usual", a.real("base")));
  const RotaryScaling s = scaling_of(a);
  if (!(s.factor >= 1 && s.low > 0 && s.high > s.low && s.original >= 0))
    fail(kRotaryTable, fmt::format("scaling needs factor >= 1, 0 < low < high and original >= 0, but has {}, {}, {} and {}", s.factor, s.low,
                                   s.high, s.original));
  if (dtype != "f32" && dtype != "f64") fail(kRotaryTable, fmt::format("dtype must be f32 or f64, but is '{}'", dtype));
  if (in[0].given && !(in[0].dtype == Dtype::i32 && in[0].shape == Shape{1}))
    fail(kRotaryTable, fmt::format("offset must be i32 (1), but is {} {}", name_of(in[0].dtype), in[0].shape.text()));
  Layout layout{{{{length, dimension}, dtype == "f64" ? Dtype::f64 : Dtype::f32, true}}, {}};
  layout.forward_workspace = dimension / 2 * 8;
  return layout;
}

template <class T>
void table_forward(const Call& c) {
  const std::int64_t length = c.outputs[0].shape[0], half = c.outputs[0].shape[1] / 2;
  const std::int64_t offset = c.inputs[0] ? c.inputs[0].as<std::int32_t>()[0] : 0;
  double* const frequencies = static_cast<double*>(c.workspace);
  const RotaryScaling scaling = scaling_of(c.attributes);
  for (std::int64_t i = 0; i < half; ++i) frequencies[i] = scaling.scaled(std::pow(c.attributes.real("base"), -double(i) / double(half)));
  parallel_for(length, std::max<std::int64_t>(1, 512 / half), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      T* const row = c.outputs[0].as<T>() + t * 2 * half;
      for (std::int64_t i = 0; i < half; ++i) {
        const double angle = double(t + offset) * frequencies[i];
        row[i] = T(std::cos(angle));
        row[half + i] = T(std::sin(angle));
      }
    }
  });
}

bool pairs_of(const Attributes& a) { return a.text("layout") == "pairs"; }

Layout infer_rotary(const Attributes& a, std::span<const Meta> in) {
  const Meta &x = in[0], &table = in[1];
  const std::string& layout = a.text("layout");
  if (layout != "half" && layout != "pairs") fail(kRotary, fmt::format("layout must be half or pairs, but is '{}'", layout));
  check_floating(kRotary, "x", x);
  check_rank(kRotary, "x", x, 4, "(B, T, H, D)");
  if (x.shape[3] % 2 != 0)
    fail(kRotary, fmt::format("D must be even, since features turn in pairs, but x is {}; choose another head size", x.shape.text()));
  check_dtype(kRotary, "table", table, accumulator_of(x.dtype), x.dtype == Dtype::bf16 ? nullptr : "x");
  check_shape(kRotary, "table", table, {x.shape[1], x.shape[3]}, "(T, D)", "x", x);
  return {{{x.shape, x.dtype, true}}, {}};
}

template <bool kPairs, bool kAdd, class T>
void turn_all(const Ref& x, const Ref& table, T sign, const Ref& y) {
  const std::int64_t length = x.shape[1], heads = x.shape[2], dimension = x.shape[3], half = dimension / 2, width = heads * dimension;
  // the heads of a token usually lie side by side; then one address a token is enough
  const bool packed = x.columns % width == 0 && y.columns % width == 0;
  parallel_for(x.shape[0] * length, std::max<std::int64_t>(1, 8192 / width), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t n = begin; n < end; ++n) {
      const T* const row = table.as<T>() + n % length * dimension;
      const T* from = x.as<T>() + strided_offset(x, n * width);
      T* to = y.as<T>() + strided_offset(y, n * width);
      for (std::int64_t h = 0; h < heads; ++h) {
        if (!packed) {
          from = x.as<T>() + strided_offset(x, n * width + h * dimension);
          to = y.as<T>() + strided_offset(y, n * width + h * dimension);
        }
        turn_vector<kPairs, kAdd>(from, row, row + half, sign, to, half);
        from += dimension;
        to += dimension;
      }
    }
  });
}

template <class T>
void rotate(const Attributes& a, const Ref& x, const Ref& table, T sign, const Ref& y, Mode mode) {
  const bool pairs = pairs_of(a), add = mode == Mode::accumulate;
  if (pairs) return add ? turn_all<true, true>(x, table, sign, y) : turn_all<true, false>(x, table, sign, y);
  add ? turn_all<false, true>(x, table, sign, y) : turn_all<false, false>(x, table, sign, y);
}

void backward_rotary(const Call& c, double sign) {
  if (!c.dx[0]) return;
  dispatch(c.dx[0].dtype, [&](auto zero) {
    rotate(c.attributes, c.dy[0], c.inputs[1], decltype(zero)(sign), c.dx[0], c.modes[0]);
  });
}

Tensors composed_rotary(const Attributes& a, const Tensors& in) {
  const Shape& s = in[0].shape();
  const std::int64_t half = s[3] / 2;
  const Tensor table = in[1].dtype() == in[0].dtype() ? in[1] : cast(in[1], in[0].dtype());
  const Tensors turns = split(table, {half, half});
  const Tensor cosines = reshape(turns[0], {s[1], 1, half}), sines = reshape(turns[1], {s[1], 1, half});
  Tensor first, second;
  if (pairs_of(a)) {
    const Tensors parts = split(reshape(in[0], {s[0], s[1], s[2] * half, 2}), {1, 1});
    first = reshape(parts[0], {s[0], s[1], s[2], half});
    second = reshape(parts[1], {s[0], s[1], s[2], half});
  } else {
    const Tensors parts = split(in[0], {half, half});
    first = parts[0];
    second = parts[1];
  }
  const Tensor y1 = first * cosines - second * sines, y2 = second * cosines + first * sines;
  if (!pairs_of(a)) return {concat({y1, y2})};
  const Shape column{s[0] * s[1], s[2] * half, 1};
  return {reshape(concat({reshape(y1, column), reshape(y2, column)}), s)};
}

}  // namespace

const Op kRotaryTable{
    .name = "rotary_table",
    .arguments = {{"offset", true, false}},
    .results = {"table"},
    .constant_outputs = bits(0),
    .attributes = {{"length", 1}, {"dimension", 2}, {"base", 10000.0}, {"dtype", "f32"}, {"factor", 1.0}, {"low", 1.0}, {"high", 4.0},
                   {"original", 0.0}},
    .infer = infer_table,
    .forward = {[](const Call& c) { dispatch(c.outputs[0].dtype, [&](auto zero) { table_forward<decltype(zero)>(c); }); }},
    .cost = [](const Attributes&, std::span<const Meta>, std::span<const Meta> out) {
      return std::pair{Work{20.0 * double(out[0].shape.size())}, Work{}};
    },
    .formula_forward = "angle[t, i] = (t + offset) f_i,  f_i = scaled(base^(-2 i / D));  table[t] = (cos angle[t], sin angle[t])",
    .samples = {{"smallest", {}, {omitted()}},
                {"table", {{"length", 5}, {"dimension", 6}, {"base", 100.0}, {"dtype", "f64"}}, {omitted()}},
                {"offset", {{"length", 3}, {"dimension", 4}}, {integers({1}, 3, 9)}},
                {"scaled", {{"length", 9}, {"dimension", 16}, {"base", 1000.0}, {"factor", 8.0}, {"original", 64.0}}, {omitted()}}},
};

const Op kRotary{
    .name = "rotary",
    .arguments = {{"x"}, {"table", false, false, true}},
    .results = {"y"},
    .attributes = {{"layout", "half"}},
    .infer = infer_rotary,
    .forward = {[](const Call& c) {
      dispatch(c.inputs[0].dtype, [&](auto zero) {
        rotate(c.attributes, c.inputs[0], c.inputs[1], decltype(zero)(1), c.outputs[0], Mode::write);
      });
    }},
    .backward = {[](const Call& c) { backward_rotary(c, -1); }},
    .reads = {.inputs = bits(1)},
    .strided = bits(0),
    .alias = {{0, 0}},
    .alias_backward = {{0, 0}},
    .cost = [](const Attributes&, std::span<const Meta> in, std::span<const Meta>) {
      const double n = 3.0 * double(in[0].shape.size());
      return std::pair{Work{n}, Work{n}};
    },
    .reference = composed_rotary,
    .formula_forward = "(y1, y2) = (x1 cos - x2 sin, x2 cos + x1 sin) for each pair of features",
    .formula_backward = "(dx1, dx2) = (dy1 cos + dy2 sin, dy2 cos - dy1 sin)",
    .samples = {{"smallest", {}, {normal({1, 1, 1, 2}), normal({1, 2})}},
                {"half", {}, {normal({2, 5, 3, 8}), normal({5, 8})}},
                {"pairs", {{"layout", "pairs"}}, {normal({2, 3, 5, 6}), normal({3, 6})}}},
    .faults = {{"direction", "the gradient turns the same way as forward", [](const Call& c) { backward_rotary(c, 1); }, {}, {}}},
};

Tensor rotary_table(std::int64_t length, std::int64_t dimension, double base, const Tensor& offset, Dtype dtype,
                    const RotaryScaling& s, SourceLine where) {
  return apply(kRotaryTable,
               {{"length", length}, {"dimension", dimension}, {"base", base}, {"dtype", name_of(dtype)}, {"factor", s.factor},
                {"low", s.low}, {"high", s.high}, {"original", s.original}},
               {offset}, where)[0];
}

Tensor rotary(const Tensor& x, const Tensor& table, const std::string& layout, SourceLine where) {
  return apply(kRotary, {{"layout", layout}}, {whole_vectors(x), table}, where)[0];
}

Tensor rotary(const Tensor& x, double base, const std::string& layout, const Tensor& offset, SourceLine where) {
  if (!x || x.shape().rank() != 4) fail(kRotary, "x must have 4 axes (B, T, H, D); reshape it");
  return rotary(x, rotary_table(x.shape()[1], x.shape()[3], base, offset, accumulator_of(x.dtype()), {}, where), layout, where);
}

}  // namespace hedgehog

#include "ops/shape.h"

#include <fmt/format.h>

#include <cstring>

#include "core/dispatch.h"
#include "core/error.h"
#include "ops/broadcast.h"
#include "ops/shape_text.h"

namespace hedgehog {
namespace {

using namespace detail;

constexpr int kMostParts = 8;         // of one concat call
constexpr std::int64_t kSquare = 32;  // side of a transposed block: both sides stay in the first cache level

/// to (+)= from along a walk over {from, to}; from steps by 0 where it repeats.
template <class T>
void move_runs(const Walk<2>& walk, const T* from, T* to, bool add) {
  for_each_run(walk, [&](const Offsets<2>& at, std::int64_t n) {
    with_steps(walk.step(), [&](auto s, auto d) {
      const T* a = from + at[0];
      T* b = to + at[1];
      if (add) {
#pragma omp simd
        for (std::int64_t i = 0; i < n; ++i) b[i * d] = T(b[i * d] + a[i * s]);
      } else if (s == 1 && d == 1) {
        std::memcpy(b, a, std::size_t(n) * sizeof(T));
      } else {
#pragma omp simd
        for (std::int64_t i = 0; i < n; ++i) b[i * d] = a[i * s];
      }
    });
  });
}

/// The same; where the contiguous axes of the two differ, square blocks are transposed.
template <class T>
void move_elements(const Walk<2>& walk, const T* from, T* to, bool add) {
  int across = -1;  // axis along which `from` is contiguous
  for (int i = 0; i < walk.rank; ++i)
    if (walk.stride[i][0] == 1) across = i;
  if (across < 0 || across == walk.rank - 1) return move_runs(walk, from, to, add);
  Walk<2> others;
  for (int i = 0; i + 1 < walk.rank; ++i)
    if (i != across) others.push(walk.extent[i], walk.stride[i]);
  const std::int64_t rows = walk.extent[across], columns = walk.inner();
  const std::int64_t from_step = walk.step()[0], to_step = walk.stride[across][1], step = walk.step()[1];
  const std::int64_t down = (rows + kSquare - 1) / kSquare, right = (columns + kSquare - 1) / kSquare;
  parallel_for(others.count() * down * right, kRun / (kSquare * kSquare), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      const Offsets<2> at = others.at(t / (down * right));
      const std::int64_t r0 = t / right % down * kSquare, c0 = t % right * kSquare;
      const std::int64_t r1 = std::min(rows, r0 + kSquare), c1 = std::min(columns, c0 + kSquare);
      // each line of `from` is read once: rows a power of 2 apart share cache sets and would evict each other
      T block[kSquare][kSquare + 1];
      for (std::int64_t c = c0; c < c1; ++c)
        for (std::int64_t r = r0; r < r1; ++r) block[r - r0][c - c0] = from[at[0] + c * from_step + r];
      for (std::int64_t r = r0; r < r1; ++r)
        with_steps(Offsets<2>{1, step}, [&](auto s, auto d) {
          const T* a = block[r - r0];
          T* b = to + at[1] + r * to_step + c0 * d;
          if (add)
            for (std::int64_t c = 0; c < c1 - c0; ++c) b[c * d] = T(b[c * d] + a[c * s]);
          else
            for (std::int64_t c = 0; c < c1 - c0; ++c) b[c * d] = a[c * s];
        });
    }
  });
}

/// One gradient dx (+)= the elements of dy that the walk over {dy, dx} names; zero without dy.
template <class T>
void move_gradient(const Walk<2>& walk, const T* dy, const Ref& dx, Mode mode) {
  static const T zero = 0;
  if (dy) return move_elements(walk, dy, dx.as<T>(), mode == Mode::accumulate);
  if (mode == Mode::accumulate) return;
  Walk<2> still = walk;
  for (int i = 0; i < still.rank; ++i) still.stride[i][0] = 0;
  move_runs(still, &zero, dx.as<T>(), false);
}

Dtype dtype_of_wanted(const Call& c) {
  for (const Ref& dx : c.dx)
    if (dx) return dx.dtype;
  return c.inputs[0].dtype;
}

// concat: each part is a window of the result

Layout concat_infer(const Attributes& a, std::span<const Meta> in) {
  const Shape& first = in[0].shape;
  const int axis = axis_from("concat", a.integer("axis"), first);
  Shape y = first;
  bool left_out = false;
  for (std::size_t i = 1; i < in.size(); ++i) {
    if (!in[i].given) {
      left_out = true;
      continue;
    }
    if (left_out) fail("concat", fmt::format("part {} follows a part that was left out; give the parts without gaps", i));
    bool fits = in[i].shape.rank() == first.rank() && in[i].dtype == in[0].dtype;
    for (int k = 0; fits && k < first.rank(); ++k) fits = k == axis || in[i].shape[k] == first[k];
    if (!fits)
      fail("concat", fmt::format("part {} must be like part 0 {} {} but for axis {}, but is {} {}; make dtypes and other extents equal", i,
                                 first.text(), name_of(in[0].dtype), axis, in[i].shape.text(), name_of(in[i].dtype)));
    y.set(axis, y[axis] + in[i].shape[axis]);
  }
  return Layout{{{y, in[0].dtype}}, {}};
}

/// Calls body(part index, window of the result as a Ref with the part's shape, its first element).
template <class Body>
void for_each_window(const Call& c, const Body& body) {
  const Shape& y = c.outputs[0].shape;
  const int axis = axis_from("concat", c.attributes.integer("axis"), y);
  std::int64_t rows = 1, offset = 0;
  for (int i = 0; i < axis; ++i) rows *= y[i];
  for (std::size_t i = 0; i < c.inputs.size() && c.inputs[i].given; ++i) {
    Ref window = c.inputs[i];
    window.columns = window.size() / rows;
    window.stride = y.size() / rows;
    body(i, window, offset);
    offset += window.columns;
  }
}

template <class T>
void concat_forward(const Call& c) {
  for_each_window(c, [&](std::size_t i, const Ref& window, std::int64_t offset) {
    move_elements(walk_over(window.shape, c.inputs[i], window), c.inputs[i].as<T>(), c.outputs[0].as<T>() + offset, false);
  });
}

template <class T, bool kShifts>
void concat_backward(const Call& c) {
  const T* dy = c.dy[0].as<T>();
  for_each_window(c, [&](std::size_t i, const Ref& window, std::int64_t offset) {
    if (c.dx[i]) move_gradient(walk_over(window.shape, window, c.dx[i]), dy ? dy + (kShifts ? offset : 0) : dy, c.dx[i], c.modes[i]);
  });
}

// permute

Layout permute_infer(const Attributes& a, std::span<const Meta> in) {
  const Shape& x = in[0].shape;
  const std::vector<std::int64_t> order = integers_from("permute", "order", a.text("order"));
  std::uint32_t seen = 0;
  Shape y;
  for (const std::int64_t axis : order) {
    if (axis < 0 || axis >= x.rank() || (seen >> axis & 1u)) break;
    seen |= 1u << axis;
    y.push_back(x[int(axis)]);
  }
  if (int(order.size()) != x.rank() || y.rank() != x.rank())
    fail("permute", fmt::format("order must name each of the {} axes of x {} once, but is {}; for two axes write 1,0", x.rank(), x.text(),
                                a.text("order")));
  return Layout{{{y, in[0].dtype}}, {}};
}

/// Loops in the order of y over {x, y}, or in the order of x.
Walk<2> permute_walk(const Call& c, const Ref& x, bool in_order_of_x) {
  const auto order = integers_from("permute", "order", c.attributes.text("order"));
  const Ref& y = c.outputs[0];
  const Strides xs = strides_of(x), ys = strides_of(y);
  std::array<Offsets<2>, Shape::kMaxRank> step{};
  for (int i = 0; i < y.shape.rank(); ++i) {
    const int axis = int(order[i]);
    step[in_order_of_x ? axis : i] = {xs[axis], ys[i]};
  }
  Walk<2> walk;
  for (int i = 0; i < y.shape.rank(); ++i) {
    if (in_order_of_x) walk.push(x.shape[i], {step[i][1], step[i][0]});
    else walk.push(y.shape[i], step[i]);
  }
  return walk;
}

template <class T>
void permute_forward(const Call& c) {
  move_elements(permute_walk(c, c.inputs[0], false), c.inputs[0].as<T>(), c.outputs[0].as<T>(), false);
}

template <class T>
void permute_backward(const Call& c) {
  if (c.dx[0]) move_gradient(permute_walk(c, c.dx[0], true), c.dy[0].as<T>(), c.dx[0], c.modes[0]);
}

/// Wrong: dy is read in the order of x, as if nothing had been permuted.
template <class T>
void permute_backward_in_place(const Call& c) {
  if (c.dx[0]) move_gradient(walk_over(c.dx[0].shape, c.inputs[0], c.dx[0]), c.dy[0].as<T>(), c.dx[0], c.modes[0]);
}

// repeat_heads: x (rows, H, D) against y (rows, H, times, D)

Layout repeat_heads_infer(const Attributes& a, std::span<const Meta> in) {
  const std::int64_t times = a.integer("times");
  if (in[0].shape.rank() < 2)
    fail("repeat_heads", fmt::format("x must have shape (..., H, D), but has {}; add an axis of heads", in[0].shape.text()));
  if (times < 1) fail("repeat_heads", fmt::format("times must be at least 1, but is {}; give heads / key-value heads", times));
  Shape y = in[0].shape;
  y.set(-2, y[-2] * times);
  Layout layout{{{y, in[0].dtype}}, {}};
  layout.backward_workspace = sum_workspace(in[0].shape.size());
  return layout;
}

/// Loops over {x, y, y}.
Walk<3> repeat_heads_walk(const Call& c, const Ref& x) {
  const std::int64_t times = c.attributes.integer("times");
  const Strides xs = strides_of(x), ys = strides_of(c.outputs[0]);
  const int rank = x.shape.rank();
  Walk<3> walk;
  for (int i = 0; i < rank - 1; ++i) {
    const std::int64_t y_step = i == rank - 2 ? ys[i] * times : ys[i];
    walk.push(x.shape[i], {xs[i], y_step, y_step});
  }
  walk.push(times, {0, ys[rank - 2], ys[rank - 2]});
  walk.push(x.shape[rank - 1], {xs[rank - 1], ys[rank - 1], ys[rank - 1]});
  return walk;
}

template <class T>
void repeat_heads_forward(const Call& c) {
  const Walk<3> both = repeat_heads_walk(c, c.inputs[0]);
  Walk<2> walk;
  for (int i = 0; i < both.rank; ++i) walk.push(both.extent[i], {both.stride[i][0], both.stride[i][1]});
  move_runs(walk, c.inputs[0].as<T>(), c.outputs[0].as<T>(), false);
}

template <class T>
void repeat_heads_backward(const Call& c, double factor) {
  if (!c.dx[0]) return;
  const T* dy = c.dy[0].as<T>();
  sum_to(repeat_heads_walk(c, c.dx[0]), c.dx[0].as<T>(), SamePlace{}, factor, c.modes[0], c.workspace,
         [&](const Offsets<3>& at, std::int64_t i, auto, auto s, auto) { return dy ? dy[at[1] + i * s] : T(0); });
}

std::pair<Work, Work> moves_only(const Attributes&, std::span<const Meta>, std::span<const Meta>) { return {Work{0}, Work{0}}; }
std::pair<Work, Work> sums_back(const Attributes&, std::span<const Meta>, std::span<const Meta> out) {
  return {Work{0}, Work{double(out[0].shape.size())}};
}

std::vector<Argument> concat_arguments() {
  std::vector<Argument> arguments;
  for (int i = 0; i < kMostParts; ++i) arguments.push_back({fmt::format("part{}", i), i > 0, true});
  return arguments;
}

}  // namespace

extern const Op kConcat, kPermute, kRepeatHeads;

const Op kConcat{
    .name = "concat",
    .arguments = concat_arguments(),
    .results = {"y"},
    .attributes = {{"axis", -1}},
    .infer = concat_infer,
    .forward = {[](const Call& c) { dispatch_any(c.inputs[0].dtype, [&](auto zero) { concat_forward<decltype(zero)>(c); }); }},
    .backward = {[](const Call& c) { dispatch(dtype_of_wanted(c), [&](auto zero) { concat_backward<decltype(zero), true>(c); }); }},
    .strided = bits(0, 1, 2, 3, 4, 5, 6, 7),
    .cost = moves_only,
    .formula_forward = "y = the parts side by side along the axis",
    .formula_backward = "dpart = its window of dy",
    .samples = {{"columns", {{"axis", -1}}, {normal({2, 3, 4}), normal({2, 3, 1}), normal({2, 3, 5})}},
                {"rows", {{"axis", 0}}, {normal({2, 5}), normal({3, 5})}},
                {"heads", {{"axis", 2}}, {normal({2, 5, 3, 4}), constant_input(normal({2, 5, 1, 4}))}},
                {"eight", {{"axis", 1}}, std::vector<SampleInput>(kMostParts, normal({2, 3}))},
                {"one", {{"axis", 0}}, {normal({1})}}},
    .faults = {{"window", "every part reads the first window of dy",
                [](const Call& c) { dispatch(dtype_of_wanted(c), [&](auto zero) { concat_backward<decltype(zero), false>(c); }); }, {}, "columns"}},
};

const Op kPermute{
    .name = "permute",
    .arguments = {{"x"}},
    .results = {"y"},
    .attributes = {{"order", ""}},
    .infer = permute_infer,
    .forward = {[](const Call& c) { dispatch_any(c.inputs[0].dtype, [&](auto zero) { permute_forward<decltype(zero)>(c); }); }},
    .backward = {[](const Call& c) { dispatch(c.dx[0].dtype, [&](auto zero) { permute_backward<decltype(zero)>(c); }); }},
    .strided = bits(0),
    .cost = moves_only,
    .formula_forward = "y = x with axis order[i] as axis i",
    .formula_backward = "dx = dy in the inverse order",
    .samples = {{"heads", {{"order", "0,2,1,3"}}, {normal({2, 5, 3, 4})}},
                {"transpose", {{"order", "1,0"}}, {normal({37, 35})}},
                {"cycle", {{"order", "2,0,1"}}, {normal({2, 3, 5})}},
                {"back", {{"order", "1,2,0"}}, {normal({2, 3, 5})}},
                {"same", {{"order", "0,1"}}, {normal({2, 3})}},
                {"five", {{"order", "4,2,0,3,1"}}, {normal({2, 3, 1, 4, 5})}},
                {"one", {{"order", "0"}}, {normal({1})}}},
    .faults = {{"order", "dy is read as if nothing had been permuted",
                [](const Call& c) { dispatch(c.dx[0].dtype, [&](auto zero) { permute_backward_in_place<decltype(zero)>(c); }); }, {}, "cycle"}},
};

const Op kRepeatHeads{
    .name = "repeat_heads",
    .arguments = {{"x"}},
    .results = {"y"},
    .attributes = {{"times", 1}},
    .infer = repeat_heads_infer,
    .forward = {[](const Call& c) { dispatch_any(c.inputs[0].dtype, [&](auto zero) { repeat_heads_forward<decltype(zero)>(c); }); }},
    .backward = {[](const Call& c) { dispatch(c.dx[0].dtype, [&](auto zero) { repeat_heads_backward<decltype(zero)>(c, 1.0); }); }},
    .strided = bits(0),
    .cost = sums_back,
    .formula_forward = "y[.., h times + r, :] = x[.., h, :]",
    .formula_backward = "dx[.., h, :] = sum_r dy[.., h times + r, :]",
    .samples = {{"grouped", {{"times", 3}}, {normal({2, 5, 4, 7})}},
                {"single", {{"times", 2}}, {normal({3, 1, 5})}},
                {"once", {{"times", 1}}, {normal({2, 3, 4})}},
                {"narrow", {{"times", 4}}, {normal({3, 1})}},
                {"one", {{"times", 2}}, {normal({1, 1})}}},
    .faults = {{"mean", "the copies' gradients are averaged, not summed",
                [](const Call& c) {
                  const double share = 1.0 / double(c.attributes.integer("times"));
                  dispatch(c.dx[0].dtype, [&](auto zero) { repeat_heads_backward<decltype(zero)>(c, share); });
                },
                {}, "grouped"}},
};

Tensor concat(const Tensors& parts, int axis, SourceLine where) {
  if (parts.empty()) fail(kConcat, "parts must hold at least one tensor, but is empty; give the tensors to join");
  Tensors level = parts;
  while (level.size() > std::size_t(kMostParts)) {
    Tensors next;
    for (std::size_t i = 0; i < level.size(); i += kMostParts)
      next.push_back(apply(kConcat, {{"axis", axis}}, Tensors(level.begin() + i, level.begin() + std::min(level.size(), i + kMostParts)), where)[0]);
    level = std::move(next);
  }
  return apply(kConcat, {{"axis", axis}}, level, where)[0];
}

Tensor permute(const Tensor& x, const std::vector<std::int64_t>& order, SourceLine where) {
  return apply(kPermute, {{"order", text_of(order)}}, {x}, where)[0];
}
Tensor repeat_heads(const Tensor& x, std::int64_t times, SourceLine where) {
  return apply(kRepeatHeads, {{"times", times}}, {x}, where)[0];
}

}  // namespace hedgehog

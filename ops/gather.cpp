#include "ops/gather.h"

#include "core/dispatch.h"
#include "core/parallel.h"
#include "ops/check.h"

namespace hedgehog {

extern const Op kGatherRows, kGatherLast;

namespace {

Layout infer_rows(const Attributes&, std::span<const Meta> in) {
  check_floating(kGatherRows, "table", in[0]);
  check_rank(kGatherRows, "table", in[0], 2, "(V, C)");
  check_dtype(kGatherRows, "index", in[1], Dtype::i32);
  Meta y{in[1].shape, in[0].dtype, true};
  y.shape.push_back(in[0].shape.last());
  return {{y}, {}};
}

template <class T>
void rows_forward(const Call& c) {
  const std::int64_t columns = c.inputs[0].shape.last();
  check_indices("gather_rows", "index", c.inputs[1], c.inputs[0].shape[0], false, "V");
  for (std::int64_t i = 0; i < c.inputs[1].size(); ++i)
    std::copy_n(c.inputs[0].as<T>() + c.inputs[1].as<std::int32_t>()[i] * columns, columns, c.outputs[0].as<T>() + i * columns);
}

/// `adds` false: a row that is taken twice keeps its last contribution only, as a careless scatter would.
template <class T>
void rows_backward(const Call& c, bool adds) {
  T* const dtable = c.dx[0].as<T>();
  const std::int64_t columns = c.inputs[0].shape.last();
  if (!dtable) return;
  if (c.modes[0] == Mode::write) std::fill_n(dtable, c.dx[0].size(), T(0));
  for (std::int64_t i = 0; i < c.inputs[1].size(); ++i) {
    T* row = dtable + c.inputs[1].as<std::int32_t>()[i] * columns;
    const T* dy = c.dy[0].as<T>() + i * columns;
    for (std::int64_t k = 0; k < columns; ++k) row[k] = adds ? row[k] + dy[k] : dy[k];
  }
}

Layout infer_last(const Attributes&, std::span<const Meta> in) {
  check_floating(kGatherLast, "x", in[0]);
  check_dtype(kGatherLast, "index", in[1], Dtype::i32);
  Shape leading;
  for (int i = 0; i + 1 < in[0].shape.rank(); ++i) leading.push_back(in[0].shape[i]);
  if (in[0].shape.rank() < 1) fail(kGatherLast, "x must be (..., V), but is a scalar");
  check_shape(kGatherLast, "index", in[1], leading, "(...)", "x", in[0]);
  return {{{leading, in[0].dtype, true}}, {}};
}

template <class T>
void last_forward(const Call& c) {
  const std::int64_t columns = c.inputs[0].shape.last();
  check_indices("gather_last", "index", c.inputs[1], columns, true, "V");
  for (std::int64_t i = 0; i < c.inputs[1].size(); ++i) {
    const std::int32_t index = c.inputs[1].as<std::int32_t>()[i];
    c.outputs[0].as<T>()[i] = index < 0 ? T(0) : c.inputs[0].as<T>()[i * columns + index];
  }
}

template <class T>
void last_backward(const Call& c, std::int64_t shift) {
  T* const dx = c.dx[0].as<T>();
  const std::int64_t columns = c.inputs[0].shape.last();
  if (!dx) return;
  if (c.modes[0] == Mode::write) std::fill_n(dx, c.dx[0].size(), T(0));
  for (std::int64_t i = 0; i < c.inputs[1].size(); ++i)
    if (const std::int32_t index = c.inputs[1].as<std::int32_t>()[i]; index >= 0)
      dx[i * columns + (index + shift) % columns] += c.dy[0].as<T>()[i];
}

}  // namespace

const Op kGatherRows{
    .name = "gather_rows",
    .arguments = {{"table"}, {"index", false, false}},
    .results = {"y"},
    .infer = infer_rows,
    .forward = {[](const Call& c) { dispatch(c.inputs[0].dtype, [&](auto zero) { rows_forward<decltype(zero)>(c); }); }},
    .backward = {[](const Call& c) { dispatch(c.inputs[0].dtype, [&](auto zero) { rows_backward<decltype(zero)>(c, true); }); }},
    .reads = {.inputs = bits(1)},
    .cost = [](const Attributes&, std::span<const Meta>, std::span<const Meta> out) {
      return std::pair{Work{0}, Work{double(out[0].shape.size())}};
    },
    .formula_forward = "y[n] = table[index[n]]",
    .formula_backward = "dtable[v] = sum over n with index[n] = v of dy[n]",
    .samples = {{"smallest", {}, {normal({1, 1}), integers({1}, 0, 1)}},
                {"repeats", {}, {normal({4, 5}), integers({2, 7}, 0, 4)}}},
    .faults = {{"overwrite", "rows taken twice keep only the last contribution",
                [](const Call& c) { dispatch(c.inputs[0].dtype, [&](auto zero) { rows_backward<decltype(zero)>(c, false); }); },
                {}, "repeats"}},
};

const Op kGatherLast{
    .name = "gather_last",
    .arguments = {{"x"}, {"index", false, false}},
    .results = {"y"},
    .infer = infer_last,
    .forward = {[](const Call& c) { dispatch(c.inputs[0].dtype, [&](auto zero) { last_forward<decltype(zero)>(c); }); }},
    .backward = {[](const Call& c) { dispatch(c.inputs[0].dtype, [&](auto zero) { last_backward<decltype(zero)>(c, 0); }); }},
    .reads = {.inputs = bits(1)},
    .cost = [](const Attributes&, std::span<const Meta>, std::span<const Meta> out) {
      return std::pair{Work{0}, Work{double(out[0].shape.size())}};
    },
    .formula_forward = "y[n] = x[n, index[n]], 0 where index = -1",
    .formula_backward = "dx[n, index[n]] = dy[n], 0 elsewhere",
    .samples = {{"smallest", {}, {normal({1, 2}), integers({1}, 0, 2)}},
                {"ignored", {}, {normal({2, 5, 3}), integers({2, 5}, -1, 3)}}},
    .faults = {{"neighbour", "the gradient goes to the element after the one taken",
                [](const Call& c) { dispatch(c.inputs[0].dtype, [&](auto zero) { last_backward<decltype(zero)>(c, 1); }); },
                {}, {}}},
};

Tensor gather_rows(const Tensor& table, const Tensor& index, SourceLine where) {
  return apply(kGatherRows, {}, {table, index}, where)[0];
}

Tensor gather_last(const Tensor& x, const Tensor& index, SourceLine where) { return apply(kGatherLast, {}, {x, index}, where)[0]; }

}  // namespace hedgehog

#include "ops/embedding.h"

#include <algorithm>
#include <numeric>

#include "core/dispatch.h"
#include "core/parallel.h"
#include "ops/check.h"
#include "ops/elementwise.h"
#include "ops/gather.h"

namespace hedgehog {

extern const Op kEmbedding;

namespace {

Layout infer_embedding(const Attributes& a, std::span<const Meta> in) {
  const Meta &tokens = in[0], &table = in[1], &positions = in[2];
  const std::int64_t offset = a.integer("offset");
  check_dtype(kEmbedding, "tokens", tokens, Dtype::i32);
  if (tokens.shape.rank() < 1) fail(kEmbedding, "tokens must be (..., T), but is a scalar; reshape it to (1)");
  check_floating(kEmbedding, "table", table);
  check_rank(kEmbedding, "table", table, 2, "(V, C)");
  if (offset < 0) fail(kEmbedding, fmt::format("offset must be 0 or more, but is {}", offset));
  if (positions.given) {
    check_dtype(kEmbedding, "positions", positions, table.dtype, "table");
    check_rank(kEmbedding, "positions", positions, 2, "(P, C)");
    if (positions.shape[1] != table.shape[1])
      fail(kEmbedding, fmt::format("positions must be (P, C) with C = {} to match table {}, but is {}", table.shape[1],
                                   table.shape.text(), positions.shape.text()));
    if (tokens.shape.last() + offset > positions.shape[0])
      fail(kEmbedding, fmt::format("positions has P = {} rows, but T + offset = {} + {} are needed; use shorter rows of tokens",
                                   positions.shape[0], tokens.shape.last(), offset));
  }
  Meta y{tokens.shape, table.dtype, true};
  y.shape.push_back(table.shape[1]);
  return {{y}, {}};
}

template <class T>
void embedding_forward(const Call& c) {
  const std::int64_t length = c.inputs[0].shape.last(), columns = c.inputs[1].shape[1];
  const std::int32_t* const tokens = c.inputs[0].as<std::int32_t>();
  const T* const positions = c.inputs[2] ? c.inputs[2].as<T>() + c.attributes.integer("offset") * columns : nullptr;
  check_indices("embedding", "tokens", c.inputs[0], c.inputs[1].shape[0], false, "V");
  parallel_for(c.inputs[0].size(), std::max<std::int64_t>(1, 16384 / columns), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t n = begin; n < end; ++n) {
      const T* row = c.inputs[1].as<T>() + tokens[n] * columns;
      T* y = c.outputs[0].as<T>() + n * columns;
      if (positions) {
        const T* position = positions + n % length * columns;
#pragma omp simd
        for (std::int64_t i = 0; i < columns; ++i) y[i] = row[i] + position[i];
      } else {
        std::copy_n(row, columns, y);
      }
    }
  });
}

template <class T>
void zero(const Ref& x) {
  parallel_for(x.size(), 65536, [&](std::int64_t begin, std::int64_t end) { std::fill(x.as<T>() + begin, x.as<T>() + end, T(0)); });
}

/// Every task walks all tokens in order for some columns of its own: no two tasks meet in the table, and each sum has
/// one order whatever the number of tasks.
template <class T>
void table_backward(const Call& c) {
  const Ref& dtable = c.dx[1];
  const std::int64_t columns = c.inputs[1].shape[1];
  // whole cache lines, so that tasks do not share one
  const std::int64_t width = ((columns + 15) / 16 + 15) / 16 * 16, blocks = (columns + width - 1) / width;
  const std::int32_t* const tokens = c.inputs[0].as<std::int32_t>();
  if (c.modes[1] == Mode::write) zero<T>(dtable);
  parallel_tasks(blocks, [&](std::int64_t b) {
    const std::int64_t begin = b * width, end = std::min(columns, begin + width);
    for (std::int64_t n = 0; n < c.inputs[0].size(); ++n) {
      T* const row = dtable.as<T>() + tokens[n] * columns;
      const T* const dy = c.dy[0].as<T>() + n * columns;
#pragma omp simd
      for (std::int64_t i = begin; i < end; ++i) row[i] += dy[i];
    }
  });
}

/// `batch` is the number of rows that count: all of them, or one in the deliberately wrong version.
template <class T>
void positions_backward(const Call& c, std::int64_t batch) {
  const Ref& dpositions = c.dx[2];
  const std::int64_t length = c.inputs[0].shape.last(), columns = c.inputs[1].shape[1];
  if (c.modes[2] == Mode::write) zero<T>(dpositions);
  T* const out = dpositions.as<T>() + c.attributes.integer("offset") * columns;
  parallel_for(length, std::max<std::int64_t>(1, 16384 / (columns * batch)), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t b = 0; b < batch; ++b) {
      const T* const dy = c.dy[0].as<T>() + b * length * columns;
#pragma omp simd
      for (std::int64_t i = begin * columns; i < end * columns; ++i) out[i] += dy[i];
    }
  });
}

template <class T>
void embedding_backward(const Call& c, bool all_rows) {
  if (c.dx[1]) table_backward<T>(c);
  if (c.dx[2]) positions_backward<T>(c, all_rows ? c.inputs[0].size() / c.inputs[0].shape.last() : 1);
}

Tensors composed_embedding(const Attributes& a, const Tensors& in) {
  Tensor y = gather_rows(in[1], in[0]);
  if (!in[2]) return {y};
  std::vector<double> place(std::size_t(in[0].shape().last()));
  std::iota(place.begin(), place.end(), double(a.integer("offset")));
  return {add(y, gather_rows(in[2], constant({in[0].shape().last()}, place, Dtype::i32, "positions")))};
}

/// The tables are not passed over: only rows that are taken, each once. Which tokens repeat is not known from the shapes, so
/// the table has as many rows taken as there are tokens or rows. Their gradients are those of parameters, and added to.
std::pair<Work, Work> cost_of_embedding(const Attributes&, std::span<const Meta> in, std::span<const Meta> out) {
  const double n = double(out[0].shape.size()), element = double(size_of(out[0].dtype)), ids = double(in[0].shape.size() * size_of(Dtype::i32));
  double taken = double(std::min(in[0].shape.size(), in[1].shape[0]) * in[1].shape[1]);
  if (in[2].given) taken += double(in[0].shape.last() * in[1].shape[1]);
  const int tables = in[2].given ? 2 : 1;
  return {Work{n * (tables - 1), ids + element * (n + taken)},
          Work{n * tables, ids + element * n + 2 * taken * double(size_of(accumulator_of(out[0].dtype)))}};
}

}  // namespace

const Op kEmbedding{
    .name = "embedding",
    .arguments = {{"tokens", false, false}, {"table"}, {"positions", true}},
    .results = {"y"},
    .attributes = {{"offset", 0}},
    .infer = infer_embedding,
    .forward = {[](const Call& c) { dispatch(c.inputs[1].dtype, [&](auto zero) { embedding_forward<decltype(zero)>(c); }); }},
    .backward = {[](const Call& c) { dispatch(c.inputs[1].dtype, [&](auto zero) { embedding_backward<decltype(zero)>(c, true); }); }},
    .reads = {.inputs = bits(0)},
    .cost = cost_of_embedding,
    .reference = composed_embedding,
    .formula_forward = "y[b, t] = table[tokens[b, t]] + positions[t + offset]",
    .formula_backward = "dtable[v] = sum over tokens v of dy;  dpositions[t + offset] = sum_b dy[b, t]",
    .samples = {{"smallest", {}, {integers({1}, 0, 1), normal({1, 1}), omitted()}},
                {"tokens", {}, {integers({2, 7}, 0, 4), normal({4, 5}), omitted()}},
                {"positions", {}, {integers({3, 5}, 0, 4), normal({4, 2}), normal({6, 2})}},
                {"offset", {{"offset", 2}}, {integers({2, 3}, 0, 7), normal({7, 37}), normal({5, 37})}}},
    .faults = {{"one row", "dpositions takes the first row of the batch only",
                [](const Call& c) { dispatch(c.inputs[1].dtype, [&](auto zero) { embedding_backward<decltype(zero)>(c, false); }); },
                {}, "positions"}},
};

Tensor embedding(const Tensor& tokens, const Tensor& table, const Tensor& positions, std::int64_t offset, SourceLine where) {
  return apply(kEmbedding, {{"offset", offset}}, {tokens, table, positions}, where)[0];
}

}  // namespace hedgehog

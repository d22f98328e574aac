#include <doctest/doctest.h>

#include <cmath>

#include "core/random.h"
#include "ops/cpu.h"
#include "ops/ops.h"
#include "tests/device_cases.h"
#include "tests/op_cases.h"

namespace hedgehog {

using namespace test;

namespace {

/// How long the tensors are, and the model whose ops read them.
struct Extent {
  std::int64_t elements;  // at least so many
  std::int64_t rows;      // of the end that is looked at
  std::int64_t width, heads;
  Dtype dtype;
};

/// An op on x (1, rows, columns) whose first row is row `first` of the long tensor; rows before those looked at are zeros.
struct LongOp {
  std::string name;
  std::int64_t columns;  // of x; 0: x is ids
  std::int64_t widest;   // the longest tensor has so many columns
  Tensors weights;
  std::function<Tensor(const Tensor& x, std::int64_t first)> run;
};

/// Copies the last rows of one tensor to those of another.
void copy_end(const Tensor& from, const Tensor& to, std::int64_t elements) {
  std::vector<std::byte> bytes(std::size_t(elements * size_of(from.dtype())));
  from.read(bytes.data(), from.size() - elements, elements);
  to.write(bytes.data(), to.size() - elements, elements);
}

/// What an op gives on the last rows of a long tensor: result, dx, gradients of the weights.
std::vector<std::vector<double>> end_of(const LongOp& op, const Extent& e, std::int64_t rows, std::int64_t first) {
  auto end = [&](const Tensor& t, std::int64_t columns) {
    const Tensor last = allocate({e.rows, columns}, t.dtype());
    copy_end(t, last, last.size());
    return last.to_vector();
  };
  auto with_end = [&](const Tensor& t, std::uint32_t id) {
    const std::int64_t columns = t.size() / rows;
    copy_end(constant({e.rows, columns}, draw(e.rows * columns, 21, id), t.dtype()), t, e.rows * columns);
    return t;
  };
  Tensor x;
  if (op.columns == 0) {
    x = input({1, rows}, "ids", Dtype::i32);
    std::vector<std::int32_t> ids;
    for (std::int64_t i = 0; i < e.rows; ++i) ids.push_back(std::int32_t(i * 7 % 101));
    x.write(ids.data(), rows - e.rows, e.rows);
  } else {
    x = with_end(parameter({1, rows, op.columns}, "x", e.dtype), 1);
  }
  const Tensor y = op.run(x, first);
  std::vector<std::vector<double>> out;
  if (y.size() == 1) {
    out.push_back(y.to_vector());
    backward(y);
  } else {
    out.push_back(end(y, y.size() / rows));
    backward(y, with_end(input(y.shape(), "dy", y.dtype()), 2));
  }
  clear_tape();
  if (op.columns) out.push_back(end(x.grad(), op.columns));
  for (const Tensor& w : op.weights) {
    out.push_back(w.grad().to_vector());
    w.grad().fill(0);
  }
  return out;
}

Tensor weight(const Shape& shape, std::uint32_t id, Dtype dtype) {
  const Tensor w = parameter(shape, "weight", dtype);
  std::vector<double> values = draw(w.size(), 22, id);
  for (double& v : values) v /= std::sqrt(double(shape[0]));
  w.copy_from(values);
  return w;
}

/// i32 (1, rows): `last` for the last rows, `before` for those before.
Tensor numbers(std::int64_t rows, std::int64_t end, std::int64_t before, std::int64_t last) {
  const Tensor t = input({1, rows}, "numbers", Dtype::i32);
  std::vector<std::int32_t> values;
  values.resize(std::size_t(rows), std::int32_t(before));
  std::fill(values.end() - std::ptrdiff_t(end), values.end(), std::int32_t(last));
  t.write(values.data(), 0, rows);
  return t;
}

std::vector<LongOp> long_ops(const Extent& e) {
  const std::int64_t C = e.width, H = e.heads, D = C / H;
  const Dtype sums = accumulator_of(e.dtype);
  std::vector<LongOp> ops;
  const Tensor square = weight({C, C}, 1, e.dtype), packed = weight({C, 3 * C}, 2, e.dtype), up = weight({C, 4 * C}, 3, e.dtype),
               down = weight({4 * C, C}, 4, e.dtype), bias = weight({C}, 5, e.dtype), packed_bias = weight({3 * C}, 6, e.dtype),
               gain = weight({C}, 7, sums), offset = weight({C}, 8, sums), table = weight({128, C}, 9, e.dtype),
               map_q = weight({H, D, D}, 10, e.dtype), map_k = weight({H, D, D}, 11, e.dtype);
  ops.push_back({"linear with residual", C, C, {square, bias}, [=](const Tensor& x, std::int64_t) { return linear(x, square, bias, x); }});
  ops.push_back({"linear, packed", C, 3 * C, {packed, packed_bias},
                 [=](const Tensor& x, std::int64_t) { return linear(x, packed, packed_bias); }});
  ops.push_back({"mlp", C, 4 * C, {up, down, bias}, [=](const Tensor& x, std::int64_t) { return mlp(x, up, down, {}, bias, x); }});
  ops.push_back({"layer_norm", C, C, {gain, offset}, [=](const Tensor& x, std::int64_t) { return layer_norm(x, gain, offset); }});
  ops.push_back({"rms_norm", C, C, {gain}, [=](const Tensor& x, std::int64_t) { return rms_norm(x, gain); }});
  ops.push_back({"add", C, C, {bias}, [=](const Tensor& x, std::int64_t) { return x + bias; }});
  ops.push_back({"gelu", C, C, {}, [](const Tensor& x, std::int64_t) { return gelu(x); }});
  ops.push_back({"dropout", C, C, {}, [](const Tensor& x, std::int64_t first) {
    const Tensor step = step_state(11);
    set_slot(step, kFirstSequence, double(first / x.shape()[1]));  // sequences of as many rows as x has come before
    return dropout(x, step, 0.3, 5);
  }});
  ops.push_back({"embedding", 0, C, {table}, [=](const Tensor& ids, std::int64_t) { return embedding(ids, table); }});
  ops.push_back({"rotary", 3 * C, 3 * C, {}, [=](const Tensor& x, std::int64_t first) {
    const std::int64_t T = x.shape()[1];
    const Tensor angles = rotary_table(T, D, 10000, reshape(numbers(1, 1, 0, first), {1}), sums);
    return rotary(reshape(split(x, {C, C, C})[1], {1, T, H, D}), angles);
  }});
  ops.push_back({"linear_attention", 3 * C, 3 * C, {map_q, map_k}, [=](const Tensor& x, std::int64_t) {
    const std::int64_t T = x.shape()[1];
    const Tensors parts = split(x, {C, C, C});
    LinearAttentionOptions o;
    o.weight_q = map_q;
    o.weight_k = map_k;
    o.document_start = numbers(T, e.rows, 0, T - e.rows);  // the end is a document of its own
    auto heads = [&](const Tensor& part) { return reshape(part, {1, T, H, D}); };
    return linear_attention(heads(parts[0]), heads(parts[1]), heads(parts[2]), o).o;
  }});
  ops.push_back({"classifier_cross_entropy", C, C, {table}, [=](const Tensor& x, std::int64_t) {
    return classifier_cross_entropy(x, table, numbers(x.shape()[1], e.rows, -1, 17), constant({1}, {1.0 / double(e.rows)}, sums)).loss;
  }});
  return ops;
}

/// The end of a long tensor against the same rows alone: an index that wraps reads or writes other rows, and is far off.
void ends_alike(const Extent& e) {
  // alike but for the order in which products and chunks add up, and the roundings to bf16 after it
  const double tolerance = e.dtype == Dtype::bf16 ? 0x1p-6 : 1e-4;
  for (const LongOp& op : long_ops(e)) {
    CAPTURE(op.name);
    const std::int64_t rows = (e.elements / op.widest / e.rows + 2) * e.rows;
    const auto alone = end_of(op, e, e.rows, rows - e.rows), of_long = end_of(op, e, rows, 0);
    REQUIRE(of_long.size() == alone.size());
    for (std::size_t i = 0; i < alone.size(); ++i) {
      CAPTURE(i);
      CHECK(rms(alone[i]) > 0);
      CHECK(rms(difference(of_long[i], alone[i])) <= tolerance * rms(alone[i]));
    }
  }
}

/// Angles a million tokens in. In f32 the product of position and frequency alone is off by up to 0.03.
void angles_far_away() {
  const std::int64_t T = 7, D = 16, first = (1 << 20) - T;
  const Tensor at = input({1}, "offset", Dtype::i32);
  const std::int32_t position = std::int32_t(first);
  at.write(&position, 0, 1);
  for (Dtype dtype : {Dtype::f32, Dtype::f64}) {
    CAPTURE(name_of(dtype));
    const std::vector<double> far = rotary_table(T, D, 10000, at, dtype).to_vector();
    const Tensor all = rotary_table(first + T, D, 10000, {}, dtype), end = allocate({T, D}, dtype);
    copy_end(all, end, T * D);
    CHECK(end.to_vector() == far);
    // f64 rounds the angle, up to 2^20, to 2^-33, and the frequency before that as coarsely; f32 rounds the result
    const double tolerance = 0x1p-31 + (dtype == Dtype::f32 ? 0x1p-24 : 0);
    for (std::int64_t t = 0; t < T; ++t)
      for (std::int64_t i = 0; i < D / 2; ++i) {
        const long double angle = (long double)(first + t) * std::pow(10000.0L, -2.0L * (long double)i / (long double)D);
        CHECK(std::abs(far[std::size_t(t * D + i)] - double(std::cos(angle))) <= tolerance);
        CHECK(std::abs(far[std::size_t(t * D + D / 2 + i)] - double(std::sin(angle))) <= tolerance);
      }
  }
}

/// Dropout of the last sequence of a batch whose elements pass 2^32 draws the words of those places.
void masks_far_away() {
  const std::int64_t T = 5, C = 768, sequence = std::int64_t(1) << 21;
  const Tensor x = constant({1, T, C}, std::vector<double>(std::size_t(T * C), 1.0)), step = step_state(11);
  set_slot(step, kFirstSequence, double(sequence));
  const std::vector<double> y = dropout(x, step, 0.25, 5).to_vector();
  const Random random{11, 5, 0};
  const std::uint64_t origin = std::uint64_t(sequence * T * C);
  REQUIRE(origin > std::uint64_t(1) << 32);
  for (std::size_t i = 0; i < y.size(); ++i) CHECK((y[i] != 0) == (random.uniform(origin + i) >= 0.25f));
}

}  // namespace

HH_ON_BOTH("long: rotary angles at token 1,048,575 are right to rounding", angles_far_away)
HH_ON_BOTH("long: dropout past element 2^32 of a batch draws the words of that place", masks_far_away)

TEST_CASE("long: the end of a long tensor gives what its rows give alone") { ends_alike({3000, 8, 16, 2, Dtype::f32}); }

TEST_CASE("long: an embedding table of more than 2^31 elements is read and added to at its end") {
  // memory that nothing touches is never taken: only the rows in use are real
  constexpr std::int64_t C = 1 << 10, V = (std::int64_t(1) << 21) + 4;
  if (poison_enabled()) return skip("poison touches all of the 16 GiB that this reserves");
  if (available_memory() < std::int64_t(18) << 30) return skip("less than 18 GiB of memory are free");
  const Tensor table = allocate({V, C}, Dtype::f32, Role::parameter, "table");
  table->wants_gradient = true;
  table->gradient = allocate({V, C}, Dtype::f32, Role::gradient, "dtable");
  const std::vector<std::int32_t> ids{std::int32_t(V - 1), 0, std::int32_t(V - 3), std::int32_t(V - 1)};
  const Tensor tokens = input({4}, "tokens", Dtype::i32);
  tokens.write(ids.data(), 0, 4);
  std::vector<float> row(C), none(C, 0.0f);
  for (std::int32_t id : ids) {
    for (std::int64_t c = 0; c < C; ++c) row[std::size_t(c)] = float(id % 1000 + c);
    table.write(row.data(), id * C, C);
    table->gradient.write(none.data(), id * C, C);
  }
  const Tensor y = embedding(tokens, table);
  const std::vector<double> values = y.to_vector();
  backward(y, constant(y.shape(), std::vector<double>(std::size_t(y.size()), 1.5)));
  clear_tape();
  for (std::size_t n = 0; n < ids.size(); ++n) {
    CAPTURE(n);
    table->gradient.read(row.data(), ids[n] * C, C);
    for (std::int64_t c = 0; c < C; ++c) {
      CHECK(values[n * C + std::size_t(c)] == double(ids[n] % 1000 + c));
      CHECK(row[std::size_t(c)] == (ids[n] == V - 1 ? 3.0f : 1.5f));
    }
  }
}

TEST_SUITE("device") {
  TEST_CASE("long on the device: ops of a GPT on tensors of more than 2^31 elements") {
    on_cuda([] {
      if (current_device().free_memory() < std::int64_t(48) << 30) return skip("less than 48 GiB of the GPU's memory are free");
      ends_alike({std::int64_t(1) << 31, 256, 768, 12, Dtype::bf16});
    });
  }
}

}  // namespace hedgehog

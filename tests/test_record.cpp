#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "core/executor.h"
#include "core/flatten.h"
#include "core/gradcheck.h"
#include "core/text.h"
#include "ops/elementwise.h"
#include "ops/linear.h"
#include "ops/matmul.h"
#include "ops/reduce.h"
#include "ops/shape.h"
#include "tests/op_cases.h"
#include "tests/tape_cases.h"

using namespace hedgehog;
using namespace hedgehog::test;
using Numbers = std::vector<double>;

namespace {

/// y = x³ as an op defined outside the library.
const Op& cube() {
  static const Op op{
      .name = "test_cube",
      .arguments = {{"x"}},
      .results = {"y"},
      .infer = [](const Attributes&, std::span<const Meta> in) { return Layout{{in[0]}, {}}; },
      .forward = {[](const Call& c) {
        for (std::int64_t i = 0; i < c.inputs[0].size(); ++i) {
          const double x = c.inputs[0].as<double>()[i];
          c.outputs[0].as<double>()[i] = x * x * x;
        }
      }},
      .backward = {[](const Call& c) {
        for (std::int64_t i = 0; i < c.dx[0].size(); ++i) {
          const double x = c.inputs[0].as<double>()[i], d = 3 * x * x * c.dy[0].as<double>()[i];
          double& dx = c.dx[0].as<double>()[i];
          dx = c.modes[0] == Mode::accumulate ? dx + d : d;
        }
      }},
      .reads = {.inputs = bits(0)},
      .reference = [](const Attributes&, const Tensors& in) { return Tensors{multiply(square(in[0]), in[0])}; },
  };
  return op;
}

}  // namespace

TEST_CASE("record: values are refused while recording, and the tensor is named") {
  const Tensor x = leaf({2}, {1, 2});
  const Program program = record([&] {
    const Tensor y = square(x);
    y->name = "squares";
    CHECK(recording());
    CHECK(mentions(error_of([&] { y.to_vector(); }), "'squares'"));
    CHECK(mentions(error_of([&] { sum(y).item(); }), "recorded"));
    CHECK(error_of([&] { print(y); }) != "");
    return Tensors{y};
  });
  CHECK(!recording());
  CHECK(error_of([&] { record([&]() -> Tensors { return record([] { return Tensors{}; }).outputs; }); }) != "");
  CHECK(!recording());
  CHECK_THROWS_AS(record([]() -> Tensors { throw Error("stop"); }), Error);
  CHECK(!recording());
}

TEST_CASE("record: a recorded program with backward runs again and again on new inputs") {
  const Tensor w = leaf({2, 1}, {0.5, -1}, "w");
  const Tensor x = input({3, 2}, "x", Dtype::f64);
  const Program program = record([&] {
    const Tensor loss = sum(square(matmul(x, w)));
    backward(loss);
    return Tensors{loss};
  });
  CHECK(program.inputs.size() == 1);
  CHECK(w.grad().to_vector() == Numbers{0, 0});  // nothing has run yet
  CHECK(tape_size() == 0);
  Executor run(program);
  for (double s : {1.0, 2.0}) {
    x.copy_from({s, 2 * s, 3, 4, 5, 6});
    w.grad().fill(0);
    run.run();
    const Numbers planned = w.grad().to_vector();
    const double value = run.output(0).item();
    w.grad().fill(0);
    const Tensor loss = sum(square(matmul(x, w)));
    backward(loss);
    CHECK(loss.item() == value);
    CHECK(w.grad().to_vector() == planned);
  }
  // a second backward is refused while recording as well
  CHECK(error_of([&] {
          record([&] {
            const Tensor loss = sum(square(w));
            backward(loss);
            backward(loss);
            return Tensors{loss};
          });
        }) != "");
}

TEST_CASE("record: programs join into one list with their inputs merged") {
  const Tensor x = input({2}, "x", Dtype::f64), z = input({2}, "z", Dtype::f64);
  const Tensor s = state({2}, Dtype::f64, "s");
  const Program first = record([&] { return Tensors{multiply(x, z)}; });
  const Program second = record([&] {
    apply(add_to_state(), {}, {s, x});
    return Tensors{square(s)};
  });
  const Program both = first + second;
  CHECK(both.entries.size() == first.entries.size() + second.entries.size());
  CHECK(both.inputs.size() == 2);
  CHECK(both.outputs.size() == 2);
  Executor run(both);
  x.copy_from({1, 2});
  z.copy_from({5, 6});
  run.run();
  run.run();
  CHECK(run.output(0).to_vector() == Numbers{5, 12});
  CHECK(run.output(1).to_vector() == Numbers{4, 16});
  CHECK(error_of([&] { run.output(2); }) != "");
}

TEST_CASE("record: scopes name the entries, forward and backward") {
  const Tensor x = leaf({2}, {1, 2});
  const Program program = record([&] {
    const Scope block("block0");
    Tensor y;
    {
      const Scope inner("attention");
      y = square(x);
    }
    const Tensor loss = sum(y);
    backward(loss);
    return Tensors{loss};
  });
  CHECK(program.entries.front().scope == "block0/attention");
  bool named = false;
  for (const Entry& e : program.entries) named |= e.backward && e.op->name == "square" && e.scope == "block0/attention";
  CHECK(named);
  for (const Entry& e : program.entries) CHECK(e.scope.rfind("block0", 0) == 0);
  CHECK(std::string(program.entries.front().where.file_name()).find("test_record") != std::string::npos);
}

TEST_CASE("record: an op defined outside works like a built-in one, and Expand::composed replaces it") {
  const Tensor x = leaf({2}, {2, -1});
  const Tensor y = apply(cube(), {}, {x})[0];
  backward(sum(y));
  CHECK(y.to_vector() == Numbers{8, -1});
  CHECK(x.grad().to_vector() == Numbers{12, 3});
  CHECK(gradcheck(cube(), {"any", {}, {normal({3, 5})}}).passed());
  auto names = [&] {
    std::vector<std::string> out;
    for (const Entry& e : record([&] { return apply(cube(), {}, {x}); }).entries) out.push_back(e.op->name);
    return out;
  };
  CHECK(names() == std::vector<std::string>{"test_cube"});
  {
    const Expand guard = Expand::composed();
    CHECK(names() == std::vector<std::string>{"square", "multiply"});
    x.grad().fill(0);
    backward(sum(apply(cube(), {}, {x})[0]));
    CHECK(x.grad().to_vector() == Numbers{12, 3});
  }
  CHECK(names() == std::vector<std::string>{"test_cube"});
}

TEST_CASE("record: composed ops check their arguments as the fused ones do") {
  const Expand guard = Expand::composed();
  CHECK(mentions(error_of([&] { linear(input({2, 3}, "x"), Tensor{}); }), "[linear] argument 1 'weight' is missing"));
}

TEST_CASE("record: a program that reads what another one made is refused before it runs") {
  const Tensor x = input({2}, "x", Dtype::f64);
  Tensor made;
  record([&] { return Tensors{made = square(x)}; });
  const Program reads = record([&] { return Tensors{square(made)}; });
  CHECK(mentions(error_of([&] { Executor run(reads); }), "record both in one program"));
}

TEST_CASE("record: the registry knows its ops, refuses doubles and offers the nearest name") {
  CHECK(test::all_ops().size() > 0);
  CHECK(&find_op("square") != nullptr);
  CHECK(mentions(error_of([] { find_op("sqare"); }), "'square'"));
  Op twice = find_op("square");
  CHECK(mentions(error_of([&] { register_op(twice); }), "exists already"));
  Op empty;
  empty.name = "test_empty";
  CHECK(error_of([&] { register_op(empty); }) != "");
}

TEST_CASE("record: flattened parameters and their gradients stay usable one by one") {
  const Tensor a = leaf({3}, {1, 2, 3}, "a"), b = leaf({2}, {4, 5}, "b");
  const Tensor weights = flatten_storage({a, b}, Role::parameter, "weights", 4);
  const Tensor gradients = flatten_storage({a.grad(), b.grad()}, Role::gradient, "gradients", 4);
  CHECK(weights.to_vector() == Numbers{1, 2, 3, 0, 4, 5, 0, 0});
  backward(sum(square(a)) + sum(scale(b, 7)));
  CHECK(gradients.to_vector() == Numbers{2, 4, 6, 0, 7, 7, 0, 0});
  weights.fill(9);
  CHECK(a.to_vector() == Numbers{9, 9, 9});
}

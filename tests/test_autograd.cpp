#include <doctest/doctest.h>

#include <cmath>
#include <vector>

#include "core/error.h"
#include "core/executor.h"
#include "core/gradcheck.h"
#include "tests/op_cases.h"
#include "ops/elementwise.h"
#include "ops/matmul.h"
#include "ops/reduce.h"
#include "ops/shape.h"

using namespace hedgehog;
using Numbers = std::vector<double>;

namespace {

Tensor leaf(Shape shape, const Numbers& values, const char* name = "x") {
  Tensor x = parameter(std::move(shape), name, Dtype::f64);
  x.copy_from(values);
  return x;
}

/// The message of the Error that f throws; empty if it throws none.
template <class F>
std::string error_of(F&& f) {
  try {
    f();
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

bool mentions(const std::string& message, const std::string& part) { return message.find(part) != std::string::npos; }

/// An op of a user: y = x in place of a state, so that versions can be tested. state += x.
const Op& add_to_state() {
  static const Op op{
      .name = "test_add_to_state",
      .arguments = {{"state", false, false}, {"x", false, false}},
      .results = {},
      .infer = [](const Attributes&, std::span<const Meta>) { return Layout{}; },
      .forward = {[](const Call& c) {
        for (std::int64_t i = 0; i < c.inputs[0].size(); ++i) c.inputs[0].as<double>()[i] += c.inputs[1].as<double>()[i];
      }},
      .updates = bits(0),
  };
  return op;
}

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

TEST_CASE("autograd: the scalar chain rule in closed form") {
  // L = (x y + 3)² at x = 2, y = -1: L = 1, dL/dx = 2 (x y + 3) y = -2, dL/dy = 2 (x y + 3) x = 4
  const Tensor x = leaf({}, {2}), y = leaf({}, {-1}, "y");
  const Tensor loss = square(x * y + 3.0);
  CHECK(loss.item() == 1);
  backward(loss);
  CHECK(x.grad().item() == -2);
  CHECK(y.grad().item() == 4);
  CHECK(tape_size() == 0);
}

TEST_CASE("autograd: one tensor used several times gathers all contributions") {
  // y = x² ; L = y·y + y + x: dL/dx = 4 x³ + 2 x + 1
  const Tensor x = leaf({}, {1.5});
  const Tensor y = square(x);
  backward(multiply(y, y) + y + x);
  CHECK(x.grad().item() == doctest::Approx(4 * 1.5 * 1.5 * 1.5 + 2 * 1.5 + 1).epsilon(1e-14));
}

TEST_CASE("autograd: gradients of parameters add up over losses until they are cleared") {
  const Tensor x = leaf({2}, {1, 2});
  backward(sum(square(x)));
  backward(sum(scale(x, 10)));
  CHECK(x.grad().to_vector() == Numbers{12, 14});
  x.grad().fill(0);
  backward(sum(x));
  CHECK(x.grad().to_vector() == Numbers{1, 1});
}

TEST_CASE("autograd: a cotangent replaces the ones, and must be like the loss") {
  const Tensor x = leaf({2}, {3, 4});
  const Tensor y = square(x);
  CHECK(mentions(error_of([&] { backward(y, constant({3}, {1, 1, 1}, Dtype::f64)); }), "(3)"));
  CHECK_THROWS_AS(backward(y, constant({2}, {1, 1}, Dtype::f32)), ShapeError);
  backward(y, constant({2}, {10, -1}, Dtype::f64));
  CHECK(x.grad().to_vector() == Numbers{60, -8});
}

TEST_CASE("autograd: several results at once, one of them without a cotangent") {
  const Tensor x = leaf({2}, {3, 4});
  const Tensor y = square(x), z = scale(x, 5);
  backward({y, z}, {constant({2}, {1, 2}, Dtype::f64), {}});
  CHECK(x.grad().to_vector() == Numbers{6 + 5, 16 + 5});
  CHECK_THROWS_AS(backward({square(x)}, Tensors{}), Error);
  clear_tape();
}

TEST_CASE("autograd: a second backward over the same calls is refused, also from another result") {
  const Tensor x = leaf({2}, {1, 2});
  const Tensor y = square(x);
  const Tensor loss = sum(y), other = mean(y);
  backward(loss);
  CHECK(mentions(error_of([&] { backward(loss); }), "already differentiated"));
  CHECK(mentions(error_of([&] { backward(other); }), "consumed"));
  CHECK(x.grad().to_vector() == Numbers{2, 4});
  clear_tape();
}

TEST_CASE("autograd: keep_tape allows several passes and keeps inner gradients") {
  const Tensor x = leaf({2}, {1, 2});
  const Tensor y = square(x);
  const Tensor loss = sum(scale(y, 3));
  {
    const keep_tape guard;
    backward(loss);
    CHECK(y.grad().to_vector() == Numbers{3, 3});
    CHECK(x.grad().to_vector() == Numbers{6, 12});
    backward(loss);
    CHECK(x.grad().to_vector() == Numbers{12, 24});
  }
  backward(loss);
  CHECK(x.grad().to_vector() == Numbers{18, 36});
  CHECK(error_of([&] { backward(loss); }) != "");
}

TEST_CASE("autograd: no_grad and detach cut the path") {
  const Tensor x = leaf({2}, {1, 2});
  {
    const no_grad guard;
    const Tensor y = square(x);
    CHECK(!y.wants_gradient());
    CHECK(tape_size() == 0);
    CHECK(mentions(error_of([&] { backward(sum(y)); }), "depends on no parameter"));
  }
  const Tensor y = multiply(square(x), detach(x));
  backward(sum(y));
  CHECK(x.grad().to_vector() == Numbers{2, 8});  // 2 x · x, x itself constant in the second factor
  CHECK(detach(x).to_vector() == Numbers{1, 2});
  CHECK(error_of([&] { backward(sum(detach(square(x)))); }) != "");
  clear_tape();
}

TEST_CASE("autograd: the gradient of a view is that view of the gradient, in any pattern of blocks") {
  // columns 0..5; blocks are used, unused, overlapping and reshaped in turn
  const Numbers values{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12};
  auto gradient = [&](auto&& loss) {
    const Tensor x = leaf({2, 6}, values);
    backward(loss(scale(x, 1)));
    return x.grad().to_vector();
  };
  SUBCASE("every block") {
    const Numbers g = gradient([](const Tensor& y) {
      const Tensors b = split(y, {1, 2, 3});
      return sum(b[0]) + sum(scale(b[1], 2)) + sum(scale(b[2], 3));
    });
    CHECK(g == Numbers{1, 2, 2, 3, 3, 3, 1, 2, 2, 3, 3, 3});
  }
  SUBCASE("a block that nothing uses") {
    const Numbers g = gradient([](const Tensor& y) {
      const Tensors b = split(y, {1, 2, 3});
      return sum(b[0]) + sum(scale(b[2], 3));
    });
    CHECK(g == Numbers{1, 0, 0, 3, 3, 3, 1, 0, 0, 3, 3, 3});
  }
  SUBCASE("one block used twice") {
    const Numbers g = gradient([](const Tensor& y) {
      const Tensors b = split(y, {2, 4});
      return sum(b[0]) + sum(square(b[0]));
    });
    CHECK(g == Numbers{3, 5, 0, 0, 0, 0, 15, 17, 0, 0, 0, 0});
  }
  SUBCASE("two splits that overlap") {
    const Numbers g = gradient([](const Tensor& y) {
      const Tensors a = split(y, {2, 4}), b = split(y, {3, 3});
      return sum(a[0]) + sum(scale(b[0], 10)) + sum(scale(a[1], 100));
    });
    CHECK(g == Numbers{11, 11, 110, 100, 100, 100, 11, 11, 110, 100, 100, 100});
  }
  SUBCASE("a block, then the whole") {
    const Numbers g = gradient([](const Tensor& y) { return sum(split(y, {2, 4})[0]) + sum(scale(y, 10)); });
    CHECK(g == Numbers{11, 11, 10, 10, 10, 10, 11, 11, 10, 10, 10, 10});
  }
  SUBCASE("the whole, then a block") {
    const Numbers g = gradient([](const Tensor& y) { return sum(scale(y, 10)) + sum(split(y, {2, 4})[0]); });
    CHECK(g == Numbers{11, 11, 10, 10, 10, 10, 11, 11, 10, 10, 10, 10});
  }
  SUBCASE("reshape of a block, and a block of a reshape") {
    const Numbers g = gradient([](const Tensor& y) {
      const Tensor heads = reshape(split(y, {2, 4})[1], {2, 2, 2});
      const Tensor r = reshape(y, {4, 3});
      return sum(scale(split(heads, {1, 1})[1], 5)) + sum(split(r, {1, 2})[0]);
    });
    CHECK(g == Numbers{1, 0, 0, 6, 0, 5, 1, 0, 0, 6, 0, 5});
  }
  SUBCASE("views of a parameter itself") {
    const Tensor x = leaf({2, 6}, values);
    const Tensors b = split(x, {2, 4});
    backward(sum(square(b[0])) + sum(reshape(x, {12})));
    CHECK(x.grad().to_vector() == Numbers{3, 5, 1, 1, 1, 1, 15, 17, 1, 1, 1, 1});
  }
  CHECK(tape_size() == 0);
}

TEST_CASE("autograd: blocks of a planned program get their gradients too") {
  const Tensor x = leaf({2, 6}, {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12});
  const Program program = record([&] {
    const Tensors b = split(square(x), {1, 2, 3});
    const Tensor loss = sum(square(b[2])) + sum(b[0]);
    backward(loss);
    return Tensors{loss};
  });
  Executor run(program, {.poison = true});
  run.run();
  const auto v = x.to_vector();
  const auto g = x.grad().to_vector();
  for (std::size_t i = 0; i < v.size(); ++i) {
    const double expected = i % 6 == 0 ? 2 * v[i] : i % 6 < 3 ? 0 : 4 * v[i] * v[i] * v[i];
    CHECK(g[i] == doctest::Approx(expected).epsilon(1e-14));
  }
}

TEST_CASE("autograd: backward refuses a tensor that was overwritten since it was used") {
  const Tensor s = state({2}, Dtype::f64, "s");
  s.copy_from({1, 2});
  const Tensor x = leaf({2}, {3, 4});
  const Tensor loss = sum(multiply(x, s));
  apply(add_to_state(), {}, {s, constant({2}, {1, 1}, Dtype::f64)});
  CHECK(s.to_vector() == Numbers{2, 3});
  const std::string message = error_of([&] { backward(loss); });
  CHECK(mentions(message, "overwritten"));
  CHECK(mentions(message, "multiply"));
  clear_tape();
  // an op that does not read the state in backward does not mind
  const Tensor sum_loss = sum(add(x, s));
  apply(add_to_state(), {}, {s, constant({2}, {1, 1}, Dtype::f64)});
  x.grad().fill(0);
  backward(sum_loss);
  CHECK(x.grad().to_vector() == Numbers{1, 1});
}

TEST_CASE("autograd: in-place changes are refused for activations and inputs") {
  const Tensor one = constant({2}, {1, 1}, Dtype::f64);
  CHECK(mentions(error_of([&] { apply(add_to_state(), {}, {input({2}, "x", Dtype::f64), one}); }), "would overwrite 'state'"));
  CHECK(error_of([&] { apply(add_to_state(), {}, {square(one), one}); }) != "");
  clear_tape();
}

TEST_CASE("autograd: a loop does not grow the tape") {
  const Tensor w = leaf({3}, {1, 2, 3}, "w");
  for (int i = 0; i < 50; ++i) {
    backward(sum(square(w)));
    CHECK(tape_size() == 0);
  }
  // evaluation without backward: results that nobody holds are forgotten
  for (int i = 0; i < 3000; ++i) sum(square(w));
  CHECK(tape_size() <= 512);
  // nothing is remembered of calls without a parameter
  clear_tape();
  const Tensor x = constant({3}, {1, 2, 3}, Dtype::f64);
  for (int i = 0; i < 100; ++i) sum(square(x));
  CHECK(tape_size() == 0);
}

TEST_CASE("autograd: a forgotten branch leaves the rest of the tape usable") {
  const Tensor w = leaf({1}, {2}, "w");
  const Tensor kept = square(w);
  for (int i = 0; i < 1000; ++i) sum(square(w));
  backward(sum(kept));
  CHECK(w.grad().to_vector() == Numbers{4});
  clear_tape();
}

TEST_CASE("autograd: backward through backward is refused") {
  const Tensor x = leaf({2}, {1, 2});
  backward(sum(square(x)));
  // the gradient is no function of x for the tape
  const std::string message = error_of([&] { backward(sum(square(x.grad()))); });
  CHECK(mentions(message, "gradients of gradients are not supported"));
  const Tensor y = square(x);
  {
    const keep_tape guard;
    backward(sum(y));
  }
  CHECK(error_of([&] { backward(sum(square(y.grad()))); }) != "");
  clear_tape();
}

TEST_CASE("autograd: values are refused while recording, and the tensor is named") {
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

TEST_CASE("autograd: a recorded program with backward runs again and again on new inputs") {
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

TEST_CASE("autograd: programs join into one list with their inputs merged") {
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

TEST_CASE("autograd: scopes name the entries, forward and backward") {
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
  CHECK(std::string(program.entries.front().where.file_name()).find("test_autograd") != std::string::npos);
}

TEST_CASE("autograd: an op defined outside works like a built-in one, and Expand::composed replaces it") {
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

TEST_CASE("autograd: the registry knows its ops, refuses doubles and offers the nearest name") {
  CHECK(test::all_ops().size() > 0);
  CHECK(&find_op("square") != nullptr);
  CHECK(mentions(error_of([] { find_op("sqare"); }), "'square'"));
  Op twice = find_op("square");
  CHECK(mentions(error_of([&] { register_op(twice); }), "exists already"));
  Op empty;
  empty.name = "test_empty";
  CHECK(error_of([&] { register_op(empty); }) != "");
}

TEST_CASE("autograd: flattened parameters and their gradients stay usable one by one") {
  const Tensor a = leaf({3}, {1, 2, 3}, "a"), b = leaf({2}, {4, 5}, "b");
  const Tensor weights = flatten_storage({a, b}, Role::parameter, "weights", 4);
  const Tensor gradients = flatten_storage({a.grad(), b.grad()}, Role::gradient, "gradients", 4);
  CHECK(weights.to_vector() == Numbers{1, 2, 3, 0, 4, 5, 0, 0});
  backward(sum(square(a)) + sum(scale(b, 7)));
  CHECK(gradients.to_vector() == Numbers{2, 4, 6, 0, 7, 7, 0, 0});
  weights.fill(9);
  CHECK(a.to_vector() == Numbers{9, 9, 9});
}

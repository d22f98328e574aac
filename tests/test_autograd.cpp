#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "core/executor.h"
#include "ops/elementwise.h"
#include "ops/reduce.h"
#include "ops/shape.h"
#include "tests/tape_cases.h"

using namespace hedgehog;
using namespace hedgehog::test;
using Numbers = std::vector<double>;

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

TEST_CASE("autograd: a pass that failed on the way leaves a tape that the next one can use") {
  const Tensor x = leaf({2}, {1, 2}), w = leaf({2}, {3, 4}, "w");
  const Tensor early = square(x), product = early * w, loss = sum(square(product));
  w.fill(5);
  CHECK(mentions(error_of([&] { backward(loss); }), "overwritten after it was used"));
  backward(sum(square(w)));
  CHECK(w.grad().to_vector() == Numbers{10, 10});
  clear_tape();
}

TEST_CASE("autograd: an update by an executor counts as an update") {
  const Tensor x = leaf({1}, {3}), memory = state({1}, Dtype::f64, "memory");
  Executor update(record([&] { return apply(add_to_state(), {}, {memory, x}); }));
  const Tensor loss = sum(multiply(memory, x));
  update.run();
  CHECK(memory.item() == 3);
  CHECK(mentions(error_of([&] { backward(loss); }), "overwritten after it was used"));
  clear_tape();
}

TEST_CASE("autograd: a bf16 loss starts from one, and empty tensors say so") {
  const Tensor w = leaf({}, {3}, "w");
  backward(cast(w, Dtype::bf16));
  CHECK(w.grad().item() == 1);
  const Tensor y = square(w);
  CHECK(mentions(error_of([&] { y.grad().item(); }), "no gradient was kept"));
  CHECK(mentions(error_of([&] { Executor run(record([&] { return Tensors{Tensor{}}; })); }), "[tensor] is empty"));
  clear_tape();
}

TEST_CASE("autograd: a cotangent whose rows are wider than the loss's") {
  const Tensor x = leaf({2, 2, 6}, std::vector<double>(24, 1));
  const Tensor loss = split(scale(x, 1), {2, 4})[0];  // (2, 2, 2), rows of 2 every 6
  std::vector<double> numbers(24);
  for (std::size_t i = 0; i < 24; ++i) numbers[i] = double(i);
  const Tensor cotangent = reshape(split(constant({2, 12}, numbers, Dtype::f64), {4, 8})[0], {2, 2, 2});  // rows of 4 every 12
  backward(loss, cotangent);
  const auto dx = x.grad().to_vector();
  CHECK(Numbers{dx[0], dx[1], dx[6], dx[7], dx[12], dx[13], dx[18], dx[19]} == Numbers{0, 1, 2, 3, 12, 13, 14, 15});
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

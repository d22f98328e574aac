#include <doctest/doctest.h>

#include <cmath>
#include <limits>

#include "ops/cpu.h"
#include "core/error.h"
#include "core/gradcheck.h"
#include "ops/elementwise.h"
#include "ops/matmul.h"
#include "ops/reduce.h"
#include "ops/shape.h"
#include "ops/softmax.h"

using namespace hedgehog;

namespace {

using Numbers = std::vector<double>;

Tensor make(Shape shape, const Numbers& values, Dtype dtype = Dtype::f64) { return constant(std::move(shape), values, dtype); }

/// A parameter holding 0.5, 1.5, -2.5, ...: distinct, away from 0, of both signs.
Tensor leaf(Shape shape, const char* name, Dtype dtype = Dtype::f64) {
  const Tensor p = parameter(shape, name, dtype);
  Numbers v(std::size_t(p.size()));
  for (std::size_t i = 0; i < v.size(); ++i) v[i] = std::sin(0.7 * double(i) + 0.3) + (i % 2 ? 0.2 : -0.1);
  p.copy_from(v);
  return p;
}

void check_numbers(const Tensor& y, const Shape& shape, const Numbers& expected) {
  CHECK(y.shape().text() == shape.text());
  const Numbers got = y.to_vector();
  REQUIRE(got.size() == expected.size());
  for (std::size_t i = 0; i < got.size(); ++i) {
    CAPTURE(i);
    // a handful of roundings of f64
    CHECK(got[i] == doctest::Approx(expected[i]).epsilon(1e-14));
  }
}

/// Runs a call that must be refused, and returns what it says.
template <class F>
std::string refusal(const F& call) {
  try {
    call();
  } catch (const ShapeError& e) {
    return e.what();
  }
  return "accepted";
}

void check_gradients(const std::function<Tensors(const Tensors&)>& function, const Tensors& parameters) {
  const GradcheckReport report = gradcheck(function, parameters);
  for (const GradcheckRow& row : report.rows) {
    CAPTURE(row.argument);
    CAPTURE(row.error);
    CHECK(row.passed);
  }
}

}  // namespace

TEST_CASE("primitives: arithmetic broadcasts as NumPy does") {
  const Tensor x = make({2, 3}, {1, 2, 3, 4, 5, 6}), row = make({3}, {10, 20, 30}), column = make({2, 1}, {2, -1});
  check_numbers(x + row, {2, 3}, {11, 22, 33, 14, 25, 36});
  check_numbers(x * column, {2, 3}, {2, 4, 6, -4, -5, -6});
  check_numbers(row - column, {2, 3}, {8, 18, 28, 11, 21, 31});
  check_numbers(x / make({}, {4}), {2, 3}, {0.25, 0.5, 0.75, 1, 1.25, 1.5});
  check_numbers(make({2, 1, 2}, {1, 2, 3, 4}) + make({3, 1}, {10, 20, 30}), {2, 3, 2},
                {11, 12, 21, 22, 31, 32, 13, 14, 23, 24, 33, 34});
}

TEST_CASE("primitives: operators with numbers") {
  const Tensor x = make({3}, {1, 2, 4});
  check_numbers(2.0 * x + 1.0, {3}, {3, 5, 9});
  check_numbers(1.0 + x * 0.5, {3}, {1.5, 2, 3});
  check_numbers(1.0 - x, {3}, {0, -1, -3});
  check_numbers(x - 1, {3}, {0, 1, 3});
  check_numbers(8.0 / x, {3}, {8, 4, 2});
  check_numbers(x / 4, {3}, {0.25, 0.5, 1});
  check_numbers(-x, {3}, {-1, -2, -4});
}

TEST_CASE("primitives: an operator is recorded with the line of its caller") {
  const Tensor x = parameter({2}, "x");
  const Program program = record([&] { return Tensors{x * x}; });
  REQUIRE(program.entries.size() == 1);
  CHECK(program.entries[0].where.line() == __LINE__ - 2);
  CHECK(std::string(program.entries[0].where.file_name()).find("test_primitives") != std::string::npos);
}

TEST_CASE("primitives: gradients are summed back to the argument's shape") {
  const Tensor x = leaf({2, 3}, "x"), row = leaf({3}, "row"), column = leaf({2, 1}, "column"), one = leaf({}, "one");
  backward(sum(x * row + column - one));
  const Numbers xs = x.to_vector(), rows = row.to_vector();
  check_numbers(x.grad(), {2, 3}, {rows[0], rows[1], rows[2], rows[0], rows[1], rows[2]});
  check_numbers(row.grad(), {3}, {xs[0] + xs[3], xs[1] + xs[4], xs[2] + xs[5]});
  check_numbers(column.grad(), {2, 1}, {3, 3});
  check_numbers(one.grad(), {}, {-6});
}

TEST_CASE("primitives: a tensor that is both arguments gets both gradients") {
  const Tensor x = leaf({3}, "x");
  backward(sum(multiply(x, x)));
  const Numbers v = x.to_vector();
  check_numbers(x.grad(), {3}, {2 * v[0], 2 * v[1], 2 * v[2]});
}

TEST_CASE("primitives: functions of one argument at known points") {
  check_numbers(exp(make({3}, {0, 1, -1})), {3}, {1, 2.718281828459045, 0.36787944117144233});
  check_numbers(log(make({2}, {1, 2})), {2}, {0, 0.6931471805599453});
  check_numbers(tanh(make({2}, {0, 1})), {2}, {0, 0.7615941559557649});
  check_numbers(sigmoid(make({2}, {0, 2})), {2}, {0.5, 0.8807970779778823});
  check_numbers(sqrt(square(make({2}, {-3, 5}))), {2}, {3, 5});
  check_numbers(reciprocal(make({2}, {4, -0.5})), {2}, {0.25, -2});
  check_numbers(relu(make({3}, {-1, 0, 2})), {3}, {0, 0, 2});
  check_numbers(gelu(make({3}, {0, 1, -1})), {3}, {0, 0.8411919906082768, -0.15880800939172324});
  check_numbers(silu(make({2}, {0, 2})), {2}, {0, 1.7615941559557646});
  check_numbers(elu_plus_one(make({3}, {1.5, 0, -1})), {3}, {2.5, 1, 0.36787944117144233});
  check_numbers(floor_at(make({3}, {1e-9, 0.5, -2}), 1e-6), {3}, {1e-6, 0.5, 1e-6});
}

TEST_CASE("primitives: slopes at the kinks") {
  const Tensor x = parameter({3}, "x", Dtype::f64);
  SUBCASE("relu is flat at 0") {
    backward(sum(relu(x)));
    check_numbers(x.grad(), {3}, {0, 0, 0});
  }
  SUBCASE("floor_at passes the gradient at its value") {
    backward(sum(floor_at(x, 0)));
    check_numbers(x.grad(), {3}, {1, 1, 1});
  }
  SUBCASE("elu_plus_one has slope 1 from both sides") {
    backward(sum(elu_plus_one(x)));
    check_numbers(x.grad(), {3}, {1, 1, 1});
  }
}

TEST_CASE("primitives: a NaN is not hidden") {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  for (const Dtype dtype : {Dtype::f32, Dtype::f64}) {
    const Tensor x = make({3}, {1, nan, 2}, dtype);
    for (const Tensor& y : {relu(x), floor_at(x, 0), elu_plus_one(x), exp(x), tanh(x), gelu(x), silu(x)}) CHECK(std::isnan(y.to_vector()[1]));
    CHECK(std::isnan(max(x, 0).item()));
    CHECK(std::isnan(max(make({3, 1}, {1, nan, 2}, dtype), 0).item()));
    CHECK(std::isnan(sum(x).item()));
    CHECK(std::isnan(softmax(x).to_vector()[0]));
  }
}

TEST_CASE("primitives: shapes refuse axes they lack and sizes beyond 64 bits") {
  CHECK(refusal([] { (void)input({5}, "x").shape()[-2]; }) == "[shape] (5) has 1 axes, so none is number -2");
  CHECK(refusal([] { Shape({std::int64_t(1) << 40, std::int64_t(1) << 40}); }).find("more than fit 64 bits") != std::string::npos);
  CHECK(refusal([] { reshape(input({0, 3}, "x"), {3, 0}); }).find("is empty") != std::string::npos);
}

TEST_CASE("primitives: masks") {
  check_numbers(causal_mask(make({3, 3}, {1, 2, 3, 4, 5, 6, 7, 8, 9}), 0), {3, 3}, {1, 0, 0, 4, 5, 0, 7, 8, 9});
  check_numbers(softmax(causal_mask(make({2, 2}, {5, 7, 3, 3}))), {2, 2}, {1, 0, 0.5, 0.5});
  const Tensor keep = make({2, 1}, {1, 0}, Dtype::i32);
  check_numbers(mask_fill(make({2, 2}, {1, 2, 3, 4}), keep, -9), {2, 2}, {1, 2, -9, -9});
}

TEST_CASE("primitives: reductions") {
  const Tensor x = make({2, 3}, {1, 2, 3, 4, 5, 6});
  check_numbers(sum(x), {}, {21});
  check_numbers(mean(x), {}, {3.5});
  check_numbers(sum(x, 0), {3}, {5, 7, 9});
  check_numbers(sum(x, -1, true), {2, 1}, {6, 15});
  check_numbers(mean(x, 1), {2}, {2, 5});
  check_numbers(max(x, 0), {3}, {4, 5, 6});
  check_numbers(max(x, 1, true), {2, 1}, {3, 6});
  check_numbers(logsumexp(make({2}, {1000, 1000})), {}, {1000 + std::log(2.0)});
  const double lowest = -std::numeric_limits<double>::infinity();
  CHECK(logsumexp(make({2}, {lowest, lowest})).item() == lowest);
  CHECK(logsumexp(make({2, 1}, {lowest, 3}), 0).item() == doctest::Approx(3));
}

TEST_CASE("primitives: of equal largest elements the first gets the gradient") {
  const Tensor x = parameter({2, 3}, "x", Dtype::f64);
  x.copy_from({1, 3, 3, 2, 2, 2});
  SUBCASE("last axis") {
    backward(sum(max(x, 1)));
    check_numbers(x.grad(), {2, 3}, {0, 1, 0, 1, 0, 0});
  }
  SUBCASE("first axis") {
    x.copy_from({1, 3, 3, 1, 2, 4});
    backward(sum(max(x, 0)));
    check_numbers(x.grad(), {2, 3}, {1, 1, 0, 0, 0, 1});
  }
}

TEST_CASE("primitives: f32 sums do not drift") {
  // 0.1f added a million times in f32 alone ends 1 % off; f64 partial sums leave one rounding of the result
  const std::int64_t n = 1'000'000;
  const Tensor x = allocate({n}, Dtype::f32), matrix = allocate({n / 4, 4}, Dtype::f32);
  x.fill(0.1);
  matrix.fill(0.1);
  const double exact = double(0.1f) * double(n);
  CHECK(std::abs(sum(x).item() - exact) <= exact * 0x1p-24);
  for (const double column : sum(matrix, 0).to_vector()) CHECK(std::abs(column - exact / 4) <= exact / 4 * 0x1p-24);
}

TEST_CASE("primitives: bits do not depend on the number of threads") {
  const Tensor x = leaf({300, 200}, "x", Dtype::f32), row = leaf({200}, "row", Dtype::f32), one = leaf({}, "one", Dtype::f32);
  const int before = thread_count();
  std::vector<Numbers> seen;
  for (const int threads : {1, 2, 3}) {
    set_thread_count(threads);
    for (const Tensor& p : {x, row, one}) p.grad().fill(0);
    const Tensor loss = sum(square(softmax(gelu(x) * row + one))) + logsumexp(reshape(permute(x, {1, 0}), {60000}));
    backward(loss);
    Numbers all = loss.to_vector();
    for (const Tensor& p : {x, row, one})
      for (const double g : p.grad().to_vector()) all.push_back(g);
    seen.push_back(all);
  }
  set_thread_count(before);
  CHECK(seen[0] == seen[1]);
  CHECK(seen[0] == seen[2]);
}

TEST_CASE("primitives: softmax and its logarithm") {
  check_numbers(softmax(make({2, 2}, {0, std::log(3.0), 1000, 1000})), {2, 2}, {0.25, 0.75, 0.5, 0.5});
  check_numbers(log_softmax(make({2}, {0, std::log(3.0)})), {2}, {std::log(0.25), std::log(0.75)});
  // a sum that the maximum would swallow in f32
  CHECK(log_softmax(make({2}, {1e8, 1e8}, Dtype::f32)).to_vector()[0] == doctest::Approx(-std::log(2.0)));
}

TEST_CASE("primitives: matrix product") {
  const Tensor a = make({2, 3}, {1, 2, 3, 4, 5, 6}), b = make({3, 2}, {1, 0, 0, 1, 1, 1});
  check_numbers(matmul(a, b), {2, 2}, {4, 5, 10, 11});
  check_numbers(matmul(a, a, false, true), {2, 2}, {14, 32, 32, 77});
  check_numbers(matmul(a, a, true), {3, 3}, {17, 22, 27, 22, 29, 36, 27, 36, 45});
  check_numbers(matmul(a, b, true, true), {3, 3}, {1, 4, 5, 2, 5, 7, 3, 6, 9});
  check_numbers(matmul(reshape(a, {2, 1, 3}), b), {2, 1, 2}, {4, 5, 10, 11});
  check_numbers(matmul(make({2, 1, 2}, {1, 2, 3, 4}), make({2, 2, 1}, {1, 1, 1, -1})), {2, 1, 1}, {3, -1});
}

TEST_CASE("primitives: elements in another order") {
  const Tensor x = make({2, 3}, {1, 2, 3, 4, 5, 6});
  check_numbers(permute(x, {1, 0}), {3, 2}, {1, 4, 2, 5, 3, 6});
  check_numbers(permute(reshape(x, {1, 2, 3}), {2, 0, 1}), {3, 1, 2}, {1, 4, 2, 5, 3, 6});
  check_numbers(concat({x, make({2, 1}, {7, 8})}), {2, 4}, {1, 2, 3, 7, 4, 5, 6, 8});
  check_numbers(concat({x, make({1, 3}, {7, 8, 9})}, 0), {3, 3}, {1, 2, 3, 4, 5, 6, 7, 8, 9});
  check_numbers(concat(Tensors(17, make({1}, {2})), 0), {17}, Numbers(17, 2));
  check_numbers(repeat_heads(make({1, 2, 2}, {1, 2, 3, 4}), 2), {1, 4, 2}, {1, 2, 1, 2, 3, 4, 3, 4});
  CHECK(permute(make({2, 2}, {1, 2, 3, 4}, Dtype::i32), {1, 0}).dtype() == Dtype::i32);
}

TEST_CASE("primitives: a transposition larger than a block") {
  const Tensor x = allocate({67, 45}, Dtype::f32);
  Numbers v(67 * 45);
  for (std::size_t i = 0; i < v.size(); ++i) v[i] = double(i);
  x.copy_from(v);
  const Numbers y = permute(x, {1, 0}).to_vector();
  bool equal = true;
  for (int r = 0; r < 67; ++r)
    for (int c = 0; c < 45; ++c) equal &= y[std::size_t(c * 67 + r)] == v[std::size_t(r * 45 + c)];
  CHECK(equal);
}

TEST_CASE("primitives: reshape and split are views") {
  const Tensor x = make({2, 3, 4}, [] {
    Numbers v(24);
    for (int i = 0; i < 24; ++i) v[std::size_t(i)] = i;
    return v;
  }());
  const Tensor folded = reshape(x, {6, 4});
  CHECK(folded.data() == x.data());
  CHECK(folded.root() == x);
  const Tensors columns = split(folded, {1, 3});
  CHECK(columns[1].as<double>() == x.as<double>() + 1);
  CHECK_FALSE(columns[1].contiguous());
  check_numbers(columns[1], {6, 3}, {1, 2, 3, 5, 6, 7, 9, 10, 11, 13, 14, 15, 17, 18, 19, 21, 22, 23});
  SUBCASE("rows stay whole in another shape") {
    const Tensor again = reshape(columns[1], {2, 3, 3, 1});
    CHECK(again.root() == x);
    check_numbers(again, {2, 3, 3, 1}, columns[1].to_vector());
  }
  SUBCASE("a shape that cuts rows is made from a copy") {
    const Tensor copy = reshape(columns[1], {9, 2});
    CHECK_FALSE(copy.root() == x);
    check_numbers(copy, {9, 2}, columns[1].to_vector());
  }
  SUBCASE("parts of a part") {
    const Tensors inner = split(columns[1], {2, 1});
    CHECK(inner[1].root() == x);
    check_numbers(inner[1], {6, 1}, {3, 7, 11, 15, 19, 23});
  }
  SUBCASE("parts of the first axis are contiguous") {
    const Tensors halves = split(x, {1, 1}, 0);
    CHECK(halves[1].root() == x);
    CHECK(halves[1].contiguous());
    check_numbers(split(halves[1], {1, 2}, 1)[1], {1, 2, 4}, {16, 17, 18, 19, 20, 21, 22, 23});
    check_numbers(split(halves[1], {3, 1}, 2)[1], {1, 3, 1}, {15, 19, 23});
  }
  SUBCASE("rows of a part are copied") { check_numbers(split(columns[0], {5, 1}, 0)[1], {1, 1}, {20}); }
}

TEST_CASE("primitives: gradients through views") {
  const Tensor x = leaf({3, 2, 6}, "x"), w = leaf({3, 2, 2}, "w");
  SUBCASE("packed columns, some used twice, some not at all") {
    check_gradients(
        [](const Tensors& p) {
          const Tensors parts = split(tanh(p[0]), {2, 3, 1});
          return Tensors{parts[0] * p[1] + square(parts[0]), parts[2]};
        },
        {x, w});
  }
  SUBCASE("heads of a part") {
    check_gradients(
        [](const Tensors& p) {
          const Tensors parts = split(tanh(reshape(p[0], {6, 6})), {4, 2});
          const Tensor heads = permute(reshape(parts[0], {3, 2, 2, 2}), {0, 2, 1, 3});
          return Tensors{repeat_heads(heads, 3), sum(reshape(parts[1], {3, 2, 2}), 1), concat({parts[1], parts[0]}, 0 - 1)};
        },
        {x});
  }
  SUBCASE("parts of the first axis, cut again") {
    check_gradients(
        [](const Tensors& p) {
          const Tensors parts = split(exp(p[0]), {1, 2}, 0);
          const Tensors cut = split(parts[1], {1, 5});
          return Tensors{square(parts[0]), softmax(cut[1]), mean(cut[0])};
        },
        {x});
  }
  SUBCASE("two different cuts of one tensor") {
    check_gradients(
        [](const Tensors& p) {
          const Tensor y = tanh(p[0]);
          return Tensors{square(split(y, {2, 4})[1]), exp(split(y, {2, 1}, 0)[0]), y};
        },
        {x});
  }
  SUBCASE("columns of a parameter") {
    check_gradients(
        [](const Tensors& p) {
          const Tensors parts = split(p[0], {2, 4});
          return Tensors{parts[0] / (square(p[1]) + 1.0), silu(parts[1]), max(parts[1], 0), logsumexp(parts[0], 1)};
        },
        {x, w});
  }
  SUBCASE("masked part") {
    check_gradients(
        [](const Tensors& p) {
          const Tensor keep = constant({2, 1}, {1, 0}, Dtype::i32);
          return Tensors{mask_fill(split(tanh(p[0]), {2, 4})[1], keep, 3)};
        },
        {x});
  }
}

TEST_CASE("primitives: cast") {
  const Tensor x = parameter({3}, "x");
  x.copy_from({1, 1 + 0x1p-8, -2.5});
  CHECK(cast(x, Dtype::f32) == x);
  const Tensor low = cast(x, Dtype::bf16);
  CHECK(low.dtype() == Dtype::bf16);
  // a tie goes to the even mantissa
  CHECK(low.to_vector() == Numbers{1, 1, -2.5});
  backward(sum(square(cast(cast(x, Dtype::bf16), Dtype::f64))));
  CHECK(x.grad().to_vector() == Numbers{2, 2, -5});
  CHECK(cast(constant({2}, {3, -4}, Dtype::i32), Dtype::f32).to_vector() == Numbers{3, -4});
}

TEST_CASE("primitives: refusals say what to do") {
  const Tensor x = make({4, 3}, Numbers(12, 1)), f32 = make({4, 3}, Numbers(12, 1), Dtype::f32);
  CHECK(refusal([&] { add(x, make({2}, {1, 2})); }) ==
        "[add] a (4, 3) and b (2) do not broadcast: axis -1 has 3 against 2; make the extents equal, or one of them 1");
  CHECK(refusal([&] { multiply(x, f32); }) == "[multiply] a and b must have one dtype of f32, f64 and bf16, but are f64 and f32; use cast first");
  CHECK(refusal([&] { exp(make({1}, {1}, Dtype::i32)); }) == "[exp] x must be f32, f64 or bf16, but is i32; use cast first");
  CHECK(refusal([&] { causal_mask(x); }) ==
        "[causal_mask] scores must have shape (..., T, T), but has (4, 3); give one score a query and key");
  CHECK(refusal([&] { mask_fill(x, make({4}, Numbers(4, 1), Dtype::i32), 0); }) ==
        "[mask_fill] mask must broadcast to x (4, 3), but has (4); each of its extents must be that of x, or 1");
  CHECK(refusal([&] { sum(x, 2); }) == "[sum] axis must be in [-2, 2) for x (4, 3), but is 2; give an axis that x has");
  CHECK(refusal([&] { max(x, -3); }) == "[max] axis must be in [-2, 2) for x (4, 3), but is -3; give an axis that x has");
  CHECK(refusal([&] { reshape(x, {5, 2}); }) ==
        "[reshape] shape (5, 2) has 10 elements, but x (4, 3) has 12; give a shape with as many elements");
  CHECK(refusal([&] { split(x, {1, 1}); }) ==
        "[split] sizes 1,1 must sum to the extent 3 of axis 1 of x (4, 3), but sum to 2; give the size of every part");
  CHECK(refusal([&] { split(x, {3, 0}); }) == "[split] sizes must be at least 1, but are 3,0; leave empty parts out");
  CHECK(refusal([&] { concat({x, make({4}, Numbers(4, 1))}); }) ==
        "[concat] part 1 must be like part 0 (4, 3) f64 but for axis 1, but is (4) f64; make dtypes and other extents equal");
  CHECK(refusal([&] { concat({}); }) == "[concat] parts must hold at least one tensor, but is empty; give the tensors to join");
  CHECK(refusal([&] { permute(x, {0, 0}); }) ==
        "[permute] order must name each of the 2 axes of x (4, 3) once, but is 0,0; for two axes write 1,0");
  CHECK(refusal([&] { repeat_heads(x, 0); }) == "[repeat_heads] times must be at least 1, but is 0; give heads / key-value heads");
  CHECK(refusal([&] { cast(x, Dtype::i32); }).rfind("[cast] dtype must be f32, f64 or bf16, but is 'i32'", 0) == 0);
  CHECK(refusal([&] { matmul(x, x); }) ==
        "[matmul] the inner extents of a (4, 3) and b (4, 3) must agree, but are 3 and 4; check the order of the arguments and the "
        "transpose flags");
  CHECK(refusal([&] { matmul(reshape(x, {2, 2, 3}), reshape(x, {4, 3, 1})); }) ==
        "[matmul] b must have the leading axes of a (2, 2, 3), or two axes alone, but is (4, 3, 1); reshape or repeat it");
  CHECK(refusal([&] { softmax(make({}, {1})); }) == "[softmax] x must have shape (..., C), but has (); reshape it to (1)");
}

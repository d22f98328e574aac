#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "ops/ops.h"
#include "tests/op_cases.h"
#include "tests/temporary_directory.h"

using namespace hedgehog;
using namespace hedgehog::test;

namespace {

Tensor drawn(const Shape& shape, std::uint32_t id, double scale = 1) {
  const Tensor x = parameter(shape, "x", Dtype::f64);
  std::vector<double> values = draw(x.size(), 7, id);
  for (double& v : values) v *= scale;
  x.copy_from(values);
  return x;
}

/// Gradient of the mean loss to the logarithms of features, and the rows of loss and entropy.
struct Outcome {
  std::vector<double> loss, entropy, dq, dk;
};
Outcome run(const Tensor& q, const Tensor& k, const Tensor& features_q, const Tensor& features_k) {
  const AttentionCrossEntropyResult y = attention_cross_entropy(q, k, features_q, features_k);
  backward(mean(reshape(y.loss, {1, y.loss.size()}), 1));
  return {y.loss.to_vector(), y.entropy.to_vector(), features_q.grad().to_vector(), features_k.grad().to_vector()};
}

double distance(const std::vector<double>& a, const std::vector<double>& b) { return rms(difference(a, b)) / rms(b); }

}  // namespace

TEST_CASE("attention_cross_entropy: the first row of causal attention sees itself alone and costs nothing") {
  const Tensor q = drawn({1, 1, 2, 3}, 1), k = drawn({1, 1, 2, 3}, 2), a = drawn({1, 1, 2, 4}, 3), b = drawn({1, 1, 2, 4}, 4);
  const Outcome y = run(q, k, a, b);
  CHECK(largest(y.loss) <= 1e-15);
  CHECK(largest(y.entropy) <= 1e-15);
  CHECK(largest(y.dq) <= 1e-15);
  CHECK(largest(y.dk) <= 1e-15);
}

TEST_CASE("attention_cross_entropy: a student with the teacher's weights has its entropy as loss, and no gradient") {
  // one feature whose logarithm is the score of a key: a = p for keys in a space of one dimension and queries of one
  const std::int64_t T = 9;
  const Tensor k = drawn({1, T, 1, 1}, 2), one = parameter({1, T, 1, 1}, "q", Dtype::f64), zero = parameter({1, T, 1, 1}, "zero", Dtype::f64);
  one.fill(1);
  zero.fill(0);
  const Tensor log_k = parameter({1, T, 1, 1}, "log_k", Dtype::f64);
  log_k.copy_from(k.to_vector());
  const Outcome y = run(one, k, zero, log_k);
  for (std::size_t i = 0; i < y.loss.size(); ++i) CHECK(std::abs(y.loss[i] - y.entropy[i]) <= 1e-14);
  CHECK(largest(y.dk) <= 1e-15);
  CHECK(largest(y.dq) <= 1e-15);
}

TEST_CASE("attention_cross_entropy: by hand for two tokens") {
  // teacher's second row: scores 0 and ln 3, p = 1/4, 3/4; student's: A = 1 and 1, a = 1/2, 1/2
  const Tensor q = parameter({1, 2, 1, 1}, "q", Dtype::f64), k = parameter({1, 2, 1, 1}, "k", Dtype::f64);
  const Tensor a = parameter({1, 2, 1, 1}, "a", Dtype::f64), b = parameter({1, 2, 1, 1}, "b", Dtype::f64);
  q.fill(1);
  k.copy_from(std::vector<double>{0, std::log(3.0)});
  a.fill(0);
  b.fill(0);
  const Outcome y = run(q, k, a, b);
  CHECK(y.loss[1] == doctest::Approx(std::log(2.0)).epsilon(1e-14));
  CHECK(y.entropy[1] == doctest::Approx(std::log(4.0) - 0.75 * std::log(3.0)).epsilon(1e-14));
  // the mean of two rows: (a - p) / 2 for either key
  CHECK(y.dk[0] == doctest::Approx(0.125).epsilon(1e-14));
  CHECK(y.dk[1] == doctest::Approx(-0.125).epsilon(1e-14));
}

TEST_CASE("attention_cross_entropy: shifting a feature of queries up and of keys down changes nothing, however far") {
  const Shape shape{2, 70, 2, 6};
  const Tensor q = drawn({2, 70, 2, 4}, 1), k = drawn({2, 70, 2, 4}, 2), a = drawn(shape, 3), b = drawn(shape, 4);
  const Outcome right = run(q, k, a, b);
  for (const double shift : {50.0, 400.0}) {
    CAPTURE(shift);
    const auto moved = [&](const Tensor& x, double by) {
      std::vector<double> values = x.to_vector();
      for (std::size_t i = 0; i < values.size(); ++i) values[i] += i % 6 == 1 ? by : i % 6 == 4 ? -by : 0;
      const Tensor y = parameter(shape, "moved", Dtype::f64);
      y.copy_from(values);
      return y;
    };
    const Outcome y = run(q, k, moved(a, shift), moved(b, -shift));
    // the numbers given are rounded at their size
    const double tolerance = 8 * shift * 0x1p-53;
    CHECK(distance(y.loss, right.loss) <= tolerance);
    CHECK(distance(y.dq, right.dq) <= tolerance);
    CHECK(distance(y.dk, right.dk) <= tolerance);
  }
}

TEST_CASE("attention_cross_entropy: wrong arguments are refused with what was expected") {
  const Tensor q = input({2, 5, 4, 3}, "q"), k = input({2, 5, 2, 3}, "k"), x = input({2, 5, 4, 6}, "x");
  CHECK(message_of<ShapeError>([&] { attention_cross_entropy(q, k, x, x); }) == "");
  CHECK(message_of<ShapeError>([&] { attention_cross_entropy(k, q, x, x); }).find("multiple of the key heads") != std::string::npos);
  CHECK(message_of<ShapeError>([&] { attention_cross_entropy(q, k, x, input({2, 5, 2, 6}, "y")); }).find("features_k must have shape (B, T, Hq, F)") !=
        std::string::npos);
  CHECK(message_of<ShapeError>([&] { attention_cross_entropy(q, k, x, input({2, 5, 4, 7}, "y")); }).find("(2, 5, 4, 6)") != std::string::npos);
  CHECK(message_of<ShapeError>([&] { attention_cross_entropy(q, k, x, x, {.scale = -1}); }).find("scale must be positive") != std::string::npos);
  CHECK(message_of<ShapeError>([&] { attention_cross_entropy(q, k, x, x, {.mask = input({2, 5}, "mask")}); }).find("mask must be i32") != std::string::npos);
}

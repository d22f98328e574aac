#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/error.h"
#include "ops/ops.h"
#include "tests/temporary_directory.h"

using namespace hedgehog;

TEST_CASE("mlp: errors are sentences that name the argument") {
  const Tensor x = input({4, 3}, "x"), weight_1 = input({3, 5}, "weight_1"), weight_2 = input({5, 2}, "weight_2");
  CHECK(message_of<ShapeError>([&] { mlp(x, weight_2, weight_2); }) == "[mlp] weight_1 must be (K, N) with K = 3 to match x (4, 3), but is (5, 2)");
  CHECK(message_of<ShapeError>([&] { mlp(x, weight_1, weight_1); }) == "[mlp] weight_2 must be (N, M) with N = 5 to match weight_1 (3, 5), but is (3, 5)");
  CHECK(message_of<ShapeError>([&] { mlp(x, weight_1, weight_2, {}, {}, x); }) ==
        "[mlp] addend must have shape (..., M) = (4, 2) to match x (4, 3), but has (4, 3)");
  CHECK(message_of<ShapeError>([&] { mlp(x, weight_1, weight_2, {}, {}, {}, "none"); }) ==
        "[mlp] activation must be gelu, gelu_erf, silu or relu, but is 'none'; two layers without one are a single linear");
  CHECK(message_of<ShapeError>([&] { mlp(x, weight_1, weight_2, {}, {}, {}, "selu"); }) ==
        "[mlp] activation must be gelu, gelu_erf, silu or relu, but is 'selu'");
}

TEST_CASE("gelu_erf: known points in f64, alone and behind a linear layer, and a NaN is not hidden") {
  const std::vector<double> at{-3, -1, 0, 0.5, 1, 2};
  const std::vector<double> known{-0.004049694094890287, -0.15865525393145707, 0, 0.34573123063700656, 0.8413447460685429, 1.9544997361036416};
  const Tensor x = constant({6, 1}, at, Dtype::f64), one = constant({1, 1}, {1}, Dtype::f64);
  const std::vector<double> alone = gelu_erf(x).to_vector(), behind = linear(x, one, {}, {}, "gelu_erf").to_vector();
  for (std::size_t i = 0; i < at.size(); ++i) {
    CHECK(std::abs(alone[i] - known[i]) <= 1e-15);
    CHECK(std::abs(behind[i] - known[i]) <= 1e-15);
  }
  for (const Dtype dtype : {Dtype::f32, Dtype::f64})
    CHECK(std::isnan(gelu_erf(constant({2}, {1, std::numeric_limits<double>::quiet_NaN()}, dtype)).to_vector()[1]));
}

TEST_CASE("gelu_erf: in f32 it is within 4e-7 of the larger of its argument and 1") {
  std::vector<double> at;
  for (int i = -15000; i <= 15000; ++i) at.push_back(i / 1000.0);
  const std::vector<double> found = gelu_erf(constant({30001}, at, Dtype::f32)).to_vector();
  double most = 0;
  for (std::size_t i = 0; i < at.size(); ++i) {
    const double x = float(at[i]);
    most = std::max(most, std::abs(found[i] - x * std::erfc(-x / std::sqrt(2)) / 2) / std::max(std::abs(x), 1.0));
  }
  CHECK(most <= 4e-7);  // ops/normal.h
}

#include <doctest/doctest.h>

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
  CHECK(message_of<ShapeError>([&] { mlp(x, weight_1, weight_2, {}, {}, {}, "selu"); }) == "[mlp] activation must be gelu, gelu_erf, silu or relu, but is 'selu'");
}

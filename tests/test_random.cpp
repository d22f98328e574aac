#include <doctest/doctest.h>

#include <cmath>

#include "core/random.h"

using namespace hedgehog;

TEST_CASE("random: Philox 4x32-10 gives the known answers of Random123") {
  using Words = std::array<std::uint32_t, 4>;
  CHECK(philox({0, 0, 0, 0}, {0, 0}) == Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  CHECK(philox({~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}) == Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
  CHECK(philox({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}) ==
        Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
}

TEST_CASE("random: an element depends on seed, id, step and index alone") {
  const Random a{7, 3, 2};
  CHECK(a.word(1000003) == Random{7, 3, 2}.word(1000003));
  CHECK(a.word(5) != Random{8, 3, 2}.word(5));
  CHECK(a.word(5) != Random{7, 4, 2}.word(5));
  CHECK(a.word(5) != Random{7, 3, 1}.word(5));
  CHECK(a.word(5) != a.word(6));
  // the index is 64 bits wide, and so is the seed
  CHECK(a.word(5) != a.word(5 + (std::uint64_t(4) << 32)));
  CHECK(a.word(5) != Random{7 + (std::uint64_t(1) << 32), 3, 2}.word(5));
}

TEST_CASE("random: uniform lies in [0, 1), below in [0, n), with the right moments") {
  constexpr int n = 200000;
  const Random random{11, 1, 0};
  double sum = 0, square = 0;
  int counts[7] = {};
  for (int i = 0; i < n; ++i) {
    const float u = random.uniform(std::uint64_t(i));
    REQUIRE(u >= 0.0f);
    REQUIRE(u < 1.0f);
    sum += u;
    square += double(u) * u;
    const std::uint32_t k = random.below(std::uint64_t(i), 7);
    REQUIRE(k < 7);
    ++counts[k];
  }
  // five standard deviations of the estimates: sqrt(1/12/n), sqrt(4/45/n), sqrt(n·6/49)
  CHECK(std::abs(sum / n - 0.5) < 5 * std::sqrt(1.0 / 12 / n));
  CHECK(std::abs(square / n - 1.0 / 3) < 5 * std::sqrt(4.0 / 45 / n));
  for (int count : counts) CHECK(std::abs(count - n / 7.0) < 5 * std::sqrt(n * 6.0 / 49));
}

TEST_CASE("random: normal deviates have the moments of the standard normal, and neighbours are independent") {
  constexpr int n = 200000;
  const Random random{5, 2, 1};
  double moment[5] = {}, product = 0, previous = 0;
  for (int i = 0; i < n; ++i) {
    const double z = random.normal(std::uint64_t(i));
    REQUIRE(std::isfinite(z));
    for (int k = 1; k <= 4; ++k) moment[k] += std::pow(z, k) / n;
    product += z * previous / n;
    previous = z;
  }
  // five standard deviations: the variances of z, z², z³, z⁴ are 1, 2, 15, 96
  CHECK(std::abs(moment[1]) < 5 * std::sqrt(1.0 / n));
  CHECK(std::abs(moment[2] - 1) < 5 * std::sqrt(2.0 / n));
  CHECK(std::abs(moment[3]) < 5 * std::sqrt(15.0 / n));
  CHECK(std::abs(moment[4] - 3) < 5 * std::sqrt(96.0 / n));
  CHECK(std::abs(product) < 5 * std::sqrt(1.0 / n));
}

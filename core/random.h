#pragma once
#include <array>
#include <cmath>
#include <cstdint>

namespace hedgehog {

/// constexpr lets device code call these functions: the same lines make the numbers on CPU and GPU.
///
/// Philox4x32-10: four random 32-bit words from a 128-bit counter and a 64-bit key; the same bits on every machine.
/// Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
constexpr std::array<std::uint32_t, 4> philox(std::array<std::uint32_t, 4> counter, std::array<std::uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t a = std::uint64_t(0xD2511F53u) * counter[0], b = std::uint64_t(0xCD9E8D57u) * counter[2];
    counter = {std::uint32_t(b >> 32) ^ counter[1] ^ key[0], std::uint32_t(b), std::uint32_t(a >> 32) ^ counter[3] ^ key[1],
               std::uint32_t(a)};
    key = {key[0] + 0x9E3779B9u, key[1] + 0xBB67AE85u};
  }
  return counter;
}

/// A stream of draws named by (seed, id, step); element `index` of it depends on nothing else.
struct Random {
  std::uint64_t seed = 0;
  std::uint32_t id = 0;    // which call or tensor
  std::uint32_t step = 0;  // which training step

  constexpr std::array<std::uint32_t, 4> words(std::uint64_t block) const {
    return philox({std::uint32_t(block), std::uint32_t(block >> 32), id, step}, {std::uint32_t(seed), std::uint32_t(seed >> 32)});
  }
  constexpr std::uint32_t word(std::uint64_t index) const { return words(index / 4)[index % 4]; }
  /// Uniform in [0, 1) with 24 random bits.
  constexpr float uniform(std::uint64_t index) const { return float(word(index) >> 8) * 0x1p-24f; }
  /// Uniform integer in [0, n), by multiply and shift.
  constexpr std::uint32_t below(std::uint64_t index, std::uint32_t n) const { return std::uint32_t((std::uint64_t(word(index)) * n) >> 32); }
  /// Standard normal by Box and Muller, two elements from two words.
  double normal(std::uint64_t index) const {
    const auto w = words(index / 2);
    const double u = (double(w[0]) + 1.0) * 0x1p-32, v = double(w[1]) * 0x1p-32;
    const double radius = std::sqrt(-2.0 * std::log(u)), angle = 6.283185307179586 * v;
    return radius * (index % 2 ? std::sin(angle) : std::cos(angle));
  }
};

}  // namespace hedgehog

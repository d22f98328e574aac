#pragma once
#include <bit>
#include <cstdint>
#include <string>

namespace hedgehog {

/// Element types. Sums, normalisers and running states are kept in f32, or in f64 for f64 inputs.
enum class Dtype : std::uint8_t { f32, f64, bf16, i32 };

/// bfloat16: the upper half of an f32, rounded to nearest even.
struct BFloat16 {
  std::uint16_t bits = 0;
  BFloat16() = default;
  explicit BFloat16(float x) {
    const auto u = std::bit_cast<std::uint32_t>(x);
    const bool is_nan = (u & 0x7fffffffu) > 0x7f800000u;
    bits = is_nan ? std::uint16_t((u >> 16) | 0x40u) : std::uint16_t((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
  }
  explicit operator float() const { return std::bit_cast<float>(std::uint32_t(bits) << 16); }
};

constexpr std::int64_t size_of(Dtype d) {
  return d == Dtype::f64 ? 8 : d == Dtype::bf16 ? 2 : 4;
}
constexpr const char* name_of(Dtype d) {
  return d == Dtype::f32 ? "f32" : d == Dtype::f64 ? "f64" : d == Dtype::bf16 ? "bf16" : "i32";
}
constexpr bool is_floating(Dtype d) { return d != Dtype::i32; }
/// Of sums, statistics, normalisers, running states and losses over elements of dtype d.
constexpr Dtype accumulator_of(Dtype d) { return d == Dtype::bf16 ? Dtype::f32 : d; }

}  // namespace hedgehog

#pragma once
#include <bit>
#include <cmath>
#include <concepts>
#include <cstdint>

namespace hedgehog {

// constexpr lets device code call these functions; the f64 branches are templates because only a template may be constexpr
// and call a function of <cmath>.

/// exp(x), written so that a loop over it vectorises: no branch, no call (a call left standing
/// would keep the loop scalar, so these are always inlined). f32: within 2 ulp, exact limits
/// (0 below about -104, inf above 88.73, NaN stays NaN). f64: std::exp.
[[gnu::always_inline]] constexpr float vector_exp(float x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to the nearest integer
  float c = x < -104.0f ? -104.0f : x;
  c = c > 89.0f ? 89.0f : c;
  const float n = (c * 1.44269504f + kRound) - kRound;
  const float r = (c - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  // two factors, so that the ends of the range neither overflow nor flush early
  const std::int32_t i = std::int32_t(n), half = i / 2;
  const float a = std::bit_cast<float>((half + 127) << 23), b = std::bit_cast<float>((i - half + 127) << 23);
  return x != x ? x : p * a * b;
}
template <std::same_as<double> T>
[[gnu::always_inline]] constexpr T vector_exp(T x) {
  return std::exp(x);
}

/// tanh(x); in f32 by way of exp, and vectorises.
template <class T>
[[gnu::always_inline]] constexpr T vector_tanh(T x) {
  if constexpr (sizeof(T) == 8) return std::tanh(x);
  // tanh is 1 in f32 beyond 10
  const T clamped = x < T(-10) ? T(-10) : (x > T(10) ? T(10) : x);
  const T square = clamped * clamped;
  // near 0 the difference e - 1 cancels: use the series there
  const T series = clamped * (T(1) + square * (T(-1) / T(3) + square * (T(2) / T(15) - square * (T(17) / T(315)))));
  const T e = vector_exp(T(2) * clamped);
  const T ratio = (e - T(1)) / (e + T(1));
  const T y = square < T(0.0225) ? series : ratio;
  return x != x ? x : y;
}

/// 1 / (1 + exp(-x)); vectorises. f32: within 3 ulp, but below -87 it stays at exp(-87) = 1.6e-38: then one power of two
/// is enough, and this costs much less than by way of vector_exp. f64: by std::exp.
[[gnu::always_inline]] constexpr float vector_sigmoid(float x) {
  constexpr float kRound = 12582912.0f;  // as above
  float c = x < -87.0f ? -87.0f : x;     // NaN stays NaN
  c = c > 87.0f ? 87.0f : c;
  const float shifted = c * -1.44269504f + kRound, n = shifted - kRound;
  const float r = (-c - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  // the low bits of `shifted` are n, in two's complement
  const float power = std::bit_cast<float>((std::bit_cast<std::uint32_t>(shifted) << 23) + (127u << 23));
  return 1.0f / (1.0f + p * power);
}
template <std::same_as<double> T>
[[gnu::always_inline]] constexpr T vector_sigmoid(T x) {
  return 1 / (1 + std::exp(-x));
}

}  // namespace hedgehog

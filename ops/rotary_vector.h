#pragma once
#include <cstdint>

/// The CPU's rotation of one vector, for the ops that rotate. T is float or double.
namespace hedgehog {

/// y (+)= x turned by sign * angle, one vector of D features. In place is fine: a pair is read before it is written.
template <bool kPairs, bool kAdd, class T>
void turn_vector(const T* x, const T* cosines, const T* sines, T sign, T* y, std::int64_t half) {
#pragma omp simd
  for (std::int64_t i = 0; i < half; ++i) {
    const std::int64_t first = kPairs ? 2 * i : i, second = kPairs ? 2 * i + 1 : half + i;
    const T a = x[first], b = x[second], sine = sign * sines[i];
    const T ya = a * cosines[i] - b * sine, yb = b * cosines[i] + a * sine;
    y[first] = kAdd ? y[first] + ya : ya;
    y[second] = kAdd ? y[second] + yb : yb;
  }
}

}  // namespace hedgehog

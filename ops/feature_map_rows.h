#pragma once
#include <cmath>
#include <cstdint>
#include <string>

#include "ops/math.h"

namespace hedgehog {

/// Feature maps by name, as the command line, attributes and checkpoints spell them.
enum class MapKind : std::uint8_t { hedgehog, hedgehog_softmax, hedgehog_joint, elu, relu, exp, identity };

/// Smallest feature of the maps that can vanish.
constexpr double kReluFloor = 1e-6, kEluFloor = 1e-12;

struct FeatureMap {
  MapKind kind = MapKind::hedgehog;
  double temperature = 1;

  /// Features come in two halves, for u and for -u.
  constexpr bool two_halves() const { return kind <= MapKind::hedgehog_joint; }
  /// ln(phi) is a smooth function of u: attention works with it instead of phi.
  constexpr bool logarithmic() const { return two_halves() || kind == MapKind::exp; }
  /// Features divided by their sum: backward reads phi.
  constexpr bool normalised() const { return kind == MapKind::hedgehog_softmax || kind == MapKind::hedgehog_joint; }
  constexpr std::int64_t features(std::int64_t width) const { return two_halves() ? 2 * width : width; }
};


class Attributes;
/// Reads the attributes "map" and "temperature"; throws ShapeError in the name of `op`.
FeatureMap feature_map_of(const char* op, const Attributes& attributes);

namespace rows {

template <class T>
T max_of(const T* __restrict x, std::int64_t n) {
  T m = x[0];
#pragma omp simd reduction(max : m)
  for (std::int64_t i = 0; i < n; ++i) m = x[i] > m ? x[i] : m;
  return m;
}

template <class T>
T sum_of(const T* __restrict x, std::int64_t n) {
  T s = 0;
#pragma omp simd reduction(+ : s)
  for (std::int64_t i = 0; i < n; ++i) s += x[i];
  return s;
}

template <class T>
T dot(const T* __restrict x, const T* __restrict y, std::int64_t n) {
  T s = 0;
#pragma omp simd reduction(+ : s)
  for (std::int64_t i = 0; i < n; ++i) s += x[i] * y[i];
  return s;
}

/// ln(sum exp(sign x))
template <class T>
T log_sum_exp(const T* __restrict x, std::int64_t n, T sign) {
  T m = sign * x[0];
#pragma omp simd reduction(max : m)
  for (std::int64_t i = 0; i < n; ++i) m = sign * x[i] > m ? sign * x[i] : m;
  T s = 0;
#pragma omp simd reduction(+ : s)
  for (std::int64_t i = 0; i < n; ++i) s += vector_exp(sign * x[i] - m);
  return m + std::log(s);
}

}  // namespace rows

/// One row of features in working form: ln(phi) where the map is logarithmic, else phi.
///
/// u  (width)   y  (features)
template <class T>
void working_features(const FeatureMap& map, std::int64_t width, const T* __restrict u, T* __restrict y) {
  const T floor = T(map.kind == MapKind::relu ? kReluFloor : kEluFloor), t = T(map.temperature);
  T scale = 1, up = 0, down = 0;
  switch (map.kind) {
    case MapKind::exp:
      for (std::int64_t r = 0; r < width; ++r) y[r] = t * u[r];
      return;
    case MapKind::identity:
      for (std::int64_t r = 0; r < width; ++r) y[r] = u[r];
      return;
    case MapKind::relu:
      for (std::int64_t r = 0; r < width; ++r) y[r] = u[r] < floor ? floor : u[r];
      return;
    case MapKind::elu:
      for (std::int64_t r = 0; r < width; ++r) {
        const T e = vector_exp(u[r] < T(0) ? u[r] : T(0)), linear = T(1) + (u[r] < T(0) ? T(0) : u[r]);
        const T phi = u[r] < T(0) ? e : linear;
        y[r] = phi < floor ? floor : phi;
      }
      return;
    case MapKind::hedgehog_softmax:
      up = rows::log_sum_exp(u, width, T(1));
      down = rows::log_sum_exp(u, width, T(-1));
      break;
    case MapKind::hedgehog_joint: {
      const T a = rows::log_sum_exp(u, width, T(2)), b = rows::log_sum_exp(u, width, T(-2));
      const T m = a > b ? a : b;
      up = down = m + std::log(std::exp(a - m) + std::exp(b - m));
      scale = 2;
      break;
    }
    case MapKind::hedgehog: break;
  }
  T* __restrict minus = y + width;
  for (std::int64_t r = 0; r < width; ++r) y[r] = scale * u[r] - up;
  for (std::int64_t r = 0; r < width; ++r) minus[r] = -scale * u[r] - down;
}

/// Gradient of one row. dy is the gradient of the working form; phi is read only where the map is not logarithmic or
/// is normalised.
template <class T>
void working_features_backward(const FeatureMap& map, std::int64_t width, const T* __restrict phi, const T* __restrict dy,
                               T* __restrict du) {
  const T t = T(map.temperature);
  const T* __restrict dminus = dy + width;
  switch (map.kind) {
    case MapKind::exp:
      for (std::int64_t r = 0; r < width; ++r) du[r] = t * dy[r];
      return;
    case MapKind::identity:
      for (std::int64_t r = 0; r < width; ++r) du[r] = dy[r];
      return;
    case MapKind::relu:
      for (std::int64_t r = 0; r < width; ++r) du[r] = phi[r] <= T(kReluFloor) ? T(0) : dy[r];
      return;
    case MapKind::elu:
      for (std::int64_t r = 0; r < width; ++r)
        du[r] = phi[r] <= T(kEluFloor) ? T(0) : dy[r] * (phi[r] > T(1) ? T(1) : phi[r]);
      return;
    case MapKind::hedgehog:
      for (std::int64_t r = 0; r < width; ++r) du[r] = dy[r] - dminus[r];
      return;
    case MapKind::hedgehog_softmax: {
      const T up = rows::sum_of(dy, width), down = rows::sum_of(dminus, width);
      for (std::int64_t r = 0; r < width; ++r) du[r] = (dy[r] - phi[r] * up) - (dminus[r] - phi[width + r] * down);
      return;
    }
    case MapKind::hedgehog_joint: {
      const T both = rows::sum_of(dy, 2 * width);
      for (std::int64_t r = 0; r < width; ++r)
        du[r] = T(2) * ((dy[r] - phi[r] * both) - (dminus[r] - phi[width + r] * both));
      return;
    }
  }
}

}  // namespace hedgehog

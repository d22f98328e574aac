#pragma once
#include <cmath>
#include <cstdint>

/// The CPU's norm of one row, for the ops that begin with one. T is float or double.
namespace hedgehog {

/// mean is 0 where the norm is not centred.
template <class T>
struct RowStatistics {
  T mean = 0, rstd = 0;
};

/// y = (in - mean) rstd weight + bias; bias may be null, y may be in. kCentred: layer norm, else RMS norm.
template <bool kCentred, class T>
RowStatistics<T> norm_row(const T* in, std::int64_t columns, T eps, const T* weight, const T* bias, T* y) {
  T mean = 0, square = 0;
  if constexpr (kCentred) {
#pragma omp simd reduction(+ : mean)
    for (std::int64_t i = 0; i < columns; ++i) mean += in[i];
    mean /= T(columns);
  }
#pragma omp simd reduction(+ : square)
  for (std::int64_t i = 0; i < columns; ++i) square += (in[i] - mean) * (in[i] - mean);
  const T rstd = T(1) / std::sqrt(square / T(columns) + eps);
  if (bias) {
#pragma omp simd
    for (std::int64_t i = 0; i < columns; ++i) y[i] = (in[i] - mean) * rstd * weight[i] + bias[i];
  } else {
#pragma omp simd
    for (std::int64_t i = 0; i < columns; ++i) y[i] = (in[i] - mean) * rstd * weight[i];
  }
  return {mean, rstd};
}

}  // namespace hedgehog

#pragma once
#include <cstddef>
#include <span>
#include <vector>

namespace hedgehog {

/// Ranks 1 … n of the values in ascending order; equal values share the mean of their ranks.
std::vector<double> mean_ranks(std::span<const double> values);

/// Correlation of two lists of numbers of one length, in [-1, 1]; 0 where either is constant, as it then tells nothing.
double correlation(std::span<const double> x, std::span<const double> y);

/// Spearman's rank correlation: the correlation of the mean ranks. Infinities have ranks; NaN must not occur.
inline double rank_correlation(std::span<const double> x, std::span<const double> y) { return correlation(mean_ranks(x), mean_ranks(y)); }

}  // namespace hedgehog

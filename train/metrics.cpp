#include "train/metrics.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <vector>

#include "train/rank_correlation.h"

namespace hedgehog {
namespace {

constexpr double kUndefined = std::numeric_limits<double>::quiet_NaN();

bool is_constant(std::span<const double> x) { return std::all_of(x.begin(), x.end(), [&](double v) { return v == x[0]; }); }

/// The numbers times a power of two, so that their squares neither overflow nor vanish.
std::vector<double> scaled(std::span<const double> x) {
  int exponent = 0;
  double largest = 0;
  for (const double v : x) largest = std::max(largest, std::abs(v));
  std::frexp(largest, &exponent);
  std::vector<double> result(x.begin(), x.end());
  for (double& v : result) v = std::ldexp(v, -exponent);
  return result;
}

}  // namespace

double accuracy(Labels predictions, Labels references) {
  std::size_t right = 0;
  for (std::size_t i = 0; i < references.size(); ++i) right += predictions[i] == references[i];
  return double(right) / double(references.size());
}

double f1_score(Labels predictions, Labels references, const std::string& positive) {
  std::size_t both = 0, either = 0;
  for (std::size_t i = 0; i < references.size(); ++i) {
    const bool predicted = predictions[i] == positive, is = references[i] == positive;
    both += predicted && is;
    either += std::size_t(predicted) + std::size_t(is);
  }
  return either ? 2 * double(both) / double(either) : kUndefined;
}

double matthews_correlation(Labels predictions, Labels references) {
  struct Count {
    double predicted = 0, is = 0;
  };
  std::map<std::string_view, Count> counts;
  double right = 0;
  for (std::size_t i = 0; i < references.size(); ++i) {
    counts[predictions[i]].predicted += 1;
    counts[references[i]].is += 1;
    right += predictions[i] == references[i];
  }
  const double n = double(references.size());
  double mixed = 0, predicted = n * n, is = n * n;
  for (const auto& [label, count] : counts) {
    mixed += count.predicted * count.is;
    predicted -= count.predicted * count.predicted;
    is -= count.is * count.is;
  }
  return predicted > 0 && is > 0 ? (right * n - mixed) / std::sqrt(predicted * is) : kUndefined;
}

double pearson_correlation(std::span<const double> x, std::span<const double> y) {
  return is_constant(x) || is_constant(y) ? kUndefined : correlation(scaled(x), scaled(y));
}

double spearman_correlation(std::span<const double> x, std::span<const double> y) {
  return is_constant(x) || is_constant(y) ? kUndefined : rank_correlation(x, y);
}

}  // namespace hedgehog

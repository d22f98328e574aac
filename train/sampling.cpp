#include "train/sampling.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "core/error.h"

namespace hedgehog {

namespace {

/// The first of the largest logits. Throws Error where the logits are no distribution.
int32_t most_likely(std::span<const float> logits) {
  size_t best = 0;
  for (size_t id = 0; id < logits.size(); ++id) {
    if (std::isnan(logits[id]) || logits[id] == std::numeric_limits<float>::infinity()) {
      throw Error(fmt::format("[sample] the logit of token {} is {}; the model's weights are damaged or diverged", id,
                              logits[id]));
    }
    if (logits[id] > logits[best]) best = id;
  }
  if (logits.empty() || !std::isfinite(logits[best])) throw Error("[sample] no logit is finite");
  return int32_t(best);
}

}  // namespace

void check_sampling(const Sampling& sampling) {
  if (!(sampling.temperature >= 0) || !std::isfinite(sampling.temperature)) {
    throw UsageError(fmt::format("--temperature expects a number of at least 0, but got {}", sampling.temperature));
  }
  if (sampling.top_k < 0)
    throw UsageError(fmt::format("--top_k expects a whole number of at least 0, but got {}", sampling.top_k));
  if (!(sampling.top_p > 0 && sampling.top_p <= 1)) {
    throw UsageError(fmt::format("--top_p expects a number greater than 0 and at most 1, but got {}", sampling.top_p));
  }
}

int32_t sample_token(std::span<const float> logits, const Sampling& sampling, double uniform) {
  check_sampling(sampling);
  const int32_t best = most_likely(logits);
  if (sampling.temperature == 0 || sampling.top_k == 1) return best;

  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::erase_if(order, [&](int32_t id) { return !std::isfinite(logits[size_t(id)]); });
  const auto more_likely = [&](int32_t left, int32_t right) {
    const float a = logits[size_t(left)];
    const float b = logits[size_t(right)];
    return a != b ? a > b : left < right;
  };
  const size_t kept = sampling.top_k == 0 ? order.size() : std::min(order.size(), size_t(sampling.top_k));
  std::partial_sort(order.begin(), order.begin() + std::ptrdiff_t(kept), order.end(), more_likely);
  order.resize(kept);

  std::vector<double> weights(kept);
  double total = 0;
  for (size_t i = 0; i < kept; ++i) {
    weights[i] = std::exp((double(logits[size_t(order[i])]) - double(logits[size_t(best)])) / sampling.temperature);
    total += weights[i];
  }
  if (sampling.top_p < 1) {
    const double wanted = sampling.top_p * total;
    double reached = 0;
    size_t count = 0;
    while (count < kept && reached < wanted) reached += weights[count++];
    order.resize(count);
    total = reached;
  }
  double cumulative = 0;
  for (size_t i = 0; i < order.size(); ++i) {
    cumulative += weights[i];
    if (uniform * total < cumulative) return order[i];
  }
  // rounding may leave the last sum a hair below uniform * total; a token of weight 0 is never taken
  size_t last = order.size() - 1;
  while (last > 0 && weights[last] == 0) --last;
  return order[last];
}

}  // namespace hedgehog

#include "train/sampling.h"

#include <fmt/core.h>

#include <cmath>

#include "core/error.h"

namespace hedgehog {

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

}  // namespace hedgehog

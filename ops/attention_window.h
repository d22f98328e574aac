#pragma once
#include "core/tensor.h"
#include "ops/check.h"

/// What ops share whose queries see a window of the tokens before them. Internal to ops/.
namespace hedgehog {

/// Refuses a negative window, and one of an op that is not causal.
inline void check_window(const Op& op, std::int64_t window, bool causal) {
  if (window < 0) fail(op, fmt::format("window must be positive, or 0 for none, but is {}", window));
  if (window > 0 && !causal) fail(op, "a window reaches back from each token, so it needs causal attention; leave out one of the two");
}

/// (T, T): 1 where token i has j in its window or after itself, i - j < window, else 0.
inline Tensor in_window(std::int64_t T, std::int64_t window, Dtype dtype) {
  std::vector<double> visible(std::size_t(T * T));
  for (std::int64_t i = 0; i < T; ++i)
    for (std::int64_t j = 0; j < T; ++j) visible[std::size_t(i * T + j)] = i - j < window;
  return constant({T, T}, visible, dtype, "window");
}

}  // namespace hedgehog

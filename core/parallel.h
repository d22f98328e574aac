#pragma once
#include <algorithm>
#include <cstdint>

namespace hedgehog {

/// Calls body(begin, end) over [0, n) in blocks of at least `grain`, in parallel. The borders of the blocks depend on n and
/// grain alone. Each index must be independent of the others.
template <class Body>
void parallel_for(std::int64_t n, std::int64_t grain, const Body& body) {
  const std::int64_t blocks = std::max<std::int64_t>(1, std::min<std::int64_t>(n / std::max<std::int64_t>(grain, 1), 256));
  if (blocks == 1) {
    if (n > 0) body(std::int64_t(0), n);
    return;
  }
#pragma omp parallel for schedule(static)
  for (std::int64_t i = 0; i < blocks; ++i) body(n * i / blocks, n * (i + 1) / blocks);
}

/// Calls body(i) for i in [0, n) in parallel, one index a task, in any order.
template <class Body>
void parallel_tasks(std::int64_t n, const Body& body) {
  if (n == 1) {
    body(std::int64_t(0));
    return;
  }
#pragma omp parallel for schedule(dynamic, 1)
  for (std::int64_t i = 0; i < n; ++i) body(i);
}

}  // namespace hedgehog

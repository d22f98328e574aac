#pragma once
#include "core/device.h"
#include "tests/counters.h"

namespace hedgehog::test {

/// Runs the check with the GPU as current device; without one, the running test case counts as skipped.
template <class F>
void on_cuda(F&& check) {
  if (!cuda_unavailable().empty()) return skip("no CUDA device");
  const OnDevice guard(cuda_device());
  check();
}

}  // namespace hedgehog::test

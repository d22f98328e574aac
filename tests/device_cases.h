#pragma once
#include <doctest/doctest.h>

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

/// Runs a check on the CPU, and in suite device on the GPU.
#define HH_ON_BOTH(title, check)                                    \
  TEST_CASE(title " on the CPU") { check(); }                        \
  TEST_SUITE("device") {                                            \
    TEST_CASE(title " on the GPU") { hedgehog::test::on_cuda(check); } \
  }

}  // namespace hedgehog::test

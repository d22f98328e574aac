#pragma once
#include <atomic>
#include <cstdint>
#include <string>

/// What the suite counts beside its test cases; printed in the last lines of a run.
namespace hedgehog::test {

inline std::atomic<std::int64_t> ops_checked{0};        // ops of the registry that a suite went through, once each
inline std::atomic<std::int64_t> gradients_checked{0};  // one input of one op or model, compared with differences

/// Says that the running test case cannot check anything here, and why: "skipped: no CUDA device". The caller returns
/// afterwards. The case then counts as skipped, unless it fails.
void skip(const std::string& reason);

}  // namespace hedgehog::test

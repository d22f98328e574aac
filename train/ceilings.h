#pragma once
#include <cstdint>
#include <functional>
#include <vector>

#include "core/dtype.h"

namespace hedgehog {

/// Median and spread of repeated timings, seconds.
struct Timed {
  double median = 0, fastest = 0, slowest = 0;
  int repeats = 0;
};

/// Runs `work` once for warm-up, then until it has been timed at least `repeats` times and for `seconds` together.
Timed time_repeated(const std::function<void()>& work, int repeats = 5, double seconds = 0.5);

/// On the CPU: FLOP/s of fused multiply-adds in registers, f32, on all threads: no program on this machine goes faster.
/// Measures for `seconds`. On a GPU: of a large product of random bf16 matrices by the library.
double measured_peak_flops(double seconds = 0.5);
/// Bytes/s of a large copy, on all threads of the CPU or within the GPU's memory, counting reads and writes.
double measured_copy_bandwidth();
/// FLOP/s of the library's product (m, k) (k, n) of random matrices on the current device.
Timed timed_product(std::int64_t m, std::int64_t n, std::int64_t k, Dtype dtype);

}  // namespace hedgehog

#pragma once
#include <cstdint>
#include <functional>
#include <vector>

namespace hedgehog {

/// Median and spread of repeated timings, seconds.
struct Timed {
  double median = 0, fastest = 0, slowest = 0;
  int repeats = 0;
};

/// Runs `work` once for warm-up, then until it has been timed at least `repeats` times and for `seconds` together.
Timed time_repeated(const std::function<void()>& work, int repeats = 5, double seconds = 0.5);

/// FLOP/s of fused multiply-adds in registers, f32, on all threads: no program on this machine goes faster. Measures for
/// `seconds`.
double measured_peak_flops(double seconds = 0.5);
/// Bytes/s of a large copy on all threads, counting reads and writes.
double measured_copy_bandwidth();

}  // namespace hedgehog

#pragma once
#include <compare>
#include <cstdint>
#include <functional>
#include <vector>

#include "core/executor.h"

namespace hedgehog {

/// Median and spread of repeated timings, seconds.
struct Timed {
  double median = 0, fastest = 0, slowest = 0;
  int repeats = 0;
};

/// Runs `work` once for warm-up, then until it has been timed at least `repeats` times and for `seconds` together.
Timed time_repeated(const std::function<void()>& work, int repeats = 5, double seconds = 0.5);

/// An input of normal numbers, without gigabytes of them in host memory: one block of draws, repeated.
Tensor random_input(const Shape& shape, Dtype dtype, std::uint32_t id);

/// Seconds of one run of a program. On a GPU by its own clock, over runs that were captured together and are replayed, so that
/// no launch is waited for.
Timed timed_runs(Executor& executor);

/// On the CPU: FLOP/s of fused multiply-adds in registers, f32, on all threads: no program on this machine goes faster.
/// Measures for `seconds`. On a GPU: of a large product of random bf16 matrices by the library.
double measured_peak_flops(double seconds = 0.5);
/// Bytes/s of a large copy, on all threads of the CPU or within the GPU's memory, counting reads and writes.
double measured_copy_bandwidth();

/// A product (m, k) (k, n); `transpose` says that a factor is stored the other way round.
struct ProductShape {
  std::int64_t m = 1, n = 1, k = 1;
  bool transpose_a = false, transpose_b = false;
  bool into_weight_gradient = false;  // added to a weight's gradient, which is f32 where the factors are bf16
  Dtype dtype = Dtype::f32;
  double flops() const { return 2.0 * double(m) * double(n) * double(k); }
  auto operator<=>(const ProductShape&) const = default;
};
/// Seconds of the library's product of random matrices on the current device, with no epilogue.
Timed timed_product(const ProductShape& shape);

}  // namespace hedgehog

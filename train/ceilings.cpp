#include "train/ceilings.h"

#include <algorithm>
#include <chrono>
#include <cstring>

#include "core/executor.h"
#include "core/parallel.h"
#include "core/random.h"
#include "ops/cpu.h"
#include "ops/matmul.h"

namespace hedgehog {

Timed time_repeated(const std::function<void()>& work, int repeats, double seconds) {
  using Clock = std::chrono::steady_clock;
  work();
  std::vector<double> times;
  double total = 0;
  while (int(times.size()) < repeats || total < seconds) {
    const auto start = Clock::now();
    work();
    times.push_back(std::chrono::duration<double>(Clock::now() - start).count());
    total += times.back();
  }
  std::sort(times.begin(), times.end());
  return {times[times.size() / 2], times.front(), times.back(), int(times.size())};
}

namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#else
constexpr int kLanes = 8;
#endif
using Lanes = float __attribute__((vector_size(kLanes * 4)));
constexpr int kChains = 12;  // enough independent sums to hide the latency of a multiply-add
constexpr std::int64_t kRounds = 2'000'000;

float multiply_add_rounds(std::int64_t rounds) {
  Lanes sums[kChains], factor, addend;
  for (int lane = 0; lane < kLanes; ++lane) {
    factor[lane] = 0.999f;
    addend[lane] = 0.001f * float(lane);
    for (auto& s : sums) s[lane] = float(lane);
  }
  for (std::int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 12
    for (auto& s : sums) s = s * factor + addend;
  }
  float total = 0;
  for (const auto& s : sums)
    for (int lane = 0; lane < kLanes; ++lane) total += s[lane];
  return total;
}

}  // namespace

namespace {

/// Normal numbers without a gigabyte of them in host memory: one block, repeated.
Tensor random_matrix(std::int64_t rows, std::int64_t columns, Dtype dtype, std::uint32_t id) {
  const Tensor x = input({rows, columns}, "random", dtype);
  const std::int64_t block = std::min<std::int64_t>(x.size(), 1 << 18);
  std::vector<double> draws(static_cast<std::size_t>(block));
  for (std::size_t i = 0; i < draws.size(); ++i) draws[i] = Random{5, id, 0}.normal(i);
  const Tensor first = constant({block}, draws, dtype);
  for (std::int64_t at = 0; at < x.size(); at += block)
    current_device().copy(static_cast<std::byte*>(x.data()) + at * size_of(dtype), first.data(), std::size_t(std::min(block, x.size() - at) * size_of(dtype)));
  return x;
}

}  // namespace

Timed timed_product(std::int64_t m, std::int64_t n, std::int64_t k, Dtype dtype) {
  const Tensor a = random_matrix(m, k, dtype, 1), b = random_matrix(k, n, dtype, 2);
  const no_grad guard;
  Executor product(record([&] { return Tensors{matmul(a, b)}; }));
  constexpr int kEach = 10;  // a GPU is only waited for after so many
  Timed t = time_repeated([&] {
    for (int i = 0; i < kEach; ++i) product.run();
    current_device().synchronize();
  }, 5, 0.05);
  for (double* x : {&t.median, &t.fastest, &t.slowest}) *x /= kEach;
  return t;
}

double measured_peak_flops(double seconds) {
  if (!current_device().host()) {
    const std::int64_t n = seconds < 0.2 ? 4096 : 8192;
    return 2.0 * double(n) * double(n) * double(n) / timed_product(n, n, n, Dtype::bf16).fastest;
  }
  const int threads = thread_count();
  std::vector<float> sink(static_cast<std::size_t>(threads) * 16);
  const Timed t = time_repeated([&] {
    parallel_tasks(threads, [&](std::int64_t i) { sink[std::size_t(i) * 16] = multiply_add_rounds(kRounds); });
  }, 5, seconds);
  volatile float keep = sink[0];
  (void)keep;
  return 2.0 * kLanes * kChains * double(kRounds) * threads / t.fastest;
}

double measured_copy_bandwidth() {
  if (Device& device = current_device(); !device.host()) {
    constexpr std::size_t kLarge = std::size_t(1) << 30;
    const Storage from(kLarge), to(kLarge);
    const Timed t = time_repeated([&] { device.copy(to.data(), from.data(), kLarge), device.synchronize(); }, 9, 0);
    return 2.0 * double(kLarge) / t.median;
  }
  constexpr std::size_t kBytes = std::size_t(256) << 20;
  std::vector<char> from(kBytes, 1), to(kBytes);
  const int threads = thread_count();
  const Timed t = time_repeated([&] {
    parallel_tasks(threads, [&](std::int64_t i) {
      const std::size_t part = kBytes / std::size_t(threads);
      std::memcpy(to.data() + std::size_t(i) * part, from.data() + std::size_t(i) * part, part);
    });
  });
  return 2.0 * double(kBytes / std::size_t(threads) * std::size_t(threads)) / t.median;
}

}  // namespace hedgehog

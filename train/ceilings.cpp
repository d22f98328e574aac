#include "train/ceilings.h"

#include <algorithm>
#include <chrono>
#include <cstring>

#include "ops/cpu.h"
#include "core/parallel.h"

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

double measured_peak_flops(double seconds) {
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

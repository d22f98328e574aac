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

namespace {

/// Of repeats that each did the work `each` times.
Timed of_times(std::vector<double> times, int each = 1) {
  std::sort(times.begin(), times.end());
  return {times[times.size() / 2] / each, times.front() / each, times.back() / each, int(times.size()) * each};
}

}  // namespace

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
  return of_times(std::move(times));
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

Tensor random_input(const Shape& shape, Dtype dtype, std::uint32_t id) {
  const Tensor x = input(shape, "random", dtype);
  const std::int64_t block = std::min<std::int64_t>(x.size(), 1 << 18);
  std::vector<double> draws(static_cast<std::size_t>(block));
  for (std::size_t i = 0; i < draws.size(); ++i) draws[i] = Random{5, id, 0}.normal(i);
  const Tensor first = constant({block}, draws, dtype);
  for (std::int64_t at = 0; at < x.size(); at += block)
    current_device().copy(static_cast<std::byte*>(x.data()) + at * size_of(dtype), first.data(), std::size_t(std::min(block, x.size() - at) * size_of(dtype)));
  return x;
}

Timed timed_runs(Executor& executor) {
  Device& device = current_device();
  if (device.host()) return time_repeated([&] { executor.run(); }, 5, 0.05);
  const Timed once = time_repeated([&] { executor.run(), device.synchronize(); }, 1, 0);
  constexpr int kRepeats = 9;
  const int each = int(std::clamp(0.02 / once.median, 1.0, 10.0));
  const auto replay = device.capture([&] {
    for (int i = 0; i < each; ++i) executor.run();
  });
  const auto watch = device.stopwatch();
  replay->run();
  watch->lap();
  for (int i = 0; i < kRepeats; ++i) replay->run(), watch->lap();
  return of_times(watch->seconds(), each);
}

namespace {

/// dweight (m, n) += x^T dy as the backward of a product does it, and nothing else of that.
Program weight_gradient(const ProductShape& p) {
  const Tensor x = random_input({p.k, p.m}, p.dtype, 1), dy = random_input({p.k, p.n}, p.dtype, 2), weight = parameter({p.m, p.n}, "weight", p.dtype);
  Program program = record([&] {
    backward(matmul(x, weight), dy);
    return Tensors{};
  });
  std::erase_if(program.entries, [](const Entry& e) { return !(e.backward && e.op->name == "matmul"); });
  program.entries.at(0).dy = {dy};
  return program;
}

}  // namespace

Timed timed_product(const ProductShape& p) {
  if (p.into_weight_gradient) {
    Executor product(weight_gradient(p), {.poison = false});
    return timed_runs(product);
  }
  auto matrix = [&](std::int64_t rows, std::int64_t columns, bool transposed, std::uint32_t id) {
    return transposed ? random_input({columns, rows}, p.dtype, id) : random_input({rows, columns}, p.dtype, id);
  };
  const Tensor a = matrix(p.m, p.k, p.transpose_a, 1), b = matrix(p.k, p.n, p.transpose_b, 2);
  const no_grad guard;
  Executor product(record([&] { return Tensors{matmul(a, b, p.transpose_a, p.transpose_b)}; }), {.poison = false});
  return timed_runs(product);
}

double measured_peak_flops(double seconds) {
  if (!current_device().host()) {
    const std::int64_t n = seconds < 0.2 ? 4096 : 8192;
    return 2.0 * double(n) * double(n) * double(n) / timed_product({.m = n, .n = n, .k = n, .dtype = Dtype::bf16}).fastest;
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
    const auto watch = device.stopwatch();
    for (int i = 0; i < 10; ++i) device.copy(to.data(), from.data(), kLarge), watch->lap();
    return 2.0 * double(kLarge) / of_times(watch->seconds()).median;
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

#include <doctest/doctest.h>
#include <fmt/format.h>

#include <cmath>
#include <limits>
#include <map>

#include "core/executor.h"
#include "core/random.h"
#include "ops/matmul.h"
#include "tests/device_cases.h"
#include "tests/parity.h"

using namespace hedgehog;
using namespace hedgehog::test;

namespace {

double rounded(double x, Dtype dtype) { return dtype == Dtype::bf16 ? double(float(BFloat16(float(x)))) : x; }

/// A stand-in for a device: the CPU's kernels in f32, their results rounded to what a device would hand out.
Run cpu_as_device(Dtype dtype) {
  return [dtype](const ParityCase& c, std::uint64_t seed) {
    Outcome out = run_case(c, arguments_of(c, seed, dtype, dtype == Dtype::bf16 ? Dtype::f32 : dtype), false, seed, dtype);
    const Kept kept = *kept_in(c, dtype);
    for (std::size_t i = 0; i < out.size(); ++i)
      for (double& x : out[i].values) x = rounded(x, kept.dtypes[i]);
    return out;
  };
}

/// The same with one tensor spoiled.
Run spoiled(const Run& run, std::size_t which, const std::function<void(std::vector<double>&)>& spoil) {
  return [=](const ParityCase& c, std::uint64_t seed) {
    Outcome out = run(c, seed);
    spoil(out.at(which).values);
    return out;
  };
}

/// Ops that compute something: views only rename elements.
template <class F>
void for_each_op(F&& f) {
  for (const Op* op : all_ops()) {
    if (op->views) continue;
    CAPTURE(op->name);
    f(*op);
  }
}

}  // namespace

TEST_SUITE("device") {
  TEST_CASE("parity: every op on every sample in f32, f64 and bf16 is as close to f64 as the plain form on the CPU") {
    on_cuda([] {
      const Threads one(1);
      std::string composed;
      int compared = 0;
      for_each_op([&](const Op& op) {
        if (!op.reference && !op.samples.empty()) {
          CHECK_MESSAGE(current_device().kernel(op, false), "no kernel on the device, and no composed form");
          if (has_backward(op)) CHECK_MESSAGE(current_device().kernel(op, true), "no backward on the device, and no composed form");
        }
        if (!current_device().kernel(op, false)) {
          composed += " " + op.name;
          if (!op.reference) return;
        }
        // f32, f64 and bf16: an op that refuses one leaves a hole
        for (const ParityCase& c : cases_of(op)) {
          CAPTURE(c.sample.label);
          const int dtypes = check_parity(c);
          CHECK(dtypes == 3);
          compared += dtypes;
        }
      });
      CHECK(compared > 0);
      if (composed.empty()) composed = " none";
      MESSAGE("parity: " << compared << " comparisons; run by their composed form:" << composed);
    });
  }
}

TEST_CASE("parity: the CPU's own kernels in f32 pass, also with results rounded to bf16") {
  const Threads one(1);
  std::map<Dtype, int> compared;
  for_each_op([&](const Op& op) {
    for (ParityCase c : cases_of(op)) {
      CAPTURE(c.sample.label);
      CAPTURE(c.activations);
      c.draws = 3;
      for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
        CAPTURE(std::string(name_of(dtype)));
        if (dtype == Dtype::bf16 && c.activations) continue;  // the CPU does not round gradients on their way
        const std::vector<Errors> errors = compare(c, dtype, cpu_as_device(dtype));
        compared[dtype] += !errors.empty();
        for (const Errors& e : errors) {
          const std::string wrong = e.verdict();
          CHECK_MESSAGE(wrong.empty(), wrong);
        }
      }
    }
  });
  CHECK(compared[Dtype::f32] > 0);
  CHECK(compared[Dtype::bf16] > 0);
  MESSAGE("cases compared in f32: " << compared[Dtype::f32] << ", as bf16: " << compared[Dtype::bf16]);
}

TEST_CASE("parity: a result or gradient that is off by more than allowed, or not a number in one place, fails") {
  const Threads one(1);
  for_each_op([](const Op& op) {
    const std::vector<ParityCase> cases = cases_of(op);
    if (cases.empty()) return;
    ParityCase c = cases.front();
    c.draws = 3;
    CAPTURE(c.sample.label);
    for (const Dtype dtype : {Dtype::f32, Dtype::bf16, Dtype::f64}) {
      CAPTURE(std::string(name_of(dtype)));
      const Run run = cpu_as_device(dtype);
      const std::vector<Errors> right = compare(c, dtype, run);
      for (std::size_t i = 0; i < right.size(); ++i) {
        CAPTURE(right[i].name);
        const double factor = 1 + 4 * right[i].allowed();
        const auto off = compare(c, dtype, spoiled(run, i, [&](std::vector<double>& x) {
                                   for (double& v : x) v = v * factor;
                                 }));
        if (!right[i].ours.empty()) CHECK(!off[i].verdict().empty());
        constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
        const auto nan = compare(c, dtype, spoiled(run, i, [](std::vector<double>& x) { x.back() = kNaN; }));
        CHECK(!nan[i].verdict().empty());
        const auto moved = compare(c, dtype, spoiled(run, i, [](std::vector<double>& x) { x.pop_back(); }));
        CHECK(!moved[i].verdict().empty());
        for (std::size_t k = 0; k < right.size(); ++k)
          if (k != i) CHECK(off[k].verdict().empty());
      }
    }
  });
}

TEST_CASE("parity: one element that is far off fails though the mean is fine; a plain form that overflows allows nothing") {
  const Random random{1, 2, 3};
  std::vector<double> exact(1000), plain(1000);
  for (std::size_t i = 0; i < 1000; ++i) {
    exact[i] = random.normal(2 * i);
    plain[i] = exact[i] + 1e-6 * random.normal(2 * i + 1);
  }
  auto verdict = [&](const std::vector<double>& ours, const std::vector<double>& form) {
    Errors e{.name = "y", .rounding = 0x1p-24};
    e.add(ours, {form}, exact, {exact});
    return e.verdict();
  };
  CHECK(verdict(plain, plain).empty());
  std::vector<double> ours = plain;
  ours[7] = exact[7] + 3e-5;
  CHECK(verdict(ours, plain).find("largest error") != std::string::npos);
  std::vector<double> over = plain;
  over[7] = std::numeric_limits<double>::infinity();
  CHECK(verdict(over, over).find("not finite") != std::string::npos);
  // -inf that is meant, as from a mask, is no error and has no size
  exact[7] = ours[7] = plain[7] = -std::numeric_limits<double>::infinity();
  CHECK(verdict(ours, plain).empty());
}

TEST_CASE("parity: where the exact tensor is 0, a few roundings pass and more do not") {
  auto verdict = [](double value) {
    Errors e{.name = "dx", .rounding = 0x1p-24};
    e.add({value}, {{0}}, {1e-17}, {{1e-17}});
    return e.verdict();
  };
  CHECK(verdict(5e-7).empty());
  CHECK(!verdict(5e-6).empty());
}

TEST_CASE("parity: operands of products are rounded to bf16 in forward and backward, and nothing else is") {
  // 1 + 2^-9 is not a bf16 number: as an operand it counts as 1
  constexpr double kBetween = 1 + 0x1p-9;
  const Tensor a = parameter({1, 1}, "a"), b = parameter({1, 1}, "b"), factor = parameter({1, 1}, "factor");
  a.copy_from({kBetween});
  b.copy_from({3 + 0x1p-10});
  factor.copy_from({kBetween});
  const Program program = record([&] {
    const Tensor y = apply(find_op("multiply"), {}, {matmul(a, b), factor})[0];
    backward(y);
    return Tensors{y};
  });
  Executor run(with_rounded_products(program));
  run.run();
  CHECK(run.output(0).item() == 3 * kBetween);
  CHECK(factor.grad().item() == 3);
  // the upstream gradient 1 + 2^-9 is an operand too
  CHECK(a.grad().item() == 3);
  CHECK(b.grad().item() == 1);
  CHECK(run.program().entries.size() == program.entries.size() + 5);
}

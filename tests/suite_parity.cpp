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

/// A stand-in for a device: the CPU's kernels. In bf16 they compute in f64 between the roundings that a device makes, so that
/// everything but those differs from the plain form.
Run cpu_as_device(Dtype dtype) {
  return [dtype](const ParityCase& c, const Drawn& drawn, const Kept& kept) {
    return dtype == Dtype::bf16 ? run_stored(c, drawn, kept, Dtype::f64) : run_case(c, drawn, dtype);
  };
}

/// The same with the roundings of tensor cores instead of those of storage.
Run cpu_as_tensor_cores() {
  return [](const ParityCase& c, const Drawn& drawn, const Kept& kept) { return run_products(c, drawn, kept, Dtype::f64); };
}

/// A device that stores six significant bits, not eight.
Run cpu_with_coarse_storage() {
  return [](const ParityCase& c, const Drawn& drawn, const Kept& kept) { return run_stored(c, drawn, kept, Dtype::f64, 6); };
}

/// The same with one tensor spoiled.
Run spoiled(const Run& run, std::size_t which, const std::function<void(std::vector<double>&)>& spoil) {
  return [=](const ParityCase& c, const Drawn& drawn, const Kept& kept) {
    Outcome out = run(c, drawn, kept);
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

TEST_CASE("parity: the CPU's own kernels pass in f32, and in bf16 with what is stored or multiplied rounded") {
  const Threads one(1);
  std::map<std::string, int> compared;
  for_each_op([&](const Op& op) {
    for (ParityCase c : cases_of(op)) {
      CAPTURE(c.sample.label);
      CAPTURE(c.activations);
      c.draws = 3;
      auto pass = [&](const std::string& as, Dtype dtype, const Run& run) {
        CAPTURE(as);
        const std::vector<Errors> errors = compare(c, dtype, run);
        compared[as] += !errors.empty();
        for (const Errors& e : errors) {
          const std::string wrong = e.verdict();
          CHECK_MESSAGE(wrong.empty(), wrong);
        }
      };
      pass("f32", Dtype::f32, cpu_as_device(Dtype::f32));
      pass("bf16", Dtype::bf16, cpu_as_device(Dtype::bf16));
      if (is_composite(c)) pass("bf16 products", Dtype::bf16, cpu_as_tensor_cores());
    }
  });
  for (const auto& [as, count] : compared) {
    CHECK(count > 0);
    MESSAGE("cases compared as " << as << ": " << count);
  }
}

TEST_CASE("parity: a gradient from results or saved tensors that were rounded to fewer bits than bf16 has fails") {
  const Threads one(1);
  int seen = 0;
  for_each_op([&](const Op& op) {
    // what a fused op multiplies is rounded as much
    if (op.reference || !op.backward.cpu || !(op.reads.outputs | op.reads.saved)) return;
    for (const ParityCase& c : cases_of(op)) {
      const std::optional<Kept> kept = kept_in(c, Dtype::bf16);
      bool reads = false;
      for (const Entry& e : kept->program.entries) {
        if (!e.backward || e.op != &op) continue;
        for (std::size_t i = 0; i < e.outputs.size(); ++i) reads |= (op.reads.outputs >> i & 1u) && e.outputs[i].dtype() == Dtype::bf16;
        for (std::size_t i = 0; i < e.saved.size(); ++i) reads |= (op.reads.saved >> i & 1u) && e.saved[i].dtype() == Dtype::bf16;
      }
      if (c.activations || !reads || c.sample.inputs[0].shape.size() < 8) continue;
      CAPTURE(c.sample.label);
      int failed = 0;
      for (const Errors& e : compare(c, Dtype::bf16, cpu_with_coarse_storage())) failed += !e.verdict().empty();
      CHECK(failed > 0);
      ++seen;
    }
  });
  CHECK(seen > 0);
  MESSAGE("cases: " << seen);
}

TEST_CASE("parity: a result in f32 that was rounded to bf16 on its way fails") {
  const Threads one(1);
  int seen = 0;
  for_each_op([&](const Op& op) {
    const std::vector<ParityCase> cases = cases_of(op);
    if (cases.empty()) return;
    ParityCase c = cases.back();
    c.activations = false;
    c.draws = 3;
    const std::optional<Kept> kept = kept_in(c, Dtype::bf16);
    const std::vector<Errors> right = compare(c, Dtype::bf16, cpu_as_device(Dtype::bf16));
    for (std::size_t i = 0; i < right.size(); ++i) {
      CAPTURE(right[i].name);
      // where the plain form rounds to bf16 itself, one more is within twice its error
      if (kept->dtypes[i] != Dtype::f32 || right[i].allowed() > 0x1p-16) continue;
      bool changed = false;
      const auto off = compare(c, Dtype::bf16, spoiled(cpu_as_device(Dtype::bf16), i, [&](std::vector<double>& x) {
                                 for (double& v : x) {
                                   const double narrow = double(float(BFloat16(float(v))));
                                   changed |= narrow != v;
                                   v = narrow;
                                 }
                               }));
      if (!changed || right[i].ours.empty()) continue;
      CHECK(!off[i].verdict().empty());
      ++seen;
    }
  });
  CHECK(seen > 0);
  MESSAGE("tensors: " << seen);
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
    e.add(ours, {&form}, exact, exact);
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
    const std::vector<double> exact{1e-17}, plain{0};
    e.add({value}, {&plain}, exact, exact);
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

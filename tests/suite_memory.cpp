#include <doctest/doctest.h>

#include <cmath>

#include "core/device.h"
#include "core/executor.h"
#include "nn/recompute.h"
#include "tests/device_cases.h"
#include "tests/op_cases.h"

using namespace hedgehog;
using namespace hedgehog::test;

namespace {

/// How the kernels of an op are called: bf16 only where there is a device that computes in it, with the gradients of activations
/// (bf16) and with those of parameters (f32).
struct Variant {
  Dtype dtype;
  bool wide = false;
};

std::vector<Variant> variants() {
  if (current_device().host()) return {{Dtype::f32}, {Dtype::f64}};
  return {{Dtype::f32}, {Dtype::f64}, {Dtype::bf16}, {Dtype::bf16, true}};
}

/// Calls f(op, sample, variant) for every sample of every op with a kernel on the current device.
template <class F>
void for_each_kernel(F&& f) {
  const Threads one(1);
  int called = 0;
  for (const Op* op : all_ops()) {
    if (!current_device().kernel(*op, false)) continue;
    CAPTURE(op->name);
    for (const Sample& sample : op->samples) {
      CAPTURE(sample.label);
      for (const Variant& variant : variants()) {
        if (!accepts(*op, sample, variant.dtype)) continue;
        CAPTURE(std::string(name_of(variant.dtype)));
        CAPTURE(variant.wide);
        f(*op, sample, variant);
        ++called;
      }
    }
  }
  CHECK(called > 0);
}

/// One rounding of a number of this dtype, at most, relative.
double rounding_of(Dtype dtype) { return dtype == Dtype::bf16 ? 0x1p-8 : dtype == Dtype::f32 ? 0x1p-24 : 0x1p-53; }

bool any_nan(const Tensors& tensors) {
  for (const Tensor& t : tensors)
    if (t && is_floating(t.dtype()))
      for (double x : t.to_vector())
        if (std::isnan(x)) return true;
  return false;
}

bool runs_backward(const Op& op, const KernelRun& run) { return current_device().kernel(op, true) && run.differentiable(); }

/// Everything one op leaves behind, as bits: results, then gradients of the parameters.
using Bits = std::vector<std::vector<std::byte>>;

/// Forward and backward once for each number of threads give the same bits every time.
void same_bits(const Op& op, const Sample& sample, const Variant& variant, const std::vector<int>& threads) {
  if (variant.dtype == Dtype::f64) return;  // the same template
  KernelRun run(op, sample, variant.dtype, 7, variant.wide);
  Bits outputs, gradients;
  for (std::size_t repeat = 0; repeat < threads.size(); ++repeat) {
    CAPTURE(repeat);
    const Threads team(threads[repeat]);
    const Bits y = bits_of(run.forward());
    if (repeat == 0) outputs = y;
    REQUIRE(y == outputs);
    if (!runs_backward(op, run)) continue;
    const Bits dx = bits_of(run.backward());
    if (repeat == 0) gradients = dx;
    REQUIRE(dx == gradients);
  }
}

/// x' = copy(x) first, so that the op reads and differentiates planned tensors. With `again` x' is read once more afterwards, so that
/// gradients are both written and added to; without, the op is its last reader and its results may take its place.
Tensors between_copies(const Op& op, const Sample& sample, const Tensors& arguments, bool again) {
  Tensors copies;
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    const bool changes = op.updates >> i & 1u;
    copies.push_back(arguments[i] && !changes ? apply(detail::kCopy, {}, {arguments[i]})[0] : arguments[i]);
  }
  Tensors results = apply(op, sample.attributes, copies);
  for (const Tensor& x : copies)
    if (again && x.wants_gradient()) results.push_back(apply(detail::kCopy, {}, {x})[0]);
  Tensors differentiable, cotangents;
  for (const Tensor& y : results)
    if (y.wants_gradient()) {
      differentiable.push_back(y);
      cotangents.push_back(constant(y.shape(), draw(y.size(), 3, std::uint32_t(cotangents.size())), y.dtype(), "cotangent"));
    }
  if (!differentiable.empty()) backward(differentiable, cotangents);
  return results;
}

void reset(const Tensors& arguments, const std::vector<std::vector<double>>& values) {
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    if (!arguments[i]) continue;
    arguments[i].copy_from(values[i]);
    if (arguments[i].wants_gradient()) arguments[i].grad().fill(0);
  }
}

Bits with_gradients(Bits results, const Tensors& arguments) {
  for (const Tensor& x : arguments) {
    results.push_back(bits_of(x));
    if (x.wants_gradient()) results.push_back(bits_of(x.grad()));
  }
  return results;
}

Bits run_planned(const Program& program, const Tensors& arguments, const std::vector<std::vector<double>>& values,
                 const ExecutorOptions& options, int times = 1) {
  Executor run(program, options);
  for (int i = 0; i < times; ++i) {
    reset(arguments, values);
    run.run();
  }
  Bits results;
  for (std::size_t j = 0; j < program.outputs.size(); ++j) results.push_back(bits_of(run.output(j)));
  return with_gradients(std::move(results), arguments);
}

void everything_written() {
  for_each_kernel([](const Op& op, const Sample& sample, const Variant& variant) {
    KernelRun run(op, sample, variant.dtype, 5, variant.wide);
    Bits outputs, saved, gradients;
    // memory full of NaN, of zeros, and of small numbers must lead to the same bits
    for (unsigned char garbage : {0xff, 0x00, 0x3b}) {
      CAPTURE(int(garbage));
      const Tensors y = run.forward(garbage);
      CHECK(run.guards_intact());
      CHECK(run.inputs_unchanged());
      if (garbage == 0xff) {
        CHECK(!any_nan(y));
        CHECK(!any_nan(run.saved()));
        outputs = bits_of(y);
        saved = bits_of(run.saved());
      }
      CHECK(bits_of(y) == outputs);
      CHECK(bits_of(run.saved()) == saved);
      if (!runs_backward(op, run)) continue;
      const Tensors dx = run.backward(garbage);
      CHECK(run.guards_intact());
      CHECK(run.inputs_unchanged());
      CHECK(bits_of(y) == outputs);
      CHECK(bits_of(run.saved()) == saved);
      if (garbage == 0xff) {
        CHECK(!any_nan(dx));
        gradients = bits_of(dx);
      }
      CHECK(bits_of(dx) == gradients);
    }
    // without a gradient wanted, nothing is saved and the results are the same
    CHECK(bits_of(run.forward(0xff, false)) == outputs);
    CHECK(run.guards_intact());
  });
}

void accumulates() {
  for_each_kernel([](const Op& op, const Sample& sample, const Variant& variant) {
    KernelRun run(op, sample, variant.dtype, 6, variant.wide);
    if (!runs_backward(op, run)) return;
    run.forward();
    const Tensors once = run.backward();
    const Tensors twice = run.backward(0xff, ~0u, once);
    for (std::size_t i = 0; i < once.size(); ++i) {
      if (!once[i]) continue;
      CAPTURE(op.arguments[i].name);
      const auto a = once[i].to_vector(), b = twice[i].to_vector();
      // a kernel may add its parts one by one to what is there (the heads of a group, a chunk and the state before it): a
      // rounding for each of four parts, at the size of the largest sum
      const double rounding = 4 * rounding_of(once[i].dtype()) * 2 * largest(a);
      for (std::size_t k = 0; k < a.size(); ++k) {
        CAPTURE(k);
        REQUIRE(std::abs(b[k] - 2 * a[k]) <= rounding);
      }
    }
  });
}

void gradients_alone() {
  for_each_kernel([](const Op& op, const Sample& sample, const Variant& variant) {
    KernelRun run(op, sample, variant.dtype, 8, variant.wide);
    if (!runs_backward(op, run)) return;
    run.forward();
    const Tensors all = run.backward();
    for (std::size_t i = 0; i < all.size(); ++i) {
      if (!all[i]) continue;
      CAPTURE(op.arguments[i].name);
      const Tensors alone = run.backward(0xff, 1u << i);
      CHECK(run.guards_intact());
      CHECK(bits_of(alone[i]) == bits_of(all[i]));
    }
  });
}

/// Bit for bit on the CPU. A device may take another product, of another order of sums, for another alignment: a few roundings.
bool agree(const std::vector<double>& a, const std::vector<double>& b, Dtype dtype) {
  if (current_device().host()) return a == b;
  bool close = a.size() == b.size();
  const double allowed = 8 * rounding_of(dtype) * largest(b);
  for (std::size_t i = 0; close && i < a.size(); ++i) close = a[i] == b[i] || std::abs(a[i] - b[i]) <= allowed;
  return close;
}

void windows() {
  for_each_kernel([](const Op& op, const Sample& sample, const Variant& variant) {
    if (variant.wide) return;  // the tape decides
    auto outcome = [&](const Tensors& arguments) {
      const Tensors results = apply(op, sample.attributes, arguments);
      Tensors differentiable, cotangents;
      for (std::size_t j = 0; j < results.size(); ++j)
        if (results[j].wants_gradient()) {
          differentiable.push_back(results[j]);
          cotangents.push_back(constant(results[j].shape(), draw(results[j].size(), 9, std::uint32_t(j)), results[j].dtype(), "cotangent"));
        }
      if (!differentiable.empty()) backward(differentiable, cotangents);
      clear_tape();
      std::vector<std::vector<double>> values;
      for (const Tensor& y : results) values.push_back(y.to_vector());
      return values;
    };
    const Tensors plain = draw_arguments(op, sample, 9, variant.dtype);
    const auto expected = outcome(plain);
    for (std::size_t i = 0; i < plain.size(); ++i) {
      if (!plain[i] || !is_floating(plain[i].dtype()) || (op.updates >> i & 1u) || plain[i].shape().rank() < 2) continue;
      CAPTURE(op.arguments[i].name);
      const Shape& s = plain[i].shape();
      // (B, T, H, D) comes from a split of packed (B, T, 3·H·D); anything else from a split of its last axis
      std::vector<std::int64_t> widths{s.last()};
      if (s.rank() == 4) widths.push_back(s[2] * s[3]);
      for (const std::int64_t columns : widths) {
        CAPTURE(columns);
        Tensors arguments = draw_arguments(op, sample, 9, variant.dtype);
        const Window w = window_of(arguments[i], columns, 3, 2);
        arguments[i] = w.view;
        const auto got = outcome(arguments);
        REQUIRE(got.size() == expected.size());
        for (std::size_t j = 0; j < got.size(); ++j) CHECK(agree(got[j], expected[j], variant.dtype));
        for (std::size_t k = 0; k < plain.size(); ++k) {
          if (!plain[k].wants_gradient()) continue;
          CAPTURE(op.arguments[k].name);
          if (k != i) {
            CHECK(agree(arguments[k].grad().to_vector(), plain[k].grad().to_vector(), variant.dtype));
            continue;
          }
          const auto wide = w.wide.grad().to_vector(), narrow = plain[k].grad().to_vector();
          const std::size_t width = std::size_t(columns) + 5;
          std::vector<double> inside, outside;
          for (std::size_t e = 0; e < wide.size(); ++e)
            (e % width >= 3 && e % width < 3 + std::size_t(columns) ? inside : outside).push_back(wide[e]);
          CHECK(agree(inside, narrow, variant.dtype));
          CHECK(largest(outside) == 0);
        }
      }
    }
  });
}

void check_planned(const Op& op, const Sample& sample, Dtype dtype, bool again) {
  const Tensors arguments = draw_arguments(op, sample, 10, dtype);
  std::vector<std::vector<double>> values;
  for (const Tensor& x : arguments) values.push_back(x ? x.to_vector() : std::vector<double>{});
  const Bits eager = with_gradients(bits_of(between_copies(op, sample, arguments, again)), arguments);
  clear_tape();
  reset(arguments, values);
  const Program program = record([&] { return between_copies(op, sample, arguments, again); });
  CHECK(run_planned(program, arguments, values, {}, 2) == eager);
  CHECK(run_planned(program, arguments, values, {.reuse = false}) == eager);
  CHECK(run_planned(program, arguments, values, {.poison = true}, 2) == eager);
  CHECK(run_planned(program, arguments, values, {.reuse = false, .poison = true}) == eager);
  // the first run is an ordinary one, the second captured, the third replayed
  CHECK(run_planned(program, arguments, values, {.graph = true}, 3) == eager);
  const Program leaner = recompute(program, 0);
  CHECK(plan(leaner).arena <= plan(program).arena);
  CHECK(run_planned(leaner, arguments, values, {.poison = true}) == eager);
}

void planned_as_eager() {
  const Threads one(1);
  for (const Op* op : all_ops()) {
    CAPTURE(op->name);
    for (const Sample& sample : op->samples) {
      CAPTURE(sample.label);
      for (bool again : {true, false}) {
        CAPTURE(again);
        check_planned(*op, sample, Dtype::f32, again);
        if (!current_device().host() && accepts(*op, sample, Dtype::bf16)) check_planned(*op, sample, Dtype::bf16, again);
      }
    }
  }
}

}  // namespace

TEST_CASE("memory: every element of results, saved and gradients is written, nothing else is touched") { everything_written(); }
TEST_CASE("memory: write then accumulate equals twice write within one rounding") { accumulates(); }
TEST_CASE("memory: a gradient wanted alone has the same bits as with all others") { gradients_alone(); }
TEST_CASE("memory: a window of a wider tensor as argument gives the bits of a contiguous one") { windows(); }
TEST_CASE("memory: a planned run, one without reuse and one with guards give the bits of the eager run") { planned_as_eager(); }

TEST_CASE("memory: 1, 2 and 3 threads give the same bits") {
  for_each_kernel([](const Op& op, const Sample& sample, const Variant& variant) { same_bits(op, sample, variant, {1, 2, 3}); });
}

TEST_SUITE("slow") {
  TEST_CASE("memory: ten repeats give the same bits") {
    const std::vector<int> repeats(10, 2);
    for_each_kernel([&](const Op& op, const Sample& sample, const Variant& variant) { same_bits(op, sample, variant, repeats); });
  }
}

TEST_SUITE("device") {
  TEST_CASE("memory on the device: every element of results, saved and gradients is written, nothing else is touched") {
    on_cuda(everything_written);
  }
  TEST_CASE("memory on the device: write then accumulate equals twice write within one rounding") { on_cuda(accumulates); }
  TEST_CASE("memory on the device: a gradient wanted alone has the same bits as with all others") { on_cuda(gradients_alone); }
  TEST_CASE("memory on the device: a window of a wider tensor as argument counts as a contiguous one") { on_cuda(windows); }
  TEST_CASE("memory on the device: planned runs give the bits of the eager run") { on_cuda(planned_as_eager); }
  TEST_CASE("memory on the device: ten repeats give the same bits") {
    on_cuda([] {
      const std::vector<int> repeats(10, 1);
      for_each_kernel([&](const Op& op, const Sample& sample, const Variant& variant) { same_bits(op, sample, variant, repeats); });
    });
  }
}

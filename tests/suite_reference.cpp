#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "tests/op_cases.h"

using namespace hedgehog;
using namespace hedgehog::test;

namespace {

/// Values of the results and gradients of the parameters, as numbers.
struct Outcome {
  std::vector<std::vector<double>> results, gradients;
};

/// Runs an op (or, composed, its reference) on arguments that hold the same numbers in any dtype. `only` picks one result
/// to differentiate; -1 means all.
Outcome run(const Op& op, const Sample& sample, const Tensors& arguments, bool composed, int only, std::uint64_t seed) {
  const Tensors parameters = parameters_of(arguments);
  for (const Tensor& p : parameters) p.grad().fill(0);
  Tensors results;
  if (composed) {
    const Expand guard = Expand::composed();
    results = apply(op, sample.attributes, arguments);
  } else {
    results = apply(op, sample.attributes, arguments);
  }
  Outcome out;
  Tensors differentiable, cotangents;
  for (std::size_t j = 0; j < results.size(); ++j) {
    out.results.push_back(results[j].to_vector());
    if (!results[j].wants_gradient() || (only >= 0 && std::size_t(only) != j)) continue;
    differentiable.push_back(results[j]);
    cotangents.push_back(
        constant(results[j].shape(), draw(results[j].size(), seed, 50u + std::uint32_t(j)), results[j].dtype(), "cotangent"));
  }
  if (!differentiable.empty()) backward(differentiable, cotangents);
  for (const Tensor& p : parameters) out.gradients.push_back(p.grad().to_vector());
  clear_tape();
  return out;
}

/// draw_arguments rounded to f32, held in `dtype`: so that runs in both dtypes start from the same numbers.
Tensors rounded_arguments(const Op& op, const Sample& sample, std::uint64_t seed, Dtype dtype) {
  const Tensors narrow = draw_arguments(op, sample, seed, Dtype::f32);
  if (dtype == Dtype::f32) return narrow;
  const Tensors wide = draw_arguments(op, sample, seed, dtype);
  for (std::size_t i = 0; i < wide.size(); ++i)
    if (wide[i]) wide[i].copy_from(narrow[i].to_vector());
  return wide;
}

/// Relative errors of one tensor over several draws. The middle draw is judged: in an unlucky one, a near-cancellation
/// magnifies single roundings, and whether the kernel or the reference rounds the wrong way there is chance.
struct Errors {
  std::vector<double> kernel, reference;
  double kernel_worst = 0, reference_worst = 0, largest_value = 0;

  void add(const std::vector<double>& f32_kernel, const std::vector<double>& f32_reference, const std::vector<double>& f64) {
    const auto a = difference(f32_kernel, f64), b = difference(f32_reference, f64);
    const double size = std::max(rms(f64), std::numeric_limits<double>::min());
    kernel.push_back(rms(a) / size);
    reference.push_back(rms(b) / size);
    kernel_worst = std::max(kernel_worst, largest(a));
    reference_worst = std::max(reference_worst, largest(b));
    largest_value = std::max(largest_value, largest(f64));
  }
};

double middle(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + std::ptrdiff_t(values.size() / 2), values.end());
  return values[values.size() / 2];
}

}  // namespace

TEST_CASE("reference: forward and all gradients equal those of the composed form in f64") {
  const Threads one(1);
  for (const Op* op : all_ops()) {
    if (!op->reference || !has_backward(*op)) continue;
    CAPTURE(op->name);
    for (const Sample& sample : op->samples) {
      CAPTURE(sample.label);
      const Tensors arguments = draw_arguments(*op, sample, 31);
      const Tensors parameters = parameters_of(arguments);
      const Outcome all = run(*op, sample, arguments, true, -1, 31);
      const int count = int(all.results.size());
      REQUIRE(std::size_t(count) == op->results.size());
      for (int only = -1; only < (count > 1 ? count : 0); ++only) {
        if (only >= 0 && (op->constant_outputs >> only & 1u)) continue;
        CAPTURE(only);
        const Outcome ours = run(*op, sample, arguments, false, only, 31);
        const Outcome composed = run(*op, sample, arguments, true, only, 31);
        // f64 rounds at 1.1e-16; sums of some hundred terms in another order, and a condition of some hundred where
        // quotients and exponentials follow one another, leave 1e-11 of the tensor's size
        constexpr double kTolerance = 1e-11;
        for (int j = 0; j < count; ++j) {
          CAPTURE(op->results[std::size_t(j)]);
          REQUIRE(ours.results[j].size() == composed.results[j].size());
          CHECK(rms(difference(ours.results[j], composed.results[j])) <= kTolerance * rms(composed.results[j]));
        }
        for (std::size_t i = 0; i < parameters.size(); ++i) {
          CAPTURE(parameters[i].name());
          // a result alone may not depend on an argument: then its gradient is small beside that of all results
          const double size = std::max(rms(composed.gradients[i]), only >= 0 ? 1e-3 * rms(all.gradients[i]) : 0.0);
          CHECK(rms(difference(ours.gradients[i], composed.gradients[i])) <= kTolerance * size);
        }
      }
    }
  }
}

TEST_CASE("reference: a kernel in f32 is at most twice as far from f64 as its composed form in f32") {
  const Threads one(1);
  constexpr double kRounding = 0x1p-24;  // half the distance of neighbouring f32 numbers, relative
  constexpr int kDraws = 15;
  for (const Op* op : all_ops()) {
    if (!op->reference || !op->forward.cpu) continue;
    CAPTURE(op->name);
    for (const Sample& sample : op->samples) {
      CAPTURE(sample.label);
      std::vector<Errors> results, gradients;
      std::vector<std::string> names;
      for (std::uint64_t seed = 40; seed < 40 + std::uint64_t(kDraws); ++seed) {
        const Tensors wide = rounded_arguments(*op, sample, seed, Dtype::f64);
        const Tensors narrow = rounded_arguments(*op, sample, seed, Dtype::f32);
        const Outcome exact = run(*op, sample, wide, false, -1, seed);
        const Outcome kernel = run(*op, sample, narrow, false, -1, seed);
        const Outcome reference = run(*op, sample, narrow, true, -1, seed);
        results.resize(exact.results.size());
        gradients.resize(exact.gradients.size());
        for (std::size_t j = 0; j < results.size(); ++j) results[j].add(kernel.results[j], reference.results[j], exact.results[j]);
        for (std::size_t i = 0; i < gradients.size(); ++i)
          gradients[i].add(kernel.gradients[i], reference.gradients[i], exact.gradients[i]);
        names.clear();
        for (const Tensor& p : parameters_of(wide)) names.push_back("d" + p.name());
      }
      auto judge = [&](const Errors& e, const std::string& tensor) {
        CAPTURE(tensor);
        // style.md 7.3: twice the error of the plain form plus one rounding, the largest error at six times. One rounding
        // more, because the composed form is not the same algorithm: a kernel keeps a logarithm or a quotient for backward
        // where the composed form keeps both terms
        CHECK(middle(e.kernel) <= 2 * middle(e.reference) + 2 * kRounding);
        CHECK(e.kernel_worst <= 6 * e.reference_worst + 2 * kRounding * e.largest_value);
      };
      for (std::size_t j = 0; j < results.size(); ++j) judge(results[j], op->results[j]);
      for (std::size_t i = 0; i < gradients.size(); ++i) judge(gradients[i], names[i]);
    }
  }
}

TEST_CASE("reference: a primitive in f32 agrees with itself in f64") {
  const Threads one(1);
  for (const Op* op : all_ops()) {
    if (op->reference || !op->backward.cpu) continue;  // views compute nothing
    CAPTURE(op->name);
    for (const Sample& sample : op->samples) {
      CAPTURE(sample.label);
      const Tensors wide = rounded_arguments(*op, sample, 60, Dtype::f64);
      const Tensors narrow = rounded_arguments(*op, sample, 60, Dtype::f32);
      const Outcome exact = run(*op, sample, wide, false, -1, 60);
      const Outcome kernel = run(*op, sample, narrow, false, -1, 60);
      // a primitive rounds a few times an element, or sums at most some hundred: 50 roundings of 6e-8
      constexpr double kTolerance = 50 * 0x1p-24;
      for (std::size_t j = 0; j < exact.results.size(); ++j) {
        CAPTURE(op->results[j]);
        CHECK(rms(difference(kernel.results[j], exact.results[j])) <= kTolerance * rms(exact.results[j]));
      }
      for (std::size_t i = 0; i < exact.gradients.size(); ++i) {
        CAPTURE(i);
        CHECK(rms(difference(kernel.gradients[i], exact.gradients[i])) <= kTolerance * rms(exact.gradients[i]));
      }
    }
  }
}

TEST_CASE("reference: an op records that its fused forms exist and that formulas are written down") {
  for (const Op* op : all_ops()) {
    CAPTURE(op->name);
    CHECK(!op->formula_forward.empty());
    if (op->backward.cpu) CHECK(!op->formula_backward.empty());
    CHECK(op->samples.size() > 0);
    // the composed form must be made of other ops
    if (!op->reference) continue;
    const Sample& sample = op->samples.front();
    const Expand guard = Expand::composed();
    const Tensors arguments = draw_arguments(*op, sample, 1);
    const Program list = record([&] { return apply(*op, sample.attributes, arguments); });
    for (const Entry& e : list.entries) CHECK(e.op->name != op->name);
  }
}

#include "tests/parity.h"

#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/device.h"
#include "core/parallel.h"
#include "tests/parity_run.h"

namespace hedgehog::test {
namespace {

Tensors results_of(const ParityCase& c, const Tensors& arguments, bool composed) {
  Tensors inputs = arguments;
  if (c.activations)
    for (Tensor& x : inputs)
      if (x && x.wants_gradient()) x = apply(detail::kCopy, {}, {x})[0];
  auto call = [&] { return c.function ? c.function(inputs) : apply(*c.op, c.sample.attributes, inputs); };
  if (!composed) return call();
  const Expand guard = Expand::composed();
  return call();
}

std::string result_name(const ParityCase& c, std::size_t j) {
  return c.function || j >= c.op->results.size() ? fmt::format("result {}", j) : c.op->results[j];
}

/// Root of the mean square of the distances of two tensors, the largest distance, and those of the second tensor alone.
struct Distance {
  double error = 0, largest_error = 0, size = 0, largest = 0;

  /// Infinite where only one of two numbers is finite, so that a NaN is an error. -inf that is meant, as from a mask, has no size.
  Distance(const std::vector<double>& a, const std::vector<double>& b) {
    constexpr double kInfinity = std::numeric_limits<double>::infinity();
    constexpr std::int64_t kBlock = 8192;
    const std::int64_t count = std::int64_t(std::min(a.size(), b.size())), blocks = (count + kBlock - 1) / kBlock;
    std::vector<Distance> parts(static_cast<std::size_t>(blocks), Distance{});
    parallel_for(blocks, 2, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t p = begin; p < end; ++p) {
        Distance part;
        for (std::int64_t i = p * kBlock; i < std::min(count, (p + 1) * kBlock); ++i) {
          const double x = a[std::size_t(i)], y = b[std::size_t(i)];
          part.add(x == y ? 0 : std::isfinite(x) && std::isfinite(y) ? std::abs(x - y) : kInfinity, y);
        }
        parts[std::size_t(p)] = part;
      }
    });
    for (const Distance& part : parts) {
      error += part.error;
      size += part.size;
      finite_ += part.finite_;
      largest_error = std::max(largest_error, part.largest_error);
      largest = std::max(largest, part.largest);
    }
    if (a.size() != b.size()) error = largest_error = kInfinity;
    error = std::sqrt(error / double(std::max<std::size_t>(b.size(), 1)));
    size = std::sqrt(size / double(std::max<std::int64_t>(finite_, 1)));
  }

 private:
  Distance() = default;
  void add(double distance, double value) {
    error += distance * distance;
    largest_error = std::max(largest_error, distance);
    if (!std::isfinite(value)) return;
    ++finite_;
    size += value * value;
    largest = std::max(largest, std::abs(value));
  }
  std::int64_t finite_ = 0;
};

double middle(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + std::ptrdiff_t(values.size() / 2), values.end());
  return values[values.size() / 2];
}

// sums and quotients of f64 numbers leave this at most where they are 0 in exact arithmetic, and nothing else is so small
constexpr double kNothing = 1e-12;

}  // namespace

void round_numbers(std::vector<double>& numbers, Dtype dtype) {
  if (dtype == Dtype::bf16)
    for (double& x : numbers) x = double(float(BFloat16(float(x))));
  if (dtype == Dtype::f32)
    for (double& x : numbers) x = double(float(x));
}

Tensors arguments_of(const ParityCase& c, const Drawn& drawn, Dtype dtype) {
  const Tensors out = empty_arguments(*c.op, c.sample, dtype);
  for (std::size_t i = 0; i < out.size(); ++i)
    if (out[i]) out[i].copy_from(drawn.arguments[i]);
  return out;
}

Tensors forward_and_backward(const ParityCase& c, const Tensors& arguments, bool composed, const Numbers& cotangents) {
  const Tensors results = results_of(c, arguments, composed);
  Tensors differentiable, upstream;
  for (std::size_t j = 0; j < results.size(); ++j) {
    const Tensor& y = results[j];
    if (!y.wants_gradient()) continue;
    differentiable.push_back(y);
    upstream.push_back(input(y.shape(), "cotangent", y.dtype()));
    if (!cotangents.empty()) upstream.back().copy_from(cotangents[j]);
  }
  if (!differentiable.empty()) backward(differentiable, upstream);
  return results;
}

Outcome outcome_of(const ParityCase& c, const Tensors& results, const Tensors& arguments) {
  Outcome out;
  for (std::size_t j = 0; j < results.size(); ++j) out.push_back({result_name(c, j), results[j].to_vector()});
  for (const Tensor& x : arguments) {
    if (x && x.wants_gradient()) out.push_back({"d" + x.name(), x.grad().to_vector()});
    if (x && x.role() == Role::state) out.push_back({x.name() + " afterwards", x.to_vector()});
  }
  return out;
}

std::vector<ParityCase> cases_of(const Op& op) {
  std::vector<ParityCase> out;
  for (const Sample& sample : op.samples)
    for (const bool activations : {false, true}) {
      if (activations && !has_backward(op)) continue;
      out.push_back({.op = &op, .sample = sample, .activations = activations});
    }
  return out;
}

Drawn draw_case(const ParityCase& c, const Kept& kept, std::uint64_t seed, Dtype dtype, bool hard) {
  Drawn out;
  for (std::size_t i = 0; i < c.sample.inputs.size(); ++i)
    out.arguments.push_back(draw_numbers(c.sample.inputs[i], seed, std::uint32_t(i)));
  if (hard && c.change) c.change(out.arguments);
  for (std::size_t i = 0; i < out.arguments.size(); ++i) round_numbers(out.arguments[i], kept.arguments[i]);
  for (std::size_t j = 0; j < kept.cotangents.size(); ++j) {
    out.cotangents.push_back(draw_numbers(normal({kept.cotangents[j]}), seed, 50u + std::uint32_t(j)));
    round_numbers(out.cotangents.back(), dtype);
  }
  return out;
}

Outcome run_case(const ParityCase& c, const Drawn& drawn, Dtype dtype, bool composed) {
  const Tensors arguments = arguments_of(c, drawn, dtype);
  Tensors results;
  for (int pass = 0; pass < c.passes; ++pass) {
    results = forward_and_backward(c, arguments, composed, drawn.cotangents);
    clear_tape();
  }
  return outcome_of(c, results, arguments);
}

void Errors::add(const std::vector<double>& got, const std::vector<const std::vector<double>*>& plain_values,
                 const std::vector<double>& exact, const std::vector<double>& plain_exact) {
  const Distance mine(got, exact);
  ours_worst = std::max(ours_worst, mine.largest_error);
  largest_value = std::max(largest_value, mine.largest);
  if (mine.size <= kNothing) {
    nothing = std::max(nothing, mine.largest_error);
    for (const std::vector<double>* values : plain_values)
      plain_nothing = std::max(plain_nothing, Distance(*values, plain_exact).largest_error);
    return;
  }
  ours.push_back(mine.error / mine.size);
  double worst = 0;
  for (const std::vector<double>* values : plain_values) {
    const Distance form(*values, plain_exact);
    worst = std::max(worst, form.error / std::max(form.size, kNothing));
    // hard numbers may be larger than those that the plain form was measured on
    plain_worst = std::max(plain_worst, form.largest_error * std::max(1.0, mine.largest / std::max(form.largest, kNothing)));
  }
  plain.push_back(worst);
}

double Errors::allowed() const {
  // f64: sums of some hundred terms in another order, and a condition of some hundred where quotients and exponentials follow one
  // another, leave 1e-11 of the tensor's size (as in suite_reference)
  if (rounding < 0x1p-40) return 1e-11;
  return 2 * (plain.empty() ? 0 : middle(plain)) + rounding + conditioning;
}

std::string Errors::verdict() const {
  // where the exact tensor is 0, terms of the size of arguments and cotangents, which are normal draws, cancel: a dozen roundings,
  // and what the plain form leaves of sums that cancel
  const double rest = rounding < 0x1p-40 ? 1e-11 : 16 * rounding + 6 * plain_nothing;
  if (!(nothing <= rest)) return fmt::format("{}: {:.3g} where the exact tensor is 0, allowed {:.3g}", name, nothing, rest);
  if (ours.empty()) return {};
  if (!std::isfinite(plain_worst)) return fmt::format("{}: the plain form is not finite, so it allows anything", name);
  const double error = middle(ours);
  if (!(error <= allowed()))
    return fmt::format("{}: relative error {:.3g}, allowed {:.3g} (plain form {:.3g})", name, error, allowed(), middle(plain));
  // the largest error of one rounding is twice its root of the mean square; one that went through products and exponentials is
  // spread like a plain form's
  const double most = 6 * (plain_worst + conditioning * largest_value) + (2 * rounding + (rounding < 0x1p-40 ? 1e-9 : 0)) * largest_value;
  if (!(ours_worst <= most))
    return fmt::format("{}: largest error {:.3g}, allowed {:.3g} (plain form {:.3g})", name, ours_worst, most, plain_worst);
  return {};
}

namespace {

/// What passes beside twice the error of the plain form.
double rounding_of(const ParityCase& c, const Kept& kept, std::size_t tensor, Dtype dtype) {
  if (dtype == Dtype::f64) return 0x1p-53;
  // one rounding, relative, as root of the mean square: at most half the distance of neighbouring numbers, 2^-24 in f32; in bf16
  // half of that, 2^-9, because there it is most of the error and its mean is known
  if (dtype == Dtype::bf16 && kept.dtypes[tensor] == Dtype::bf16) return 0x1p-9;
  // a fused op has one rounding more, as in suite_reference: it is not the same algorithm as its composed form
  double rounding = is_composite(c) ? 2 * 0x1p-24 : 0x1p-24;
  // tensor cores add products of bf16 numbers in f32 in groups of 16, and cut a sum off instead of rounding it to nearest: half a
  // unit in the last place for each group on average, all in one direction
  if (dtype == Dtype::bf16) rounding += double(kept.terms[tensor]) / 16 * 0x1p-24;
  return rounding;
}

std::vector<Outcome> plain_forms(const ParityCase& c, const Kept& kept, const Drawn& drawn, Dtype dtype) {
  if (dtype == Dtype::f64) return {};  // has a tolerance of its own
  std::vector<Outcome> forms;
  const bool composed = is_composite(c);
  if (dtype == Dtype::bf16) {
    forms.push_back(run_stored(c, drawn, kept));
    if (composed) forms.push_back(run_products(c, drawn, kept));
  } else {
    forms.push_back(run_case(c, drawn, dtype));
    if (composed) forms.push_back(run_case(c, drawn, dtype, true));
  }
  return forms;
}

}  // namespace

std::vector<Errors> compare(const ParityCase& c, Dtype dtype, const Run& ours) {
  const std::optional<Kept> kept = kept_in(c, dtype);
  if (!kept) return {};
  std::vector<Errors> errors(kept->dtypes.size());
  // the middle of a few draws of a few numbers is chance: which roundings the plain form happens to make then depends on the
  // instructions that the CPU's compiler chose
  std::int64_t elements = 0;
  for (const SampleInput& input : c.sample.inputs) elements = std::max(elements, input.shape.size());
  const int draws = elements < 256 ? 5 * c.draws : c.draws;
  for (std::uint64_t seed = 40; seed < 40 + std::uint64_t(draws); ++seed) {
    const Drawn drawn = draw_case(c, *kept, seed, dtype);
    const Outcome got = ours(c, drawn, *kept);
    const OnDevice guard(cpu_device());
    const Outcome exact = run_case(c, drawn, Dtype::f64);
    const Drawn tame = c.change ? draw_case(c, *kept, seed, dtype, false) : Drawn{};
    const Outcome tame_exact = c.change && dtype != Dtype::f64 ? run_case(c, tame, Dtype::f64) : Outcome{};
    const std::vector<Outcome> plain = plain_forms(c, *kept, c.change ? tame : drawn, dtype);
    REQUIRE(got.size() == exact.size());
    REQUIRE(errors.size() == exact.size());
    for (std::size_t i = 0; i < exact.size(); ++i) {
      std::vector<const std::vector<double>*> values;
      for (const Outcome& form : plain) values.push_back(&form.at(i).values);
      errors[i].name = exact[i].name;
      errors[i].conditioning = c.conditioning;
      errors[i].rounding = rounding_of(c, *kept, i, dtype);
      errors[i].add(got[i].values, values, exact[i].values, tame_exact.empty() ? exact[i].values : tame_exact[i].values);
    }
  }
  return errors;
}

Run run_here(Dtype dtype) {
  return [dtype](const ParityCase& c, const Drawn& drawn, const Kept&) { return run_case(c, drawn, dtype); };
}

int check_parity(const ParityCase& c, const std::function<Run(Dtype)>& run_of) {
  int compared = 0;
  CAPTURE(c.op->name);
  CAPTURE(c.sample.label);
  CAPTURE(c.activations);
  for (const Dtype dtype : c.dtypes) {
    CAPTURE(std::string(name_of(dtype)));
    const std::vector<Errors> errors = compare(c, dtype, run_of(dtype));
    for (const Errors& e : errors) {
      const std::string wrong = e.verdict();
      CHECK_MESSAGE(wrong.empty(), wrong);
    }
    compared += !errors.empty();
  }
  return compared;
}

}  // namespace hedgehog::test

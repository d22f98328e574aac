#include "tests/parity.h"

#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/device.h"
#include "core/error.h"
#include "core/executor.h"
#include "tests/shape_device.h"

namespace hedgehog::test {
namespace {

double rounded_to(double x, Dtype dtype) {
  return dtype == Dtype::bf16 ? double(float(BFloat16(float(x)))) : dtype == Dtype::f32 ? double(float(x)) : x;
}

/// y = x with 8 significant bits, the dtype kept.
const Op kRounded{
    .name = "rounded_to_bf16",
    .arguments = {{"x"}},
    .results = {"y"},
    .infer = [](const Attributes&, std::span<const Meta> in) { return Layout{{in[0]}, {}}; },
    .forward = {[](const Call& c) {
      for (std::int64_t i = 0; i < c.inputs[0].size(); ++i) c.outputs[0].as<float>()[i] = float(BFloat16(c.inputs[0].as<float>()[i]));
    }},
};

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

Tensors forward_and_backward(const ParityCase& c, const Tensors& arguments, bool composed, std::uint64_t seed, Dtype rounded) {
  const Tensors results = results_of(c, arguments, composed);
  Tensors differentiable, cotangents;
  for (std::size_t j = 0; j < results.size(); ++j) {
    const Tensor& y = results[j];
    if (!y.wants_gradient()) continue;
    std::vector<double> dy = draw(y.size(), seed, 50u + std::uint32_t(j));
    for (double& x : dy) x = rounded_to(x, rounded);
    differentiable.push_back(y);
    cotangents.push_back(constant(y.shape(), dy, y.dtype(), "cotangent"));
  }
  if (!differentiable.empty()) backward(differentiable, cotangents);
  return results;
}

std::string result_name(const ParityCase& c, std::size_t j) {
  return c.function || j >= c.op->results.size() ? fmt::format("result {}", j) : c.op->results[j];
}

/// Gradients and overwritten arguments, behind the results.
void add_arguments(const Tensors& arguments, Outcome& out) {
  for (const Tensor& x : arguments) {
    if (x && x.wants_gradient()) out.push_back({"d" + x.name(), x.grad().to_vector()});
    if (x && x.role() == Role::state) out.push_back({x.name() + " afterwards", x.to_vector()});
  }
}

/// The composed form in f32 on the CPU, with rounding where tensor cores round and at the end.
Outcome plain_bf16(const ParityCase& c, const Kept& kept, std::uint64_t seed, bool hard) {
  const Tensors arguments = arguments_of(c, seed, Dtype::bf16, Dtype::f32, hard);
  Program program = with_rounded_products(record([&] { return forward_and_backward(c, arguments, true, seed, Dtype::bf16); }));
  Executor run(std::move(program));
  for (int pass = 0; pass < c.passes; ++pass) run.run();
  Outcome out;
  for (std::size_t j = 0; j < run.program().outputs.size(); ++j) out.push_back({result_name(c, j), run.output(j).to_vector()});
  add_arguments(arguments, out);
  for (std::size_t i = 0; i < out.size(); ++i)
    for (double& x : out[i].values) x = rounded_to(x, kept.dtypes.at(i));
  return out;
}

bool is_composite(const ParityCase& c) { return c.function || c.op->reference; }

/// |a - b| element by element; infinite where only one of them is finite, so that a NaN is an error.
std::vector<double> distances(const std::vector<double>& a, const std::vector<double>& b) {
  std::vector<double> out(std::max(a.size(), b.size()), std::numeric_limits<double>::infinity());
  for (std::size_t i = 0; i < std::min(a.size(), b.size()); ++i)
    if (a[i] == b[i]) out[i] = 0;
    else if (std::isfinite(a[i]) && std::isfinite(b[i])) out[i] = std::abs(a[i] - b[i]);
  return out;
}

/// Of the finite ones: a mask's -inf has no size.
std::vector<double> finite(std::vector<double> values) {
  std::erase_if(values, [](double x) { return !std::isfinite(x); });
  return values;
}

double middle(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + std::ptrdiff_t(values.size() / 2), values.end());
  return values[values.size() / 2];
}

// sums and quotients of f64 numbers leave this at most where they are 0 in exact arithmetic, and nothing else is so small
constexpr double kNothing = 1e-12;

}  // namespace

std::vector<ParityCase> cases_of(const Op& op) {
  std::vector<ParityCase> out;
  for (const Sample& sample : op.samples)
    for (const bool activations : {false, true}) {
      if (activations && !has_backward(op)) continue;
      out.push_back({.op = &op, .sample = sample, .activations = activations});
    }
  return out;
}

Tensors arguments_of(const ParityCase& c, std::uint64_t seed, Dtype rounded, Dtype dtype, bool hard) {
  Numbers numbers;
  {
    const OnDevice guard(cpu_device());
    const Tensors drawn = draw_arguments(*c.op, c.sample, seed, rounded);
    for (const Tensor& x : drawn) numbers.push_back(x ? x.to_vector() : std::vector<double>{});
    if (hard && c.change) {
      c.change(numbers);
      for (std::size_t i = 0; i < drawn.size(); ++i)
        for (double& x : numbers[i]) x = rounded_to(x, drawn[i].dtype());
    }
  }
  const Tensors out = draw_arguments(*c.op, c.sample, seed, dtype);
  for (std::size_t i = 0; i < out.size(); ++i)
    if (out[i]) out[i].copy_from(numbers[i]);
  return out;
}

Outcome run_case(const ParityCase& c, const Tensors& arguments, bool composed, std::uint64_t seed, Dtype rounded) {
  Outcome out;
  for (int pass = 0; pass < c.passes; ++pass) {
    out.clear();
    const Tensors results = forward_and_backward(c, arguments, composed, seed, rounded);
    for (std::size_t j = 0; j < results.size(); ++j) out.push_back({result_name(c, j), results[j].to_vector()});
    clear_tape();
  }
  add_arguments(arguments, out);
  return out;
}

Program with_rounded_products(Program program) {
  std::vector<Entry> entries;
  for (Entry& e : program.entries) {
    auto round = [&](Tensor& x) {
      if (!x) return;
      Entry rounding;
      rounding.op = &kRounded;
      rounding.inputs = {x};
      rounding.outputs = {declare(x.shape(), x.dtype())};
      rounding.versions = {x.version()};
      x = rounding.outputs[0];
      entries.push_back(std::move(rounding));
    };
    if (e.op->name == "matmul") {
      for (Tensor& x : e.inputs) round(x);
      for (Tensor& dy : e.dy) round(dy);
    }
    entries.push_back(std::move(e));
  }
  program.entries = std::move(entries);
  return program;
}

std::optional<Kept> kept_in(const ParityCase& c, Dtype dtype) {
  const OnDevice guard(shape_device());
  const Tensors arguments = draw_arguments(*c.op, c.sample, 1, dtype);
  Program program;
  try {
    program = record([&] { return forward_and_backward(c, arguments, false, 1, dtype); });
  } catch (const ShapeError&) {
    return {};
  }
  Kept kept;
  for (const Tensor& y : program.outputs) kept.dtypes.push_back(y.dtype());
  kept.results = program.outputs.size();
  for (const Tensor& x : arguments) {
    if (x && x.wants_gradient()) kept.dtypes.push_back(c.activations ? x.dtype() : x.grad().dtype());
    if (x && x.role() == Role::state) kept.dtypes.push_back(x.dtype());
  }
  auto any_narrow = [](const Tensors& tensors, std::uint32_t read) {
    for (std::size_t i = 0; i < tensors.size(); ++i)
      if ((read >> i & 1u) && tensors[i] && tensors[i].dtype() == Dtype::bf16) return true;
    return false;
  };
  for (const Entry& e : program.entries)
    kept.narrow |= e.backward && (any_narrow(e.saved, e.op->reads.saved) || any_narrow(e.outputs, e.op->reads.outputs));
  return kept;
}

void Errors::add(const std::vector<double>& got, const std::vector<std::vector<double>>& plain_values, const std::vector<double>& exact,
                 const std::vector<std::vector<double>>& plain_exact) {
  const double size = rms(finite(exact));
  const std::vector<double> error = distances(got, exact);
  ours_worst = std::max(ours_worst, largest(error));
  largest_value = std::max(largest_value, largest(finite(exact)));
  if (size <= kNothing) {
    nothing = std::max(nothing, largest(error));
    return;
  }
  ours.push_back(rms(error) / size);
  double worst = 0;
  for (std::size_t k = 0; k < plain_values.size(); ++k) {
    const std::vector<double> plain_error = distances(plain_values[k], plain_exact[k]);
    worst = std::max(worst, rms(plain_error) / std::max(rms(finite(plain_exact[k])), kNothing));
    // hard numbers may be larger than those that the plain form was measured on
    const double scale = largest(finite(exact)) / std::max(largest(finite(plain_exact[k])), kNothing);
    plain_worst = std::max(plain_worst, largest(plain_error) * std::max(1.0, scale));
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
  // where the exact tensor is 0, terms of the size of arguments and cotangents, which are normal draws, cancel: a dozen roundings
  if (!(nothing <= (rounding < 0x1p-40 ? 1e-11 : 16 * rounding)))
    return fmt::format("{}: {:.3g} where the exact tensor is 0", name, nothing);
  if (ours.empty()) return {};
  if (!std::isfinite(plain_worst)) return fmt::format("{}: the plain form is not finite, so it allows anything", name);
  const double error = middle(ours);
  if (!(error <= allowed()))
    return fmt::format("{}: relative error {:.3g}, allowed {:.3g} (plain form {:.3g})", name, error, allowed(), middle(plain));
  // the largest error of one rounding is twice its root of the mean square
  const double most = 6 * plain_worst + 2 * (rounding + conditioning) * largest_value + (rounding < 0x1p-40 ? 1e-9 * largest_value : 0);
  if (!(ours_worst <= most))
    return fmt::format("{}: largest error {:.3g}, allowed {:.3g} (plain form {:.3g})", name, ours_worst, most, plain_worst);
  return {};
}

std::vector<Errors> compare(const ParityCase& c, Dtype dtype, const Run& ours) {
  const std::optional<Kept> kept = kept_in(c, dtype);
  if (!kept) return {};
  std::vector<Errors> errors;
  for (std::uint64_t seed = 40; seed < 40 + std::uint64_t(c.draws); ++seed) {
    const Outcome got = ours(c, seed);
    const OnDevice guard(cpu_device());
    auto exact_of = [&](bool hard) { return run_case(c, arguments_of(c, seed, dtype, Dtype::f64, hard), false, seed, dtype); };
    const Outcome exact = exact_of(true);
    const Outcome plain_exact = c.change ? exact_of(false) : exact;
    std::vector<Outcome> plain;
    if (dtype == Dtype::bf16) plain.push_back(plain_bf16(c, *kept, seed, false));
    if (dtype == Dtype::f32) {
      plain.push_back(run_case(c, arguments_of(c, seed, dtype, dtype, false), false, seed, dtype));
      if (is_composite(c)) plain.push_back(run_case(c, arguments_of(c, seed, dtype, dtype, false), true, seed, dtype));
    }
    if (dtype == Dtype::f64) plain.push_back(plain_exact);
    REQUIRE(got.size() == exact.size());
    errors.resize(exact.size());
    for (std::size_t i = 0; i < exact.size(); ++i) {
      errors[i].name = exact[i].name;
      std::vector<std::vector<double>> values, exacts;
      for (const Outcome& p : plain) {
        REQUIRE(p.size() == exact.size());
        values.push_back(p[i].values);
        exacts.push_back(plain_exact[i].values);
      }
      // One rounding, relative, as root of the mean square: at most half the distance of neighbouring numbers, 2^-24 in f32; in bf16
      // half of that, 2^-9, because there it is most of the error and its mean is known. A tensor that is f32 in a run of bf16 has
      // f32's, but for gradients by a backward that reads something kept in bf16
      const bool narrow = dtype == Dtype::bf16 && (kept->dtypes.at(i) == Dtype::bf16 || (kept->narrow && i >= kept->results));
      errors[i].conditioning = c.conditioning;
      errors[i].rounding = dtype == Dtype::f64 ? 0x1p-53 : narrow ? 0x1p-9 : 0x1p-24;
      errors[i].add(got[i].values, values, exact[i].values, exacts);
    }
  }
  return errors;
}

Run run_here(Dtype dtype) {
  return [dtype](const ParityCase& c, std::uint64_t seed) { return run_case(c, arguments_of(c, seed, dtype, dtype), false, seed, dtype); };
}

int check_parity(const ParityCase& c) {
  int compared = 0;
  CAPTURE(c.op->name);
  CAPTURE(c.sample.label);
  CAPTURE(c.activations);
  for (const Dtype dtype : {Dtype::f32, Dtype::f64, Dtype::bf16}) {
    CAPTURE(std::string(name_of(dtype)));
    const std::vector<Errors> errors = compare(c, dtype, run_here(dtype));
    for (const Errors& e : errors) {
      const std::string wrong = e.verdict();
      CHECK_MESSAGE(wrong.empty(), wrong);
    }
    compared += !errors.empty();
  }
  return compared;
}

}  // namespace hedgehog::test

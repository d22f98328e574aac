#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/error.h"
#include "core/random.h"
#include "core/stepper.h"

namespace hedgehog {
namespace {

/// Steps of central differences, from large to small: where the value is small, or the function is curved, the first are too wide.
std::vector<double> steps_of(const Tensor& x, double value) {
  const double first = (x.dtype() == Dtype::f64 ? 1e-5 : 1e-2) * std::max(1.0, std::abs(value));
  std::vector<double> steps{first, first / 100};
  if (const double own = 1e-4 * std::abs(value); own > 0 && own < steps.back()) steps.push_back(own);
  return steps;
}

}  // namespace

double Stepper::loss(const Tensor& x, const std::function<void(std::vector<double>&)>& change) const {
  if (seeds_.empty()) throw Error("[stepper] this program has no backward pass, so there is no loss to ask about");
  TraceMemory memory(&trace_.leaves());
  const auto changed = [&] {
    std::vector<double> values = memory.read(x);
    change(values);
    memory.write(x, values);
  };
  const bool leaf = x && trace_.known(x, 0);
  if (leaf) changed();
  for (const std::size_t i : needed_) {
    const Entry& e = entries()[i];
    run_entry(e, [&](const Tensor& t) { return memory.address(t); });
    if (!x || leaf) continue;
    for (const Tensor& y : Trace::results(e))
      if (y.root() == x.root()) {
        changed();
        break;
      }
  }
  double sum = 0;
  for (const Seed& s : seeds_) {
    const std::vector<double> y = memory.read(s.result), c = trace_.value(s.gradient, s.entry + 1);
    for (std::size_t i = 0; i < y.size(); ++i)
      if (c[i] != 0) sum += c[i] * y[i];
  }
  return sum;
}

DifferenceCheck Stepper::compare(double analytic, double largest_gradient, const std::function<double(double)>& loss_at,
                                 const std::vector<double>& steps) const {
  // beside others of its tensor only rounding is left of it: 0 by symmetry
  const double zero_beside = analytic != 0 && std::abs(analytic) <= 1e-13 * largest_gradient ? largest_gradient : 0;
  if (zero_beside > 0) analytic = 0;
  const bool wide = seeds_.empty() || seeds_.front().result.dtype() == Dtype::f64;
  const double place = wide ? std::numeric_limits<double>::epsilon() : double(std::numeric_limits<float>::epsilon());
  const double here = loss_at(0);
  DifferenceCheck best;
  best.analytic = analytic;
  best.unresolved = true;
  double gap = 0;  // between the slopes to either side, at the step before
  for (const double h : steps) {
    const double up = loss_at(h), down = loss_at(-h);
    DifferenceCheck check;
    check.analytic = analytic;
    check.numeric = (up - down) / (2 * h);
    check.left = (here - down) / h;
    check.right = (up - here) / h;
    const double largest = std::max(std::abs(analytic), std::abs(check.numeric)), difference = std::abs(analytic - check.numeric);
    // what rounding of the loss leaves of the difference: a few of its last places over the step
    const double rounding = 16 * place * std::max(std::abs(here), 1.0) / h;
    if (!std::isfinite(difference)) {
      if (best.unresolved) best.numeric = check.numeric, best.left = check.left, best.right = check.right, best.error = std::numeric_limits<double>::infinity();
      continue;
    }
    check.error = largest > 0 ? difference / largest : 0;
    check.passed = difference <= (wide ? 1e-6 : 5e-3) * largest + rounding;
    check.unresolved = rounding > 0.01 * std::max(largest, zero_beside) && (analytic != 0 || zero_beside > 0);
    if (check.passed && !check.unresolved) return check;
    if (check.unresolved) {
      check.passed = false;
      if (best.unresolved) best = check;
      continue;
    }
    // the gap of a kink stays as the step shrinks, that of a curve shrinks with it
    const double now = std::abs(check.right - check.left), low = std::min(check.left, check.right), high = std::max(check.left, check.right);
    const double room = 1e-3 * std::max(std::abs(low), std::abs(high));
    check.kink = gap > 0 && now >= 0.5 * gap && now > room && analytic >= low - room && analytic <= high + room;
    gap = now;
    if (best.unresolved || check.kink || check.error < best.error) best = check;
  }
  return best;
}

DifferenceCheck Stepper::check(const Tensor& x, std::int64_t element) const {
  check_element(x, element);
  const Tensor gradient = gradient_of(x);
  if (!gradient) throw UsageError(fmt::format("no gradient reaches '{}' in this program", name(x)));
  const double before = trace_.known(gradient, 0) ? trace_.value(gradient, 0)[std::size_t(element)] : 0;
  const std::vector<double> all = trace_.value(gradient, gradient_position(x));
  const double analytic = all[std::size_t(element)] - before;
  const double value = trace_.value(x, trace_.written(x).front())[std::size_t(element)];
  const Statistics range = statistics(all);
  const auto loss_at = [&](double h) { return loss(x, [&](std::vector<double>& v) { v[std::size_t(element)] += h; }); };
  return compare(analytic, std::max(std::abs(range.minimum), std::abs(range.maximum)), loss_at, steps_of(x, value));
}

DifferenceCheck Stepper::check_direction(const Tensor& x, std::uint64_t seed) const {
  const Tensor gradient = gradient_of(x);
  if (!gradient) throw UsageError(fmt::format("no gradient reaches '{}' in this program", name(x)));
  const std::vector<double> g = trace_.value(gradient, gradient_position(x));
  std::vector<double> before(g.size()), direction(g.size());
  if (trace_.known(gradient, 0)) before = trace_.value(gradient, 0);
  const Random random{seed, 77, 0};
  double length = 0, analytic = 0;
  for (std::size_t i = 0; i < g.size(); ++i) length += (direction[i] = random.normal(i)) * direction[i];
  for (std::size_t i = 0; i < g.size(); ++i) analytic += (direction[i] /= std::sqrt(length)) * (g[i] - before[i]);
  return compare(
      analytic, statistics(g).norm,
      [&](double h) {
        return loss(x, [&](std::vector<double>& v) {
          for (std::size_t i = 0; i < v.size(); ++i) v[i] += h * direction[i];
        });
      },
      steps_of(x, 1));
}

WhatIf Stepper::what_if(const Tensor& x, std::int64_t element, double change) const {
  check_element(x, element);
  if (x.root().wants_gradient() && x->base && !x.wants_gradient()) throw UsageError(fmt::format("'{}' is a detached look at '{}'; change that", name(x), name(x.root())));
  if (!is_floating(x.dtype())) {
    const double value = trace_.value(x, trace_.written(x).front())[std::size_t(element)] + change;
    if (change != std::floor(change) || std::abs(value) > double(std::numeric_limits<std::int32_t>::max()))
      throw UsageError(fmt::format("'{}' holds whole numbers; change it by one, got {:g}", name(x), change));
  }
  WhatIf result;
  result.loss = loss();
  result.actual = loss(x, [&](std::vector<double>& v) { v[std::size_t(element)] += change; }) - result.loss;
  if (const Tensor gradient = gradient_of(x)) {
    const double before = trace_.known(gradient, 0) ? trace_.value(gradient, 0)[std::size_t(element)] : 0;
    result.differentiable = true;
    result.predicted = change * (trace_.value(gradient, gradient_position(x))[std::size_t(element)] - before);
  }
  return result;
}

}  // namespace hedgehog

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "core/error.h"
#include "core/local_call.h"
#include "core/random.h"
#include "core/stepper.h"

namespace hedgehog {
namespace {

/// Elements from the start of the root's storage to element i of x.
std::int64_t offset_of(const Tensor& x, std::int64_t i) {
  return x->offset + (x.contiguous() ? i : i / x.columns() * x.stride() + i % x.columns());
}

/// The element of x that lies there; none: x does not reach there.
std::optional<std::int64_t> element_at(const Tensor& x, std::int64_t offset) {
  const std::int64_t within = offset - x->offset;
  if (within < 0) return {};
  if (x.contiguous()) return within < x.size() ? std::optional(within) : std::nullopt;
  const std::int64_t column = within % x.stride(), i = within / x.stride() * x.columns() + column;
  return column < x.columns() && i < x.size() ? std::optional(i) : std::nullopt;
}

void check_element(const Tensor& x, std::int64_t element, const std::string& name) {
  if (element < 0 || element >= x.size())
    throw UsageError(fmt::format("'{}' {} has no element {}; elements count from 0 to {}", name, x.shape().text(), element, x.size() - 1));
}

/// Where the sum of `terms` is as good as its parts' roundings allow.
double step_of(const Tensor& x, double value) { return (x.dtype() == Dtype::f64 ? 1e-5 : 1e-2) * std::max(1.0, std::abs(value)); }

/// An element of an output of an op, and the gradient that reaches it.
struct Upstream {
  std::size_t output;
  std::int64_t element;
  double value;
  bool depends;  // whether the element changes with the element of x that is asked about
};

/// Which outputs change when an element of an argument does: those are the terms to compute first.
std::vector<std::vector<bool>> dependent(LocalCall& call, std::size_t argument, std::int64_t element) {
  std::vector<double> values = call.argument(argument);
  const std::vector<std::vector<double>> before = call.forward(argument, values);
  double& v = values.at(std::size_t(element));
  v += 0.01 * std::max(1.0, std::abs(v));
  const std::vector<std::vector<double>> after = call.forward(argument, values);
  std::vector<std::vector<bool>> changed;
  for (std::size_t j = 0; j < before.size(); ++j) {
    changed.emplace_back(before[j].size());
    for (std::size_t o = 0; o < before[j].size(); ++o) changed[j][o] = before[j][o] != after[j][o];
  }
  return changed;
}

}  // namespace

double Why::sum() const {
  return std::accumulate(terms.begin(), terms.end(), before + seed + rest, [](double s, const Contribution& c) { return s + c.product(); });
}

Why Stepper::why(const Tensor& x, std::int64_t element, std::int64_t most) const {
  check_element(x, element, name(x));
  const Tensor gradient = root_gradient(x);
  if (!gradient) throw UsageError(fmt::format("no gradient reaches '{}' in this program", name(x)));
  const std::int64_t offset = offset_of(x, element);
  Why why;
  why.gradient = trace_.value(gradient_of(x), gradient_position(x))[std::size_t(element)];
  if (trace_.known(gradient, 0)) why.before = trace_.value(gradient, 0)[std::size_t(offset)];
  for (const Seed& s : seeds_)
    if (s.gradient == gradient) why.seed += trace_.value(entries()[s.entry].inputs.empty() ? gradient : entries()[s.entry].inputs[0], s.entry + 1)[std::size_t(offset)];
  for (std::size_t i = 0; i < size(); ++i) {
    const Entry& e = entries()[i];
    if (!e.backward) continue;
    for (std::size_t a = 0; a < e.dx.size(); ++a) {
      if (!e.dx[a] || e.inputs[a].root() != x.root()) continue;
      const std::optional<std::int64_t> at = element_at(e.inputs[a], offset);
      if (!at) continue;
      LocalCall call(trace_, i);
      std::vector<std::vector<double>> none(e.dy.size()), rest(e.dy.size());
      std::vector<Upstream> all;
      const std::vector<std::vector<bool>> depends = dependent(call, a, *at);
      for (std::size_t j = 0; j < e.dy.size(); ++j) {
        if (!e.dy[j]) continue;
        rest[j] = trace_.value(e.dy[j], i);
        for (std::size_t o = 0; o < rest[j].size(); ++o) {
          if (rest[j][o] == 0) ++why.zeros;
          else all.push_back({j, std::int64_t(o), rest[j][o], depends[j][o]});
        }
      }
      const auto shown = std::min(all.size(), std::size_t(most));
      std::partial_sort(all.begin(), all.begin() + std::ptrdiff_t(shown), all.end(),
                        [](const Upstream& p, const Upstream& q) {
                          return p.depends != q.depends ? p.depends : std::abs(p.value) > std::abs(q.value);
                        });
      for (std::size_t k = 0; k < shown; ++k) {
        const Upstream& u = all[k];
        std::vector<std::vector<double>> one = none;
        one[u.output].assign(rest[u.output].size(), 0);
        one[u.output][std::size_t(u.element)] = 1;
        rest[u.output][std::size_t(u.element)] = 0;
        const double local = call.backward(a, one)[std::size_t(*at)];
        if (local == 0) ++why.zeros;
        else why.terms.push_back({i, a, u.output, u.element, u.value, local});
      }
      if (shown == all.size()) continue;
      why.others += std::int64_t(all.size() - shown);
      why.rest += call.backward(a, rest)[std::size_t(*at)];
    }
  }
  std::stable_sort(why.terms.begin(), why.terms.end(),
                   [](const Contribution& p, const Contribution& q) { return std::abs(p.product()) > std::abs(q.product()); });
  return why;
}

double Stepper::local_difference(const Contribution& term, std::int64_t element_of_x) const {
  LocalCall call(trace_, term.entry);
  std::vector<double> values = call.argument(term.argument);
  double& v = values.at(std::size_t(element_of_x));
  const double kept = v, h = step_of(entries()[term.entry].inputs[term.argument], kept);
  const auto at = [&](double to) {
    v = to;
    return call.forward(term.argument, values).at(term.output).at(std::size_t(term.element));
  };
  const double up = at(kept + h), down = at(kept - h);
  return (up - down) / ((kept + h) - (kept - h));
}

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
    const std::vector<double> y = memory.read(s.result);
    const Entry& e = entries()[s.entry];
    const std::vector<double> c = trace_.value(e.inputs.empty() ? s.gradient : e.inputs[0], s.entry + 1);
    for (std::size_t i = 0; i < y.size(); ++i)
      if (c[i] != 0) sum += c[i] * y[i];
  }
  return sum;
}

DifferenceCheck Stepper::compare(double analytic, const std::function<double(double)>& loss_at, double step) const {
  DifferenceCheck check;
  check.analytic = analytic;
  const double here = loss_at(0);
  // the difference's own error, which shrinks with the square of the step, and what rounding of the loss leaves of it: a few of its last
  // places over the step
  const bool wide = seeds_.empty() || seeds_.front().result.dtype() == Dtype::f64;
  const double relative = wide ? 1e-6 : 5e-3, place = wide ? std::numeric_limits<double>::epsilon() : double(std::numeric_limits<float>::epsilon());
  const auto judge = [&](double h) {
    const double up = loss_at(h), down = loss_at(-h);
    check.numeric = (up - down) / (2 * h);
    check.left = (here - down) / h;
    check.right = (up - here) / h;
    const double largest = std::max(std::abs(analytic), std::abs(check.numeric)), difference = std::abs(analytic - check.numeric);
    const double rounding = 16 * place * std::max(std::abs(here), 1.0) / h;
    check.error = largest > 0 ? difference / largest : 0;
    check.passed = std::isfinite(difference) && difference <= relative * largest + rounding;
    return check.passed;
  };
  if (judge(step)) return check;
  // a kink within the step is left behind by a smaller one, a wrong gradient is not
  const DifferenceCheck first = check;
  if (judge(step / 100)) return check;
  const double low = std::min(check.left, check.right), high = std::max(check.left, check.right);
  const double room = 1e-3 * std::max(std::abs(low), std::abs(high));
  check.kink = high - low > room && analytic >= low - room && analytic <= high + room;
  if (!check.kink) check = first;
  return check;
}

DifferenceCheck Stepper::check(const Tensor& x, std::int64_t element) const {
  check_element(x, element, name(x));
  const Tensor gradient = gradient_of(x);
  if (!gradient) throw UsageError(fmt::format("no gradient reaches '{}' in this program", name(x)));
  const double before = trace_.known(gradient, 0) ? trace_.value(gradient, 0)[std::size_t(element)] : 0;
  const double analytic = trace_.value(gradient, gradient_position(x))[std::size_t(element)] - before;
  const double value = trace_.value(x, trace_.written(x).front())[std::size_t(element)];
  return compare(
      analytic, [&](double h) { return loss(x, [&](std::vector<double>& v) { v[std::size_t(element)] += h; }); }, step_of(x, value));
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
      analytic,
      [&](double h) {
        return loss(x, [&](std::vector<double>& v) {
          for (std::size_t i = 0; i < v.size(); ++i) v[i] += h * direction[i];
        });
      },
      step_of(x, 1));
}

WhatIf Stepper::what_if(const Tensor& x, std::int64_t element, double change) const {
  check_element(x, element, name(x));
  WhatIf result;
  result.loss = loss();
  result.actual = loss(x, [&](std::vector<double>& v) { v[std::size_t(element)] += change; }) - result.loss;
  if (const Tensor gradient = gradient_of(x)) {
    const double before = trace_.known(gradient, 0) ? trace_.value(gradient, 0)[std::size_t(element)] : 0;
    result.predicted = change * (trace_.value(gradient, gradient_position(x))[std::size_t(element)] - before);
  }
  return result;
}

Program Stepper::expand(std::size_t index) const {
  const Entry& e = entries().at(index);
  if (!e.op->reference)
    throw UsageError(fmt::format("{} is a primitive op; only ops that are made of others can be expanded", e.op->name));
  const std::size_t forward = e.backward ? partner_.at(index).value_or(index) : index;
  const std::optional<std::size_t> backward_entry = e.backward ? index : partner_.at(index);
  Tensors inputs;
  for (std::size_t a = 0; a < e.inputs.size(); ++a) {
    const Tensor& x = e.inputs[a];
    if (!x) {
      inputs.push_back({});
      continue;
    }
    const Argument& argument = e.op->arguments[a];
    const bool wanted = backward_entry && entries()[*backward_entry].dx.at(a);
    inputs.push_back(wanted                        ? parameter(x.shape(), argument.name, x.dtype())
                     : (e.op->updates >> a & 1u)   ? state(x.shape(), x.dtype(), argument.name)
                                                   : input(x.shape(), argument.name, x.dtype()));
    inputs.back().copy_from(trace_.value(x, forward));
  }
  return record([&] {
    const Tensors outputs = e.op->reference(e.attributes, inputs);
    if (!backward_entry) return outputs;
    Tensors results, cotangents;
    const Tensors& dy = entries()[*backward_entry].dy;
    for (std::size_t j = 0; j < outputs.size() && j < dy.size(); ++j) {
      if (!dy[j] || !outputs[j] || !outputs[j].wants_gradient()) continue;
      results.push_back(outputs[j]);
      cotangents.push_back(constant(dy[j].shape(), trace_.value(dy[j], *backward_entry), dy[j].dtype(), "upstream"));
    }
    if (!results.empty()) backward(results, cotangents);
    return outputs;
  });
}

std::vector<std::string> Stepper::warnings() const {
  std::vector<std::string> all;
  if (seeds_.empty()) all.emplace_back("there is no backward pass: call backward(loss) inside the recorded function");
  for (const std::string& name : names_) {
    const Tensor& x = by_name_.at(name);
    if (primal_.contains(x.root().get())) continue;
    if (x.role() == Role::parameter && x.wants_gradient() && !x->base && !seeds_.empty()) {
      const Tensor gradient = gradient_of(x);
      if (!gradient) {
        all.push_back(fmt::format("parameter '{}' gets no gradient: the loss does not depend on it, or detach, no_grad or an integer cut the path", name));
        continue;
      }
      const Statistics s = statistics(trace_.value(gradient, gradient_position(x)));
      if (s.non_finite) all.push_back(fmt::format("the gradient of '{}' has {} numbers that are not finite", name, s.non_finite));
      else if (s.zeros == s.count) all.push_back(fmt::format("the gradient of '{}' is zero everywhere", name));
      if (trace_.known(gradient, 0) && statistics(trace_.value(gradient, 0)).norm > 0)
        all.push_back(fmt::format("the gradient of '{}' was not zero before backward, which adds to it: clear it between steps", name));
    }
    if (name.ends_with(".detached")) all.push_back(fmt::format("'{}' was detached: no gradient flows back through it", name.substr(0, name.size() - 9)));
  }
  return all;
}

}  // namespace hedgehog

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "core/account.h"
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

constexpr double kWorkOfTerms = 2e9;  // FLOPs of the terms of one op: a second or so

/// Step of a central difference: where the error of the difference and that of rounding are about equal.
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

bool Why::adds_up(double largest) const {
  return sum() == gradient || std::abs(sum() - gradient) <= (wide ? 1e-10 : 1e-4) * largest;
}

double Why::sum() const {
  return std::accumulate(terms.begin(), terms.end(), before + seed + rest, [](double s, const Contribution& c) { return s + c.product(); });
}

Why Stepper::why(const Tensor& x, std::int64_t element, std::int64_t most) const {
  check_element(x, element);
  const Tensor own = gradient_of(x), gradient = own ? own.root() : own;
  if (!gradient) throw UsageError(fmt::format("no gradient reaches '{}' in this program", name(x)));
  const std::int64_t offset = offset_of(x, element);
  Why why;
  why.wide = gradient.dtype() == Dtype::f64;
  why.gradient = trace_.value(gradient_of(x), gradient_position(x))[std::size_t(element)];
  if (trace_.known(gradient, 0)) why.before = trace_.value(gradient, 0)[std::size_t(offset)];
  for (const Seed& s : seeds_) {
    if (s.gradient.root() != gradient) continue;
    if (const std::optional<std::int64_t> at = element_at(s.gradient, offset)) why.seed += trace_.value(s.gradient, s.entry + 1)[std::size_t(*at)];
  }
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
      // a term costs a whole backward call of the op
      const double affordable = kWorkOfTerms / std::max(work_of(e).flops, 1.0);
      const auto shown = std::min({all.size(), std::size_t(most), std::size_t(std::clamp(affordable, 16.0, 1e9))});
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
    for (const Tensor& y : used_outputs(forward)) {
      const std::size_t j = std::size_t(std::find(e.outputs.begin(), e.outputs.end(), y) - e.outputs.begin());
      const auto part_of_result = [&](const Tensor& x) { return x && x.root() == outputs[j].root(); };
      // a result may be an argument, or a part of one: that keeps its name
      if (j < outputs.size() && outputs[j] && std::none_of(inputs.begin(), inputs.end(), part_of_result)) outputs[j]->name = short_name(y);
    }
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

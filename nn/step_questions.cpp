#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "nn/step_session.h"

namespace hedgehog {
namespace {

constexpr std::size_t kTerms = 12;          // contributions shown
constexpr std::int64_t kElements = 64;      // of a tensor checked one by one, at most
constexpr double kWorkOfChecks = 1e9;       // FLOPs of one loss, times elements: a few seconds
constexpr double kWorkByTheWay = 1e8;       // of losses for marks beside gradients: a tenth of a second

}  // namespace

std::string StepSession::example() const {
  const Stepper& s = stepper();
  for (const std::string& name : s.names()) {
    const Tensor x = s.find(name);
    if (x.role() == Role::parameter && !x->base && s.gradient_of(x)) return name;
  }
  return "";
}

bool StepSession::cheap(std::size_t checks) const { return 3 * double(checks) * stepper().work_of_loss() <= kWorkByTheWay; }

std::string StepSession::proof(const Tensor& x, std::optional<std::int64_t> element) const {
  const Stepper& s = stepper();
  const Tensor gradient = s.gradient_of(x);
  if (!gradient) return "";
  const std::size_t complete = s.gradient_position(x);
  if (s.position() < complete) return fmt::format("(not complete before step {})", complete);
  if (s.position() > complete && s.trace().value(gradient, s.position()) != s.trace().value(gradient, complete))
    return "(changed since backward)";
  if (!cheap(1)) return fmt::format("('check {}' proves it)", s.short_name(x));
  return mark_text(element ? s.check(x, *element) : s.check_direction(x), style_, true);
}

std::string StepSession::here() const {
  const Stepper& s = stepper();
  const std::string name = example();
  if (s.position() == 0)
    throw UsageError(fmt::format("give a tensor's name, as in why {}; 'names' lists them", name.empty() ? "w[0,1]" : name));
  const Entry& e = s.entries()[s.position() - 1];
  for (std::size_t a = 0; a < e.dx.size(); ++a)
    if (e.dx[a]) return s.name(e.inputs[a]);
  for (const Tensor& y : s.used_outputs(s.position() - 1)) return s.primal_of(y) ? s.name(s.primal_of(y)) : s.name(y);
  throw UsageError("this step makes no tensor; give a name, as in w or w[0,1]");
}

std::pair<Tensor, std::int64_t> StepSession::element(const std::string& text) {
  const ElementName e = parse_element(without_gradient(text.empty() ? here() : text));
  const Tensor x = top().find(e.tensor);
  if (e.given || x.size() == 1) return {x, element_number(x, e)};
  const Tensor gradient = top().gradient_of(x);
  if (!gradient) throw UsageError(fmt::format("no gradient reaches '{}' in this program", e.tensor));
  const std::vector<double> g = top().trace().value(gradient, top().gradient_position(x));
  return {x, std::max_element(g.begin(), g.end(), [](double a, double b) { return std::abs(a) < std::abs(b); }) - g.begin()};
}

void StepSession::why(const std::string& what) {
  const auto [x, i] = element(what);
  const Stepper& s = top();
  const Why why = s.why(x, i);
  const std::string own = element_text(s.short_name(x), x.shape(), i);
  double largest = std::abs(why.gradient);
  for (const Contribution& c : why.terms) largest = std::max(largest, std::abs(c.product()));
  const std::size_t shown = std::min(kTerms, why.terms.size());
  const bool checked = cheap(1 + shown);
  const DifferenceCheck check = checked ? s.check(x, i) : DifferenceCheck{};
  std::string mark = checked ? mark_text(check, style_, true) : fmt::format("('check {}' proves it)", own);
  const std::string difference = number_text(check.numeric, 1e4 * std::abs(check.analytic));
  if (checked && check.wrong()) mark += fmt::format(" its central difference is {}", difference);
  say(style_.bold(fmt::format("dL/d{} = {}", own, number_text(why.gradient, largest))) + " " + mark);
  if (why.before != 0) say(fmt::format("  {:>12}   was there before backward", number_text(why.before)));
  if (why.seed != 0) say(fmt::format("  {:>12}   backward begins here", number_text(why.seed)));
  for (std::size_t k = 0; k < shown; ++k) {
    const Contribution& c = why.terms[k];
    const Entry& e = s.entries()[c.entry];
    const Tensor& y = e.outputs[c.output];
    const std::string other = element_text(s.short_name(y), y.shape(), c.element);
    const std::string upstream = number_text(c.upstream) + (checked ? " " + mark_text(s.check(y, c.element), style_, false) : "");
    std::string path = other.size() + own.size() <= 24 ? fmt::format("dL/d{} × d{}/d{}", other, other, own) : "through " + other;
    // x * x reads x twice
    if (std::count_if(e.inputs.begin(), e.inputs.end(), [&](const Tensor& t) { return t && t.root() == x.root(); }) > 1)
      path += " as " + e.op->arguments[c.argument].name;
    say(fmt::format("  {:>12} = {} × {}   {}   ({}, step {})", number_text(c.product(), largest), upstream, number_text(c.local), path,
                    e.op->name, c.entry + 1));
  }
  if (why.terms.size() > kTerms) {
    double rest = 0;
    for (std::size_t k = kTerms; k < why.terms.size(); ++k) rest += why.terms[k].product();
    say(fmt::format("  {:>12}   {} smaller terms", number_text(rest, largest), why.terms.size() - kTerms));
  }
  if (why.others) say(fmt::format("  {:>12}   {} more terms, summed", number_text(why.rest, largest), why.others));
  // no tick beside a number that is wrong, even if it is the right sum
  const std::string sum = !why.adds_up(largest)       ? " " + style_.bad("✗ is not the gradient")
                          : checked && check.wrong() ? ", which is what backward has"
                                                      : " " + style_.good("✓");
  say(fmt::format("  {:>12}   the sum{}", number_text(why.sum(), largest), sum));
}

void StepSession::check(const std::string& what) {
  if (what.empty()) return check_all();
  const ElementName e = parse_element(without_gradient(what));
  const Stepper& s = top();
  const Tensor x = s.find(e.tensor);
  if (e.given || x.size() == 1) {
    const std::int64_t i = element_number(x, e);
    return say(fmt::format("dL/d{}  {}", element_text(s.short_name(x), x.shape(), i), check_text(s.check(x, i), style_)));
  }
  say(fmt::format("along a random direction  {}", check_text(s.check_direction(x), style_)));
  std::int64_t right = 0, untold = 0;
  // each takes the loss three times
  const double affordable = std::clamp(kWorkOfChecks / std::max(s.work_of_loss(), 1.0), 2.0, 1e9);
  const std::int64_t count = std::min({kElements, x.size(), std::int64_t(affordable)});
  for (std::int64_t i = 0; i < count; ++i) {
    const DifferenceCheck c = s.check(x, i);
    right += c.passed;
    untold += c.kink || c.unresolved;
    if (!c.passed) say(fmt::format("dL/d{}  {}", element_text(s.short_name(x), x.shape(), i), check_text(c, style_)));
  }
  const bool good = right + untold == count;
  say(fmt::format("{} {} of {} elements agree with central differences{}{}", good ? style_.good("✓") : style_.bad("✗"), right, count,
                  untold ? fmt::format(", {} cannot be told", untold) : "",
                  count < x.size() ? fmt::format(" (of the first {} of {})", count, x.size()) : ""));
}

void StepSession::check_all() {
  const Stepper& s = top();
  std::vector<std::pair<std::string, std::string>> lines;  // of a name, and of its largest element
  std::size_t width = 0, inner = 0;
  for (const std::string& name : s.names()) {
    const Tensor x = s.find(name);
    if (x.role() != Role::parameter || x->base || !s.gradient_of(x)) continue;
    lines.emplace_back(name, element_text(name, x.shape(), element(name).second));
    width = std::max(width, name.size());
    inner = std::max(inner, lines.back().second.size());
  }
  if (lines.empty()) throw UsageError("no parameter of this program has a gradient; name a tensor, as in check x");
  inner = std::max(inner + std::string("largest: ").size(), std::string("along a random direction").size());
  for (const auto& [name, largest] : lines) {
    const Tensor x = s.find(name);
    const bool many = x.size() > 1;
    const auto line = [&](const std::string& first, const std::string& second, const DifferenceCheck& check) {
      say(fmt::format("  {:<{}}  {:<{}}  {}", first, width, second, inner, check_text(check, style_)));
    };
    if (many) line(name, "along a random direction", s.check_direction(x));
    line(many ? "" : name, many ? "largest: " + largest : "", s.check(x, element(name).second));
  }
}

void StepSession::what_if(const std::string& what) {
  std::size_t at = what.find("+="), sign = 1;
  if (at == std::string::npos) at = what.find("-="), sign = 0;
  const std::string name = example();
  if (at == std::string::npos)
    throw UsageError(fmt::format("what-if needs a change, as in what-if {} += 0.1", name.empty() ? "w[0,1]" : name));
  const auto [x, i] = element(trimmed(what.substr(0, at)));
  const double change = (sign ? 1 : -1) * real_number(trimmed(what.substr(at + 2)), "the change");
  const WhatIf result = top().what_if(x, i, change);
  say(fmt::format("the loss is {}; with {} {} {}", number_text(result.loss), element_text(top().short_name(x), x.shape(), i),
                  change < 0 ? "-=" : "+=", number_text(std::abs(change))));
  say(result.differentiable ? fmt::format("  predicted   {} = gradient × change", number_text(result.predicted))
                            : "  predicted   nothing: no gradient reaches it");
  const std::string actual = number_text(result.actual, std::abs(result.loss));
  say(fmt::format("  computed    {}: the loss is then {}", actual, number_text(result.loss + result.actual)));
}

void StepSession::expand() {
  if (top().position() == 0) throw UsageError("there is no op here yet; 'next' first");
  const std::size_t i = top().position() - 1;
  const std::string op = top().entries()[i].op->name;
  auto inside = std::make_unique<Stepper>(top().expand(i));
  steppers_.push_back({std::move(inside), fmt::format("inside {} of step {}", op, i + 1), op});
  show();
}

void StepSession::collapse() {
  if (steppers_.size() == 1) throw UsageError("no op is expanded here");
  steppers_.pop_back();
  show();
}

}  // namespace hedgehog

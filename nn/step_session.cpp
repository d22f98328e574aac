#include "nn/step_session.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstring>

#include "core/error.h"
#include "core/nearest_name.h"

namespace hedgehog {
namespace {

constexpr std::size_t kTerms = 12;          // contributions shown
constexpr std::int64_t kElements = 64;      // of a tensor checked one by one, at most
constexpr double kWorkOfChecks = 1e9;       // FLOPs of one loss, times elements: a few seconds

std::string trimmed(const std::string& text) {
  const std::size_t from = text.find_first_not_of(" \t\r\n");
  return from == std::string::npos ? "" : text.substr(from, text.find_last_not_of(" \t\r\n") - from + 1);
}

std::int64_t whole_number(const std::string& text, const char* what) {
  std::int64_t n = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), n);
  if (error != std::errc{} || end != text.data() + text.size() || n < 0) throw UsageError(fmt::format("{} must be a whole number, got '{}'", what, text));
  return n;
}

double real_number(const std::string& text, const char* what) {
  double v = 0;
  const char* const first = text.data() + (text.starts_with('+') ? 1 : 0);
  const auto [end, error] = std::from_chars(first, text.data() + text.size(), v);
  if (error != std::errc{} || end != text.data() + text.size() || !std::isfinite(v)) throw UsageError(fmt::format("{} must be a number, got '{}'", what, text));
  return v;
}

/// "x.grad[2]" asks about x.
std::string without_gradient(std::string text) {
  if (const std::size_t at = text.find(".grad"); at != std::string::npos && (at + 5 == text.size() || text[at + 5] == '[')) text.erase(at, 5);
  return text;
}

}  // namespace

StepSession::StepSession(Program program, std::FILE* out, StepSessionOptions options) : out_(out), options_(std::move(options)), style_{options_.color} {
  steppers_.push_back({std::make_unique<Stepper>(std::move(program)), ""});
  add_commands();
}

void StepSession::say(const std::string& text) const { fmt::print(out_, "{}\n", text); }

std::string StepSession::prompt() const { return fmt::format("step {}/{}> ", stepper().position(), stepper().size()); }

void StepSession::add_commands() {
  const auto add = [&](const char* group, const char* name, const char* argument, const char* text, std::function<void(const std::string&)> run) {
    commands_.push_back({name, argument, text, std::move(run), group});
  };
  add("move", "next", "[N]", "one step on, or N; an empty line too", [this](const std::string& a) { next(a); });
  add("move", "back", "[N]", "one step back, or N", [this](const std::string& a) { back(a); });
  add("move", "goto", "N|NAME", "to a step, to where a tensor is made, or to the first step of an op or a scope", [this](const std::string& a) { go(a); });
  add("move", "until", "nan | |g|>X", "on to the first number that is not finite, or the first gradient larger than X", [this](const std::string& a) { until(a); });
  add("look", "show", "", "where we are, and what the last step made", [this](const std::string&) { show(); });
  add("look", "list", "[all]", "the steps around here, or all", [this](const std::string& a) { list(a); });
  add("look", "names", "", "all tensors", [this](const std::string&) {
    for (const std::string& name : top().names()) say(fmt::format("  {:<24} {}", name, top().find(name).shape().text()));
  });
  add("look", "print", "NAME", "a tensor as it is at this step, or one element: w[0,1]", [this](const std::string& a) { print(a); });
  add("look", "stats", "NAME", "its extremes, mean, deviation, norm", [this](const std::string& a) { statistics_of(a); });
  add("look", "graph", "[FILE]", "the steps around here as a graph for Graphviz (dot -Tsvg), or all steps into a file", [this](const std::string& a) {
    if (a.empty()) return say(graph_text(top(), top().position()));
    const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(a.c_str(), "w"), std::fclose);
    if (!file) throw Error(fmt::format("{} cannot be written: {}", a, std::strerror(errno)));
    fmt::print(file.get(), "{}", graph_text(top(), {}));
    say(fmt::format("written {}", a));
  });
  add("ask", "why", "[NAME[I,J]]", "where a gradient comes from: upstream × local derivative, largest first; without a name that of this step", [this](const std::string& a) { why(a); });
  add("ask", "check", "[NAME[I,J]]", "a gradient against central differences of the loss: an element, a tensor, or all parameters", [this](const std::string& a) { check(a); });
  add("ask", "what-if", "NAME[I,J] += X", "the change of the loss, as the gradient predicts it and computed anew", [this](const std::string& a) { what_if(a); });
  add("ask", "expand", "", "step inside the op of this step: the simple ops that it is made of", [this](const std::string&) { expand(); });
  add("ask", "collapse", "", "back out again", [this](const std::string&) { collapse(); });
  add("ask", "warnings", "", "mistakes that this program shows", [this](const std::string&) {
    const std::vector<std::string> all = top().warnings();
    for (const std::string& w : all) say("! " + w);
    if (all.empty()) say("none");
  });
  add("session", "help", "[COMMAND]", "this list", [this](const std::string& a) { help(a); });
  if (options_.open)
    add("session", "open", "WHAT", "another program: an example's name, or L = (x*y + 3)^2; x = 2; y = -1", [this](const std::string& a) {
      auto stepper = std::make_unique<Stepper>(options_.open(a));
      steppers_.clear();
      steppers_.push_back({std::move(stepper), ""});
      show();
    });
  if (options_.html)
    add("session", "html", "FILE", "all of this as one page for a browser", [this](const std::string& a) {
      if (a.empty()) throw UsageError("html needs a file to write, as in html step.html");
      options_.html(top(), a);
      say(fmt::format("written {}", a));
    });
  add("session", "quit", "", "the end", [this](const std::string&) { done_ = true; });
}

bool StepSession::run(const std::string& line) {
  std::string whole = trimmed(line);
  if (whole == "?") whole = "help";
  if (whole == "exit") whole = "quit";
  const std::size_t space = whole.find_first_of(" \t");
  const std::string name = whole.empty() ? "next" : whole.substr(0, space), argument = space == std::string::npos ? "" : trimmed(whole.substr(space));
  try {
    std::vector<const Command*> found;
    std::vector<std::string> names;
    for (const Command& c : commands_) {
      names.push_back(c.name);
      if (c.name == name) found = {&c};
      if (c.name == name) break;
      if (c.name.starts_with(name)) found.push_back(&c);
    }
    if (found.empty()) {
      const std::string nearest = nearest_name(name, names);
      throw UsageError(fmt::format("there is no command '{}'{}; help lists them", name, nearest.empty() ? "" : fmt::format(", did you mean '{}'?", nearest)));
    }
    // a beginning is enough where the list's first word with it is meant: n, b, w, c, p, q
    found.front()->run(argument);
  } catch (const std::exception& e) {
    failed_ = true;
    say(style_.bad(e.what()));
  }
  return !done_;
}

void StepSession::help(const std::string& name) {
  std::string group;
  bool any = false;
  for (const Command& c : commands_) {
    if (!name.empty() && c.name != name) continue;
    any = true;
    if (name.empty() && c.group != group) say(style_.bold(group = c.group));
    say(fmt::format("  {:<26} {}", c.name + (c.argument.empty() ? "" : " " + c.argument), c.help));
  }
  if (!any) throw UsageError(fmt::format("there is no command '{}'; help lists them", name));
  if (name.empty()) say("A command's first letters are enough. Elements are written w[0,1]; a gradient is w.grad; without indices the largest is taken.");
}

void StepSession::show() {
  const Stepper& s = top();
  if (s.position() == 0) {
    const std::optional<std::size_t> begin = s.backward_begins();
    const std::string title = steppers_.size() > 1 ? "inside " + steppers_.back().title + ": " : "";
    if (begin) say(fmt::format("{}{} steps forward, to {} of {}, and {} that bring its gradients back; {} tensors", title, *begin, steppers_.size() > 1 ? "a sum of results times their gradients" : "a loss", number_text(s.loss()), s.size() - *begin, s.names().size()));
    else say(fmt::format("{}{} steps; {} tensors", title, s.size(), s.names().size()));
    if (steppers_.size() == 1) say("next goes one step on, check proves the gradients, help lists what else there is");
    // inside an op, what is detached is so on purpose
    if (steppers_.size() == 1)
      for (const std::string& w : s.warnings()) say(style_.bad("! " + w));
    return;
  }
  const std::size_t i = s.position() - 1;
  const Entry& e = s.entries()[i];
  std::string where = e.scope;
  if (e.where.line() > 0) where += fmt::format("{}{}:{}", where.empty() ? "" : "  ", std::string(e.where.file_name()).substr(std::string(e.where.file_name()).rfind('/') + 1), e.where.line());
  say(style_.bold(fmt::format("step {} of {}   {}", s.position(), s.size(), call_text(s, i))));
  const std::string& formula = e.backward ? e.op->formula_backward : e.op->formula_forward;
  if (!formula.empty()) say("  " + formula);
  if (!where.empty()) say(style_.faint("  " + where));
  if (e.op->views) {
    for (const Tensor& y : e.outputs) say(fmt::format("  {} {}: the same numbers under another shape", s.name(y), y.shape().text()));
    return;
  }
  Tensors made = e.backward ? e.dx : s.used_outputs(i);
  for (std::size_t a = 0; a < e.inputs.size() && !e.backward; ++a)
    if (e.inputs[a] && (e.op->updates >> a & 1u)) made.push_back(e.inputs[a]);
  for (const Tensor& x : made)
    if (x) fmt::print(out_, "{}", table_text((e.backward ? s.name(s.primal_of(x)) + ".grad" : s.name(x)), x.shape(), s.trace().value(x, s.position()), 64));
}

void StepSession::next(const std::string& count) {
  const std::int64_t n = count.empty() ? 1 : whole_number(count, "the number of steps");
  if (top().position() == top().size()) return say(steppers_.size() > 1 ? "this is the last step; 'collapse' leaves the op" : "this is the last step; 'check' proves the gradients");
  top().jump(std::min(top().size(), top().position() + std::size_t(n)));
  show();
}

void StepSession::back(const std::string& count) {
  const std::int64_t n = count.empty() ? 1 : whole_number(count, "the number of steps");
  if (top().position() == 0) return say("this is the beginning");
  top().jump(top().position() - std::min(top().position(), std::size_t(n)));
  show();
}

void StepSession::go(const std::string& where) {
  if (where.empty()) throw UsageError("goto needs a step's number, a tensor, an op or a scope; 'list all' shows the steps");
  Stepper& s = top();
  if (where.find_first_not_of("0123456789") == std::string::npos) {
    const std::int64_t n = whole_number(where, "the step");
    if (std::size_t(n) > s.size()) throw UsageError(fmt::format("there is no step {}; the last is {}", n, s.size()));
    s.jump(std::size_t(n));
    return show();
  }
  if (const Tensor x = s.find_or_empty(where)) {
    if (const auto maker = s.find_after(0, [&](std::size_t i) {
          const Entry& e = s.entries()[i];
          return !e.backward && std::find(e.outputs.begin(), e.outputs.end(), x) != e.outputs.end();
        })) {
      s.jump(*maker);
      return show();
    }
    // a gradient's first contribution; a leaf has none and is there from the start
    const std::vector<std::size_t> written = s.trace().written(x);
    const auto made = std::find_if(written.begin(), written.end(), [](std::size_t p) { return p > 0; });
    s.jump(made == written.end() ? 0 : *made);
    return show();
  }
  const auto found = s.find_after(0, [&](std::size_t i) { return s.entries()[i].op->name == where || s.entries()[i].scope == where || s.entries()[i].scope.starts_with(where + "/"); });
  if (!found) throw UsageError(fmt::format("no tensor, op or scope is called '{}'; 'names' and 'list all' show them", where));
  s.jump(*found);
  show();
}

void StepSession::until(const std::string& condition) {
  Stepper& s = top();
  std::string plain;
  for (const char c : condition)
    if (c != ' ') plain += c;
  std::optional<std::size_t> found;
  if (plain == "nan") {
    found = s.find_after(s.position(), [&](std::size_t i) { return !s.finite(i); });
    if (!found) return say("every number from here on is finite");
  } else if (plain.starts_with("|g|>")) {
    const double limit = real_number(plain.substr(4), "the limit");
    found = s.find_after(s.position(), [&](std::size_t i) { return s.largest_gradient(i) > limit; });
    if (!found) return say(fmt::format("no gradient from here on is larger than {:g}", limit));
  } else {
    throw UsageError("until takes nan, or |g| > a number; goto takes names");
  }
  s.jump(*found);
  show();
}

void StepSession::list(const std::string& all) {
  const Stepper& s = top();
  if (!all.empty() && all != "all") throw UsageError(fmt::format("list takes nothing or 'all', got '{}'", all));
  const std::size_t around = s.position(), first = all.empty() ? around - std::min<std::size_t>(around, 6) : 0, last = all.empty() ? std::min(s.size(), around + 6) : s.size();
  std::string scope = "\n";
  for (std::size_t i = first; i < last; ++i) {
    if (s.entries()[i].scope != scope) {
      scope = s.entries()[i].scope;
      if (!scope.empty()) say(style_.faint("         " + scope));
    }
    say(fmt::format("{} {:>4}  {}", i + 1 == around ? ">" : " ", i + 1, call_text(s, i)));
  }
}

void StepSession::print(const std::string& what) {
  if (what.empty()) return show();
  const Stepper& s = top();
  const ElementName e = parse_element(what);
  const Tensor x = s.find(e.tensor);
  if (!s.trace().known(x, s.position())) {
    const std::vector<std::size_t> written = s.trace().written(x);
    if (written.empty()) throw Error(fmt::format("'{}' is never computed in this program", e.tensor));
    throw Error(fmt::format("'{}' has no value yet: step {} makes it", e.tensor, written.front()));
  }
  if (const Tensor of = s.primal_of(x); of && s.position() < s.gradient_position(of))
    say(fmt::format("(before backward is through with it, at step {})", s.gradient_position(of)));
  const std::vector<double> values = s.trace().value(x, s.position());
  if (e.given) return say(fmt::format("{} = {}", what, number_text(values[std::size_t(element_number(x, e))])));
  fmt::print(out_, "{}", table_text(e.tensor, x.shape(), values));
}

void StepSession::statistics_of(const std::string& name) {
  if (name.empty()) throw UsageError("stats needs a tensor's name, as in stats w; 'names' lists them");
  const Tensor x = top().find(name);
  const std::size_t from = std::max(top().position(), top().trace().written(x).empty() ? std::size_t(0) : top().trace().written(x).front());
  say(fmt::format("{} {}: {}", name, x.shape().text(), statistics_text(statistics(top().trace().value(x, from)))));
}

std::string StepSession::here() const {
  const Stepper& s = stepper();
  if (s.position() == 0) throw UsageError("give a tensor's name, as in w or w[0,1]; 'names' lists them");
  const Entry& e = s.entries()[s.position() - 1];
  for (const Tensor& dx : e.dx)
    if (dx) return s.name(s.primal_of(dx));
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
  const std::string own = element_text(s.name(x), x.shape(), i);
  double largest = std::abs(why.gradient);
  for (const Contribution& c : why.terms) largest = std::max(largest, std::abs(c.product()));
  say(style_.bold(fmt::format("dL/d{} = {}", own, number_text(why.gradient, largest))));
  if (why.before != 0) say(fmt::format("  {:>12}   was there before backward", number_text(why.before)));
  if (why.seed != 0) say(fmt::format("  {:>12}   backward begins here", number_text(why.seed)));
  for (std::size_t k = 0; k < std::min(kTerms, why.terms.size()); ++k) {
    const Contribution& c = why.terms[k];
    const Entry& e = s.entries()[c.entry];
    const Tensor& y = e.outputs[c.output];
    const std::string other = element_text(s.name(y), y.shape(), c.element);
    std::string path = other.size() + own.size() <= 24 ? fmt::format("dL/d{} × d{}/d{}", other, other, own) : "through " + other;
    // x * x reads x twice
    if (std::count_if(e.inputs.begin(), e.inputs.end(), [&](const Tensor& t) { return t && t.root() == x.root(); }) > 1)
      path += " as " + e.op->arguments[c.argument].name;
    say(fmt::format("  {:>12} = {} × {}   {}   ({}, step {})", number_text(c.product(), largest), number_text(c.upstream), number_text(c.local), path, e.op->name, c.entry + 1));
  }
  if (why.terms.size() > kTerms) {
    double rest = 0;
    for (std::size_t k = kTerms; k < why.terms.size(); ++k) rest += why.terms[k].product();
    say(fmt::format("  {:>12}   {} smaller terms", number_text(rest, largest), why.terms.size() - kTerms));
  }
  if (why.others) say(fmt::format("  {:>12}   {} more terms, summed", number_text(why.rest, largest), why.others));
  say(fmt::format("  {:>12}   the sum {}", number_text(why.sum(), largest), why.adds_up(largest) ? style_.good("✓") : style_.bad("✗ is not the gradient")));
}

void StepSession::check(const std::string& what) {
  if (what.empty()) return check_all();
  const ElementName e = parse_element(without_gradient(what));
  const Stepper& s = top();
  const Tensor x = s.find(e.tensor);
  if (e.given || x.size() == 1) {
    const std::int64_t i = element_number(x, e);
    return say(fmt::format("dL/d{}  {}", element_text(e.tensor, x.shape(), i), check_text(s.check(x, i), style_)));
  }
  say(fmt::format("along a random direction  {}", check_text(s.check_direction(x), style_)));
  std::int64_t right = 0, untold = 0;
  // each takes the loss three times
  const std::int64_t count = std::min({kElements, x.size(), std::int64_t(std::clamp(kWorkOfChecks / std::max(s.work_of_loss(), 1.0), 2.0, 1e9))});
  for (std::int64_t i = 0; i < count; ++i) {
    const DifferenceCheck c = s.check(x, i);
    right += c.passed;
    untold += c.kink || c.unresolved;
    if (!c.passed) say(fmt::format("dL/d{}  {}", element_text(e.tensor, x.shape(), i), check_text(c, style_)));
  }
  const bool good = right + untold == count;
  say(fmt::format("{} {} of {} elements agree with central differences{}{}", good ? style_.good("✓") : style_.bad("✗"), right, count,
                  untold ? fmt::format(", {} cannot be told", untold) : "", count < x.size() ? fmt::format(" (of the first {} of {})", count, x.size()) : ""));
}

void StepSession::check_all() {
  const Stepper& s = top();
  bool any = false;
  for (const std::string& name : s.names()) {
    const Tensor x = s.find(name);
    if (x.role() != Role::parameter || x->base || !s.gradient_of(x)) continue;
    any = true;
    const auto [tensor, i] = element(name);
    say(fmt::format("  {:<22} along a random direction  {}", name, check_text(s.check_direction(x), style_)));
    say(fmt::format("  {:<22} largest: {:<15} {}", "", element_text(name, x.shape(), i), check_text(s.check(x, i), style_)));
  }
  if (!any) throw UsageError("no parameter of this program has a gradient; name a tensor, as in check x");
}

void StepSession::what_if(const std::string& what) {
  std::size_t at = what.find("+="), sign = 1;
  if (at == std::string::npos) at = what.find("-="), sign = 0;
  if (at == std::string::npos) throw UsageError("what-if needs a change, as in what-if w[0,1] += 0.1");
  const auto [x, i] = element(trimmed(what.substr(0, at)));
  const double change = (sign ? 1 : -1) * real_number(trimmed(what.substr(at + 2)), "the change");
  const WhatIf result = top().what_if(x, i, change);
  say(fmt::format("the loss is {}; with {} {} {}", number_text(result.loss), element_text(top().name(x), x.shape(), i), change < 0 ? "-=" : "+=", number_text(std::abs(change))));
  say(result.differentiable ? fmt::format("  predicted   {} = gradient × change", number_text(result.predicted)) : "  predicted   nothing: no gradient reaches it");
  say(fmt::format("  computed    {}: the loss is then {}", number_text(result.actual, std::abs(result.loss)), number_text(result.loss + result.actual)));
}

void StepSession::expand() {
  if (top().position() == 0) throw UsageError("there is no op here yet; 'next' first");
  const std::size_t i = top().position() - 1;
  auto inside = std::make_unique<Stepper>(top().expand(i));
  steppers_.push_back({std::move(inside), fmt::format("{} of step {}", top().entries()[i].op->name, i + 1)});
  show();
}

void StepSession::collapse() {
  if (steppers_.size() == 1) throw UsageError("no op is expanded here");
  steppers_.pop_back();
  show();
}

}  // namespace hedgehog

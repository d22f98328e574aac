#include "nn/step_session.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "core/error.h"
#include "core/nearest_name.h"

namespace hedgehog {
namespace {

constexpr std::size_t kLongestLine = 4000;  // characters
constexpr std::size_t kShown = 64;          // elements of a tensor that a step shows; `print` shows more
constexpr std::size_t kPrinted = 200;

}  // namespace

StepSession::StepSession(Program program, std::FILE* out, StepSessionOptions options)
    : out_(out), options_(std::move(options)), style_{options_.color} {
  steppers_.push_back({std::make_unique<Stepper>(std::move(program)), options_.title});
  add_commands();
}

void StepSession::say(const std::string& text) const { fmt::print(out_, "{}\n", text); }

std::string StepSession::prompt() const {
  const std::string& op = steppers_.back().op;
  return fmt::format("{}step {}/{}> ", op.empty() ? "" : op + ": ", stepper().position(), stepper().size());
}

std::string StepSession::hint() const {
  const std::string name = example();
  if (name.empty()) return "Enter goes one step on, 'help' lists the commands";
  return fmt::format("Enter goes one step on, 'why {}' tells where a gradient comes from, 'check' proves them all, 'help' lists the rest",
                     name);
}

void StepSession::add_commands() {
  using Run = std::function<void(const std::string& argument)>;
  const auto add = [&](const char* group, const char* name, const char* argument, const char* text, Run run) {
    commands_.push_back({name, argument, text, std::move(run), group, ""});
  };
  const auto more = [&](const char* text) { commands_.back().more = text; };
  add("move", "next", "[N]", "one step on, or N; an empty line too", [this](const std::string& a) { next(a); });
  add("move", "back", "[N]", "one step back, or N", [this](const std::string& a) { back(a); });
  add("move", "goto", "N|NAME", "to a step, to where a tensor is made, or to the first step of an op or a scope",
      [this](const std::string& a) { go(a); });
  add("move", "until", "nan | |g|>X", "on to the first number that is not finite, or the first gradient larger than X",
      [this](const std::string& a) { until(a); });
  add("look", "show", "", "where we are, and what the last step made", [this](const std::string&) { show(); });
  add("look", "list", "[all]", "the steps around here, or all", [this](const std::string& a) { list(a); });
  add("look", "names", "", "all tensors", [this](const std::string&) {
    std::size_t width = 0;
    for (const std::string& name : top().names()) width = std::max(width, name.size());
    for (const std::string& name : top().names()) say(fmt::format("  {:<{}} {}", name, width, top().find(name).shape().text()));
  });
  add("look", "print", "NAME", "a tensor as it is at this step, or one element: w[0,1]", [this](const std::string& a) { print(a); });
  add("look", "stats", "NAME", "its extremes, mean, deviation, norm", [this](const std::string& a) { statistics_of(a); });
  const char* const graph = "the steps around here as a graph for Graphviz (dot -Tsvg), or all steps into a file";
  add("look", "graph", "[FILE]", graph, [this](const std::string& a) {
    if (a.empty()) return say(graph_text(top(), top().position()));
    const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(a.c_str(), "w"), std::fclose);
    if (!file) throw Error(fmt::format("{} cannot be written: {}; choose another file", a, std::strerror(errno)));
    fmt::print(file.get(), "{}", graph_text(top(), {}));
    if (std::fflush(file.get()) != 0) throw Error(fmt::format("{} cannot be written: {}", a, std::strerror(errno)));
    say(fmt::format("written {}", a));
  });
  add("ask", "why", "[NAME[I,J]]",
      "where a gradient comes from: upstream × local derivative, largest first; without a name that of this step",
      [this](const std::string& a) { why(a); });
  more("A line for every number y that is computed from this number x: dL/dy, which comes from above, times dy/dx, the derivative\n"
       "of that one op. Their sum is dL/dx, by the chain rule. A cross beside dL/dy: ask why there; beside dL/dx alone: the op on\n"
       "that line has a wrong backward, or a line is missing.");
  add("ask", "check", "[NAME[I,J]]", "a gradient against central differences of the loss: an element, a tensor, or all parameters",
      [this](const std::string& a) { check(a); });
  more("The loss L is computed twice more, x a little larger and a little smaller: (L(x + h) - L(x - h)) / 2h is the slope, without\n"
       "any calculus.\n"
       "✓ it is the gradient   ✗ it is not: backward is wrong   ~ no slope: the function has a kink here   ? rounding hides it\n"
       "The same marks are beside all gradients shown; that of a whole tensor is checked along a random direction.");
  add("ask", "what-if", "NAME[I,J] += X", "the change of the loss, as the gradient predicts it and computed anew",
      [this](const std::string& a) { what_if(a); });
  more("The two differ as the loss is curved, by less the smaller the change: a tenth of it, a hundredth of the difference.\n"
       "x -= 0.1 is understood too.");
  add("ask", "expand", "", "step inside the op of this step: the simple ops that it is made of", [this](const std::string&) { expand(); });
  add("ask", "collapse", "", "back out again", [this](const std::string&) { collapse(); });
  add("ask", "warnings", "", "mistakes that this program shows", [this](const std::string&) {
    const std::vector<std::string> all = top().warnings();
    for (const std::string& w : all) say("! " + w);
    if (all.empty()) say("none: every parameter has a gradient, finite and not all zero, none was there before, and nothing is detached");
  });
  add("session", "help", "[COMMAND]", "this list", [this](const std::string& a) { help(a); });
  if (options_.open)
    add("session", "open", "WHAT", "another program: an example's name, or L = (x*y + 3)^2; x = 2; y = -1", [this](const std::string& a) {
      if (a.empty()) throw UsageError("open needs a program, as in open scalar, or open L = x^2; x = 3");
      TitledProgram opened = options_.open(a);
      auto stepper = std::make_unique<Stepper>(std::move(opened.program));
      steppers_.clear();
      steppers_.push_back({std::move(stepper), std::move(opened.title)});
      show();
    });
  if (options_.html)
    add("session", "html", "FILE", "all of this as one page for a browser", [this](const std::string& a) {
      if (a.empty()) throw UsageError("html needs a file to write, as in html step.html");
      options_.html(top(), steppers_.back().title, a);
      say(fmt::format("written {}", a));
    });
  add("session", "quit", "", "the end", [this](const std::string&) { done_ = true; });
}

bool StepSession::run(const std::string& line) {
  std::string whole = trimmed(line);
  // what a terminal would act on, and not show
  std::replace_if(whole.begin(), whole.end(), [](char c) { return (c >= 0 && c < ' ' && c != '\t') || c == 127; }, '?');
  if (whole == "?") whole = "help";
  if (whole == "exit") whole = "quit";
  const std::size_t space = whole.find_first_of(" \t");
  const std::string name = whole.empty() ? "next" : whole.substr(0, space);
  const std::string argument = space == std::string::npos ? "" : trimmed(whole.substr(space));
  try {
    if (whole.size() > kLongestLine)
      throw UsageError(fmt::format("a line has at most {} characters, this one has {}", kLongestLine, whole.size()));
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
      const std::string guess = nearest.empty() ? "" : fmt::format("did you mean '{}'? ", nearest);
      throw UsageError(fmt::format("there is no command '{}'; {}'help' lists them", name, guess));
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
    // the first that begins so, as when it is run
    if (!name.empty() && (any || !c.name.starts_with(name))) continue;
    any = true;
    if (name.empty() && c.group != group) say(style_.bold(group = c.group));
    say(fmt::format("  {:<26} {}", c.name + (c.argument.empty() ? "" : " " + c.argument), c.help));
    for (std::size_t at = 0; !name.empty() && at < c.more.size();) {
      const std::size_t end = std::min(c.more.find('\n', at), c.more.size());
      say("      " + c.more.substr(at, end - at));
      at = end + 1;
    }
  }
  if (!any) throw UsageError(fmt::format("there is no command '{}'; 'help' lists them", name));
  if (!name.empty()) return;
  say("A command's first letters are enough; 'help check' tells more of one. Elements are written w[0,1]; a gradient is w.grad;");
  say("without indices the largest is taken. Beside a gradient: ✓ it equals a central difference of the loss, ✗ it does not.");
}

void StepSession::opening() {
  const Stepper& s = top();
  const bool inside = steppers_.size() > 1;
  if (!steppers_.back().title.empty()) say(style_.bold(steppers_.back().title));
  if (const std::optional<std::size_t> begin = s.backward_begins())
    say(fmt::format("{} step{} forward, to {}, and {} that bring its gradients back; {} tensors", *begin, *begin == 1 ? "" : "s",
                    loss_text(s), s.size() - *begin, s.names().size()));
  else say(fmt::format("{} steps; {} tensors", s.size(), s.names().size()));
  if (inside) return say("gradients in here are those outside, as far as they come through this op; 'collapse' leaves it");
  // inside an op, what is detached is so on purpose
  for (const std::string& w : s.warnings()) say(style_.bad("! " + w));
}

void StepSession::say_tensor(const std::string& name, const Tensor& x, std::size_t most, const std::string& proof) const {
  fmt::print(out_, "{}", table_text(name, x.shape(), stepper().trace().value(x, stepper().position()), most, proof));
}

void StepSession::show() {
  const Stepper& s = top();
  if (s.position() == 0) return opening();
  const std::size_t i = s.position() - 1;
  const Entry& e = s.entries()[i];
  std::string where = e.scope;
  if (e.where.line() > 0) {
    const std::string file = e.where.file_name();
    where += fmt::format("{}{}:{}", where.empty() ? "" : "  ", file.substr(file.rfind('/') + 1), e.where.line());
  }
  say(style_.bold(fmt::format("step {} of {}   {}", s.position(), s.size(), call_text(s, i))));
  const std::string& formula = e.backward ? e.op->formula_backward : e.op->formula_forward;
  if (!formula.empty()) say("  " + formula);
  if (!where.empty()) say(style_.faint("  " + where));
  if (e.op->views) {
    for (const Tensor& y : e.outputs) say(fmt::format("  {} {}: the same numbers under another shape", s.short_name(y), y.shape().text()));
    return;
  }
  for (std::size_t a = 0; a < e.dx.size(); ++a)
    if (e.dx[a]) say_tensor(s.short_name(e.inputs[a]) + ".grad", e.dx[a], kShown, proof(e.inputs[a]));
  if (e.backward) return;
  Tensors made = s.used_outputs(i);
  for (std::size_t a = 0; a < e.inputs.size(); ++a)
    if (e.inputs[a] && (e.op->updates >> a & 1u)) made.push_back(e.inputs[a]);
  for (const Tensor& x : made)
    if (x) say_tensor(s.short_name(x), x, kShown, s.primal_of(x) ? proof(s.primal_of(x)) : "");
}

void StepSession::next(const std::string& count) {
  const std::int64_t n = count.empty() ? 1 : whole_number(count, "the number of steps");
  if (top().position() == top().size())
    return say(steppers_.size() > 1 ? "this is the last step; 'collapse' leaves the op"
                                    : "this is the last step; 'check' proves the gradients");
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
  const auto found = s.find_after(0, [&](std::size_t i) {
    const Entry& e = s.entries()[i];
    return e.op->name == where || e.scope == where || e.scope.starts_with(where + "/");
  });
  if (!found) {
    std::vector<std::string> known = s.names();
    for (const Entry& e : s.entries()) known.insert(known.end(), {e.op->name, e.scope});
    const std::string nearest = nearest_name(where, known);
    throw UsageError(fmt::format("no tensor, op or scope is called '{}'; {}", where,
                                 nearest.empty() ? "'names' and 'list all' show them" : "did you mean '" + nearest + "'?"));
  }
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
  const std::size_t around = s.position(), first = all.empty() ? around - std::min<std::size_t>(around, 6) : 0;
  const std::size_t last = all.empty() ? std::min(s.size(), around + 6) : s.size();
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
    throw Error(fmt::format("'{}' has no value yet: step {} makes it; 'goto {}' goes there", e.tensor, written.front(), e.tensor));
  }
  const Tensor of = s.primal_of(x) ? s.find_or_empty(without_gradient(e.tensor)) : Tensor{};
  if (!e.given) return say_tensor(e.tensor, x, kPrinted, of ? proof(of) : "");
  const std::int64_t i = element_number(x, e);
  say(fmt::format("{} = {}{}", what, number_text(s.trace().value(x, s.position())[std::size_t(i)]), of ? " " + proof(of, i) : ""));
}

void StepSession::statistics_of(const std::string& name) {
  if (name.empty()) throw UsageError("stats needs a tensor's name, as in stats w; 'names' lists them");
  const Tensor x = top().find(name);
  const std::size_t from = std::max(top().position(), top().trace().written(x).empty() ? std::size_t(0) : top().trace().written(x).front());
  const Tensor of = top().primal_of(x) ? top().find_or_empty(without_gradient(name)) : Tensor{};
  const std::string text = statistics_text(statistics(top().trace().value(x, from)));
  say(fmt::format("{} {}: {}{}", name, x.shape().text(), text, of ? "   " + proof(of) : ""));
}

}  // namespace hedgehog

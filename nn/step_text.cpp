#include "nn/step_text.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <set>

#include "core/error.h"

namespace hedgehog {
namespace {

constexpr double kRounding = 1e-13;

std::vector<std::int64_t> indices_of(const Shape& shape, std::int64_t element) {
  std::vector<std::int64_t> indices(std::size_t(shape.rank()));
  for (int i = shape.rank(); i-- > 0;) {
    indices[std::size_t(i)] = element % shape[i];
    element /= shape[i];
  }
  return indices;
}

/// The short name, else the whole without the scope that it shares with the entry.
std::string short_name(const Stepper& stepper, const Tensor& x, const std::string& scope) {
  const std::string name = stepper.short_name(x);
  return !scope.empty() && name.starts_with(scope + "/") ? name.substr(scope.size() + 1) : name;
}

std::string join(const Stepper& stepper, const Tensors& tensors, const std::string& scope) {
  std::vector<std::string> names;
  for (const Tensor& x : tensors)
    if (x) names.push_back(short_name(stepper, x, scope));
  return fmt::format("{}", fmt::join(names, ", "));
}

}  // namespace

std::string trimmed(const std::string& text) {
  const std::size_t from = text.find_first_not_of(" \t\r\n");
  return from == std::string::npos ? "" : text.substr(from, text.find_last_not_of(" \t\r\n") - from + 1);
}

std::int64_t whole_number(const std::string& text, const char* what) {
  std::int64_t n = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), n);
  if (error != std::errc{} || end != text.data() + text.size() || n < 0)
    throw UsageError(fmt::format("{} must be a whole number, got '{}'", what, text));
  return n;
}

double real_number(const std::string& text, const char* what) {
  double v = 0;
  const char* const first = text.data() + (text.starts_with('+') ? 1 : 0);
  const auto [end, error] = std::from_chars(first, text.data() + text.size(), v);
  if (error != std::errc{} || end != text.data() + text.size() || !std::isfinite(v))
    throw UsageError(fmt::format("{} must be a number, got '{}'", what, text));
  return v;
}

ElementName parse_element(const std::string& text) {
  ElementName e;
  const std::size_t open = text.find('[');
  e.tensor = text.substr(0, open);
  if (e.tensor.empty()) throw UsageError("give a tensor's name, as in w or w[0,1]; 'names' lists them");
  if (open == std::string::npos) return e;
  const std::string wrong = fmt::format("'{}' is no element; write its indices as in {}[0,1]", text, e.tensor);
  if (text.back() != ']') throw UsageError(wrong);
  e.given = true;
  const char *at = text.data() + open + 1, *end = text.data() + text.size() - 1;
  while (at < end) {
    std::int64_t index = 0;
    while (at < end && *at == ' ') ++at;
    const auto [next, error] = std::from_chars(at, end, index);
    if (error != std::errc{}) throw UsageError(wrong);
    e.indices.push_back(index);
    at = next;
    while (at < end && *at == ' ') ++at;
    if (at < end && *at++ != ',') throw UsageError(wrong);
  }
  return e;
}

std::int64_t element_number(const Tensor& x, const ElementName& element) {
  const Shape& shape = x.shape();
  if (!element.given || element.indices.empty()) {
    if (x.size() == 1) return 0;
    throw UsageError(
        fmt::format("'{}' has {} elements; say which, as in {}", element.tensor, x.size(), element_text(element.tensor, shape, 0)));
  }
  if (int(element.indices.size()) != shape.rank())
    throw UsageError(fmt::format("'{}' {} has {} ax{}, but {} ind{} given; write it as in {}", element.tensor, shape.text(), shape.rank(),
                                 shape.rank() == 1 ? "is" : "es", element.indices.size(),
                                 element.indices.size() == 1 ? "ex was" : "ices were", element_text(element.tensor, shape, 0)));
  std::int64_t number = 0;
  for (int i = 0; i < shape.rank(); ++i) {
    const std::int64_t index = element.indices[std::size_t(i)];
    if (index < 0 || index >= shape[i])
      throw UsageError(fmt::format("'{}' {} has no index {} on axis {}; they go from 0 to {}", element.tensor, shape.text(), index, i,
                                   shape[i] - 1));
    number = number * shape[i] + index;
  }
  return number;
}

std::string without_gradient(std::string text) {
  const std::size_t at = text.find(".grad");
  if (at != std::string::npos && (at + 5 == text.size() || text[at + 5] == '[')) text.erase(at, 5);
  return text;
}

std::string element_text(const std::string& name, const Shape& shape, std::int64_t element) {
  return shape.rank() == 0 ? name : fmt::format("{}[{}]", name, fmt::join(indices_of(shape, element), ","));
}

std::string number_text(double value, double largest) {
  if (std::abs(value) < kRounding * largest || value == 0) return "0";
  return fmt::format("{:.5g}", value);
}

std::string table_text(const std::string& title, const Shape& shape, const std::vector<double>& values, std::size_t most,
                       const std::string& note) {
  constexpr std::int64_t kInLine = 8;
  double largest = 0;
  for (const double v : values)
    if (std::isfinite(v)) largest = std::max(largest, std::abs(v));
  const std::string end = note.empty() ? "\n" : "   " + note + "\n";
  if (values.size() == 1) return fmt::format("  {} = {}{}", title, number_text(values[0]), end);
  std::string text = fmt::format("  {} {}{}", title, shape.text(), end);
  // whole rows, or the beginning of a row that is too long
  const std::int64_t columns = shape.last(), all = std::int64_t(values.size()), room = std::int64_t(most);
  const std::int64_t shown = all <= room ? all : columns > room ? room : room / columns * columns;
  std::vector<std::string> cells;
  std::size_t width = 6;
  for (std::int64_t i = 0; i < shown; ++i) {
    cells.push_back(number_text(values[std::size_t(i)], largest));
    width = std::max(width, cells.back().size());
  }
  for (std::int64_t i = 0; i < shown; ++i) {
    const std::int64_t column = i % columns;
    if (column % kInLine == 0) {
      std::vector<std::int64_t> at = indices_of(shape, i);
      if (columns <= kInLine && !at.empty()) at.pop_back();
      text += fmt::format("{}  {:<9}", i ? "\n" : "", at.empty() ? "" : fmt::format("[{}]", fmt::join(at, ",")));
    }
    text += fmt::format(" {:>{}}", cells[std::size_t(i)], width);
  }
  text += "\n";
  if (shown < all) text += fmt::format("  … {} more; print one element as NAME[…], or 'stats NAME'\n", all - shown);
  return text;
}

std::string statistics_text(const Statistics& s) {
  std::string text =
      fmt::format("{} numbers from {} to {}, mean {}, deviation {}, norm {}, {} zero", s.count, number_text(s.minimum),
                  number_text(s.maximum), number_text(s.mean, s.deviation), number_text(s.deviation), number_text(s.norm), s.zeros);
  if (s.non_finite) text += fmt::format(", {} NOT FINITE", s.non_finite);
  return text;
}

std::string check_text(const DifferenceCheck& check, const Style& style) {
  const double largest = std::max(std::abs(check.analytic), std::abs(check.numeric));
  const std::string numbers =
      fmt::format("backward {}, difference {}", number_text(check.analytic), number_text(check.numeric, 1e4 * largest));
  if (check.passed) return style.good("✓") + " " + fmt::format("{} = its central difference", number_text(check.analytic));
  if (check.unresolved)
    return fmt::format("? {}: its difference cannot be told from rounding of the loss here", number_text(check.analytic));
  if (check.kink)
    return fmt::format("~ not differentiable here: slopes {} to the left and {} to the right; backward took {}",
                       number_text(check.left, 1e4 * std::abs(check.right)),
                       number_text(check.right, 1e4 * std::abs(check.left)), number_text(check.analytic));
  const double percent = 100 * check.error;
  return fmt::format("{} {}: off by {} %", style.bad("✗"), numbers,
                     percent >= 10 ? fmt::format("{:.0f}", percent) : fmt::format("{:.2g}", percent));
}

std::string mark_text(const DifferenceCheck& check, const Style& style, bool reason) {
  if (check.passed) return style.good("✓");
  if (check.unresolved) return reason ? "? hidden by rounding" : "?";
  if (check.kink) return reason ? "~ not differentiable here" : "~";
  return style.bad("✗");
}

std::string loss_text(const Stepper& stepper) {
  std::vector<std::string> parts;
  bool numbers = true;
  for (const Stepper::Seed& s : stepper.seeds()) {
    const std::string name = stepper.short_name(s.result);
    const bool number = s.result.size() == 1 && stepper.trace().value(s.gradient, s.entry + 1)[0] == 1;
    parts.push_back(number ? name : fmt::format("{} × {}.grad", name, name));
    numbers = numbers && number;
  }
  const std::string loss = number_text(stepper.loss());
  if (parts.size() == 1 && numbers) return fmt::format("the loss {} = {}", parts[0], loss);
  return fmt::format("a loss of {} = {}{}", loss, numbers ? "" : "sum of ", fmt::join(parts, " + "));
}

std::string call_text(const Stepper& stepper, std::size_t index) {
  const Entry& e = stepper.entries().at(index);
  if (!e.backward) {
    if (e.op == &detail::kFill) {
      const Tensor of = stepper.primal_of(e.outputs.at(0));
      const double value = e.attributes.real("value");
      const std::string made = join(stepper, e.outputs, e.scope);
      if (of && value == 1) return fmt::format("{} = dL/d{}   (backward begins)", made, short_name(stepper, of, e.scope));
      return fmt::format("{} = {:g}", made, value);
    }
    std::string arguments = join(stepper, e.inputs, e.scope);
    bool first = true;
    for (const auto& item : e.attributes.items())
      if (std::none_of(e.op->attributes.begin(), e.op->attributes.end(),
                       [&](const auto& d) { return d.name == item.name && d.value == item.value; }))
        arguments += std::string(first && !arguments.empty() ? "; " : first ? "" : " ") + Attributes{item}.describe(), first = false;
    if (e.outputs.empty()) {
      Tensors changed;
      for (std::size_t a = 0; a < e.inputs.size(); ++a)
        if (e.inputs[a] && (e.op->updates >> a & 1u)) changed.push_back(e.inputs[a]);
      return fmt::format("{} changed by {}({})", join(stepper, changed, e.scope), e.op->name, arguments);
    }
    return fmt::format("{} = {}({})", join(stepper, stepper.used_outputs(index), e.scope), e.op->name, arguments);
  }
  Tensors written;
  for (const Tensor& dx : e.dx)
    if (dx) written.push_back(dx);
  std::vector<std::string> names;
  for (std::size_t a = 0; a < e.dx.size(); ++a)
    if (e.dx[a]) names.push_back(short_name(stepper, e.inputs[a], e.scope) + (e.modes[a] == Mode::accumulate ? ".grad +=" : ".grad ="));
  std::vector<std::string> upstream;
  for (std::size_t j = 0; j < e.dy.size(); ++j)
    if (e.dy[j]) upstream.push_back(short_name(stepper, e.outputs[j], e.scope) + ".grad");
  return fmt::format("{} backward of {}({})", fmt::join(names, ", "), e.op->name, fmt::join(upstream, ", "));
}

std::string graph_text(const Stepper& stepper, std::optional<std::size_t> around) {
  std::string text = "digraph program {\n  rankdir=LR;\n  node [fontname=\"sans-serif\"];\n";
  std::set<std::string> tensors;
  const auto quoted = [](const std::string& raw) {
    std::string out = "\"";
    for (const char c : raw) {
      if (c == '"' || c == '\\') out += '\\';
      out += c;
    }
    return out + "\"";
  };
  const auto node = [&](const Tensor& x) {
    const std::string name = quoted(stepper.name(x));
    if (tensors.insert(name).second) text += fmt::format("  {} [shape=ellipse];\n", name);
    return name;
  };
  const std::size_t first = around ? *around - std::min<std::size_t>(*around, 3) : 0;
  const std::size_t last = around ? std::min(stepper.size(), *around + 3) : stepper.size();
  for (std::size_t i = first; i < last; ++i) {
    const Entry& e = stepper.entries()[i];
    const std::string label = fmt::format("{}: {}{}", i + 1, e.op->name, e.backward ? " backward" : "");
    text += fmt::format("  step{} [shape=box, label={}{}];\n", i + 1, quoted(label),
                        around && *around == i + 1 ? ", style=bold" : "");
    for (const Tensor& x : e.backward ? e.dy : e.inputs)
      if (x) text += fmt::format("  {} -> step{};\n", node(x), i + 1);
    for (const Tensor& y : e.backward ? e.dx : e.outputs)
      if (y) text += fmt::format("  step{} -> {};\n", i + 1, node(y));
  }
  return text + "}\n";
}

}  // namespace hedgehog

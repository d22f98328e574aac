#include "train/expression.h"

#include <fmt/format.h>

#include <charconv>
#include <cmath>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <vector>

#include "core/error.h"
#include "core/nearest_name.h"
#include "ops/elementwise.h"
#include "train/utf8.h"

namespace hedgehog {
namespace {

constexpr int kDeepest = 100;        // parentheses and names inside each other
constexpr std::int64_t kPower = 64;  // largest exponent: it is a chain of products

using Function = std::function<Tensor(const Tensor&)>;

const std::map<std::string, Function>& functions() {
  static const std::map<std::string, Function> all = {
      {"exp", [](const Tensor& x) { return exp(x); }},         {"log", [](const Tensor& x) { return log(x); }},
      {"tanh", [](const Tensor& x) { return tanh(x); }},       {"sigmoid", [](const Tensor& x) { return sigmoid(x); }},
      {"sqrt", [](const Tensor& x) { return sqrt(x); }},       {"relu", [](const Tensor& x) { return relu(x); }},
      {"gelu", [](const Tensor& x) { return gelu(x); }},       {"gelu_erf", [](const Tensor& x) { return gelu_erf(x); }},
      {"silu", [](const Tensor& x) { return silu(x); }},       {"square", [](const Tensor& x) { return square(x); }}};
  return all;
}

/// A number known while the formula is read, or a tensor.
struct Term {
  double number = 0;
  Tensor tensor;
};

/// The statements of a text: names and the right-hand sides.
class Statements {
 public:
  explicit Statements(const std::string& text) {
    std::size_t from = 0;
    while (from <= text.size()) {
      const std::size_t end = std::min(text.find(';', from), text.size());
      const std::string statement = text.substr(from, end - from);
      from = end + 1;
      if (statement.find_first_not_of(" \t\r\n") == std::string::npos) continue;
      const std::size_t equals = statement.find('=');
      if (equals == std::string::npos)
        throw UsageError(fmt::format("'{}' names nothing; write it as NAME = …, as in L = (x*y + 3)^2; x = 2; y = -1", valid_utf8(statement)));
      std::string name;
      for (const char c : statement.substr(0, equals))
        if (c != ' ' && c != '\t' && c != '\r' && c != '\n') name += c;
      if (name.empty() || !is_letter(name[0])) throw UsageError(fmt::format("'{}' is no name; names begin with a letter", valid_utf8(name)));
      for (const char c : name)
        if (!is_letter(c) && !is_digit(c)) throw UsageError(fmt::format("'{}' is no name; names have letters, digits and _", valid_utf8(name)));
      if (functions().contains(name)) throw UsageError(fmt::format("'{}' is a function; choose another name", name));
      if (!right_.emplace(name, statement.substr(equals + 1)).second) throw UsageError(fmt::format("'{}' is given twice", name));
      order_.push_back(name);
    }
    if (order_.empty()) throw UsageError("the formula is empty; write it as L = (x*y + 3)^2; x = 2; y = -1");
  }
  const std::vector<std::string>& order() const { return order_; }
  const std::string* find(const std::string& name) const {
    const auto found = right_.find(name);
    return found == right_.end() ? nullptr : &found->second;
  }
  static bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }
  static bool is_digit(char c) { return c >= '0' && c <= '9'; }

 private:
  std::map<std::string, std::string> right_;
  std::vector<std::string> order_;
};

/// The number that a whole text is, if it is one.
std::optional<double> number_of(const std::string& text) {
  const std::size_t from = text.find_first_not_of(" \t\r\n");
  if (from == std::string::npos) return {};
  const std::size_t to = text.find_last_not_of(" \t\r\n") + 1;
  double v = 0;
  const auto [end, error] = std::from_chars(text.data() + from, text.data() + to, v);
  if (error != std::errc{} || end != text.data() + to || !std::isfinite(v)) return {};
  return v;
}

/// Computes names on demand, each once.
class Evaluation {
 public:
  Evaluation(const Statements& statements, const std::map<std::string, Tensor>& leaves, Dtype dtype) : statements_(statements), leaves_(leaves), dtype_(dtype) {}

  Term name(const std::string& name) {
    if (const auto leaf = leaves_.find(name); leaf != leaves_.end()) return {0, leaf->second};
    if (const auto known = known_.find(name); known != known_.end()) return known->second;
    const std::string* const text = statements_.find(name);
    if (!text) throw UsageError(fmt::format("'{}' has no value; add {} = a number", name, name));
    if (!open_.insert(name).second) throw UsageError(fmt::format("'{}' is defined by itself", name));
    Term term = Reader{*this, *text, 0}.whole(name);
    if (term.tensor && term.tensor->name.empty()) term.tensor->name = name;
    open_.erase(name);
    return known_[name] = term;
  }

 private:
  /// sum = product {(+|-) product};  product = power {(*|/) power};  power = [-] atom [^ exponent]
  struct Reader {
    Evaluation& all;
    const std::string& text;
    std::size_t at;

    [[noreturn]] void wrong(const std::string& expected) const {
      const std::string found = at < text.size() ? fmt::format("'{}'", valid_utf8(text.substr(at, 1))) : "the end";
      throw UsageError(fmt::format("expected {} at {} in '{}', column {}", expected, found, valid_utf8(text), at + 1));
    }
    bool take(char c) {
      while (at < text.size() && std::string_view(" \t\r\n").find(text[at]) != std::string_view::npos) ++at;
      if (at >= text.size() || text[at] != c) return false;
      ++at;
      return true;
    }
    Term whole(const std::string& name) {
      if (all.open_.size() > std::size_t(kDeepest)) throw UsageError(fmt::format("'{}' is nested too deeply", name));
      const Term term = sum();
      take(' ');
      if (at < text.size()) wrong("an operator");
      return term;
    }
    Term sum() {
      return chain(&Reader::product, '+', [](const auto& a, const auto& b) { return a + b; }, '-', [](const auto& a, const auto& b) { return a - b; });
    }
    Term product() {
      return chain(&Reader::power, '*', [](const auto& a, const auto& b) { return a * b; }, '/', [](const auto& a, const auto& b) { return a / b; });
    }
    /// part {first part | second part}, from the left.
    template <class First, class Second>
    Term chain(Term (Reader::*part)(), char first, const First& of_first, char second, const Second& of_second) {
      Term left = (this->*part)();
      while (true) {
        if (take(first)) left = combine(left, (this->*part)(), of_first);
        else if (take(second)) left = combine(left, (this->*part)(), of_second);
        else return left;
      }
    }
    Term power() {
      if (take('-')) {
        if (++all.depth_ > kDeepest) throw UsageError("the formula is nested too deeply");
        const Term t = power();
        --all.depth_;
        return t.tensor ? Term{0, negate(t.tensor)} : Term{-t.number, {}};
      }
      const Term base = atom();
      if (!take('^')) return base;
      const bool negative = take('-');
      const Term exponent = atom();
      const double n = exponent.number;
      if (exponent.tensor || n != std::floor(n) || n < 1 || n > double(kPower))
        throw UsageError(fmt::format("an exponent must be a whole number from 1 to {}, or minus that, in '{}'; for others there is exp(y*log(x))", kPower, valid_utf8(text)));
      if (!base.tensor) return {std::pow(base.number, negative ? -n : n), {}};
      Tensor result = n == 1 ? base.tensor : square(base.tensor);
      for (int k = 2; k < int(n); ++k) result = result * base.tensor;
      return {0, negative ? reciprocal(result) : result};
    }
    Term atom() {
      if (++all.depth_ > kDeepest) throw UsageError("the formula is nested too deeply");
      take(' ');
      Term term;
      if (take('(')) {
        term = sum();
        if (!take(')')) wrong("')'");
      } else if (at < text.size() && Statements::is_letter(text[at])) {
        std::string name;
        while (at < text.size() && (Statements::is_letter(text[at]) || Statements::is_digit(text[at]))) name += text[at++];
        term = take('(') ? call(name) : all.name(name);
      } else {
        const auto [end, error] = std::from_chars(text.data() + at, text.data() + text.size(), term.number);
        if (error != std::errc{} || !std::isfinite(term.number)) wrong("a number, a name or '('");
        at = std::size_t(end - text.data());
      }
      --all.depth_;
      return term;
    }
    Term call(const std::string& name) {
      const auto function = functions().find(name);
      if (function == functions().end()) {
        std::vector<std::string> names;
        for (const auto& [known, f] : functions()) names.push_back(known);
        const std::string nearest = nearest_name(name, names);
        throw UsageError(fmt::format("there is no function '{}'{}", name, nearest.empty() ? "; there are exp, log, tanh, sigmoid, sqrt, relu, gelu, gelu_erf, silu and square" : fmt::format("; did you mean '{}'?", nearest)));
      }
      const Term argument = sum();
      if (!take(')')) wrong("')'");
      return {0, function->second(argument.tensor ? argument.tensor : constant({}, {argument.number}, all.dtype_))};
    }
    template <class Operation>
    static Term combine(const Term& a, const Term& b, Operation&& of) {
      if (a.tensor && b.tensor) return {0, of(a.tensor, b.tensor)};
      if (a.tensor) return {0, of(a.tensor, b.number)};
      if (b.tensor) return {0, of(a.number, b.tensor)};
      return {of(a.number, b.number), {}};
    }
  };

  const Statements& statements_;
  const std::map<std::string, Tensor>& leaves_;
  Dtype dtype_;
  int depth_ = 0;  // of parentheses, over all names that are open
  std::map<std::string, Term> known_;
  std::set<std::string> open_;
};

}  // namespace

Program expression_program(const std::string& text, Dtype dtype) {
  const Statements statements(text);
  std::map<std::string, Tensor> leaves;
  for (const std::string& name : statements.order())
    if (const std::optional<double> value = number_of(*statements.find(name))) {
      leaves[name] = parameter({}, name, dtype);
      leaves[name].fill(*value);
    }
  const std::string& result = statements.order().front();
  if (leaves.contains(result)) throw UsageError(fmt::format("'{}' is only a number; the first statement is what is differentiated", result));
  Program program = record([&] {
    const Term loss = Evaluation(statements, leaves, dtype).name(result);
    if (!loss.tensor || !loss.tensor.wants_gradient() || loss.tensor.role() != Role::activation)
      throw UsageError(fmt::format("'{}' is computed from no name with a value; write it as L = (x*y + 3)^2; x = 2; y = -1", result));
    backward(loss.tensor);
    return Tensors{loss.tensor};
  });
  // the lines are ours, not the reader's
  for (Entry& e : program.entries) e.where = {};
  return program;
}

}  // namespace hedgehog

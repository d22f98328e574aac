#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>

#include "core/account.h"
#include "core/error.h"
#include "train/page.h"
#include "train/step_page.h"
#include "train/step_page_attention.h"
#include "train/utf8.h"

namespace hedgehog {

namespace {

using Json = nlohmann::ordered_json;

constexpr std::int64_t kBytesOfNumber = 13;  // of 9 digits, with sign, point or power, and comma, as they come

Json number(double v) {
  if (std::isnan(v)) return "nan";
  if (std::isinf(v)) return v > 0 ? "inf" : "-inf";
  return std::strtod(fmt::format("{:.9g}", v).c_str(), nullptr);
}

Json statistics_json(const Statistics& s) {
  return {{"count", s.count},         {"zeros", s.zeros},           {"non_finite", s.non_finite},        {"minimum", number(s.minimum)},
          {"maximum", number(s.maximum)}, {"mean", number(s.mean)}, {"deviation", number(s.deviation)}, {"norm", number(s.norm)}};
}

Json check_json(const DifferenceCheck& c) {
  return {{"analytic", number(c.analytic)}, {"numeric", number(c.numeric)}, {"error", chart_number(c.error)}, {"left", number(c.left)},
          {"right", number(c.right)},       {"passed", c.passed},           {"kink", c.kink},               {"unresolved", c.unresolved}};
}

/// "h.0.attn.c_attn.weight" belongs to layer "h.0", "wte.weight" to "wte".
std::string layer_of(const std::string& parameter) {
  std::size_t end = parameter.find('.');
  if (end == std::string::npos) return parameter;
  const std::size_t next = parameter.find('.', end + 1);
  const std::string second = parameter.substr(end + 1, next == std::string::npos ? next : next - end - 1);
  if (!second.empty() && second.find_first_not_of("0123456789") == std::string::npos) end = next;
  return parameter.substr(0, end);
}

class PageData {
 public:
  PageData(const Stepper& stepper, const StepPageOptions& options) : stepper_(stepper), options_(options) {}
  Json collect();

 private:
  struct Named {
    std::string name;
    Tensor tensor, primal;  // primal: of a gradient
    std::vector<std::size_t> versions = {};
  };
  std::size_t add(const std::string& name, const Tensor& x, const Tensor& primal);
  /// Of a window that was detached there is none, though its root has one.
  Tensor gradient_of(const Tensor& x) const { return x->base && !x.wants_gradient() ? Tensor{} : stepper_.gradient_of(x); }
  std::size_t value(const Tensor& x) {
    const Tensor primal = stepper_.primal_of(x);
    return primal ? gradient(primal, x.root()) : add(stepper_.name(x), x, {});
  }
  std::size_t gradient(const Tensor& primal, const Tensor& g) { return add(stepper_.name(primal) + ".grad", g, primal); }
  Json links(const Tensors& tensors, const std::vector<std::string>& titles, std::uint32_t mask = ~0u);
  Json step(std::size_t index);
  void add_reads(Json& json, const Entry& e);
  void add_writes(Json& json, const Entry& e);
  void add_gradients(Json& json, const Entry& e);
  void find_most();
  Json version(const Named& x, std::size_t at);
  Json tensor(std::size_t index);
  Json explained(const Tensor& x, std::int64_t element);
  void choose_explained();
  std::int64_t affordable() const;
  std::vector<std::int64_t> elements(const Tensor& x, const Tensor& gradient) const;
  Json layers() const;

  const Stepper& stepper_;
  const StepPageOptions& options_;
  std::vector<Named> tensors_;
  std::map<std::string, std::size_t> index_;
  std::map<std::size_t, bool> explain_;
  bool exact_ = true;                   // forward computes in f64: differences of the loss are good enough to check by
  std::int64_t attention_numbers_ = 0;  // of one step
  std::int64_t most_ = 0;               // numbers of one version
  std::int64_t cut_ = 0;                // versions that have more
  Json notices_ = Json::array();
};

std::size_t PageData::add(const std::string& name, const Tensor& x, const Tensor& primal) {
  const auto [at, fresh] = index_.try_emplace(name, tensors_.size());
  if (!fresh) return at->second;
  tensors_.push_back({name, x, primal, stepper_.trace().written(x)});
  auto& versions = tensors_.back().versions;
  versions.erase(std::unique(versions.begin(), versions.end()), versions.end());
  return at->second;
}

/// Pairs of an argument's name and its tensor.
Json PageData::links(const Tensors& tensors, const std::vector<std::string>& titles, std::uint32_t mask) {
  Json all = Json::array();
  for (std::size_t i = 0; i < tensors.size(); ++i)
    if (tensors[i] && (i >= 32 || (mask >> i & 1u)))
      all.push_back({i < titles.size() ? titles[i] : fmt::format("saved {}", i), value(tensors[i])});
  return all;
}

std::vector<std::string> argument_names(const Op& op) {
  std::vector<std::string> names;
  for (const Argument& a : op.arguments) names.push_back(a.name);
  return names;
}

void PageData::add_reads(Json& json, const Entry& e) {
  const Reads& reads = e.op->reads;
  json["reads"] = links(e.inputs, argument_names(*e.op), e.backward ? reads.inputs : ~0u);
  if (!e.backward) return;
  for (const Json& link : links(e.outputs, e.op->results, reads.outputs)) json["reads"].push_back(link);
  for (const Json& link : links(e.saved, e.op->saved_names, e.op->saved_reads())) json["reads"].push_back(link);
}

void PageData::add_writes(Json& json, const Entry& e) {
  Json writes = Json::array();
  for (std::size_t j = 0; j < e.outputs.size() && !e.backward; ++j) {
    const Tensor& y = e.outputs[j];
    if (!y) continue;
    const std::string title = j < e.op->results.size() ? e.op->results[j] : std::to_string(j);
    writes.push_back({title, value(y)});
  }
  if (!e.backward) {
    for (const Json& link : links(e.saved, e.op->saved_names)) writes.push_back(link);
    for (std::size_t a = 0; a < e.inputs.size(); ++a)
      if (e.inputs[a] && (e.op->updates >> a & 1u)) writes.push_back({e.op->arguments[a].name, value(e.inputs[a])});
  }
  json["writes"] = std::move(writes);
}

void PageData::add_gradients(Json& json, const Entry& e) {
  if (!e.backward) return;
  Json upstream = Json::array(), gradients = Json::array();
  for (std::size_t j = 0; j < e.dy.size(); ++j)
    if (e.dy[j]) upstream.push_back({"d" + (j < e.op->results.size() ? e.op->results[j] : std::to_string(j)), gradient(e.outputs[j], e.dy[j])});
  for (std::size_t a = 0; a < e.dx.size(); ++a)
    if (e.dx[a]) gradients.push_back({"d" + e.op->arguments[a].name, gradient(e.inputs[a], e.dx[a])});
  json["upstream"] = std::move(upstream);
  json["gradients"] = std::move(gradients);
}

Json PageData::step(std::size_t index) {
  const Entry& e = stepper_.entries()[index];
  Json json = {{"op", e.op->name},
               {"direction", e.backward ? "backward" : "forward"},
               {"scope", e.scope},
               {"source", fmt::format("{}:{}", std::filesystem::path(e.where.file_name()).filename().string(), e.where.line())},
               {"attributes", e.attributes.describe()}};
  if (e.repeated) json["repeated"] = true;
  if (const auto partner = stepper_.partner(index)) json["partner"] = *partner + 1;
  if (!stepper_.finite(index)) json["finite"] = false;
  add_reads(json, e);
  add_writes(json, e);
  add_gradients(json, e);
  if (Json attention = step_attention(stepper_, index, attention_numbers_); !attention.is_null()) json["attention"] = std::move(attention);
  return json;
}

/// The most numbers a version can have, so that all versions together have as many as the bytes allow.
void PageData::find_most() {
  std::vector<std::int64_t> sizes;
  for (const Named& x : tensors_) sizes.insert(sizes.end(), x.versions.size(), x.tensor.size());
  std::sort(sizes.begin(), sizes.end());
  std::int64_t left = options_.bytes / kBytesOfNumber * 3 / 4;
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    const std::int64_t share = left / std::int64_t(sizes.size() - i);
    if (sizes[i] > share) {
      most_ = std::max<std::int64_t>(share, 1);
      return;
    }
    left -= sizes[i];
  }
  most_ = sizes.empty() ? 1 : sizes.back();
}

Json PageData::version(const Named& x, std::size_t at) {
  const std::vector<double> values = stepper_.trace().value(x.tensor, at);
  Json json = {{"at", at}, {"statistics", statistics_json(statistics(values))}};
  const auto equal = [&](double v) { return v == values[0] || (std::isnan(v) && std::isnan(values[0])); };
  if (values.size() > 4 && std::all_of(values.begin(), values.end(), equal)) {
    json["fill"] = number(values[0]);
    return json;
  }
  const auto columns = std::size_t(x.tensor.shape().last()), most = std::size_t(most_);
  const std::size_t shown = values.size() <= most ? values.size() : columns <= most ? most / columns * columns : most;
  if (shown < values.size()) ++cut_;
  Json numbers = Json::array();
  for (std::size_t i = 0; i < shown; ++i) numbers.push_back(number(values[i]));
  json["numbers"] = std::move(numbers);
  return json;
}

/// The largest gradient, the value nearest to 0 (where kinks are), the first and the last.
std::vector<std::int64_t> PageData::elements(const Tensor& x, const Tensor& gradient) const {
  const std::vector<double> g = stepper_.trace().value(gradient, stepper_.gradient_position(x));
  const std::vector<double> v = stepper_.trace().value(x, stepper_.trace().written(x).front());
  const auto smaller = [](double a, double b) { return std::abs(a) < std::abs(b); };
  std::vector<std::int64_t> all;
  const std::ptrdiff_t largest = std::max_element(g.begin(), g.end(), smaller) - g.begin();
  const std::ptrdiff_t nearest = std::min_element(v.begin(), v.end(), smaller) - v.begin();
  for (const std::int64_t i : {largest, nearest, std::ptrdiff_t(0), std::ptrdiff_t(g.size()) - 1})
    if (std::int64_t(all.size()) < options_.elements && std::find(all.begin(), all.end(), i) == all.end()) all.push_back(i);
  return all;
}

Json PageData::explained(const Tensor& x, std::int64_t element) {
  Why why = stepper_.why(x, element, options_.terms);
  while (std::int64_t(why.terms.size()) > options_.terms) {
    why.rest += why.terms.back().product();
    ++why.others;
    why.terms.pop_back();
  }
  Json terms = Json::array();
  for (const Contribution& c : why.terms) {
    const Entry& e = stepper_.entries()[c.entry];
    terms.push_back({{"step", c.entry + 1},
                     {"tensor", value(e.outputs[c.output])},
                     {"element", c.element},
                     {"upstream", number(c.upstream)},
                     {"local", number(c.local)},
                     {"product", number(c.product())}});
  }
  Json json = {{"element", element}, {"gradient", number(why.gradient)}, {"before", number(why.before)}, {"seed", number(why.seed)},
               {"terms", terms},     {"zeros", why.zeros},               {"others", why.others},         {"rest", number(why.rest)},
               {"sum", number(why.sum())}};
  if (exact_) json["check"] = check_json(stepper_.check(x, element));
  return json;
}

Json PageData::tensor(std::size_t index) {
  const Named x = tensors_[index];
  Json json = {{"name", x.name}, {"shape", Json::array()}, {"dtype", name_of(x.tensor.dtype())},
               {"role", x.primal ? "gradient" : name_of(x.tensor.role())}};
  for (int a = 0; a < x.tensor.shape().rank(); ++a) json["shape"].push_back(x.tensor.shape()[a]);
  const Tensor gradient = x.primal ? Tensor{} : gradient_of(x.tensor);
  const auto primal = x.primal ? index_.find(stepper_.name(x.primal)) : index_.end();
  if (primal != index_.end()) json["primal"] = primal->second;
  if (gradient) {
    json["gradient"] = this->gradient(x.tensor, gradient);
    json["complete"] = stepper_.gradient_position(x.tensor);
  }
  json["versions"] = Json::array();
  for (const std::size_t at : x.versions) json["versions"].push_back(version(x, at));
  if (!gradient || !explain_.contains(index)) return json;
  json["explained"] = Json::array();
  for (const std::int64_t i : elements(x.tensor, gradient)) json["explained"].push_back(explained(x.tensor, i));
  if (exact_) json["direction"] = check_json(stepper_.check_direction(x.tensor));
  return json;
}

/// Norms of the parameters' gradients, by layer, in order of first use.
Json PageData::layers() const {
  Json all = Json::array();
  std::map<std::string, std::size_t> places;
  std::vector<double> squares;
  for (const std::string& name : stepper_.names()) {
    const Tensor x = stepper_.find(name);
    if (x.role() != Role::parameter || x->base) continue;
    const Tensor g = stepper_.gradient_of(x);
    if (!g) continue;
    const double norm = statistics(stepper_.trace().value(g, stepper_.size())).norm;
    const auto [place, fresh] = places.try_emplace(layer_of(name), all.size());
    if (fresh) {
      all.push_back({{"name", place->first}, {"norm", 0}, {"parameters", Json::array()}});
      squares.push_back(0);
    }
    const double value = statistics(stepper_.trace().value(x, stepper_.size())).norm;
    all[place->second]["parameters"].push_back({{"name", name}, {"tensor", index_.at(name)}, {"norm", number(norm)}, {"value", number(value)}});
    squares[place->second] += norm * norm;
  }
  for (std::size_t i = 0; i < squares.size(); ++i) all[i]["norm"] = number(std::sqrt(squares[i]));
  return all;
}

/// Tensors whose checks and terms stay within the work that may be done.
std::int64_t PageData::affordable() const {
  double loss = 1;
  for (const Entry& e : stepper_.entries()) {
    if (e.backward) continue;
    loss += work_of(e).flops;
    // fresh memory for a number takes as long as hundreds of FLOPs of a product
    for (const Tensor& x : Trace::results(e)) loss += 256 * double(x.size());
  }
  // a check computes the loss three to five times, and the terms of an element are about as much again
  const double each = loss * double(8 * (options_.elements + 1));
  return std::int64_t(std::clamp(options_.work / each, 1.0, 1e9));
}

/// Leaves first.
void PageData::choose_explained() {
  std::vector<std::size_t> wanted;
  for (const bool leaves : {true, false})
    for (std::size_t i = 0; i < tensors_.size(); ++i) {
      const Named& x = tensors_[i];
      if (!x.primal && !x.versions.empty() && gradient_of(x.tensor) && (x.versions.front() == 0) == leaves) wanted.push_back(i);
    }
  const std::int64_t most = std::min(options_.tensors, affordable());
  if (std::int64_t(wanted.size()) > most) {
    notices_.push_back(fmt::format("Gradients of {} of {} tensors are explained and checked on this page, parameters first; the stepper itself "
                                   "answers for any.",
                                   most, wanted.size()));
    wanted.resize(std::size_t(most));
  }
  for (const std::size_t i : wanted) explain_[i] = true;
}

Json PageData::collect() {
  Json ops = Json::object(), steps = Json::array(), tensors = Json::array();
  // a quarter of the numbers for attention, the rest for tensors
  const auto attentions = std::count_if(stepper_.entries().begin(), stepper_.entries().end(), [](const Entry& e) {
    return !e.backward && (e.op->name == "linear_attention" || e.op->name == "feature_map");
  });
  attention_numbers_ = options_.bytes / kBytesOfNumber / 4 / std::max<std::int64_t>(attentions, 1);
  for (std::size_t i = 0; i < stepper_.size(); ++i) {
    steps.push_back(step(i));
    if (steps[i].contains("attention") && steps[i]["attention"].contains("queries"))
      steps[steps[i]["attention"]["queries"].get<std::size_t>()]["attention_at"] = i + 1;
    const Op& op = *stepper_.entries()[i].op;
    ops[op.name] = {{"forward", op.formula_forward}, {"backward", op.formula_backward}};
  }
  // gradients that no entry writes under their own name: of windows
  for (std::size_t i = 0, before = tensors_.size(); i < before; ++i) {
    const Named x = tensors_[i];
    if (x.primal) continue;
    if (const Tensor g = gradient_of(x.tensor)) gradient(x.tensor, g);
  }
  choose_explained();
  for (const Entry& e : stepper_.entries())
    for (const Tensor& y : e.outputs)
      if (y && is_floating(y.dtype()) && y.dtype() != Dtype::f64) exact_ = false;
  if (!exact_)
    notices_.push_back("Gradients are not checked: this program computes in f32, whose rounding hides small differences of the loss. "
                       "Record it in f64.");
  find_most();
  for (std::size_t i = 0; i < tensors_.size(); ++i) tensors.push_back(tensor(i));
  if (cut_ > 0)
    notices_.push_back(fmt::format("Numbers were cut to about {:.3g} MB: {} values of tensors show their leading rows only, at most {} numbers "
                                   "each. "
                                   "Statistics, terms and checks were made with all numbers.",
                                   double(options_.bytes) / 1e6, cut_, most_));
  Json json = {{"title", valid_utf8(options_.title)}, {"warnings", stepper_.warnings()}, {"notices", std::move(notices_)}};
  json["layers"] = layers();
  json["ops"] = std::move(ops);
  json["steps"] = std::move(steps);
  json["tensors"] = std::move(tensors);
  return json;
}

}  // namespace

Json step_page_data(const Stepper& stepper, const StepPageOptions& options) {
  for (const auto& [name, value] : std::initializer_list<std::pair<const char*, std::int64_t>>{
           {"bytes", options.bytes}, {"elements", options.elements}, {"terms", options.terms}, {"tensors", options.tensors}})
    if (value < 1) throw UsageError(fmt::format("[step page] {} must be at least 1, not {}", name, value));
  if (!(options.work > 0)) throw UsageError(fmt::format("[step page] work must be above 0 FLOPs, not {}", options.work));
  return PageData(stepper, options).collect();
}

}  // namespace hedgehog

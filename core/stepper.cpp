#include "core/stepper.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "core/account.h"
#include "core/error.h"
#include "core/nearest_name.h"

namespace hedgehog {

Statistics statistics(const std::vector<double>& values) {
  Statistics s;
  s.count = std::int64_t(values.size());
  double sum = 0, squares = 0;
  std::int64_t finite = 0;
  for (const double v : values) {
    if (!std::isfinite(v)) {
      ++s.non_finite;
      continue;
    }
    s.minimum = finite ? std::min(s.minimum, v) : v;
    s.maximum = finite ? std::max(s.maximum, v) : v;
    s.zeros += v == 0;
    sum += v;
    squares += v * v;
    ++finite;
  }
  if (finite == 0) return s;
  s.mean = sum / double(finite);
  double variance = 0;
  for (const double v : values)
    if (std::isfinite(v)) variance += (v - s.mean) * (v - s.mean);
  s.deviation = std::sqrt(variance / double(finite));
  s.norm = std::sqrt(squares);
  return s;
}

namespace {

/// The part of `root` that `part` is of its own root.
Tensor window_of(const Tensor& root, const Tensor& part) {
  if (!part->base) return root;
  const Tensor window = declare(part.shape(), root.dtype());
  window->offset = part->offset;
  window->columns = part->columns;
  window->stride = part->stride;
  window->base = root;
  return window;
}

}  // namespace

Stepper::Stepper(Program program) : trace_(std::move(program)) {
  pair_gradients();
  name_all();
  find_loss();
}

bool Stepper::next() { return position_ < size() && ++position_; }

bool Stepper::previous() {
  if (position_ == 0) return false;
  --position_;
  return true;
}

void Stepper::jump(std::size_t position) {
  if (position > size()) throw Error(fmt::format("[stepper] there is no step {}; the program has {}", position, size()));
  position_ = position;
}

std::optional<std::size_t> Stepper::find_after(std::size_t from, const std::function<bool(std::size_t)>& condition) const {
  for (std::size_t i = from; i < size(); ++i)
    if (condition(i)) return i + 1;
  return {};
}

bool Stepper::finite(std::size_t entry) const {
  for (const Tensor& x : Trace::results(entries().at(entry)))
    if (is_floating(x.dtype()) && statistics(trace_.value(x, entry + 1)).non_finite) return false;
  return true;
}

double Stepper::largest_gradient(std::size_t entry) const {
  double largest = 0;
  for (const Tensor& dx : entries().at(entry).dx)
    if (dx)
      for (const double g : trace_.value(dx, entry + 1)) largest = std::max(largest, std::abs(g));
  return largest;
}

void Stepper::pair_gradients() {
  const auto pair = [&](const Tensor& x, const Tensor& gradient) {
    if (!x || !gradient) return;
    gradient_[x.root().get()] = gradient.root();
    primal_[gradient.root().get()] = x.root();
  };
  partner_.resize(size());
  for (std::size_t i = 0; i < size(); ++i) {
    const Entry& e = entries()[i];
    if (!e.backward) continue;
    for (std::size_t a = 0; a < e.dx.size(); ++a) pair(e.inputs[a], e.dx[a]);
    for (std::size_t j = 0; j < e.dy.size(); ++j) pair(e.outputs[j], e.dy[j]);
    for (std::size_t f = i; f-- > 0 && !partner_[i];) {
      const Entry& forward = entries()[f];
      if (forward.backward || forward.op != e.op || forward.outputs.size() != e.outputs.size()) continue;
      if (std::equal(e.outputs.begin(), e.outputs.end(), forward.outputs.begin())) partner_[i] = f, partner_[f] = i;
    }
  }
}

Tensor Stepper::root_gradient(const Tensor& x) const {
  const auto found = gradient_.find(x.root().get());
  return found == gradient_.end() ? Tensor{} : found->second;
}

Tensor Stepper::gradient_of(const Tensor& x) const {
  const Tensor root = root_gradient(x);
  // nothing flows back through a detached look at a tensor
  if (!root || (x->base && !x.wants_gradient())) return {};
  return window_of(root, x);
}

Tensor Stepper::primal_of(const Tensor& gradient) const {
  const auto found = primal_.find(gradient.root().get());
  return found == primal_.end() ? Tensor{} : found->second;
}

Tensors Stepper::used_outputs(std::size_t entry) const {
  const auto used = [&](const Tensor& y) {
    const auto same = [&](const Tensor& x) { return x && x.root() == y.root(); };
    const Tensors& returned = trace_.program().outputs;
    return std::any_of(returned.begin(), returned.end(), same) || std::any_of(entries().begin() + std::ptrdiff_t(entry) + 1, entries().end(), [&](const Entry& e) {
             return !e.backward && std::any_of(e.inputs.begin(), e.inputs.end(), same);
           });
  };
  Tensors some;
  const Tensors& all = entries().at(entry).outputs;
  for (const Tensor& y : all)
    if (y && used(y)) some.push_back(y);
  if (some.empty() && !all.empty()) some.push_back(all[0]);
  return some;
}

std::optional<std::size_t> Stepper::partner(std::size_t entry) const { return partner_.at(entry); }

void Stepper::add_name(const Tensor& x, const std::string& wanted) {
  if (name_of_.contains(x.get())) return;
  std::string name = wanted;
  for (int copy = 2; by_name_.contains(name); ++copy) name = fmt::format("{}#{}", wanted, copy);
  by_name_[name] = x;
  name_of_[x.get()] = name;
  names_.push_back(name);
}

void Stepper::name_all() {
  std::map<std::string, int> count;
  const std::function<void(const Tensor&)> leaf = [&](const Tensor& x) {
    if (!x || name_of_.contains(x.get()) || primal_.contains(x.root().get())) return;
    // a window that no entry made: of a detached tensor, or one of the caller's
    if (x->base) {
      leaf(x.root());
      return add_name(x, name_of_[x.root().get()] + (x.root().wants_gradient() && !x.wants_gradient() ? ".detached" : ".part"));
    }
    if (!x.name().empty()) return add_name(x, x.name());
    add_name(x, fmt::format("{}{}", name_of(x.role()), ++count[name_of(x.role())]));
  };
  const auto results = [&](const Tensors& tensors, const std::vector<std::string>& titles, const std::string& call, bool alone, const std::string& scope) {
    for (std::size_t j = 0; j < tensors.size(); ++j) {
      if (!tensors[j]) continue;
      // split has as many results as parts
      const std::string title = titles.size() >= tensors.size() ? titles[j] : std::to_string(j);
      const std::string own = tensors[j].name();
      add_name(tensors[j], !own.empty() ? (scope.empty() ? own : scope + "/" + own) : alone ? call : call + "." + title);
    }
  };
  for (std::size_t i = 0; i < size(); ++i) {
    const Entry& e = entries()[i];
    if (e.backward) {
      for (std::size_t a = 0; a < e.dx.size(); ++a)
        if (e.dx[a] && name_of_.contains(e.inputs[a].root().get())) add_name(e.dx[a].root(), name_of_[e.inputs[a].root().get()] + ".grad");
      continue;
    }
    for (const Tensor& x : e.inputs) leaf(x);
    if (e.outputs.size() == 1 && primal_.contains(e.outputs[0].root().get())) {
      // the seed of backward, or zeros where nothing contributes
      const Tensor root = e.outputs[0].root();
      if (const auto known = name_of_.find(primal_of(root).get()); known != name_of_.end()) add_name(root, known->second + ".grad");
      continue;
    }
    const std::string call = fmt::format("{}{}", e.op->name, ++count[e.op->name]);
    results(e.outputs, e.op->results, call, e.outputs.size() == 1, e.scope);
    results(e.saved, e.op->saved_names, call + (e.saved.size() > e.op->saved_names.size() ? ".saved" : ""), false, "");
  }
}

std::string Stepper::name(const Tensor& x) const {
  if (const auto found = name_of_.find(x.get()); found != name_of_.end()) return found->second;
  if (const auto found = name_of_.find(x.root().get()); found != name_of_.end()) return found->second;
  return x.name().empty() ? "unnamed " + x.shape().text() : x.name();
}

std::string Stepper::short_name(const Tensor& x) const {
  const std::string whole = name(x), end = whole.substr(whole.rfind('/') + 1);
  return find_or_empty(end) == find_or_empty(whole) ? end : whole;
}

std::string Stepper::whole_name(const std::string& name) const {
  if (by_name_.contains(name)) return name;
  std::string whole;
  for (const std::string& known : names_) {
    if (!known.ends_with("/" + name)) continue;
    if (!whole.empty()) throw UsageError(fmt::format("'{}' may be '{}' or '{}'; say which", name, whole, known));
    whole = known;
  }
  return whole.empty() ? name : whole;
}

Tensor Stepper::find(const std::string& given) const {
  const std::string name = whole_name(given);
  if (const auto found = by_name_.find(name); found != by_name_.end()) return found->second;
  // the gradient of a view has no entry of its own: it is that view of its root's
  constexpr std::string_view kGradient = ".grad";
  if (name.ends_with(kGradient)) {
    const auto found = by_name_.find(whole_name(name.substr(0, name.size() - kGradient.size())));
    if (found != by_name_.end()) {
      if (const Tensor gradient = gradient_of(found->second)) return gradient;
      throw UsageError(fmt::format("no gradient reaches '{}' in this program", found->first));
    }
  }
  const std::string nearest = nearest_name(name, names_);
  const std::string way_out = nearest.empty() ? "'names' lists them" : fmt::format("did you mean '{}'?", nearest);
  throw UsageError(fmt::format("no tensor is called '{}'; {}", name, way_out));
}

Tensor Stepper::find_or_empty(const std::string& name) const {
  try {
    return find(name);
  } catch (const UsageError&) {
    return {};
  }
}

double Stepper::work_of_loss() const {
  double flops = 0;
  for (const std::size_t i : needed_) flops += work_of(entries()[i]).flops;
  return flops;
}

void Stepper::check_element(const Tensor& x, std::int64_t element) const {
  if (element < 0 || element >= x.size())
    throw UsageError(fmt::format("'{}' {} has no element {}; elements count from 0 to {}", name(x), x.shape().text(), element, x.size() - 1));
}

std::size_t Stepper::gradient_position(const Tensor& x) const {
  std::size_t last = 0;
  const Tensor root = root_gradient(x);
  for (std::size_t i = 0; i < size() && root; ++i) {
    const Entry& e = entries()[i];
    const Tensors& written = e.backward ? e.dx : e.outputs;
    if (std::any_of(written.begin(), written.end(), [&](const Tensor& t) { return t && t.root() == root; })) last = i + 1;
  }
  return last;
}

void Stepper::find_loss() {
  for (std::size_t i = 0; i < size(); ++i) {
    const Entry& e = entries()[i];
    // gradients are written by backward entries, by zeros where nothing contributes, and where backward began
    if (e.backward || e.outputs.size() != 1 || !e.outputs[0]) continue;
    const Tensor gradient = e.outputs[0].root();
    const auto result = primal_.find(gradient.get());
    if (result == primal_.end() || (e.op == &detail::kFill && e.attributes.real("value") == 0)) continue;
    seeds_.push_back({i, window_of(result->second, e.outputs[0]), e.outputs[0]});
  }
  std::set<const void*> wanted;
  for (const Seed& s : seeds_) wanted.insert(TraceMemory::place(s.result).block);
  for (std::size_t i = seeds_.empty() ? 0 : seeds_.back().entry; i-- > 0;) {
    const Entry& e = entries()[i];
    if (e.backward || e.op->views) continue;
    // what writes gradients is no part of the loss
    const Tensors written = Trace::results(e);
    if (std::any_of(written.begin(), written.end(), [&](const Tensor& y) { return primal_.contains(y.root().get()); })) continue;
    if (std::none_of(written.begin(), written.end(), [&](const Tensor& y) { return wanted.contains(TraceMemory::place(y).block); })) continue;
    for (const Tensor& x : e.inputs)
      if (x) wanted.insert(TraceMemory::place(x).block);
    needed_.push_back(i);
  }
  std::reverse(needed_.begin(), needed_.end());
}

}  // namespace hedgehog

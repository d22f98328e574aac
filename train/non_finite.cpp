#include "train/non_finite.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <functional>
#include <memory>

#include "core/arena.h"
#include "core/plan.h"
#include "core/stepper.h"

namespace hedgehog {
namespace {

constexpr std::size_t kBefore = 8;  // calls shown before the one that failed

/// A replay in which nothing shares memory, so that all values stay readable.
class Replayed {
 public:
  explicit Replayed(const Program& program) : program_(program), places_(plan(program, {.reuse = false})) { arena_.reserve(places_.arena); }

  void run(std::size_t i) {
    const Entry& e = program_.entries[i];
    ResolvedCall call = resolve(e, [this](const Tensor& x) { return address(x); });
    if (const int w = places_.workspace_of[i]; w >= 0) call.workspace = arena_.data() + places_.slots[std::size_t(w)].offset;
    call.run();
  }
  Statistics of(const Tensor& x) {
    auto value = std::make_shared<Value>(*x.get());
    value->storage = std::make_shared<Storage>(address(x), std::size_t(0), arena_.storage());
    value->offset = 0;
    value->base = {};
    return statistics(Tensor(std::move(value)).to_vector());
  }

 private:
  void* address(const Tensor& x) {
    const auto found = places_.slot_of.find(x.root().get());
    if (found == places_.slot_of.end()) return x.data();
    return arena_.data() + places_.slots[std::size_t(found->second)].offset + x->offset * size_of(x.dtype());
  }

  const Program& program_;
  Plan places_;
  Arena arena_;
};

bool floating(const Tensor& x) { return x && is_floating(x.dtype()); }

std::string range_text(const Statistics& s) {
  std::string text = s.non_finite == s.count ? "nothing finite" : fmt::format("in [{:.4g}, {:.4g}]", s.minimum, s.maximum);
  if (s.non_finite) text += fmt::format(" and {} of {} not finite", s.non_finite, s.count);
  return text;
}

std::string result_name(const Entry& e, std::size_t j) { return j < e.op->results.size() ? e.op->results[j] : std::to_string(j); }

/// What the entry read, with the names of the record.
std::vector<std::pair<std::string, Tensor>> read_by(const Entry& e) {
  std::vector<std::pair<std::string, Tensor>> all;
  for (std::size_t a = 0; a < e.inputs.size(); ++a)
    if (floating(e.inputs[a]) && (!e.backward || (e.op->reads.inputs >> a & 1u))) all.emplace_back(e.op->arguments[a].name, e.inputs[a]);
  for (std::size_t j = 0; j < e.outputs.size() && e.backward; ++j)
    if (floating(e.outputs[j]) && (e.op->reads.outputs >> j & 1u)) all.emplace_back("result " + result_name(e, j), e.outputs[j]);
  for (std::size_t s = 0; s < e.saved.size() && e.backward; ++s)
    if (floating(e.saved[s]) && (e.op->saved_reads() >> s & 1u)) all.emplace_back("saved " + (s < e.op->saved_names.size() ? e.op->saved_names[s] : std::to_string(s)), e.saved[s]);
  for (std::size_t j = 0; j < e.dy.size(); ++j)
    if (e.dy[j]) all.emplace_back("gradient of result " + result_name(e, j), e.dy[j]);
  return all;
}

std::vector<std::pair<std::string, Tensor>> written_by(const Entry& e) {
  std::vector<std::pair<std::string, Tensor>> all;
  for (std::size_t a = 0; a < e.dx.size(); ++a)
    if (floating(e.dx[a])) all.emplace_back("gradient of " + e.op->arguments[a].name, e.dx[a]);
  for (std::size_t j = 0; j < e.outputs.size() && !e.backward; ++j)
    if (floating(e.outputs[j])) all.emplace_back(result_name(e, j), e.outputs[j]);
  return all;
}

std::string call_name(const Entry& e) { return fmt::format("{} {}{}", e.op->name, e.backward ? "backward" : "forward", e.scope.empty() ? "" : " in '" + e.scope + "'"); }

std::string lines_of(const std::vector<std::pair<std::string, Tensor>>& tensors, Replayed& replayed) {
  std::string text;
  for (const auto& [name, x] : tensors) {
    const Statistics s = replayed.of(x);
    const std::string own = x.root().name();
    text += fmt::format("  {} {}{}: {}, mean {:.4g}, deviation {:.4g}\n", name, x.shape().text(), own.empty() || own == name ? "" : " '" + own + "'", range_text(s), s.mean,
                        s.deviation);
  }
  return text;
}

NonFinite describe(const Program& program, std::size_t i, Replayed& replayed) {
  const Entry& e = program.entries[i];
  NonFinite found;
  found.cause = call_name(e);
  std::string inputs;
  for (const auto& [name, x] : read_by(e)) inputs += fmt::format("{}{} {} {}", inputs.empty() ? ", from " : "; ", name, x.shape().text(), range_text(replayed.of(x)));
  found.cause += inputs;
  found.report = fmt::format("call {} of {}: {}\n", i + 1, program.entries.size(), call_name(e));
  if (e.where.line() > 0) found.report += fmt::format("source: {}:{}\n", std::filesystem::path(e.where.file_name()).filename().string(), e.where.line());
  if (const std::string& formula = e.backward ? e.op->formula_backward : e.op->formula_forward; !formula.empty()) found.report += fmt::format("formula: {}\n", formula);
  found.report += "\nread\n" + lines_of(read_by(e), replayed) + "\nwritten\n" + lines_of(written_by(e), replayed) + "\ncalls before it, and what they wrote\n";
  for (std::size_t b = i - std::min(i, kBefore); b < i; ++b) {
    if (program.entries[b].op->views) continue;
    found.report += fmt::format("  {:>4}  {}\n", b + 1, call_name(program.entries[b]));
    for (const auto& [name, x] : written_by(program.entries[b])) found.report += fmt::format("          {} {}: {}\n", name, x.shape().text(), range_text(replayed.of(x)));
  }
  return found;
}

}  // namespace

std::optional<NonFinite> first_non_finite(const Program& program) {
  Replayed replayed(program);
  for (std::size_t i = 0; i < program.entries.size(); ++i) {
    const Entry& e = program.entries[i];
    if (e.op->views) continue;
    replayed.run(i);
    for (const auto& [name, x] : written_by(e))
      if (replayed.of(x).non_finite) return describe(program, i, replayed);
  }
  return {};
}

}  // namespace hedgehog

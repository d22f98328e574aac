#include <fmt/format.h>

#include <algorithm>
#include <unordered_map>

#include "core/device.h"
#include "core/error.h"
#include "core/tape.h"

namespace hedgehog {
namespace {

using detail::execute;
using detail::tape;

/// The gradient of one root tensor while contributions arrive. Windows (views) are columns [begin, end) of a matrix
/// `width` wide; `whole` means that every element has been written.
struct Gradient {
  Tensor tensor;
  bool whole = false;
  std::int64_t width = 0;
  std::vector<std::pair<std::int64_t, std::int64_t>> written;
};

/// The window of `gradient` that corresponds to `view` of its root.
Tensor window(const Tensor& gradient, const Tensor& view) {
  if (!view->base) return gradient;
  Tensor w = declare(view.shape(), gradient.dtype(), Role::activation);
  w->offset = view->offset;
  w->columns = view->columns;
  w->stride = view->stride;
  w->base = gradient;
  return w;
}

void fill_zero(const Tensor& target, const Entry& near) {
  Entry entry;
  entry.op = &detail::kFill;
  entry.attributes = {{"value", 0.0}};
  entry.outputs = {target};
  entry.scope = near.scope;
  entry.where = near.where;
  execute(std::move(entry), false);
}

class Backward {
 public:
  void seed(const Tensor& loss, const Tensor& cotangent, const Entry& near) {
    Entry entry;
    entry.op = cotangent ? &detail::kCopy : &detail::kFill;
    if (cotangent) entry.inputs = {cotangent};
    else entry.attributes = {{"value", 1.0}};
    Mode mode;
    entry.outputs = {contribution(loss, near, mode)};
    entry.scope = near.scope;
    entry.where = near.where;
    execute(std::move(entry), false);
  }

  /// Appends the backward entry of one forward entry. False if no gradient reaches it.
  bool visit(const Entry& forward) {
    // an entry without an op was consumed by a pass that failed on the way
    if (!forward.op || forward.backward || forward.op->views) return false;
    if (std::none_of(forward.outputs.begin(), forward.outputs.end(), [&](const Tensor& y) { return gradients_.count(y.get()); }))
      return false;
    if (!std::any_of(forward.outputs.begin(), forward.outputs.end(), [](const Tensor& y) { return y.wants_gradient(); })) return false;
    check_versions(forward);
    Entry entry;
    entry.op = forward.op;
    entry.attributes = forward.attributes;
    entry.backward = true;
    entry.inputs = forward.inputs;
    entry.outputs = forward.outputs;
    entry.saved = forward.saved;
    entry.scope = forward.scope;
    entry.where = forward.where;
    const std::vector<Meta> metas = detail::metas_of(forward.inputs);
    entry.workspace = current_device().workspace(*forward.op, forward.attributes, metas, forward.op->infer(forward.attributes, metas), true);
    for (const Tensor& y : forward.outputs) entry.dy.push_back(upstream(y, forward));
    auto wanted = [&](std::size_t i) {
      const Tensor& x = forward.inputs[i];
      return x.wants_gradient() && forward.op->arguments[i].differentiable && is_floating(x.dtype());
    };
    // a kernel stores its gradients in any order: where two share memory, both must add
    for (std::size_t i = 0; i < forward.inputs.size(); ++i)
      for (std::size_t j = 0; j < i; ++j)
        if (wanted(i) && wanted(j) && overlap(forward.inputs[i], forward.inputs[j])) zero(forward.inputs[i].root(), forward);
    for (std::size_t i = 0; i < forward.inputs.size(); ++i) {
      Mode mode = Mode::write;
      Tensor dx;
      if (wanted(i)) dx = contribution(forward.inputs[i], forward, mode);
      entry.dx.push_back(dx);
      entry.modes.push_back(mode);
    }
    execute(std::move(entry), false);
    const bool keep = tape().keep;
    for (const Tensor& y : forward.outputs) {
      auto found = gradients_.find(y.get());
      if (found == gradients_.end()) continue;
      if (keep) y->gradient = found->second.tensor;
      gradients_.erase(found);
    }
    return true;
  }

 private:
  static void check_versions(const Entry& forward) {
    for (std::size_t i = 0; i < forward.inputs.size(); ++i) {
      const Tensor& x = forward.inputs[i];
      if (!x) continue;
      if ((forward.op->reads.inputs >> i & 1u) && x.version() != forward.versions[i] + (forward.op->updates >> i & 1u))
        throw Error(fmt::format("[backward] argument '{}' of {} ({}:{}) was overwritten after it was used; "
                                "call backward before the update",
                                forward.op->arguments[i].name, forward.op->name, forward.where.file_name(), forward.where.line()));
    }
    for (const Tensor& y : forward.outputs)
      if (y->consumed)
        throw Error(fmt::format("[backward] {} ({}:{}) was already differentiated once; compute the loss again, "
                                "or hold a keep_tape guard for several backward passes",
                                forward.op->name, forward.where.file_name(), forward.where.line()));
  }

  static bool overlap(const Tensor& a, const Tensor& b) {
    if (a.root() != b.root()) return false;
    if (a.stride() != b.stride() || !a->base || !b->base) return true;
    return a->offset < b->offset + b.columns() && b->offset < a->offset + a.columns();
  }

  /// Writes zeros where no contribution to the gradient of an activation has been written yet.
  void zero(const Tensor& root, const Entry& near) {
    if (root.role() == Role::parameter) return;
    Gradient& g = gradients_[root.get()];
    if (!g.tensor) g.tensor = declare(root.shape(), root.dtype());
    if (g.width == 0) g.width = root.size();
    complete(g, near);
  }

  /// Where a contribution to the gradient of x goes, and whether it writes or adds.
  Tensor contribution(const Tensor& x, const Entry& near, Mode& mode) {
    const Tensor root = x.root();
    if (root.role() == Role::parameter) {
      mode = Mode::accumulate;
      return window(root->gradient, x);
    }
    if (root->consumed)
      throw Error(fmt::format("[backward] an argument of {} ({}:{}) comes from calls that an earlier backward consumed; "
                              "compute it again, or hold a keep_tape guard",
                              near.op->name, near.where.file_name(), near.where.line()));
    Gradient& g = gradients_[root.get()];
    if (!g.tensor) g.tensor = declare(root.shape(), root.dtype());
    mode = mark(g, x, root.size(), near);
    return window(g.tensor, x);
  }

  static Mode mark(Gradient& g, const Tensor& x, std::int64_t size, const Entry& near) {
    if (g.whole) return Mode::accumulate;
    if (x.columns() == size) {
      const bool first = g.written.empty();
      if (!first) complete(g, near);
      g.whole = true;
      return first ? Mode::write : Mode::accumulate;
    }
    if (g.width == 0) g.width = x.stride();
    const std::int64_t begin = x->offset, end = x->offset + x.columns();
    bool known = false, overlaps = g.width != x.stride();
    for (auto [b, e] : g.written) {
      known |= b == begin && e == end;
      overlaps |= begin < e && b < end;
    }
    if (known && g.width == x.stride()) return Mode::accumulate;
    if (overlaps) {
      complete(g, near);
      return Mode::accumulate;
    }
    g.written.emplace_back(begin, end);
    std::int64_t covered = 0;
    for (auto [b, e] : g.written) covered += e - b;
    g.whole = covered == g.width;
    return Mode::write;
  }

  /// Zeroes the columns that nothing has written.
  static void complete(Gradient& g, const Entry& near) {
    if (g.whole) return;
    std::sort(g.written.begin(), g.written.end());
    g.written.emplace_back(g.width, g.width);
    std::int64_t at = 0;
    const std::int64_t rows = g.tensor.size() / g.width;
    for (auto [b, e] : g.written) {
      if (b > at) {
        Tensor gap = declare(Shape{rows, b - at}, g.tensor.dtype());
        gap->base = g.tensor;
        gap->offset = at;
        gap->columns = b - at;
        gap->stride = g.width;
        fill_zero(gap, near);
      }
      at = std::max(at, e);
    }
    g.whole = true;
  }

  Tensor upstream(const Tensor& y, const Entry& near) {
    auto found = gradients_.find(y.get());
    if (found == gradients_.end()) return {};
    complete(found->second, near);
    return found->second.tensor;
  }

  std::unordered_map<const Value*, Gradient> gradients_;
};

void check_loss(const Tensor& loss, const Tensor& cotangent) {
  if (!loss) throw Error("[backward] needs a tensor, got none");
  if (loss.root()->consumed)
    throw Error("[backward] this loss was already differentiated once; compute it again, or hold a keep_tape guard for several passes");
  if (!loss.wants_gradient() || loss.role() != Role::activation)
    throw Error("[backward] the loss depends on no parameter through recorded calls (gradients of gradients are not supported, and "
                "no_grad or detach cut the path); nothing to differentiate");
  if (cotangent && !(cotangent.shape() == loss.shape() && cotangent.dtype() == loss.dtype()))
    throw ShapeError(fmt::format("[backward] the cotangent must be like the loss {} {}, but is {} {}", loss.shape().text(),
                                 name_of(loss.dtype()), cotangent.shape().text(), name_of(cotangent.dtype())));
}

}  // namespace

void backward(const Tensor& loss, const Tensor& cotangent) { backward(Tensors{loss}, Tensors{cotangent}); }

void backward(const Tensors& results, const Tensors& cotangents) {
  if (results.size() != cotangents.size()) throw Error(fmt::format("[backward] needs one cotangent (perhaps empty) for each result, got {} for {} results", cotangents.size(), results.size()));
  for (std::size_t j = 0; j < results.size(); ++j) check_loss(results[j], cotangents[j]);
  detail::Tape& t = tape();
  Entry near;
  near.scope = t.scope;
  Backward pass;
  // while recording, backward entries are appended to the list that is walked, so walk only what is there now, by index
  const std::size_t count = t.entries.size();
  for (std::size_t j = 0; j < results.size(); ++j) pass.seed(results[j], cotangents[j], near);
  for (std::size_t i = count; i-- > 0;) {
    const Entry forward = t.entries[i];
    if (!pass.visit(forward) || t.keep) continue;
    for (const Tensor& y : forward.outputs) y->consumed = true;
    if (!t.recording) t.entries[i] = Entry{};
  }
  if (t.recording || t.keep) return;
  std::erase_if(t.entries, [](const Entry& e) { return e.op == nullptr; });
}

}  // namespace hedgehog

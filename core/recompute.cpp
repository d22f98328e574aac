#include <algorithm>
#include <unordered_map>

#include "core/account.h"

namespace hedgehog {
namespace {

/// A forward entry whose results could be made again instead of being kept.
struct Candidate {
  std::size_t entry = 0;       // index in the list
  std::size_t first_use = 0;   // first backward entry that reads a result
  double price = 0;            // FLOPs (and bytes moved) per byte freed
};

Bytes bytes_of(const Tensor& t) { return t.size() * size_of(t.dtype()); }

class Recompute {
 public:
  explicit Recompute(Program& program) : program_(program) {}

  std::vector<Candidate> candidates() const {
    std::unordered_map<const Value*, std::size_t> maker, first_backward, last_use;
    const auto& list = program_.entries;
    for (std::size_t i = 0; i < list.size(); ++i)
      for_each_touched(list[i], [&](const Tensor& x, bool writes) {
        const Value* root = x.root().get();
        if (writes) maker.try_emplace(root, i);
        else if (list[i].backward) first_backward.try_emplace(root, i);
        last_use[root] = i;
      });
    std::vector<Candidate> found;
    for (std::size_t i = 0; i < list.size(); ++i) {
      const Entry& e = list[i];
      if (e.backward || e.op->views || e.op->updates || e.outputs.empty()) continue;
      Candidate c{i, list.size(), 0};
      Bytes freed = 0;
      bool possible = true;
      for (const Tensors* made : {&e.outputs, &e.saved})
        for (const Tensor& y : *made) {
          if (y->base || y->storage || maker.count(y.get()) == 0 || maker[y.get()] != i) possible = false;
          if (auto use = first_backward.find(y.get()); use != first_backward.end()) {
            c.first_use = std::min(c.first_use, use->second);
            freed += bytes_of(y);
          }
        }
      for (const Tensor& y : program_.outputs)
        if (std::find(e.outputs.begin(), e.outputs.end(), y.root()) != e.outputs.end()) possible = false;
      if (!possible || freed == 0 || c.first_use == list.size()) continue;
      for (const Tensor& x : e.inputs) {
        if (!x || x.root()->storage || x.role() != Role::activation) continue;
        if (last_use[x.root().get()] < c.first_use) freed -= bytes_of(x.root());  // would have to be kept longer
      }
      if (freed <= 0) continue;
      const Work w = work_of(e);
      c.price = (w.flops + 4 * w.bytes) / double(freed);
      found.push_back(c);
    }
    std::stable_sort(found.begin(), found.end(), [](const Candidate& a, const Candidate& b) { return a.price < b.price; });
    return found;
  }

  /// The list with the candidate's entry repeated just before its first use in backward.
  Program with(const Candidate& c) const {
    Program out = program_;
    Entry again = out.entries[c.entry];
    std::unordered_map<const Value*, Tensor> renamed;
    for (Tensors* made : {&again.outputs, &again.saved})
      for (Tensor& y : *made) {
        Tensor copy = declare(y.shape(), y.dtype(), y.role(), y.name());
        renamed.emplace(y.get(), copy);
        y = copy;
      }
    for (std::size_t i = c.first_use; i < out.entries.size(); ++i) {
      if (!out.entries[i].backward) {
        for (Tensor& x : out.entries[i].inputs) rename(x, renamed);
        continue;
      }
      for (Tensors* read : {&out.entries[i].inputs, &out.entries[i].outputs, &out.entries[i].saved})
        for (Tensor& x : *read) rename(x, renamed);
    }
    out.entries.insert(out.entries.begin() + std::ptrdiff_t(c.first_use), std::move(again));
    return out;
  }

 private:
  static void rename(Tensor& x, const std::unordered_map<const Value*, Tensor>& renamed) {
    if (!x) return;
    auto found = renamed.find(x.root().get());
    if (found == renamed.end()) return;
    if (!x->base) {
      x = found->second;
      return;
    }
    auto view = std::make_shared<Value>(*x.get());
    view->base = found->second;
    x = Tensor(std::move(view));
  }

  Program& program_;
};

}  // namespace

Program recompute(Program program, Bytes budget) {
  Bytes arena = plan(program).arena;
  bool improved = true;
  while (arena > budget && improved) {
    improved = false;
    for (const Candidate& c : Recompute(program).candidates()) {
      Program trial = Recompute(program).with(c);
      const Bytes smaller = plan(trial).arena;
      if (smaller >= arena) continue;
      program = std::move(trial);
      arena = smaller;
      improved = true;
      break;
    }
  }
  return program;
}

}  // namespace hedgehog

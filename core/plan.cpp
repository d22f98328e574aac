#include "core/plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <unordered_set>

#include "core/error.h"

namespace hedgehog {
namespace {

constexpr Bytes kAlign = 256;  // what device kernels rely on; a multiple of the CPU's 64
Bytes rounded(Bytes n) { return (n + kAlign - 1) / kAlign * kAlign; }
Bytes bytes_of(const Tensor& t) { return t.size() * size_of(t.dtype()); }
bool planned(const Tensor& root) { return root->role == Role::activation && !root->storage; }

struct Lifetimes {
  Plan plan;
  std::unordered_set<const Value*> kept;  // results of the program

  explicit Lifetimes(const Program& program) {
    const int n = int(program.entries.size());
    std::unordered_set<const Storage*> persistent;
    for (int i = 0; i < n; ++i) {
      const Entry& e = program.entries[i];
      for_each_touched(e, [&](const Tensor& x, bool writes) { touch(x.root(), i, writes, e, persistent); });
      int workspace = -1;
      if (e.workspace > 0) {
        workspace = int(plan.slots.size());
        plan.slots.push_back({0, rounded(e.workspace), i, i});
      }
      plan.workspace_of.push_back(workspace);
    }
    for (const Tensor& y : program.outputs) {
      kept.insert(y.root().get());
      if (auto found = plan.slot_of.find(y.root().get()); found != plan.slot_of.end()) plan.slots[found->second].last = n;
    }
  }

  void touch(const Tensor& root, int i, bool writes, const Entry& e, std::unordered_set<const Storage*>& persistent) {
    if (!planned(root)) {
      if (!root->storage) return;  // a leaf of a model that is only declared
      const Storage& block = root->storage->whole();  // slices of one flat buffer count once
      if (persistent.insert(&block).second) plan.persistent += rounded(Bytes(block.bytes()));
      return;
    }
    auto [found, fresh] = plan.slot_of.try_emplace(root.get(), int(plan.slots.size()));
    if (fresh && !writes)
      throw Error(fmt::format("[plan] {} reads a tensor {} that no entry before it makes; record both in one program", e.op->name,
                              root.shape().text()));
    if (fresh) plan.slots.push_back({0, rounded(bytes_of(root)), i, i});
    Slot& s = plan.slots[found->second];
    s.first = std::min(s.first, i);
    s.last = std::max(s.last, i);
  }

  /// Lets `to` live in the slot of `from`, if from ends and to begins at entry i.
  bool share(const Tensor& from, const Tensor& to, int i) {
    if (!from || !to || from->base || to->base || bytes_of(from) != bytes_of(to) || kept.count(from.get())) return false;
    auto a = plan.slot_of.find(from.get()), b = plan.slot_of.find(to.get());
    if (a == plan.slot_of.end() || b == plan.slot_of.end() || a->second == b->second) return false;
    Slot &source = plan.slots[a->second], &target = plan.slots[b->second];
    if (source.last != i || target.first != i) return false;
    source.last = target.last;
    target.bytes = 0;  // an empty slot takes no place
    const int gone = b->second, into = a->second;
    for (auto& [value, slot] : plan.slot_of)
      if (slot == gone) slot = into;
    return true;
  }
};

/// Whether no other argument of the call lies in the memory of x, itself or as a view.
bool only_argument(const Entry& e, const Tensor& x) {
  return std::count_if(e.inputs.begin(), e.inputs.end(), [&](const Tensor& y) { return x && y && y.root() == x.root(); }) == 1;
}

void share_in_place(const Program& program, Lifetimes& lives) {
  for (int i = 0; i < int(program.entries.size()); ++i) {
    const Entry& e = program.entries[i];
    if (!e.backward) {
      for (auto [in, out] : e.op->alias)
        if (only_argument(e, e.inputs[in]) && lives.share(e.inputs[in], e.outputs[out], i)) break;
    } else {
      for (auto [dy, dx] : e.op->alias_backward)
        if (e.modes[dx] == Mode::write && lives.share(e.dy[dy], e.dx[dx], i)) break;
    }
  }
}

void place(Plan& plan, bool reuse, Bytes guard) {
  std::vector<int> order(plan.slots.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return plan.slots[a].bytes > plan.slots[b].bytes; });
  std::vector<int> placed;  // by offset
  for (int i : order) {
    Slot& s = plan.slots[i];
    if (s.bytes == 0) continue;
    const Bytes need = s.bytes + 2 * guard;
    Bytes at = 0;
    for (int j : placed) {
      const Slot& other = plan.slots[j];
      if (reuse && (other.last < s.first || s.last < other.first)) continue;
      if (other.offset - guard >= at + need) break;
      at = std::max(at, other.offset + other.bytes + guard);
    }
    s.offset = at + guard;
    plan.arena = std::max(plan.arena, at + need);
    placed.insert(std::upper_bound(placed.begin(), placed.end(), i, [&](int a, int b) { return plan.slots[a].offset < plan.slots[b].offset; }), i);
  }
}

}  // namespace

Plan plan(const Program& program, const PlanOptions& options) {
  Lifetimes lives(program);
  if (options.reuse) share_in_place(program, lives);
  place(lives.plan, options.reuse, options.guards ? kAlign : 0);
  return std::move(lives.plan);
}

}  // namespace hedgehog

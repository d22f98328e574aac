#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <unordered_map>
#include <vector>

#include "core/tape.h"

namespace hedgehog {

using Bytes = std::int64_t;

struct PlanOptions {
  bool reuse = true;    // false: nothing shares memory (the oracle for the sharing)
  bool guards = false;  // room on each side of every slot, for the guard-word check
};

/// A piece of the arena, in use from entry `first` to entry `last`, both included.
struct Slot {
  Bytes offset = 0, bytes = 0;
  int first = 0, last = 0;
};

/// Where everything lies that only lives during a run. Bytes, from the start of one arena.
struct Plan {
  std::vector<Slot> slots;
  std::unordered_map<const Value*, int> slot_of;  // planned roots; aliased roots share a slot
  std::vector<int> workspace_of;                  // one an entry, -1: none
  Bytes arena = 0;
  Bytes persistent = 0;  // parameters, gradients, states, inputs that the program touches, as far as they have memory
};

/// Places the activations and workspaces of a program. Pure: nothing is allocated.
///
/// Largest first, each at the lowest offset where no slot lies that is alive at the same time. Tensors that an op may
/// compute in place share a slot when the source is not needed afterwards.
Plan plan(const Program& program, const PlanOptions& options = {});

/// Calls visit(tensor, writes) for every tensor whose elements an entry touches.
template <class Visit>
void for_each_touched(const Entry& entry, const Visit& visit) {
  if (entry.op->views) return;
  auto each = [&](const Tensors& tensors, std::uint32_t used, bool writes) {
    for (std::size_t i = 0; i < tensors.size(); ++i)
      if (tensors[i] && i < 32 && (used >> i & 1u)) visit(tensors[i], writes);
  };
  const Reads& r = entry.op->reads;
  each(entry.inputs, entry.backward ? r.inputs : ~0u, false);
  each(entry.outputs, entry.backward ? r.outputs : ~0u, !entry.backward);
  each(entry.saved, entry.backward ? entry.op->saved_reads() : ~0u, !entry.backward);
  each(entry.dy, ~0u, false);
  each(entry.dx, ~0u, true);
}

}  // namespace hedgehog

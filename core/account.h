#pragma once
#include <map>
#include <string>

#include "core/plan.h"

namespace hedgehog {

/// FLOPs, bytes and peak memory of a program; nothing is run.
struct Cost {
  double flops = 0;
  double bytes = 0;     // moved at least: one pass over every tensor touched, two over a gradient that is added to
  double repeated = 0;  // FLOPs in entries that recompute() put in
  double own_flops() const { return flops - repeated; }
  Bytes peak = 0;       // arena + persistent
  Bytes arena = 0, persistent = 0;
  std::map<std::string, Work> by_op;  // "linear backward" -> work
};
Cost account(const Program& program);
/// Work of one entry.
Work work_of(const Entry& entry);

}  // namespace hedgehog

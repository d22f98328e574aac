#include "core/account.h"

namespace hedgehog {

Work work_of(const Entry& entry) {
  if (entry.op->views) return {0, 0};
  Work work;
  if (entry.op->cost) {
    const auto [forward, backward] =
        entry.op->cost(entry.attributes, detail::metas_of(entry.inputs), detail::metas_of(entry.outputs));
    work = entry.backward ? backward : forward;
  }
  if (work.bytes < 0) {
    work.bytes = 0;
    for_each_touched(entry, [&](const Tensor& x, bool) { work.bytes += double(x.size() * size_of(x.dtype())); });
    // what a gradient is added to is read before it is written
    for (std::size_t i = 0; i < entry.dx.size(); ++i)
      if (const Tensor& dx = entry.dx[i]; dx && entry.modes[i] == Mode::accumulate) work.bytes += double(dx.size() * size_of(dx.dtype()));
  }
  return work;
}

Cost account(const Program& program) {
  Cost cost;
  for (const Entry& e : program.entries) {
    const Work w = work_of(e);
    cost.flops += w.flops;
    cost.bytes += w.bytes;
    if (e.repeated) cost.repeated += w.flops;
    Work& sum = cost.by_op.try_emplace(e.op->name + (e.backward ? " backward" : ""), Work{0, 0}).first->second;
    sum.flops += w.flops;
    sum.bytes += w.bytes;
  }
  const Plan p = plan(program);
  cost.arena = p.arena;
  cost.persistent = p.persistent;
  cost.peak = p.arena + p.persistent;
  return cost;
}

}  // namespace hedgehog

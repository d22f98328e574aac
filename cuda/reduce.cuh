#pragma once
#include "cuda/walk.cuh"

/// Sums over some axes of a tensor, shared by the families.
namespace hedgehog::cuda {

/// Axes of a contiguous source by what becomes of them. Steps depend on shapes alone, and so does the order of a sum.
struct SumWalk {
  detail::Walk<1> kept, reduced;
  bool inner_kept = true;

  /// Adds an axis inside the ones so far, `step` source elements from one to the next.
  void push(std::int64_t extent, std::int64_t step, bool keeps) {
    if (extent == 1) return;
    (keeps ? kept : reduced).push(extent, {step});
    inner_kept = keeps;
  }
};
/// Sums `from` over the axes where `target`, aligned at the last axis, has extent 1 or none.
inline SumWalk sum_walk(const Shape& from, const Shape& target) {
  SumWalk walk;
  std::int64_t step = from.size();
  const int lead = from.rank() - target.rank();
  for (int i = 0; i < from.rank(); ++i) {
    step /= from[i];
    walk.push(from[i], step, i >= lead && target[i - lead] != 1);
  }
  return walk;
}

/// Bytes of workspace that sum_to needs for `size` source elements, however they are reduced.
std::int64_t sum_bytes(std::int64_t size);

/// target (+)= factor * sum of x (contiguous, f32 | f64 | bf16). Partial sums are f64. The target has the kept axes in
/// order; it may be rows with a stride, of any floating dtype.
void sum_to(const char* op, Dtype dtype, const void* x, const SumWalk& walk, const Ref& target, double factor, Mode mode,
            void* workspace);

void register_reduce_axis(KernelTable& table);  // max and logsumexp

}  // namespace hedgehog::cuda

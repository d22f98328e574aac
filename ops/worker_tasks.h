#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#ifdef _OPENMP
#include <omp.h>
#endif

namespace hedgehog {

/// How many tasks that need scratch memory of their own may run at once: `infer` reserves that much of it.
/// A constant of the process, so that a planned program never runs with more threads than it has scratch for.
inline std::int64_t worker_count(std::int64_t tasks) {
#ifdef _OPENMP
  static const std::int64_t cores = std::clamp<std::int64_t>(omp_get_num_procs(), 1, 64);
#else
  static const std::int64_t cores = 1;
#endif
  return std::min(tasks, cores);
}

/// Calls body(task, worker) for every task in [0, tasks), in parallel and in any order; worker < worker_count(tasks).
template <class Body>
void worker_tasks(std::int64_t tasks, const Body& body) {
#ifdef _OPENMP
  const int workers = int(std::min<std::int64_t>(worker_count(tasks), omp_get_max_threads()));
  if (workers > 1 && !omp_in_parallel()) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(workers)
    for (std::int64_t i = 0; i < tasks; ++i) body(i, std::int64_t(omp_get_thread_num()));
    return;
  }
#endif
  for (std::int64_t i = 0; i < tasks; ++i) body(i, std::int64_t(0));
}

/// Hands out 64-byte aligned pieces of one block of workspace. With a null block it only counts.
class Carver {
 public:
  explicit Carver(void* block = nullptr) : block_(static_cast<std::byte*>(block)) {}
  template <class T>
  T* take(std::int64_t count) {
    T* piece = block_ ? reinterpret_cast<T*>(block_ + used_) : nullptr;
    used_ += (count * std::int64_t(sizeof(T)) + 63) / 64 * 64;
    return piece;
  }
  std::int64_t used() const { return used_; }

 private:
  std::byte* block_ = nullptr;
  std::int64_t used_ = 0;
};

}  // namespace hedgehog

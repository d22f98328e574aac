#pragma once
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/account.h"
#include "core/arena.h"
#include "core/device.h"

namespace hedgehog {

struct ExecutorOptions {
  bool reuse = true;                  // false: no two tensors share memory
  bool poison = poison_enabled();     // fresh memory is NaN, guard words around every slot are checked after each entry
  std::shared_ptr<Arena> arena = {};  // shared with other executors; empty: one of its own
  bool graph = false;                 // capture the run once and replay it: one launch instead of hundreds
  std::function<void()> first = {};   // enqueued before the first entry, as part of every run: moving the inputs in
};

/// Seconds spent in one kind of entry since profiling was switched on.
struct Timing {
  double seconds = 0;
  std::int64_t calls = 0;
};

/// Runs a recorded program again and again in planned memory, allocating nothing, on the device that was current when it
/// was recorded and this was made.
///
/// With `graph`, the first run is an ordinary one, the second is captured, and later ones replay it with the same bits. A
/// replay is refused (Error) when a tensor of the program has moved; without `graph` the new address is used.
///
/// Inputs are the tensors that were made by input(...): fill them before run(). Results are read through output(i); they
/// are valid until the next run of any executor that shares the arena.
class Executor {
 public:
  explicit Executor(Program program, ExecutorOptions options = {});
  Executor(Executor&&) = default;  // resolved calls point into the program, so no copy
  void run();
  Tensor output(std::size_t i) const;
  const Program& program() const { return program_; }
  const Plan& plan() const { return plan_; }
  void profile(bool on);
  /// By op: "linear", "linear backward".
  const std::map<std::string, Timing>& timings() const { return timings_; }

 private:
  void bind();
  bool moved() const;
  void enqueue();
  void run_checked(std::size_t i);
  void check_guards(std::size_t i) const;
  void add_timings(const std::vector<double>& seconds);

  Program program_;
  ExecutorOptions options_;
  Plan plan_;
  Device* device_;
  std::uint64_t bound_ = 0;
  std::vector<std::pair<Tensor, const void*>> leaves_;  // what lives outside the arena, and where it was when bound
  std::unique_ptr<Replay> replay_;
  std::unique_ptr<Stopwatch> watch_;
  bool warm_ = false;
  std::vector<ResolvedCall> calls_;           // one an entry; views have none
  std::vector<std::vector<int>> begins_;      // slots that begin at an entry
  std::vector<Tensor> updated_;               // what a run overwrites in place
  std::map<std::string, Timing> timings_;
  bool profiling_ = false;
};

}  // namespace hedgehog

#pragma once
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/op.h"

namespace hedgehog {

/// Work that was enqueued once and can be run again at little cost; addresses and launch arguments stay as they were.
class Replay {
 public:
  virtual ~Replay() = default;
  virtual void run() = 0;
};

/// Brings the inputs of a step to the device while the step before still runs: two slots, filled in turn.
///
///   fill stage(0), stage(1), …;  commit();  run([&] { take(); the step });
class Feed {
 public:
  virtual ~Feed() = default;
  /// Host memory for tensor i of the next step. Waits, if need be, until the copy that last read it is done.
  virtual void* stage(std::size_t i) = 0;
  /// What was staged is complete: its copy to the device starts.
  virtual void commit() = 0;
  /// Enqueues the move of the oldest committed inputs into their tensors; may be part of a replayed step.
  virtual void take() = 0;
  /// Runs a step that takes, after its inputs have arrived.
  virtual void run(const std::function<void()>& step) = 0;
};

/// Brings small results to the host without stopping the device.
class Readback {
 public:
  virtual ~Readback() = default;
  /// Enqueues a copy of the tensors as they are then, of the same sizes at every call. At most kDepth copies may wait to be
  /// fetched.
  virtual void take(const Tensors& results) = 0;
  /// Elements of all tensors in order, as numbers, of the oldest copy; waits for it.
  virtual std::vector<double> fetch() = 0;
  static constexpr int kDepth = 4;
};

/// Times stretches of work where it is done, not where it is enqueued.
class Stopwatch {
 public:
  virtual ~Stopwatch() = default;
  /// Marks the end of the work so far.
  virtual void lap() = 0;
  /// Seconds between each mark and the next; waits for the last, and starts anew.
  virtual std::vector<double> seconds() = 0;
};

/// Where tensors live and kernels run. Work is done in the order of the calls; only copy_out, synchronize and a Readback
/// wait for it.
class Device {
 public:
  virtual ~Device() = default;
  virtual const char* name() const = 0;         // "cpu", "cuda"
  virtual std::string description() const = 0;  // for people: "NVIDIA H100 80GB HBM3, compute capability 9.0"
  virtual bool host() const { return false; }   // whether the host may read its memory
  /// Throws Error if there is not enough.
  virtual void* allocate(std::size_t bytes) = 0;
  virtual void free(void* data) noexcept = 0;
  virtual void copy_in(void* to, const void* from, std::size_t bytes) = 0;   // from host memory, free to change afterwards
  virtual void copy_out(void* to, const void* from, std::size_t bytes) = 0;  // to host memory
  virtual void copy(void* to, const void* from, std::size_t bytes) = 0;
  virtual void fill(void* to, unsigned char byte, std::size_t bytes) = 0;
  virtual void synchronize() = 0;
  /// Bytes that an allocation may still take; 0: not known.
  virtual std::int64_t free_memory() = 0;
  /// Lets f32 matrix products round their operands to TF32, which tensor cores multiply faster. Off at the start.
  virtual void allow_tf32(bool) {}

  /// The kernel of an op; null: this device has none, and runs the op's composed reference.
  virtual const Kernel* kernel(const Op& op, bool backward) const = 0;
  /// What forward keeps for backward on this device alone, after what the op keeps everywhere.
  virtual std::vector<Meta> kept(const Op&, const Attributes&, std::span<const Meta> /*inputs*/) const { return {}; }
  /// Bytes of workspace of one call.
  virtual std::int64_t workspace(const Op& op, const Attributes& attributes, std::span<const Meta> inputs, const Layout& layout,
                                 bool backward) const = 0;

  /// Enqueues what `work` enqueues, once, as something that can be replayed. Nothing runs yet.
  virtual std::unique_ptr<Replay> capture(const std::function<void()>& work) = 0;
  virtual std::unique_ptr<Feed> feed(const Tensors& inputs) = 0;
  virtual std::unique_ptr<Readback> readback() = 0;
  virtual std::unique_ptr<Stopwatch> stopwatch() = 0;
};

Device& cpu_device();
/// The GPU. Throws Error with the reason when there is none: not in this build, no driver, driver too old, no memory.
Device& cuda_device();
/// Why cuda_device() would throw; empty if it would not.
std::string cuda_unavailable();
/// Whether this program has the CUDA backend in it.
bool built_with_cuda();

/// Where new tensors are placed and ops run, in this thread; the CPU until said otherwise.
Device& current_device();
/// Makes a device the current one while alive.
class OnDevice {
 public:
  explicit OnDevice(Device& device);
  ~OnDevice();
  OnDevice(const OnDevice&) = delete;

 private:
  Device* previous_;
};

namespace detail {
/// Implemented by the CUDA backend, or by a stub that gives the reason why there is none.
Device* make_cuda_device(std::string& why_not);
}  // namespace detail

}  // namespace hedgehog

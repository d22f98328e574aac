#include "core/device.h"

#include <cuda_runtime.h>
#include <fmt/format.h>

#include <cstring>
#include <deque>

#include "core/error.h"
#include "cuda/blas.h"
#include "cuda/feed.h"
#include "cuda/kernels.h"
#include "cuda/refusal.h"
#include "cuda/stream.h"

namespace hedgehog::cuda {
namespace {

cudaStream_t compute_stream = nullptr;
cudaDeviceProp properties;

std::string bytes_text(std::size_t bytes) { return fmt::format("{:.2f} GiB", double(bytes) / double(1 << 30)); }

std::size_t bytes_of(const Tensor& x) { return std::size_t(x.size() * size_of(x.dtype())); }

/// A captured piece of work of the compute stream.
class GraphReplay final : public Replay {
 public:
  explicit GraphReplay(const std::function<void()>& work) {
    note_launch(false);  // the first kernel of a graph follows none
    check(cudaStreamBeginCapture(stream(), cudaStreamCaptureModeThreadLocal), "begin of a graph capture");
    cudaGraph_t graph = nullptr;
    try {
      work();
    } catch (...) {
      cudaStreamEndCapture(stream(), &graph);
      if (graph) cudaGraphDestroy(graph);
      throw;
    }
    check(cudaStreamEndCapture(stream(), &graph), "end of a graph capture");
    const cudaError_t made = cudaGraphInstantiate(&executable_, graph, 0);
    cudaGraphDestroy(graph);
    check(made, "instantiation of a graph");
  }
  ~GraphReplay() override { cudaGraphExecDestroy(executable_); }
  void run() override {
    check(cudaGraphLaunch(executable_, stream()), "launch of a graph");
    note_launch(false);
  }

 private:
  cudaGraphExec_t executable_ = nullptr;
};

class Event {
 public:
  Event() { check(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "creation of an event"); }
  ~Event() { cudaEventDestroy(event_); }
  Event(const Event&) = delete;
  void record(cudaStream_t s) { check(cudaEventRecord(event_, s), "record of an event"); }
  void wait() { check(cudaEventSynchronize(event_), "wait for an event"); }
  /// Later work of `s` waits for it.
  void before(cudaStream_t s) { check(cudaStreamWaitEvent(s, event_, 0), "wait of a stream"); }

 private:
  cudaEvent_t event_ = nullptr;
};

/// Memory that the host and the copy engine both reach.
class Pinned {
 public:
  explicit Pinned(std::size_t bytes) { check(cudaHostAlloc(&data_, bytes, cudaHostAllocDefault), "allocation of pinned memory"); }
  ~Pinned() { cudaFreeHost(data_); }
  Pinned(const Pinned&) = delete;
  std::byte* data() const { return static_cast<std::byte*>(data_); }

 private:
  void* data_ = nullptr;
};

/// Two slots of pinned memory and of device memory. A stream of its own copies one to the other while the step before
/// computes; a kernel of the step moves the slot into the tensors. Which slot is next is counted in device memory, so that
/// the kernel can be part of a graph.
class CudaFeed final : public Feed {
 public:
  explicit CudaFeed(const Tensors& inputs) : host_(kSlots * layout(inputs)), device_(kSlots * slot_bytes_) {
    check(cudaStreamCreateWithFlags(&copies_, cudaStreamNonBlocking), "creation of the copy stream");
    counter_ = std::make_unique<Storage>(sizeof(std::uint32_t));
    counter_->device().fill(counter_->data(), 0, sizeof(std::uint32_t));
    for (std::size_t s = 0; s < kSlots; ++s) used_[s].record(stream()), arrived_[s].record(copies_);
  }
  ~CudaFeed() override {
    cudaStreamSynchronize(copies_);
    cudaStreamDestroy(copies_);
  }
  void* stage(std::size_t i) override {
    arrived_[staged_ % kSlots].wait();
    return host_.data() + (staged_ % kSlots) * slot_bytes_ + pieces_.at(i).offset;
  }
  void commit() override {
    const std::size_t slot = staged_++ % kSlots;
    used_[slot].before(copies_);
    check(cudaMemcpyAsync(device_.data() + slot * slot_bytes_, host_.data() + slot * slot_bytes_, slot_bytes_, cudaMemcpyHostToDevice, copies_),
          "copy of a batch");
    arrived_[slot].record(copies_);
  }
  void take() override {
    for (const Piece& p : pieces_)
      move_slot(device_.data() + p.offset, slot_bytes_, kSlots, reinterpret_cast<std::uint32_t*>(counter_->data()), p.to, p.bytes);
    advance_slot(reinterpret_cast<std::uint32_t*>(counter_->data()));
  }
  void run(const std::function<void()>& step) override {
    const std::size_t slot = taken_++ % kSlots;
    arrived_[slot].before(stream());
    step();
    used_[slot].record(stream());
  }

 private:
  static constexpr std::size_t kSlots = 2;
  struct Piece {
    std::size_t offset, bytes;
    void* to;
  };
  std::size_t layout(const Tensors& inputs) {
    for (const Tensor& x : inputs) {
      pieces_.push_back({slot_bytes_, bytes_of(x), x.data()});
      slot_bytes_ += (bytes_of(x) + 255) / 256 * 256;
    }
    return slot_bytes_;
  }
  std::vector<Piece> pieces_;
  std::size_t slot_bytes_ = 0, staged_ = 0, taken_ = 0;
  Pinned host_;
  Storage device_;
  std::unique_ptr<Storage> counter_;
  Event used_[kSlots], arrived_[kSlots];
  cudaStream_t copies_ = nullptr;
};

class CudaReadback final : public Readback {
 public:
  void take(const Tensors& results) override {
    if (!host_) {
      for (const Tensor& x : results) bytes_ += bytes_of(x), pieces_.push_back({x.size(), x.dtype()});
      host_ = std::make_unique<Pinned>(kDepth * bytes_);
    }
    if (taken_ - fetched_ >= std::size_t(kDepth)) throw Error("[readback] too many results wait; fetch the older ones first");
    const std::size_t slot = taken_++ % kDepth;
    std::byte* to = host_->data() + slot * bytes_;
    for (const Tensor& x : results) {
      constexpr std::size_t kFew = 1024;
      if (bytes_of(x) <= kFew) move_out(x.data(), to, bytes_of(x));
      else check(cudaMemcpyAsync(to, x.data(), bytes_of(x), cudaMemcpyDeviceToHost, stream()), "copy of results");
      to += bytes_of(x);
    }
    done_[slot].record(stream());
  }
  std::vector<double> fetch() override {
    if (fetched_ == taken_) throw Error("[readback] nothing was taken that could be fetched");
    const std::size_t slot = fetched_++ % kDepth;
    done_[slot].wait();
    std::vector<double> all;
    const std::byte* from = host_->data() + slot * bytes_;
    for (const auto& [size, dtype] : pieces_) {
      for (std::int64_t i = 0; i < size; ++i) all.push_back(number(from, i, dtype));
      from += size * size_of(dtype);
    }
    return all;
  }

 private:
  static double number(const std::byte* from, std::int64_t i, Dtype dtype) {
    if (dtype == Dtype::f64) return reinterpret_cast<const double*>(from)[i];
    if (dtype == Dtype::i32) return reinterpret_cast<const std::int32_t*>(from)[i];
    if (dtype == Dtype::bf16) return float(reinterpret_cast<const BFloat16*>(from)[i]);
    return reinterpret_cast<const float*>(from)[i];
  }
  std::vector<std::pair<std::int64_t, Dtype>> pieces_;
  std::unique_ptr<Pinned> host_;
  std::size_t bytes_ = 0, taken_ = 0, fetched_ = 0;
  Event done_[kDepth];
};

class CudaStopwatch final : public Stopwatch {
 public:
  ~CudaStopwatch() override {
    for (cudaEvent_t e : events_) cudaEventDestroy(e);
  }
  void lap() override {
    if (marks_ == events_.size()) {
      cudaEvent_t event = nullptr;
      check(cudaEventCreate(&event), "creation of an event");
      events_.push_back(event);
    }
    check(cudaEventRecord(events_[marks_++], stream()), "record of an event");
  }
  std::vector<double> seconds() override {
    std::vector<double> out;
    if (marks_) check(cudaEventSynchronize(events_[marks_ - 1]), "work on the GPU");
    for (std::size_t i = 1; i < marks_; ++i) {
      float milliseconds = 0;
      check(cudaEventElapsedTime(&milliseconds, events_[i - 1], events_[i]), "time between events");
      out.push_back(1e-3 * double(milliseconds));
    }
    marks_ = 0;
    return out;
  }

 private:
  std::vector<cudaEvent_t> events_;
  std::size_t marks_ = 0;
};

class CudaDevice final : public Device {
 public:
  const char* name() const override { return "cuda"; }
  std::string description() const override {
    return fmt::format("{}, compute capability {}.{}, {} multiprocessors, {}", properties.name, properties.major, properties.minor,
                       properties.multiProcessorCount, bytes_text(properties.totalGlobalMem));
  }
  void* allocate(std::size_t bytes) override {
    void* data = nullptr;
    const cudaError_t status = cudaMallocAsync(&data, std::max<std::size_t>(bytes, 1), stream());
    if (status == cudaErrorMemoryAllocation) {
      cudaGetLastError();  // not to be reported again by the next launch
      throw Error(fmt::format("[memory] {} of GPU memory could not be allocated, {} of {} are free; give a smaller batch, context or model or "
                              "fewer tokens, or stop the other programs on the GPU",
                              bytes_text(bytes), bytes_text(std::size_t(free_memory())), bytes_text(properties.totalGlobalMem)));
    }
    check(status, "allocation");
    return data;
  }
  void free(void* data) noexcept override { cudaFreeAsync(data, stream()); }
  void copy_in(void* to, const void* from, std::size_t bytes) override {
    check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream()), "copy to the GPU");
    check(cudaStreamSynchronize(stream()), "copy to the GPU");  // `from` may change from now on
  }
  void copy_out(void* to, const void* from, std::size_t bytes) override {
    check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, stream()), "copy from the GPU");
    check(cudaStreamSynchronize(stream()), "work on the GPU");
  }
  void copy(void* to, const void* from, std::size_t bytes) override {
    check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream()), "copy on the GPU");
  }
  void fill(void* to, unsigned char byte, std::size_t bytes) override { check(cudaMemsetAsync(to, byte, bytes, stream()), "fill of memory"); }
  void synchronize() override { check(cudaStreamSynchronize(stream()), "work on the GPU"); }
  std::int64_t free_memory() override {
    std::size_t free = 0, all = 0;
    check(cudaMemGetInfo(&free, &all), "query of free memory");
    // what the pool holds but nobody uses can be handed out again
    cudaMemPool_t pool;
    std::uint64_t reserved = 0, used = 0;
    check(cudaDeviceGetDefaultMemPool(&pool, 0), "query of the memory pool");
    check(cudaMemPoolGetAttribute(pool, cudaMemPoolAttrReservedMemCurrent, &reserved), "query of the memory pool");
    check(cudaMemPoolGetAttribute(pool, cudaMemPoolAttrUsedMemCurrent, &used), "query of the memory pool");
    return std::int64_t(free + reserved - used);
  }
  void allow_tf32(bool allowed) override { cuda::allow_tf32(allowed); }
  const Kernel* kernel(const Op& op, bool backward) const override {
    // a custom op brings its own
    if (const Kernel& own = backward ? op.backward.cuda : op.forward.cuda) return &own;
    const auto found = kernels().find(op.name);
    if (found == kernels().end()) return nullptr;
    const Kernel& k = backward ? found->second.backward : found->second.forward;
    return k ? &k : nullptr;
  }
  std::vector<Meta> kept(const Op& op, const Attributes& attributes, std::span<const Meta> inputs) const override {
    const auto found = kernels().find(op.name);
    return found != kernels().end() && found->second.kept ? found->second.kept(attributes, inputs) : std::vector<Meta>{};
  }
  std::int64_t workspace(const Op& op, const Attributes& attributes, std::span<const Meta> inputs, const Layout& layout,
                         bool backward) const override {
    const auto found = kernels().find(op.name);
    if (found == kernels().end()) return backward ? layout.backward_workspace : layout.forward_workspace;
    const WorkspaceBytes& bytes = backward ? found->second.backward_workspace : found->second.forward_workspace;
    return bytes ? bytes(attributes, inputs) : 0;
  }
  std::unique_ptr<Replay> capture(const std::function<void()>& work) override { return std::make_unique<GraphReplay>(work); }
  std::unique_ptr<Feed> feed(const Tensors& inputs) override {
    const OnDevice guard(*this);
    return std::make_unique<CudaFeed>(inputs);
  }
  std::unique_ptr<Readback> readback() override { return std::make_unique<CudaReadback>(); }
  std::unique_ptr<Stopwatch> stopwatch() override { return std::make_unique<CudaStopwatch>(); }
};

/// Looks for a GPU, makes the process known to it, and sets up its stream and memory.
Opening open_device() {
  using Start = Opening::Start;
  Opening o;
  cudaDriverGetVersion(&o.driver);
  cudaRuntimeGetVersion(&o.runtime);
  const cudaError_t counted = cudaGetDeviceCount(&o.gpus);
  o.driver_too_old = counted == cudaErrorInsufficientDriver;
  if (counted != cudaSuccess) o.gpus = 0;
  if (counted != cudaSuccess && counted != cudaErrorNoDevice && !o.driver_too_old) o.driver_error = cudaGetErrorString(counted);
  if (o.gpus == 0 || cudaGetDeviceProperties(&properties, 0) != cudaSuccess) return o;
  o.name = properties.name, o.major = properties.major, o.minor = properties.minor;
  auto started = [&](cudaError_t status) {
    if (status == cudaSuccess) return true;
    cudaGetLastError();
    o.start = status == cudaErrorDevicesUnavailable       ? Start::busy
              : status == cudaErrorMemoryAllocation       ? Start::no_memory
              : status == cudaErrorNoKernelImageForDevice || status == cudaErrorInvalidDeviceFunction ? Start::no_code
                                                                                                      : Start::failed;
    o.start_error = cudaGetErrorString(status);
    return false;
  };
  // freed memory stays with the process: the next allocation is then cheap
  cudaMemPool_t pool;
  std::uint64_t all = UINT64_MAX;
  if (started(cudaFree(nullptr)) && started(find_code()) && started(cudaStreamCreateWithFlags(&compute_stream, cudaStreamNonBlocking)) &&
      started(cudaDeviceGetDefaultMemPool(&pool, 0)))
    started(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &all));
  return o;
}

}  // namespace

cudaStream_t stream() { return compute_stream; }

void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // not to be reported again by the next launch
  throw Error(fmt::format("[cuda] {} failed with {}: {}", what, cudaGetErrorName(status), cudaGetErrorString(status)));
}

void check_launch(const char* op) {
  note_launch(false);
  const cudaError_t status = cudaGetLastError();
  if (status != cudaSuccess)
    throw Error(fmt::format("[{}] the kernel could not be launched on the GPU, {}: {}", op, cudaGetErrorName(status), cudaGetErrorString(status)));
}

void throw_uneven(const char* op, const Ref& x) {
  throw ShapeError(fmt::format("[{}] a window of {} with runs of {} elements has no even distance between tokens; copy it to a tensor of "
                               "its own first",
                               op, x.shape.text(), x.columns));
}

int multiprocessors() { return properties.multiProcessorCount; }
std::size_t largest_shared_memory() { return properties.sharedMemPerBlockOptin; }

void allow_shared_memory(const void* kernel, std::size_t bytes) {
  if (bytes > largest_shared_memory())
    throw Error(fmt::format("[cuda] a kernel needs {} bytes of shared memory a block, this GPU has {}", bytes, largest_shared_memory()));
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes)), "request of shared memory");
}

}  // namespace hedgehog::cuda

namespace hedgehog {

bool built_with_cuda() { return true; }

}  // namespace hedgehog

namespace hedgehog::detail {

Device* make_cuda_device(std::string& why_not) {
  why_not = cuda::refusal(cuda::open_device());
  if (!why_not.empty()) return nullptr;
  static cuda::CudaDevice device;
  return &device;
}

}  // namespace hedgehog::detail

#include "core/device.h"

#include <fmt/format.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <deque>

#include "core/error.h"

namespace hedgehog {
namespace {

struct CallAgain final : Replay {
  std::function<void()> work;
  void run() override { work(); }
};

std::size_t bytes_of(const Tensor& x) { return std::size_t(x.size() * size_of(x.dtype())); }

class HostFeed final : public Feed {
 public:
  explicit HostFeed(Tensors inputs) : inputs_(std::move(inputs)) {
    for (const Tensor& x : inputs_) staged_.emplace_back(bytes_of(x));
  }
  void* stage(std::size_t i) override { return staged_.at(i).data(); }
  void commit() override {}
  void take() override {
    for (std::size_t i = 0; i < inputs_.size(); ++i) std::memcpy(inputs_[i].data(), staged_[i].data(), staged_[i].size());
  }
  void run(const std::function<void()>& step) override { step(); }

 private:
  Tensors inputs_;
  std::vector<std::vector<std::byte>> staged_;
};

class HostReadback final : public Readback {
 public:
  void take(const Tensors& results) override {
    std::vector<double> all;
    for (const Tensor& x : results)
      for (double v : x.to_vector()) all.push_back(v);
    waiting_.push_back(std::move(all));
  }
  std::vector<double> fetch() override {
    std::vector<double> oldest = std::move(waiting_.at(0));
    waiting_.pop_front();
    return oldest;
  }

 private:
  std::deque<std::vector<double>> waiting_;
};

class HostStopwatch final : public Stopwatch {
 public:
  void lap() override { marks_.push_back(std::chrono::steady_clock::now()); }
  std::vector<double> seconds() override {
    std::vector<double> out;
    for (std::size_t i = 1; i < marks_.size(); ++i) out.push_back(std::chrono::duration<double>(marks_[i] - marks_[i - 1]).count());
    marks_.clear();
    return out;
  }

 private:
  std::vector<std::chrono::steady_clock::time_point> marks_;
};

class Cpu final : public Device {
 public:
  const char* name() const override { return "cpu"; }
  std::string description() const override { return "CPU"; }
  bool host() const override { return true; }
  void* allocate(std::size_t bytes) override {
    void* data = std::aligned_alloc(64, (bytes + 63) / 64 * 64 + 64);
    if (!data) throw Error(fmt::format("[memory] {} bytes could not be allocated; ask for fewer tokens, a smaller batch or a smaller context", bytes));
    return data;
  }
  void free(void* data) noexcept override { std::free(data); }
  void copy_in(void* to, const void* from, std::size_t bytes) override { std::memmove(to, from, bytes); }
  void copy_out(void* to, const void* from, std::size_t bytes) override { std::memmove(to, from, bytes); }
  void copy(void* to, const void* from, std::size_t bytes) override { std::memmove(to, from, bytes); }
  void fill(void* to, unsigned char byte, std::size_t bytes) override { std::memset(to, byte, bytes); }
  void synchronize() override {}
  std::int64_t free_memory() override { return 0; }
  const Kernel* kernel(const Op& op, bool backward) const override {
    const Kernel& k = backward ? op.backward.cpu : op.forward.cpu;
    return k ? &k : nullptr;
  }
  std::int64_t workspace(const Op&, const Attributes&, std::span<const Meta>, const Layout& layout, bool backward) const override {
    return backward ? layout.backward_workspace : layout.forward_workspace;
  }
  std::unique_ptr<Replay> capture(const std::function<void()>& work) override {
    auto again = std::make_unique<CallAgain>();
    again->work = work;
    return again;
  }
  std::unique_ptr<Feed> feed(const Tensors& inputs) override { return std::make_unique<HostFeed>(inputs); }
  std::unique_ptr<Readback> readback() override { return std::make_unique<HostReadback>(); }
  std::unique_ptr<Stopwatch> stopwatch() override { return std::make_unique<HostStopwatch>(); }
};

struct Cuda {
  std::string why_not;
  Device* device = detail::make_cuda_device(why_not);
};
Cuda& cuda() {
  static Cuda cuda;  // the driver is asked once
  return cuda;
}

thread_local Device* current = nullptr;

}  // namespace

Device& cpu_device() {
  static Cpu cpu;
  return cpu;
}

Device& cuda_device() {
  if (!cuda().device) throw Error("[cuda] " + cuda().why_not);
  return *cuda().device;
}

std::string cuda_unavailable() { return cuda().device ? "" : cuda().why_not; }

Device& current_device() { return current ? *current : cpu_device(); }
OnDevice::OnDevice(Device& device) : previous_(current) { current = &device; }
OnDevice::~OnDevice() { current = previous_; }

bool poison_enabled() {
  static const bool enabled = [] {
    const char* v = std::getenv("HEDGEHOG_POISON");
    return v && *v && std::string(v) != "0";
  }();
  return enabled;
}

Storage::Storage(std::size_t bytes) : bytes_(bytes), device_(&current_device()) {
  data_ = static_cast<std::byte*>(device_->allocate(bytes));
  if (poison_enabled()) device_->fill(data_, 0xff, bytes);
}

Storage::Storage(void* data, std::size_t bytes, std::shared_ptr<Storage> owner)
    : data_(static_cast<std::byte*>(data)), bytes_(bytes), device_(owner ? &owner->device() : &current_device()), owner_(std::move(owner)) {}

Storage::~Storage() {
  if (!owner_) device_->free(data_);
}

}  // namespace hedgehog

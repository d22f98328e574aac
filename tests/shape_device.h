#pragma once
#include "core/device.h"

namespace hedgehog::test {

/// The CPU's memory as if it were a GPU's: what is asked of shapes and dtypes alone (infer, record, plan) gives a GPU's answers on
/// any machine, but for what kernels there keep and work in. Its kernels are the CPU's, for f32 and f64.
class ShapeDevice : public Device {
 public:
  const char* name() const override { return "shapes"; }
  std::string description() const override { return "shapes"; }
  void* allocate(std::size_t bytes) override { return cpu_device().allocate(bytes); }
  void free(void* data) noexcept override { cpu_device().free(data); }
  void copy_in(void* to, const void* from, std::size_t bytes) override { cpu_device().copy_in(to, from, bytes); }
  void copy_out(void* to, const void* from, std::size_t bytes) override { cpu_device().copy_out(to, from, bytes); }
  void copy(void* to, const void* from, std::size_t bytes) override { cpu_device().copy(to, from, bytes); }
  void fill(void* to, unsigned char byte, std::size_t bytes) override { cpu_device().fill(to, byte, bytes); }
  void synchronize() override {}
  std::int64_t free_memory() override { return 0; }
  const Kernel* kernel(const Op& op, bool backward) const override { return cpu_device().kernel(op, backward); }
  std::int64_t workspace(const Op& op, const Attributes& attributes, std::span<const Meta> inputs, const Layout& layout,
                         bool backward) const override {
    return cpu_device().workspace(op, attributes, inputs, layout, backward);
  }
  std::unique_ptr<Replay> capture(const std::function<void()>& work) override { return cpu_device().capture(work); }
  std::unique_ptr<Feed> feed(const Tensors& inputs) override { return cpu_device().feed(inputs); }
  std::unique_ptr<Readback> readback() override { return cpu_device().readback(); }
  std::unique_ptr<Stopwatch> stopwatch() override { return cpu_device().stopwatch(); }
};

inline Device& shape_device() {
  static ShapeDevice device;
  return device;
}

}  // namespace hedgehog::test

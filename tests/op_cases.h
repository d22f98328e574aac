#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "core/gradcheck.h"
#include "core/tape.h"

namespace hedgehog::test {

/// Every op of ops/list.def, and whatever else was registered.
const std::vector<const Op*>& all_ops();
/// Ops through which a gradient can flow.
bool has_backward(const Op& op);
/// The given attributes with the op's defaults for the others, in the op's order.
Attributes complete(const Op& op, const Attributes& given);
/// The arguments that want a gradient.
Tensors parameters_of(const Tensors& arguments);

/// One call of the op on a sample's arguments, and backward from random cotangents of all its results.
Program program_with_backward(const Op& op, const Sample& sample, const Tensors& arguments, std::uint64_t seed);

/// While alive, kernels run in this many threads. Gradient checks take one: thousands of tiny calls gain nothing from
/// more, and lose much where the cores are busy. suite_memory shows that the bits are the same.
class Threads {
 public:
  explicit Threads(int count);
  ~Threads();
  Threads(const Threads&) = delete;

 private:
  int previous_ = 1;
};

/// All bytes of a tensor, gathered row by row from a view.
std::vector<std::byte> bits_of(const Tensor& tensor);
std::vector<std::vector<std::byte>> bits_of(const Tensors& tensors);

/// Root of the mean square.
double rms(const std::vector<double>& values);
double largest(const std::vector<double>& values);
std::vector<double> difference(const std::vector<double>& a, const std::vector<double>& b);

/// Standard normal numbers, named by seed and id.
std::vector<double> draw(std::int64_t size, std::uint64_t seed, std::uint32_t id);

/// A tensor on the current device, wanting no gradient, whose memory is full of one byte and lies between guard words.
class Guarded {
 public:
  Guarded(const Shape& shape, Dtype dtype, Role role, unsigned char garbage);
  const Tensor& tensor() const { return tensor_; }
  bool intact() const;

 private:
  std::shared_ptr<Storage> around_;
  Tensor tensor_;
};

/// Whether the op takes the sample's arguments in this dtype on a device that computes in it.
bool accepts(const Op& op, const Sample& sample, Dtype dtype);

/// One op on one sample, its kernels called by hand in guarded memory full of garbage, without a tape, on the device that is
/// current all along. Gradients of bf16 arguments are bf16, as an activation's are, or with `wide` f32, as a parameter's.
class KernelRun {
 public:
  KernelRun(const Op& op, const Sample& sample, Dtype dtype, std::uint64_t seed, bool wide = false);

  /// Runs forward on the same arguments in fresh memory. Without `save` nothing is kept for backward.
  const Tensors& forward(unsigned char garbage = 0xff, bool save = true);
  const Tensors& saved() const { return entry_.saved; }
  /// Runs backward after forward; the inputs whose bit is set in `wanted` get a gradient, starting from `before` if that is
  /// given (mode accumulate), else from garbage (mode write). Empty where no gradient is wanted.
  Tensors backward(unsigned char garbage = 0xff, std::uint32_t wanted = ~0u, const Tensors& before = {});

  const Tensors& inputs() const { return entry_.inputs; }
  /// Inputs that get a gradient, as bits.
  std::uint32_t differentiable() const { return differentiable_; }
  bool guards_intact() const;
  /// Inputs that the op must not change still hold what was drawn.
  bool inputs_unchanged() const;

 private:
  Tensor place(const Shape& shape, Dtype dtype, Role role, unsigned char garbage);
  void run(Entry& entry, unsigned char garbage);

  const Op& op_;
  Entry entry_;
  Layout layout_;
  Tensors drawn_;
  std::vector<Guarded> memory_;
  std::uint32_t differentiable_ = 0;
  std::uint64_t seed_;
  bool wide_;
};

/// A parameter that is a window of a wider one: rows of `columns` elements, `before` and `after` unused columns of NaN.
/// The window wants a gradient, which arrives in the same window of the wide parameter's gradient.
struct Window {
  Tensor wide, view;
};
Window window_of(const Tensor& tensor, std::int64_t columns, std::int64_t before, std::int64_t after);

}  // namespace hedgehog::test

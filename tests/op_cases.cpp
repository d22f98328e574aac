#include "tests/op_cases.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "core/device.h"
#include "core/error.h"
#include "core/random.h"
#include "ops/register.h"
#include "tests/shape_device.h"

namespace hedgehog::test {
namespace {
constexpr std::size_t kGuard = 256;  // what lies between keeps the alignment of device memory
constexpr unsigned char kGuardByte = 0xa5;
}  // namespace

const std::vector<const Op*>& all_ops() {
  register_ops();
  return registered_ops();
}

bool has_backward(const Op& op) { return op.views || op.backward.cpu; }

Attributes complete(const Op& op, const Attributes& given) {
  Attributes out;
  for (const auto& a : op.attributes) out.set(a);
  for (const auto& a : given.items()) out.set(a);
  return out;
}

Tensors parameters_of(const Tensors& arguments) {
  Tensors out;
  for (const Tensor& x : arguments)
    if (x && x.wants_gradient()) out.push_back(x);
  return out;
}

Program program_with_backward(const Op& op, const Sample& sample, const Tensors& arguments, std::uint64_t seed) {
  const auto call = [&] {
    Tensors inputs = arguments;
    // a view that is made here, not one of a leaf, so that it is an entry
    if (op.views) inputs[0] = apply(detail::kCopy, {}, {inputs[0]})[0];
    return apply(op, sample.attributes, inputs);
  };
  // cotangents are made before: they are leaves of the program
  Tensors cotangents;
  for (const Tensor& y : record(call).outputs) {
    const std::vector<double> values = draw(y.size(), seed, 60u + std::uint32_t(cotangents.size()));
    cotangents.push_back(constant(y.shape(), values, is_floating(y.dtype()) ? y.dtype() : Dtype::f64, "cotangent"));
  }
  return record([&] {
    const Tensors all = call();
    Tensors results, chosen;
    for (std::size_t j = 0; j < all.size(); ++j)
      if (all[j].wants_gradient()) results.push_back(all[j]), chosen.push_back(cotangents[j]);
    if (!results.empty()) backward(results, chosen);
    return all;
  });
}

#ifdef _OPENMP
Threads::Threads(int count) : previous_(omp_get_max_threads()) { omp_set_num_threads(count); }
Threads::~Threads() { omp_set_num_threads(previous_); }
#else
Threads::Threads(int) {}
Threads::~Threads() = default;
#endif

std::vector<std::byte> bits_of(const Tensor& tensor) {
  if (!tensor) return {};
  const std::int64_t columns = tensor.contiguous() ? tensor.size() : tensor.columns();
  const std::int64_t rows = tensor.size() / std::max<std::int64_t>(columns, 1);
  const std::size_t element = std::size_t(size_of(tensor.dtype())), row = std::size_t(columns) * element;
  const std::size_t step = rows > 1 ? std::size_t(tensor.stride()) * element : row;
  // everything from the first element to the last in one copy, gaps included
  std::vector<std::byte> span(rows > 0 ? std::size_t(rows - 1) * step + row : 0), out(std::size_t(rows) * row);
  if (!span.empty()) tensor.root()->storage->device().copy_out(span.data(), tensor.data(), span.size());
  for (std::size_t r = 0; r < std::size_t(rows); ++r) std::memcpy(out.data() + r * row, span.data() + r * step, row);
  return out;
}

std::vector<std::vector<std::byte>> bits_of(const Tensors& tensors) {
  std::vector<std::vector<std::byte>> out;
  for (const Tensor& t : tensors) out.push_back(bits_of(t));
  return out;
}

double rms(const std::vector<double>& values) {
  double sum = 0;
  for (double v : values) sum += v * v;
  return values.empty() ? 0 : std::sqrt(sum / double(values.size()));
}

double largest(const std::vector<double>& values) {
  double out = 0;
  // a NaN must not slip through max()
  for (double v : values) out = std::isnan(v) ? std::numeric_limits<double>::infinity() : std::max(out, std::abs(v));
  return out;
}

std::vector<double> difference(const std::vector<double>& a, const std::vector<double>& b) {
  std::vector<double> out(a.size());
  for (std::size_t i = 0; i < a.size(); ++i) out[i] = a[i] - b.at(i);
  return out;
}

std::vector<double> draw(std::int64_t size, std::uint64_t seed, std::uint32_t id) {
  const Random random{seed, id, 9};
  std::vector<double> out(std::size_t(size), 0.0);
  for (std::size_t i = 0; i < out.size(); ++i) out[i] = random.normal(i);
  return out;
}

Guarded::Guarded(const Shape& shape, Dtype dtype, Role role, unsigned char garbage) {
  const std::size_t bytes = std::size_t(shape.size() * size_of(dtype));
  around_ = std::make_shared<Storage>(bytes + 2 * kGuard);
  Device& device = around_->device();
  device.fill(around_->data(), kGuardByte, bytes + 2 * kGuard);
  device.fill(around_->data() + kGuard, garbage, bytes);
  tensor_ = declare(shape, dtype, role);
  tensor_->storage = std::make_shared<Storage>(around_->data() + kGuard, bytes, around_);
}

bool Guarded::intact() const {
  std::vector<std::byte> words(2 * kGuard);
  around_->device().copy_out(words.data(), around_->data(), kGuard);
  around_->device().copy_out(words.data() + kGuard, around_->data() + around_->bytes() - kGuard, kGuard);
  return std::all_of(words.begin(), words.end(), [](std::byte b) { return b == std::byte(kGuardByte); });
}

bool accepts(const Op& op, const Sample& sample, Dtype dtype) {
  const OnDevice guard(shape_device());
  Tensors arguments = draw_arguments(op, sample, 1, dtype);
  arguments.resize(op.arguments.size());
  try {
    op.infer(complete(op, sample.attributes), detail::metas_of(arguments));
  } catch (const Error&) {
    return false;
  }
  return true;
}

KernelRun::KernelRun(const Op& op, const Sample& sample, Dtype dtype, std::uint64_t seed, bool wide)
    : op_(op), drawn_(draw_arguments(op, sample, seed, dtype)), seed_(seed), wide_(wide) {
  entry_.op = &op;
  entry_.attributes = complete(op, sample.attributes);
  drawn_.resize(op.arguments.size());
  for (std::size_t i = 0; i < drawn_.size(); ++i)
    if (drawn_[i].wants_gradient()) differentiable_ |= 1u << i;
  layout_ = op.infer(entry_.attributes, detail::metas_of(drawn_));
}

Tensor KernelRun::place(const Shape& shape, Dtype dtype, Role role, unsigned char garbage) {
  memory_.emplace_back(shape, dtype, role, garbage);
  return memory_.back().tensor();
}

void KernelRun::run(Entry& entry, unsigned char garbage) {
  const std::int64_t workspace =
      current_device().workspace(op_, entry.attributes, detail::metas_of(entry.inputs), layout_, entry.backward);
  ResolvedCall call = resolve(entry, [](const Tensor& t) { return t.data(); });
  if (workspace > 0) {
    // in units of f32; the planner rounds workspaces up to 64 bytes in the same way
    const Tensor space = place(Shape{(workspace + 63) / 64 * 16}, Dtype::f32, Role::activation, garbage);
    call.workspace = space.data();
  }
  call.run();
}

const Tensors& KernelRun::forward(unsigned char garbage, bool save) {
  memory_.clear();
  entry_.inputs.clear();
  entry_.outputs.clear();
  entry_.saved.clear();
  for (const Tensor& x : drawn_) {
    Tensor copy;
    if (x) {
      copy = place(x.shape(), x.dtype(), x.role(), garbage);
      current_device().copy(copy.data(), x.data(), std::size_t(x.size() * size_of(x.dtype())));
    }
    entry_.inputs.push_back(copy);
  }
  for (const Meta& m : layout_.outputs) entry_.outputs.push_back(place(m.shape, m.dtype, Role::activation, garbage));
  if (save && differentiable_)
    for (const std::vector<Meta>& kept : {layout_.saved, current_device().kept(op_, entry_.attributes, detail::metas_of(drawn_))})
      for (const Meta& m : kept) entry_.saved.push_back(place(m.shape, m.dtype, Role::activation, garbage));
  run(entry_, garbage);
  return entry_.outputs;
}

Tensors KernelRun::backward(unsigned char garbage, std::uint32_t wanted, const Tensors& before) {
  Entry entry = entry_;
  entry.backward = true;
  for (std::size_t j = 0; j < entry.outputs.size(); ++j) {
    const Tensor& y = entry.outputs[j];
    Tensor dy;
    if (is_floating(y.dtype()) && !(op_.constant_outputs >> j & 1u)) {
      dy = place(y.shape(), y.dtype(), Role::activation, garbage);
      dy.copy_from(draw(y.size(), seed_, 100u + std::uint32_t(j)));
    }
    entry.dy.push_back(dy);
  }
  for (std::size_t i = 0; i < entry.inputs.size(); ++i) {
    Tensor dx;
    if (differentiable_ & wanted & 1u << i) {
      const Dtype dtype = entry.inputs[i].dtype();
      dx = place(entry.inputs[i].shape(), wide_ ? accumulator_of(dtype) : dtype, Role::activation, garbage);
      if (!before.empty()) current_device().copy(dx.data(), before[i].data(), std::size_t(dx.size() * size_of(dx.dtype())));
    }
    entry.dx.push_back(dx);
    entry.modes.push_back(before.empty() ? Mode::write : Mode::accumulate);
  }
  run(entry, garbage);
  return entry.dx;
}

bool KernelRun::guards_intact() const {
  return std::all_of(memory_.begin(), memory_.end(), [](const Guarded& g) { return g.intact(); });
}

bool KernelRun::inputs_unchanged() const {
  for (std::size_t i = 0; i < drawn_.size(); ++i)
    if (drawn_[i] && !(op_.updates >> i & 1u) && bits_of(drawn_[i]) != bits_of(entry_.inputs[i])) return false;
  return true;
}

Window window_of(const Tensor& tensor, std::int64_t columns, std::int64_t before, std::int64_t after) {
  const std::int64_t rows = tensor.size() / columns, width = before + columns + after;
  Window w;
  w.wide = parameter(Shape{rows, width}, "wide", tensor.dtype());
  w.wide.fill(std::numeric_limits<double>::quiet_NaN());
  w.view = declare(tensor.shape(), tensor.dtype());
  w.view->base = w.wide;
  w.view->offset = before;
  w.view->columns = columns;
  w.view->stride = width;
  w.view->wants_gradient = tensor.wants_gradient();
  w.view.copy_from(tensor.to_vector());
  return w;
}

}  // namespace hedgehog::test

#include "nn/parameters.h"

#include <fmt/format.h>

#include <algorithm>

#include "core/error.h"
#include "core/flatten.h"
#include "core/nearest_name.h"
#include "core/random.h"

namespace hedgehog {
namespace {

constexpr std::int64_t kSpanAlignment = 16;  // elements: every parameter starts on a cache line

std::vector<double> draw(const Shape& shape, Init init, Random random) {
  std::vector<double> v(std::size_t(shape.size()), init.kind == Init::Kind::ones ? 1.0 : 0.0);
  if (init.kind == Init::Kind::normal)
    for (std::size_t i = 0; i < v.size(); ++i) v[i] = init.scale * random.normal(i);
  if (init.kind == Init::Kind::uniform)
    for (std::size_t i = 0; i < v.size(); ++i) v[i] = init.scale * random.uniform(i);
  if (init.kind == Init::Kind::identity) {
    const std::int64_t rows = shape[-2], columns = shape[-1];
    for (std::int64_t block = 0; block < shape.size() / (rows * columns); ++block)
      for (std::int64_t i = 0; i < std::min(rows, columns); ++i) v[std::size_t((block * rows + i) * columns + i)] = init.scale;
  }
  return v;
}

}  // namespace

Tensor Parameters::add(const std::string& name, Shape shape, Init init, double decay, bool wide) {
  if (flat_.weights) throw Error(fmt::format("[parameters] '{}' comes too late: the buffers are flat already; add it before flatten()", name));
  for (const Tensor& t : tensors_)
    if (t.name() == name) throw Error(fmt::format("[parameters] the name '{}' is taken; choose another", name));
  const Dtype dtype = wide ? accumulator_of(dtype_) : dtype_;
  Tensor p;
  if (declared()) {
    p = declare(shape, dtype, Role::parameter, name);
    p->wants_gradient = true;
    p->gradient = declare(shape, accumulator_of(dtype_), Role::gradient, name + ".gradient");
  } else {
    p = parameter(shape, name, dtype);
  }
  if (dtype_ == Dtype::bf16)
    masters_.push_back(wide        ? p
                       : declared() ? declare(shape, Dtype::f32, Role::parameter, name)
                                   : allocate(shape, Dtype::f32, Role::parameter, name));
  tensors_.push_back(p);
  if (drawn()) assign(p, draw(shape, init, Random{seed_, std::uint32_t(tensors_.size() - 1), 0x70617261u}));
  decay_.push_back(decay);
  return p;
}

const Tensor& Parameters::master_of(const Tensor& parameter) const {
  return masters()[std::size_t(std::find(tensors_.begin(), tensors_.end(), parameter) - tensors_.begin())];
}

std::vector<double> Parameters::values(const Tensor& parameter) const { return master_of(parameter).to_vector(); }

void Parameters::assign(const Tensor& parameter, const std::vector<double>& values) {
  master_of(parameter).copy_from(values);
  if (parameter.dtype() == Dtype::bf16) parameter.copy_from(values);
}

void Parameters::refresh_copies() {
  for (std::size_t i = 0; i < masters_.size(); ++i)
    if (tensors_[i].dtype() == Dtype::bf16) tensors_[i].copy_from(masters_[i].to_vector());
}

Tensor Parameters::find(const std::string& name) const {
  std::vector<std::string> names;
  for (const Tensor& t : tensors_) {
    if (t.name() == name) return t;
    names.push_back(t.name());
  }
  throw Error(fmt::format("[parameters] no parameter is named '{}'; the nearest is '{}'", name, nearest_name(name, names)));
}

std::int64_t Parameters::count() const {
  std::int64_t n = 0;
  for (const Tensor& t : tensors_) n += t.size();
  return n;
}

std::vector<double> Parameters::span_table() const {
  std::vector<double> spans;
  for (std::size_t i = 0; i < tensors_.size(); ++i)
    spans.insert(spans.end(), {double(flat_.offsets[i]), double(tensors_[i].size()), 1.0, decay_[i],
                               tensors_[i]->wants_gradient ? 0.0 : 1.0});
  return spans;
}

void Parameters::train_only(const std::function<bool(const std::string&)>& trains) {
  if (std::none_of(tensors_.begin(), tensors_.end(), [&](const Tensor& t) { return trains(t.name()); }))
    throw Error(fmt::format("[parameters] none of the {} parameters would be trained; name some", tensors_.size()));
  for (const Tensor& t : tensors_) t->wants_gradient = trains(t.name());
  if (flat_.spans) flat_.spans.copy_from(span_table());
}

const FlatParameters& Parameters::flatten() {
  if (flat_.weights) return flat_;
  Tensors gradients;
  std::int64_t offset = 0;
  for (std::size_t i = 0; i < tensors_.size(); ++i) {
    gradients.push_back(tensors_[i].grad());
    flat_.offsets.push_back(offset);
    offset += (tensors_[i].size() + kSpanAlignment - 1) / kSpanAlignment * kSpanAlignment;
  }
  const bool rounded = dtype_ == Dtype::bf16;
  const Dtype dtype = accumulator_of(dtype_);
  if (declared()) {
    flat_.weights = declare({offset}, dtype, Role::parameter, "weights");
    if (rounded) flat_.copies = declare({offset}, dtype_, Role::parameter, "copies");
    flat_.gradients = declare({offset}, dtype, Role::gradient, "gradients");
    flat_.first_moment = declare({offset}, dtype, Role::state, "first_moment");
    flat_.second_moment = declare({offset}, dtype, Role::state, "second_moment");
  } else {
    flat_.weights = flatten_storage(masters(), Role::parameter, "weights", kSpanAlignment);
    if (rounded) {
      // one offset for master and copy: a wide parameter leaves a place that nobody reads
      Tensors copies = tensors_;
      for (Tensor& t : copies)
        if (t.dtype() != dtype_) t = allocate(t.shape(), dtype_, Role::parameter, t.name());
      flat_.copies = flatten_storage(copies, Role::parameter, "copies", kSpanAlignment);
    }
    flat_.gradients = flatten_storage(gradients, Role::gradient, "gradients", kSpanAlignment);
    flat_.first_moment = state(flat_.weights.shape(), dtype, "first_moment");
    flat_.second_moment = state(flat_.weights.shape(), dtype, "second_moment");
  }
  flat_.spans = constant(Shape{std::int64_t(tensors_.size()), 5}, span_table(), Dtype::f64, "spans");
  return flat_;
}

}  // namespace hedgehog

#include "core/tensor.h"

#include <fmt/format.h>

#include <cstdlib>
#include <cstring>

#include "core/error.h"
#include "core/tape.h"

namespace hedgehog {

const char* name_of(Role role) {
  static const char* const kNames[] = {"parameter", "gradient", "state", "input", "activation"};
  return kNames[int(role)];
}

bool poison_enabled() {
  static const bool enabled = [] {
    const char* v = std::getenv("HEDGEHOG_POISON");
    return v && *v && std::string(v) != "0";
  }();
  return enabled;
}

Storage::Storage(std::size_t bytes) : bytes_(bytes) {
  const std::size_t rounded = (bytes + 63) / 64 * 64 + 64;
  data_ = static_cast<std::byte*>(std::aligned_alloc(64, rounded));
  if (!data_) throw Error(fmt::format("[memory] {} bytes could not be allocated; ask for fewer tokens, a smaller batch or a smaller context", bytes));
  if (poison_enabled()) std::memset(data_, 0xff, rounded);
}

Storage::Storage(void* data, std::size_t bytes, std::shared_ptr<Storage> owner)
    : data_(static_cast<std::byte*>(data)), bytes_(bytes), owner_(std::move(owner)) {}

Storage::~Storage() {
  if (!owner_) std::free(data_);
}

const Value& Tensor::value() const {
  if (!value_) throw Error("[tensor] is empty: nothing was computed, or no gradient was kept (hold a keep_tape guard, or ask a parameter)");
  return *value_;
}

const Shape& Tensor::shape() const { return value().shape; }
Dtype Tensor::dtype() const { return value().dtype; }
Role Tensor::role() const { return root()->role; }
const std::string& Tensor::name() const { return value().name; }
bool Tensor::wants_gradient() const { return value_ && value_->wants_gradient; }
bool Tensor::contiguous() const { return value().columns == value().stride || value().columns == size(); }
std::int64_t Tensor::columns() const { return value().columns; }
std::int64_t Tensor::stride() const { return value().stride; }
std::uint64_t Tensor::version() const {
  const Tensor owner = root();
  return owner->storage ? owner->storage->whole().version : 0;
}
Tensor Tensor::root() const { return value().base ? value().base : *this; }

void* Tensor::data() const {
  const Tensor owner = root();
  if (!owner->storage)
    throw Error(fmt::format(
        "[record] tensor '{}' {} has no elements: it was only recorded; return it from record and read Executor::output after a run",
        name().empty() ? "unnamed" : name(), shape().text()));
  return owner->storage->data() + value().offset * size_of(dtype());
}

namespace {

template <class F>
void for_each_element(const Tensor& t, F&& f) {
  const std::int64_t columns = t.contiguous() ? t.size() : t.columns();
  const std::int64_t rows = columns ? t.size() / columns : 0;
  std::int64_t i = 0;
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t c = 0; c < columns; ++c) f(i++, r * t.stride() + c);
}

double load(const Tensor& t, const void* data, std::int64_t at) {
  switch (t.dtype()) {
    case Dtype::f32: return static_cast<const float*>(data)[at];
    case Dtype::f64: return static_cast<const double*>(data)[at];
    case Dtype::i32: return static_cast<const std::int32_t*>(data)[at];
    case Dtype::bf16: return float(static_cast<const BFloat16*>(data)[at]);
  }
  return 0;
}

void store(const Tensor& t, void* data, std::int64_t at, double x) {
  switch (t.dtype()) {
    case Dtype::f32: static_cast<float*>(data)[at] = float(x); break;
    case Dtype::f64: static_cast<double*>(data)[at] = x; break;
    case Dtype::i32: static_cast<std::int32_t*>(data)[at] = std::int32_t(x); break;
    case Dtype::bf16: static_cast<BFloat16*>(data)[at] = BFloat16(float(x)); break;
  }
}

}  // namespace

double Tensor::item() const {
  if (size() != 1) throw ShapeError(fmt::format("[item] needs a tensor of one element, got {}", shape().text()));
  return load(*this, data(), 0);
}

std::vector<double> Tensor::to_vector() const {
  std::vector<double> out(size());
  const void* from = data();
  for_each_element(*this, [&](std::int64_t i, std::int64_t at) { out[i] = load(*this, from, at); });
  return out;
}

void Tensor::copy_from(const std::vector<double>& values) const {
  if (std::int64_t(values.size()) != size())
    throw ShapeError(fmt::format("[copy] tensor {} takes {} numbers, got {}", shape().text(), size(), values.size()));
  void* to = data();
  for_each_element(*this, [&](std::int64_t i, std::int64_t at) { store(*this, to, at, values[i]); });
  ++root()->storage->whole().version;
}

void Tensor::fill(double value) const { copy_from(std::vector<double>(std::size_t(size()), value)); }

Tensor Tensor::grad() const { return value().gradient; }

Tensor declare(Shape shape, Dtype dtype, Role role, std::string name) {
  auto value = std::make_shared<Value>();
  value->columns = value->stride = shape.size();
  value->shape = std::move(shape);
  value->dtype = dtype;
  value->role = role;
  value->name = std::move(name);
  return Tensor(std::move(value));
}

void materialise(const Tensor& tensor) {
  tensor->storage = std::make_shared<Storage>(std::size_t(tensor.size() * size_of(tensor.dtype())));
}

Tensor allocate(Shape shape, Dtype dtype, Role role, std::string name) {
  Tensor t = declare(std::move(shape), dtype, role, std::move(name));
  materialise(t);
  return t;
}

static Tensor zeroed(Shape shape, Dtype dtype, Role role, std::string name) {
  Tensor t = allocate(std::move(shape), dtype, role, std::move(name));
  std::memset(t.data(), 0, std::size_t(t.size() * size_of(dtype)));
  return t;
}

Tensor parameter(Shape shape, std::string name, Dtype dtype) {
  if (!is_floating(dtype)) throw ShapeError(fmt::format("[parameter] '{}' must be floating, got {}", name, name_of(dtype)));
  Tensor t = zeroed(shape, dtype, Role::parameter, name);
  t->wants_gradient = true;
  t->gradient = zeroed(shape, dtype, Role::gradient, name + ".gradient");
  return t;
}

Tensor input(Shape shape, std::string name, Dtype dtype) { return zeroed(std::move(shape), dtype, Role::input, std::move(name)); }
Tensor state(Shape shape, Dtype dtype, std::string name) { return zeroed(std::move(shape), dtype, Role::state, std::move(name)); }

Tensor constant(Shape shape, const std::vector<double>& values, Dtype dtype, std::string name) {
  Tensor t = input(std::move(shape), std::move(name), dtype);
  t.copy_from(values);
  return t;
}

Tensor detach(const Tensor& tensor) {
  auto value = std::make_shared<Value>(*tensor.get());
  value->base = tensor.root();
  value->storage = nullptr;
  value->wants_gradient = false;
  value->gradient = {};
  return Tensor(std::move(value));
}

Tensor flatten_storage(const Tensors& tensors, Role role, std::string name, std::int64_t alignment) {
  if (tensors.empty()) throw Error(fmt::format("[flatten] '{}' needs at least one tensor", name));
  const Dtype dtype = tensors.front().dtype();
  std::int64_t total = 0;
  for (const Tensor& t : tensors) {
    if (t.dtype() != dtype || t->base)
      throw Error(fmt::format("[flatten] '{}' must own {} storage to join the flat buffer '{}'", t.name(), name_of(dtype), name));
    total += (t.size() + alignment - 1) / alignment * alignment;
  }
  Tensor flat = zeroed(Shape{total}, dtype, role, std::move(name));
  std::int64_t offset = 0;
  for (const Tensor& t : tensors) {
    const std::size_t bytes = std::size_t(t.size() * size_of(dtype));
    std::byte* slice = flat->storage->data() + offset * size_of(dtype);
    std::memcpy(slice, t.data(), bytes);
    t->storage = std::make_shared<Storage>(slice, bytes, flat->storage);
    offset += (t.size() + alignment - 1) / alignment * alignment;
  }
  return flat;
}

std::string text(const Tensor& tensor, int digits) {
  const auto values = tensor.to_vector();
  const Shape& s = tensor.shape();
  std::string out = fmt::format("{} {} {}", tensor.name().empty() ? "tensor" : tensor.name(), s.text(), name_of(tensor.dtype()));
  const std::int64_t columns = std::max<std::int64_t>(s.last(), 1);
  for (std::size_t i = 0; i < values.size(); ++i) {
    out += i % columns == 0 ? "\n  " : " ";
    out += fmt::format("{:>{}.{}g}", values[i], digits + 6, digits);
  }
  return out + "\n";
}

void print(const Tensor& tensor) { fmt::print("{}", text(tensor)); }

}  // namespace hedgehog

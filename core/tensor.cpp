#include "core/tensor.h"

#include <fmt/format.h>
#ifdef __linux__
#include <sys/mman.h>
#include <unistd.h>
#endif

#include <cstdint>
#include <cstring>

#include "core/device.h"
#include "core/error.h"
#include "core/tape.h"

namespace hedgehog {

const char* name_of(Role role) {
  static const char* const kNames[] = {"parameter", "gradient", "state", "input", "activation"};
  return kNames[int(role)];
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

void* Tensor::host_data() const {
  void* const first = data();
  if (const Device& device = root()->storage->device(); !device.host())
    throw Error(fmt::format("[tensor] '{}' {} lives on {}; read it with to_vector(), write it with copy_from()",
                            name().empty() ? "unnamed" : name(), shape().text(), device.name()));
  return first;
}

void Tensor::read(void* to, std::int64_t first, std::int64_t count) const {
  const std::int64_t element = size_of(dtype());
  root()->storage->device().copy_out(to, static_cast<std::byte*>(data()) + first * element, std::size_t(count * element));
}

void Tensor::write(const void* from, std::int64_t first, std::int64_t count) const {
  const std::int64_t element = size_of(dtype());
  root()->storage->device().copy_in(static_cast<std::byte*>(data()) + first * element, from, std::size_t(count * element));
  ++root()->storage->whole().version;
}

namespace {

/// All bytes from the first element to the last, gaps of a view included.
std::vector<std::byte> bytes_of(const Tensor& t) {
  const std::int64_t rows = t.size() / std::max<std::int64_t>(t.columns(), 1);
  const std::int64_t span = t.contiguous() ? t.size() : (rows - 1) * t.stride() + t.columns();
  std::vector<std::byte> bytes(std::size_t(span * size_of(t.dtype())));
  if (!bytes.empty()) t.root()->storage->device().copy_out(bytes.data(), t.data(), bytes.size());
  return bytes;
}

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
  return to_vector()[0];
}

std::vector<double> Tensor::to_vector() const {
  std::vector<double> out(size());
  const bool here = data() && root()->storage->device().host();
  const std::vector<std::byte> bytes = here ? std::vector<std::byte>{} : bytes_of(*this);
  const void* from = here ? data() : bytes.data();
  for_each_element(*this, [&](std::int64_t i, std::int64_t at) { out[i] = load(*this, from, at); });
  return out;
}

void Tensor::copy_from(const std::vector<double>& values) const {
  if (std::int64_t(values.size()) != size())
    throw ShapeError(fmt::format("[copy] tensor {} takes {} numbers, got {}", shape().text(), size(), values.size()));
  void* const first = data();
  Device& device = root()->storage->device();
  std::vector<std::byte> bytes;
  if (!device.host()) bytes = contiguous() ? std::vector<std::byte>(std::size_t(size() * size_of(dtype()))) : bytes_of(*this);
  void* to = device.host() ? first : bytes.data();
  for_each_element(*this, [&](std::int64_t i, std::int64_t at) { store(*this, to, at, values[i]); });
  if (!bytes.empty()) device.copy_in(first, bytes.data(), bytes.size());
  ++root()->storage->whole().version;
}

void Tensor::fill(double value) const {
  if (value != 0 || !contiguous()) return copy_from(std::vector<double>(std::size_t(size()), value));
  root()->storage->device().fill(data(), 0, std::size_t(size() * size_of(dtype())));
  ++root()->storage->whole().version;
}

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

/// Fresh memory of the host as zeros. Whole pages are given back to the system, which has zeros there when they are first touched: gradients
/// that nobody computes then take no memory.
static void zero_fresh(void* data, std::size_t bytes) {
#ifdef __linux__
  const std::uintptr_t page = std::uintptr_t(::sysconf(_SC_PAGESIZE)), begin = std::uintptr_t(data), end = begin + bytes;
  const std::uintptr_t first = (begin + page - 1) / page * page, last = end / page * page;
  constexpr std::size_t kWorthIt = std::size_t(1) << 20;
  if (bytes >= kWorthIt && ::madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED) == 0) {
    std::memset(data, 0, first - begin);
    std::memset(reinterpret_cast<void*>(last), 0, end - last);
    return;
  }
#endif
  std::memset(data, 0, bytes);
}

static Tensor zeroed(Shape shape, Dtype dtype, Role role, std::string name) {
  Tensor t = allocate(std::move(shape), dtype, role, std::move(name));
  Device& device = t->storage->device();
  const std::size_t bytes = std::size_t(t.size() * size_of(dtype));
  device.host() ? zero_fresh(t.data(), bytes) : device.fill(t.data(), 0, bytes);
  return t;
}

Tensor parameter(Shape shape, std::string name, Dtype dtype) {
  if (!is_floating(dtype)) throw ShapeError(fmt::format("[parameter] '{}' must be floating, got {}", name, name_of(dtype)));
  Tensor t = zeroed(shape, dtype, Role::parameter, name);
  t->wants_gradient = true;
  t->gradient = zeroed(shape, accumulator_of(dtype), Role::gradient, name + ".gradient");
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

}  // namespace hedgehog

#pragma once
#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/dtype.h"
#include "core/shape.h"
#include "core/storage.h"

namespace hedgehog {

/// What a tensor is for. Only activations are placed by the planner; the others keep storage of their own.
enum class Role : std::uint8_t { parameter, gradient, state, input, activation };
const char* name_of(Role role);

class Tensor;
struct Value;
using Tensors = std::vector<Tensor>;

/// A cheap handle on a value: shape, dtype, role and (unless it was only recorded) elements.
///
/// A view (`reshape`, `split`) shares the storage of its base. It is contiguous, or rows of `columns()` contiguous
/// elements that lie `stride()` elements apart.
class Tensor {
 public:
  Tensor() = default;
  explicit Tensor(std::shared_ptr<Value> value) : value_(std::move(value)) {}

  explicit operator bool() const { return value_ != nullptr; }
  bool operator==(const Tensor& other) const { return value_ == other.value_; }
  Value* get() const { return value_.get(); }
  Value* operator->() const { return value_.get(); }
  const std::shared_ptr<Value>& pointer() const { return value_; }

  const Shape& shape() const;
  Dtype dtype() const;
  Role role() const;
  std::int64_t size() const { return shape().size(); }
  const std::string& name() const;
  bool wants_gradient() const;
  bool contiguous() const;
  std::int64_t columns() const;
  std::int64_t stride() const;
  /// The tensor that owns the memory: itself, or the base of a view.
  Tensor root() const;
  /// How often the memory was updated in place; 0 for recorded activations, which never are.
  std::uint64_t version() const;

  /// First element, in the memory of the tensor's device. Throws Error while recording, naming the tensor: recorded tensors
  /// have no elements yet.
  void* data() const;
  /// The same for the host to read and write. Throws Error if the tensor lives elsewhere.
  template <class T>
  T* as() const {
    return static_cast<T*>(host_data());
  }
  /// Copies `count` elements of a contiguous tensor from element `first` on to or from host memory, in the tensor's dtype.
  void read(void* to, std::int64_t first, std::int64_t count) const;
  void write(const void* from, std::int64_t first, std::int64_t count) const;
  /// The only element of a one-element tensor, as double.
  double item() const;
  /// All elements in order, converted to double (views are gathered).
  std::vector<double> to_vector() const;
  /// Overwrites all elements from doubles, converted to the dtype; sizes must agree.
  void copy_from(const std::vector<double>& values) const;
  void fill(double value) const;
  /// The gradient that backward left here: parameters always have one; others only after keep_tape.
  Tensor grad() const;

 private:
  const Value& value() const;  // throws Error if there is none
  void* host_data() const;
  std::shared_ptr<Value> value_;
};

struct Value {
  Shape shape;
  Dtype dtype = Dtype::f32;
  Role role = Role::activation;
  std::string name;
  std::shared_ptr<Storage> storage;  // null while recorded only
  std::int64_t offset = 0;           // elements from the start of the root's storage
  std::int64_t columns = 0;          // contiguous elements a row; the whole size when contiguous
  std::int64_t stride = 0;           // elements between rows
  Tensor base;                       // root of a view; empty otherwise
  bool wants_gradient = false;
  bool consumed = false;             // backward already went through the entry that made it
  Tensor gradient;
};

/// Allocates an activation-like tensor without recording anything. Elements are uninitialised
/// (NaN when HEDGEHOG_POISON is set).
Tensor allocate(Shape shape, Dtype dtype, Role role = Role::activation, std::string name = "");
/// A value without storage, as the recorder makes them.
Tensor declare(Shape shape, Dtype dtype, Role role = Role::activation, std::string name = "");
/// Gives a declared tensor its memory.
void materialise(const Tensor& tensor);

/// Leaf that wants a gradient; zero filled, with a zero gradient. dtype f32 unless said; the gradient of bf16 is f32.
Tensor parameter(Shape shape, std::string name, Dtype dtype = Dtype::f32);
/// Leaf fed from outside: data, targets, masks. Zero filled.
Tensor input(Shape shape, std::string name, Dtype dtype = Dtype::f32);
/// Persistent tensor changed in place by an op that says so: moments, decoding state, step counters. Zero filled.
Tensor state(Shape shape, Dtype dtype, std::string name);
/// An input holding these numbers.
Tensor constant(Shape shape, const std::vector<double>& values, Dtype dtype = Dtype::f32, std::string name = "");
/// The same elements without a path for gradients.
Tensor detach(const Tensor& tensor);

}  // namespace hedgehog

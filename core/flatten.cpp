#include "core/flatten.h"

#include <fmt/format.h>

#include "core/device.h"
#include "core/error.h"

namespace hedgehog {

Tensor flatten_storage(const Tensors& tensors, Role role, std::string name, std::int64_t alignment) {
  if (tensors.empty()) throw Error(fmt::format("[flatten] '{}' needs at least one tensor", name));
  const Dtype dtype = tensors.front().dtype();
  std::int64_t total = 0;
  for (const Tensor& t : tensors) {
    if (t.dtype() != dtype || t->base)
      throw Error(fmt::format("[flatten] '{}' must own {} storage to join the flat buffer '{}'", t.name(), name_of(dtype), name));
    total += (t.size() + alignment - 1) / alignment * alignment;
  }
  Tensor flat = allocate(Shape{total}, dtype, role, std::move(name));
  flat->storage->device().fill(flat.data(), 0, flat->storage->bytes());
  std::int64_t offset = 0;
  for (const Tensor& t : tensors) {
    const std::size_t bytes = std::size_t(t.size() * size_of(dtype));
    std::byte* slice = flat->storage->data() + offset * size_of(dtype);
    flat->storage->device().copy(slice, t.data(), bytes);
    t->storage = std::make_shared<Storage>(slice, bytes, flat->storage);
    offset += (t.size() + alignment - 1) / alignment * alignment;
  }
  return flat;
}

}  // namespace hedgehog

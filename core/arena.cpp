#include "core/arena.h"

#include <algorithm>

namespace hedgehog {

void Arena::reserve(std::int64_t bytes) {
  if (storage_ && std::int64_t(storage_->bytes()) >= bytes) return;
  ++generation_;
  storage_ = nullptr;
  storage_ = std::make_shared<Storage>(std::size_t(std::max<std::int64_t>(bytes, 64)));
}

}  // namespace hedgehog

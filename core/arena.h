#pragma once
#include "core/storage.h"

namespace hedgehog {

/// Memory for the activations of programs that never run at the same time.
class Arena {
 public:
  /// At least `bytes`; growing moves it, which raises generation().
  void reserve(std::int64_t bytes);
  std::byte* data() const { return storage_ ? storage_->data() : nullptr; }
  std::shared_ptr<Storage> storage() const { return storage_; }
  std::uint64_t generation() const { return generation_; }

 private:
  std::shared_ptr<Storage> storage_;
  std::uint64_t generation_ = 0;
};

}  // namespace hedgehog

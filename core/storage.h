#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>

namespace hedgehog {

class Device;

/// A block of bytes of one device, owned or borrowed from an owner that it keeps alive. Aligned to 64 bytes on the CPU, to
/// 256 elsewhere. Filled with NaN when HEDGEHOG_POISON is set.
class Storage {
 public:
  /// On the current device.
  explicit Storage(std::size_t bytes);
  Storage(void* data, std::size_t bytes, std::shared_ptr<Storage> owner);
  ~Storage();
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;
  std::byte* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }
  Device& device() const { return *device_; }
  /// The block that the bytes belong to: this one, or the owner it borrows from.
  Storage& whole() { return owner_ ? owner_->whole() : *this; }
  /// Raised by every update in place of any part of the block.
  std::uint64_t version = 0;

 private:
  std::byte* data_ = nullptr;
  std::size_t bytes_ = 0;
  Device* device_ = nullptr;
  std::shared_ptr<Storage> owner_;
};

bool poison_enabled();  // environment variable HEDGEHOG_POISON is set and not 0

}  // namespace hedgehog

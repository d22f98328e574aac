#pragma once
#include <cstddef>
#include <filesystem>
#include <span>

namespace hedgehog {

/// The bytes of a regular file, mapped for reading, not copied; valid while this object lives.
///
/// Throws (constructor): FileError naming the file and the reason.
class MappedFile {
 public:
  explicit MappedFile(const std::filesystem::path& path);
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile();

  std::span<const std::byte> bytes() const { return {bytes_, size_}; }
  const std::filesystem::path& path() const { return path_; }
  /// Gives back the memory of what was read so far; it is read from the file again when it is asked for.
  void forget() const;

 private:
  std::filesystem::path path_;
  const std::byte* bytes_ = nullptr;
  size_t size_ = 0;
};

}  // namespace hedgehog

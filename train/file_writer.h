#pragma once
#include <cstddef>
#include <filesystem>
#include <memory>
#include <span>
#include <string_view>

namespace hedgehog {

/// Writes one new file, checked at every step, so that a full disk is noticed while the old data is still there.
///
/// Buffered (1 MiB). `finish` flushes, calls fsync and closes; only after it returned is the file complete. Destroying
/// the writer without `finish` closes the file and leaves what was written: the caller removes it.
///
/// Throws: WriteError naming the path and the system's reason (for example "No space left on device").
class FileWriter {
 public:
  explicit FileWriter(const std::filesystem::path& path);
  FileWriter(const FileWriter&) = delete;
  FileWriter& operator=(const FileWriter&) = delete;
  ~FileWriter();

  /// Appends the bytes. Throws WriteError.
  void write(std::span<const std::byte> bytes);
  /// Appends the text. Throws WriteError.
  void write(std::string_view text);
  /// Flushes, syncs and closes. Throws WriteError. A second call does nothing.
  void finish();

 private:
  void flush();
  [[noreturn]] void fail(std::string_view action) const;

  std::filesystem::path path_;
  int descriptor_ = -1;
  std::unique_ptr<std::byte[]> buffer_;
  size_t used_ = 0;
};

}  // namespace hedgehog

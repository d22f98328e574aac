#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "train/mapped_file.h"

namespace hedgehog {

/// One tensor of a safetensors file: what it is called, what it holds, and where its bytes are.
///
/// dtype   "F32", "F64", "BF16", "I32" (ours); a file may also hold "F16", "I64", "U8" and others of the format
/// shape   axes, row-major; empty for a scalar
/// data    little-endian elements in `bytes` bytes; not owned; maybe unaligned in a foreign file, so copy with memcpy
/// offset  of a record that was read, bytes from the beginning of its file, for messages
struct TensorRecord {
  std::string name;
  std::string dtype;
  std::vector<int64_t> shape;
  const void* data = nullptr;
  size_t bytes = 0;
  size_t offset = 0;
};

/// Bytes of one element of a safetensors dtype, or 0 where the name is unknown.
size_t safetensors_element_bytes(std::string_view dtype);

/// Writes a safetensors file: 8 bytes header length, JSON header padded with spaces to 8 bytes, then the tensors.
///
/// Tensors are laid out by falling element size, then in the order given, so that every one is aligned.
/// The file is synced before the function returns; nothing is renamed (see train/atomic_directory.h).
///
/// path      the file to make or overwrite
/// tensors   names unique, not "__metadata__"; bytes = product(shape) * element size
/// metadata  free text pairs, stored under "__metadata__"
///
/// Throws: WriteError naming the path and the system's reason; Error if a record contradicts itself.
/// Source: huggingface/safetensors, README "Format".
void write_safetensors(const std::filesystem::path& path, std::span<const TensorRecord> tensors,
                       const std::map<std::string, std::string>& metadata = {});

/// A safetensors file opened for reading. The bytes are mapped, not copied; records point into the mapping and are
/// valid while this object lives. Nothing in the file is trusted: header length, nesting, names, dtypes, shapes,
/// offsets, overlaps, gaps and integer overflow are checked here, so that a record handed out is always in bounds.
///
/// Throws (constructor): FileError naming the file, the tensor or field, and the byte offset.
class SafetensorsFile {
 public:
  explicit SafetensorsFile(const std::filesystem::path& path);

  /// Names of all tensors, in the order of their bytes in the file.
  std::vector<std::string> names() const;
  bool contains(std::string_view name) const;
  /// The record of one tensor. Throws FileError naming the file and the tensor if there is none.
  const TensorRecord& get(std::string_view name) const;
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  const std::filesystem::path& path() const { return file_.path(); }
  /// As MappedFile::forget.
  void forget() const { file_.forget(); }

 private:
  MappedFile file_;
  std::vector<TensorRecord> tensors_;
  std::map<std::string, size_t, std::less<>> index_;
  std::map<std::string, std::string> metadata_;
};

}  // namespace hedgehog

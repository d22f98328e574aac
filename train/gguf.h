#pragma once
#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "train/foreign_weights.h"
#include "train/mapped_file.h"

namespace hedgehog {

/// Types of GGUF's metadata, with its numbers.
enum class GgufType : std::uint32_t { u8, i8, u16, i16, u32, i32, f32, boolean, text, list, u64, i64, f64 };

/// Whether a file begins as GGUF does.
bool is_gguf(const std::filesystem::path& file);

/// A GGUF file, version 2 or 3, little-endian: metadata by key, then tensors. It is mapped; all of it but the tensors' numbers is checked when
/// it is opened: counts, lengths, types, offsets, alignment, overlaps.
///
///   "GGUF" u32 version u64 tensors u64 keys
///   a key:    text, u32 type, value; text: u64 bytes, then these; list: u32 type, u64 elements, then these
///   a tensor: text name, u32 axes, u64 sizes (the last axis first), u32 format, u64 offset from the first tensor's byte
///   tensors' bytes, each at a multiple of general.alignment (32 where there is none)
///
/// Throws (all): FileError naming the file and the key, tensor or byte.
/// Source: `ggml-org/ggml:docs/gguf.md`.
class GgufFile {
 public:
  explicit GgufFile(const std::filesystem::path& file);

  bool has(const std::string& key) const { return values_.contains(key); }
  std::string text(const std::string& key) const;
  /// A whole number of any type.
  std::int64_t integer(const std::string& key, std::int64_t least, std::int64_t most) const;
  /// A finite number.
  double real(const std::string& key) const;
  bool flag(const std::string& key) const;
  /// A list of texts; not owned.
  std::vector<std::string_view> texts(const std::string& key) const;
  /// Lists of `count` numbers.
  std::vector<std::int64_t> integers(const std::string& key, std::size_t count) const;
  std::vector<float> reals(const std::string& key, std::size_t count) const;

  /// Tensors by name; their shapes are row-major.
  const std::map<std::string, ForeignTensor>& tensors() const { return tensors_; }
  const std::filesystem::path& path() const { return file_.path(); }
  void forget() const { file_.forget(); }
  /// Throws: the file is damaged or not supported, and why.
  [[noreturn]] void fail(const std::string& why) const;

 private:
  struct Value {
    GgufType type = GgufType::u8;  // of a list: that of its elements
    bool list = false;
    std::uint64_t count = 1;
    std::size_t begin = 0;  // of its first element in the file
  };
  class Cursor;

  void read_value(Cursor& cursor, const std::string& key);
  void read_tensor(Cursor& cursor, std::map<std::string, std::uint64_t>& offsets);
  void place_tensors(std::size_t header, const std::map<std::string, std::uint64_t>& offsets);
  const Value& value(const std::string& key, const char* expected, bool list) const;
  [[noreturn]] void fail_key(const std::string& key, const std::string& expected) const;
  /// Element i of a value as T; nothing where it is of a type that T cannot hold.
  template <class T>
  bool number(const Value& value, std::uint64_t i, T& to) const;
  template <class T>
  std::vector<T> numbers(const std::string& key, std::size_t count, const char* what) const;

  MappedFile file_;
  std::map<std::string, Value> values_;
  std::map<std::string, ForeignTensor> tensors_;
};

}  // namespace hedgehog

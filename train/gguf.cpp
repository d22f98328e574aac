#include "train/gguf.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>

#include "core/error.h"
#include "train/utf8.h"

namespace hedgehog {
namespace {

constexpr std::string_view kMagic = "GGUF";
constexpr std::size_t kLongestName = 65535;  // the format's own limit for keys
constexpr std::uint32_t kMostAxes = 4;

/// Bytes of a type; 0 for texts and lists, whose lengths are in the file.
std::size_t bytes_of(GgufType type) {
  constexpr std::array<std::size_t, 13> sizes{1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
  return sizes[std::size_t(type)];
}

/// GGUF's numbers of the formats that are read.
const std::map<std::uint32_t, ElementFormat>& formats() {
  using enum ElementFormat;
  static const std::map<std::uint32_t, ElementFormat> all{{0, f32},  {1, f16},  {2, q4_0},  {3, q4_1},  {6, q5_0}, {7, q5_1},
                                                          {8, q8_0}, {12, q4_k}, {13, q5_k}, {14, q6_k}, {30, bf16}};
  return all;
}

std::string format_names() {
  std::string names;
  for (const auto& [number, format] : formats()) names += fmt::format("{}{}", names.empty() ? "" : ", ", block_format(format).name);
  return names;
}

}  // namespace

/// A place in the file; every step is checked against what is left of it.
class GgufFile::Cursor {
 public:
  explicit Cursor(const GgufFile& file) : file_(file), bytes_(file.file_.bytes()) {}

  std::size_t at() const { return at_; }
  std::size_t left() const { return bytes_.size() - at_; }

  void skip(std::uint64_t bytes, const char* what) {
    if (bytes > left())
      file_.fail(fmt::format("it ends in {}: that needs {} bytes at byte {}, and {} are left; the file is cut off or damaged", what, bytes,
                             at_, left()));
    at_ += std::size_t(bytes);
  }
  template <class T>
  T take(const char* what) {
    T value;
    skip(sizeof value, what);
    std::memcpy(&value, bytes_.data() + at_ - sizeof value, sizeof value);
    return value;
  }
  std::string_view text(const char* what) {
    const auto length = take<std::uint64_t>(what);
    skip(length, what);
    return {reinterpret_cast<const char*>(bytes_.data()) + at_ - length, std::size_t(length)};
  }
  std::string name(const char* what) {
    const std::size_t begin = at_;
    const std::string_view found = text(what);
    if (found.empty() || found.size() > kLongestName || valid_utf8(found) != found)
      file_.fail(fmt::format("{} at byte {} must be 1 to {} bytes of UTF-8, but is {} bytes, '{}'", what, begin, kLongestName, found.size(),
                             valid_utf8(found.substr(0, 40))));
    return std::string(found);
  }
  GgufType type(const std::string& key) {
    const auto type = take<std::uint32_t>("the type of a value");
    if (type > std::uint32_t(GgufType::f64)) file_.fail(fmt::format("key '{}' has the type {}, but there are 0 to 12", key, type));
    return GgufType(type);
  }

 private:
  const GgufFile& file_;
  std::span<const std::byte> bytes_;
  std::size_t at_ = 0;
};

bool is_gguf(const std::filesystem::path& file) {
  std::ifstream stream(file, std::ios::binary);
  std::array<char, 4> begin{};
  return stream.read(begin.data(), 4) && std::string_view(begin.data(), 4) == kMagic;
}

GgufFile::GgufFile(const std::filesystem::path& file) : file_(file) {
  Cursor cursor(*this);
  if (file_.bytes().size() < 4 || std::memcmp(file_.bytes().data(), kMagic.data(), 4) != 0) fail("it does not begin with 'GGUF'");
  cursor.skip(4, "the magic");
  const auto version = cursor.take<std::uint32_t>("the version");
  if (version != 2 && version != 3)
    fail(fmt::format("it is of version {}, but 2 and 3 are read{}", version,
                     version == 0x02000000 || version == 0x03000000 ? "; this one is big-endian" : ""));
  const auto tensors = cursor.take<std::uint64_t>("the number of tensors"), keys = cursor.take<std::uint64_t>("the number of keys");
  for (std::uint64_t i = 0; i < keys; ++i) {
    const std::string key = cursor.name("a key");
    if (has(key)) fail(fmt::format("key '{}' is there twice", key));
    read_value(cursor, key);
  }
  std::map<std::string, std::uint64_t> offsets;
  for (std::uint64_t i = 0; i < tensors; ++i) read_tensor(cursor, offsets);
  place_tensors(cursor.at(), offsets);
}

void GgufFile::read_value(Cursor& cursor, const std::string& key) {
  Value v;
  v.type = cursor.type(key);
  if (v.type == GgufType::list) {
    v.list = true, v.type = cursor.type(key), v.count = cursor.take<std::uint64_t>("the length of a list");
    if (v.type == GgufType::list) fail(fmt::format("key '{}' is a list of lists, which are not read", key));
  }
  v.begin = cursor.at();
  const std::size_t each = bytes_of(v.type);
  if (each > 0) {
    cursor.skip(v.count > cursor.left() / each ? std::numeric_limits<std::uint64_t>::max() : v.count * each, "a list of numbers");
  } else {
    for (std::uint64_t i = 0; i < v.count; ++i) cursor.text("a text");
  }
  values_[key] = v;
}

void GgufFile::read_tensor(Cursor& cursor, std::map<std::string, std::uint64_t>& offsets) {
  ForeignTensor t;
  const std::string name = cursor.name("a tensor's name");
  t.place = fmt::format("{}: tensor '{}'", path().string(), name);
  const auto axes = cursor.take<std::uint32_t>("a tensor's axes");
  if (axes < 1 || axes > kMostAxes) fail(fmt::format("tensor '{}' has {} axes, but there are 1 to {}", name, axes, kMostAxes));
  double size = 1;  // may go beyond 64 bits
  for (std::uint32_t a = 0; a < axes; ++a) {
    const auto axis = cursor.take<std::uint64_t>("a tensor's sizes");
    size *= double(axis);
    if (axis < 1 || size > 0x1p50) fail(fmt::format("tensor '{}': axis {} has {} elements, which cannot be", name, a, axis));
    t.shape.insert(t.shape.begin(), std::int64_t(axis));
  }
  const auto number = cursor.take<std::uint32_t>("a tensor's format");
  const auto format = formats().find(number);
  if (format == formats().end())
    fail(fmt::format("tensor '{}' has the format {}, which is not read; {} are", name, number, format_names()));
  t.format = format->second;
  if (const BlockFormat& block = block_format(t.format); t.shape.back() % block.elements)
    fail(fmt::format("tensor '{}' has rows of {} elements, which are not whole blocks of {}: {} each", name, t.shape.back(), block.name,
                     block.elements));
  const auto offset = cursor.take<std::uint64_t>("a tensor's offset");
  if (!tensors_.emplace(name, t).second) fail(fmt::format("tensor '{}' is there twice", name));
  offsets[name] = offset;
}

void GgufFile::place_tensors(std::size_t header, const std::map<std::string, std::uint64_t>& offsets) {
  const std::string key = "general.alignment";
  const std::size_t alignment = has(key) ? std::size_t(integer(key, 1, 1 << 20)) : 32;
  const std::size_t first = (header + alignment - 1) / alignment * alignment, all = file_.bytes().size();
  std::vector<std::array<std::uint64_t, 2>> ranges;
  for (auto& [name, t] : tensors_) {
    const BlockFormat& block = block_format(t.format);
    const std::uint64_t offset = offsets.at(name), bytes = std::uint64_t(t.size() / block.elements * block.bytes);
    if (offset % alignment) fail(fmt::format("tensor '{}' begins at offset {}, which is no multiple of {}", name, offset, alignment));
    if (first > all || offset > all - first || bytes > all - first - offset)
      fail(fmt::format("tensor '{}' should be {} bytes at byte {}, but the file has {}; it is cut off or damaged", name, bytes,
                       double(first) + double(offset), all));
    t.data = file_.bytes().data() + first + offset;
    ranges.push_back({offset, offset + bytes});
  }
  std::sort(ranges.begin(), ranges.end());
  for (std::size_t i = 1; i < ranges.size(); ++i)
    if (ranges[i][0] < ranges[i - 1][1]) fail(fmt::format("two tensors overlap at offset {}", ranges[i][0]));
}

void GgufFile::fail(const std::string& why) const { throw FileError(fmt::format("[import] {}: {}", path().string(), why)); }

void GgufFile::fail_key(const std::string& key, const std::string& expected) const {
  fail(fmt::format("key '{}' must be {}", key, expected));
}

const GgufFile::Value& GgufFile::value(const std::string& key, const char* expected, bool list) const {
  const auto found = values_.find(key);
  if (found == values_.end()) fail(fmt::format("there is no key '{}'; it should be {}", key, expected));
  if (found->second.list != list) fail_key(key, expected);
  return found->second;
}

template <class T>
bool GgufFile::number(const Value& v, std::uint64_t i, T& to) const {
  const std::byte* const from = file_.bytes().data() + v.begin + i * bytes_of(v.type);
  const auto take = [&]<class Stored>(Stored stored) {
    std::memcpy(&stored, from, sizeof stored);
    if constexpr (std::is_same_v<Stored, std::uint64_t> && std::is_same_v<T, std::int64_t>)
      if (stored > std::uint64_t(std::numeric_limits<std::int64_t>::max())) return false;
    to = T(stored);
    return true;
  };
  constexpr bool whole = std::is_integral_v<T>;
  switch (v.type) {
    case GgufType::u8: return take(std::uint8_t{});
    case GgufType::i8: return take(std::int8_t{});
    case GgufType::u16: return take(std::uint16_t{});
    case GgufType::i16: return take(std::int16_t{});
    case GgufType::u32: return take(std::uint32_t{});
    case GgufType::i32: return take(std::int32_t{});
    case GgufType::u64: return take(std::uint64_t{});
    case GgufType::i64: return take(std::int64_t{});
    case GgufType::f32: return whole ? false : take(float{});
    case GgufType::f64: return whole ? false : take(double{});
    default: return false;
  }
}

std::string GgufFile::text(const std::string& key) const {
  const Value& v = value(key, "a text", false);
  if (v.type != GgufType::text) fail_key(key, "a text");
  std::uint64_t length;
  std::memcpy(&length, file_.bytes().data() + v.begin, sizeof length);
  return {reinterpret_cast<const char*>(file_.bytes().data()) + v.begin + sizeof length, std::size_t(length)};
}

std::int64_t GgufFile::integer(const std::string& key, std::int64_t least, std::int64_t most) const {
  const Value& v = value(key, "a whole number", false);
  std::int64_t found = 0;
  if (!number(v, 0, found) || found < least || found > most)
    fail_key(key, fmt::format("a whole number from {} to {}{}", least, most, v.type == GgufType::text ? "" : fmt::format(", but is {}", found)));
  return found;
}

double GgufFile::real(const std::string& key) const {
  double found = 0;
  if (!number(value(key, "a number", false), 0, found) || !std::isfinite(found)) fail_key(key, "a finite number");
  return found;
}

bool GgufFile::flag(const std::string& key) const {
  const Value& v = value(key, "true or false", false);
  if (v.type != GgufType::boolean) fail_key(key, "true or false");
  const std::byte stored = file_.bytes()[v.begin];
  if (stored > std::byte{1}) fail_key(key, "true or false");
  return stored == std::byte{1};
}

std::vector<std::string_view> GgufFile::texts(const std::string& key) const {
  const Value& v = value(key, "a list of texts", true);
  if (v.type != GgufType::text) fail_key(key, "a list of texts");
  std::vector<std::string_view> result;
  const char* at = reinterpret_cast<const char*>(file_.bytes().data()) + v.begin;
  for (std::uint64_t i = 0; i < v.count; ++i) {
    std::uint64_t length;
    std::memcpy(&length, at, sizeof length);
    result.emplace_back(at + sizeof length, std::size_t(length));
    at += sizeof length + length;
  }
  return result;
}

template <class T>
std::vector<T> GgufFile::numbers(const std::string& key, std::size_t count, const char* what) const {
  const std::string expected = fmt::format("a list of {} {}", count, what);
  const Value& v = value(key, expected.c_str(), true);
  if (v.count != count) fail_key(key, fmt::format("{}, but has {}", expected, v.count));
  std::vector<T> result(count);
  for (std::size_t i = 0; i < count; ++i)
    if (!number(v, i, result[i])) fail_key(key, expected);
  return result;
}

std::vector<std::int64_t> GgufFile::integers(const std::string& key, std::size_t count) const {
  return numbers<std::int64_t>(key, count, "whole numbers");
}
std::vector<float> GgufFile::reals(const std::string& key, std::size_t count) const { return numbers<float>(key, count, "numbers"); }

}  // namespace hedgehog

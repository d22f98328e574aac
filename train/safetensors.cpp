#include "train/safetensors.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "core/error.h"
#include "train/file_writer.h"

namespace hedgehog {

static_assert(std::endian::native == std::endian::little, "safetensors bytes are little-endian");

namespace {

using Json = nlohmann::json;

constexpr size_t kLengthBytes = 8;
constexpr size_t kMaximumHeaderBytes = 100'000'000;  // as the reference implementation
constexpr int kMaximumDepth = 3;                     // file, tensor, shape or offsets
constexpr size_t kMaximumAxes = 32;
constexpr std::string_view kMetadataName = "__metadata__";

constexpr std::array<std::pair<std::string_view, size_t>, 14> kElementBytes = {
    {{"F64", 8}, {"I64", 8}, {"U64", 8}, {"F32", 4}, {"I32", 4}, {"U32", 4}, {"F16", 2},
     {"BF16", 2}, {"I16", 2}, {"U16", 2}, {"I8", 1}, {"U8", 1}, {"BOOL", 1}, {"F8_E4M3", 1}}};

/// The extents as "2, 3".
std::string shape_text(std::span<const int64_t> shape) {
  std::string text;
  for (const int64_t extent : shape) text += (text.empty() ? "" : ", ") + std::to_string(extent);
  return text;
}

/// The bytes a tensor of this shape takes, or false where an axis is negative or the product overflows.
bool shape_bytes(std::span<const int64_t> shape, size_t element_bytes, size_t& bytes) {
  bytes = element_bytes;
  for (const int64_t extent : shape) {
    if (extent < 0 || __builtin_mul_overflow(bytes, size_t(extent), &bytes)) return false;
  }
  return true;
}

void check_record(const TensorRecord& tensor, std::set<std::string_view>& seen) {
  const size_t element_bytes = safetensors_element_bytes(tensor.dtype);
  if (element_bytes == 0) throw Error(fmt::format("[safetensors] tensor '{}' has unknown dtype '{}'", tensor.name, tensor.dtype));
  size_t bytes = 0;
  if (!shape_bytes(tensor.shape, element_bytes, bytes) || bytes != tensor.bytes) {
    throw Error(fmt::format("[safetensors] tensor '{}' of dtype {} and shape ({}) takes {} bytes, but has {}",
                            tensor.name, tensor.dtype, shape_text(tensor.shape), bytes, tensor.bytes));
  }
  if (tensor.data == nullptr && bytes != 0) throw Error(fmt::format("[safetensors] tensor '{}' has no data", tensor.name));
  if (tensor.name == kMetadataName || !seen.insert(tensor.name).second) {
    throw Error(fmt::format("[safetensors] tensor name '{}' is reserved or used twice", tensor.name));
  }
}

}  // namespace

size_t safetensors_element_bytes(std::string_view dtype) {
  for (const auto& [name, bytes] : kElementBytes)
    if (name == dtype) return bytes;
  return 0;
}

void write_safetensors(const std::filesystem::path& path, std::span<const TensorRecord> tensors,
                       const std::map<std::string, std::string>& metadata) {
  std::set<std::string_view> seen;
  std::vector<const TensorRecord*> order;
  for (const TensorRecord& tensor : tensors) {
    check_record(tensor, seen);
    order.push_back(&tensor);
  }
  std::stable_sort(order.begin(), order.end(), [](const TensorRecord* left, const TensorRecord* right) {
    return safetensors_element_bytes(left->dtype) > safetensors_element_bytes(right->dtype);
  });

  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header[std::string(kMetadataName)] = metadata;
  size_t offset = 0;
  for (const TensorRecord* tensor : order) {
    header[tensor->name] = {
        {"dtype", tensor->dtype}, {"shape", tensor->shape}, {"data_offsets", {offset, offset + tensor->bytes}}};
    offset += tensor->bytes;
  }
  std::string text;
  try {
    text = header.dump();
  } catch (const Json::exception&) {
    throw Error("[safetensors] a tensor name or metadata text is not valid UTF-8");
  }
  text.resize((text.size() + 7) / 8 * 8, ' ');

  FileWriter file(path);
  const uint64_t length = text.size();
  file.write(std::as_bytes(std::span(&length, 1)));
  file.write(text);
  for (const TensorRecord* tensor : order) {
    file.write(std::span(static_cast<const std::byte*>(tensor->data), tensor->bytes));
  }
  file.finish();
}

namespace {

/// Parses and checks a header. All errors go through `fail`, which names the file.
class HeaderReader {
 public:
  HeaderReader(const std::filesystem::path& path, const std::byte* bytes, size_t size)
      : path_(path), bytes_(bytes), size_(size) {}

  void read(std::vector<TensorRecord>& tensors, std::map<std::string, std::string>& metadata) {
    const Json header = parse();
    for (const auto& [name, entry] : header.items()) {
      if (name == kMetadataName) {
        read_metadata(entry, metadata);
      } else {
        tensors.push_back(read_tensor(name, entry));
      }
    }
    check_layout(tensors);
  }

 private:
  [[noreturn]] void fail(std::string what) const {
    // names come from the file: none may steer the terminal
    std::replace_if(what.begin(), what.end(), [](unsigned char c) { return c < 0x20 || c == 0x7f; }, '?');
    throw FileError(fmt::format("'{}' is not a valid safetensors file: {}", path_.string(), what));
  }

  Json parse() {
    if (size_ < kLengthBytes) fail(fmt::format("it has {} bytes, fewer than the 8 of the header length", size_));
    uint64_t length = 0;
    std::memcpy(&length, bytes_, kLengthBytes);
    const size_t room = size_ - kLengthBytes;
    if (length > kMaximumHeaderBytes) {
      fail(fmt::format("the header length at offset 0 is {}, more than the {} allowed", length, kMaximumHeaderBytes));
    }
    if (length > room) {
      fail(fmt::format("the header length at offset 0 is {}, but only {} bytes follow (truncated?)", length, room));
    }
    data_offset_ = kLengthBytes + size_t(length);
    const char* text = reinterpret_cast<const char*>(bytes_) + kLengthBytes;
    if (length == 0 || text[0] != '{') fail("the header at offset 8 does not begin with '{'");

    std::vector<std::set<std::string>> keys;
    const auto watch = [&](int depth, Json::parse_event_t event, Json& parsed) {
      using Event = Json::parse_event_t;
      if (event == Event::object_start || event == Event::array_start) {
        if (depth + 1 > kMaximumDepth) fail(fmt::format("the header is nested deeper than {} levels", kMaximumDepth));
        keys.emplace_back();
      } else if (event == Event::object_end || event == Event::array_end) {
        keys.pop_back();
      } else if (event == Event::key && !keys.back().insert(parsed.get<std::string>()).second) {
        fail(fmt::format("the header has the name '{}' twice", parsed.get<std::string>()));
      }
      return true;
    };
    try {
      return Json::parse(text, text + length, watch);
    } catch (const Json::parse_error& error) {
      fail(fmt::format("the header is not JSON at offset {}", kLengthBytes + std::max<size_t>(error.byte, 1) - 1));
    } catch (const Json::exception&) {
      fail("the header holds a number that is out of range");
    }
  }

  void read_metadata(const Json& entry, std::map<std::string, std::string>& metadata) {
    if (!entry.is_object()) fail("field '__metadata__' is not an object");
    for (const auto& [key, value] : entry.items()) {
      if (!value.is_string()) fail(fmt::format("field '__metadata__.{}' is not a string", key));
      metadata[key] = value.get<std::string>();
    }
  }

  TensorRecord read_tensor(const std::string& name, const Json& entry) {
    const auto field = [&](const char* key, bool right_type, const char* expected) {
      if (!right_type) fail(fmt::format("tensor '{}' field '{}' is not {}", name, key, expected));
    };
    if (!entry.is_object()) fail(fmt::format("tensor '{}' is not an object", name));
    for (const auto& [key, unused] : entry.items()) {
      if (key != "dtype" && key != "shape" && key != "data_offsets") {
        fail(fmt::format("tensor '{}' has an unknown field '{}'", name, key));
      }
    }
    field("dtype", entry.contains("dtype") && entry["dtype"].is_string(), "a string");
    field("shape", entry.contains("shape") && entry["shape"].is_array(), "a list");
    field("data_offsets",
          entry.contains("data_offsets") && entry["data_offsets"].is_array() && entry["data_offsets"].size() == 2,
          "a list of 2 numbers");

    TensorRecord tensor{.name = name, .dtype = entry["dtype"].get<std::string>(), .shape = {}};
    const size_t element_bytes = safetensors_element_bytes(tensor.dtype);
    if (element_bytes == 0) fail(fmt::format("tensor '{}' has unknown dtype '{}'", name, tensor.dtype));
    field("shape", entry["shape"].size() <= kMaximumAxes, "a list of at most 32 extents");
    for (const Json& extent : entry["shape"]) {
      field("shape", extent.is_number_unsigned() && extent.get<uint64_t>() <= uint64_t(INT64_MAX),
            "a list of whole numbers from 0 to 2^63 - 1");
      tensor.shape.push_back(extent.get<int64_t>());
    }
    for (const Json& offset : entry["data_offsets"]) {
      field("data_offsets", offset.is_number_unsigned(), "a list of 2 whole numbers");
    }
    locate(tensor, element_bytes, entry["data_offsets"][0].get<uint64_t>(), entry["data_offsets"][1].get<uint64_t>());
    return tensor;
  }

  void locate(TensorRecord& tensor, size_t element_bytes, uint64_t begin, uint64_t end) {
    const size_t data_bytes = size_ - data_offset_;
    if (begin > end || end > data_bytes) {
      fail(fmt::format("tensor '{}' has data_offsets [{}, {}], outside the {} bytes of data that begin at offset {}",
                       tensor.name, begin, end, data_bytes, data_offset_));
    }
    size_t bytes = 0;
    if (!shape_bytes(tensor.shape, element_bytes, bytes)) {
      fail(fmt::format("tensor '{}' has shape ({}), whose size overflows", tensor.name, shape_text(tensor.shape)));
    }
    if (bytes != end - begin) {
      fail(fmt::format("tensor '{}' of dtype {} and shape ({}) takes {} bytes, but its data_offsets [{}, {}] hold {}",
                       tensor.name, tensor.dtype, shape_text(tensor.shape), bytes, begin, end, end - begin));
    }
    tensor.data = bytes_ + data_offset_ + begin;
    tensor.bytes = bytes;
    tensor.offset = data_offset_ + size_t(begin);
  }

  /// Tensors must cover the data without overlap or gap, so that no byte hides and none is used twice.
  void check_layout(std::vector<TensorRecord>& tensors) {
    std::sort(tensors.begin(), tensors.end(), [](const TensorRecord& left, const TensorRecord& right) {
      return std::pair(left.data, left.bytes) < std::pair(right.data, right.bytes);
    });
    size_t position = 0;
    for (const TensorRecord& tensor : tensors) {
      const size_t begin = size_t(static_cast<const std::byte*>(tensor.data) - (bytes_ + data_offset_));
      if (begin != position) {
        fail(fmt::format("tensor '{}' begins at data offset {}, but the one before it ends at {} ({})", tensor.name,
                         begin, position, begin < position ? "overlap" : "gap"));
      }
      position = begin + tensor.bytes;
    }
    if (position != size_ - data_offset_) {
      fail(fmt::format("the tensors end at offset {}, but the file has {} bytes", data_offset_ + position, size_));
    }
  }

  const std::filesystem::path& path_;
  const std::byte* bytes_;
  size_t size_;
  size_t data_offset_ = 0;
};

}  // namespace

SafetensorsFile::SafetensorsFile(const std::filesystem::path& path) : file_(path) {
  HeaderReader(path, file_.bytes().data(), file_.bytes().size()).read(tensors_, metadata_);
  for (size_t i = 0; i < tensors_.size(); ++i) index_[tensors_[i].name] = i;
}

std::vector<std::string> SafetensorsFile::names() const {
  std::vector<std::string> names;
  for (const TensorRecord& tensor : tensors_) names.push_back(tensor.name);
  return names;
}

bool SafetensorsFile::contains(std::string_view name) const { return index_.find(name) != index_.end(); }

const TensorRecord& SafetensorsFile::get(std::string_view name) const {
  const auto found = index_.find(name);
  if (found == index_.end()) throw FileError(fmt::format("'{}' has no tensor '{}'", path().string(), name));
  return tensors_[found->second];
}

}  // namespace hedgehog

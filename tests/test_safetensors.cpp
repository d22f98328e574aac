#include <doctest/doctest.h>

#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "core/error.h"
#include "train/safetensors.h"
#include "tests/temporary_directory.h"

using namespace hedgehog;

namespace {

/// A file with this header text and data, whatever they say.
std::string raw_file(const std::string& header, const std::string& data) {
  const uint64_t length = header.size();
  std::string bytes(8, '\0');
  std::memcpy(bytes.data(), &length, 8);
  return bytes + header + data;
}

std::string refusal(const TemporaryDirectory& directory, const std::string& bytes) {
  const auto path = directory.file("bad.safetensors", bytes);
  const std::string message = message_of<FileError>([&] { SafetensorsFile file(path); });
  CHECK(contains(message, path.string()));
  return message;
}

}  // namespace

TEST_CASE("safetensors: records come back with the same bits, names and metadata") {
  TemporaryDirectory directory;
  const std::vector<float> weight = {1.5f, -0.0f, 3e38f, 1e-45f, 0.1f, 7.0f};
  const std::vector<double> moment = {0.1, -2.5};
  const std::vector<uint16_t> half = {0x3f80, 0xbf80, 0x7f80};
  const std::vector<int32_t> ids = {-1, 2147483647};
  const std::vector<TensorRecord> records = {
      {"h.0.half", "BF16", {3}, half.data(), 6},    {"h.0.weight", "F32", {2, 3}, weight.data(), 24},
      {"moment", "F64", {2, 1}, moment.data(), 16}, {"ids \u00e9\"\\", "I32", {2}, ids.data(), 8},
      {"scalar", "F32", {}, weight.data(), 4},      {"empty", "F32", {0, 5}, nullptr, 0},
  };
  const auto path = directory / "model.safetensors";
  write_safetensors(path, records, {{"map", "hedgehog"}, {"format", "pt"}});

  const SafetensorsFile file(path);
  CHECK(file.names().size() == records.size());
  CHECK(file.metadata() == std::map<std::string, std::string>{{"map", "hedgehog"}, {"format", "pt"}});
  for (const TensorRecord& record : records) {
    CAPTURE(record.name);
    REQUIRE(file.contains(record.name));
    const TensorRecord& found = file.get(record.name);
    CHECK(found.dtype == record.dtype);
    CHECK(found.shape == record.shape);
    REQUIRE(found.bytes == record.bytes);
    if (record.bytes > 0) CHECK(std::memcmp(found.data, record.data, record.bytes) == 0);
    // ours are aligned for direct use
    const size_t element = safetensors_element_bytes(record.dtype);
    CHECK(reinterpret_cast<uintptr_t>(found.data) % element == 0);
  }
  CHECK_FALSE(file.contains("absent"));
  CHECK(contains(message_of<FileError>([&] { file.get("absent"); }), "has no tensor 'absent'"));
}

TEST_CASE("safetensors: the header is padded to 8 bytes and the layout is the published one") {
  TemporaryDirectory directory;
  const float one = 1;
  const std::vector<TensorRecord> records = {{"a", "F32", {1}, &one, 4}};
  const auto path = directory / "one.safetensors";
  write_safetensors(path, records);
  const std::string header = R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})";
  std::string padded = header;
  padded.resize((header.size() + 7) / 8 * 8, ' ');
  CHECK(bytes_of(path) == raw_file(padded, std::string("\0\0\x80\x3f", 4)));
}

TEST_CASE("safetensors: a record that contradicts itself is refused before anything is written") {
  TemporaryDirectory directory;
  const float one = 1;
  const auto path = directory / "x.safetensors";
  const auto refused = [&](std::vector<TensorRecord> records) {
    return message_of<Error>([&] { write_safetensors(path, records); });
  };
  CHECK(contains(refused({{"a", "F32", {2}, &one, 4}}), "takes 8 bytes, but has 4"));
  CHECK(contains(refused({{"a", "F31", {1}, &one, 4}}), "unknown dtype 'F31'"));
  CHECK(contains(refused({{"a", "F32", {1}, &one, 4}, {"a", "F32", {1}, &one, 4}}), "used twice"));
  CHECK(contains(refused({{"__metadata__", "F32", {1}, &one, 4}}), "reserved"));
  CHECK(contains(refused({{"a", "F32", {1}, nullptr, 4}}), "has no data"));
  CHECK(contains(refused({{"a\xff", "F32", {1}, &one, 4}}), "UTF-8"));
  CHECK_FALSE(std::filesystem::exists(path));
}

TEST_CASE("safetensors: every kind of damage is named") {
  TemporaryDirectory directory;
  const auto with = [](const std::string& entry) { return "{\"w\":{" + entry + "}}"; };
  const std::string eight(8, 'x');
  struct Damage {
    const char* what;
    std::string bytes;
    const char* says;
  };
  const std::vector<Damage> damages = {
      {"empty file", "", "it has 0 bytes"},
      {"short length", "1234567", "it has 7 bytes"},
      {"length beyond the file", raw_file("{}", "").replace(0, 1, "\x40"), "only 2 bytes follow"},
      {"length beyond all reason", std::string(16, '\xff'), "more than the 100000000 allowed"},
      {"no object", raw_file("[]", ""), "does not begin with '{'"},
      {"empty header", raw_file("", ""), "does not begin with '{'"},
      {"not JSON", raw_file("{\"w\":}", ""), "not JSON at offset 13"},
      {"text after the object", raw_file("{}{}", ""), "not JSON"},
      {"nested deeply", raw_file("{\"w\":{\"shape\":[[1]]}}", ""), "deeper than 3 levels"},
      {"name twice", raw_file("{\"w\":{},\"w\":{}}", ""), "the name 'w' twice"},
      {"metadata not texts", raw_file("{\"__metadata__\":{\"a\":1}}", ""), "'__metadata__.a' is not a string"},
      {"metadata not an object", raw_file("{\"__metadata__\":1}", ""), "'__metadata__' is not an object"},
      {"tensor not an object", raw_file("{\"w\":1}", ""), "tensor 'w' is not an object"},
      {"no dtype", raw_file(with("\"shape\":[2],\"data_offsets\":[0,8]"), eight), "'dtype' is not a string"},
      {"unknown field", raw_file(with("\"kind\":1"), eight), "unknown field 'kind'"},
      {"unknown dtype", raw_file(with("\"dtype\":\"F31\",\"shape\":[2],\"data_offsets\":[0,8]"), eight),
       "unknown dtype 'F31'"},
      {"negative extent", raw_file(with("\"dtype\":\"F32\",\"shape\":[-2],\"data_offsets\":[0,8]"), eight),
       "field 'shape'"},
      {"broken extent", raw_file(with("\"dtype\":\"F32\",\"shape\":[2.5],\"data_offsets\":[0,8]"), eight),
       "field 'shape'"},
      {"huge extent",
       raw_file(with("\"dtype\":\"F32\",\"shape\":[18446744073709551615],\"data_offsets\":[0,8]"), eight),
       "field 'shape'"},
      {"overflowing shape",
       raw_file(with("\"dtype\":\"F32\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,0]"), ""),
       "size overflows"},
      {"shape against bytes", raw_file(with("\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[0,8]"), eight),
       "takes 12 bytes, but its data_offsets [0, 8] hold 8"},
      {"offsets backwards", raw_file(with("\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[8,0]"), eight),
       "outside the 8 bytes"},
      {"offsets beyond the end", raw_file(with("\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[0,16]"), eight),
       "outside the 8 bytes"},
      {"offset overflow",
       raw_file(with("\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[18446744073709551612,4]"), eight),
       "outside the 8 bytes"},
      {"three offsets", raw_file(with("\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,4,8]"), eight),
       "a list of 2 numbers"},
      {"bytes that belong to no tensor",
       raw_file(with("\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]"), eight), "the tensors end at offset"},
      {"gap", raw_file(with("\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]"), eight), "gap"},
      {"overlap",
       raw_file("{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},\"b\":{\"dtype\":\"F32\",\"shape\":[1]"
                ",\"data_offsets\":[4,8]}}",
                eight),
       "overlap"},
      {"a number beyond a double", raw_file("{\"a\":1e999}", ""), "out of range"},
      {"a name that would steer the terminal", raw_file("{\"\\u001b[31m\":1}", ""), "tensor '?[31m'"},
  };
  for (const Damage& damage : damages) {
    CAPTURE(damage.what);
    const std::string message = refusal(directory, damage.bytes);
    CAPTURE(message);
    CHECK(contains(message, damage.says));
  }
  CHECK(contains(message_of<FileError>([&] { SafetensorsFile file(directory / "absent"); }), "No such file"));
  CHECK(contains(message_of<FileError>([&] { SafetensorsFile file(directory.path()); }), "it is a directory"));
  CHECK(contains(message_of<FileError>([&] { SafetensorsFile file("/dev/null"); }), "not a regular file"));
}

TEST_CASE("safetensors: a file cut anywhere is refused") {
  TemporaryDirectory directory;
  const std::vector<float> values = {1, 2, 3};
  const std::vector<TensorRecord> records = {{"a", "F32", {3}, values.data(), 12}};
  const auto path = directory / "whole.safetensors";
  write_safetensors(path, records);
  const std::string whole = bytes_of(path);
  for (size_t length = 0; length < whole.size(); ++length) {
    CAPTURE(length);
    CHECK_FALSE(refusal(directory, whole.substr(0, length)).empty());
  }
}

TEST_CASE("safetensors: mutated headers give an error or records inside the file, never anything else") {
  TemporaryDirectory directory;
  const std::vector<float> values = {1, 2, 3, 4, 5, 6};
  const std::vector<TensorRecord> records = {{"alpha", "F32", {3}, values.data(), 12},
                                             {"b", "I32", {1, 3}, values.data() + 3, 12}};
  const auto path = directory / "whole.safetensors";
  write_safetensors(path, records, {{"key", "value"}});
  const std::string whole = bytes_of(path);
  const std::string alphabet =
      "{}[]\",:0123456789-.eE\\ \n\xff"
      "Fw";
  uint64_t random = 1;
  const auto next = [&](size_t count) {
    random = random * 6364136223846793005u + 1442695040888963407u;
    return size_t(random >> 33) % count;
  };
  int accepted = 0;
  for (int round = 0; round < 1500; ++round) {
    std::string bytes = whole;
    for (size_t change = 0; change <= next(3); ++change) {
      const size_t at = next(bytes.size() - 24);
      if (next(4) == 0)
        bytes.erase(at, 1 + next(4));
      else if (next(3) == 0)
        bytes.insert(at, 1, alphabet[next(alphabet.size())]);
      else
        bytes[at] = alphabet[next(alphabet.size())];
    }
    std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
    try {
      const SafetensorsFile file(path);
      size_t total = 0;
      unsigned sum = 0;
      for (const std::string& name : file.names()) {
        const TensorRecord& record = file.get(name);
        total += record.bytes;
        for (size_t i = 0; i < record.bytes; ++i) sum += static_cast<const unsigned char*>(record.data)[i];
      }
      CHECK(total <= bytes.size());
      CHECK(sum < 255u * bytes.size());
      ++accepted;
    } catch (const FileError&) {
    }
  }
  // renamed tensors and metadata are still valid files
  CHECK(accepted > 0);
  CHECK(accepted < 1500);
}

TEST_CASE("safetensors: a device without room gives a WriteError that says why") {
  if (!std::filesystem::exists("/dev/full")) return;
  const std::vector<float> values(1000, 1);
  const std::vector<TensorRecord> records = {{"a", "F32", {1000}, values.data(), 4000}};
  const std::string message = message_of<WriteError>([&] { write_safetensors("/dev/full", records); });
  CHECK(contains(message, "/dev/full"));
  CHECK(contains(message, "No space left on device"));
  CHECK(contains(message_of<WriteError>([&] { write_safetensors("/nonexistent/a", records); }), "No such file"));
}

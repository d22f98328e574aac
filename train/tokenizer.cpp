#include "train/tokenizer.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <bitset>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "train/utf8.h"

namespace hedgehog {

namespace {

void check_id(int32_t id, int64_t size) {
  if (id < 0 || id >= size) {
    throw Error(fmt::format("[tokenizer] token id must be from 0 to {}, but is {}", size - 1, id));
  }
}

/// The frame of every tokenizer.json.
nlohmann::ordered_json json_frame(const char* type) {
  return {{"hedgehog", "tokenizer"}, {"version", 1}, {"type", type}};
}

class ByteTokenizer final : public Tokenizer {
 public:
  std::string kind() const override { return "byte"; }
  int64_t size() const override { return 256; }
  std::vector<int32_t> encode(std::string_view text) const override {
    std::vector<int32_t> ids(text.size());
    std::transform(text.begin(), text.end(), ids.begin(), [](char c) { return int32_t(uint8_t(c)); });
    return ids;
  }
  void append(std::string& text, int32_t id) const override {
    check_id(id, size());
    text += char(uint8_t(id));
  }
  std::string to_json() const override { return json_frame("byte").dump(1); }
};

class CharTokenizer final : public Tokenizer {
 public:
  /// bytes  ascending and unique
  explicit CharTokenizer(std::string bytes) : bytes_(std::move(bytes)) {
    ids_.fill(-1);
    for (size_t i = 0; i < bytes_.size(); ++i) ids_[uint8_t(bytes_[i])] = int32_t(i);
  }
  std::string kind() const override { return "char"; }
  int64_t size() const override { return int64_t(bytes_.size()); }
  std::vector<int32_t> encode(std::string_view text) const override {
    std::vector<int32_t> ids(text.size());
    for (size_t i = 0; i < text.size(); ++i) {
      ids[i] = ids_[uint8_t(text[i])];
      if (ids[i] < 0) {
        const Utf8Step step = utf8_step(text, i);
        throw UsageError(fmt::format("[tokenizer] '{}' at byte {} is not among the {} characters of the training text",
                                     valid_utf8(text.substr(i, step.bytes)), i, bytes_.size()));
      }
    }
    return ids;
  }
  void append(std::string& text, int32_t id) const override {
    check_id(id, size());
    text += bytes_[size_t(id)];
  }
  std::string to_json() const override {
    nlohmann::ordered_json json = json_frame("char");
    for (const char byte : bytes_) json["bytes"].push_back(int(uint8_t(byte)));
    return json.dump();
  }

 private:
  std::string bytes_;
  std::array<int32_t, 256> ids_{};
};

}  // namespace

std::string Tokenizer::decode(std::span<const int32_t> ids) const {
  std::string text;
  for (const int32_t id : ids) append(text, id);
  if (drops_first_space() && text.starts_with(' ')) text.erase(0, 1);
  return text;
}

TokenizerPointer byte_tokenizer() { return std::make_shared<ByteTokenizer>(); }

TokenizerPointer char_tokenizer(std::string_view text) {
  if (text.empty()) throw FileError("[tokenizer] the text for --tokenizer=char is empty");
  std::bitset<256> seen;
  for (const char c : text) seen.set(uint8_t(c));
  std::string bytes;
  for (int byte = 0; byte < 256; ++byte) {
    if (seen[size_t(byte)]) bytes += char(uint8_t(byte));
  }
  return std::make_shared<CharTokenizer>(std::move(bytes));
}

void StreamingDecoder::append(int32_t id) {
  tokenizer_->append(text_, id);
  if (!begun_ && tokenizer_->drops_first_space() && text_.starts_with(' ')) {
    text_.erase(0, 1);
    begun_ = true;
  }
  begun_ = begun_ || !text_.empty();
}

void StreamingDecoder::skip(std::span<const int32_t> ids) {
  for (const int32_t id : ids) append(id);
  printed_ = text_.size();
}

std::string StreamingDecoder::push(int32_t id) {
  append(id);
  std::string ready;
  while (printed_ < text_.size()) {
    const Utf8Step step = utf8_step(text_, printed_);
    if (step.kind == Utf8Step::Kind::kIncomplete) break;
    ready += step.kind == Utf8Step::Kind::kCharacter ? text_.substr(printed_, step.bytes) : "\xEF\xBF\xBD";
    printed_ += step.bytes;
  }
  // only the end is looked at again, so a long session stays small
  constexpr size_t kKept = 256;
  if (printed_ > 4 * kKept) {
    text_.erase(0, printed_ - kKept);
    printed_ = kKept;
  }
  return ready;
}

std::string StreamingDecoder::finish() {
  const bool unfinished = printed_ < text_.size();
  printed_ = text_.size();
  return unfinished ? "\xEF\xBF\xBD" : "";
}

}  // namespace hedgehog

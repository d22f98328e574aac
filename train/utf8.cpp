#include "train/utf8.h"

#include <array>
#include <cstdint>

namespace hedgehog {

Utf8Step utf8_step(std::string_view text, size_t position) {
  using Kind = Utf8Step::Kind;
  const auto byte = [&](size_t i) { return uint8_t(text[position + i]); };
  const uint8_t first = byte(0);
  if (first < 0x80) return {Kind::kCharacter, 1};
  const size_t length = first >= 0xc2 && first <= 0xdf   ? 2
                        : (first & 0xf0) == 0xe0         ? 3
                        : first >= 0xf0 && first <= 0xf4 ? 4
                                                         : 0;
  if (length == 0) return {Kind::kInvalid, 1};
  // the second byte's range shuts out overlong forms, surrogates and what lies beyond U+10FFFF
  const uint8_t low = first == 0xe0 ? 0xa0 : first == 0xf0 ? 0x90 : 0x80;
  const uint8_t high = first == 0xed ? 0x9f : first == 0xf4 ? 0x8f : 0xbf;
  for (size_t i = 1; i < length; ++i) {
    if (position + i >= text.size()) return {Kind::kIncomplete, i};
    const bool in_range = i == 1 ? byte(i) >= low && byte(i) <= high : (byte(i) & 0xc0) == 0x80;
    if (!in_range) return {Kind::kInvalid, 1};
  }
  return {Kind::kCharacter, length};
}

std::string valid_utf8(std::string_view text) {
  std::string result;
  result.reserve(text.size());
  for (size_t i = 0; i < text.size();) {
    const Utf8Step step = utf8_step(text, i);
    if (step.kind == Utf8Step::Kind::kCharacter) {
      result += text.substr(i, step.bytes);
    } else {
      result += "\xEF\xBF\xBD";
    }
    i += step.bytes;
  }
  return result;
}

size_t invalid_utf8_bytes(std::string_view text) {
  size_t invalid = 0;
  for (size_t i = 0; i < text.size();) {
    const Utf8Step step = utf8_step(text, i);
    invalid += step.kind == Utf8Step::Kind::kInvalid;
    i += step.bytes;
  }
  return invalid;
}

size_t utf8_length(std::string_view text) {
  size_t length = 0;
  for (const char c : text) length += (uint8_t(c) & 0xc0) != 0x80;
  return length;
}

}  // namespace hedgehog

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

char32_t code_point(std::string_view character) {
  const uint8_t first = uint8_t(character[0]);
  if (character.size() == 1) return first;
  char32_t point = first & (0x7fu >> character.size());
  for (size_t i = 1; i < character.size(); ++i) point = point << 6 | (uint8_t(character[i]) & 0x3f);
  return point;
}

void append_character(std::string& text, char32_t point) {
  const int more = point < 0x80 ? 0 : point < 0x800 ? 1 : point < 0x10000 ? 2 : 3;
  if (more == 0) {
    text += char(point);
    return;
  }
  text += char((0xff00 >> (more + 1) & 0xff) | point >> 6 * more);
  for (int i = more - 1; i >= 0; --i) text += char(0x80 | (point >> 6 * i & 0x3f));
}

bool is_white_space(char32_t c) {
  return c == ' ' || (c >= '\t' && c <= '\r') || c == 0x85 || c == 0xa0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200a) ||
         c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

size_t white_space_begin(std::string_view text, size_t position) {
  while (position > 0) {
    size_t i = position - 1;
    while (i > 0 && position - i < 4 && (uint8_t(text[i]) & 0xc0) == 0x80) --i;
    const Utf8Step step = utf8_step(text, i);
    const bool whole = step.kind == Utf8Step::Kind::kCharacter && i + step.bytes == position;
    if (!whole || !is_white_space(code_point(text.substr(i, step.bytes)))) break;
    position = i;
  }
  return position;
}

size_t white_space_end(std::string_view text, size_t position) {
  while (position < text.size()) {
    const Utf8Step step = utf8_step(text, position);
    if (step.kind != Utf8Step::Kind::kCharacter || !is_white_space(code_point(text.substr(position, step.bytes)))) break;
    position += step.bytes;
  }
  return position;
}

size_t utf8_length(std::string_view text) {
  size_t length = 0;
  for (const char c : text) length += (uint8_t(c) & 0xc0) != 0x80;
  return length;
}

}  // namespace hedgehog

#include "train/pieces.h"

#include <algorithm>
#include <array>
#include <cstdint>

#include "train/pieces_pattern.h"

namespace hedgehog {

namespace {

enum class Kind : uint8_t { kLetter, kDigit, kSpace, kOther };

constexpr bool is_space(uint8_t c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

constexpr std::array<Kind, 256> kKinds = [] {
  std::array<Kind, 256> kinds{};
  for (int c = 0; c < 256; ++c) {
    const bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c >= 0x80;
    const bool digit = c >= '0' && c <= '9';
    kinds[size_t(c)] = letter ? Kind::kLetter : digit ? Kind::kDigit : is_space(uint8_t(c)) ? Kind::kSpace : Kind::kOther;
  }
  return kinds;
}();

/// Whether the three bytes of a character of U+2000-206F or U+3000-303F stand at `i`.
bool punctuation_at(std::string_view text, size_t i) {
  const uint8_t first = uint8_t(text[i]);
  if ((first != 0xe2 && first != 0xe3) || i + 2 >= text.size()) return false;
  const uint8_t second = uint8_t(text[i + 1]), third = uint8_t(text[i + 2]);
  if (third < 0x80 || third > 0xbf) return false;
  return second == 0x80 || (first == 0xe2 && second == 0x81 && third < 0xb0);
}

Kind kind_at(std::string_view text, size_t i) {
  return punctuation_at(text, i) ? Kind::kOther : kKinds[uint8_t(text[i])];
}

/// Bytes of an apostrophe at `i`, straight or curly; 0 if there is none.
size_t apostrophe_at(std::string_view text, size_t i) {
  if (i < text.size() && text[i] == '\'') return 1;
  return text.substr(std::min(i, text.size()), 3) == "\u2019" ? 3 : 0;
}

size_t end_of_letters(std::string_view text, size_t i) {
  while (i < text.size() && kind_at(text, i) == Kind::kLetter) ++i;
  return i;
}

size_t end_of_word(std::string_view text, size_t i) {
  i = end_of_letters(text, i);
  while (const size_t apostrophe = apostrophe_at(text, i)) {
    const size_t next = i + apostrophe;
    if (next >= text.size() || kind_at(text, next) != Kind::kLetter) break;
    i = end_of_letters(text, next);
  }
  return i;
}

size_t end_of_spaces(std::string_view text, size_t begin) {
  size_t i = begin;
  while (i < text.size() && is_space(uint8_t(text[i]))) ++i;
  // the last space belongs to what follows
  return i < text.size() && text[i - 1] == ' ' && i - 1 > begin ? i - 1 : i;
}

size_t piece_end(std::string_view text, size_t begin) {
  size_t i = begin;
  if (text[i] == ' ' && i + 1 < text.size() && !is_space(uint8_t(text[i + 1]))) ++i;
  switch (kind_at(text, i)) {
    case Kind::kLetter:
      return end_of_word(text, i);
    case Kind::kSpace:
      return end_of_spaces(text, i);
    case Kind::kDigit: {
      const size_t most = std::min(text.size(), i + 3);
      while (i < most && kKinds[uint8_t(text[i])] == Kind::kDigit) ++i;
      return i;
    }
    case Kind::kOther:
      while (i < text.size() && kind_at(text, i) == Kind::kOther) i += punctuation_at(text, i) ? 3 : 1;
  }
  return i;
}

class OwnRule final : public PieceRule {
 public:
  OwnRule() : PieceRule(kOwnPattern) {}
  void split(std::string_view text, const Visit& visit) const override {
    for (size_t begin = 0; begin < text.size();) {
      const size_t end = piece_end(text, begin);
      visit(text.substr(begin, end - begin));
      begin = end;
    }
  }
};

}  // namespace

PieceRule::PieceRule(std::string pattern)
    : pattern_(std::move(pattern)), known_([&] {
        for (const char* known : {kOwnPattern, kGpt2Pattern, kDigitsPattern, kLlama3Pattern, kQwen2Pattern})
          if (pattern_ == known) return true;
        return false;
      }()) {}

size_t PieceRule::cut(std::string_view text, size_t from) const {
  if (!known_) return text.size();
  // white space after a visible ASCII character; after others it may be in the middle of a run of Unicode's white space,
  // and line breaks may belong to the piece before
  for (size_t i = std::max<size_t>(from, 1); i < text.size(); ++i) {
    if ((text[i] == ' ' || text[i] == '\t') && text[i - 1] > ' ' && text[i - 1] < 0x7f) return i;
  }
  return text.size();
}

PieceRulePointer piece_rule(const std::string& pattern) {
  if (pattern == kOwnPattern) return std::make_shared<OwnRule>();
  return pattern_rule(pattern);
}

}  // namespace hedgehog

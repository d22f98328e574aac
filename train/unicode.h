#pragma once
#include <string>
#include <string_view>

namespace hedgehog {

/// Throws Error if the program was built without utf8proc, which all below needs.
void need_unicode();

/// The text in normal form C. Bytes that belong to no character stay.
std::string composed(std::string_view text);

/// The code points in normal form D.
std::u32string decomposed(const std::u32string& points);

/// General category C without unassigned ones: control, format, private use.
bool is_other(char32_t point);

/// General category P, or ASCII's punctuation and symbols.
bool is_punctuation(char32_t point);

/// General category Mn: accents.
bool is_nonspacing_mark(char32_t point);

/// Appends the lower case of a code point, by itself.
void append_lower(std::u32string& points, char32_t point);

}  // namespace hedgehog

#pragma once
#include <cstddef>
#include <string>
#include <string_view>

namespace hedgehog {

/// What stands at `position` of a text: a whole character, the beginning of one that the text ends in, or neither.
struct Utf8Step {
  enum class Kind { kCharacter, kIncomplete, kInvalid } kind;
  size_t bytes;  ///< length of the character, or of what is there of it; 1 for invalid
};

/// Looks at one position (RFC 3629: no overlong forms, no surrogates, at most U+10FFFF).
Utf8Step utf8_step(std::string_view text, size_t position);

/// The text with every byte that belongs to no valid character replaced by U+FFFD.
std::string valid_utf8(std::string_view text);

/// Bytes of the text that belong to no valid character; a character cut off at the very end is not counted.
size_t invalid_utf8_bytes(std::string_view text);

/// The code point of a whole character.
char32_t code_point(std::string_view character);

/// Appends a code point's character.
void append_character(std::string& text, char32_t point);

/// Whether a code point has Unicode's White_Space.
bool is_white_space(char32_t point);

/// Where the run of white space that ends at `position` begins; `position` if there is none.
size_t white_space_begin(std::string_view text, size_t position);

/// Where the run of white space that begins at `position` ends.
size_t white_space_end(std::string_view text, size_t position);

/// Columns on a terminal, counting one a character.
size_t utf8_length(std::string_view text);

}  // namespace hedgehog

#pragma once
#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace hedgehog {

/// A token that is found in the text before it is cut into pieces, with what tokenizer.json says of it.
struct AddedToken {
  int32_t id = 0;
  bool special = true;      // ids do not depend on it
  bool lstrip = false;      // takes the white space before it
  bool rstrip = false;      // takes the white space after it
  bool normalized = false;  // found in the text as normalized, after those that are not
};

/// Finds added tokens: the first in the text, the longest of those.
class AddedTokens {
 public:
  /// content  not empty; the token of the same content that came first counts
  void add(std::string content, const AddedToken& token);
  /// Calls `token` with each id and `between` with the text between them (never empty), in order.
  void split(std::string_view text, const std::function<void(std::string_view)>& between,
             const std::function<void(int32_t)>& token) const;

 private:
  struct Entry {
    std::string content;
    AddedToken token;
  };
  const Entry* at(std::string_view text, size_t i) const;

  std::array<std::vector<Entry>, 256> entries_;  // by first byte, longest first
};

}  // namespace hedgehog

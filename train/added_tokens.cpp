#include "train/added_tokens.h"

#include <algorithm>

#include "train/utf8.h"

namespace hedgehog {

void AddedTokens::add(std::string content, const AddedToken& token) {
  std::vector<Entry>& entries = entries_[uint8_t(content[0])];
  const auto place = std::find_if(entries.begin(), entries.end(),
                                  [&](const Entry& other) { return other.content.size() < content.size(); });
  entries.insert(place, {std::move(content), token});
}

const AddedTokens::Entry* AddedTokens::at(std::string_view text, size_t i) const {
  for (const Entry& entry : entries_[uint8_t(text[i])])
    if (text.substr(i).starts_with(entry.content)) return &entry;
  return nullptr;
}

void AddedTokens::split(std::string_view text, const std::function<void(std::string_view)>& between,
                        const std::function<void(int32_t)>& token) const {
  size_t begin = 0;
  for (size_t i = 0; i < text.size();) {
    const Entry* entry = at(text, i);
    if (entry == nullptr) {
      ++i;
      continue;
    }
    size_t first = i, last = i + entry->content.size();
    i = last;
    // white space that the token before took stays with it
    if (entry->token.lstrip) first = std::max(begin, white_space_begin(text, first));
    if (entry->token.rstrip) last = white_space_end(text, last);
    if (first > begin) between(text.substr(begin, first - begin));
    token(entry->token.id);
    begin = last;
  }
  if (begin < text.size()) between(text.substr(begin));
}

}  // namespace hedgehog

#include <fmt/core.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <unordered_map>
#include <unordered_set>

#include "core/error.h"
#include "train/config.h"
#include "train/tokenizer.h"
#include "train/utf8.h"

namespace hedgehog {

namespace {

constexpr std::string_view kUnknown = "<unk>";
constexpr std::string_view kEnd = "<end>";
constexpr size_t kLargestVocabulary = size_t{1} << 24;

using Index = std::unordered_map<std::string_view, int32_t>;

/// Ids by token; the views point into `tokens`, which must not change.
Index index_of(const std::vector<std::string>& tokens) {
  if (tokens.empty() || tokens.size() > kLargestVocabulary) {
    throw Error(
        fmt::format("[tokenizer] a vocabulary has 1 to {} tokens, but this one {}", kLargestVocabulary, tokens.size()));
  }
  Index index;
  for (size_t id = 0; id < tokens.size(); ++id) {
    if (tokens[id].empty()) throw Error(fmt::format("[tokenizer] token {} is empty", id));
    if (valid_utf8(tokens[id]) != tokens[id]) throw Error(fmt::format("[tokenizer] token {} is not valid UTF-8", id));
    if (!index.emplace(tokens[id], int32_t(id)).second) {
      throw Error(fmt::format("[tokenizer] token {} ('{}') is listed twice", id, valid_utf8(tokens[id])));
    }
  }
  return index;
}

bool is_space(char c) { return c == ' ' || c == '\n' || c == '\t' || c == '\r' || c == '\v' || c == '\f'; }

/// Whether the character (whole, valid UTF-8) belongs inside words: letters, digits, and what is beyond ASCII save
/// U+2000 … U+206F and U+3000 … U+303F, the blocks of punctuation.
bool is_word_character(std::string_view character) {
  const uint8_t first = uint8_t(character[0]);
  if (first < 0x80) return std::isalnum(first) != 0;
  if (character.size() < (first >= 0xe0 ? 3u : 2u)) return false;
  const uint8_t second = uint8_t(character[1]);
  const bool general_punctuation =
      first == 0xe2 && (second == 0x80 || (second == 0x81 && uint8_t(character[2]) < 0xb0));
  return !general_punctuation && !(first == 0xe3 && second == 0x80);
}

bool is_apostrophe(std::string_view character) { return character == "'" || character == "\u2019"; }

/// Bytes of the piece that begins at `position`.
size_t piece_bytes(std::string_view text, size_t position) {
  size_t end = position;
  if (text[end] == ' ' && end + 1 < text.size() && !is_space(text[end + 1])) ++end;
  const auto character = [&](size_t at) {
    return at < text.size() ? text.substr(at, utf8_step(text, at).bytes) : std::string_view();
  };
  std::string_view next = character(end);
  if (!is_word_character(next)) return end + next.size() - position;
  while (!next.empty()) {
    const std::string_view after = is_apostrophe(next) ? character(end + next.size()) : std::string_view();
    const bool inner_apostrophe = !after.empty() && is_word_character(after);
    if (!inner_apostrophe && !is_word_character(next)) break;
    end += next.size();
    next = character(end);
  }
  return end - position;
}

class WordTokenizer final : public Tokenizer {
 public:
  explicit WordTokenizer(std::vector<std::string> tokens) : tokens_(std::move(tokens)), index_(index_of(tokens_)) {
    if (tokens_.size() < 2 || tokens_[0] != kUnknown || tokens_[1] != kEnd) {
      throw Error("[tokenizer] a word vocabulary begins with <unk> and <end>");
    }
  }
  WordTokenizer(const WordTokenizer&) = delete;

  std::string kind() const override { return "word"; }
  int64_t size() const override { return int64_t(tokens_.size()); }
  int32_t end() const override { return 1; }

  std::vector<int32_t> encode(std::string_view text) const override {
    std::vector<int32_t> ids;
    for (size_t i = 0; i < text.size();) {
      const size_t bytes = piece_bytes(text, i);
      const auto found = index_.find(text.substr(i, bytes));
      ids.push_back(found == index_.end() ? 0 : found->second);
      i += bytes;
    }
    return ids;
  }

  void append(std::string& text, int32_t id) const override {
    if (id < 0 || id >= size())
      throw Error(fmt::format("[tokenizer] token id must be from 0 to {}, but is {}", size() - 1, id));
    if (id == end()) return;
    // an unknown piece lost its space with its word; most had one
    if (id == 0 && !text.empty() && !is_space(text.back())) text += ' ';
    text += tokens_[size_t(id)];
  }

  std::string to_json() const override {
    return nlohmann::ordered_json{{"hedgehog", "tokenizer"}, {"version", 1}, {"type", "word"}, {"tokens", tokens_}}
        .dump();
  }

 private:
  std::vector<std::string> tokens_;
  Index index_;
};

class StoryTokenizer final : public Tokenizer {
 public:
  StoryTokenizer(std::vector<std::string> words, const std::vector<std::string>& names)
      : words_(std::move(words)), index_(index_of(words_)) {
    for (const std::string& name : names) {
      if (!index_.contains(name))
        throw Error(fmt::format("[tokenizer] name '{}' is not among the words", valid_utf8(name)));
      names_.insert(name);
    }
    const auto found = index_.find(kEnd);
    if (found != index_.end()) end_ = found->second;
  }
  StoryTokenizer(const StoryTokenizer&) = delete;

  std::string kind() const override { return "story"; }
  int64_t size() const override { return int64_t(words_.size()); }
  int32_t end() const override { return end_; }

  std::vector<int32_t> encode(std::string_view text) const override {
    std::vector<int32_t> ids;
    for (size_t i = 0; i < text.size();) {
      if (text[i] == '\n' && index_.contains("\n")) ids.push_back(index_.at("\n"));
      if (is_space(text[i])) {
        ++i;
        continue;
      }
      const size_t bytes = word_bytes(text, i);
      ids.push_back(find(text.substr(i, bytes)));
      i += bytes;
    }
    return ids;
  }

  void append(std::string& text, int32_t id) const override {
    if (id < 0 || id >= size())
      throw Error(fmt::format("[tokenizer] token id must be from 0 to {}, but is {}", size() - 1, id));
    std::string word = words_[size_t(id)];
    if (word.size() > 2 && word.front() == '<' && word.back() == '>') return;
    const bool joins =
        word == "\n" || (word.size() == 1 && std::string_view(".,?!;:").find(word[0]) != std::string_view::npos);
    if (!joins && !text.empty() && !is_space(text.back())) text += ' ';
    const size_t last = text.find_last_not_of(" \n");
    const bool begins = last == std::string::npos || text[last] == '.' || text[last] == '?' || text[last] == '!';
    if ((begins || names_.contains(words_[size_t(id)])) && word[0] >= 'a' && word[0] <= 'z')
      word[0] = char(word[0] - 32);
    text += word;
  }

  std::string to_json() const override {
    nlohmann::ordered_json json{{"hedgehog", "tokenizer"}, {"version", 1}, {"type", "story"}, {"tokens", words_}};
    json["names"] = nlohmann::json::array();
    for (const std::string& word : words_) {
      if (names_.contains(word)) json["names"].push_back(word);
    }
    return json.dump();
  }

 private:
  /// A token in angle brackets, a word, or one other character.
  size_t word_bytes(std::string_view text, size_t position) const {
    if (text[position] == '<') {
      const size_t close = text.find('>', position);
      if (close != std::string_view::npos && index_.contains(text.substr(position, close + 1 - position))) {
        return close + 1 - position;
      }
    }
    size_t end = position;
    while (end < text.size() && (std::isalnum(uint8_t(text[end])) != 0 || uint8_t(text[end]) >= 0x80 ||
                                 text[end] == '\'' || text[end] == '-')) {
      ++end;
    }
    return std::max<size_t>(1, end - position);
  }

  int32_t find(std::string_view word) const {
    std::string lower(word);
    std::transform(lower.begin(), lower.end(), lower.begin(),
                   [](char c) { return c >= 'A' && c <= 'Z' ? char(c + 32) : c; });
    if (const auto found = index_.find(lower); found != index_.end()) return found->second;
    if (const auto unknown = index_.find(kUnknown); unknown != index_.end()) return unknown->second;
    // one change makes any digit a full stop, but nobody means that
    std::vector<std::string> candidates;
    std::copy_if(words_.begin(), words_.end(), std::back_inserter(candidates),
                 [](const std::string& listed) { return std::isalnum(uint8_t(listed[0])) != 0; });
    const std::string nearest = nearest_name(lower, candidates);
    throw UsageError(fmt::format("[tokenizer] '{}' is not among the {} words of the stories{}", valid_utf8(word),
                                 words_.size(), nearest.empty() ? "" : fmt::format("; did you mean '{}'?", nearest)));
  }

  std::vector<std::string> words_;
  Index index_;
  std::unordered_set<std::string> names_;
  int32_t end_ = -1;
};

}  // namespace

TokenizerPointer word_tokenizer(std::string_view text, int64_t vocabulary) {
  if (vocabulary < 3)
    throw UsageError(fmt::format("--vocabulary expects a whole number of at least 3, but got {}", vocabulary));
  std::unordered_map<std::string_view, int64_t> counts;
  for (size_t i = 0; i < text.size();) {
    const size_t bytes = piece_bytes(text, i);
    ++counts[text.substr(i, bytes)];
    i += bytes;
  }
  // bytes that belong to no character cannot stand in a JSON file
  std::erase_if(counts, [](const auto& entry) { return valid_utf8(entry.first) != entry.first; });
  std::vector<std::pair<std::string_view, int64_t>> order(counts.begin(), counts.end());
  std::sort(order.begin(), order.end(), [](const auto& left, const auto& right) {
    return left.second != right.second ? left.second > right.second : left.first < right.first;
  });
  if (order.size() > size_t(vocabulary) - 2) order.resize(size_t(vocabulary) - 2);
  std::vector<std::string> tokens = {std::string(kUnknown), std::string(kEnd)};
  for (const auto& [piece, count] : order) tokens.emplace_back(piece);
  return std::make_shared<WordTokenizer>(std::move(tokens));
}

TokenizerPointer word_tokenizer(std::vector<std::string> tokens) {
  return std::make_shared<WordTokenizer>(std::move(tokens));
}

TokenizerPointer story_tokenizer(std::vector<std::string> words, std::vector<std::string> names) {
  return std::make_shared<StoryTokenizer>(std::move(words), names);
}

}  // namespace hedgehog

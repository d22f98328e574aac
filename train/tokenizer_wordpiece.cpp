#include "train/tokenizer_wordpiece.h"

#include <fmt/core.h>

#include <algorithm>
#include <unordered_map>

#include "core/error.h"
#include "train/piece_encoder.h"
#include "train/unicode.h"
#include "train/utf8.h"

namespace hedgehog {

namespace {

using Ids = std::unordered_map<std::string_view, int32_t>;

/// As `tokenizers` has it, which leaves out U+2B820-2B91F.
bool is_cjk(char32_t c) {
  return (c >= 0x3400 && c <= 0x4dbf) || (c >= 0x4e00 && c <= 0x9fff) || (c >= 0xf900 && c <= 0xfaff) || (c >= 0x20000 && c <= 0x2a6df) ||
         (c >= 0x2a700 && c <= 0x2b81f) || (c >= 0x2b920 && c <= 0x2ceaf) || (c >= 0x2f800 && c <= 0x2fa1f);
}

std::u32string code_points(std::string_view text) {
  std::u32string points;
  for (size_t i = 0; i < text.size();) {
    const Utf8Step step = utf8_step(text, i);
    points += step.kind == Utf8Step::Kind::kCharacter ? code_point(text.substr(i, step.bytes)) : U'\uFFFD';
    i += step.bytes;
  }
  return points;
}

/// Words, punctuation characters, and runs of white space. The text is UTF-8.
class WordRule final : public PieceRule {
 public:
  WordRule() : PieceRule("") {}

  void split(std::string_view text, const Visit& visit) const override {
    enum class Kind { kNone, kSpace, kWord };
    Kind kind = Kind::kNone;
    size_t begin = 0;
    const auto finish = [&](size_t end) {
      if (end > begin) visit(text.substr(begin, end - begin));
      begin = end;
    };
    for (size_t i = 0; i < text.size();) {
      const size_t bytes = utf8_step(text, i).bytes;
      const char32_t point = code_point(text.substr(i, bytes));
      const bool punctuation = is_punctuation(point);
      const Kind here = punctuation ? Kind::kNone : is_white_space(point) ? Kind::kSpace : Kind::kWord;
      if (punctuation || here != kind) finish(i);
      kind = here;
      i += bytes;
    }
    finish(text.size());
  }

  size_t cut(std::string_view text, size_t from) const override { return std::min(text.find(' ', from), text.size()); }
};

class WordPieceTokenizer final : public Tokenizer {
 public:
  explicit WordPieceTokenizer(WordPieceVocabulary vocabulary)
      : v_(std::move(vocabulary)),
        encoder_(std::make_shared<WordRule>(),
                 [this](std::string_view piece, PieceMerger&, std::vector<int32_t>& ids) { encode_piece(piece, ids); }) {
    need_unicode();
    if (v_.longest_word < 1) throw Error(fmt::format("the longest word has {} characters", v_.longest_word));
    check_id(v_.unknown, "the unknown token");
    for (const int32_t id : v_.frame.before) check_id(id, "the frame's token");
    for (const int32_t id : v_.frame.after) check_id(id, "the frame's token");
    for (const AddedToken& token : v_.added) {
      check_id(token.id, "added token");
      if (token.normalized) throw Error(fmt::format("added token {} is found as normalized, which is not supported", token.id));
    }
    for (size_t id = 0; id < v_.tokens.size(); ++id) {
      const std::string_view token = v_.tokens[id];
      if (token.empty() || valid_utf8(token) != token)
        throw Error(fmt::format("token {} ('{}') is empty or no UTF-8", id, valid_utf8(token)));
      const bool inside = continues(token);
      const auto [first, unique] = (inside ? inside_ : begin_).emplace(inside ? token.substr(kContinuation.size()) : token, int32_t(id));
      if (!unique) throw Error(fmt::format("tokens {} and {} are both '{}'", first->second, id, token));
    }
    for (const AddedToken& token : v_.added) added_.add(v_.tokens[size_t(token.id)], token);
    if (!v_.frame.after.empty()) end_ = v_.frame.after.back();
  }

  std::string kind() const override { return "wordpiece"; }
  int64_t size() const override { return int64_t(v_.tokens.size()); }
  int32_t end() const override { return end_; }
  TokenFrame frame() const override { return v_.frame; }
  std::string to_json() const override { return wordpiece_json(v_); }

  std::vector<int32_t> encode(std::string_view text) const override {
    std::vector<int32_t> ids;
    const auto encode_between = [&](std::string_view between) { encoder_.encode(normalized(between), ids); };
    added_.split(text, encode_between, [&](int32_t id) { ids.push_back(id); });
    return ids;
  }

  void append(std::string& text, int32_t id) const override {
    check_id(id, "[tokenizer] token id");
    const std::string_view token = v_.tokens[size_t(id)];
    const bool inside = continues(token) && !text.empty();
    if (!inside && !text.empty()) text += ' ';
    text += inside ? token.substr(kContinuation.size()) : token;
  }

 private:
  static bool continues(std::string_view token) { return token.size() > kContinuation.size() && token.starts_with(kContinuation); }

  void check_id(int32_t id, const char* what) const {
    if (id < 0 || id >= size()) throw Error(fmt::format("{} must be from 0 to {}, but is {}", what, size() - 1, id));
  }

  std::string normalized(std::string_view text) const {
    std::u32string points;
    for (const char32_t c : code_points(text)) {
      const bool line = c == '\t' || c == '\n' || c == '\r';
      if (v_.clean && (c == 0 || c == 0xfffd || (!line && is_other(c)))) continue;
      const bool alone = v_.cjk && is_cjk(c);
      if (alone) points += U' ';
      points += v_.clean && is_white_space(c) ? U' ' : c;
      if (alone) points += U' ';
    }
    if (v_.strip_accents) {
      points = decomposed(points);
      std::erase_if(points, is_nonspacing_mark);
    }
    std::u32string lower;
    for (const char32_t c : points) v_.lowercase ? append_lower(lower, c) : lower.push_back(c);
    std::string result;
    for (const char32_t c : lower) append_character(result, c);
    return result;
  }

  void encode_piece(std::string_view word, std::vector<int32_t>& ids) const {
    if (white_space_end(word, 0) > 0) return;
    if (utf8_length(word) > size_t(v_.longest_word)) return ids.push_back(v_.unknown);
    const size_t before = ids.size();
    for (size_t begin = 0; begin < word.size();) {
      const Ids& known = begin == 0 ? begin_ : inside_;
      size_t end = word.size();
      Ids::const_iterator found;
      while (end > begin && (found = known.find(word.substr(begin, end - begin))) == known.end()) {
        do --end;
        while (end > begin && (uint8_t(word[end]) & 0xc0) == 0x80);
      }
      if (end == begin) {
        ids.resize(before);
        return ids.push_back(v_.unknown);
      }
      ids.push_back(found->second);
      begin = end;
    }
  }

  WordPieceVocabulary v_;
  PieceEncoder encoder_;
  AddedTokens added_;
  Ids begin_, inside_;  // tokens that begin a word; those that go on, without ##
  int32_t end_ = -1;
};

}  // namespace

TokenizerPointer wordpiece_tokenizer(WordPieceVocabulary vocabulary) { return std::make_shared<WordPieceTokenizer>(std::move(vocabulary)); }

TokenizerPointer wordpiece_tokenizer_of(const std::filesystem::path& file, WordPieceVocabulary vocabulary) {
  try {
    return wordpiece_tokenizer(std::move(vocabulary));
  } catch (const Error& error) {
    throw FileError(fmt::format("cannot use the tokenizer '{}': {}", file.string(), error.what()));
  }
}

}  // namespace hedgehog

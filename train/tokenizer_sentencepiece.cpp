#include "train/tokenizer_sentencepiece.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <unordered_map>

#include "core/error.h"
#include "train/piece_encoder.h"
#include "train/utf8.h"

namespace hedgehog {

namespace {

using Type = SentencePieceType;
using Ids = std::unordered_map<std::string_view, int32_t>;

constexpr size_t kLargestVocabulary = size_t{1} << 24;
constexpr size_t kLongestToken = 4096;  // bytes

/// The byte of "<0xXX>", or -1.
int byte_of(std::string_view token) {
  if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return -1;
  int byte = 0;
  for (const char c : token.substr(3, 2)) {
    const int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
    if (digit < 0) return -1;
    byte = 16 * byte + digit;
  }
  return byte;
}

void check_id(const SentencePieceVocabulary& v, int32_t id, const char* what) {
  if (id < 0 || size_t(id) >= v.tokens.size()) throw Error(fmt::format("{} {} is out of range of {} tokens", what, id, v.tokens.size()));
}

/// Checks all but merges; the ids of tokens that merge.
Ids checked_ids(const SentencePieceVocabulary& v) {
  if (v.tokens.empty() || v.tokens.size() > kLargestVocabulary)
    throw Error(fmt::format("a vocabulary has 1 to {} tokens, but this one {}", kLargestVocabulary, v.tokens.size()));
  if (v.types.size() != v.tokens.size()) throw Error(fmt::format("there are {} types for {} tokens", v.types.size(), v.tokens.size()));
  if (!v.scores.empty() && (v.scores.size() != v.tokens.size() || !v.merges.empty()))
    throw Error(fmt::format("there are {} scores and {} merges for {} tokens", v.scores.size(), v.merges.size(), v.tokens.size()));
  Ids ids;
  for (size_t id = 0; id < v.tokens.size(); ++id) {
    const std::string& token = v.tokens[id];
    if (token.empty() || token.size() > kLongestToken)
      throw Error(fmt::format("token {} has {} bytes, but what is allowed is 1 to {}", id, token.size(), kLongestToken));
    if (valid_utf8(token) != token) throw Error(fmt::format("token {} ('{}') is not UTF-8", id, valid_utf8(token)));
    if (!v.scores.empty() && !std::isfinite(v.scores[id]))
      throw Error(fmt::format("the score of token {} ('{}') is not finite", id, token));
    if (v.types[id] < Type::kNormal || v.types[id] > Type::kByte)
      throw Error(fmt::format("the type of token {} ('{}') is {}, not from 1 to 6", id, token, int(v.types[id])));
    if (v.types[id] == Type::kByte && byte_of(token) < 0) throw Error(fmt::format("token {} ('{}') is no byte", id, token));
    if (v.types[id] != Type::kNormal) continue;
    const auto [first, unique] = ids.emplace(token, int32_t(id));
    if (!unique) throw Error(fmt::format("tokens {} and {} are both '{}'", first->second, id, token));
  }
  for (const AddedToken& token : v.added) check_id(v, token.id, "added token");
  for (const int32_t id : v.frame.before) check_id(v, id, "the frame's token");
  for (const int32_t id : v.frame.after) check_id(v, id, "the frame's token");
  if (v.end != -1) check_id(v, v.end, "the end token");
  return ids;
}

/// Merges of all pairs that are a token together; those of equal scores have one rank.
std::vector<std::pair<BpeMerge, uint32_t>> merges_of_scores(const SentencePieceVocabulary& v, const Ids& ids) {
  std::vector<int32_t> order(v.tokens.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return v.scores[size_t(a)] > v.scores[size_t(b)]; });
  std::vector<std::pair<BpeMerge, uint32_t>> merges;
  uint32_t rank = 0;
  for (size_t i = 0; i < order.size(); ++i) {
    const size_t id = size_t(order[i]);
    if (i > 0 && v.scores[id] != v.scores[size_t(order[i - 1])]) ++rank;
    if (v.types[id] != Type::kNormal) continue;
    const std::string_view token = v.tokens[id];
    for (size_t at = utf8_step(token, 0).bytes; at < token.size(); at += utf8_step(token, at).bytes) {
      const auto left = ids.find(token.substr(0, at)), right = ids.find(token.substr(at));
      if (left != ids.end() && right != ids.end()) merges.push_back({{left->second, right->second, int32_t(id)}, rank});
    }
  }
  return merges;
}

std::vector<std::pair<BpeMerge, uint32_t>> ranked_merges(const SentencePieceVocabulary& v, const Ids& ids) {
  if (!v.scores.empty()) return merges_of_scores(v, ids);
  std::vector<std::pair<BpeMerge, uint32_t>> merges;
  for (size_t rank = 0; rank < v.merges.size(); ++rank) {
    const BpeMerge& merge = v.merges[rank];
    for (const int32_t id : {merge.left, merge.right, merge.merged}) check_id(v, id, "a merge's token");
    if (v.tokens[size_t(merge.merged)] != v.tokens[size_t(merge.left)] + v.tokens[size_t(merge.right)])
      throw Error(fmt::format("merge {} of '{}' and '{}' makes '{}'", rank, v.tokens[size_t(merge.left)], v.tokens[size_t(merge.right)],
                              v.tokens[size_t(merge.merged)]));
    merges.push_back({merge, uint32_t(rank)});
  }
  return merges;
}

/// Words: a run of spaces and what follows up to the next; or the whole text, where tokens cross that.
class WordRule final : public PieceRule {
 public:
  WordRule(std::string space, bool words) : PieceRule(""), space_(std::move(space)), words_(words) {}

  void split(std::string_view text, const Visit& visit) const override {
    for (size_t begin = 0; begin < text.size();) {
      const size_t end = cut(text, begin + 1);
      visit(text.substr(begin, end - begin));
      begin = end;
    }
  }

  size_t cut(std::string_view text, size_t from) const override {
    if (!words_) return text.size();
    for (size_t i = text.find(space_, from); i != std::string_view::npos; i = text.find(space_, i + space_.size()))
      if (i > 0 && !text.substr(0, i).ends_with(space_)) return i;
    return text.size();
  }

 private:
  std::string space_;
  bool words_;
};

class SentencePieceTokenizer final : public Tokenizer {
 public:
  explicit SentencePieceTokenizer(SentencePieceVocabulary vocabulary)
      : v_(std::move(vocabulary)),
        ids_(checked_ids(v_)),
        merges_(0),
        encoder_(rule_of_merges(), [this](auto piece, auto& merger, auto& ids) { encode_piece(piece, merger, ids); }) {
    bytes_.fill(-1);
    for (size_t id = 0; id < v_.tokens.size(); ++id) {
      if (v_.types[id] == Type::kUnknown) unknown_ = int32_t(id);
      if (v_.types[id] == Type::kUserDefined) added_[0].add(v_.tokens[id], {int32_t(id)});
      if (v_.types[id] != Type::kByte) continue;
      int32_t& byte = bytes_[size_t(byte_of(v_.tokens[id]))];
      if (byte >= 0) throw Error(fmt::format("tokens {} and {} are both '{}'", byte, id, v_.tokens[id]));
      byte = int32_t(id);
    }
    for (const AddedToken& token : v_.added) {
      const std::string& text = v_.tokens[size_t(token.id)];
      added_[token.normalized].add(token.normalized ? normalized(text) : text, token);
    }
  }

  std::string kind() const override { return "sentencepiece"; }
  int64_t size() const override { return int64_t(v_.tokens.size()); }
  int32_t end() const override { return v_.end; }
  TokenFrame frame() const override { return v_.frame; }
  bool drops_first_space() const override { return v_.prefix_space; }
  std::string to_json() const override { return sentencepiece_json(v_); }

  std::vector<int32_t> encode(std::string_view text) const override {
    std::vector<int32_t> ids;
    const auto take = [&](int32_t id) { ids.push_back(id); };
    added_[0].split(text, [&](std::string_view between) {
      added_[1].split(normalized(between), [&](std::string_view part) { encoder_.encode(part, ids); }, take);
    }, take);
    return ids;
  }

  void append(std::string& text, int32_t id) const override {
    if (id < 0 || id >= size())
      throw Error(fmt::format("[tokenizer] token id must be from 0 to {}, but is {}", size() - 1, id));
    const std::string& token = v_.tokens[size_t(id)];
    if (v_.types[size_t(id)] == Type::kControl) return;
    if (v_.types[size_t(id)] == Type::kByte) {
      text += char(byte_of(token));
      return;
    }
    for (size_t i = 0; i < token.size();) {
      const bool space = std::string_view(token).substr(i).starts_with(v_.space);
      text += space ? ' ' : token[i];
      i += space ? v_.space.size() : 1;
    }
  }

 private:
  /// Fills the table of merges; the rule that they allow.
  PieceRulePointer rule_of_merges() {
    const auto merges = ranked_merges(v_, ids_);
    merges_ = MergeTable(merges.size());
    // an unknown character before a space must not be fused with it
    bool words = ids_.contains(v_.space);
    for (const auto& [merge, rank] : merges) {
      if (!merges_.insert(merge.left, merge.right, rank, merge.merged))
        throw Error(fmt::format("the merge of '{}' and '{}' is there twice", v_.tokens[size_t(merge.left)],
                                v_.tokens[size_t(merge.right)]));
      if (v_.tokens[size_t(merge.right)].starts_with(v_.space) && !v_.tokens[size_t(merge.left)].ends_with(v_.space)) words = false;
    }
    return std::make_shared<WordRule>(v_.space, words);
  }

  /// A space put first, and spaces as the tokens have them.
  std::string normalized(std::string_view text) const {
    std::string result;
    result.reserve(text.size() + text.size() / 2);
    if (v_.prefix_space) result += v_.space;
    for (size_t begin = 0; begin < text.size();) {
      const size_t end = std::min(text.find(' ', begin), text.size());
      result += text.substr(begin, end - begin);
      if (end < text.size()) result += v_.space;
      begin = end + 1;
    }
    return result;
  }

  void encode_piece(std::string_view piece, PieceMerger& merger, std::vector<int32_t>& ids) const {
    bool was_unknown = false;
    for (size_t i = 0; i < piece.size();) {
      const std::string_view character = piece.substr(i, utf8_step(piece, i).bytes);
      i += character.size();
      const auto known = ids_.find(character);
      const bool bytes = std::all_of(character.begin(), character.end(), [&](char c) { return bytes_[uint8_t(c)] >= 0; });
      const bool unknown = known == ids_.end() && !bytes;
      if (known != ids_.end()) {
        merger.add(known->second);
      } else if (bytes) {
        for (const char c : character) merger.add(bytes_[uint8_t(c)]);
      } else if (unknown_ >= 0 && !(was_unknown && v_.fuse_unknown)) {
        merger.add(unknown_);
      }
      was_unknown = unknown;
    }
    merger.merge(merges_, ids);
  }

  SentencePieceVocabulary v_;
  Ids ids_;  // of tokens that merge
  MergeTable merges_;
  PieceEncoder encoder_;
  std::array<AddedTokens, 2> added_;  // those found in the text as it is, then those found as normalized
  std::array<int32_t, 256> bytes_;
  int32_t unknown_ = -1;
};

}  // namespace

TokenizerPointer sentencepiece_tokenizer(SentencePieceVocabulary vocabulary) {
  return std::make_shared<SentencePieceTokenizer>(std::move(vocabulary));
}

TokenizerPointer sentencepiece_tokenizer_of(const std::filesystem::path& file, SentencePieceVocabulary vocabulary) {
  try {
    return sentencepiece_tokenizer(std::move(vocabulary));
  } catch (const Error& error) {
    throw FileError(fmt::format("cannot use the tokenizer '{}': {}", file.string(), error.what()));
  }
}

}  // namespace hedgehog

#include "train/tokenizer_bpe.h"

#include <fmt/core.h>

#include <unordered_map>

#include "core/error.h"
#include "train/piece_encoder.h"
#include "train/unicode.h"

namespace hedgehog {

namespace {

constexpr size_t kLargestVocabulary = size_t{1} << 24;
constexpr std::string_view kEnds[] = {kEndOfText, "<|end_of_text|>"};  // the first that is there

/// A token for a message.
std::string quoted(const std::string& token) { return fmt::format("'{}'", visible_bytes(token)); }

/// Checks the tokens; the ids of the 256 bytes, -1 for those that are not there.
std::array<int32_t, 256> checked_bytes(const BpeVocabulary& v) {
  if (v.tokens.empty() || v.tokens.size() > kLargestVocabulary)
    throw Error(fmt::format("a vocabulary has 1 to {} tokens, but this one {}", kLargestVocabulary, v.tokens.size()));
  std::array<int32_t, 256> bytes;
  bytes.fill(-1);
  std::vector<bool> added(v.tokens.size());
  for (const AddedToken& token : v.added) {
    if (token.id < 0 || size_t(token.id) >= added.size()) throw Error(fmt::format("added token {} is out of range", token.id));
    added[size_t(token.id)] = true;
  }
  for (const std::vector<int32_t>* framing : {&v.frame.before, &v.frame.after})
    for (const int32_t id : *framing)
      if (id < 0 || size_t(id) >= added.size() || !added[size_t(id)]) throw Error(fmt::format("the frame has {}, no added token", id));
  std::unordered_map<std::string_view, size_t> ids[2];
  for (size_t id = 0; id < v.tokens.size(); ++id) {
    const std::string& token = v.tokens[id];
    if (token.empty()) throw Error(fmt::format("token {} is empty or its id is not there", id));
    const auto [first, unique] = ids[added[id]].emplace(token, id);
    if (!unique) throw Error(fmt::format("tokens {} and {} are both {}", first->second, id, quoted(token)));
    if (token.size() == 1 && (!added[id] || bytes[uint8_t(token[0])] < 0)) bytes[uint8_t(token[0])] = int32_t(id);
  }
  return bytes;
}

/// Checks the merges and that every token can come out of them; the table of merges.
MergeTable checked_merges(const BpeVocabulary& v) {
  const auto known = [&](int32_t id) { return id >= 0 && size_t(id) < v.tokens.size(); };
  std::vector<bool> made(v.tokens.size());
  MergeTable table(v.merges.size());
  for (size_t rank = 0; rank < v.merges.size(); ++rank) {
    const auto [left, right, merged] = v.merges[rank];
    if (!known(left) || !known(right) || !known(merged)) throw Error(fmt::format("merge {} has an id out of range", rank));
    const std::string &a = v.tokens[size_t(left)], &b = v.tokens[size_t(right)];
    if (v.tokens[size_t(merged)] != a + b)
      throw Error(fmt::format("merge {} of {} and {} makes {}", rank, quoted(a), quoted(b), quoted(v.tokens[size_t(merged)])));
    if (!table.insert(left, right, uint32_t(rank), merged))
      throw Error(fmt::format("merge {} of {} and {} is there twice", rank, quoted(a), quoted(b)));
    made[size_t(merged)] = true;
  }
  for (const AddedToken& token : v.added) made[size_t(token.id)] = true;
  for (size_t id = 0; id < v.tokens.size() && !v.ignore_merges; ++id) {
    if (!made[id] && v.tokens[id].size() > 1)
      throw Error(fmt::format("token {} ({}) is made by no merge; are merges missing?", id, quoted(v.tokens[id])));
  }
  return table;
}

class BpeTokenizer final : public Tokenizer {
 public:
  explicit BpeTokenizer(BpeVocabulary vocabulary)
      : vocabulary_(std::move(vocabulary)),
        bytes_(checked_bytes(vocabulary_)),
        merges_(checked_merges(vocabulary_)),
        encoder_(piece_rule(vocabulary_.pattern),
                 [this](std::string_view piece, PieceMerger& merger, std::vector<int32_t>& ids) { encode_piece(piece, merger, ids); }) {
    if (vocabulary_.compose) need_unicode();
    std::vector<bool> is_added(vocabulary_.tokens.size());
    std::unordered_map<std::string_view, int32_t> by_text;
    for (const AddedToken& token : vocabulary_.added) {
      const std::string& text = vocabulary_.tokens[size_t(token.id)];
      added_[token.normalized].add(token.normalized && vocabulary_.compose ? composed(text) : text, token);
      is_added[size_t(token.id)] = true;
      by_text.emplace(text, token.id);
    }
    for (const std::string_view text : kEnds)
      if (const auto found = by_text.find(text); found != by_text.end() && end_ < 0) end_ = found->second;
    for (size_t id = 0; id < is_added.size() && vocabulary_.ignore_merges; ++id)
      if (!is_added[id]) whole_.emplace(vocabulary_.tokens[id], int32_t(id));
  }

  std::string kind() const override { return "bpe"; }
  int64_t size() const override { return int64_t(vocabulary_.tokens.size()); }
  int32_t end() const override { return end_; }
  TokenFrame frame() const override { return vocabulary_.frame; }
  std::string to_json() const override { return bpe_json(vocabulary_); }

  std::vector<int32_t> encode(std::string_view text) const override {
    std::vector<int32_t> ids;
    const auto take = [&](int32_t id) { ids.push_back(id); };
    const auto encode_between = [&](std::string_view between) { encode_part(between, ids); };
    added_[0].split(text, [&](std::string_view between) {
      vocabulary_.compose ? added_[1].split(composed(between), encode_between, take) : added_[1].split(between, encode_between, take);
    }, take);
    return ids;
  }

  void append(std::string& text, int32_t id) const override {
    if (id < 0 || id >= size())
      throw Error(fmt::format("[tokenizer] token id must be from 0 to {}, but is {}", size() - 1, id));
    text += vocabulary_.tokens[size_t(id)];
  }

 private:
  /// Text without added tokens.
  void encode_part(std::string_view text, std::vector<int32_t>& ids) const {
    if (!vocabulary_.prefix_space || text[0] == ' ') return encoder_.encode(text, ids);
    std::string padded(1, ' ');
    padded += text;
    encoder_.encode(padded, ids);
  }

  void encode_piece(std::string_view piece, PieceMerger& merger, std::vector<int32_t>& ids) const {
    if (const auto found = whole_.find(piece); found != whole_.end()) return ids.push_back(found->second);
    for (const char c : piece)
      if (const int32_t id = bytes_[uint8_t(c)]; id >= 0) merger.add(id);
    merger.merge(merges_, ids);
  }

  BpeVocabulary vocabulary_;
  std::array<int32_t, 256> bytes_;
  MergeTable merges_;
  PieceEncoder encoder_;
  std::array<AddedTokens, 2> added_;  // those found in the text as it is, then those found as normalized
  std::unordered_map<std::string_view, int32_t> whole_;  // pieces that are tokens, for ignore_merges
  int32_t end_ = -1;
};

}  // namespace

TokenizerPointer bpe_tokenizer(BpeVocabulary vocabulary) { return std::make_shared<BpeTokenizer>(std::move(vocabulary)); }

TokenizerPointer bpe_tokenizer_of(const std::filesystem::path& file, BpeVocabulary vocabulary) {
  try {
    return bpe_tokenizer(std::move(vocabulary));
  } catch (const Error& error) {
    throw FileError(fmt::format("cannot use the tokenizer '{}': {}", file.string(), error.what()));
  }
}

}  // namespace hedgehog

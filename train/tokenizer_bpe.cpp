#include "train/tokenizer_bpe.h"

#include <fmt/core.h>

#include <algorithm>
#include <exception>
#include <mutex>
#include <unordered_map>

#include "core/error.h"
#include "core/parallel.h"
#include "ops/cpu.h"
#include "train/bpe_encoder.h"
#include "train/utf8.h"

namespace hedgehog {

namespace {

constexpr size_t kLargestVocabulary = size_t{1} << 24;
constexpr size_t kTextOfOneThread = size_t{1} << 16;  // bytes

/// A token for a message.
std::string quoted(const std::string& token) { return fmt::format("'{}'", visible_bytes(token)); }

/// Checks all that bpe_tokenizer refuses; the ids of the 256 bytes.
std::array<int32_t, 256> checked_bytes(const BpeVocabulary& v) {
  if (v.tokens.empty() || v.tokens.size() > kLargestVocabulary)
    throw Error(fmt::format("a vocabulary has 256 to {} tokens, but this one {}", kLargestVocabulary, v.tokens.size()));
  std::array<int32_t, 256> bytes;
  bytes.fill(-1);
  std::vector<bool> added(v.tokens.size());
  for (const BpeAddedToken& token : v.added) {
    if (token.id < 0 || size_t(token.id) >= added.size()) throw Error(fmt::format("added token {} is out of range", token.id));
    added[size_t(token.id)] = true;
  }
  std::unordered_map<std::string_view, size_t> ids[2];
  for (size_t id = 0; id < v.tokens.size(); ++id) {
    const std::string& token = v.tokens[id];
    if (token.empty()) throw Error(fmt::format("token {} is empty or its id is not there", id));
    const auto [first, unique] = ids[added[id]].emplace(token, id);
    if (!unique) throw Error(fmt::format("tokens {} and {} are both {}", first->second, id, quoted(token)));
    if (token.size() == 1 && (!added[id] || bytes[uint8_t(token[0])] < 0)) bytes[uint8_t(token[0])] = int32_t(id);
  }
  for (size_t byte = 0; byte < 256; ++byte)
    if (bytes[byte] < 0) throw Error(fmt::format("no token is the byte {} ({})", byte, quoted(std::string(1, char(byte)))));
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
  for (const BpeAddedToken& token : v.added) made[size_t(token.id)] = true;
  for (size_t id = 0; id < v.tokens.size(); ++id) {
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
        rule_(piece_rule(vocabulary_.pattern)) {
    for (const BpeAddedToken& token : vocabulary_.added) {
      const std::string& text = vocabulary_.tokens[size_t(token.id)];
      added_[uint8_t(text[0])].push_back(token.id);
      if (text == kEndOfText) end_ = token.id;
    }
    for (std::vector<int32_t>& ids : added_) {
      std::sort(ids.begin(), ids.end(), [&](int32_t left, int32_t right) {
        return vocabulary_.tokens[size_t(left)].size() > vocabulary_.tokens[size_t(right)].size();
      });
    }
  }

  std::string kind() const override { return "bpe"; }
  int64_t size() const override { return int64_t(vocabulary_.tokens.size()); }
  int32_t end() const override { return end_; }
  std::string to_json() const override { return bpe_json(vocabulary_); }

  std::vector<int32_t> encode(std::string_view text) const override {
    std::vector<int32_t> ids;
    size_t begin = 0;
    for (size_t i = 0; i < text.size();) {
      const int32_t id = added_at(text, i);
      if (id < 0) {
        ++i;
        continue;
      }
      encode_pieces(text.substr(begin, i - begin), ids);
      ids.push_back(id);
      i += vocabulary_.tokens[size_t(id)].size();
      begin = i;
    }
    encode_pieces(text.substr(begin), ids);
    return ids;
  }

  void append(std::string& text, int32_t id) const override {
    if (id < 0 || id >= size())
      throw Error(fmt::format("[tokenizer] token id must be from 0 to {}, but is {}", size() - 1, id));
    text += vocabulary_.tokens[size_t(id)];
  }

 private:
  /// What a thread works with; pieces stay known from one text to the next.
  struct Worker {
    PieceCache cache;
    PieceMerger merger;
  };

  /// The longest added token at a position, or -1.
  int32_t added_at(std::string_view text, size_t i) const {
    for (const int32_t id : added_[uint8_t(text[i])])
      if (text.substr(i).starts_with(vocabulary_.tokens[size_t(id)])) return id;
    return -1;
  }

  void encode_pieces(std::string_view text, std::vector<int32_t>& ids) const {
    const size_t parts = std::min(size_t(thread_count()), text.size() / kTextOfOneThread);
    if (parts < 2) return encode_part(text, ids);
    std::vector<size_t> cuts(parts + 1, text.size());
    cuts[0] = 0;
    for (size_t part = 1; part < parts; ++part) cuts[part] = rule_->cut(text, std::max(cuts[part - 1], text.size() * part / parts));
    std::vector<std::vector<int32_t>> results(parts);
    std::vector<std::exception_ptr> errors(parts);
    parallel_tasks(int64_t(parts), [&](int64_t part) {
      const size_t begin = cuts[size_t(part)], end = cuts[size_t(part) + 1];
      try {
        encode_part(text.substr(begin, end - begin), results[size_t(part)]);
      } catch (...) {
        errors[size_t(part)] = std::current_exception();
      }
    });
    for (const std::exception_ptr& error : errors)
      if (error) std::rethrow_exception(error);
    for (const std::vector<int32_t>& result : results) ids.insert(ids.end(), result.begin(), result.end());
  }

  void encode_part(std::string_view text, std::vector<int32_t>& ids) const {
    if (text.empty()) return;
    std::unique_ptr<Worker> worker = take_worker();
    const auto encode_piece = [&](std::string_view piece, std::vector<int32_t>& to) {
      worker->merger.merge(piece, bytes_.data(), merges_, to);
    };
    rule_->split(text, [&](std::string_view piece) { worker->cache.append(piece, ids, encode_piece); });
    const std::lock_guard lock(mutex_);
    workers_.push_back(std::move(worker));
  }

  std::unique_ptr<Worker> take_worker() const {
    const std::lock_guard lock(mutex_);
    if (workers_.empty()) return std::make_unique<Worker>();
    std::unique_ptr<Worker> worker = std::move(workers_.back());
    workers_.pop_back();
    return worker;
  }

  BpeVocabulary vocabulary_;
  std::array<int32_t, 256> bytes_;
  MergeTable merges_;
  PieceRulePointer rule_;
  std::array<std::vector<int32_t>, 256> added_;  // by first byte, longest first
  int32_t end_ = -1;
  mutable std::mutex mutex_;
  mutable std::vector<std::unique_ptr<Worker>> workers_;  // idle ones
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

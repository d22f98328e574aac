#include <fmt/core.h>

#include <algorithm>
#include <exception>
#include <limits>
#include <queue>
#include <unordered_map>
#include <unordered_set>

#include "core/error.h"
#include "core/parallel.h"
#include "ops/cpu.h"
#include "train/bpe_encoder.h"
#include "train/tokenizer_bpe.h"

namespace hedgehog {

namespace {

constexpr size_t kLongestWord = 256;                    // bytes
constexpr size_t kTextOfOneThread = size_t{1} << 20;    // bytes
constexpr int64_t kRarest = 2;                          // a pair that occurs less often is left

using Counts = std::unordered_map<std::string_view, int64_t>;

void count_pieces(std::string_view text, const PieceRule& rule, Counts& counts) {
  rule.split(text, [&](std::string_view piece) {
    for (size_t i = 0; i < piece.size(); i += kLongestWord) ++counts[piece.substr(i, kLongestWord)];
  });
}

/// Counts of the pieces; sums, so that the parts that threads take do not matter.
Counts counted(std::string_view text, const PieceRule& rule) {
  const size_t parts = std::clamp<size_t>(text.size() / kTextOfOneThread, 1, size_t(thread_count()));
  std::vector<size_t> cuts(parts + 1, text.size());
  cuts[0] = 0;
  for (size_t part = 1; part < parts; ++part) cuts[part] = rule.cut(text, std::max(cuts[part - 1], text.size() * part / parts));
  std::vector<Counts> counts(parts);
  std::vector<std::exception_ptr> errors(parts);
  parallel_tasks(int64_t(parts), [&](int64_t part) {
    try {
      const size_t begin = cuts[size_t(part)], end = cuts[size_t(part) + 1];
      count_pieces(text.substr(begin, end - begin), rule, counts[size_t(part)]);
    } catch (...) {
      errors[size_t(part)] = std::current_exception();
    }
  });
  for (const std::exception_ptr& error : errors)
    if (error) std::rethrow_exception(error);
  for (size_t part = 1; part < parts; ++part)
    for (const auto& [piece, count] : counts[part]) counts[0][piece] += count;
  return std::move(counts[0]);
}

struct PairHash {
  size_t operator()(uint64_t key) const { return size_t((key ^ key >> 29) * 0x9e3779b97f4a7c15u); }
};

/// Learns merges. Pair counts are kept up to date; the queue holds counts of the past too, which are dropped or put right
/// when they come up.
class Trainer {
 public:
  Trainer(const Counts& counts, BpeVocabulary& vocabulary) : vocabulary_(vocabulary), tokens_(vocabulary.tokens.begin(), vocabulary.tokens.end()) {
    tokens_.emplace(kEndOfText);
    std::array<int32_t, 256> bytes;
    for (size_t id = 0; id < 256; ++id) bytes[gpt2_byte_order()[id]] = int32_t(id);
    for (const auto& [piece, count] : counts) {
      if (piece.size() < 2) continue;
      Word word{{}, count};
      for (const char c : piece) word.ids.push_back(bytes[uint8_t(c)]);
      for (size_t i = 0; i + 1 < word.ids.size(); ++i) add(pair_key(word.ids[i], word.ids[i + 1]), count, uint32_t(words_.size()));
      words_.push_back(std::move(word));
    }
    for (const auto& [key, pair] : pairs_) queue_.push({pair.count, key});
  }

  /// Merges until there are so many tokens, or no pair is worth one.
  void run(size_t tokens) {
    while (vocabulary_.tokens.size() < tokens && !queue_.empty()) {
      const Candidate best = queue_.top();
      queue_.pop();
      const auto found = pairs_.find(best.key);
      if (found == pairs_.end()) continue;
      if (found->second.count != best.count) {
        if (found->second.count < best.count) queue_.push({found->second.count, best.key});
        continue;
      }
      if (best.count < kRarest) return;
      const int32_t left = int32_t(best.key >> 32), right = int32_t(uint32_t(best.key));
      std::string token = vocabulary_.tokens[size_t(left)] + vocabulary_.tokens[size_t(right)];
      if (!tokens_.insert(token).second) continue;
      vocabulary_.merges.push_back({left, right, int32_t(vocabulary_.tokens.size())});
      vocabulary_.tokens.push_back(std::move(token));
      apply(vocabulary_.merges.back());
    }
  }

 private:
  struct Word {
    std::vector<int32_t> ids;
    int64_t count;
  };
  struct Pair {
    int64_t count = 0;
    std::vector<uint32_t> words;  // that have it or had it
  };
  struct Candidate {
    int64_t count;
    uint64_t key;
    bool operator<(const Candidate& other) const { return count != other.count ? count < other.count : key > other.key; }
  };

  void add(uint64_t key, int64_t count, uint32_t word) {
    Pair& pair = pairs_[key];
    pair.count += count;
    if (pair.words.empty() || pair.words.back() != word) pair.words.push_back(word);
  }

  void remove(uint64_t key, int64_t count) { pairs_.find(key)->second.count -= count; }

  void apply(const BpeMerge& merge) {
    const std::vector<uint32_t> words = std::move(pairs_[pair_key(merge.left, merge.right)].words);
    std::unordered_set<uint64_t, PairHash> made;
    for (const uint32_t index : words) {
      Word& word = words_[index];
      std::vector<int32_t> ids;
      for (size_t i = 0; i < word.ids.size(); ++i) {
        const bool here = word.ids[i] == merge.left && i + 1 < word.ids.size() && word.ids[i + 1] == merge.right;
        ids.push_back(here ? merge.merged : word.ids[i]);
        i += here;
      }
      if (ids.size() == word.ids.size()) continue;
      // all pairs of the word are taken out and put back: words are short
      for (size_t i = 0; i + 1 < word.ids.size(); ++i) remove(pair_key(word.ids[i], word.ids[i + 1]), word.count);
      for (size_t i = 0; i + 1 < ids.size(); ++i) {
        const uint64_t key = pair_key(ids[i], ids[i + 1]);
        const bool fresh = ids[i] == merge.merged || ids[i + 1] == merge.merged;
        if (fresh) made.insert(key), add(key, word.count, index);
        else pairs_.find(key)->second.count += word.count;
      }
      word.ids = std::move(ids);
    }
    pairs_.erase(pair_key(merge.left, merge.right));
    for (const uint64_t key : made) queue_.push({pairs_.find(key)->second.count, key});
  }

  BpeVocabulary& vocabulary_;
  std::unordered_set<std::string> tokens_;
  std::vector<Word> words_;
  std::unordered_map<uint64_t, Pair, PairHash> pairs_;
  std::priority_queue<Candidate> queue_;
};

}  // namespace

BpeVocabulary train_bpe(std::string_view text, int64_t vocabulary, const std::string& pattern) {
  if (vocabulary < 257)
    throw UsageError(fmt::format("--vocabulary expects at least 257 for bpe (256 bytes and {}), but got {}", kEndOfText, vocabulary));
  BpeVocabulary v;
  v.pattern = pattern;
  for (const uint8_t byte : gpt2_byte_order()) v.tokens.emplace_back(1, char(byte));
  const PieceRulePointer rule = piece_rule(pattern);
  Trainer(counted(text, *rule), v).run(size_t(vocabulary) - 1);
  v.added.push_back({int32_t(v.tokens.size()), true});
  v.tokens.emplace_back(kEndOfText);
  return v;
}

}  // namespace hedgehog

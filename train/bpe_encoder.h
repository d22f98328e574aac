#pragma once
#include <cstdint>
#include <vector>

namespace hedgehog {

/// A pair of token ids as one number; smaller where the left id is smaller, then the right one.
constexpr uint64_t pair_key(int32_t left, int32_t right) { return uint64_t(uint32_t(left)) << 32 | uint32_t(right); }

/// Merges by pair: open addressing, filled once.
class MergeTable {
 public:
  struct Merge {
    uint64_t key = ~uint64_t{0};
    uint32_t rank = 0;
    int32_t merged = 0;
  };

  /// count  merges to come
  explicit MergeTable(size_t count);
  /// Whether the pair was new.
  bool insert(int32_t left, int32_t right, uint32_t rank, int32_t merged);
  /// Null if the pair does not merge.
  const Merge* find(int32_t left, int32_t right) const;

 private:
  size_t slot_of(uint64_t key) const;

  std::vector<Merge> slots_;
  size_t mask_;
};

/// The merges inside one piece, with room to work in; one a thread. A piece's symbols are added one by one, then merged.
class PieceMerger {
 public:
  /// Adds a symbol to the piece.
  void add(int32_t id);
  /// Appends the ids of the piece, of all pairs the one of the lowest rank merged first, the leftmost of those; then the
  /// piece is empty again. At most n log n steps for n symbols.
  void merge(const MergeTable& table, std::vector<int32_t>& ids);

 private:
  void look_at(const MergeTable& table, uint32_t at);

  static constexpr uint32_t kNone = ~uint32_t{0};
  struct Symbol {
    int32_t id;
    uint32_t previous, next;
    uint32_t rank;   // of the merge with the next symbol, or kNone
    int32_t merged;  // by that merge
  };
  std::vector<Symbol> symbols_;
  std::vector<uint64_t> heap_;  // rank and position of merges, some of them gone
};

}  // namespace hedgehog

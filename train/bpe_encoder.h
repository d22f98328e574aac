#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
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

/// The merges inside one piece, with room to work in; one a thread.
class PieceMerger {
 public:
  /// Appends the ids of a piece. At most n log n steps for n bytes.
  ///
  /// bytes  ids of the 256 bytes
  void merge(std::string_view piece, const int32_t* bytes, const MergeTable& table, std::vector<int32_t>& ids);

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

/// Ids of pieces that were met before, by a hash: one piece a slot.
class PieceCache {
 public:
  /// Appends the ids of a piece, known ones or those that `encode` appends.
  template <typename Encode>
  void append(std::string_view piece, std::vector<int32_t>& ids, const Encode& encode) {
    if (piece.size() > kLongest) return encode(piece, ids);
    Slot& slot = slots_[std::hash<std::string_view>()(piece) % kSlots];
    if (slot.piece != piece) {
      slot.piece = piece;
      slot.ids.clear();
      encode(piece, slot.ids);
    }
    ids.insert(ids.end(), slot.ids.begin(), slot.ids.end());
  }

 private:
  static constexpr size_t kSlots = size_t{1} << 16;
  static constexpr size_t kLongest = 64;  // bytes
  struct Slot {
    std::string piece;
    std::vector<int32_t> ids;
  };
  std::vector<Slot> slots_{kSlots};
};

}  // namespace hedgehog

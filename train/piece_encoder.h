#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "train/bpe_encoder.h"
#include "train/pieces.h"

namespace hedgehog {

/// Ids of pieces that were met before, by a hash: one piece a slot.
class PieceCache {
 public:
  /// Appends the ids of a piece, known ones or those that `encode` appends.
  template <typename Encode>
  void append(std::string_view piece, std::vector<int32_t>& ids, const Encode& encode) {
    if (piece.size() > kLongest) return encode(piece, ids);
    Slot& slot = slots_[std::hash<std::string_view>()(piece) % kSlots];
    if (slot.piece != piece) {
      slot.piece.clear();
      slot.ids.clear();
      encode(piece, slot.ids);
      slot.piece = piece;
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

/// Text to ids, piece by piece, for tokenizers whose tokens do not cross pieces. Keeps a cache of pieces and takes all
/// threads for long texts; the ids depend on neither. Safe to share between threads.
class PieceEncoder {
 public:
  /// Appends the ids of one piece; the merger is the thread's.
  using Encode = std::function<void(std::string_view piece, PieceMerger& merger, std::vector<int32_t>& ids)>;

  PieceEncoder(PieceRulePointer rule, Encode encode) : rule_(std::move(rule)), encode_(std::move(encode)) {}
  /// Appends the ids of a text.
  void encode(std::string_view text, std::vector<int32_t>& ids) const;

 private:
  /// What a thread works with; pieces stay known from one text to the next.
  struct Worker {
    PieceCache cache;
    PieceMerger merger;
  };
  void encode_part(std::string_view text, std::vector<int32_t>& ids) const;
  std::unique_ptr<Worker> take_worker() const;

  PieceRulePointer rule_;
  Encode encode_;
  mutable std::mutex mutex_;
  mutable std::vector<std::unique_ptr<Worker>> workers_;  // idle ones
};

}  // namespace hedgehog

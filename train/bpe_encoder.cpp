#include "train/bpe_encoder.h"

#include <algorithm>
#include <bit>
#include <functional>

#include "core/error.h"

namespace hedgehog {

MergeTable::MergeTable(size_t count) : slots_(std::bit_ceil(2 * count + 2)), mask_(slots_.size() - 1) {}

size_t MergeTable::slot_of(uint64_t key) const {
  // multiplication by 2^64 / golden ratio mixes into the high bits
  size_t slot = size_t((key * 0x9e3779b97f4a7c15u) >> 32) & mask_;
  while (slots_[slot].key != key && slots_[slot].key != ~uint64_t{0}) slot = (slot + 1) & mask_;
  return slot;
}

bool MergeTable::insert(int32_t left, int32_t right, uint32_t rank, int32_t merged) {
  Merge& merge = slots_[slot_of(pair_key(left, right))];
  if (merge.key != ~uint64_t{0}) return false;
  merge = {pair_key(left, right), rank, merged};
  return true;
}

const MergeTable::Merge* MergeTable::find(int32_t left, int32_t right) const {
  const uint64_t key = pair_key(left, right);
  const Merge& merge = slots_[slot_of(key)];
  return merge.key == key ? &merge : nullptr;
}

void PieceMerger::look_at(const MergeTable& table, uint32_t at) {
  Symbol& symbol = symbols_[at];
  symbol.rank = kNone;
  if (symbol.next == kNone) return;
  const MergeTable::Merge* merge = table.find(symbol.id, symbols_[symbol.next].id);
  if (merge == nullptr) return;
  symbol.rank = merge->rank;
  symbol.merged = merge->merged;
  heap_.push_back(uint64_t(merge->rank) << 32 | at);
  std::push_heap(heap_.begin(), heap_.end(), std::greater<>());
}

void PieceMerger::add(int32_t id) {
  if (symbols_.size() >= kNone - 1) throw Error("[tokenizer] a piece of text without a break is longer than 4 GiB");
  const uint32_t i = uint32_t(symbols_.size());
  symbols_.push_back({id, i - 1, i + 1, kNone, 0});
}

void PieceMerger::merge(const MergeTable& table, std::vector<int32_t>& ids) {
  const uint32_t count = uint32_t(symbols_.size());
  if (count == 0) return;
  symbols_.back().next = kNone;
  heap_.clear();
  for (uint32_t i = 0; i < count; ++i) look_at(table, i);
  while (!heap_.empty()) {
    std::pop_heap(heap_.begin(), heap_.end(), std::greater<>());
    const uint32_t rank = uint32_t(heap_.back() >> 32), at = uint32_t(heap_.back());
    heap_.pop_back();
    Symbol& symbol = symbols_[at];
    // a neighbour was merged meanwhile
    if (symbol.rank != rank) continue;
    Symbol& gone = symbols_[symbol.next];
    symbol.id = symbol.merged;
    symbol.next = gone.next;
    gone.rank = kNone;
    if (symbol.next != kNone) symbols_[symbol.next].previous = at;
    look_at(table, at);
    if (at > 0) look_at(table, symbol.previous);
  }
  for (uint32_t i = 0; i != kNone; i = symbols_[i].next) ids.push_back(symbols_[i].id);
  symbols_.clear();
}

}  // namespace hedgehog

#include "train/piece_encoder.h"

#include <algorithm>
#include <exception>

#include "core/parallel.h"
#include "ops/cpu.h"

namespace hedgehog {

namespace {

constexpr size_t kTextOfOneThread = size_t{1} << 16;  // bytes

}  // namespace

void PieceEncoder::encode(std::string_view text, std::vector<int32_t>& ids) const {
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

void PieceEncoder::encode_part(std::string_view text, std::vector<int32_t>& ids) const {
  if (text.empty()) return;
  std::unique_ptr<Worker> worker = take_worker();
  const auto encode_piece = [&](std::string_view piece, std::vector<int32_t>& to) { encode_(piece, worker->merger, to); };
  rule_->split(text, [&](std::string_view piece) { worker->cache.append(piece, ids, encode_piece); });
  const std::lock_guard lock(mutex_);
  workers_.push_back(std::move(worker));
}

std::unique_ptr<PieceEncoder::Worker> PieceEncoder::take_worker() const {
  const std::lock_guard lock(mutex_);
  if (workers_.empty()) return std::make_unique<Worker>();
  std::unique_ptr<Worker> worker = std::move(workers_.back());
  workers_.pop_back();
  return worker;
}

}  // namespace hedgehog

#include "train/text_batches.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "core/error.h"

namespace hedgehog {

void check_text_length(const GptOptions& model, const TokenFrame& frame, std::int64_t length) {
  if (length > model.longest())
    throw UsageError(fmt::format("--length={} exceeds the {} tokens that the model has positions for", length, model.longest()));
  const auto frames = std::int64_t(frame.before.size() + frame.after.size());
  if (length > 0 && length <= frames)
    throw UsageError(fmt::format("--length={} leaves no room for a text: {} tokens stand around it", length, frames));
}

FramedText frame_text(const Tokenizer& tokenizer, const std::string& text, std::int64_t length) {
  const TokenFrame frame = tokenizer.frame();
  std::vector<std::int32_t> own = tokenizer.encode(text);
  const std::size_t all = std::size_t(length), around = frame.before.size() + frame.after.size(), room = all - std::min(all, around);
  FramedText framed{frame.before, own.size() > room};
  if (framed.cut) own.resize(room);
  framed.ids.insert(framed.ids.end(), own.begin(), own.end());
  framed.ids.insert(framed.ids.end(), frame.after.begin(), frame.after.end());
  return framed;
}

Batch padded_batch(std::span<const FramedText> texts, std::span<const std::size_t> which, std::int64_t time) {
  const std::size_t T = std::size_t(time), size = which.size() * T;
  Batch batch{.rows = std::int64_t(which.size()), .time = time, .tokens = {}, .targets = {}, .document_start = {}};
  batch.tokens.assign(size, 0);
  batch.targets.assign(size, kIgnoredTarget);
  batch.document_start.assign(size, 0);
  for (std::size_t b = 0; b < which.size(); ++b) {
    const std::vector<std::int32_t>& ids = texts[which[b]].ids;
    std::copy(ids.begin(), ids.end(), batch.tokens.begin() + std::ptrdiff_t(b * T));
    std::fill(batch.document_start.begin() + std::ptrdiff_t(b * T + ids.size()), batch.document_start.begin() + std::ptrdiff_t((b + 1) * T),
              std::int32_t(ids.size()));
  }
  return batch;
}

void by_length(std::span<const FramedText> texts, std::int64_t batch, const std::function<void(std::span<const std::size_t>)>& visit) {
  std::vector<std::size_t> order(texts.size());
  std::iota(order.begin(), order.end(), std::size_t(0));
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return texts[a].ids.size() < texts[b].ids.size(); });
  for (std::size_t first = 0; first < order.size(); first += std::size_t(batch))
    visit(std::span(order).subspan(first, std::min(std::size_t(batch), order.size() - first)));
}

std::int64_t longest_of(std::span<const FramedText> texts, std::span<const std::size_t> which) {
  std::size_t longest = 0;
  for (const std::size_t i : which) longest = std::max(longest, texts[i].ids.size());
  return std::int64_t(longest);
}

}  // namespace hedgehog

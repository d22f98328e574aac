#pragma once
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "nn/gpt.h"
#include "train/data.h"
#include "train/tokenizer.h"

namespace hedgehog {

/// Refuses a --length that the model has no positions for, or that the frame fills; 0: none was asked for. Throws UsageError.
void check_text_length(const GptOptions& model, const TokenFrame& frame, std::int64_t length);

/// The ids of a text with those around it.
struct FramedText {
  std::vector<std::int32_t> ids;
  bool cut = false;  // the text has more
};

/// The text's ids and its frame, at most `length` together: the text is cut, not the frame behind it.
FramedText frame_text(const Tokenizer& tokenizer, const std::string& text, std::int64_t length);

/// A row a text, padded to `time` tokens with 0; the padding is a document of its own. No targets.
Batch padded_batch(std::span<const FramedText> texts, std::span<const std::size_t> which, std::int64_t time);

/// Calls `visit` with the numbers of texts of like length, at most `batch` together, until all have come.
void by_length(std::span<const FramedText> texts, std::int64_t batch, const std::function<void(std::span<const std::size_t>)>& visit);

/// Tokens of the longest of some texts.
std::int64_t longest_of(std::span<const FramedText> texts, std::span<const std::size_t> which);

}  // namespace hedgehog

#include "train/data.h"

#include <fmt/core.h>

#include <algorithm>

#include "core/error.h"
#include "train/utf8.h"

namespace hedgehog {

namespace {

/// Finaliser of splitmix64: a bijection that mixes all bits. Source: Steele, Lea, Flood 2014, as in
/// java.util.SplittableRandom.
uint64_t mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

Batch empty_batch(int64_t rows, int64_t context) {
  if (rows < 1 || context < 1)
    throw Error(fmt::format("[data] a batch needs rows and context of at least 1, got {} and {}", rows, context));
  Batch batch{.rows = rows, .time = context, .tokens = {}, .targets = {}, .document_start = {}};
  const size_t count = size_t(rows) * size_t(context);
  batch.tokens.assign(count, 0);
  batch.targets.assign(count, kIgnoredTarget);
  batch.document_start.assign(count, 0);
  return batch;
}

/// Fills one row from the stream's tokens [begin, begin + context); what lies beyond the end stays padding.
void fill_row(Batch& batch, int64_t row, const TokenStream& stream, int64_t begin) {
  const int64_t count = int64_t(stream.tokens.size());
  const int64_t length = std::min(batch.time, count - begin);
  const size_t base = size_t(row * batch.time);
  const int32_t* tokens = stream.tokens.data() + begin;
  std::copy_n(tokens, length, batch.tokens.begin() + std::ptrdiff_t(base));
  const int64_t targets = std::min(batch.time, count - begin - 1);
  std::copy_n(tokens + 1, targets, batch.targets.begin() + std::ptrdiff_t(base));
  batch.valid += targets;

  const auto& starts = stream.document_starts;
  auto next = std::upper_bound(starts.begin(), starts.end(), begin);
  int32_t current = 0;
  for (int64_t t = 0; t < batch.time; ++t) {
    if (next != starts.end() && *next == begin + t && t < length) {
      current = int32_t(t);
      ++next;
    }
    batch.document_start[base + size_t(t)] = current;
  }
}

Batch random_batch(const TokenStream& stream, uint64_t seed, int64_t step, int64_t first_row, int64_t rows,
                   int64_t context) {
  Batch batch = empty_batch(rows, context);
  const int64_t positions = std::max<int64_t>(1, int64_t(stream.tokens.size()) - context);
  for (int64_t row = 0; row < rows; ++row) {
    fill_row(batch, row, stream, row_offset(seed, step, first_row + row, positions));
  }
  return batch;
}

/// Encodes text[begin, end) document by document.
TokenStream encode_part(const TextSource& source, size_t begin, size_t end, const Tokenizer& tokenizer) {
  TokenStream stream;
  const std::string_view text = source.text;
  auto next = std::upper_bound(source.document_starts.begin(), source.document_starts.end(), begin);
  for (size_t position = begin; position < end;) {
    const size_t stop = next == source.document_starts.end() ? end : std::min(*next, end);
    const std::vector<int32_t> ids = tokenizer.encode(text.substr(position, stop - position));
    if (!ids.empty()) stream.document_starts.push_back(int64_t(stream.tokens.size()));
    stream.tokens.insert(stream.tokens.end(), ids.begin(), ids.end());
    // the document that the split cuts in two does not end there
    const bool ends = stop < end || end == text.size();
    if (ends && !ids.empty() && tokenizer.end() >= 0) stream.tokens.push_back(tokenizer.end());
    position = stop;
    if (next != source.document_starts.end()) ++next;
  }
  return stream;
}

}  // namespace

int64_t row_offset(uint64_t seed, int64_t step, int64_t row, int64_t count) {
  if (count < 1) throw Error(fmt::format("[data] a row needs at least 1 position, got {}", count));
  const uint64_t hash = mix(mix(mix(seed) ^ uint64_t(step)) ^ uint64_t(row));
  return int64_t(static_cast<unsigned __int128>(hash) * uint64_t(count) >> 64);
}

size_t split_position(std::string_view text, double train_fraction) {
  size_t position = std::min(size_t(double(text.size()) * train_fraction), text.size());
  // at most 3 continuation bytes belong to the character that the cut would halve
  for (int i = 0; i < 3 && position > 0 && position < text.size() && (uint8_t(text[position]) & 0xc0) == 0x80; ++i)
    --position;
  return position;
}

TokenDataset::TokenDataset(TokenStream train, TokenStream validation)
    : train_(std::move(train)), validation_(std::move(validation)) {
  for (TokenStream* stream : {&train_, &validation_})
    if (stream->document_starts.empty() && !stream->tokens.empty()) stream->document_starts.push_back(0);
}

TokenDataset TokenDataset::from_text(const TextSource& source, const Tokenizer& tokenizer, double train_fraction) {
  const size_t split = split_position(source.text, train_fraction);
  TokenStream train = encode_part(source, 0, split, tokenizer);
  TokenStream validation = encode_part(source, split, source.text.size(), tokenizer);
  for (const auto& [stream, name] : {std::pair(&train, "training"), std::pair(&validation, "validation")}) {
    if (stream->tokens.size() >= 2) continue;
    throw FileError(
        fmt::format("{} is too short: of its {} bytes the {} part gets {} tokens and needs at least 2", source.where,
                    source.text.size(), name, stream->tokens.size()));
  }
  return TokenDataset(std::move(train), std::move(validation));
}

TokenDataset TokenDataset::whole(const TextSource& source, const Tokenizer& tokenizer) {
  TokenStream all = encode_part(source, 0, source.text.size(), tokenizer);
  if (all.tokens.size() < 2) {
    throw FileError(fmt::format("{} is too short: its {} bytes are {} tokens, and a loss needs at least 2", source.where,
                                source.text.size(), all.tokens.size()));
  }
  return TokenDataset({}, std::move(all));
}

void TokenDataset::check_context(int64_t context) const {
  if (int64_t(train_.tokens.size()) > context) return;
  throw UsageError(fmt::format(
      "--context={} is longer than the data: the training part has {} tokens, so --context may be at most {}", context,
      train_.tokens.size(), train_.tokens.size() - 1));
}

Batch TokenDataset::training_batch(uint64_t seed, int64_t step, int64_t first_row, int64_t rows,
                                   int64_t context) const {
  check_context(context);
  return random_batch(train_, seed, step, first_row, rows, context);
}

int64_t TokenDataset::validation_batches(int64_t rows, int64_t context) const {
  const int64_t targets = int64_t(validation_.tokens.size()) - 1;
  const int64_t windows = (targets + context - 1) / context;
  return (windows + rows - 1) / rows;
}

Batch TokenDataset::validation_batch(int64_t index, int64_t rows, int64_t context) const {
  const int64_t batches = validation_batches(rows, context);
  if (index < 0 || index >= batches)
    throw Error(fmt::format("[data] validation batch must be from 0 to {}, but is {}", batches - 1, index));
  Batch batch = empty_batch(rows, context);
  const int64_t targets = int64_t(validation_.tokens.size()) - 1;
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t begin = (index * rows + row) * context;
    if (begin < targets) fill_row(batch, row, validation_, begin);
  }
  return batch;
}

Batch TokenDataset::random_validation_batch(uint64_t seed, int64_t index, int64_t rows, int64_t context) const {
  // a stream of its own, so that it does not repeat the training rows' draws
  return random_batch(validation_, mix(seed ^ 0x76616c6964617465u), index, 0, rows, context);
}

}  // namespace hedgehog

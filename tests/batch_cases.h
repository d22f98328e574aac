#pragma once
#include <algorithm>
#include <string>

#include "nn/gpt.h"
#include "train/data.h"

namespace hedgehog::test {

/// A model that takes milliseconds, for rows of 12 tokens out of 11.
inline GptOptions small_gpt(const std::string& attention) {
  GptOptions o;
  o.layers = 2;
  o.heads = 2;
  o.width = 16;
  o.context = 12;
  o.vocabulary = 11;
  o.attention = attention;
  return o;
}

/// Rows that count through the vocabulary: row r begins with r, and each token is `stride` further than the one before it.
inline Batch counting_batch(std::int64_t rows, std::int64_t time, std::int64_t vocabulary, std::int64_t stride) {
  Batch b;
  b.rows = rows;
  b.time = time;
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t t = 0; t < time; ++t) {
      b.tokens.push_back(std::int32_t((r + t * stride) % vocabulary));
      b.targets.push_back(std::int32_t((r + (t + 1) * stride) % vocabulary));
    }
  b.document_start.assign(b.tokens.size(), 0);
  b.valid = rows * time;
  return b;
}

inline void ignore_target(Batch& b, std::int64_t place) {
  b.valid -= b.targets[std::size_t(place)] != kIgnoredTarget;
  b.targets[std::size_t(place)] = kIgnoredTarget;
}

/// Cuts every row into documents of this many tokens.
inline void cut_documents(Batch& b, std::int64_t length) {
  for (std::int64_t i = 0; i < b.rows * b.time; ++i) b.document_start[std::size_t(i)] = std::int32_t(i % b.time / length * length);
}

/// The batch in `parts` micro-batches of as many rows each.
inline std::vector<Batch> cut(const Batch& whole, std::int64_t parts) {
  std::vector<Batch> all;
  const std::int64_t rows = whole.rows / parts, size = rows * whole.time;
  for (std::int64_t k = 0; k < parts; ++k) {
    auto part = [&](const std::vector<std::int32_t>& of) { return std::vector<std::int32_t>(of.begin() + k * size, of.begin() + (k + 1) * size); };
    Batch b{rows, whole.time, part(whole.tokens), part(whole.targets), part(whole.document_start)};
    b.valid = size - std::count(b.targets.begin(), b.targets.end(), kIgnoredTarget);
    all.push_back(std::move(b));
  }
  return all;
}

}  // namespace hedgehog::test

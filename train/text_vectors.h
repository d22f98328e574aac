#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "nn/gpt.h"
#include "train/tokenizer.h"

namespace hedgehog {

/// How a text becomes one vector.
///
/// pooling    mean: of the hidden states of all its tokens, those around the text too; first: that of the first; pooler: the model's own
/// normalize  vectors get length 1, so that their product is the cosine
/// length     tokens that are read of a text, the frame included; the rest is cut. 0: as many as the model has positions for
/// batch      texts that are computed together; vectors do not depend on it but for rounding
struct TextVectorOptions {
  std::string pooling = "mean";
  bool normalize = true;
  std::int64_t length = 0;
  std::int64_t batch = 32;
};

struct TextVector {
  std::vector<double> numbers;  // (C)
  std::int64_t tokens = 0;      // that were read
  bool cut = false;             // the text has more
};

/// The vectors of texts by an encoder, in their order. Texts of like length share a batch, whose padding none of them sees.
/// Throws UsageError if the model is a language model, lacks what `pooling` names, or has fewer positions than `length`.
std::vector<TextVector> text_vectors(const Gpt& model, const Tokenizer& tokenizer, std::span<const std::string> texts,
                                     const TextVectorOptions& options = {});

/// Cosine of the angle between vectors; 0 where one is 0.
double cosine(std::span<const double> a, std::span<const double> b);

}  // namespace hedgehog

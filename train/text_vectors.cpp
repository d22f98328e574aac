#include "train/text_vectors.h"

#include <fmt/format.h>

#include <cmath>
#include <numeric>

#include "core/error.h"
#include "train/text_batches.h"

namespace hedgehog {
namespace {

void check(const GptOptions& model, const TokenFrame& frame, const TextVectorOptions& o) {
  if (model.causal)
    throw UsageError("the model is a language model, whose tokens do not see those behind them; vectors of texts are made by an encoder: "
                     "give the folder of a BERT of Hugging Face");
  if (o.pooling != "mean" && o.pooling != "first" && o.pooling != "pooler")
    throw UsageError(fmt::format("pooling must be mean, first or pooler, but is '{}'", o.pooling));
  if (o.pooling == "pooler" && !model.pooler) throw UsageError("--pooling=pooler: the model has no pooler; choose mean or first");
  check_text_length(model, frame, o.length);
}

/// One vector from `rows` of C hidden states.
std::vector<double> mean_of(const double* hidden, std::int64_t rows, std::int64_t C) {
  std::vector<double> mean(static_cast<std::size_t>(C), 0);
  for (std::int64_t t = 0; t < rows; ++t)
    for (std::int64_t c = 0; c < C; ++c) mean[std::size_t(c)] += hidden[t * C + c] / double(rows);
  return mean;
}

void normalize(std::vector<double>& x) {
  const double length = std::sqrt(std::inner_product(x.begin(), x.end(), x.begin(), 0.0));
  if (length > 0)
    for (double& value : x) value /= length;
}

/// Vectors of the texts whose numbers are in `which`.
void add_batch(const Gpt& model, std::span<const FramedText> texts, std::span<const std::size_t> which, const std::string& pooling,
               std::vector<TextVector>& vectors) {
  const std::int64_t T = longest_of(texts, which), C = model.options().width;
  const Batch batch = padded_batch(texts, which, T);
  const auto given = [&](const std::vector<std::int32_t>& ids) {
    return constant({batch.rows, T}, std::vector<double>(ids.begin(), ids.end()), Dtype::i32);
  };
  const Tensor hidden = model.hidden(given(batch.tokens), {.document_start = given(batch.document_start)});
  const std::vector<double> found = (pooling == "pooler" ? model.pooled(hidden) : hidden).to_vector();
  for (std::size_t b = 0; b < which.size(); ++b) {
    const std::int64_t rows = pooling == "mean" ? std::int64_t(texts[which[b]].ids.size()) : 1;
    vectors[which[b]].numbers = mean_of(found.data() + std::int64_t(b) * (pooling == "pooler" ? 1 : T) * C, rows, C);
  }
}

}  // namespace

std::vector<TextVector> text_vectors(const Gpt& model, const Tokenizer& tokenizer, std::span<const std::string> texts,
                                     const TextVectorOptions& o) {
  check(model.options(), tokenizer.frame(), o);
  const std::int64_t length = o.length > 0 ? o.length : model.options().longest();
  std::vector<TextVector> vectors(texts.size());
  std::vector<FramedText> framed;
  for (std::size_t i = 0; i < texts.size(); ++i) {
    framed.push_back(frame_text(tokenizer, texts[i], length));
    vectors[i].cut = framed.back().cut;
    vectors[i].tokens = std::int64_t(framed.back().ids.size());
    if (framed.back().ids.empty()) throw UsageError(fmt::format("text {} has no tokens; give one that is not empty", i + 1));
  }
  const no_grad guard;
  by_length(framed, o.batch, [&](std::span<const std::size_t> which) { add_batch(model, framed, which, o.pooling, vectors); });
  if (o.normalize)
    for (TextVector& vector : vectors) normalize(vector.numbers);
  return vectors;
}

double cosine(std::span<const double> a, std::span<const double> b) {
  const auto product = [](std::span<const double> x, std::span<const double> y) {
    return std::inner_product(x.begin(), x.end(), y.begin(), 0.0);
  };
  const double lengths = std::sqrt(product(a, a) * product(b, b));
  return lengths > 0 ? product(a, b) / lengths : 0;
}

}  // namespace hedgehog

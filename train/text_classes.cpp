#include "train/split.h"
#include "train/text_classes.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <numeric>

#include "core/error.h"
#include "core/random.h"
#include "nn/distillation.h"
#include "train/files.h"
#include "train/schedule.h"
#include "train/text_batches.h"

namespace hedgehog {
namespace {

constexpr std::int32_t kLargestLabel = 999;
constexpr std::uint32_t kOrderId = 0x434c4153;  // of the draws that mix an epoch

std::vector<FramedText> framed_texts(const Gpt& model, const Tokenizer& tokenizer, std::span<const std::string> texts,
                                     std::int64_t length) {
  const std::int64_t most = model.options().longest();
  check_text_length(model.options(), tokenizer.frame(), length);
  std::vector<FramedText> framed;
  for (const std::string& text : texts) {
    framed.push_back(frame_text(tokenizer, text, length > 0 ? length : most));
    if (framed.back().ids.empty()) throw UsageError("a text has no tokens, and the tokenizer puts none around it");
  }
  return framed;
}

/// The numbers from 0 to n - 1 in an order that seed and epoch tell.
std::vector<std::size_t> mixed(std::size_t n, std::uint64_t seed, std::int64_t epoch) {
  std::vector<std::size_t> order(n);
  std::iota(order.begin(), order.end(), std::size_t(0));
  const Random random{seed, kOrderId, std::uint32_t(epoch)};
  for (std::size_t i = n; i > 1; --i) std::swap(order[i - 1], order[random.below(i, std::uint32_t(i))]);
  return order;
}

}  // namespace

std::int64_t LabelledTexts::classes() const { return labels.empty() ? 0 : *std::max_element(labels.begin(), labels.end()) + 1; }

LabelledTexts read_labelled_texts(const std::filesystem::path& file) {
  const std::string content = read_file(file);
  LabelledTexts data;
  std::size_t number = 0;
  for (std::size_t begin = 0; begin < content.size();) {
    const std::size_t end = std::min(content.find('\n', begin), content.size());
    std::string line = content.substr(begin, end - begin);
    begin = end + 1;
    ++number;
    if (line.ends_with('\r')) line.pop_back();
    const std::vector<std::string> columns = split(line, '\t');
    if (number == 1 && columns == std::vector<std::string>{"label", "text"}) continue;
    if (columns.size() != 2 && columns.size() != 4)
      throw FileError(fmt::format("{}: line {} must be label TAB text, or CoLA's four columns, but has {}", file.string(), number,
                                  columns.size()));
    const std::string& label = columns[columns.size() == 2 ? 0 : 1];
    std::int32_t value = -1;
    const auto [stop, error] = std::from_chars(label.data(), label.data() + label.size(), value);
    if (error != std::errc() || stop != label.data() + label.size() || value < 0 || value > kLargestLabel)
      throw FileError(fmt::format("{}: line {} must have a label from 0 to {}, but has '{}'", file.string(), number, kLargestLabel, label));
    data.labels.push_back(value);
    data.texts.push_back(columns.back());
  }
  if (data.texts.empty()) throw FileError(fmt::format("{} holds no labelled text", file.string()));
  return data;
}

Gpt with_classes(const Gpt& encoder, std::int64_t classes, const ClassTraining& options) {
  GptOptions o = encoder.options();
  if (o.causal)
    throw UsageError("classes of texts are told by an encoder, whose tokens see each other, but the model is a language model: give the "
                     "folder of a BERT of Hugging Face");
  if (o.classes != 0 && o.classes != classes)
    throw UsageError(fmt::format("the model tells {} classes, but the data has {}; give an encoder without a classifier", o.classes,
                                 classes));
  if (classes < 2) throw UsageError("the data has only texts of class 0; give texts of at least 2 classes");
  o.pooler = true, o.classes = classes, o.dropout = options.dropout;
  // Performer's draws come from the seed, and its weights were made for them
  if (o.attention != "performer") o.seed = options.seed;
  Gpt model(o);
  copy_weights(encoder, model);
  return model;
}

StepLoss class_loss() {
  return [](const Gpt& model, const Tensor& tokens, const Tensor& targets, const Tensor& scale, const AttentionContext& context) {
    const Tensor logits = model.classify(model.pooled(model.hidden(tokens, context)));
    const Shape& ids = tokens.shape();
    // a row's logits for each of its tokens, of which only the first has a target
    const Tensor ones = constant({ids[1], 1}, std::vector<double>(std::size_t(ids[1]), 1), logits.dtype(), "tokens");
    return cross_entropy(reshape(logits, {ids[0], 1, logits.shape().last()}) * ones, targets, scale).loss;
  };
}

void train_classes(Gpt& model, const Tokenizer& tokenizer, const LabelledTexts& data, const ClassTraining& options,
                   const std::function<bool(std::int64_t, std::int64_t, double)>& step) {
  const auto texts = std::int64_t(data.texts.size());
  if (data.classes() > model.options().classes)
    throw UsageError(fmt::format("a label is {}, but the model tells {} classes", data.classes() - 1, model.options().classes));
  if (texts < options.batch) throw UsageError(fmt::format("--batch={} exceeds the {} texts", options.batch, texts));
  const std::vector<FramedText> framed = framed_texts(model, tokenizer, data.texts, options.length);
  const std::int64_t a_epoch = texts / options.batch, steps = options.epochs * a_epoch;
  const std::int64_t T = longest_of(framed, mixed(framed.size(), 0, 0));
  TrainingStep training(model, {.rows = options.batch, .context = T, .documents = true},
                        {.beta2 = 0.999, .weight_decay = options.weight_decay, .clip = 1}, options.seed, {}, class_loss());
  const Schedule schedule{ScheduleKind::kLinear, options.learning_rate, 0, steps / 10, steps};
  std::vector<std::size_t> order;
  for (std::int64_t s = 0; s < steps; ++s) {
    if (s % a_epoch == 0) order = mixed(framed.size(), options.seed, s / a_epoch);
    const auto which = std::span(order).subspan(std::size_t(s % a_epoch * options.batch), std::size_t(options.batch));
    Batch batch = padded_batch(framed, which, T);
    for (std::size_t b = 0; b < which.size(); ++b) batch.targets[b * std::size_t(T)] = data.labels[which[b]];
    batch.valid = batch.rows;
    const StepResult result = training.run({&batch, 1}, learning_rate(schedule, s));
    if (result.failed) throw Error("[finetune] the loss or a gradient is not finite: " + training.explain_failure({&batch, 1}).cause);
    if (!step(s + 1, steps, result.loss)) return;
  }
}

std::vector<std::int32_t> classes_of(const Gpt& model, const Tokenizer& tokenizer, std::span<const std::string> texts, std::int64_t length,
                                     std::int64_t batch) {
  const std::vector<FramedText> framed = framed_texts(model, tokenizer, texts, length);
  std::vector<std::int32_t> classes(texts.size());
  const no_grad guard;
  by_length(framed, batch, [&](std::span<const std::size_t> which) {
    const Batch rows = padded_batch(framed, which, longest_of(framed, which));
    const auto given = [&](const std::vector<std::int32_t>& ids) {
      return constant({rows.rows, rows.time}, std::vector<double>(ids.begin(), ids.end()), Dtype::i32);
    };
    const Tensor hidden = model.hidden(given(rows.tokens), {.document_start = given(rows.document_start)});
    const std::vector<double> logits = model.classify(model.pooled(hidden)).to_vector();
    const auto K = std::ptrdiff_t(model.options().classes);
    for (std::size_t b = 0; b < which.size(); ++b) {
      const auto first = logits.begin() + std::ptrdiff_t(b) * K;
      classes[which[b]] = std::int32_t(std::max_element(first, first + K) - first);
    }
  });
  return classes;
}

}  // namespace hedgehog

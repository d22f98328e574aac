#include "train/evaluation.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "train/training_step.h"

namespace hedgehog {

Evaluator::Recorded Evaluator::record_loss(const Gpt& model, std::int64_t rows, std::int64_t context, bool documents,
                                           AttentionContext attention) {
  Recorded r{ids_input(model, {rows, context}, "tokens"), ids_input(model, {rows, context}, "targets"), {}, {}};
  if (documents) r.documents = ids_input(model, {rows, context}, "document_start");
  attention.document_start = r.documents;
  const no_grad guard;
  r.program = record([&] {
    const TokenLosses loss = model.loss(r.tokens, r.targets, {}, attention);
    return Tensors{loss.losses};
  });
  return r;
}

Evaluator::Evaluator(const Gpt& model, std::int64_t rows, std::int64_t context, bool documents, std::shared_ptr<Arena> arena,
                     const AttentionContext& attention)
    : rows_(rows) {
  Recorded r = record_loss(model, rows, context, documents, attention);
  tokens_ = r.tokens;
  targets_ = r.targets;
  documents_ = r.documents;
  ExecutorOptions options;
  options.arena = std::move(arena);
  executor_ = std::make_unique<Executor>(std::move(r.program), options);
}

Bytes Evaluator::predict(const GptOptions& model, std::int64_t rows, std::int64_t context, bool documents) {
  const Recorded r = record_loss(Gpt::declared(model), rows, context, documents);
  return plan(r.program).arena + (documents ? 3 : 2) * r.tokens.size() * Bytes(sizeof(std::int32_t));
}

double Evaluator::total_loss(const Batch& batch) {
  copy_ids(batch.tokens, tokens_);
  copy_ids(batch.targets, targets_);
  if (documents_) copy_ids(batch.document_start, documents_);
  executor_->run();
  double sum = 0;
  for (double loss : executor_->output(0).to_vector()) sum += loss;
  return sum;
}

SummedLoss Evaluator::sum_loss(const BatchSource& source, std::int64_t count) {
  const std::int64_t all = source.validation_batches(rows_);
  SummedLoss sum;
  for (std::int64_t i = 0; i < (count > 0 ? std::min(count, all) : all); ++i) {
    const Batch batch = source.validation(i, rows_);
    sum.nats += total_loss(batch);
    sum.tokens += batch.valid;
    if (!std::isfinite(sum.nats)) break;  // the batch stays in the inputs for explain_failure
  }
  return sum;
}

NonFinite Evaluator::explain_failure() const {
  return first_non_finite(executor_->program()).value_or(NonFinite{"every op's result was finite when the batch was repeated", {}});
}

Predictor::Predictor(const Gpt& model, std::int64_t rows, std::int64_t context) : tokens_(ids_input(model, {rows, context}, "tokens")) {
  const no_grad guard;
  executor_ = std::make_unique<Executor>(record([&] { return Tensors{model.logits(model.hidden(tokens_))}; }));
}

std::vector<std::int32_t> Predictor::run(const Batch& batch) {
  copy_ids(batch.tokens, tokens_);
  executor_->run();
  const Tensor logits = executor_->output(0);
  const std::vector<double> v = logits.to_vector();
  const std::int64_t vocabulary = logits.shape().last();
  std::vector<std::int32_t> best(batch.tokens.size());
  for (std::size_t i = 0; i < best.size(); ++i) {
    const auto row = v.begin() + std::ptrdiff_t(i) * vocabulary;
    best[i] = std::int32_t(std::max_element(row, row + vocabulary) - row);
  }
  return best;
}

namespace {

// the rows of a recall table; questions in the order of StoryFact
constexpr std::array kRecallRows = {
    "all questions", "what does … eat", "where does … live", "how does … travel", "who owns the …",
    "fact at most 32 tokens back", "fact 33 to 64 tokens back", "fact over 64 tokens back", "pairs never seen in training"};
constexpr std::size_t kFirstQuestion = 1, kFirstDistance = 5, kHeldOut = 8;

}  // namespace

std::vector<RecallRow> measure_recall(const Gpt& model, const StoryBatches& stories, std::int64_t rows) {
  Predictor predictor(model, rows, model.options().context);
  std::vector<RecallRow> table(kRecallRows.size());
  for (std::size_t i = 0; i < table.size(); ++i) table[i].name = kRecallRows[i];
  auto count = [&](std::size_t row, const StoryQuestion& q, bool right, bool recency) {
    ++table[row].questions;
    table[row].right += right;
    table[row].recency_right += recency;
    table[row].guess += 1.0 / q.candidates;
  };
  const auto& all = stories.validation_stories();
  for (std::int64_t b = 0; b < stories.validation_batches(rows); ++b) {
    const std::vector<std::int32_t> best = predictor.run(stories.validation(b, rows));
    for (std::int64_t r = 0; r < rows && b * rows + r < std::int64_t(all.size()); ++r) {
      const Story& story = all[std::size_t(b * rows + r)];
      for (const StoryQuestion& q : story.questions) {
        const std::int32_t answer = story.tokens[std::size_t(q.position)];
        const bool right = best[std::size_t(r * model.options().context + q.position - 1)] == answer;
        const bool recency = q.recency_guess == answer;
        count(0, q, right, recency);
        count(kFirstQuestion + std::size_t(q.fact), q, right, recency);
        count(kFirstDistance + (q.distance > 32) + (q.distance > 64), q, right, recency);
        if (q.held_out) count(kHeldOut, q, right, recency);
      }
    }
  }
  std::erase_if(table, [](const RecallRow& row) { return row.questions == 0; });
  for (RecallRow& row : table) row.guess /= double(row.questions);
  return table;
}

}  // namespace hedgehog

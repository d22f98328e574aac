#pragma once
#include <memory>
#include <string>
#include <vector>

#include "core/executor.h"
#include "nn/gpt.h"
#include "train/batch_source.h"
#include "train/non_finite.h"

namespace hedgehog {

/// Losses added up, nats, and the tokens that they are of.
struct SummedLoss {
  double nats = 0;
  std::int64_t tokens = 0;
  double mean() const { return nats / double(tokens > 0 ? tokens : 1); }
};

/// Loss of a model on batches of one shape, without gradients. Shares the parameters with training and, if given, the
/// arena.
class Evaluator {
 public:
  Evaluator(const Gpt& model, std::int64_t rows, std::int64_t context, bool documents, std::shared_ptr<Arena> arena = {},
            const AttentionContext& attention = {});
  /// Bytes of activations and inputs that this takes, without allocating anything.
  static Bytes predict(const GptOptions& model, std::int64_t rows, std::int64_t context, bool documents);
  /// Sum of the losses of all valid targets, nats.
  double total_loss(const Batch& batch);
  /// Over the first `count` validation batches (0: all), as far as the losses are finite.
  SummedLoss sum_loss(const BatchSource& source, std::int64_t count = 0);
  /// Its mean, nats a token.
  double mean_loss(const BatchSource& source, std::int64_t count = 0) { return sum_loss(source, count).mean(); }
  /// After a non-finite loss: which op made the first non-finite number, where, and from what inputs.
  NonFinite explain_failure() const;

 private:
  struct Recorded {
    Tensor tokens, targets, documents;
    Program program;
  };
  static Recorded record_loss(const Gpt& model, std::int64_t rows, std::int64_t context, bool documents, AttentionContext attention = {});

  std::int64_t rows_;
  Tensor tokens_, targets_, documents_;
  std::unique_ptr<Executor> executor_;
};

/// The most likely next token at every position of a batch.
class Predictor {
 public:
  Predictor(const Gpt& model, std::int64_t rows, std::int64_t context);
  /// (rows, context) ids, row-major.
  std::vector<std::int32_t> run(const Batch& batch);

 private:
  Tensor tokens_;
  std::unique_ptr<Executor> executor_;
};

/// Answers to the story corpus's questions.
struct RecallRow {
  std::string name;          // "all questions", "what does … eat", "fact over 64 tokens back", …
  std::int64_t questions = 0;
  std::int64_t right = 0;
  std::int64_t recency_right = 0;  // by naming the newest candidate
  double guess = 0;                // mean share right when guessing among the candidates
  double share() const { return questions ? double(right) / double(questions) : 0; }
};

/// Reads all validation stories and counts where the most likely token is the answer: all questions first, then by kind
/// of fact, by distance (at most 32, 33-64, more than 64 tokens), and for held-out pairs. Rows without a question are left
/// out.
std::vector<RecallRow> measure_recall(const Gpt& model, const StoryBatches& stories, std::int64_t rows);

}  // namespace hedgehog

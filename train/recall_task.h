#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "nn/gpt.h"
#include "train/batch_source.h"

namespace hedgehog {

enum class RecallForm {
  repeated,     // key value key value …: keys come again and again, each time with the value that the row gave them
  multi_query,  // the pairs first, then each key once, somewhere among random tokens
};

/// Sequences in which a model has to recall: a fresh random map from keys to values in every row.
///
/// form           of a row
/// vocabulary     tokens; the lower half are keys, the upper half values
/// length         tokens a row (T)
/// pairs          different keys that a row uses
/// training_rows  training draws from so many rows, over and over; 0: every row is a fresh one
/// test_rows      rows of the test, none of which training draws
/// first_pairs    training starts with rows of so many keys, and comes to `pairs` evenly over growth_steps; 0: no growth
/// growth_steps   steps until rows are as long as the test's
struct RecallOptions {
  RecallForm form = RecallForm::repeated;
  std::int64_t vocabulary = 40;
  std::int64_t length = 128;
  std::int64_t pairs = 20;
  std::int64_t training_rows = 0;
  std::int64_t test_rows = 2000;
  std::int64_t first_pairs = 0;
  std::int64_t growth_steps = 0;
};

/// One row. targets[i] is the value that belongs to the key tokens[i], where the row has shown it before; else kIgnoredTarget.
struct RecallSequence {
  std::vector<std::int32_t> tokens;   // (T)
  std::vector<std::int32_t> targets;  // (T)
};

/// Associative recall, for training and test.
///
///   repeated, `c 9 k 8 c 9 f 1 …`: T / 2 pairs, their keys drawn with replacement from the row's; every key that came before asks
///   for its value, and so does the last one always. Loss on all of these, where the paper's test counts the last alone.
///
///   multi_query: `pairs` different keys with their values, then each key once more, at a random place of its own among the
///   places 2 pairs, 2 pairs + 2, …; all other tokens are random. The gap to a key's place has the density g^-0.99 of the
///   benchmark.
///
/// Rows depend on (options, seed, row) by integer arithmetic and one power alone.
///
/// Source: Zhang et al. 2024, arXiv:2402.04347, sections 3 and 5.1 (repeated); Arora et al. 2023, arXiv:2312.04927 (multi_query).
class RecallBatches : public BatchSource {
 public:
  /// Throws UsageError if the sizes do not fit together.
  RecallBatches(const RecallOptions& options, std::uint64_t seed, std::int64_t rows_per_step);

  Batch training(std::int64_t step, std::int64_t first_row, std::int64_t rows) const override;
  std::int64_t validation_batches(std::int64_t rows) const override { return (options_.test_rows + rows - 1) / rows; }
  /// Test rows; the last batch is filled up with rows without targets.
  Batch validation(std::int64_t index, std::int64_t rows) const override;
  std::string describe() const override;

  const RecallOptions& options() const { return options_; }
  RecallSequence training_sequence(std::int64_t row, std::int64_t pairs) const;
  RecallSequence test_sequence(std::int64_t row) const;
  /// Keys that training rows of this step use.
  std::int64_t pairs_at(std::int64_t step) const;

 private:
  Batch pack(const std::vector<RecallSequence>& sequences) const;

  RecallOptions options_;
  std::uint64_t seed_;
  std::int64_t rows_per_step_;
};

/// Answers of a model to a test.
struct RecallAnswers {
  std::int64_t asked = 0, right = 0;            // all targets
  std::int64_t last_asked = 0, last_right = 0;  // the last target of each row, which is what the paper counts
  double share() const { return asked ? double(right) / double(asked) : 0; }
  double last_share() const { return last_asked ? double(last_right) / double(last_asked) : 0; }
};

/// Reads the test, `rows` rows at once, and counts where the most likely token is the answer. most: only so many batches; 0 for all.
RecallAnswers measure_answers(const Gpt& model, const RecallBatches& source, std::int64_t rows, std::int64_t most = 0);

}  // namespace hedgehog

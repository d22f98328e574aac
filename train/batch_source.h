#pragma once
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "train/data.h"
#include "train/story.h"

namespace hedgehog {

/// Where training and validation rows come from: text or stories. Every batch is a pure function of its arguments, so a
/// resumed run draws the same rows.
class BatchSource {
 public:
  virtual ~BatchSource() = default;
  /// Rows first_row … first_row + rows - 1 of a step's global batch.
  virtual Batch training(std::int64_t step, std::int64_t first_row, std::int64_t rows) const = 0;
  /// Batches that cover the validation set once.
  virtual std::int64_t validation_batches(std::int64_t rows) const = 0;
  virtual Batch validation(std::int64_t index, std::int64_t rows) const = 0;
  /// Whether rows hold several documents.
  virtual bool documents() const { return false; }
  /// Mean -ln p of the validation targets under the source's own law; NaN where nobody knows it.
  virtual double floor() const { return std::numeric_limits<double>::quiet_NaN(); }
  /// Training tokens; 0 for an endless source.
  virtual std::int64_t training_tokens() const { return 0; }
  /// One line for the start of a run.
  virtual std::string describe() const = 0;
};

/// Random windows of a text's training part; its validation part in order.
class TextSourceBatches : public BatchSource {
 public:
  TextSourceBatches(TokenDataset dataset, std::string name, std::uint64_t seed, std::int64_t context);
  Batch training(std::int64_t step, std::int64_t first_row, std::int64_t rows) const override;
  std::int64_t validation_batches(std::int64_t rows) const override;
  Batch validation(std::int64_t index, std::int64_t rows) const override;
  bool documents() const override { return documents_; }
  std::int64_t training_tokens() const override { return std::int64_t(dataset_.train().size()); }
  std::string describe() const override;
  const TokenDataset& dataset() const { return dataset_; }

 private:
  TokenDataset dataset_;
  std::string name_;
  std::uint64_t seed_;
  std::int64_t context_;
  bool documents_;
};

/// Fresh stories, a row each; validation is `validation_rows` rows of a seed that training never uses.
class StoryBatches : public BatchSource {
 public:
  StoryBatches(std::uint64_t seed, std::int64_t context, std::int64_t validation_rows);
  Batch training(std::int64_t step, std::int64_t first_row, std::int64_t rows) const override;
  std::int64_t validation_batches(std::int64_t rows) const override;
  Batch validation(std::int64_t index, std::int64_t rows) const override;
  double floor() const override { return floor_; }
  std::string describe() const override;
  const StoryCorpus& corpus() const { return corpus_; }
  const std::vector<Story>& validation_stories() const { return validation_; }
  /// Rows of a step's global batch, so that micro-batches draw different stories.
  void set_rows_per_step(std::int64_t rows) { rows_per_step_ = rows; }

 private:
  Batch pack(const std::vector<Story>& stories) const;

  StoryCorpus corpus_;
  std::uint64_t seed_;
  std::int64_t context_;
  std::int64_t rows_per_step_ = 1;
  std::vector<Story> validation_;
  double floor_ = 0;
};

}  // namespace hedgehog

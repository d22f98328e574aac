#include "train/batch_source.h"

#include <fmt/format.h>

#include <algorithm>

#include "core/parallel.h"

namespace hedgehog {
namespace {
constexpr std::uint64_t kValidationSeed = 0x76616c6964ull;  // stories that no training seed draws
}

TextSourceBatches::TextSourceBatches(TokenDataset dataset, std::string name, std::uint64_t seed, std::int64_t context)
    : dataset_(std::move(dataset)), name_(std::move(name)), seed_(seed), context_(context), documents_(false) {
  dataset_.check_context(context_);
  documents_ = dataset_.packed();
}

Batch TextSourceBatches::training(std::int64_t step, std::int64_t first_row, std::int64_t rows) const {
  return dataset_.training_batch(seed_, step, first_row, rows, context_);
}
std::int64_t TextSourceBatches::validation_batches(std::int64_t rows) const { return dataset_.validation_batches(rows, context_); }
Batch TextSourceBatches::validation(std::int64_t index, std::int64_t rows) const {
  return dataset_.validation_batch(index, rows, context_);
}

std::string TextSourceBatches::describe() const {
  return fmt::format("{}: {} training tokens, {} validation tokens (split 90/10 by position), {} documents in the two parts", name_,
                     dataset_.train().size(), dataset_.validation().size(), dataset_.document_count());
}

StoryBatches::StoryBatches(std::uint64_t seed, std::int64_t context, std::int64_t validation_rows)
    : corpus_([&] {
        StoryOptions options;
        options.context = context;
        return options;
      }()),
      seed_(seed), context_(context), validation_(std::size_t(validation_rows)) {
  parallel_tasks(validation_rows, [&](std::int64_t i) { validation_[std::size_t(i)] = corpus_.row(kValidationSeed, i, true); });
  double sum = 0;
  std::int64_t scored = 0;
  for (const Story& story : validation_)
    for (std::size_t t = 0; t < story.targets.size(); ++t)
      if (story.targets[t] >= 0) sum += story.neg_log_p[t], ++scored;
  floor_ = sum / double(std::max<std::int64_t>(scored, 1));
}

Batch StoryBatches::training(std::int64_t step, std::int64_t first_row, std::int64_t rows) const {
  std::vector<Story> stories(static_cast<std::size_t>(rows));
  const std::int64_t first = step * rows_per_step_ + first_row;
  parallel_tasks(rows, [&](std::int64_t i) { stories[std::size_t(i)] = corpus_.row(seed_, first + i, false); });
  return pack(stories);
}

std::int64_t StoryBatches::validation_batches(std::int64_t rows) const {
  return (std::int64_t(validation_.size()) + rows - 1) / rows;
}

Batch StoryBatches::validation(std::int64_t index, std::int64_t rows) const {
  std::vector<Story> stories(static_cast<std::size_t>(rows));
  for (std::int64_t r = 0; r < rows; ++r) {
    const std::int64_t i = index * rows + r;
    if (i < std::int64_t(validation_.size())) stories[std::size_t(r)] = validation_[std::size_t(i)];
  }
  return pack(stories);
}

Batch StoryBatches::pack(const std::vector<Story>& stories) const {
  Batch batch;
  batch.rows = std::int64_t(stories.size());
  batch.time = context_;
  const std::size_t size = stories.size() * std::size_t(context_);
  batch.tokens.assign(size, 0);
  batch.targets.assign(size, kIgnoredTarget);
  batch.document_start.assign(size, 0);
  for (std::size_t r = 0; r < stories.size(); ++r) {
    const Story& story = stories[r];
    const std::size_t at = r * std::size_t(context_);
    if (story.tokens.empty()) continue;  // padding rows of the last validation batch
    std::copy_n(story.tokens.begin(), context_, batch.tokens.begin() + std::ptrdiff_t(at));
    std::copy(story.targets.begin(), story.targets.end(), batch.targets.begin() + std::ptrdiff_t(at));
    batch.valid += std::count_if(story.targets.begin(), story.targets.end(), [](std::int32_t t) { return t >= 0; });
  }
  return batch;
}

std::string StoryBatches::describe() const {
  return fmt::format("built-in stories: fresh ones for training, {} for validation, {} words, exact entropy {:.4f} nats a token",
                     validation_.size(), corpus_.vocabulary().size(), floor_);
}

}  // namespace hedgehog

#include "train/analysis_texts.h"

#include <fmt/format.h>

#include <algorithm>

#include "core/error.h"
#include "train/setup.h"

namespace hedgehog {

std::vector<Batch> story_texts(std::uint64_t seed, std::int64_t length, std::int64_t count) {
  // so much longer that none ends within the length
  const StoryBatches stories(seed, 2 * length + 256, count);
  std::vector<Batch> texts;
  for (std::int64_t i = 0; i < count; ++i) {
    Batch text = stories.validation(i, 1);
    text.time = length;
    for (auto* row : {&text.tokens, &text.targets, &text.document_start}) row->resize(std::size_t(length));
    texts.push_back(std::move(text));
  }
  return texts;
}

AnalysisTexts::AnalysisTexts(const Config& config, const Checkpoint& checkpoint, const std::filesystem::path& found) {
  if (config.has("data") && config.text("data") != "stories") {
    whole_ = std::make_unique<TokenDataset>(whole_data(config.text("data"), checkpoint.tokenizer, data_));
    dataset_ = whole_.get();
    return;
  }
  Config run("train");
  set_options(run, checkpoint.run, found);
  if (config.has("data")) run.set("data", config.text("data"), OptionSource::kFlag);
  data_ = load_data(run, checkpoint.tokenizer);
  if (run.has("seed")) seed_ = std::uint64_t(run.integer("seed"));
  if (const auto* text = dynamic_cast<const TextSourceBatches*>(data_.source.get())) dataset_ = &text->dataset();
}

std::vector<Batch> AnalysisTexts::of_length(std::int64_t length, std::int64_t count) const {
  if (!dataset_) return story_texts(seed_, length, count);
  const std::int64_t tokens = std::int64_t(dataset_->validation().size()), whole = tokens / length;
  if (whole == 0)
    throw UsageError(fmt::format("--lengths={} is longer than the data: '{}' has {} tokens{}; give shorter lengths or a longer text", length, data_.name,
                                 tokens, whole_ ? "" : " that training held back"));
  const std::int64_t most = std::min(count, whole);
  std::vector<Batch> texts;
  for (std::int64_t i = 0; i < most; ++i) texts.push_back(dataset_->validation_batch(most == 1 ? 0 : i * (whole - 1) / (most - 1), 1, length));
  return texts;
}

}  // namespace hedgehog

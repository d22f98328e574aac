#pragma once
#include <memory>
#include <string>
#include <vector>

#include "train/checkpoint.h"
#include "train/config.h"
#include "train/setup.h"

namespace hedgehog {

/// Beginnings of `count` stories that training with this seed does not see, (1, length) each; the stories are longer.
std::vector<Batch> story_texts(std::uint64_t seed, std::int64_t length, std::int64_t count);

/// Texts of any length for analyze: what --data names, all of it, or the validation part of the data that the run read.
class AnalysisTexts {
 public:
  /// Throws as reading that data does.
  AnalysisTexts(const Config& config, const Checkpoint& checkpoint, const std::filesystem::path& found);

  /// At most `count` texts (1, length), evenly spread and not overlapping. Stories are beginnings of stories that are longer.
  /// Throws UsageError where the data has not even one, naming both lengths.
  std::vector<Batch> of_length(std::int64_t length, std::int64_t count) const;
  /// Whether a text can hold several documents.
  bool documents() const { return dataset_ && dataset_->packed(); }
  const std::string& name() const { return data_.name; }
  const std::vector<std::string>& notes() const { return data_.notes; }

 private:
  RunData data_;
  std::unique_ptr<TokenDataset> whole_;
  const TokenDataset* dataset_ = nullptr;  // none for stories
  std::uint64_t seed_ = 1;
};

}  // namespace hedgehog

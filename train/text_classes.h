#pragma once
#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "nn/gpt.h"
#include "train/config.h"
#include "train/tokenizer.h"
#include "train/training_step.h"

namespace hedgehog {

/// Texts with a class each.
struct LabelledTexts {
  std::vector<std::string> texts;
  std::vector<std::int32_t> labels;  // from 0
  std::int64_t classes() const;      // the largest label and 1
};

/// Reads lines `label TAB text`, also under a header that says so, or CoLA's four columns: source, label, mark, text. Labels are whole
/// numbers from 0 to 999. Throws FileError naming file and line.
LabelledTexts read_labelled_texts(const std::filesystem::path& file);

/// How an encoder learns classes: AdamW with bias correction, whose rate rises over a tenth of the steps and falls to 0.
/// Source: Devlin et al. 2018, arXiv:1810.04805, appendix A.3, for the sizes of all but `batch` and `length`.
struct ClassTraining {
  std::int64_t epochs = 3;
  std::int64_t batch = 16;
  std::int64_t length = 0;  // tokens of a text, the frame included; 0: as the longest needs, at most what the model has positions for
  double learning_rate = 5e-5;
  double weight_decay = 0.01;
  double dropout = 0.1;
  std::uint64_t seed = 1;   // of classifier, dropout and order
};

/// The encoder with a classifier of so many classes, and a pooler if it has none, which start anew unless it has them already.
/// Throws UsageError for a language model, and an encoder with a classifier of another number of classes.
Gpt with_classes(const Gpt& encoder, std::int64_t classes, const ClassTraining& options);

/// What a TrainingStep lowers: the cross entropy of the class of each row, which is the first of its targets, the others being ignored.
StepLoss class_loss();

/// Trains the model; `step` hears the number of steps done and in all and the loss, and says whether to go on. Every text is read once an
/// epoch, in an order of its own; what does not fill a last batch of an epoch is left out there.
/// Throws UsageError if a label is no class of the model or there are fewer texts than a batch; Error if a loss is not finite.
void train_classes(Gpt& model, const Tokenizer& tokenizer, const LabelledTexts& data, const ClassTraining& options,
                   const std::function<bool(std::int64_t done, std::int64_t steps, double loss)>& step);

/// The most likely class of each text. `length` and `batch` as for training.
std::vector<std::int32_t> classes_of(const Gpt& model, const Tokenizer& tokenizer, std::span<const std::string> texts,
                                     std::int64_t length = 0, std::int64_t batch = 32);

/// What `eval` prints for a checkpoint that tells classes: accuracy and Matthews correlation on --data. Returns its exit code.
int evaluate_classes(const Config& config, const Gpt& model, const Tokenizer& tokenizer);

}  // namespace hedgehog

#pragma once
#include <memory>
#include <string>

#include "core/device.h"
#include "train/batch_source.h"
#include "train/config.h"
#include "train/schedule.h"
#include "train/tokenizer.h"
#include "train/training_step.h"

namespace hedgehog {

/// Rows of the story corpus's validation set: over 2,000 questions.
inline constexpr std::int64_t kStoryValidationRows = 512;

/// Data and tokenizer of a run.
struct RunData {
  std::unique_ptr<BatchSource> source;
  StoryBatches* stories = nullptr;  // the source, if it is the story corpus
  TokenizerPointer tokenizer;
  std::string name;                 // for the run's directory
  std::string fingerprint;          // equal for equal data
  std::vector<std::string> notes;
  std::string piped;                // what --data=- has read, for the run to keep
};

/// Reads the data that `config` names (the story corpus without --data), with the given tokenizer or the one it asks
/// for. Where the user chose no preset, one that fits data and device is applied first, with a note saying why.
RunData load_data(Config& config, TokenizerPointer tokenizer = {});

GptOptions gpt_options(const Config& config, std::int64_t vocabulary);
OptimizerOptions optimizer_options(const Config& config);
Schedule schedule_of(const Config& config);

/// Refuses a step that does not fit the free memory, naming the largest batch that does; nothing is allocated. Returns the
/// prediction.
///
/// held  bytes of it that are allocated already: a resumed run's parameters, gradients and moments
Cost check_memory(const GptOptions& model, const StepShape& shape, const OptimizerOptions& optimizer, Bytes held = 0);
/// The same for an evaluation of a loaded model.
void check_evaluation_memory(const GptOptions& model, std::int64_t rows, bool documents);

/// Refuses a text whose keys and values (softmax attention keeps them all) do not fit the free memory.
void check_decoding_memory(const GptOptions& model, std::int64_t tokens);

/// --threads, or all cores that the process may use; --device, or the GPU if there is one. Throws UsageError with the
/// reason where --device=cuda cannot be had. In a program
/// with CUDA that finds no GPU a note says why. The device is to be made current: const OnDevice guard(configure_machine(config));
Device& configure_machine(const Config& config);
/// --dtype on the current device: "bf16" there, "f32" on the CPU where it says auto; switches TF32 on or off.
Dtype configure_dtype(const Config& config);

std::string bytes_text(double bytes);  // "1.5 GiB"
std::string flops_text(double flops);  // "3.2 GFLOP"
std::string count_text(double count);  // "1.2M"

}  // namespace hedgehog

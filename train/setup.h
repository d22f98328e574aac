#pragma once
#include <map>
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
  std::int64_t words = 0;           // of a text read whole (train/sliding_windows.h); 0: not known
};

/// Prints what of the machine is another one than `then`, where a run that goes on had bits of its own.
void note_other_machine(const std::map<std::string, std::string>& then);

/// Reads the data that `config` names (the story corpus without --data), with the given tokenizer or the one it asks
/// for. Where the user chose no preset, one that fits data and device is applied first, with a note saying why.
RunData load_data(Config& config, TokenizerPointer tokenizer = {});

/// All of the text or the token shards at `where` as validation tokens; sets name, notes and, of a text, the words of `data`.
TokenDataset whole_data(const std::string& where, const TokenizerPointer& tokenizer, RunData& data);

GptOptions gpt_options(const Config& config, std::int64_t vocabulary);
OptimizerOptions optimizer_options(const Config& config);
Schedule schedule_of(const Config& config);

/// What a training step may take on the current device.
struct MemoryOptions {
  std::string recompute = "auto";  // whether backward makes results again: auto (where they do not fit), none, all
  Bytes most = 0;                  // weights and optimiser included; 0: what is free
};
MemoryOptions memory_options(const Config& config);

/// Sets shape.arena, so that as little is recomputed as the memory asks for, and returns the prediction; nothing is allocated
/// or refused.
///
/// held  bytes that are allocated already: a resumed run's parameters, gradients and moments
Cost fit_step(const GptOptions& model, StepShape& shape, const OptimizerOptions& optimizer, const MemoryOptions& memory = {},
              Bytes held = 0);
/// The same, and refuses a step that does not fit, naming the largest batch that does.
Cost check_memory(const GptOptions& model, StepShape& shape, const OptimizerOptions& optimizer, const MemoryOptions& memory = {},
                  Bytes held = 0);
/// "53 GiB predicted: 2.1 GiB for weights and optimiser, 51 GiB for activations", and what recomputation costs.
std::string memory_text(const Cost& cost);
/// "fits", "does not fit, only 3 GiB is free" or the like; empty where the memory is not known.
std::string verdict_text(const Cost& cost, const MemoryOptions& memory);
/// Refuses an evaluation of a loaded model that does not fit.
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

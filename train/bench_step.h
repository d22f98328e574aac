#pragma once
#include <nlohmann/json.hpp>

#include "nn/gpt.h"
#include "train/setup.h"

namespace hedgehog {

/// What the machine can do at most, measured.
struct Ceilings {
  double flops = 0;      // FLOP/s of products: f32 in registers on the CPU, bf16 by the library on a GPU
  double bandwidth = 0;  // bytes/s of a copy, reads and writes counted
};

/// A model and the rows of a step.
struct StepCase {
  const char* name;
  GptOptions model;
  std::int64_t rows;
  MemoryOptions memory;
  bool decodes = true;       // also a row of the decoding table; false where only the length of the rows differs
  bool if_it_fits = false;   // left out, with the reason, where memory does not suffice
};

/// The model that preset, model options and --batch describe if any is given, else models of nanoGPT's recipes with the
/// attention, type and seed asked for: of the sizes that a CPU trains, or that a GPU trains, there also on longer rows.
/// Throws UsageError if a step of the model described does not fit the memory.
std::vector<StepCase> step_cases(const Config& config);
/// Time, memory and FLOP/s of training steps, and every op's share of the step and of its own ceiling. On a GPU also the step's
/// own matrix products, timed alone.
nlohmann::ordered_json bench_step(const StepCase& c, const Ceilings& ceilings);
/// The steps that distil the maps of --attention (hedgehog if not set) from a softmax model of the same shape, by its weights. None for
/// an attention without maps that learn, with a decay gate or with a window.
std::vector<StepCase> distillation_cases(const Config& config);
/// The same figures of such a step, its teacher's forward pass included.
nlohmann::ordered_json bench_distillation(const StepCase& c, const Ceilings& ceilings);
void print_step(const nlohmann::ordered_json& step);
/// Tokens a second of one stream, at its start and far into it.
nlohmann::ordered_json bench_decoding(const StepCase& c);
/// Ops of the registry that the current device runs composed for want of a kernel.
std::vector<std::string> composed_ops();

}  // namespace hedgehog

#pragma once
#include <cstdint>
#include <filesystem>

#include "nn/gpt.h"

namespace hedgehog {

/// What an adapter changed.
struct MergedAdapter {
  std::int64_t layers = 0;  // linear layers that were updated
  std::int64_t rank = 0;    // the largest
};

/// Adds the updates of an adapter folder of PEFT, adapter_config.json and adapter_model.safetensors, to a model's weights:
///
///   W <- W + (alpha / r) B A,   with use_rslora alpha / sqrt(r)
///
/// A (r, in) is NAME.lora_A.weight, B (out, r) NAME.lora_B.weight, W (out, in) the layer NAME of a model of `transformers` (for GPT-2
/// transposed), behind "base_model.model.". Which of our parameters W is, foreign_parts says. Sums are in f64, rounded once.
///
/// All is checked before a weight changes: what a config asks for beyond this is refused by name, and so are keys that are not known unless
/// they are off; tensors without a layer or a partner, of another shape, and ranks that the config does not have.
///
/// Throws: FileError naming file and field or tensor; UsageError as foreign_architecture.
MergedAdapter merge_adapter(Gpt& model, const std::filesystem::path& folder);

/// Writes the updates of a model that has some (GptOptions::lora) as such a folder, in F32. Layers that are one here and several there,
/// such as queries, keys and values of a Llama, share A and part B.
///
/// folder  made; must not be there, or be empty
///
/// Throws: as merge_adapter; FileError if the folder holds files; WriteError.
void export_adapter(const std::filesystem::path& folder, const Gpt& model);

}  // namespace hedgehog

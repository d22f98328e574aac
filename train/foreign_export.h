#pragma once
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>
#include <vector>

#include "nn/gpt.h"
#include "train/block_formats.h"
#include "train/tokenizer.h"

namespace hedgehog {

/// What a model is called in another library.
///
/// type   model_type of config.json: gpt2, llama, mistral or qwen2; with linear attention that is hedgehog, and this the base_model_type
/// name   its class in `transformers`
struct ForeignArchitecture {
  std::string type, name;
};

/// | type    | positions | norm  | MLP           | biases            | else                                               |
/// | ------- | --------- | ----- | ------------- | ----------------- | -------------------------------------------------- |
/// | gpt2    | learned   | layer | plain         | all or none (0)   | no grouped queries, no window                      |
/// | llama   | rotary    | rms   | gated         | none              |                                                    |
/// | mistral | rotary    | rms   | gated         | none              | a window of softmax attention                      |
/// | qwen2   | rotary    | rms   | gated         | queries to values |                                                    |
///
/// Linear attention, with all that belongs to it, goes with the bases gpt2, llama and qwen2.
///
/// Throws: UsageError naming, for either base, what of the model does not fit.
ForeignArchitecture foreign_architecture(const GptOptions& options);

/// The attention of a model that other libraries do not have, as config.json's "hedgehog" has it.
nlohmann::json own_config(const GptOptions& options);

/// Writes a Hugging Face folder: config.json, model.safetensors, tokenizer.json and tokenizer_config.json. import reads it again, in F32
/// bit for bit. A model of linear attention has the same tensors and those of its maps (foreign_parts.h), and model_type "hedgehog", which
/// other libraries refuse: as the base alone they would compute softmax.
///
/// folder  made; must not be there, or be empty
/// format  f32, bf16 or f16: how numbers are stored, rounded to nearest even
///
/// Returns notes for the user. Throws: UsageError as foreign_architecture, and for a number beyond the format; FileError if the folder
/// holds files; WriteError.
std::vector<std::string> export_hugging_face(const std::filesystem::path& folder, const Gpt& model, const Tokenizer& tokenizer,
                                             ElementFormat format);

/// Numbers as a format stores them. Throws UsageError naming `what` if one is too large for it.
std::vector<std::byte> stored_as(ElementFormat format, std::span<const float> numbers, const std::string& what);

}  // namespace hedgehog

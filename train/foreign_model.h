#pragma once
#include <filesystem>
#include <memory>
#include <string>

#include "nn/gpt.h"
#include "train/foreign_weights.h"
#include "train/tokenizer.h"

namespace hedgehog {

/// A model of another library.
///
/// family   "gpt2", "llama" (Llama 2 and 3, SmolLM2, Mistral, Qwen2) or "bert": what its tensors are called
/// options  the shape of the same model here
/// paired   queries and keys turn neighbouring numbers instead of a head's halves: llama2.c, and GGUF files of Llama
struct ForeignModel {
  std::string family;
  GptOptions options;
  std::unique_ptr<ForeignWeights> weights;
  TokenizerPointer tokenizer;
  bool paired = false;
};

/// Whether `path` is what open_foreign_model reads: a folder with a config.json, or a file.
bool is_foreign_model(const std::filesystem::path& path);

/// | path                         | what                                                                            |
/// | ---------------------------- | ------------------------------------------------------------------------------- |
/// | a folder with a config.json  | Hugging Face: model.safetensors or its parts, tokenizer.json, GPT-2's or BERT's files |
/// | a GGUF file                  | architectures llama and qwen2; its tokenizer is inside                          |
/// | a .bin file                  | llama2.c, version 0; its tokenizer is tok512.bin (512 tokens) or tokenizer.bin beside |
///
/// Weights are mapped, not read. Throws FileError naming file and field for what is damaged, missing or not supported.
ForeignModel open_foreign_model(const std::filesystem::path& path);

/// The model with its weights, in f32. Throws FileError naming a tensor that is missing, has another shape, or belongs to nothing.
Gpt load_foreign_model(const ForeignModel& foreign);

/// The options of a Hugging Face config.json; `family` becomes its family. Throws FileError naming the field, and for an unknown architecture the
/// list of those that are read.
GptOptions read_hugging_face_config(const std::filesystem::path& file, std::string& family);

/// The model of a GGUF file. Throws as open_foreign_model.
ForeignModel open_gguf(const std::filesystem::path& path);

/// The model of a llama2.c file, without a tokenizer.
ForeignModel open_llama2c(const std::filesystem::path& file);

}  // namespace hedgehog

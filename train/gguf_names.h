#pragma once
#include <optional>
#include <string>

namespace hedgehog {

/// The name that Hugging Face's Llama has for a GGUF file's tensor, "blk.3.attn_q.weight" for "model.layers.3.self_attn.q_proj.weight", or nothing.
std::optional<std::string> hugging_face_name(const std::string& name);

/// The pattern of the rule for pieces that tokenizer.ggml.pre names, or null.
const char* gguf_pattern(const std::string& rule);

/// The rules that are known, for messages.
std::string gguf_pattern_names();

}  // namespace hedgehog

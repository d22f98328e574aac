#include "train/gguf_names.h"

#include <fmt/core.h>

#include <string_view>
#include <utility>

#include "train/pieces.h"

namespace hedgehog {
namespace {

using Names = std::pair<std::string_view, std::string_view>;  // GGUF's, Hugging Face's

constexpr Names kOutside[] = {{"token_embd", "model.embed_tokens"}, {"output_norm", "model.norm"}, {"output", "lm_head"}};

constexpr Names kInLayer[] = {{"attn_norm", "input_layernorm"},
                              {"attn_q", "self_attn.q_proj"},
                              {"attn_k", "self_attn.k_proj"},
                              {"attn_v", "self_attn.v_proj"},
                              {"attn_output", "self_attn.o_proj"},
                              {"ffn_norm", "post_attention_layernorm"},
                              {"ffn_gate", "mlp.gate_proj"},
                              {"ffn_up", "mlp.up_proj"},
                              {"ffn_down", "mlp.down_proj"}};

/// llama.cpp has a name for each model that has a rule.
constexpr Names kPatterns[] = {{"gpt-2", kGpt2Pattern},       {"smollm", kDigitsPattern}, {"starcoder", kDigitsPattern},
                               {"llama-bpe", kLlama3Pattern}, {"llama3", kLlama3Pattern}, {"llama-v3", kLlama3Pattern},
                               {"qwen2", kQwen2Pattern},      {"deepseek-r1-qwen", kQwen2Pattern}};

template <std::size_t n>
const std::string_view* find(const Names (&names)[n], std::string_view name) {
  for (const Names& pair : names)
    if (pair.first == name) return &pair.second;
  return nullptr;
}

}  // namespace

std::optional<std::string> hugging_face_name(const std::string& name) {
  constexpr std::string_view kLayer = "blk.";
  const std::size_t kind = name.rfind('.');
  if (kind == std::string::npos) return std::nullopt;
  const std::string_view text = name, suffix = text.substr(kind);
  if (!text.starts_with(kLayer)) {
    const std::string_view* const found = find(kOutside, text.substr(0, kind));
    return found ? std::optional(fmt::format("{}{}", *found, suffix)) : std::nullopt;
  }
  const std::size_t dot = text.find('.', kLayer.size());
  if (dot >= kind) return std::nullopt;
  const std::string_view* const found = find(kInLayer, text.substr(dot + 1, kind - dot - 1));
  if (!found) return std::nullopt;
  return fmt::format("model.layers.{}.{}{}", text.substr(kLayer.size(), dot - kLayer.size()), *found, suffix);
}

const char* gguf_pattern(const std::string& rule) {
  const std::string_view* const found = find(kPatterns, rule);
  return found ? found->data() : nullptr;
}

std::string gguf_pattern_names() {
  std::string names;
  for (const Names& pair : kPatterns) names += fmt::format("{}{}", names.empty() ? "" : ", ", pair.first);
  return names;
}

}  // namespace hedgehog

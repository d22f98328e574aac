#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "core/error.h"
#include "train/foreign_model.h"
#include "train/gguf.h"
#include "train/gguf_names.h"
#include "train/tokenizer_bpe.h"
#include "train/tokenizer_sentencepiece.h"

namespace hedgehog {
namespace {

constexpr std::int64_t kMost = std::int64_t(1) << 31;
constexpr std::size_t kMostTokens = std::size_t(1) << 24;
constexpr const char* kFrequencies = "rope_freqs.weight";

/// A file's tensors by the names that Hugging Face's Llama has; those without one keep theirs.
class GgufWeights : public ForeignWeights {
 public:
  explicit GgufWeights(std::shared_ptr<const GgufFile> file) : file_(std::move(file)) {
    for (const auto& [name, tensor] : file_->tensors()) {
      const std::string known = hugging_face_name(name).value_or(name);
      if (name != kFrequencies && !own_names_.emplace(known, name).second)
        file_->fail(fmt::format("tensors '{}' and '{}' are the same one by two names", own_names_.at(known), name));
    }
  }

  std::vector<std::string> names() const override {
    std::vector<std::string> all;
    for (const auto& [name, own] : own_names_) all.push_back(name);
    return all;
  }
  std::optional<ForeignTensor> find(const std::string& name) const override {
    const auto found = own_names_.find(name);
    return found == own_names_.end() ? std::nullopt : std::optional(file_->tensors().at(found->second));
  }
  void forget() const override { file_->forget(); }
  std::string place() const override { return file_->path().string(); }

 private:
  std::shared_ptr<const GgufFile> file_;
  std::map<std::string, std::string> own_names_;
};

/// Llama 3's scaling is in the file as what divides each frequency. Its numbers are found again: the largest is the factor, and all others
/// must be those of the scaling that all of these models have.
RotaryScaling scaling_of(const GgufFile& file, const ForeignTensor& divisors, const GptOptions& o) {
  const std::int64_t half = o.width / o.heads / 2;
  if (divisors.size() != half) file.fail(fmt::format("tensor '{}' must have {} numbers, but has {}", kFrequencies, half, divisors.size()));
  std::vector<float> found(static_cast<std::size_t>(half));
  divisors.read(0, half, found.data());
  RotaryScaling scaling{.factor = *std::max_element(found.begin(), found.end()), .low = 1, .high = 4, .original = 8192};
  for (std::int64_t i = 0; i < half; ++i) {
    const double frequency = std::pow(o.rotary_base, -double(i) / double(half)), expected = frequency / scaling.scaled(frequency);
    // f32 numbers, made from frequencies in f32
    if (!(std::abs(found[std::size_t(i)] - expected) <= 1e-4 * expected))
      file.fail(fmt::format("tensor '{}' divides frequency {} by {}, but Llama 3's scaling by {:.6} would be {:.6}; other scalings are not "
                            "supported", kFrequencies, i, found[std::size_t(i)], scaling.factor, expected));
  }
  return scaling;
}

GptOptions options_of(const GgufFile& file) {
  const std::string architecture = file.text("general.architecture");
  if (architecture != "llama" && architecture != "qwen2")
    file.fail(fmt::format("models of architecture '{}' are not supported; llama (Llama 2 and 3, SmolLM2, Mistral) and qwen2 are", architecture));
  const auto key = [&](const char* name) { return architecture + "." + name; };
  const auto refuse = [&](const char* name, double usual) {
    if (file.has(key(name)) && file.real(key(name)) != usual)
      file.fail(fmt::format("key '{}' is {}, but only {} is supported", key(name), file.real(key(name)), usual));
  };
  GptOptions o;
  o.norm = "rms", o.gated_mlp = true, o.activation = "silu", o.init = "gpt2", o.attention = "softmax";
  o.attention_bias = architecture == "qwen2";
  o.layers = file.integer(key("block_count"), 1, 4096);
  o.context = file.integer(key("context_length"), 1, kMost);
  o.width = file.integer(key("embedding_length"), 1, 1 << 20);
  o.mlp_width = file.integer(key("feed_forward_length"), 1, 1 << 22);
  o.heads = file.integer(key("attention.head_count"), 1, 4096);
  o.key_heads = file.has(key("attention.head_count_kv")) ? file.integer(key("attention.head_count_kv"), 1, 4096) : o.heads;
  o.norm_eps = file.real(key("attention.layer_norm_rms_epsilon"));
  if (file.has(key("rope.freq_base"))) o.rotary_base = file.real(key("rope.freq_base"));
  o.tied_head = !file.tensors().contains("output.weight");
  refuse("expert_count", 0);
  for (const char* name : {"attention.scale", "logit_scale", "residual_scale", "embedding_scale", "attention.clamp_kqv", "attn_logit_softcapping",
                           "final_logit_softcapping", "rope.scale_linear"})
    if (file.has(key(name)) && file.real(key(name)) != 0 && file.real(key(name)) != 1)
      file.fail(fmt::format("key '{}' is {}, which is not supported", key(name), file.real(key(name))));
  if (file.has(key("attention.causal")) && !file.flag(key("attention.causal"))) file.fail("encoders in GGUF are not supported");
  if (file.has(key("attention.sliding_window")))
    if (const std::int64_t window = file.integer(key("attention.sliding_window"), 0, kMost); window > 0 && window < o.context) o.window = window;
  if (o.width % o.heads == 0)
    for (const char* name : {"rope.dimension_count", "attention.key_length", "attention.value_length"})
      refuse(name, double(o.width / o.heads));
  const auto vocabulary = file.texts("tokenizer.ggml.tokens").size();
  if (vocabulary < 1 || vocabulary > kMostTokens) file.fail(fmt::format("its vocabulary has {} tokens, but there are 1 to {}", vocabulary, kMostTokens));
  o.vocabulary = std::int64_t(vocabulary);
  if (file.has(key("rope.scaling.type"))) {
    const std::string type = file.text(key("rope.scaling.type"));
    if (type != "none" && type != "linear")
      file.fail(fmt::format("rotary scaling '{}' is not supported; none and linear are, and Llama 3's as a tensor '{}'", type, kFrequencies));
    if (type == "linear") o.rotary_scaling = {.factor = file.real(key("rope.scaling.factor"))};
  }
  try {
    parameter_count(o);  // checks that the sizes fit together
  } catch (const ShapeError& error) {
    file.fail(error.what());
  }
  const auto found = file.tensors().find(kFrequencies);
  if (found != file.tensors().end() && o.rotary_scaling.factor != 1)
    file.fail(fmt::format("it scales rotary positions twice, by 'rope.scaling.type' and by the tensor '{}'", kFrequencies));
  if (found != file.tensors().end()) o.rotary_scaling = scaling_of(file, found->second, o);
  return o;
}

std::int32_t id_at(const GgufFile& file, const std::string& key, std::size_t tokens) {
  return file.has(key) ? std::int32_t(file.integer(key, 0, std::int64_t(tokens) - 1)) : -1;
}

/// The ids around a text: those that the file asks for, and by default those of its family.
TokenFrame frame_of(const GgufFile& file, std::size_t tokens, bool begins) {
  TokenFrame frame;
  const auto add = [&](const char* asked, bool usual, const char* id, std::vector<std::int32_t>& to) {
    const std::int32_t found = id_at(file, id, tokens);
    if (found >= 0 && (file.has(asked) ? file.flag(asked) : usual)) to.push_back(found);
  };
  add("tokenizer.ggml.add_bos_token", begins, "tokenizer.ggml.bos_token_id", frame.before);
  add("tokenizer.ggml.add_eos_token", false, "tokenizer.ggml.eos_token_id", frame.after);
  return frame;
}

std::vector<SentencePieceType> types_of(const GgufFile& file, std::size_t tokens) {
  const std::string key = "tokenizer.ggml.token_type";
  std::vector<SentencePieceType> types(tokens, SentencePieceType::kNormal);
  if (!file.has(key)) return types;
  const std::vector<std::int64_t> found = file.integers(key, tokens);
  for (std::size_t id = 0; id < tokens; ++id) {
    if (found[id] < 1 || found[id] > 6) file.fail(fmt::format("key '{}': token {} has the type {}, but there are 1 to 6", key, id, found[id]));
    types[id] = SentencePieceType(found[id]);
  }
  return types;
}

/// Byte-level pairs. Text is not put into a normal form, as with llama.cpp.
TokenizerPointer pairs_of(const GgufFile& file, std::vector<std::string_view> tokens) {
  const std::string rule = file.has("tokenizer.ggml.pre") ? file.text("tokenizer.ggml.pre") : "";
  const char* const pattern = gguf_pattern(rule);
  if (!pattern)
    file.fail(fmt::format("key 'tokenizer.ggml.pre' is '{}', a rule for pieces that is not known; those of {} are", rule, gguf_pattern_names()));
  std::vector<SentencePieceType> types = types_of(file, tokens.size());
  // the end of the list may pad the vocabulary
  while (types.size() > 1 && types.back() == SentencePieceType::kUnused) types.pop_back(), tokens.pop_back();
  std::vector<AddedToken> added;
  for (std::size_t id = 0; id < types.size(); ++id)
    if (types[id] != SentencePieceType::kNormal)
      added.push_back({.id = std::int32_t(id), .special = types[id] != SentencePieceType::kUserDefined});
  BpeVocabulary v = read_bpe_lists(file.path(), tokens, file.texts("tokenizer.ggml.merges"), added);
  v.pattern = pattern;
  v.ignore_merges = v.pattern == kLlama3Pattern;
  v.frame = frame_of(file, tokens.size(), v.pattern == kLlama3Pattern);
  return bpe_tokenizer_of(file.path(), std::move(v));
}

TokenizerPointer pieces_of(const GgufFile& file, const std::vector<std::string_view>& tokens) {
  SentencePieceVocabulary v;
  v.tokens.assign(tokens.begin(), tokens.end());
  v.types = types_of(file, tokens.size());
  v.scores = file.reals("tokenizer.ggml.scores", tokens.size());
  if (file.has("tokenizer.ggml.add_space_prefix")) v.prefix_space = file.flag("tokenizer.ggml.add_space_prefix");
  v.end = id_at(file, "tokenizer.ggml.eos_token_id", tokens.size());
  v.frame = frame_of(file, tokens.size(), true);
  return sentencepiece_tokenizer_of(file.path(), std::move(v));
}

TokenizerPointer tokenizer_of(const GgufFile& file) {
  const std::vector<std::string_view> tokens = file.texts("tokenizer.ggml.tokens");
  const std::string kind = file.text("tokenizer.ggml.model");
  if (kind == "gpt2") return pairs_of(file, tokens);
  if (kind == "llama") return pieces_of(file, tokens);
  file.fail(fmt::format("key 'tokenizer.ggml.model' is '{}', but only gpt2 (byte pairs) and llama (SentencePiece) are supported", kind));
}

}  // namespace

ForeignModel open_gguf(const std::filesystem::path& path) {
  const auto file = std::make_shared<const GgufFile>(path);
  ForeignModel model;
  model.family = "llama";
  model.options = options_of(*file);
  model.paired = file->text("general.architecture") == "llama";
  model.tokenizer = tokenizer_of(*file);
  model.weights = std::make_unique<GgufWeights>(file);
  return model;
}

}  // namespace hedgehog

#include <fmt/format.h>

#include <algorithm>

#include "core/error.h"
#include "train/feature_fields.h"
#include "train/files.h"
#include "train/foreign_export.h"
#include "train/foreign_model.h"
#include "train/json_fields.h"
#include "train/strict_json.h"

namespace hedgehog {
namespace {

constexpr std::int64_t kMost = std::int64_t(1) << 31;

template <class T>
T value_or(const JsonFields& f, const char* name, T otherwise, const char* expected) {
  return f.has(name) ? f.get<T>(name, expected) : otherwise;
}

/// Refuses a field that asks for what is not here.
void must_be(const JsonFields& f, const char* name, const nlohmann::json& supported, const nlohmann::json& usual) {
  const auto found = f.has(name) ? f.get<nlohmann::json>(name, "there") : usual;
  if (found != supported)
    throw FileError(fmt::format("[import] {}: '{}' is {}, but only {} is supported", f.file().string(), name, found.dump(), supported.dump()));
}

std::string activation_of(const JsonFields& f, const char* name, const char* usual) {
  const auto found = value_or<std::string>(f, name, usual, "text");
  if (found == "gelu_new" || found == "gelu_pytorch_tanh" || found == "gelu_fast") return "gelu";
  if (found == "gelu") return "gelu_erf";
  if (found == "silu" || found == "swish") return "silu";
  if (found == "relu") return "relu";
  throw FileError(fmt::format("[import] {}: '{}' is '{}', but only gelu, gelu_new (with tanh), silu and relu are supported",
                              f.file().string(), name, found));
}

GptOptions gpt2_options(const JsonFields& f) {
  GptOptions o;
  o.positions = "learned", o.bias = true, o.init = "gpt2", o.attention = "softmax";
  o.layers = f.integer("n_layer", 1, 4096);
  o.heads = f.integer("n_head", 1, 4096);
  o.width = f.integer("n_embd", 1, 1 << 20);
  o.context = f.integer("n_positions", 1, kMost);
  o.vocabulary = f.integer("vocab_size", 1, kMost);
  if (f.has("n_inner")) o.mlp_width = f.integer("n_inner", 1, 1 << 22);
  o.activation = activation_of(f, "activation_function", "gelu_new");
  o.norm_eps = f.has("layer_norm_epsilon") ? f.real("layer_norm_epsilon") : 1e-5;
  o.tied_head = value_or<bool>(f, "tie_word_embeddings", true, "true or false");
  must_be(f, "scale_attn_weights", true, true);
  must_be(f, "scale_attn_by_inverse_layer_idx", false, false);
  return o;
}

/// rope_theta and rope_scaling, or both in rope_parameters.
void read_rotary(const JsonFields& f, GptOptions& o) {
  const bool together = f.has("rope_parameters");
  const JsonFields base = together ? f.object("rope_parameters") : f;
  o.rotary_base = base.has("rope_theta") ? base.real("rope_theta") : 10000;
  if (!together && !f.has("rope_scaling")) return;
  const JsonFields s = f.object(together ? "rope_parameters" : "rope_scaling");
  const auto type = s.has("rope_type") ? s.get<std::string>("rope_type", "text") : value_or<std::string>(s, "type", "default", "text");
  if (type == "default") return;
  if (type != "linear" && type != "llama3")
    throw FileError(fmt::format("[import] {}: rotary scaling '{}' is not supported; default, linear and llama3 are", f.file().string(), type));
  o.rotary_scaling.factor = s.real("factor");
  if (type == "linear") return;
  o.rotary_scaling.low = s.real("low_freq_factor");
  o.rotary_scaling.high = s.real("high_freq_factor");
  o.rotary_scaling.original = s.real("original_max_position_embeddings");
}

GptOptions llama_options(const JsonFields& f, const std::string& type) {
  GptOptions o;
  o.norm = "rms", o.gated_mlp = true, o.init = "gpt2", o.attention = "softmax";
  o.layers = f.integer("num_hidden_layers", 1, 4096);
  o.heads = f.integer("num_attention_heads", 1, 4096);
  o.key_heads = f.has("num_key_value_heads") ? f.integer("num_key_value_heads", 1, 4096) : o.heads;
  o.width = f.integer("hidden_size", 1, 1 << 20);
  o.mlp_width = f.integer("intermediate_size", 1, 1 << 22);
  o.context = f.integer("max_position_embeddings", 1, kMost);
  o.vocabulary = f.integer("vocab_size", 1, kMost);
  o.activation = activation_of(f, "hidden_act", "silu");
  o.norm_eps = f.has("rms_norm_eps") ? f.real("rms_norm_eps") : 1e-6;
  o.tied_head = value_or<bool>(f, "tie_word_embeddings", false, "true or false");
  o.attention_bias = type == "qwen2";
  must_be(f, "attention_bias", false, false);
  must_be(f, "mlp_bias", false, false);
  if (f.has("layer_types"))
    for (const auto& layer : f.get<std::vector<std::string>>("layer_types", "a list of texts"))
      if (layer != (type == "mistral" && f.has("sliding_window") ? "sliding_attention" : "full_attention"))
        throw FileError(fmt::format("[import] {}: layers of several kinds of attention ('{}') are not supported", f.file().string(), layer));
  if (o.width % o.heads == 0 && f.has("head_dim")) must_be(f, "head_dim", o.width / o.heads, nullptr);
  read_rotary(f, o);
  if (type == "qwen2") must_be(f, "use_sliding_window", false, false);
  if (type == "mistral" && f.has("sliding_window"))
    if (const std::int64_t window = f.integer("sliding_window", 1, kMost); window < o.context) o.window = window;
  return o;
}

/// What `own_config` wrote: attention that other libraries do not have.
void read_own(const nlohmann::json& root, const JsonFields& f, GptOptions& o) {
  const nlohmann::json known = own_config(o);
  for (const auto& [name, value] : root.at("hedgehog").items())
    if (!known.contains(name))
      throw FileError(fmt::format("[import] {}: field 'hedgehog.{}' is not known and may change the results; it is of another version",
                                  f.file().string(), name));
  o.attention = f.get<std::string>("attention", "text");
  o.window = f.integer("window", 0, kMost);
  o.qk_norm = f.get<bool>("qk_norm", "true or false");
  o.decay_gate = f.get<bool>("decay_gate", "true or false");
  o.map_weights = f.get<bool>("map_weights", "true or false");
  o.short_convolution = f.integer("short_convolution", 0, 64);
  read_feature_sizes(f, o.features);
  read_feature_draws(f, o.features);
  o.seed = std::uint64_t(f.integer("seed", 0, INT64_MAX));
}

GptOptions bert_options(const JsonFields& f) {
  GptOptions o;
  o.causal = false, o.post_norm = true, o.embedding_norm = true;
  o.positions = "learned", o.bias = true, o.init = "gpt2", o.attention = "softmax";
  o.layers = f.integer("num_hidden_layers", 1, 4096);
  o.heads = f.integer("num_attention_heads", 1, 4096);
  o.width = f.integer("hidden_size", 1, 1 << 20);
  o.mlp_width = f.integer("intermediate_size", 1, 1 << 22);
  o.context = f.integer("max_position_embeddings", 1, kMost);
  o.vocabulary = f.integer("vocab_size", 1, kMost);
  o.token_types = f.has("type_vocab_size") ? f.integer("type_vocab_size", 1, 1 << 16) : 2;
  o.activation = activation_of(f, "hidden_act", "gelu");
  o.norm_eps = f.has("layer_norm_eps") ? f.real("layer_norm_eps") : 1e-12;
  must_be(f, "position_embedding_type", "absolute", "absolute");
  must_be(f, "is_decoder", false, false);
  must_be(f, "add_cross_attention", false, false);
  must_be(f, "pruned_heads", nlohmann::json::object(), nlohmann::json::object());
  return o;
}

}  // namespace

nlohmann::json own_config(const GptOptions& o) {
  nlohmann::json config{{"attention", o.attention},
                        {"window", o.window},
                        {"qk_norm", o.qk_norm},
                        {"decay_gate", o.decay_gate},
                        {"map_weights", o.map_weights},
                        {"short_convolution", o.short_convolution},
                        {"seed", o.seed}};
  write_features(config, o.features);
  return config;
}

GptOptions read_hugging_face_config(const std::filesystem::path& file, std::string& family) {
  const nlohmann::json root = parse_strict_json(file, read_file(file, std::size_t(16) << 20), "config of a model", 16);
  const JsonFields f(root, file, "import", "the config is damaged or not of this library");
  auto type = f.get<std::string>("model_type", "text");
  const bool own = type == "hedgehog";
  if (own) type = f.get<std::string>("base_model_type", "text");
  GptOptions o;
  if (type == "gpt2") {
    o = gpt2_options(f), family = "gpt2";
  } else if (type == "llama" || type == "mistral" || type == "qwen2") {
    o = llama_options(f, type), family = "llama";
  } else if (type == "bert") {
    o = bert_options(f), family = "bert";
  } else {
    throw FileError(fmt::format("[import] {}: models of type '{}' are not supported; gpt2, llama (SmolLM2 too), mistral, qwen2 and "
                                "bert are", file.string(), type));
  }
  if (own) read_own(root, f.object("hedgehog"), o);
  try {
    parameter_count(o);  // checks that the sizes fit together
  } catch (const ShapeError& error) {
    throw FileError(fmt::format("[import] {}: {}", file.string(), error.what()));
  }
  return o;
}

}  // namespace hedgehog

#include "train/foreign_export.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "core/dtype.h"
#include "core/error.h"
#include "train/atomic_directory.h"
#include "train/files.h"
#include "train/safetensors.h"
#include "train/tokenizer_bpe.h"

namespace hedgehog {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

/// A file without tensors: names have the usual prefix.
class NoWeights : public ForeignWeights {
 public:
  std::vector<std::string> names() const override { return {}; }
  std::optional<ForeignTensor> find(const std::string&) const override { return std::nullopt; }
  void forget() const override {}
  std::string place() const override { return "export"; }
};

/// binary16 of an f32, to nearest even.
std::uint16_t f16_of(float x) {
  const auto bits = std::bit_cast<std::uint32_t>(x), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return std::uint16_t(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return std::uint16_t(sign | 0x7c00u);
  if (magnitude < 0x38800000u) {  // below 2^-14: multiples of 2^-24, which the sum rounds to
    const float sum = std::bit_cast<float>(magnitude) + 0.5f;
    return std::uint16_t(sign | (std::bit_cast<std::uint32_t>(sum) - 0x3f000000u));
  }
  return std::uint16_t(sign | (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13);
}

template <class Store>
void store_halves(std::span<const float> numbers, std::byte* to, const Store& store) {
  for (std::size_t i = 0; i < numbers.size(); ++i) {
    const std::uint16_t bits = store(numbers[i]);
    std::memcpy(to + 2 * i, &bits, 2);
  }
}

const char* dtype_name(ElementFormat format) {
  return format == ElementFormat::f16 ? "float16" : format == ElementFormat::bf16 ? "bfloat16" : "float32";
}

/// Ours is the approximation with tanh; theirs of that name is exact.
std::string activation_name(const std::string& activation) {
  return activation == "gelu" ? "gelu_new" : activation == "gelu_erf" ? "gelu" : activation;
}

/// Of a base: "positions is rotary, not learned".
class Misfits {
 public:
  template <class T>
  void must(const char* what, const T& is, const T& wanted) {
    if (!(is == wanted)) list_.push_back(fmt::format("{} is {}, not {}", what, is, wanted));
  }
  bool none() const { return list_.empty(); }
  std::string text() const { return fmt::format("{}", fmt::join(list_, ", ")); }

 private:
  std::vector<std::string> list_;
};

Misfits misfits(const GptOptions& o, bool gpt2) {
  const bool softmax = o.attention == "softmax";
  Misfits m;
  m.must("causal", o.causal, true);
  m.must("post_norm", o.post_norm, false);
  m.must("embedding_norm", o.embedding_norm, false);
  m.must<std::int64_t>("token_types", o.token_types, 0);
  m.must<std::string>("positions", o.positions, gpt2 ? "learned" : "rotary");
  m.must<std::string>("norm", o.norm, gpt2 ? "layer" : "rms");
  m.must("gated_mlp", o.gated_mlp, !gpt2);
  if (gpt2) {
    m.must("key_heads", o.shared_heads(), o.heads);
    if (softmax) m.must<std::int64_t>("window", o.window, 0);
  } else {
    m.must("bias", o.bias, false);
    // Qwen2's window is not of all layers
    if (softmax && o.window > 0) m.must("attention_bias with a window", o.attention_bias, false);
  }
  if (softmax) {
    m.must("qk_norm", o.qk_norm, false);
    m.must<std::int64_t>("short_convolution", o.short_convolution, 0);
  }
  return m;
}

Json gpt2_config(const GptOptions& o) {
  return {{"vocab_size", o.vocabulary},
          {"n_positions", o.context},
          {"n_embd", o.width},
          {"n_layer", o.layers},
          {"n_head", o.heads},
          {"n_inner", o.hidden_width()},
          {"activation_function", activation_name(o.activation)},
          {"layer_norm_epsilon", o.norm_eps},
          {"embd_pdrop", o.dropout},
          {"resid_pdrop", o.dropout},
          {"attn_pdrop", 0.0}};
}

Json llama_config(const GptOptions& o, const std::string& type) {
  const RotaryScaling& s = o.rotary_scaling;
  Json scaling = nullptr;
  // tokens: a whole number where they are
  const Json original = s.original == std::floor(s.original) ? Json(std::int64_t(s.original)) : Json(s.original);
  // linear scaling is Llama 3's where no frequency keeps its own
  if (s.factor != 1 && s.original == 0) scaling = {{"rope_type", "linear"}, {"factor", s.factor}};
  else if (s.factor != 1)
    scaling = {{"rope_type", "llama3"}, {"factor", s.factor}, {"low_freq_factor", s.low}, {"high_freq_factor", s.high},
               {"original_max_position_embeddings", original}};
  Json config{{"vocab_size", o.vocabulary},
              {"max_position_embeddings", o.context},
              {"hidden_size", o.width},
              {"num_hidden_layers", o.layers},
              {"num_attention_heads", o.heads},
              {"num_key_value_heads", o.shared_heads()},
              {"intermediate_size", o.hidden_width()},
              {"hidden_act", activation_name(o.activation)},
              {"rms_norm_eps", o.norm_eps},
              {"rope_theta", o.rotary_base},
              {"rope_scaling", scaling},
              {"attention_dropout", 0.0}};
  if (type == "llama") config["attention_bias"] = false, config["mlp_bias"] = false;
  if (type == "mistral") config["sliding_window"] = o.window;
  if (type == "qwen2") config["use_sliding_window"] = false;
  return config;
}

Json config_json(const GptOptions& o, const ForeignArchitecture& architecture, const Tokenizer& tokenizer, ElementFormat format) {
  const bool softmax = o.attention == "softmax";
  Json config;
  config["architectures"] = Json::array({softmax ? architecture.name : "HedgehogForCausalLM"});
  config["model_type"] = softmax ? architecture.type : "hedgehog";
  if (!softmax) config["base_model_type"] = architecture.type, config["hedgehog"] = own_config(o);
  config.update(architecture.type == "gpt2" ? gpt2_config(o) : llama_config(o, architecture.type));
  config["tie_word_embeddings"] = o.tied_head;
  const TokenFrame frame = tokenizer.frame();
  // without a value a class's own would count, which is a token of another vocabulary
  config["bos_token_id"] = frame.before.empty() ? Json(nullptr) : Json(frame.before[0]);
  config["eos_token_id"] = tokenizer.end() < 0 ? Json(nullptr) : Json(tokenizer.end());
  config["pad_token_id"] = nullptr;
  config["torch_dtype"] = dtype_name(format);
  return config;
}

/// The tensor that is columns [first, first + columns) of a parameter's rows, in its own order. The inverse of import's write_piece.
std::vector<float> piece_values(const ForeignPiece& piece, const std::vector<double>& parameter, std::int64_t rows, std::int64_t width,
                                std::int64_t first, std::int64_t columns) {
  std::vector<float> values(static_cast<std::size_t>(rows * columns));
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t c = 0; c < columns; ++c)
      values[std::size_t(piece.transposed ? c * rows + r : r * columns + c)] = float(parameter[std::size_t(r * width + first + c)]);
  return values;
}

/// Tensors with their bytes.
struct StoredTensors {
  std::vector<TensorRecord> records;
  std::vector<std::vector<std::byte>> bytes;
  ElementFormat format;

  void add(const std::string& name, std::vector<std::int64_t> shape, std::span<const float> values) {
    bytes.push_back(stored_as(format, values, name));
    const char* dtype = format == ElementFormat::f16 ? "F16" : format == ElementFormat::bf16 ? "BF16" : "F32";
    records.push_back({name, dtype, std::move(shape), bytes.back().data(), bytes.back().size()});
  }
};

StoredTensors stored_tensors(const Gpt& model, ElementFormat format) {
  const GptOptions& o = model.options();
  StoredTensors tensors{{}, {}, format};
  for (const auto& [name, pieces] : exported_parts(model)) {
    const Tensors& all = model.parameters().masters();
    const auto named = [&](const std::string& wanted) {
      return std::find_if(all.begin(), all.end(), [&](const Tensor& t) { return t.name() == wanted; });
    };
    const auto found = named(name);
    if (found == all.end()) {
      // a bias that the model does not have is 0
      const std::int64_t width = named(name.substr(0, name.rfind('.')) + ".weight")->shape().last();
      tensors.add(pieces[0].name, {width}, std::vector<float>(std::size_t(width)));
      continue;
    }
    const std::vector<double> values = found->to_vector();
    const std::int64_t width = found->shape().last();
    if (pieces[0].whole) {
      std::vector<std::int64_t> shape;
      for (int axis = 0; axis < found->shape().rank(); ++axis) shape.push_back(found->shape()[axis]);
      tensors.add(pieces[0].name, shape, std::vector<float>(values.begin(), values.end()));
      continue;
    }
    const bool vector = found->shape().rank() == 1;
    std::int64_t first = 0;
    for (const ForeignPiece& piece : pieces) {
      const std::int64_t rows = vector ? 1 : piece.table ? o.vocabulary : found->shape()[0];
      const std::int64_t columns = piece.columns_of(width, pieces.size());
      std::vector<std::int64_t> shape{columns};
      if (!vector) shape.insert(piece.transposed ? shape.end() : shape.begin(), rows);
      tensors.add(piece.name, shape, piece_values(piece, values, rows, width, first, columns));
      first += columns;
    }
  }
  return tensors;
}

/// tokenizer.json as other libraries read it, if there is such a form: bytes and characters are byte pairs without merges.
std::string tokenizer_text(const Tokenizer& tokenizer) {
  if (tokenizer.kind() != "byte" && tokenizer.kind() != "char") return tokenizer.to_json();
  BpeVocabulary vocabulary;
  vocabulary.pattern = kOwnPattern;
  for (std::int32_t id = 0; id < tokenizer.size(); ++id) vocabulary.tokens.push_back(tokenizer.decode(std::span(&id, 1)));
  return bpe_json(vocabulary);
}

Json tokenizer_config(const Json& tokenizer, const Json& config, std::int64_t context) {
  Json result{{"tokenizer_class", "PreTrainedTokenizerFast"}, {"model_max_length", context}, {"clean_up_tokenization_spaces", false}};
  for (const auto& token : tokenizer.value("added_tokens", Json::array()))
    for (const char* kind : {"bos_token", "eos_token"})
      if (token["id"] == config[std::string(kind) + "_id"]) result[kind] = token["content"];
  return result;
}

}  // namespace

ForeignArchitecture foreign_architecture(const GptOptions& o) {
  if (o.lora) throw UsageError("[export] low-rank updates are not exported with a model; merge them first");
  const Misfits gpt2 = misfits(o, true), llama = misfits(o, false);
  if (gpt2.none()) return {"gpt2", "GPT2LMHeadModel"};
  if (!llama.none())
    throw UsageError(fmt::format("[export] no architecture of other libraries fits the model: for GPT-2 {}; for Llama, Mistral and Qwen2 "
                                 "{}", gpt2.text(), llama.text()));
  if (o.attention_bias) return {"qwen2", "Qwen2ForCausalLM"};
  if (o.attention == "softmax" && o.window > 0) return {"mistral", "MistralForCausalLM"};
  return {"llama", "LlamaForCausalLM"};
}

ForeignParts exported_parts(const Gpt& model) {
  return foreign_parts(model, foreign_architecture(model.options()).type == "gpt2" ? "gpt2" : "llama", NoWeights(), false);
}

void check_export_folder(const fs::path& folder) {
  std::error_code ignored;
  if (fs::exists(folder, ignored) && !(fs::is_directory(folder, ignored) && fs::is_empty(folder, ignored)))
    throw FileError(fmt::format("[export] {} is there and not an empty folder; its files would be lost, so give another one",
                                folder.string()));
}

std::vector<std::byte> stored_as(ElementFormat format, std::span<const float> numbers, const std::string& what) {
  if (format == ElementFormat::f32) {
    const auto bytes = std::as_bytes(numbers);
    return {bytes.begin(), bytes.end()};
  }
  const bool half = format == ElementFormat::f16;
  // the first number that rounds to infinity
  const float most = half ? 65520.0f : 0x1.ffp127f;
  for (const float x : numbers)
    if (std::isfinite(x) && std::abs(x) >= most)
      throw UsageError(fmt::format("[export] tensor '{}' holds {}, but {} holds numbers below {:.6g}; use another --dtype", what, x,
                                   half ? "f16" : "bf16", most));
  std::vector<std::byte> bytes(2 * numbers.size());
  if (half) store_halves(numbers, bytes.data(), f16_of);
  else store_halves(numbers, bytes.data(), [](float x) { return BFloat16(x).bits; });
  return bytes;
}

std::vector<std::string> export_hugging_face(const fs::path& folder, const Gpt& model, const Tokenizer& tokenizer, ElementFormat format) {
  const ForeignArchitecture architecture = foreign_architecture(model.options());
  check_export_folder(folder);
  const Json config = config_json(model.options(), architecture, tokenizer, format);
  const std::string tokens = tokenizer_text(tokenizer);
  const Json tokens_json = Json::parse(tokens);
  std::vector<std::string> notes;
  if (tokens_json.contains("hedgehog"))
    notes.push_back(fmt::format("the tokenizer is of kind '{}', for which other libraries have no form: its tokenizer.json is hedgehog's own",
                                tokenizer.kind()));
  const StoredTensors tensors = stored_tensors(model, format);
  save_directory(folder, [&](const fs::path& temporary) {
    write_safetensors(temporary / "model.safetensors", tensors.records, {{"format", "pt"}});
    write_file(temporary / "config.json", config.dump(2) + "\n");
    write_file(temporary / "tokenizer.json", tokens + "\n");
    if (!notes.empty()) return;
    write_file(temporary / "tokenizer_config.json", tokenizer_config(tokens_json, config, model.options().context).dump(2) + "\n");
  });
  return notes;
}

}  // namespace hedgehog

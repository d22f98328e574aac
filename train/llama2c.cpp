#include <fmt/format.h>

#include <cstring>
#include <map>
#include <set>

#include "core/error.h"
#include "train/foreign_model.h"
#include "train/mapped_file.h"

namespace hedgehog {
namespace {

/// The tensors of a llama2.c file by the names that Hugging Face's Llama has. All layers of a tensor lie together.
class Llama2cWeights : public ForeignWeights {
 public:
  explicit Llama2cWeights(const std::filesystem::path& file) : file_(file) {}

  std::span<const std::byte> bytes() const { return file_.bytes(); }

  /// Places the tensors behind the header. False if the file has not the bytes for them, and for `unused` floats.
  bool place_tensors(const GptOptions& o, std::size_t header, std::int64_t unused) {
    offset_ = header;
    const std::int64_t C = o.width, D = C / o.heads, K = o.key_heads * D, M = o.mlp_width, V = o.vocabulary;
    const auto layers = [&](const char* name, std::vector<std::int64_t> shape) {
      for (std::int64_t i = 0; i < o.layers; ++i) place(fmt::format("model.layers.{}.{}.weight", i, name), shape);
    };
    place("model.embed_tokens.weight", {V, C});
    layers("input_layernorm", {C});
    layers("self_attn.q_proj", {C, C});
    layers("self_attn.k_proj", {K, C});
    layers("self_attn.v_proj", {K, C});
    layers("self_attn.o_proj", {C, C});
    layers("post_attention_layernorm", {C});
    layers("mlp.gate_proj", {M, C});
    layers("mlp.down_proj", {C, M});
    layers("mlp.up_proj", {M, C});
    place("model.norm.weight", {C});
    offset_ += double(4 * unused);
    if (!o.tied_head) place("lm_head.weight", {V, C});
    return offset_ == double(file_.bytes().size());
  }
  double expected_bytes() const { return offset_; }

  std::vector<std::string> names() const override {
    std::vector<std::string> all;
    for (const auto& [name, tensor] : tensors_) all.push_back(name);
    return all;
  }
  std::optional<ForeignTensor> find(const std::string& name) const override {
    const auto found = tensors_.find(name);
    return found == tensors_.end() ? std::nullopt : std::optional(found->second);
  }
  void forget() const override { file_.forget(); }
  std::string place() const override { return file_.path().string(); }

 private:
  // offsets in double: sizes of a damaged header multiply to more than 64 bits, and are compared before anything is read
  void place(const std::string& name, const std::vector<std::int64_t>& shape) {
    double size = 4;
    for (const std::int64_t axis : shape) size *= double(axis);
    const bool inside = offset_ + size <= double(file_.bytes().size());
    tensors_[name] = {shape, ElementFormat::f32, inside ? file_.bytes().data() + std::size_t(offset_) : nullptr,
                      fmt::format("{}: tensor '{}'", file_.path().string(), name)};
    offset_ += size;
  }

  MappedFile file_;
  double offset_ = 0;
  std::map<std::string, ForeignTensor> tensors_;
};

}  // namespace

// The file is seven int32 (width, MLP, layers, heads, key heads, vocabulary, context; a negative vocabulary: the classifier is not tied),
// then floats. Behind the final norm lie 2 * context * D / 2 floats of rotary tables, which are no longer used.
ForeignModel open_llama2c(const std::filesystem::path& file) {
  auto weights = std::make_unique<Llama2cWeights>(file);
  const auto fail = [&](const std::string& what) {
    throw FileError(fmt::format("[import] {} is not a llama2.c model of version 0: {}", file.string(), what));
  };
  std::int32_t header[7];
  if (weights->bytes().size() < sizeof header) fail(fmt::format("it has {} bytes, its header 28", weights->bytes().size()));
  std::memcpy(header, weights->bytes().data(), sizeof header);
  const char* const fields[] = {"dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "seq_len"};
  for (int i = 0; i < 7; ++i) {
    const std::int64_t x = header[i], most = i == 2 || i == 3 || i == 4 ? 4096 : i == 0 ? 1 << 20 : 1 << 24;
    if ((i == 5 ? std::abs(x) : x) < 1 || std::abs(x) > most)
      fail(fmt::format("field '{}' at byte {} must be from 1 to {}, but is {}", fields[i], 4 * i, most, x));
  }
  ForeignModel model;
  model.family = "llama", model.paired = true;
  GptOptions& o = model.options;
  o.norm = "rms", o.gated_mlp = true, o.activation = "silu", o.init = "gpt2", o.attention = "softmax";
  o.width = header[0], o.mlp_width = header[1], o.layers = header[2], o.heads = header[3], o.key_heads = header[4];
  o.vocabulary = std::abs(header[5]), o.tied_head = header[5] > 0, o.context = header[6];
  try {
    parameter_count(o);
  } catch (const ShapeError& error) {
    fail(error.what());
  }
  if (!weights->place_tensors(o, sizeof header, o.context * (o.width / o.heads / 2) * 2))
    fail(fmt::format("its header asks for {:.0f} bytes, but it has {}", weights->expected_bytes(), weights->bytes().size()));
  model.weights = std::move(weights);
  return model;
}

}  // namespace hedgehog

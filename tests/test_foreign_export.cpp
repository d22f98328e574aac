#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "tests/foreign_cases.h"
#include "tests/temporary_directory.h"
#include "train/foreign_export.h"

// What is written for other libraries: read again it is the same model, bit for bit. tests/data/check_export.py has `transformers` read it.

namespace hedgehog {
namespace {

using namespace test;
namespace fs = std::filesystem;
using Json = nlohmann::json;

TokenizerPointer some_tokenizer(std::int64_t size) {
  std::string text;
  for (std::int64_t i = 0; i < size; ++i) text += char(' ' + i);
  return char_tokenizer(text);
}

ForeignModel opened(const fs::path& folder) {
  ForeignModel model;
  model.options = read_hugging_face_config(folder / "config.json", model.family);
  model.weights = safetensors_folder(folder);
  return model;
}

std::vector<double> logits_of(const Gpt& model) {
  const no_grad guard;
  std::vector<double> ids;
  for (int i = 0; i < 40; ++i) ids.push_back(i * i * 7 % 47);
  return model.logits(model.hidden(constant({2, 20}, ids, Dtype::i32))).to_vector();
}

/// The bytes of a file's tensors as f32, by name.
std::map<std::string, std::vector<float>> tensors_of(const ForeignWeights& weights) {
  std::map<std::string, std::vector<float>> all;
  for (const std::string& name : weights.names()) {
    const ForeignTensor t = *weights.find(name);
    std::vector<float>& values = all[name + " " + t.shape_text()];
    values.resize(std::size_t(t.size()));
    t.read(0, t.size(), values.data());
  }
  return all;
}

GptOptions small(const std::string& base) {
  GptOptions o;
  o.layers = 2, o.heads = 4, o.width = 16, o.context = 32, o.vocabulary = 47, o.attention = "softmax", o.mlp_width = 24;
  if (base == "gpt2") o.positions = "learned", o.bias = true;
  else o.norm = "rms", o.gated_mlp = true, o.activation = "silu", o.key_heads = 2, o.rotary_base = 500, o.tied_head = false;
  return o;
}

/// A model all of whose parameters are drawn, as after training.
Gpt trained(const GptOptions& options) {
  Gpt model(options);
  std::uint64_t i = 0;
  for (const Tensor& p : model.parameters().all()) {
    std::vector<double> values = model.parameters().values(p);
    for (double& x : values) x += 0.2 * std::sin(double(++i));
    model.parameters().assign(p, values);
  }
  return model;
}

std::string refusal_of(const GptOptions& o) {
  return message_of<UsageError>([&] { foreign_architecture(o); });
}

}  // namespace

TEST_CASE("export: what was imported is written as it was, tensor by tensor") {
  for (const char* name : {"gpt2", "llama", "llama-grouped", "llama3", "llama-linear", "mistral", "qwen2"}) {
    CAPTURE(std::string(name));
    const ForeignModel original = opened(kModels / name);
    const Gpt model = load_foreign_model(original);
    const TemporaryDirectory d;
    CHECK(export_hugging_face(d / "out", model, *some_tokenizer(50), ElementFormat::f32).empty());
    const ForeignModel again = opened(d / "out");
    auto expected = tensors_of(*original.weights), found = tensors_of(*again.weights);
    CHECK(expected == found);
    CHECK(logits_of(load_foreign_model(again)) == logits_of(model));
    // settings by which results change
    const Json before = Json::parse(read_file(kModels / name / "config.json")), after = Json::parse(read_file(d / "out/config.json"));
    for (const char* field : {"model_type", "architectures", "vocab_size", "tie_word_embeddings", "layer_norm_epsilon", "rms_norm_eps",
                              "hidden_act", "activation_function", "num_key_value_heads", "sliding_window", "max_position_embeddings",
                              "n_positions"})
      CHECK(after.value(field, Json()) == before.value(field, Json()));
  }
}

TEST_CASE("export: models made here are the same when they are read again, whatever their attention") {
  std::vector<std::pair<std::string, GptOptions>> models;
  const auto add = [&](const char* base, const char* attention, const auto& change) {
    GptOptions o = small(base);
    o.attention = attention;
    change(o);
    models.emplace_back(std::string(base) + " " + attention, o);
  };
  const auto plain = [](GptOptions&) {};
  add("gpt2", "softmax", [](GptOptions& o) { o.bias = false, o.tied_head = false; });
  add("gpt2", "softmax", [](GptOptions& o) { o.activation = "relu", o.bias = false, o.attention_bias = true; });
  add("gpt2", "softmax", [](GptOptions& o) { o.vocabulary_multiple = 16, o.mlp_width = 0, o.norm_eps = 1e-3; });
  add("gpt2", "softmax", [](GptOptions& o) { o.activation = "gelu_erf"; });
  add("llama", "softmax", [](GptOptions& o) { o.activation = "gelu", o.key_heads = 0, o.vocabulary_multiple = 16; });
  add("llama", "softmax", [](GptOptions& o) { o.window = 5, o.rotary_scaling = {8, 1, 4, 16}; });
  add("llama", "softmax", [](GptOptions& o) { o.attention_bias = true, o.rotary_scaling.factor = 2; });
  for (const char* attention : {"hedgehog", "hedgehog-softmax", "hedgehog-joint", "t2r", "elu", "taylor", "performer", "cosformer"}) {
    add("llama", attention, plain);
    add("gpt2", attention, plain);
  }
  add("llama", "hedgehog", [](GptOptions& o) { o.window = 4, o.qk_norm = true, o.short_convolution = 3, o.attention_bias = true; });
  add("gpt2", "hedgehog", [](GptOptions& o) { o.window = 40, o.bias = false; });
  add("llama", "exp", [](GptOptions& o) { o.decay_gate = true, o.map_weights = true; });
  add("llama", "performer", [](GptOptions& o) { o.seed = 9, o.features.performer_features = 6, o.features.performer_draw = 2; });
  add("gpt2", "taylor", [](GptOptions& o) { o.features.taylor_dim = 3; });
  for (const auto& [name, options] : models) {
    CAPTURE(name);
    const Gpt model = trained(options);
    const TemporaryDirectory d;
    export_hugging_face(d / "out", model, *some_tokenizer(47), ElementFormat::f32);
    const bool softmax = options.attention == "softmax";
    CHECK(Json::parse(read_file(d / "out/config.json"))["model_type"] == (softmax ? foreign_architecture(options).type : "hedgehog"));
    const Gpt again = load_foreign_model(opened(d / "out"));
    CHECK(again.options().attention == options.attention);
    CHECK(again.options().window == options.window);
    export_hugging_face(d / "twice", again, *some_tokenizer(47), ElementFormat::f32);
    CHECK(tensors_of(*opened(d / "twice").weights) == tensors_of(*opened(d / "out").weights));
    // the rows that pad a table are left out, and products of another width are summed in another order
    const std::vector<double> expected = logits_of(model), found = logits_of(again);
    double apart = 0;
    for (std::size_t i = 0; i < found.size(); ++i) apart = std::max(apart, std::abs(found[i] - expected[i]));
    CHECK(apart <= (options.vocabulary_multiple > 1 ? 16 * 0x1p-24 * largest(expected) : 0));
  }
}

TEST_CASE("export: f16 and bf16 are the nearest numbers, even ones of two") {
  const auto stored = [](ElementFormat format, float x) {
    const std::vector<std::byte> bytes = stored_as(format, std::span(&x, 1), "w");
    std::uint16_t bits;
    std::memcpy(&bits, bytes.data(), 2);
    return bits;
  };
  for (const ElementFormat format : {ElementFormat::f16, ElementFormat::bf16}) {
    const std::uint16_t infinity = format == ElementFormat::f16 ? 0x7c00 : 0x7f80;
    const auto value = [&](std::uint16_t bits) {
      float x;
      block_format(format).read(reinterpret_cast<const std::byte*>(&bits), 1, &x);
      return x;
    };
    bool right = true;
    for (std::uint16_t bits = 0; bits < infinity; ++bits) {
      const float x = value(bits), next = value(std::uint16_t(bits + 1)), middle = x + (next - x) / 2;
      right = right && stored(format, x) == bits && stored(format, -x) == (bits | 0x8000);
      if (bits + 1 == infinity) continue;
      right = right && stored(format, middle) == (bits % 2 ? bits + 1 : bits) && stored(format, std::nextafter(middle, next)) == bits + 1 &&
              stored(format, std::nextafter(middle, x)) == bits;
    }
    CHECK(right);
    CHECK(stored(format, INFINITY) == infinity);
    CHECK(std::isnan(value(stored(format, NAN))));
  }
  const float most = 65519;
  CHECK(stored(ElementFormat::f16, most) == 0x7bff);
  CHECK(contains(message_of<UsageError>([&] { stored(ElementFormat::f16, 65520); }),
                 "tensor 'w' holds 65520, but f16 holds numbers below 65520"));
  CHECK(contains(message_of<UsageError>([&] { stored(ElementFormat::bf16, -3.4e38f); }), "bf16"));
  // a model in f16 is read as what was rounded
  const Gpt model = trained(small("llama"));
  const TemporaryDirectory d;
  export_hugging_face(d / "out", model, *some_tokenizer(47), ElementFormat::f16);
  const ForeignModel again = opened(d / "out");
  CHECK(again.weights->find("model.norm.weight")->format == ElementFormat::f16);
  const std::vector<double> exact = logits_of(model), rounded = logits_of(load_foreign_model(again));
  double most_apart = 0;
  for (std::size_t i = 0; i < exact.size(); ++i) most_apart = std::max(most_apart, std::abs(exact[i] - rounded[i]));
  CHECK(most_apart > 0);
  CHECK(most_apart <= 0x1p-5 * largest(exact));  // two layers of some fifty roundings of 2^-11 each
}

TEST_CASE("export: what fits no architecture is refused with what does not fit") {
  GptOptions o = small("gpt2");
  o.norm = "rms", o.gated_mlp = true;
  const std::string both = refusal_of(o);
  for (const char* part : {"for GPT-2 norm is rms, not layer, gated_mlp is true, not false",
                           "for Llama, Mistral and Qwen2 positions is learned, not rotary", "bias is true, not false"})
    CHECK(contains(both, part));
  o = small("llama"), o.positions = "none";
  CHECK(contains(refusal_of(o), "positions is none, not rotary"));
  o = small("llama"), o.qk_norm = true, o.short_convolution = 4;
  CHECK(contains(refusal_of(o), "qk_norm is true, not false, short_convolution is 4, not 0"));
  o = small("llama"), o.window = 4, o.attention_bias = true;
  CHECK(contains(refusal_of(o), "attention_bias with a window is true, not false"));
  o = small("gpt2"), o.window = 4;
  CHECK(contains(refusal_of(o), "window is 4, not 0"));
  o = small("gpt2"), o.causal = false, o.post_norm = true;
  CHECK(contains(refusal_of(o), "for GPT-2 causal is false, not true, post_norm is true, not false"));
  o = small("gpt2"), o.key_heads = 2;
  CHECK(contains(refusal_of(o), "key_heads is 2, not 4"));
}

TEST_CASE("export: a folder with files is not overwritten; a config of linear attention is checked when it is read") {
  const Gpt model = trained([] {
    GptOptions o = small("llama");
    o.attention = "hedgehog";
    return o;
  }());
  const TemporaryDirectory d;
  d.file("full/notes.txt", "keep me");
  const auto write = [&](const char* name) { export_hugging_face(d / name, model, *some_tokenizer(47), ElementFormat::f32); };
  CHECK(contains(message_of<FileError>([&] { write("full"); }), "not an empty folder"));
  CHECK(read_file(d / "full/notes.txt") == "keep me");
  fs::create_directories(d / "empty");
  write("empty");
  const fs::path config = d / "empty/config.json";
  const Json good = Json::parse(read_file(config));
  const auto refused = [&](const auto& change) {
    Json json = good;
    change(json);
    write_file(config, json.dump());
    return message_of<FileError>([&] { load_foreign_model(opened(d / "empty")); });
  };
  CHECK(refused([](Json&) {}).empty());
  CHECK(contains(refused([](Json& j) { j["hedgehog"]["temperature"] = 2; }), "field 'hedgehog.temperature' is not known"));
  CHECK(contains(refused([](Json& j) { j["hedgehog"]["attention"] = "linformer"; }), "'linformer' is not known"));
  CHECK(contains(refused([](Json& j) { j["hedgehog"].erase("window"); }), "'hedgehog.window' must be an integer"));
  CHECK(contains(refused([](Json& j) { j["hedgehog"] = 3; }), "'hedgehog.' must be an object"));
  CHECK(contains(refused([](Json& j) { j.erase("hedgehog"); }), "'hedgehog' must be an object"));
  CHECK(contains(refused([](Json& j) { j.erase("base_model_type"); }), "'base_model_type' must be text"));
  CHECK(contains(refused([](Json& j) { j["base_model_type"] = "hedgehog"; }), "'hedgehog' are not supported"));
  CHECK(contains(refused([](Json& j) { j["hedgehog"]["attention"] = "t2r"; }), "lacks the tensor 'model.layers.0.self_attn.map_q.bias'"));
  CHECK(contains(refused([](Json& j) { j["hedgehog"]["attention"] = "elu"; }), "holds a tensor 'model.layers.0.self_attn.map_k.weight'"));
}

}  // namespace hedgehog

#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "tests/bpe_cases.h"
#include "tests/counters.h"
#include "tests/device_cases.h"
#include "tests/foreign_cases.h"
#include "tests/temporary_directory.h"
#include "train/checkpoint.h"
#include "train/files.h"
#include "train/foreign_model.h"
#include "train/generation.h"

// Models of other libraries give here what they give there: fixtures of tests/data/make_model_fixtures.py.

namespace hedgehog {
namespace {

using namespace test;
namespace fs = std::filesystem;
using Json = nlohmann::json;

ForeignModel open_folder(const fs::path& folder, Dtype dtype) {
  ForeignModel model;
  model.options = read_hugging_face_config(folder / "config.json", model.family);
  model.options.dtype = dtype;
  model.weights = safetensors_folder(folder);
  return model;
}

/// A tokenizer of so many tokens, at most 256.
TokenizerPointer byte_sized_tokenizer(std::int64_t tokens) {
  std::string text;
  for (std::int64_t i = 0; i < tokens; ++i) text += char(i);
  return char_tokenizer(text);
}

struct Copy : FixtureCopy {
  using FixtureCopy::FixtureCopy;
  template <class Change>
  void config(const Change& change) const {
    Json json = Json::parse(read_file(folder / "config.json"));
    change(json);
    write_file(folder / "config.json", json.dump());
  }
  std::string message() const {
    return message_of<FileError>([&] { load_foreign_model(open_folder(folder, Dtype::f32)); });
  }
};

}  // namespace

TEST_CASE("foreign models: logits are those of the original library") {
  for (const char* name : {"gpt2", "llama", "llama-grouped", "llama3", "llama-linear", "mistral", "qwen2"}) {
    CAPTURE(std::string(name));
    const Expected expected = expected_of(kModels / name / "expected.json");
    // there RMS norms and rotary angles, which reach 24, are in f32 always; logits have nine decimals
    const Gpt exact = load_foreign_model(open_folder(kModels / name, Dtype::f64)), single = load_foreign_model(open_folder(kModels / name, Dtype::f32));
    CHECK(exact.parameters().count() == parameter_count(exact.options()));
    CHECK(error_of(exact, expected) <= (std::string(name) == "gpt2" ? 1e-9 : 32 * 0x1p-24));
    CHECK(error_of(single, expected) <= 1e-5);
  }
  ForeignModel foreign = open_llama2c(kModels / "llama2c.bin");
  CHECK(error_of(load_foreign_model(foreign), expected_of(kModels / "llama-grouped" / "expected.json")) <= 1e-5);
}

TEST_CASE("foreign models: an encoder's hidden states, pooled texts and classes are those of the original library") {
  const no_grad guard;
  for (const Dtype dtype : {Dtype::f64, Dtype::f32}) {
    const double allowed = dtype == Dtype::f64 ? 1e-9 : 1e-5;  // what is expected has nine decimals
    const auto numbers = [](const Json& json) {
      std::vector<double> all;
      const std::function<void(const Json&)> add = [&](const Json& j) {
        if (j.is_number()) return all.push_back(j);
        for (const auto& item : j) add(item);
      };
      add(json);
      return all;
    };
    for (const char* name : {"bert", "bert-classes"}) {
      CAPTURE(std::string(name));
      const Json expected = Json::parse(read_file(kModels / name / "expected.json"));
      const Gpt model = load_foreign_model(open_folder(kModels / name, dtype));
      CHECK(model.parameters().count() == parameter_count(model.options()));
      const std::vector<double> mask = numbers(expected["mask"]);
      const std::int64_t rows = std::int64_t(expected["ids"].size()), tokens = std::int64_t(mask.size()) / rows;
      std::vector<double> starts(mask.size(), 0);
      for (std::int64_t i = 0; i < std::int64_t(mask.size()); ++i)
        if (const auto at = std::size_t(i); mask[at] == 0) starts[at] = mask[at - 1] == 1 ? double(i % tokens) : starts[at - 1];
      const auto given = [&](const std::vector<double>& values) { return constant({rows, tokens}, values, Dtype::i32); };
      const Tensor hidden = model.hidden(given(numbers(expected["ids"])),
                                         {.document_start = given(starts), .token_types = given(numbers(expected["types"]))});
      const auto check = [&](const char* what, const Tensor& found, const std::vector<double>& used) {
        const std::vector<double> wanted = numbers(expected[what]), got = found.to_vector();
        REQUIRE(got.size() == wanted.size());
        double most = 0;
        for (std::size_t i = 0; i < got.size(); ++i)
          if (used.empty() || used[i * used.size() / got.size()] == 1) most = std::max(most, std::abs(got[i] - wanted[i]));
        CAPTURE(std::string(what));
        CHECK(most <= allowed * largest(wanted));
      };
      if (expected.contains("logits")) {
        check("logits", model.classify(model.pooled(hidden)), {});
      } else {
        check("hidden", hidden, mask);
        check("pooled", model.pooled(hidden), {});
      }
    }
  }
}

TEST_SUITE("device") {
  TEST_CASE("foreign models: an imported checkpoint, which no run chose a type for, computes in bf16 on the GPU") {
    on_cuda([] {
      const TemporaryDirectory d;
      const ForeignModel foreign = open_folder(kModels / "llama-grouped", Dtype::f32);
      Gpt model = load_foreign_model(foreign);
      RunState run;
      run.step_slots.assign(kStepStateSize, 0);
      save_checkpoint(d / "imported", model, *byte_sized_tokenizer(model.options().vocabulary), run, false);
      CHECK(load_checkpoint(d / "imported", false).model->options().dtype == Dtype::bf16);
      run.options["device"] = "cpu";
      save_checkpoint(d / "trained", model, *byte_sized_tokenizer(model.options().vocabulary), run, false);
      CHECK(load_checkpoint(d / "trained", false).model->options().dtype == Dtype::f32);
    });
  }
}

TEST_CASE("foreign models: decoding token by token gives the same logits") {
  for (const char* name : {"gpt2", "llama-grouped", "llama3", "mistral", "qwen2"}) {
    CAPTURE(std::string(name));
    const Gpt model = load_foreign_model(open_folder(kModels / name, Dtype::f64));
    const Expected expected = expected_of(kModels / name / "expected.json");
    const std::vector<double> ids = expected.ids.to_vector();
    const std::size_t V = std::size_t(model.options().vocabulary);
    Generator generator(model, 24);
    double most = 0;
    for (std::size_t t = 0; t < 24; ++t) {
      const auto id = std::int32_t(ids[t]);
      generator.read(std::span(&id, 1));
      const std::vector<double> logits = generator.logits();
      for (std::size_t v = 0; v < V; ++v) most = std::max(most, std::abs(logits[v] - expected.logits[t * V + v]));
    }
    CHECK(most <= 32 * 0x1p-24 * largest(expected.logits));
  }
}

TEST_CASE("foreign models: the real stories260K says what its README says") {
  const fs::path folder = shared_data() / "stories260k";
  if (!fs::exists(folder)) return skip("../shared/data/stories260k is not here");
  const Gpt model = load_foreign_model(open_llama2c(folder / "stories260K.bin"));
  CHECK(model.parameters().count() == 260032);
  // pieces by id: a score, a length and the text each, behind the longest length
  const std::string file = read_file(folder / "tok512.bin");
  std::vector<std::string> pieces;
  for (std::size_t at = 4; at + 8 <= file.size();) {
    std::int32_t length = 0;
    std::memcpy(&length, file.data() + at + 4, 4);
    pieces.push_back(file.substr(at + 8, std::size_t(length)));
    at += 8 + std::size_t(length);
  }
  REQUIRE(pieces.size() == 512);
  const std::string said =
      " Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a big, red ball. "
      "She wanted to play with it, but it was too high.";
  std::string text;
  Generator generator(model, 256);
  const std::int32_t begin = 1;
  generator.read(std::span(&begin, 1));
  generator.generate(200, {.temperature = 0}, {.seed = 1}, [&](std::int32_t id) {
    text += pieces[std::size_t(id)];
    return text.size() < said.size();
  });
  CHECK(text == said);
}

TEST_CASE("foreign models: what is damaged or unknown is refused with file, field and a way on") {
  const auto contains = [](const std::string& text, std::initializer_list<const char*> parts) {
    CAPTURE(text);
    for (const char* part : parts) CHECK(text.find(part) != std::string::npos);
  };
  {
    const Copy c("llama");
    c.config([](Json& j) { j["model_type"] = "mamba"; });
    contains(c.message(), {"config.json", "'mamba'", "gpt2, llama"});
    c.config([](Json& j) { j["model_type"] = "llama", j["num_key_value_heads"] = 3; });
    contains(c.message(), {"key_heads must divide heads"});
    c.config([](Json& j) { j["num_key_value_heads"] = 4, j["hidden_size"] = 1e300; });
    contains(c.message(), {"'hidden_size' must be an integer"});
    c.config([](Json& j) { j["hidden_size"] = 24, j["head_dim"] = 6; });
    contains(c.message(), {"'model.embed_tokens.weight' must have 24 columns", "have 16"});
    c.config([](Json& j) { j["hidden_size"] = 16, j["head_dim"] = 4, j["num_hidden_layers"] = 3; });
    contains(c.message(), {"lacks the tensor 'model.layers.2.", "norm"});
    c.config([](Json& j) { j["num_hidden_layers"] = 1; });
    contains(c.message(), {"holds a tensor 'model.layers.1.", "architecture is another one"});
    c.config([](Json& j) { j["num_hidden_layers"] = 2, j["head_dim"] = 8; });
    contains(c.message(), {"'head_dim' is 8", "only 4"});
    c.config([](Json& j) { j["head_dim"] = 4, j["hidden_act"] = "quick_gelu"; });
    contains(c.message(), {"'hidden_act' is 'quick_gelu'", "silu"});
    c.config([](Json& j) { j["hidden_act"] = "silu", j["rope_parameters"] = Json::object({{"rope_type", "yarn"}, {"factor", 4.0}}); });
    contains(c.message(), {"rotary scaling 'yarn'", "llama3"});
    c.config([](Json& j) { j["rope_parameters"] = Json::object({{"rope_type", "linear"}}); });
    contains(c.message(), {"'rope_parameters.factor' must be a number"});
    c.config([](Json& j) { j["rope_parameters"] = 3; });
    contains(c.message(), {"'rope_parameters.' must be an object"});
    write_file(c.folder / "config.json", std::string(100000, '['));
    contains(c.message(), {"config.json"});
    fs::remove(c.folder / "config.json");
    contains(c.message(), {"config.json"});
  }
  {
    const Copy c("bert");
    for (const auto& [field, value] : {std::pair<const char*, Json>{"position_embedding_type", "relative_key"}, {"is_decoder", true},
                                       {"add_cross_attention", true}, {"pruned_heads", Json{{"0", {1}}}}}) {
      c.config([&](Json& j) { j[field] = value; });
      contains(c.message(), {field, "supported"});
      c.config([&](Json& j) { j.erase(field); });
    }
    c.config([](Json& j) { j["num_hidden_layers"] = 3; });
    contains(c.message(), {"lacks the tensor 'encoder.layer.2."});
    c.config([](Json& j) { j["num_hidden_layers"] = 1; });
    contains(c.message(), {"holds a tensor 'encoder.layer.1."});
    c.config([](Json& j) { j["num_hidden_layers"] = 2, j["type_vocab_size"] = 3; });
    contains(c.message(), {"token_type_embeddings.weight'", "must have the shape (3, outputs)"});
    c.config([](Json& j) { j["type_vocab_size"] = 2, j["num_attention_heads"] = 3; });
    contains(c.message(), {"heads must divide width"});
  }
  {  // the names of BERTs that were converted from TensorFlow, in a header as long as before
    const Copy c("bert");
    std::string bytes = read_file(c.folder / "model.safetensors");
    std::uint64_t length = 0;
    std::memcpy(&length, bytes.data(), 8);
    std::string header = bytes.substr(8, length);
    for (const auto& [now, then] : {std::pair{"LayerNorm.weight", "LayerNorm.gamma"}, {"LayerNorm.bias", "LayerNorm.beta"}})
      for (std::size_t at = header.find(now); at != std::string::npos; at = header.find(now)) header.replace(at, std::strlen(now), then);
    REQUIRE(header.size() < length);
    header.resize(length, ' ');
    write_file(c.folder / "model.safetensors", bytes.replace(8, length, header));
    const Gpt model = load_foreign_model(open_folder(c.folder, Dtype::f32)), plain = load_foreign_model(open_folder(kModels / "bert", Dtype::f32));
    CHECK(model.parameters().values(model.parameters().find("ln_e.bias")) == plain.parameters().values(plain.parameters().find("ln_e.bias")));
  }
  {
    const Copy c("llama-grouped");
    const std::string index = read_file(c.folder / "model.safetensors.index.json");
    Json json = Json::parse(index);
    const std::string part = json["weight_map"].begin().value();
    json["weight_map"]["model.norm.weight"] = "../" + part;
    write_file(c.folder / "model.safetensors.index.json", json.dump());
    contains(c.message(), {"'weight_map.model.norm.weight' must name a file beside it"});
    json["weight_map"]["model.norm.weight"] = "model-00099-of-00099.safetensors";
    write_file(c.folder / "model.safetensors.index.json", json.dump());
    contains(c.message(), {"model-00099-of-00099.safetensors"});
    json = Json::parse(index);
    json["weight_map"]["extra"] = part;
    write_file(c.folder / "model.safetensors.index.json", json.dump());
    contains(c.message(), {"'extra' should be in"});
    write_file(c.folder / "model.safetensors.index.json", index);
    const std::string bytes = read_file(c.folder / part);
    write_file(c.folder / part, bytes.substr(0, bytes.size() / 2));
    contains(c.message(), {part.c_str()});
  }
  const TemporaryDirectory d;
  const auto damaged = [&](const std::string& bytes) {
    write_file(d / "m.bin", bytes);
    return message_of<FileError>([&] { open_llama2c(d / "m.bin"); });
  };
  const std::string good = read_file(kModels / "llama2c.bin");
  const auto with = [&](int field, std::int32_t value) {
    std::string bytes = good;
    std::memcpy(bytes.data() + 4 * field, &value, 4);
    return bytes;
  };
  contains(damaged(""), {"m.bin", "0 bytes"});
  contains(damaged(good.substr(0, 20)), {"20 bytes"});
  contains(damaged(good.substr(0, good.size() - 4)), {"asks for", std::to_string(good.size()).c_str()});
  contains(damaged(good + "1234"), {"asks for"});
  contains(damaged(with(0, -3)), {"'dim' at byte 0", "-3"});
  contains(damaged(with(2, 5000)), {"'n_layers' at byte 8", "5000"});
  contains(damaged(with(5, INT32_MIN)), {"'vocab_size' at byte 20"});
  contains(damaged(with(6, 1 << 24)), {"asks for"});
  contains(damaged(with(3, 3)), {"heads must divide width"});
}

}  // namespace hedgehog

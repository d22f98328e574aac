#include <doctest/doctest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "tests/foreign_cases.h"
#include "tests/temporary_directory.h"
#include "train/foreign_export.h"
#include "train/lora_adapter.h"
#include "train/safetensors.h"

// Adapters of PEFT: fixtures of tests/data/make_adapter_fixtures.py.

namespace hedgehog {
namespace {

using namespace test;
namespace fs = std::filesystem;
using Json = nlohmann::json;

Gpt base_model(const char* name, Dtype dtype) {
  ForeignModel foreign;
  foreign.options = read_hugging_face_config(kModels / name / "config.json", foreign.family);
  foreign.options.dtype = dtype;
  foreign.weights = safetensors_folder(kModels / name);
  return load_foreign_model(foreign);
}

GptOptions small(const std::string& base, std::vector<std::string> targets) {
  GptOptions o;
  o.layers = 2, o.heads = 4, o.width = 16, o.context = 32, o.vocabulary = 47, o.attention = "softmax", o.mlp_width = 24;
  if (base == "gpt2") o.positions = "learned", o.bias = true;
  else o.norm = "rms", o.gated_mlp = true, o.activation = "silu", o.key_heads = 2;
  o.lora = LoraOptions{3, 7, 0.1, std::move(targets)};
  return o;
}

Gpt with_updates(const GptOptions& options) {
  Gpt model(options);
  std::uint64_t id = 0;
  for (const Tensor& t : model.parameters().all())
    if (is_lora(t.name())) model.parameters().assign(t, draw(t.size(), 13, id++));
  return model;
}

/// The same weights without the updates.
Gpt without_updates(const Gpt& model) {
  GptOptions o = model.options();
  o.lora.reset();
  Gpt plain(o);
  const Parameters& from = model.parameters();
  for (const Tensor& t : plain.parameters().all()) plain.parameters().assign(t, from.values(from.find(t.name())));
  return plain;
}

struct Copy : FixtureCopy {
  using FixtureCopy::FixtureCopy;
  template <class Change>
  std::string refused(const Change& change, const char* base = "llama-grouped") const {
    const std::string good = read_file(folder / "adapter_config.json");
    Json json = Json::parse(good);
    change(json);
    write_file(folder / "adapter_config.json", json.dump());
    Gpt model = base_model(base, Dtype::f32);
    const Tensor first = model.parameters().find("h.0.attn.c_attn.weight");
    const std::vector<double> before = model.parameters().values(first);
    const std::string message = message_of<FileError>([&] { merge_adapter(model, folder); });
    if (!message.empty()) CHECK(model.parameters().values(first) == before);
    write_file(folder / "adapter_config.json", good);
    return message;
  }
  /// Writes the adapter's tensors again, changed.
  template <class Change>
  void tensors(const Change& change) const {
    std::vector<TensorRecord> records;
    const fs::path path = folder / "adapter_model.safetensors";
    fs::copy_file(path, folder / "before", fs::copy_options::overwrite_existing);
    const SafetensorsFile file(folder / "before");
    for (const std::string& name : file.names()) records.push_back(file.get(name));
    change(records);
    write_safetensors(path, records);
  }
};

}  // namespace

TEST_CASE("adapters: merged into its base, an adapter gives the logits that PEFT gives") {
  for (const auto& [adapter, base] : {std::pair("adapter-gpt2", "gpt2"), {"adapter-llama", "llama-grouped"}}) {
    CAPTURE(adapter);
    const Expected expected = expected_of(kModels / adapter / "expected.json");
    Gpt exact = base_model(base, Dtype::f64), single = base_model(base, Dtype::f32);
    CHECK(error_of(exact, expected) > 0.1);
    CHECK(merge_adapter(exact, kModels / adapter).layers == (std::string(base) == "gpt2" ? 8 : 15));
    CHECK(merge_adapter(single, kModels / adapter).rank == (std::string(base) == "gpt2" ? 3 : 4));
    // as for the base models: RMS norms and angles are in f32 there
    CHECK(error_of(exact, expected) <= (std::string(base) == "gpt2" ? 1e-9 : 32 * 0x1p-24));
    CHECK(error_of(single, expected) <= 1e-5);
  }
}

TEST_CASE("adapters: updates made here and written are merged again as merge_lora merges them") {
  for (const char* base : {"gpt2", "llama"})
    for (const std::vector<std::string>& targets :
         {std::vector<std::string>{"attention", "attention_output", "mlp", "mlp_output"}, {"attention_output"}, {"mlp"}})
      for (const char* attention : {"softmax", "hedgehog"}) {
        CAPTURE(base);
        GptOptions options = small(base, targets);
        options.attention = attention;
        const Gpt model = with_updates(options), expected = merge_lora(model);
        const TemporaryDirectory d;
        export_adapter(d / "adapter", model);
        CHECK(contains(message_of<FileError>([&] { export_adapter(d / "adapter", model); }), "not an empty folder"));
        Gpt merged = without_updates(model);
        merge_adapter(merged, d / "adapter");
        for (const Tensor& t : expected.parameters().all()) {
          CAPTURE(t.name());
          const auto there = expected.parameters().values(t), here = merged.parameters().values(merged.parameters().find(t.name()));
          double most = 0;
          for (std::size_t i = 0; i < here.size(); ++i) most = std::max(most, std::abs(here[i] - there[i]));
          // both sum in f64 and round once
          CHECK(most <= 0x1p-23 * largest(there));
        }
        const Json config = Json::parse(read_file(d / "adapter/adapter_config.json"));
        CHECK(config["r"] == 3);
        CHECK(config["lora_alpha"] == 7);
        CHECK(config["fan_in_fan_out"] == (std::string(base) == "gpt2"));
        if (targets.size() == 1 && targets[0] == "mlp")
          CHECK(config["target_modules"] == (std::string(base) == "gpt2" ? Json{"mlp.c_fc"} : Json{"mlp.gate_proj", "mlp.up_proj"}));
      }
  const Gpt plain = without_updates(with_updates(small("gpt2", {"mlp"})));
  CHECK_THROWS_WITH_AS(export_adapter("nowhere", plain), doctest::Contains("no low-rank updates"), Error);
}

TEST_CASE("adapters: what is asked for beyond updates is refused by name, and nothing changes") {
  const Copy c("adapter-llama");
  CHECK(c.refused([](Json&) {}).empty());
  const auto key = [&](const char* name, const Json& value) { return c.refused([&](Json& j) { j[name] = value; }); };
  CHECK(contains(key("peft_type", "IA3"), "adapters of type 'IA3' are not supported; LORA is"));
  CHECK(contains(key("use_dora", true), "'use_dora' is true, which may change the results"));
  CHECK(contains(key("alpha_pattern", Json{{"q_proj", 2}}), "'alpha_pattern' is {\"q_proj\":2}"));
  CHECK(contains(key("modules_to_save", Json{"lm_head"}), "'modules_to_save'"));
  CHECK(contains(key("layer_replication", Json{{0, 2}}), "'layer_replication'"));
  CHECK(contains(key("new_scaling", 0.5), "'new_scaling' is 0.5"));
  CHECK(key("new_scaling", nullptr).empty());
  CHECK(contains(key("bias", "lora_only"), "'bias' is \"lora_only\""));
  CHECK(contains(key("init_lora_weights", "pissa_niter_4"), "'init_lora_weights' is \"pissa_niter_4\", which changes the base"));
  CHECK(contains(key("r", 0), "'r' must be an integer from 1"));
  CHECK(contains(key("r", "2"), "'r' must be an integer"));
  CHECK(contains(key("lora_alpha", "3"), "'lora_alpha' must be a number"));
  CHECK(contains(key("use_rslora", 1), "'use_rslora' must be true or false"));
  CHECK(contains(key("rank_pattern", Json::object()), "has rank 4, but"));
  CHECK(contains(c.refused([](Json&) {}, "gpt2"), "is no update of a linear layer of the model"));
  CHECK(contains(c.refused([](Json&) {}, "llama"), "must have the shape"));  // keys of four heads
  const auto damaged = [&](const auto& change) {
    c.tensors(change);
    const std::string message = c.refused([](Json&) {});
    fs::copy_file(c.folder / "before", c.folder / "adapter_model.safetensors", fs::copy_options::overwrite_existing);
    return message;
  };
  CHECK(contains(damaged([](auto& records) {
          std::erase_if(records, [](const auto& r) { return contains(r.name, "1.self_attn.v_proj.lora_B"); });
        }),
                 "lacks the tensor 'base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight'"));
  CHECK(contains(damaged([](auto& records) { records[0].name = "base_model.model.model.layers.7.mlp.up_proj.lora_A.weight"; }),
                 "lacks the tensor"));
  CHECK(contains(damaged([](auto& records) {
          for (auto& r : records) if (contains(r.name, "0.mlp.up_proj.lora_A")) std::swap(r.shape[0], r.shape[1]);
        }),
                 "0.mlp.up_proj.lora_A.weight' must have the shape (rank, 16), but is (16, 2)"));
  CHECK(contains(damaged([](auto& records) {
          for (auto& r : records) if (contains(r.name, "0.mlp.up_proj.lora_B")) std::swap(r.shape[0], r.shape[1]);
        }),
                 "0.mlp.up_proj.lora_B.weight' must have the shape (24, 2), but is (2, 24)"));
  CHECK(contains(damaged([](auto& records) {
          for (auto& r : records) if (contains(r.name, "0.mlp.up_proj.lora_B")) r.dtype = "I32";
        }),
                 "is I32, but weights must be F32"));
  CHECK(contains(damaged([](auto& records) { records.clear(); }), "holds no updates"));
  fs::remove(c.folder / "adapter_model.safetensors");
  CHECK(contains(c.refused([](Json&) {}), "adapter_model.safetensors"));
  fs::remove(c.folder / "adapter_config.json");
  Gpt model = base_model("llama-grouped", Dtype::f32);
  CHECK(contains(message_of<FileError>([&] { merge_adapter(model, c.folder); }), "adapter_config.json"));
}

}  // namespace hedgehog

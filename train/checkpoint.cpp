#include "train/checkpoint.h"

#include <fmt/format.h>

#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "ops/blas.h"
#include "ops/cpu.h"
#include "core/device.h"
#include "core/error.h"
#include "train/feature_fields.h"
#include "train/safetensors.h"
#include "train/atomic_directory.h"
#include "train/files.h"
#include "train/foreign_model.h"
#include "train/json_fields.h"
#include "version.h"

namespace hedgehog {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr int kFormat = 1;

TensorRecord record_of(const Tensor& t, const std::string& name, const void* data) {
  TensorRecord r{name, t.dtype() == Dtype::f64 ? "F64" : "F32", {}, data, std::size_t(t.size() * size_of(t.dtype()))};
  for (int i = 0; i < t.shape().rank(); ++i) r.shape.push_back(t.shape()[i]);
  return r;
}

/// The elements of a tensor, in host memory: its own, or a copy that `copies` keeps.
const void* on_host(const Tensor& t, std::vector<std::vector<std::byte>>& copies) {
  if (t.root()->storage->device().host()) return t.data();
  copies.emplace_back(std::size_t(t.size() * size_of(t.dtype())));
  t.read(copies.back().data(), 0, t.size());
  return copies.back().data();
}

/// The slice of a flat buffer that belongs to the i-th parameter.
Tensor slice(const FlatParameters& flat, const Tensor& buffer, std::size_t i, const Tensor& like) {
  Tensor t = declare(like.shape(), buffer.dtype());
  t->base = buffer;
  t->offset = flat.offsets[i];
  return t;
}

/// Numbers as JSON cannot hold them (infinities) become null and come back as infinity.
json number(double x) { return std::isfinite(x) ? json(x) : json(nullptr); }

json model_json(const GptOptions& o) {
  const RotaryScaling& s = o.rotary_scaling;
  json model{{"layers", o.layers},       {"heads", o.heads},           {"width", o.width},
          {"key_heads", o.key_heads}, {"gated_mlp", o.gated_mlp},   {"mlp_width", o.mlp_width},
          {"norm_eps", o.norm_eps},   {"attention_bias", o.attention_bias}, {"rotary_base", o.rotary_base},
          {"rotary_scaling", {s.factor, s.low, s.high, s.original}},
          {"context", o.context},     {"vocabulary", o.vocabulary}, {"attention", o.attention},
          {"window", o.window},       {"decay_gate", o.decay_gate},   {"qk_norm", o.qk_norm},
          {"positions", o.positions}, {"norm", o.norm},             {"activation", o.activation},
          {"bias", o.bias},           {"dropout", o.dropout},       {"init", o.init},
          {"vocabulary_multiple", o.vocabulary_multiple},
          {"tied_head", o.tied_head}, {"embedding_init", o.embedding_init},
          {"short_convolution", o.short_convolution}, {"map_init_gain", o.map_init_gain},
          {"map_weights", o.map_weights},
          {"causal", o.causal},       {"post_norm", o.post_norm},   {"embedding_norm", o.embedding_norm},
          {"token_types", o.token_types}, {"pooler", o.pooler},     {"classes", o.classes},
          {"dtype", name_of(o.dtype)}, {"seed", o.seed}};
  write_features(model, o.features);
  return model;
}

GptOptions model_options(const JsonFields& f) {
  constexpr std::int64_t kMost = 1 << 24;
  GptOptions o;
  o.layers = f.integer("layers", 1, 4096);
  o.heads = f.integer("heads", 1, 4096);
  o.width = f.integer("width", 1, 1 << 20);
  o.context = f.integer("context", 1, std::int64_t(1) << 40);
  o.vocabulary = f.integer("vocabulary", 1, kMost);
  o.vocabulary_multiple = f.integer("vocabulary_multiple", 1, 1 << 16);
  o.attention = f.get<std::string>("attention", "text");
  if (f.has("window")) o.window = f.integer("window", 0, std::int64_t(1) << 40);  // earlier checkpoints have none
  if (f.has("key_heads")) {
    o.key_heads = f.integer("key_heads", 0, 4096);
    o.gated_mlp = f.get<bool>("gated_mlp", "true or false");
    o.mlp_width = f.integer("mlp_width", 0, 1 << 22);
    o.norm_eps = f.get<double>("norm_eps", "a number");
    o.attention_bias = f.get<bool>("attention_bias", "true or false");
    o.rotary_base = f.get<double>("rotary_base", "a number");
    const auto scaling = f.get<std::vector<double>>("rotary_scaling", "a list of numbers");
    if (scaling.size() != 4) f.bad("rotary_scaling", "a list of 4 numbers");
    o.rotary_scaling = {scaling[0], scaling[1], scaling[2], scaling[3]};
  }
  if (f.has("qk_norm")) o.qk_norm = f.get<bool>("qk_norm", "true or false");
  if (f.has("decay_gate")) o.decay_gate = f.get<bool>("decay_gate", "true or false");
  o.positions = f.get<std::string>("positions", "text");
  o.norm = f.get<std::string>("norm", "text");
  o.activation = f.get<std::string>("activation", "text");
  o.bias = f.get<bool>("bias", "true or false");
  o.dropout = f.get<double>("dropout", "a number");
  o.tied_head = f.get<bool>("tied_head", "true or false");
  o.embedding_init = f.get<double>("embedding_init", "a number");
  o.short_convolution = f.integer("short_convolution", 0, 64);
  o.init = f.get<std::string>("init", "text");
  o.map_init_gain = f.get<double>("map_init_gain", "a number");
  if (f.has("map_weights")) o.map_weights = f.get<bool>("map_weights", "true or false");  // earlier checkpoints have none
  if (f.has("causal")) {  // nor these six, which are for encoders
    o.causal = f.get<bool>("causal", "true or false");
    o.post_norm = f.get<bool>("post_norm", "true or false");
    o.embedding_norm = f.get<bool>("embedding_norm", "true or false");
    o.token_types = f.integer("token_types", 0, 1 << 16);
    o.pooler = f.get<bool>("pooler", "true or false");
    o.classes = f.integer("classes", 0, 1 << 20);
  }
  if (f.has("taylor_dim")) {  // earlier checkpoints have none of the four, nor the attentions that they belong to
    read_feature_sizes(f, o.features);
  }
  if (f.has("performer_redraw")) {  // younger than the four
    read_feature_draws(f, o.features);
  }
  const auto dtype = f.get<std::string>("dtype", "text");
  // the file holds f32 masters of bf16 weights, which the CPU computes with
  o.dtype = dtype == "f64" ? Dtype::f64 : dtype == "bf16" && !current_device().host() ? Dtype::bf16 : Dtype::f32;
  o.seed = std::uint64_t(f.integer("seed", 0, INT64_MAX));
  return o;
}

json state_json(const GptOptions& options, const RunState& run) {
  return {{"hedgehog", "checkpoint"},
          {"format", kFormat},
          {"model", model_json(options)},
          {"run",
           {{"step", run.step},
            {"tokens", run.tokens},
            {"seconds", run.seconds},
            {"best_validation", number(run.best_validation)},
            {"last_validation", number(run.last_validation)},
            {"rising_validations", run.rising_validations},
            {"data", run.data},
            {"data_fingerprint", run.data_fingerprint},
            {"step_slots", run.step_slots}}},
          {"machine", run.machine},
          {"options", run.options}};
}

void read_state(const json& root, const fs::path& file, GptOptions& options, RunState& run) {
  const JsonFields top(root, file, "checkpoint", "the file is damaged or not a hedgehog checkpoint");
  if (top.get<std::string>("hedgehog", "\"checkpoint\"") != "checkpoint")
    throw FileError(fmt::format("[checkpoint] {} is not a hedgehog checkpoint", file.string()));
  if (const auto format = top.integer("format", 0, INT32_MAX); format != kFormat)
    throw FileError(fmt::format("[checkpoint] {} has format {}, this program reads format {}; use the version that wrote it",
                                file.string(), format, kFormat));
  options = model_options(top.object("model"));
  const JsonFields f = top.object("run");
  run.step = f.integer("step", 0, INT64_MAX);
  run.tokens = f.integer("tokens", 0, INT64_MAX);
  run.seconds = f.get<double>("seconds", "a number");
  run.best_validation = f.real_or_infinity("best_validation");
  run.last_validation = f.real_or_infinity("last_validation");
  run.rising_validations = int(f.integer("rising_validations", 0, INT32_MAX));
  run.data = f.get<std::string>("data", "text");
  run.data_fingerprint = f.get<std::string>("data_fingerprint", "text");
  run.step_slots = f.get<std::vector<double>>("step_slots", "a list of numbers");
  if (std::int64_t(run.step_slots.size()) != kStepStateSize)
    throw FileError(fmt::format("[checkpoint] {}: field 'run.step_slots' must hold {} numbers, got {}", file.string(),
                                std::int64_t(kStepStateSize), run.step_slots.size()));
  run.machine = top.get<std::map<std::string, std::string>>("machine", "an object of texts");
  run.options = top.get<std::map<std::string, std::string>>("options", "an object of texts");
}

void read_tensor(const SafetensorsFile& file, const std::string& name, const Tensor& to) {
  const TensorRecord expected = record_of(to, name, nullptr);
  const TensorRecord found = file.get(name);
  if (found.dtype != expected.dtype || found.shape != expected.shape)
    throw FileError(fmt::format("[checkpoint] {}: tensor '{}' must be {} {} as state.json says, but is {} with {} bytes",
                                file.path().string(), name, expected.dtype, to.shape().text(), found.dtype, found.bytes));
  to.write(found.data, 0, to.size());
}

std::int64_t element_count(const SafetensorsFile& file) {
  std::int64_t count = 0;
  for (const std::string& name : file.names()) {
    const TensorRecord& tensor = file.get(name);
    count += std::int64_t(tensor.bytes / safetensors_element_bytes(tensor.dtype));
  }
  return count;
}

}  // namespace

std::map<std::string, std::string> machine_description() {
  const BlasInfo blas = blas_info();
  const Device& device = current_device();
  return {{"device", device.host() ? "cpu" : fmt::format("{} {}", device.name(), device.description())},
          {"processor", cpu_model()},
          {"blas", blas.library + (blas.core.empty() ? "" : " " + blas.core)},
          {"threads", std::to_string(thread_count())},
          {"version", HH_VERSION}};
}

void save_checkpoint(const fs::path& directory, Gpt& model, const Tokenizer& tokenizer, const RunState& run, bool moments_too) {
  if (model.options().lora) throw Error("[checkpoint] low-rank updates are not saved; give merge_lora(model)");
  // first, as it moves the parameters
  const FlatParameters* const flat = moments_too ? &model.parameters().flatten() : nullptr;
  const Tensors& all = model.parameters().masters();
  save_directory(directory, [&](const fs::path& temporary) {
    std::vector<TensorRecord> weights, moments;
    std::vector<std::vector<std::byte>> copies;
    auto add = [&](std::vector<TensorRecord>& to, const std::string& name, const Tensor& t) { to.push_back(record_of(t, name, on_host(t, copies))); };
    for (std::size_t i = 0; i < all.size(); ++i) {
      add(weights, all[i].name(), all[i]);
      if (!flat) continue;
      add(moments, "first_moment." + all[i].name(), slice(*flat, flat->first_moment, i, all[i]));
      add(moments, "second_moment." + all[i].name(), slice(*flat, flat->second_moment, i, all[i]));
    }
    write_safetensors(temporary / "model.safetensors", weights, {{"format", "hedgehog"}, {"attention", model.options().attention}});
    if (flat) write_safetensors(temporary / "optimizer.safetensors", moments);
    write_file(temporary / "state.json", state_json(model.options(), run).dump(2) + "\n");
    save_tokenizer(tokenizer, temporary / "tokenizer.json");
  });
}

namespace {

void load_state(const fs::path& directory, GptOptions& options, RunState& run) {
  const fs::path file = directory / "state.json";
  json root;
  try {
    root = json::parse(read_file(file, std::size_t(64) << 20));
  } catch (const json::exception& e) {
    throw FileError(fmt::format("[checkpoint] {} is not valid JSON ({}); the checkpoint is damaged", file.string(), e.what()));
  }
  read_state(root, file, options, run);
}

}  // namespace

RunState load_run_state(const fs::path& directory) {
  GptOptions options;
  RunState run;
  load_state(directory, options, run);
  return run;
}

namespace {

Checkpoint load_foreign(const fs::path& path) {
  const ForeignModel foreign = open_foreign_model(path);
  Checkpoint c{std::make_unique<Gpt>(load_foreign_model(foreign)), foreign.tokenizer, {}};
  const GptOptions& o = c.model->options();
  c.run.machine = machine_description();
  c.run.step_slots.assign(kStepStateSize, 0);
  for (const auto& [name, value] : {std::pair{"layers", o.layers}, {"heads", o.heads}, {"width", o.width}, {"context", o.context}})
    c.run.options[name] = std::to_string(value);
  c.run.options["attention"] = o.attention;
  c.run.options["positions"] = o.positions;
  c.run.options["norm"] = o.norm;
  return c;
}

}  // namespace

Checkpoint load_checkpoint(const fs::path& directory, bool moments) {
  std::error_code ignored;
  if (!fs::exists(directory / "state.json", ignored) && is_foreign_model(directory)) return load_foreign(directory);
  const fs::path state_file = directory / "state.json";
  Checkpoint c;
  GptOptions options;
  load_state(directory, options, c.run);
  // an imported model was computed nowhere yet: no run chose its type
  if (!c.run.options.contains("device") && options.dtype == Dtype::f32 && !current_device().host()) options.dtype = Dtype::bf16;
  c.tokenizer = load_tokenizer(directory / "tokenizer.json");
  if (c.tokenizer->size() != options.vocabulary)
    throw FileError(fmt::format("[checkpoint] {}: tokenizer.json has {} tokens, but the model has {}", directory.string(),
                                c.tokenizer->size(), options.vocabulary));
  const SafetensorsFile weights(directory / "model.safetensors");
  // maps of one shape and another meaning would load without a word
  if (const auto named = weights.metadata().find("attention"); named != weights.metadata().end() && named->second != options.attention)
    throw FileError(fmt::format("[checkpoint] {} holds weights of attention '{}', but state.json says '{}'; their feature maps differ, "
                                "and one is not the other's", weights.path().string(), named->second, options.attention));
  // before a model of a damaged size is built
  if (const std::int64_t held = element_count(weights), expected = parameter_count(options); held != expected)
    throw FileError(fmt::format("[checkpoint] {} holds {} parameters, but the model that state.json describes has {}; one of them is damaged",
                                weights.path().string(), held, expected));
  try {
    c.model = std::make_unique<Gpt>(Gpt::blank(options));
  } catch (const ShapeError& e) {
    throw FileError(fmt::format("[checkpoint] {}: {}", state_file.string(), e.what()));
  }
  const Tensors& all = c.model->parameters().masters();
  if (weights.names().size() != all.size())
    throw FileError(fmt::format("[checkpoint] {} holds {} tensors, a model with attention '{}' and {} layers has {}",
                                weights.path().string(), weights.names().size(), options.attention, options.layers, all.size()));
  for (const Tensor& p : all) read_tensor(weights, p.name(), p);
  c.model->parameters().refresh_copies();
  if (!moments) return c;
  const FlatParameters& flat = c.model->parameters().flatten();
  const SafetensorsFile file(directory / "optimizer.safetensors");
  for (std::size_t i = 0; i < all.size(); ++i) {
    read_tensor(file, "first_moment." + all[i].name(), slice(flat, flat.first_moment, i, all[i]));
    read_tensor(file, "second_moment." + all[i].name(), slice(flat, flat.second_moment, i, all[i]));
  }
  return c;
}

void set_options(Config& config, const RunState& run, const fs::path& checkpoint) {
  for (const auto& [option, value] : run.options) {
    if (option == "resume" || option == "config") continue;  // of the command that was given then
    try {
      config.set(option, value, OptionSource::kCheckpoint);
    } catch (const UsageError& e) {
      throw FileError(fmt::format("[checkpoint] {}: field 'options.{}' is damaged or of another version: {}",
                                  (checkpoint / "state.json").string(), option, e.what()));
    }
  }
}

fs::path find_checkpoint(const std::string& name) {
  const fs::path path = name == "latest" ? fs::path("runs") / "latest" : fs::path(name);
  std::error_code error, ignored;
  const bool found = fs::exists(path, error) || fs::exists(recover(path), ignored);
  if (error) throw FileError(fmt::format("checkpoint '{}' cannot be read: {}", name, error.message()));
  if (!found)
    throw FileError(name == "latest" ? "there is no run yet under runs/; train one with ./hedgehog train"
                                     : fmt::format("checkpoint '{}' does not exist; give a run's or a checkpoint's directory", name));
  if (fs::is_directory(path, ignored) && !fs::exists(path / "state.json", ignored) && !is_foreign_model(path)) {
    const fs::path last = recover(path / "last");
    if (!fs::exists(last, ignored))
      throw FileError(fmt::format("'{}' holds no checkpoint (no state.json and no 'last' directory); train first or name another", name));
    return last;
  }
  return recover(path);
}

}  // namespace hedgehog

#include "train/lora_adapter.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "core/error.h"
#include "core/parallel.h"
#include "train/atomic_directory.h"
#include "train/files.h"
#include "train/foreign_export.h"
#include "train/json_fields.h"
#include "train/safetensors.h"
#include "train/strict_json.h"

namespace hedgehog {
namespace {

namespace fs = std::filesystem;

constexpr const char* kPrefix = "base_model.model.";
constexpr const char* kLoraA = ".lora_A.weight";
constexpr const char* kLoraB = ".lora_B.weight";

struct AdapterConfig {
  std::int64_t rank = 0;
  double alpha = 0;
  bool rank_stabilised = false;  // rsLoRA: Kalajdzievski 2023, arXiv:2312.03732
  bool ranks_vary = false;

  double scale(std::int64_t of_layer) const { return alpha / (rank_stabilised ? std::sqrt(double(of_layer)) : double(of_layer)); }
};

/// Whether a key that is not known asks for nothing.
bool is_off(const nlohmann::json& value) {
  return value.is_null() || value == false || value == "" || ((value.is_object() || value.is_array()) && value.empty());
}

/// Keys that say how the adapter was trained, where it belongs or which tensors there are, which the tensors say themselves.
const std::set<std::string> kWithoutEffect{
    "auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying", "eva_config", "exclude_modules", "fan_in_fan_out",
    "inference_mode", "layers_pattern", "layers_to_transform", "lora_dropout", "lora_ga_config", "loftq_config", "megatron_core",
    "peft_version", "qalora_group_size", "revision", "runtime_config", "target_modules", "task_type"};

AdapterConfig read_config(const fs::path& file) {
  const nlohmann::json root = parse_strict_json(file, read_file(file, std::size_t(16) << 20), "config of an adapter", 16);
  const JsonFields f(root, file, "import", "the config is damaged or not one of PEFT");
  if (const auto type = f.get<std::string>("peft_type", "text"); type != "LORA")
    throw FileError(fmt::format("[import] {}: adapters of type '{}' are not supported; LORA is", file.string(), type));
  AdapterConfig c;
  c.rank = f.integer("r", 1, 1 << 20);
  c.alpha = f.real("lora_alpha");
  if (f.has("use_rslora")) c.rank_stabilised = f.get<bool>("use_rslora", "true or false");
  c.ranks_vary = root.contains("rank_pattern") && !is_off(root["rank_pattern"]);
  if (f.has("bias") && f.get<std::string>("bias", "text") != "none")
    throw FileError(fmt::format("[import] {}: 'bias' is {}, but only \"none\" is supported: biases that learned too are not", file.string(),
                                root["bias"].dump()));
  // these starts take what the updates begin with out of the base's weights, which are then other ones
  const nlohmann::json init = root.value("init_lora_weights", nlohmann::json(true));
  if (!init.is_boolean() && init != "gaussian" && init != "orthogonal" && init != "eva")
    throw FileError(fmt::format("[import] {}: 'init_lora_weights' is {}, which changes the base model's weights as well, and is not supported",
                                file.string(), init.dump()));
  for (const auto& [name, value] : root.items()) {
    const bool read = name == "peft_type" || name == "r" || name == "lora_alpha" || name == "use_rslora" || name == "rank_pattern" ||
                      name == "bias" || name == "init_lora_weights";
    if (!read && !kWithoutEffect.contains(name) && !is_off(value))
      throw FileError(fmt::format("[import] {}: '{}' is {}, which may change the results and is not supported", file.string(), name,
                                  value.dump()));
  }
  return c;
}

/// The update of one layer of the other library: columns [first, first + columns) of a parameter, or its rows where it is a table.
struct Update {
  std::string parameter;
  bool table;
  std::int64_t first, in, out, rank;
  ForeignTensor a, b;
};

/// Layer names, and which parameter each is a part of.
std::vector<Update> updates_of(const Gpt& model, const ForeignWeights& weights, const AdapterConfig& config, const fs::path& config_file) {
  std::vector<Update> updates;
  std::set<std::string> used;
  for (const auto& [parameter, pieces] : exported_parts(model)) {
    const auto& all = model.parameters().masters();
    const auto found = std::find_if(all.begin(), all.end(), [&, &parameter = parameter](const Tensor& t) { return t.name() == parameter; });
    if (found == all.end() || found->shape().rank() != 2 || pieces[0].whole) continue;
    std::int64_t first = 0;
    for (const ForeignPiece& piece : pieces) {
      const std::int64_t columns = piece.columns_of(found->shape().last(), pieces.size());
      const std::string layer = kPrefix + piece.name.substr(0, piece.name.rfind('.'));
      const auto a = weights.find(layer + kLoraA), b = weights.find(layer + kLoraB);
      if (a || b) {
        if (!a || !b) throw FileError(fmt::format("[import] {} lacks the tensor '{}'", weights.place(), layer + (a ? kLoraB : kLoraA)));
        // a table has a row a token, which is an output of the classifier
        const std::int64_t in = piece.table ? columns : found->shape()[0], out = piece.table ? model.options().vocabulary : columns;
        const std::int64_t rank = a->shape.empty() ? 0 : a->shape[0];
        if (a->shape != std::vector{rank, in} || rank < 1)
          throw FileError(fmt::format("[import] {} must have the shape (rank, {}), but is {}", a->place, in, a->shape_text()));
        if (b->shape != std::vector{out, rank})
          throw FileError(fmt::format("[import] {} must have the shape ({}, {}), but is {}", b->place, out, rank, b->shape_text()));
        if (rank != config.rank && !config.ranks_vary)
          throw FileError(fmt::format("[import] {} has rank {}, but {} says r = {}; they do not belong together", a->place, rank,
                                      config_file.string(), config.rank));
        updates.push_back({parameter, piece.table, first, in, out, rank, *a, *b});
        used.insert(layer + kLoraA), used.insert(layer + kLoraB);
      }
      first += columns;
    }
  }
  for (const std::string& name : weights.names())
    if (!used.contains(name))
      throw FileError(fmt::format("[import] {} holds a tensor '{}', which is no update of a linear layer of the model: the adapter is of another "
                                  "model, or more than updates", weights.place(), name));
  if (updates.empty()) throw FileError(fmt::format("[import] {} holds no updates", weights.place()));
  return updates;
}

std::vector<float> values_of(const ForeignTensor& t) {
  std::vector<float> values(static_cast<std::size_t>(t.size()));
  t.read(0, t.size(), values.data());
  return values;
}

void add_update(Parameters& parameters, const Update& u, double scale) {
  const Tensor parameter = parameters.find(u.parameter);
  const std::vector<float> a = values_of(u.a), b = values_of(u.b);
  std::vector<double> weight = parameters.values(parameter);
  const std::int64_t width = parameter.shape().last();
  parallel_for(u.in, 8, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i)
      for (std::int64_t o = 0; o < u.out; ++o) {
        double sum = 0;
        for (std::int64_t r = 0; r < u.rank; ++r)
          sum += double(b[std::size_t(o * u.rank + r)]) * double(a[std::size_t(r * u.in + i)]);
        weight[std::size_t(u.table ? o * width + i : i * width + u.first + o)] += scale * sum;
      }
  });
  parameters.assign(parameter, weight);
}

}  // namespace

MergedAdapter merge_adapter(Gpt& model, const fs::path& folder) {
  const fs::path config_file = folder / "adapter_config.json";
  const AdapterConfig config = read_config(config_file);
  const auto weights = safetensors_file(folder / "adapter_model.safetensors");
  MergedAdapter merged;
  for (const Update& update : updates_of(model, *weights, config, config_file)) {
    add_update(model.parameters(), update, config.scale(update.rank));
    ++merged.layers;
    merged.rank = std::max(merged.rank, update.rank);
  }
  return merged;
}

void export_adapter(const fs::path& folder, const Gpt& model) {
  if (!model.options().lora) throw Error("[export] the model has no low-rank updates to write");
  const LoraOptions& lora = *model.options().lora;
  GptOptions plain = model.options();
  plain.lora.reset();
  check_export_folder(folder);
  const Tensors& all = model.parameters().masters();
  std::map<std::string, std::vector<double>> values;
  for (const Tensor& t : all) if (is_lora(t.name())) values[t.name()] = t.to_vector();
  std::vector<TensorRecord> records;
  std::vector<std::vector<float>> kept;
  const auto add = [&](const std::string& name, std::vector<std::int64_t> shape, std::vector<float> numbers) {
    kept.push_back(std::move(numbers));
    records.push_back({name, "F32", std::move(shape), kept.back().data(), 4 * kept.back().size()});
  };
  std::set<std::string> targets;
  const Gpt declared = Gpt::declared(plain);
  for (const auto& [parameter, pieces] : exported_parts(declared)) {
    const std::string ours = parameter.substr(0, parameter.rfind('.'));
    if (!parameter.ends_with(".weight") || !values.contains(ours + ".lora_a")) continue;
    const std::vector<double>&a = values.at(ours + ".lora_a"), &b = values.at(ours + ".lora_b");
    const std::int64_t rank = lora.rank, in = std::int64_t(a.size()) / rank, width = std::int64_t(b.size()) / rank;
    std::int64_t first = 0;
    for (const ForeignPiece& piece : pieces) {
      const std::int64_t out = piece.columns_of(width, pieces.size());
      const std::string layer = piece.name.substr(0, piece.name.rfind('.'));
      std::vector<float> theirs_a(a.size()), theirs_b(static_cast<std::size_t>(out * rank));
      for (std::int64_t i = 0; i < in; ++i)
        for (std::int64_t r = 0; r < rank; ++r) theirs_a[std::size_t(r * in + i)] = float(a[std::size_t(i * rank + r)]);
      for (std::int64_t r = 0; r < rank; ++r)
        for (std::int64_t o = 0; o < out; ++o) theirs_b[std::size_t(o * rank + r)] = float(b[std::size_t(r * width + first + o)]);
      add(kPrefix + layer + kLoraA, {rank, in}, std::move(theirs_a));
      add(kPrefix + layer + kLoraB, {out, rank}, std::move(theirs_b));
      // "attn.c_proj": the last name alone is that of another layer too
      targets.insert(layer.substr(layer.rfind('.', layer.rfind('.') - 1) + 1));
      first += out;
    }
  }
  const bool whole = lora.alpha == std::floor(lora.alpha) && lora.alpha < 1e9;
  const nlohmann::ordered_json alpha = whole ? nlohmann::ordered_json(std::int64_t(lora.alpha)) : nlohmann::ordered_json(lora.alpha);
  const nlohmann::ordered_json config{{"peft_type", "LORA"},
                                      {"task_type", "CAUSAL_LM"},
                                      {"base_model_name_or_path", nullptr},
                                      {"r", lora.rank},
                                      {"lora_alpha", alpha},
                                      {"lora_dropout", lora.dropout},
                                      {"target_modules", targets},
                                      {"fan_in_fan_out", foreign_architecture(plain).type == "gpt2"},
                                      {"bias", "none"},
                                      {"use_rslora", false},
                                      {"use_dora", false},
                                      {"init_lora_weights", true},
                                      {"modules_to_save", nullptr},
                                      {"inference_mode", true}};
  save_directory(folder, [&](const fs::path& temporary) {
    write_safetensors(temporary / "adapter_model.safetensors", records, {{"format", "pt"}});
    write_file(temporary / "adapter_config.json", config.dump(2) + "\n");
  });
}

}  // namespace hedgehog

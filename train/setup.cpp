#include "train/checkpoint.h"
#include "train/setup.h"

#include <fmt/format.h>

#include <cstdlib>
#include <functional>
#include <iostream>
#include <iterator>
#include <sstream>

#include "ops/cpu.h"
#include "core/error.h"
#include "train/evaluation.h"
#include "train/text_source.h"
#include "train/sliding_windows.h"
#include "train/token_shards.h"

namespace hedgehog {
namespace {

constexpr double kStoryTokenBytes = 2 * sizeof(std::int32_t) + sizeof(double);  // token, target, its -ln p

std::string scaled(double value, double base, std::initializer_list<const char*> units, const char* pattern) {
  auto unit = units.begin();
  while (value >= base && unit + 1 != units.end()) value /= base, ++unit;
  return fmt::format(fmt::runtime(pattern), value, *unit);
}

/// A preset for text of this size on the current device, and the reason.
std::pair<const char*, const char*> preset_for(std::size_t bytes) {
  constexpr std::size_t kSmall = 200'000;
  if (bytes < kSmall) return {"tiny", "less than 200 KB of text"};
  if (!current_device().host()) return {"char", "more than 200 KB of text, and a GPU"};
  return {"char-cpu", "more than 200 KB of text, and a CPU"};
}

void apply_default_preset(Config& config, const char* preset, const std::string& reason, std::vector<std::string>& notes) {
  config.apply_preset(preset);
  notes.push_back(fmt::format("preset {}: {} (--preset=NAME for another)", preset, reason));
}

std::string fingerprint(std::string_view text) {
  std::uint64_t hash = 1469598103934665603ull;  // FNV-1a
  for (unsigned char c : text) hash = (hash ^ c) * 1099511628211ull;
  return fmt::format("{:016x}-{}", hash, text.size());
}

/// Words and byte pairs are counted in the training part alone; characters of the whole text get an id.
TokenizerPointer new_tokenizer(const Config& config, std::string_view text) {
  const std::string name = config.has("tokenizer") ? config.text("tokenizer") : "byte";
  if (name == "word" || name == "bpe") text = text.substr(0, split_position(text, 0.9));
  return make_tokenizer(name, text, config.integer("vocabulary"));
}

/// Rows of the token table on a GPU are a multiple of this: tiles of the tensor cores.
constexpr std::int64_t kTensorCoreColumns = 128;

/// Bytes that a plan may take on the current device; 0: not known. On a GPU the library's workspace, loaded kernels, captured
/// graphs and staged batches need some besides: 0.7 GiB with GPT-2.
double free_memory() {
  constexpr double kReserve = 768.0 * (1 << 20);
  if (current_device().host()) return double(available_memory());
  return std::max(1.0, double(current_device().free_memory()) - kReserve);
}

/// Memory that a batch has to fit into, and how a refusal calls it.
struct Room {
  double bytes = free_memory();  // 0: not known
  std::string text = fmt::format("only {} is free", bytes_text(bytes));
  std::string remedy = "stop other programs, or resume on a machine with more memory";  // where the batch cannot change
};

/// What a step may take besides what is held already.
Room room_of(const MemoryOptions& memory, Bytes held) {
  Room room;
  const double most = double(memory.most - held);
  if (memory.most == 0 || (room.bytes > 0 && room.bytes <= most)) return room;
  return {std::max(1.0, most), fmt::format("--memory allows only {}{}", bytes_text(std::max(0.0, most)), held > 0 ? " more" : ""), "raise --memory"};
}

/// Refuses a batch that needs more than there is room for, naming the largest that does not. `fixed`: the batch cannot change.
void check_batch(const GptOptions& model, std::int64_t rows, bool fixed, const char* smaller, const char* advice, const Room& room,
                 const std::function<Bytes(std::int64_t rows)>& predict) {
  auto needs = [&](std::int64_t n) {
    // no machine holds even one activation of this many elements, and more would overflow the plan's bytes
    const double elements = double(n) * double(model.context) * double(model.width);
    return elements > 1e12 ? elements * double(size_of(model.dtype)) : double(predict(n));
  };
  const double need = needs(rows);
  if (room.bytes == 0 || need <= room.bytes) return;
  if (fixed)
    throw UsageError(fmt::format("the run's batch of {} needs at least {} more memory, but {}, and it cannot change; {}", rows,
                                 bytes_text(need), room.text, room.remedy));
  std::int64_t low = 0, high = rows;
  while (high - low > 1) {
    const std::int64_t middle = (low + high) / 2;
    (needs(middle) <= room.bytes ? low : high) = middle;
  }
  throw UsageError(fmt::format("--batch={} needs at least {} of memory, but {}; {}", rows, bytes_text(need), room.text,
                               low > 0 ? fmt::format("the largest batch that fits is --batch={}{}", low, advice)
                                       : fmt::format("not even --batch=1 fits: use a {}", smaller)));
}

RunData story_data(Config& config, TokenizerPointer tokenizer) {
  RunData data;
  for (const char* option : {"tokenizer", "vocabulary"}) {
    if (config.was_set(option))
      throw UsageError(fmt::format("--{} needs --data: the built-in stories have words of their own", option));
    config.clear(option);
  }
  if (!config.has("preset")) apply_default_preset(config, "story", "the built-in stories", data.notes);
  if (const double need = double(kStoryValidationRows * config.integer("context")) * kStoryTokenBytes, free = double(available_memory());
      free > 0 && need > free)
    throw UsageError(fmt::format("--context={} needs {} of memory for the {} validation stories, but only {} is free; give a smaller one",
                                 config.integer("context"), bytes_text(need), kStoryValidationRows, bytes_text(free)));
  auto stories = std::make_unique<StoryBatches>(std::uint64_t(config.integer("seed")), config.integer("context"), kStoryValidationRows);
  stories->set_rows_per_step(config.integer("batch") * config.integer("gradient_accumulation"));
  const auto& words = stories->corpus().vocabulary();
  data.tokenizer = tokenizer ? tokenizer : story_tokenizer(words, stories->corpus().proper_names());
  if (data.tokenizer->size() != std::int64_t(words.size()))
    throw FileError("[data] the checkpoint's tokenizer does not belong to the story corpus; give --data");
  data.stories = stories.get();
  data.source = std::move(stories);
  data.name = "stories";
  data.fingerprint = fmt::format("stories-{}-{}", words.size(), config.integer("context"));
  return data;
}

RunData shard_data(Config& config, const TokenizerPointer& tokenizer) {
  for (const char* option : {"tokenizer", "vocabulary"}) {
    if (config.was_set(option))
      throw UsageError(fmt::format("--{} does not go with the token shards in '{}', which have a tokenizer; leave it out", option,
                                   config.text("data")));
  }
  TokenShards shards = read_token_shards(config.text("data"), tokenizer);
  RunData data;
  if (!config.has("preset") && config.command() == "train" && !tokenizer) {
    const auto [preset, reason] = preset_for(std::size_t(shards.text_bytes));
    apply_default_preset(config, preset, reason, data.notes);
  }
  for (const char* option : {"tokenizer", "vocabulary"}) config.clear(option);
  data.tokenizer = shards.tokenizer;
  data.name = shards.name;
  data.fingerprint = shards.fingerprint;
  data.source = std::make_unique<TextSourceBatches>(std::move(shards).parts(), data.name,
                                                    std::uint64_t(config.has("seed") ? config.integer("seed") : 1), config.integer("context"));
  return data;
}

}  // namespace

TokenDataset whole_data(const std::string& where, const TokenizerPointer& tokenizer, RunData& data) {
  if (holds_token_shards(where)) {
    TokenShards shards = read_token_shards(where, tokenizer);
    data.name = shards.name;
    return std::move(shards).whole();
  }
  const TextSource text = read_text(where);
  data.name = text.name;
  data.notes = text.notes;
  data.words = count_words(text.text);
  return TokenDataset::whole(text, *tokenizer);
}

void note_other_machine(const std::map<std::string, std::string>& then) {
  const auto now = machine_description();
  for (const auto& [key, value] : then)
    if (auto same = now.find(key); same == now.end() || same->second != value)
      fmt::print(stderr, "note: {} was '{}' and is now '{}': the run goes on, but not bit for bit as it would have\n", key, value,
                 same == now.end() ? "" : same->second);
}

RunData load_data(Config& config, TokenizerPointer tokenizer) {
  if (!config.has("data") || config.text("data") == "stories") return story_data(config, std::move(tokenizer));
  if (holds_token_shards(config.text("data"))) return shard_data(config, tokenizer);
  RunData data;
  const bool piped = config.text("data") == "-";
  if (piped) data.piped.assign(std::istreambuf_iterator<char>(std::cin), {});
  std::istringstream stream(data.piped);
  const TextSource text = piped ? read_text("-", stream) : read_text(config.text("data"));
  data.notes = text.notes;
  if (!config.has("preset") && config.command() == "train" && !tokenizer) {
    const auto [preset, reason] = preset_for(text.text.size());
    const bool own = config.was_set("tokenizer");
    apply_default_preset(config, preset, reason, data.notes);
    if (!own) config.set("tokenizer", "byte", OptionSource::kPreset);  // own text: bytes, unless asked otherwise
  }
  data.tokenizer = tokenizer ? tokenizer : new_tokenizer(config, text.text);
  data.name = text.name;
  data.fingerprint = fingerprint(text.text);
  data.source = std::make_unique<TextSourceBatches>(TokenDataset::from_text(text, *data.tokenizer), text.name,
                                                    std::uint64_t(config.has("seed") ? config.integer("seed") : 1),
                                                    config.integer("context"));
  return data;
}

namespace {

/// Throws UsageError where one is given that another attention has, or that does not fit.
FeatureOptions feature_options(const Config& config) {
  const std::string attention = config.text("attention");
  for (const char* option : {"taylor_dim", "performer_features", "performer_hyperbolic", "performer_redraw", "cosformer_length"}) {
    const std::string owner = std::string(option).substr(0, std::string(option).find('_'));
    if (config.source(option) == OptionSource::kFlag && attention != owner)
      throw UsageError(fmt::format("--{} belongs to --attention={}, but the attention is {}; leave it out, or change that", option, owner,
                                   attention));
  }
  FeatureOptions f;
  f.taylor_dim = config.integer("taylor_dim");
  f.performer_features = config.integer("performer_features");
  f.performer_hyperbolic = config.flag("performer_hyperbolic");
  // what a config file says of another attention stays unused, as the others do
  if (config.has("performer_redraw") && attention == "performer") f.performer_redraw = config.integer("performer_redraw");
  f.cosformer_length = config.integer("cosformer_length");
  if (attention == "performer" && f.performer_hyperbolic && f.performer_features % 2)
    throw UsageError(fmt::format("--performer_hyperbolic makes two features a vector: --performer_features must be even, not {}",
                                 f.performer_features));
  if (attention == "cosformer" && f.cosformer_length != 0 && f.cosformer_length < config.integer("context"))
    throw UsageError(fmt::format("--cosformer_length={} must be at least the --context of {}; leave it out for that", f.cosformer_length,
                                 config.integer("context")));
  const std::int64_t width = config.integer("width") / config.integer("heads"), queries = query_width(attention, f, width);
  if (attention == "taylor" && config.text("positions") == "rotary" && queries % 2)
    throw UsageError(fmt::format("rotary positions need queries of an even width, but theirs is {}; choose another --taylor_dim, --heads or "
                                 "--positions=learned", queries));
  return f;
}

}  // namespace

GptOptions gpt_options(const Config& config, std::int64_t vocabulary) {
  GptOptions o;
  o.layers = config.integer("layers");
  o.heads = config.integer("heads");
  o.width = config.integer("width");
  o.context = config.integer("context");
  o.vocabulary = vocabulary;
  o.attention = config.text("attention");
  o.window = config.integer("window");
  o.key_heads = config.integer("key_heads");
  o.gated_mlp = config.flag("gated_mlp");
  o.mlp_width = config.integer("mlp_width");
  o.rotary_base = config.real("rotary_base");
  o.qk_norm = config.flag("qk_norm");
  o.decay_gate = config.flag("decay_gate");
  o.positions = config.text("positions");
  o.norm = config.text("norm");
  o.activation = config.text("activation");
  o.bias = config.flag("bias");
  o.dropout = config.real("dropout");
  o.tied_head = config.flag("tied_head");
  o.embedding_init = config.real("embedding_init");
  o.short_convolution = config.integer("short_convolution");
  o.init = config.text("init");
  o.map_init_gain = config.real("map_init_gain");
  o.features = feature_options(config);
  o.dtype = configure_dtype(config);
  o.vocabulary_multiple = current_device().host() ? 1 : kTensorCoreColumns;
  o.seed = std::uint64_t(config.has("seed") ? config.integer("seed") : 1);
  if (o.width % o.heads)
    throw UsageError(fmt::format("--heads={} must divide --width={}", o.heads, o.width));
  if (o.key_heads && o.heads % o.key_heads)
    throw UsageError(fmt::format("--key_heads={} must divide --heads={}, or be 0 for as many", o.key_heads, o.heads));
  if (o.key_heads && o.key_heads != o.heads && o.init == "mimetic")
    throw UsageError(fmt::format("--init=mimetic starts keys as queries: --key_heads={} must be --heads={}", o.key_heads, o.heads));
  if (o.positions == "rotary" && o.attention != "taylor" && o.width / o.heads % 2)
    throw UsageError(fmt::format("rotary positions need an even head width, but width / heads = {}; choose other --heads or "
                                 "--positions=learned",
                                 o.width / o.heads));
  if (o.decay_gate && (!has_log_features(o.attention) || o.window > 0))
    throw UsageError(fmt::format("--decay_gate goes with hedgehog, hedgehog-softmax, hedgehog-joint, exp and performer, without a window, "
                                 "not with --attention={} and --window={}; leave it out, or change these", o.attention, o.window));
  if (o.window > 0 && (o.attention == "taylor" || o.attention == "performer" || o.attention == "cosformer"))
    throw UsageError(fmt::format("--window goes with softmax and with the feature maps that are part of linear attention, such as hedgehog, "
                                 "not with --attention={}; leave out one of the two", o.attention));
  if (o.short_convolution == 1)
    throw UsageError("--short_convolution=1 mixes nothing; give 2 or more tokens (4 is usual), or 0 for none");
  if (o.attention != "softmax" && o.width / o.heads > 256)
    throw UsageError(fmt::format("linear attention takes heads up to 256 wide, but width / heads = {}; use more --heads", o.width / o.heads));
  return o;
}

OptimizerOptions optimizer_options(const Config& config) {
  return {config.real("beta1"), config.real("beta2"), config.real("epsilon"), config.real("weight_decay"), config.real("clip")};
}

Schedule schedule_of(const Config& config) {
  Schedule s;
  s.kind = schedule_kind(config.text("schedule"));
  s.peak = config.real("learning_rate");
  s.minimum = config.has("min_learning_rate") ? config.real("min_learning_rate") : s.peak / 10;
  s.steps = config.integer("steps");
  s.warmup = config.integer("warmup");
  return s;
}

MemoryOptions memory_options(const Config& config) {
  MemoryOptions o;
  o.recompute = config.text("recompute");
  if (config.has("memory")) o.most = std::max<Bytes>(1, Bytes(config.real("memory") * double(1 << 30)));
  return o;
}

Cost fit_step(const GptOptions& model, StepShape& shape, const OptimizerOptions& optimizer, const MemoryOptions& memory, Bytes held) {
  shape.arena = memory.recompute == "all" ? 0 : StepShape::kUnlimited;
  const Cost cost = TrainingStep::predict(model, shape, optimizer);
  const double room = room_of(memory, held).bytes;
  if (memory.recompute != "auto" || room == 0 || double(cost.peak - held) <= room) return cost;
  shape.arena = std::max<Bytes>(0, Bytes(room) + held - cost.persistent);
  return TrainingStep::predict(model, shape, optimizer);
}

Cost check_memory(const GptOptions& model, StepShape& shape, const OptimizerOptions& optimizer, const MemoryOptions& memory, Bytes held) {
  const bool none = memory.recompute == "none";
  const std::string smaller = fmt::format("smaller context, width or number of layers{}", none ? ", or --recompute=auto" : "");
  const std::string advice =
      fmt::format(" (--gradient_accumulation keeps the step's size{})", none ? "; --recompute=auto takes less memory" : "");
  Room room = room_of(memory, held);
  if (none) room.remedy += ", or give --recompute=auto";
  check_batch(model, shape.rows, held > 0, smaller.c_str(), advice.c_str(), room, [&](std::int64_t rows) {
    StepShape s = shape;
    s.rows = rows;
    s.arena = StepShape::kUnlimited;
    // weights, moments and inputs are there in any case: where they do not fit, no search for what to recompute
    const Bytes least = TrainingStep::predict(model, s, optimizer).persistent - held;
    if (room.bytes > 0 && double(least) > room.bytes) return least;
    return fit_step(model, s, optimizer, memory, held).peak - held;
  });
  return fit_step(model, shape, optimizer, memory, held);
}

std::string memory_text(const Cost& cost) {
  return fmt::format("{} predicted: {} for weights and optimiser, {} for activations{}", bytes_text(double(cost.peak)),
                     bytes_text(double(cost.persistent)), bytes_text(double(cost.arena)),
                     cost.repeated == 0 ? "" : fmt::format("; results made again in backward add {:.1f} % to the work",
                                                           100 * cost.repeated / cost.own_flops()));
}

std::string verdict_text(const Cost& cost, const MemoryOptions& memory) {
  const Room room = room_of(memory, 0);
  if (room.bytes == 0) return "";
  return double(cost.peak) <= room.bytes ? "fits" : "does not fit, " + room.text;
}

void check_evaluation_memory(const GptOptions& model, std::int64_t rows, bool documents) {
  check_batch(model, rows, false, "model of a smaller context", "", {},
              [&](std::int64_t n) { return Evaluator::predict(model, n, model.context, documents); });
}

void check_decoding_memory(const GptOptions& model, std::int64_t tokens) {
  if (model.attention != "softmax") return;
  const double free = free_memory(), each = 2.0 * double(model.layers) * double(model.width) * double(size_of(model.dtype));
  if (free == 0 || each * double(tokens) <= free) return;
  throw UsageError(fmt::format("a text of {} tokens needs {} of memory for keys and values, but only {} is free; --tokens={} would fit", tokens,
                               bytes_text(each * double(tokens)), bytes_text(free), std::int64_t(free / each)));
}

Device& configure_machine(const Config& config) {
  configure_threads();
  if (config.has("threads")) set_thread_count(int(config.integer("threads")));
  const std::string device = config.has("device") ? config.text("device") : "cpu";
  if (device == "cpu") return cpu_device();
  const std::string reason = cuda_unavailable();
  if (reason.empty()) return cuda_device();
  if (device == "cuda" && !config.was_set("device"))
    throw UsageError(fmt::format("the run was made on a GPU, but {}; --device=cpu goes on without one, though not bit for bit", reason));
  if (device == "cuda") throw UsageError("--device=cuda: " + reason);
  const char* const visible = std::getenv("CUDA_VISIBLE_DEVICES");  // empty: hidden on purpose
  if (built_with_cuda() && !(visible && !*visible)) fmt::print(stderr, "note: computing on the CPU: {}\n", reason);
  return cpu_device();
}

Dtype configure_dtype(const Config& config) {
  const std::string dtype = config.has("dtype") ? config.text("dtype") : "auto";
  if (dtype == "f16") throw UsageError("--dtype=f16 is for the files of export; computing is in f32, bf16 or f64");
  Device& device = current_device();
  if (device.host() && (dtype == "bf16" || dtype == "tf32"))
    throw UsageError(fmt::format("--dtype={} needs a GPU; leave it out to compute in f32 on the CPU", dtype));
  device.allow_tf32(dtype == "tf32");
  if (dtype == "f64") return Dtype::f64;
  return dtype == "bf16" || (dtype == "auto" && !device.host()) ? Dtype::bf16 : Dtype::f32;
}

std::string bytes_text(double bytes) { return scaled(bytes, 1024, {"B", "KiB", "MiB", "GiB", "TiB"}, "{:.3g} {}"); }
std::string flops_text(double flops) { return scaled(flops, 1000, {"FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP"}, "{:.3g} {}"); }
std::string count_text(double count) { return scaled(count, 1000, {"", "K", "M", "G"}, "{:.3g}{}"); }

}  // namespace hedgehog

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "core/error.h"
#include "train/atomic_directory.h"
#include "train/commands.h"
#include "train/conversion.h"
#include "train/conversion_report.h"
#include "train/files.h"
#include "train/foreign_export.h"
#include "train/run_directory.h"
#include "train/split.h"
#include "train/trainer.h"

namespace hedgehog {
namespace {

namespace fs = std::filesystem;

/// Refuses options of a stage that is left out; leaves out a distillation that nobody asked for where there is nothing to distil.
void check_stages(Config& config) {
  auto belongs = [&](std::initializer_list<const char*> options, bool used, const char* to) {
    for (const char* option : options)
      if (config.was_set(option) && !used) throw UsageError(fmt::format("--{} belongs to {}; leave it out, or ask for that", option, to));
  };
  const std::string attention = config.text("attention");
  if (attention == "elu" || attention == "relu" || attention == "exp") {
    if (config.was_set("distill") && config.text("distill") != "none")
      throw UsageError(fmt::format("the feature map of --attention={} has no weights: there is nothing to distil; leave --distill out",
                                   attention));
    config.set("distill", "none", OptionSource::kFlag);
  }
  belongs({"distill_steps", "distill_learning_rate"}, config.text("distill") != "none", "distillation");
  belongs({"finetune_steps", "finetune_learning_rate", "finetune_teacher"}, config.text("finetune") != "none", "finetuning");
  belongs({"lora_rank", "lora_alpha", "lora_dropout", "lora_targets", "lora_out"}, config.text("finetune") == "lora", "--finetune=lora");
  if (config.has("data") && config.text("data") == "-")
    throw UsageError("--data=- cannot be read again when the student is evaluated; give a file");
}

/// The options of the teacher's run, with what is another for the student: what eval, sample and info need to know.
Config run_options(const Config& config, const Checkpoint& teacher, const fs::path& found) {
  Config run("train");
  set_options(run, teacher.run, found);
  for (const auto& [name, value] : config.values())
    for (const char* same : {"attention", "window", "data", "batch", "gradient_accumulation", "seed"})
      if (name == same) run.set(name, value, OptionSource::kFlag);
  run.set("map_init_gain", "1", OptionSource::kFlag);
  if (config.has("length")) run.set("context", std::to_string(config.integer("length")), OptionSource::kFlag);
  return run;
}

LoraOptions lora_options(const Config& config) {
  return {config.integer("lora_rank"), config.real("lora_alpha"), config.real("lora_dropout"), split(config.text("lora_targets"), ',')};
}

void check_updates(const Config& config, std::int64_t width) {
  try {
    check_lora(lora_options(config), width);
  } catch (const ShapeError& e) {
    throw UsageError(e.what());
  }
}

/// The data of the run; a text shorter than a row is refused in words of this command, which calls the context --length.
RunData load_rows(Config& run, const TokenizerPointer& tokenizer) {
  try {
    return load_data(run, tokenizer);
  } catch (const UsageError& e) {
    std::string message = e.what();
    constexpr std::string_view kContext = "--context";
    for (std::size_t at = message.find(kContext); at != std::string::npos; at = message.find(kContext))
      message.replace(at, kContext.size(), "--length");
    throw UsageError(message);
  }
}

ConversionOptions conversion_options(const Config& config, const Gpt& teacher, const BatchSource& source) {
  ConversionOptions o;
  o.attention = config.text("attention");
  o.window = config.integer("window");
  o.distill = config.text("distill");
  o.distill_steps = o.distill == "none" ? 0 : config.integer("distill_steps");
  o.distill_learning_rate = config.real("distill_learning_rate");
  o.finetune = config.text("finetune");
  o.finetune_steps = config.integer("finetune_steps");
  o.finetune_learning_rate = config.real("finetune_learning_rate");
  o.lora = lora_options(config);
  if (config.has("lora_out")) o.lora_out = config.text("lora_out");
  o.finetune_teacher = config.flag("finetune_teacher");
  o.shape = {config.integer("batch"), config.has("length") ? config.integer("length") : teacher.options().context,
             config.integer("gradient_accumulation"), source.documents()};
  o.optimizer.weight_decay = config.real("weight_decay");
  o.optimizer.clip = config.real("clip");
  o.seed = std::uint64_t(config.integer("seed"));
  o.evaluate_batches = config.integer("evaluate_batches");
  o.save_every = config.integer("save_every");
  o.stop_at = config.integer("stop_at");
  o.quiet = config.flag("quiet");
  return o;
}

void announce(const Config& config, const RunData& data, const Conversion& conversion, const Checkpoint& teacher) {
  if (config.flag("quiet")) return;
  fmt::print(stderr, "{}\n", config.resolved_text());
  for (const std::string& note : data.notes) fmt::print(stderr, "note: {}\n", note);
  fmt::print(stderr, "teacher     step {}, {} parameters\n", teacher.run.step, count_text(double(teacher.model->parameters().count())));
  fmt::print(stderr, "data        {}\n", data.source->describe());
  fmt::print(stderr, "memory      {}\n\n", memory_text(conversion.predicted()));
}

/// Where the conversion stands, beside `last`, which is the student.
constexpr const char* kPoint = "stage";
/// What a point's options hold besides the command's.
constexpr const char *kStage = "conversion.stage", *kFigures = "conversion.figures";

/// Takes over the options of the conversion that --resume names; returns its directory.
fs::path resumed_options(Config& config) {
  const std::string given = config.text("resume");
  std::error_code ignored;
  // the run itself, not a link to it that is about to be set anew
  const fs::path there = fs::weakly_canonical(given == "latest" ? fs::path("runs") / "latest" : fs::path(given), ignored);
  const fs::path relative = fs::relative(there, ignored), run = relative.empty() ? there : relative, point = recover(run / kPoint);
  if (!fs::exists(point, ignored))
    throw UsageError(fmt::format("--resume={0} is no conversion that can go on: there is no {0}/{1}, which an interrupted one has; start a new one "
                                 "without --resume", given, kPoint));
  const RunState state = load_run_state(point);
  for (const auto& [name, value] : state.options) {
    if (name == kStage || name == kFigures || name == "resume" || name == "config" || name == "stop_at") continue;
    const bool free = name == "quiet" || name == "json" || name == "threads" || name == "save_every";
    if (config.was_set(name)) {
      if (free) continue;
      throw UsageError(fmt::format("--{} cannot change when a conversion is resumed; leave it out, or start a new one", name));
    }
    try {
      config.set(name, value, OptionSource::kCheckpoint);
    } catch (const UsageError& e) {
      throw FileError(fmt::format("[checkpoint] {}: field 'options.{}' is damaged or of another version: {}", (point / "state.json").string(), name,
                                  e.what()));
    }
  }
  return run;
}

/// The point that a conversion goes on from; the student of a stage that trains the teacher is `last`.
ConversionPoint load_point(const fs::path& directory, const RunData& data, Conversion& conversion) {
  const fs::path found = recover(directory / kPoint), state = found / "state.json";
  Checkpoint checkpoint = load_checkpoint(found, true);
  note_other_machine(checkpoint.run.machine);
  if (checkpoint.run.data_fingerprint != data.fingerprint)
    throw UsageError("the data has changed since the conversion was interrupted; resume needs the same data");
  for (const char* field : {kStage, kFigures})
    if (!checkpoint.run.options.contains(field)) throw FileError(fmt::format("[checkpoint] {} has no field 'options.{}'", state.string(), field));
  ConversionPoint point;
  point.stage = checkpoint.run.options.at(kStage);
  if (point.stage != "distillation" && point.stage != "finetuning" && point.stage != "finetuning the teacher")
    throw FileError(fmt::format("[checkpoint] {}: there is no stage '{}'", state.string(), point.stage));
  point.figures = figures_of_json(state, checkpoint.run.options.at(kFigures));
  point.step = checkpoint.run.step;
  point.step_slots = checkpoint.run.step_slots;
  point.model = std::move(checkpoint.model);
  if (point.stage == "finetuning the teacher") conversion.take_student(load_checkpoint(recover(directory / "last"), false).model);
  return point;
}

void save_point(const fs::path& directory, Gpt& model, const ConversionPoint& point, const RunData& data, const Config& config) {
  RunState state;
  state.step = point.step;
  state.step_slots = point.step_slots;
  state.data = config.has("data") ? config.text("data") : "stories";
  state.data_fingerprint = data.fingerprint;
  state.machine = machine_description();
  for (const auto& [option, value] : config.values()) state.options[option] = value;
  state.options["device"] = current_device().name();
  state.options[kStage] = point.stage;
  state.options[kFigures] = figures_json(point.figures).dump();
  save_checkpoint(directory / kPoint, model, *data.tokenizer, state);
}

void save(Conversion& conversion, const ConversionFigures& figures, const Checkpoint& teacher, const RunData& data, const Config& run,
          const ConversionOptions& options, const fs::path& directory) {
  RunState state = teacher.run;
  const std::int64_t steps = figures.distillation.steps + figures.finetuning.steps;
  state.step += steps;
  state.tokens += steps * options.shape.rows * options.shape.context * options.shape.micro_batches;
  state.seconds += figures.distillation.seconds + figures.finetuning.seconds;
  state.best_validation = state.last_validation = figures.student();
  state.data = run.has("data") ? run.text("data") : "stories";
  state.data_fingerprint = data.fingerprint;
  state.machine = machine_description();
  state.options.clear();
  for (const auto& [option, value] : run.values()) state.options[option] = value;
  state.options["device"] = current_device().name();
  save_checkpoint(directory / "last", conversion.student(), *data.tokenizer, state);
}

void write_files(const Config& config, const Checkpoint& teacher, const RunData& data, const ConversionFigures& figures,
                 const fs::path& directory) {
  nlohmann::ordered_json out = figures_json(figures);
  for (const auto& [name, value] : config.values()) out["options"][name] = value;
  write_file(directory / "convert.json", out.dump(2) + "\n");
  const std::string title = fmt::format("{}, softmax converted to {}", data.name, config.text("attention"));
  Report report = conversion_report(title, figures, config.values());
  report.distillation = read_log(directory / "distillation.jsonl");
  const bool by_weights = config.text("distill") == "weights";
  report.distillation_loss = by_weights ? "KL divergence (nats a row)" : "mean squared error of attention's output";
  report.log = read_log(directory / "log.jsonl");
  report.floor = data.source->floor();
  report.layer_names = layer_names(teacher.model->options());
  write_report(directory / "report.html", report);
}

}  // namespace

int convert_command(Config& config) {
  const fs::path resumed = config.has("resume") ? resumed_options(config) : fs::path{};
  check_stages(config);
  const OnDevice guard(configure_machine(config));
  const fs::path found = find_checkpoint(config.text("from"));
  // what is the latest run now is this one soon
  if (config.text("from") == "latest") config.set("from", fs::weakly_canonical(found).string(), OptionSource::kFlag);
  const Checkpoint teacher = load_checkpoint(found, false);
  // refused before the data is read
  student_options(teacher.model->options(), config.text("attention"));
  if (!teacher.model->options().causal)
    throw UsageError(fmt::format("--from={} is an encoder, which predicts no next token: convert, which measures that, takes language "
                                 "models", found.string()));
  if (config.text("finetune") == "lora") check_updates(config, teacher.model->options().width);
  if (config.has("lora_out")) {
    foreign_architecture(teacher.model->options());
    if (resumed.empty()) check_export_folder(config.text("lora_out"));  // else its stage may be done
  }
  Config run = run_options(config, teacher, found);
  const RunData data = load_rows(run, teacher.tokenizer);
  const ConversionOptions options = conversion_options(config, *teacher.model, *data.source);
  Conversion conversion(teacher, data, options);
  run.set("context", std::to_string(conversion.student().options().context), OptionSource::kFlag);  // what eval reads, whatever --length
  announce(config, data, conversion, teacher);
  ConversionPoint point;
  if (!resumed.empty()) point = load_point(resumed, data, conversion);
  const fs::path directory = resumed.empty() ? make_run_directory(config.has("out") ? config.text("out") : "",
                                                                  fmt::format("{}-{}", data.name, options.attention))
                                             : resumed;
  if (resumed.empty()) write_file(directory / "convert.toml", config.to_toml());
  const auto save_stage = [&](Gpt& model, const ConversionPoint& at) {
    if (&model != &conversion.student() && at.step == 0) save(conversion, at.figures, teacher, data, run, options, directory);
    save_point(directory, model, at, data, config);
  };
  const ConversionFigures figures = conversion.run(directory, save_stage, std::move(point));
  save(conversion, figures, teacher, data, run, options, directory);
  mark_latest(directory);
  write_files(config, teacher, data, figures, directory);
  if (config.flag("json")) fmt::print("{}", read_file(directory / "convert.json"));
  else fmt::print("{0}\ncheckpoint  {1}/last\nreport      {1}/report.html\nwrite text  ./hedgehog sample --checkpoint={1}\n",
                  figures_text(figures), directory.string());
  if (!figures.interrupted) {
    std::error_code ignored;
    fs::remove_all(directory / kPoint, ignored);  // done: nothing to go on with
    return kGood;
  }
  fmt::print(stderr, "interrupted: the student is written as it was then; go on with ./hedgehog convert --resume={}\n", directory.string());
  return kInterrupted;
}

}  // namespace hedgehog

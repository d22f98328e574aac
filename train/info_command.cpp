#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "ops/blas.h"
#include "ops/cpu.h"
#include "ops/register.h"
#include "train/bench_step.h"
#include "train/checkpoint.h"
#include "train/commands.h"
#include "train/report.h"
#include "train/setup.h"
#include "version.h"

namespace hedgehog {
namespace {

std::string composed_text() {
  if (!cuda_unavailable().empty()) return "-";
  const OnDevice guard(cuda_device());
  std::string names;
  for (const std::string& name : composed_ops()) names += (names.empty() ? "" : ", ") + name;
  return names.empty() ? "none" : names;
}

NamedValues machine_rows() {
  const BlasInfo blas = blas_info();
  register_ops();
  return {{"version", HH_VERSION},
          {"processor", cpu_model()},
          {"threads", std::to_string(thread_count())},
          {"free memory", bytes_text(double(available_memory()))},
          {"blas", blas.library},
          {"blas kernel", (blas.core.empty() ? "unknown" : blas.core) + ", chosen by " + blas.chosen_by},
          {"ops", std::to_string(registered_ops().size())},
          {"cuda", cuda_unavailable().empty() ? cuda_device().description() : cuda_unavailable()},
          {"ops composed on the GPU", composed_text()}};
}

NamedValues checkpoint_rows(const std::string& name) {
  const auto path = find_checkpoint(name);
  const Checkpoint c = load_checkpoint(path, false);
  const GptOptions& o = c.model->options();
  NamedValues rows{{"checkpoint", path.string()},
                   {"step", std::to_string(c.run.step)},
                   {"attention", o.attention},
                   {"shape", fmt::format("{} layers, {} heads, width {}, context {}, vocabulary {} ({})", o.layers, o.heads, o.width, o.context,
                                         o.vocabulary, c.tokenizer->kind())},
                   {"parameters", std::to_string(c.model->parameters().count())},
                   {"data", c.run.data},
                   {"last validation loss", fmt::format("{:.4f}", c.run.last_validation)}};
  for (const auto& [key, value] : c.run.machine) rows.emplace_back("trained with " + key, value);
  return rows;
}

NamedValues model_rows(const Config& config) {
  const std::int64_t vocabulary = config.has("preset") && config.text("preset").starts_with("gpt2") ? 50304 : 256;
  const GptOptions o = gpt_options(config, vocabulary);
  const double parameters = double(parameter_count(o));
  const std::int64_t rows = config.integer("batch");
  StepShape shape{rows, o.context};
  // a plan of more elements than any machine holds would overflow its bytes
  const bool possible = double(rows) * double(o.context) * double(o.width) <= 1e12;
  std::string step = "more than any machine holds";
  if (possible) {
    const Cost cost = fit_step(o, shape, {}, memory_options(config));
    step = fmt::format("{} ({}); {}", memory_text(cost), name_of(o.dtype), verdict_text(cost, memory_options(config)));
  }
  return {{"model", fmt::format("{} layers, {} heads, width {}, context {}, vocabulary {}, {} attention", o.layers, o.heads, o.width, o.context,
                                o.vocabulary, o.attention)},
          {"parameters", std::to_string(parameter_count(o))},
          {"work", flops_text(6 * parameters) + " a training token, attention not counted"},
          {fmt::format("step of {} x {}", rows, o.context), step}};
}

}  // namespace

int info_command(Config& config) {
  const OnDevice guard(configure_machine(config));
  NamedValues rows = machine_rows();
  if (config.was_set("checkpoint"))
    for (auto& row : checkpoint_rows(config.text("checkpoint"))) rows.push_back(row);
  if (config.has("preset") || config.was_set("layers") || config.was_set("width"))
    for (auto& row : model_rows(config)) rows.push_back(row);
  if (config.flag("json")) {
    nlohmann::ordered_json out;
    for (const auto& [key, value] : rows) out[key] = value;
    fmt::print("{}\n", out.dump(2));
  } else {
    for (const auto& [key, value] : rows) fmt::print("{:<24} {}\n", key, value);
  }
  return kGood;
}

}  // namespace hedgehog

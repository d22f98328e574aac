#include <fmt/format.h>

#include "core/error.h"
#include "train/commands.h"
#include "train/reproduce.h"
#include "train/setup.h"

namespace hedgehog {
namespace {

void list_experiments() {
  fmt::print("hedgehog reproduce NAME [--size=small|gpu]\n\n");
  for (const Experiment& experiment : experiment_table()) fmt::print("{:<14}{}\n", experiment.name, experiment.claim);
}

ReproduceRequest request_of(const Config& config) {
  ReproduceRequest request;
  request.size = config.text("size");
  if (config.has("seeds")) request.seeds = parse_seeds(config.text("seeds"));
  if (config.has("part")) request.part = config.text("part");
  if (config.has("minutes")) request.minutes = config.real("minutes");
  request.collect = config.flag("collect");
  request.folder = config.has("out") ? config.text("out") : fmt::format("reproduce/{}-{}", config.argument(), request.size);
  request.config = &config;
  return request;
}

}  // namespace

int reproduce_command(Config& config) {
  if (config.argument().empty()) {
    list_experiments();
    return kGood;
  }
  const Experiment& experiment = find_experiment(config.argument());
  const ReproduceRequest request = request_of(config);
  experiment.settings(request);  // what is missing is said first
  const OnDevice guard(configure_machine(config));
  if (request.size == "gpu" && current_device().host() && !request.collect)
    fmt::print(stderr, "note: --size=gpu on the CPU takes hours a part\n");
  return reproduce(experiment, request, stdout);
}

}  // namespace hedgehog

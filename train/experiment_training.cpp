#include "train/experiment_training.h"

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <string>

#include "train/setup.h"

namespace hedgehog {

Config training_config(std::string_view values) {
  std::vector<std::string> arguments;
  while (!values.empty()) {
    const std::string_view item = values.substr(0, values.find(' '));
    if (!item.empty()) arguments.push_back("--" + std::string(item));
    values.remove_prefix(std::min(values.size(), item.size() + 1));
  }
  Config config("train");
  config.parse(arguments);
  return config;
}

std::uintmax_t bytes_at(const std::string& data) {
  namespace fs = std::filesystem;
  std::error_code error;
  if (fs::is_regular_file(data, error)) return fs::file_size(data, error);
  std::uintmax_t bytes = 0;
  if (fs::is_directory(data, error))
    for (const auto& entry : fs::recursive_directory_iterator(data, error))
      if (entry.is_regular_file(error)) bytes += entry.file_size(error);
  return bytes;
}

TrainingPlan training_plan(const Config& config, std::int64_t vocabulary) {
  return {gpt_options(config, vocabulary), config.integer("batch"), optimizer_options(config), schedule_of(config),
          config.integer("evaluate_every")};
}

TrainedModel train_model(const TrainingPlan& plan, const BatchSource& source, const std::function<double(const Gpt&)>& measure,
                         const std::function<bool()>& stopped) {
  using Clock = std::chrono::steady_clock;
  TrainedModel result;
  result.model = std::make_unique<Gpt>(plan.model);
  TrainingStep step(*result.model, {plan.rows, plan.model.context, 1, source.documents()}, plan.optimizer, plan.model.seed);
  const auto submit = [&](std::int64_t s) {
    if (step.unfinished() == 0) result.model->redraw_before(s);
    const Batch batch = source.training(s, 0, plan.rows);
    step.submit(std::span(&batch, 1), learning_rate(plan.schedule, s));
  };
  const auto pauses_after = [&](std::int64_t s) { return s + 1 == plan.schedule.steps || (s + 1) % plan.measure_every == 0; };
  double sum = 0;
  std::int64_t summed = 0;
  auto start = Clock::now();
  for (std::int64_t s = 0; s < plan.schedule.steps; ++s) {
    if (stopped()) {
      while (step.unfinished() > 0) step.finish();
      throw Stopped{};
    }
    if (step.unfinished() == 0) submit(s);
    // a GPU gets the next step before this one's result is waited for
    if (!current_device().host() && !pauses_after(s) && !result.model->redraws_before(s + 1)) submit(s + 1);
    const StepResult done = step.finish();
    result.diverged = done.failed;
    sum += done.loss;
    ++summed;
    if (!pauses_after(s) && !done.failed) continue;
    result.seconds += std::chrono::duration<double>(Clock::now() - start).count();
    if (done.failed) break;
    result.curve.push_back({s + 1, sum / double(summed), measure(*result.model), result.seconds});
    sum = 0;
    summed = 0;
    start = Clock::now();
  }
  return result;
}

}  // namespace hedgehog

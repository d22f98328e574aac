#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "nn/gpt.h"
#include "train/batch_source.h"
#include "train/config.h"
#include "train/interrupt.h"
#include "train/schedule.h"
#include "train/training_step.h"

namespace hedgehog {

/// Options of the command train, from `values`: "preset=char-cpu steps=500 attention=elu". Later ones win. Throws as Config does.
Config training_config(std::string_view values);

/// Bytes of a file, or of all files in a directory; 0 for what is no path.
std::uintmax_t bytes_at(const std::string& data);

/// A training run of an experiment: no directory, no checkpoints, only a curve.
///
/// model          the model; its seed draws the weights
/// rows           rows of a step's batch
/// optimizer      AdamW and clipping
/// schedule       learning rate and number of steps
/// measure_every  steps between two points of the curve; the last step is always one
struct TrainingPlan {
  GptOptions model;
  std::int64_t rows = 16;
  OptimizerOptions optimizer;
  Schedule schedule;
  std::int64_t measure_every = 100;
};

/// The plan of a run with these options (measure_every: --evaluate_every) on the current device.
TrainingPlan training_plan(const Config& config, std::int64_t vocabulary);

/// One point of the curve.
struct TrainingPoint {
  std::int64_t step = 0;
  double loss = 0;     // mean training loss since the point before, nats
  double measure = 0;  // what the experiment measures
  double seconds = 0;  // since the start, measuring left out
};

struct TrainedModel {
  std::unique_ptr<Gpt> model;
  std::vector<TrainingPoint> curve;
  double seconds = 0;
  bool diverged = false;  // the loss or a gradient was not finite: the curve ends there
};

/// Trains a new model on the current device.
///
/// measure  called at every point of the curve
/// stopped  asked before every step; once true, Stopped is thrown
TrainedModel train_model(const TrainingPlan& plan, const BatchSource& source, const std::function<double(const Gpt&)>& measure,
                         const std::function<bool()>& stopped);

}  // namespace hedgehog

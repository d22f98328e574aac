#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numbers>
#include <string_view>

#include "core/error.h"

namespace hedgehog {

enum class ScheduleKind { kCosine, kLinear, kConstant };

/// How the learning rate moves over a run.
///
/// peak     highest learning rate
/// minimum  learning rate at the end (not used by constant)
/// warmup   steps of linear warm-up
/// steps    steps of the whole run; after them the minimum holds
struct Schedule {
  ScheduleKind kind = ScheduleKind::kCosine;
  double peak = 0;
  double minimum = 0;
  int64_t warmup = 0;
  int64_t steps = 0;
};

/// The kind that `--schedule=` names: cosine, linear, constant. Throws UsageError.
inline ScheduleKind schedule_kind(std::string_view name) {
  if (name == "cosine") return ScheduleKind::kCosine;
  if (name == "linear") return ScheduleKind::kLinear;
  if (name == "constant") return ScheduleKind::kConstant;
  throw UsageError("[schedule] expected cosine, linear or constant, got '" + std::string(name) + "'");
}

/// The learning rate of one step: a pure function, so that a resumed run goes on exactly.
///
///   step < warmup:  peak * (step + 1) / (warmup + 1)
///   then, with p = (step - warmup) / (steps - warmup) in [0, 1]:
///   cosine:    minimum + (peak - minimum) * (1 + cos(pi p)) / 2
///   linear:    minimum + (peak - minimum) * (1 - p)
///   constant:  peak
///
/// step  counts from 0
///
/// Source: karpathy/nanoGPT:train.py get_lr.
inline double learning_rate(const Schedule& schedule, int64_t step) {
  if (step < schedule.warmup) return schedule.peak * double(step + 1) / double(schedule.warmup + 1);
  if (schedule.kind == ScheduleKind::kConstant) return schedule.peak;
  const int64_t decay_steps = schedule.steps - schedule.warmup;
  const double progress = decay_steps <= 0 ? 1.0 : std::min(1.0, double(step - schedule.warmup) / double(decay_steps));
  const double share =
      schedule.kind == ScheduleKind::kCosine ? 0.5 * (1.0 + std::cos(std::numbers::pi * progress)) : 1.0 - progress;
  return schedule.minimum + (schedule.peak - schedule.minimum) * share;
}

}  // namespace hedgehog

#pragma once
#include "train/config.h"

namespace hedgehog {

/// Exit codes of the program.
enum ExitCode { kGood = 0, kRunFailed = 1, kUsage = 2, kBadFile = 3, kInterrupted = 130 };

/// The commands of the program; each returns its exit code and throws the errors of core/error.h.
int train_command(Config& config);
int sample_command(Config& config);
int eval_command(Config& config);
int analyze_command(Config& config);
int convert_command(Config& config);
int prepare_command(Config& config);
int embed_command(Config& config);
int finetune_command(Config& config);
int import_command(Config& config);
int export_command(Config& config);
int reproduce_command(Config& config);
int gradcheck_command(Config& config);
int step_command(Config& config);
int bench_command(Config& config);
int info_command(Config& config);
/// eval --metric: predictions against references, without a model.
int metric_command(const Config& config);

}  // namespace hedgehog

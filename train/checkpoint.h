#pragma once
#include <cmath>
#include <filesystem>
#include <map>
#include <memory>
#include <string>

#include "nn/gpt.h"
#include "train/config.h"
#include "train/tokenizer.h"

namespace hedgehog {

/// Where a run stands. Everything a resumed run needs besides weights and moments.
struct RunState {
  std::int64_t step = 0;               // optimiser steps done; also the position in the data
  std::int64_t tokens = 0;             // training tokens seen
  double seconds = 0;                  // of training
  double best_validation = INFINITY;   // lowest validation loss so far
  int rising_validations = 0;          // validations running in which the loss rose
  double last_validation = INFINITY;
  std::string data;                    // what it trains on, as given
  std::string data_fingerprint;        // changes when the data does
  std::vector<double> step_slots;      // the optimiser's step state
  std::map<std::string, std::string> machine;  // device, BLAS kernel, threads, versions: bit for bit holds when equal
  std::map<std::string, std::string> options;  // the resolved configuration
};

struct Checkpoint {
  std::unique_ptr<Gpt> model;
  TokenizerPointer tokenizer;
  RunState run;
};

/// This process's device, BLAS kernel, threads and versions.
std::map<std::string, std::string> machine_description();

/// Writes model.safetensors, optimizer.safetensors, state.json and tokenizer.json as one directory, atomically: the old
/// one stays whole until the new one is. Without `moments` there is no optimizer.safetensors, and nothing to resume. Throws WriteError.
void save_checkpoint(const std::filesystem::path& directory, Gpt& model, const Tokenizer& tokenizer, const RunState& run, bool moments = true);

/// What is beside the weights in a checkpoint.
RunState load_run_state(const std::filesystem::path& directory);
/// Reads a checkpoint's directory, as find_checkpoint gives it; or a model of another library (train/foreign_model.h), as after 0 steps. With
/// `moments`, the optimiser's moments too. Throws FileError naming file and field when something is missing, damaged or does not fit.
Checkpoint load_checkpoint(const std::filesystem::path& directory, bool moments);

/// Gives `config` the options that a checkpoint's run had. Throws FileError naming state.json for one that is unknown or malformed.
void set_options(Config& config, const RunState& run, const std::filesystem::path& checkpoint);

/// The directory that `--checkpoint` or `--resume` names: a checkpoint, a run (its `last`), "latest", or a model of another library.
/// Throws FileError saying how to make one when there is none.
std::filesystem::path find_checkpoint(const std::string& name);

}  // namespace hedgehog

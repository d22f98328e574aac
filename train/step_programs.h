#pragma once
#include <string>
#include <vector>

#include "core/tape.h"

namespace hedgehog {

/// A small program to step through.
struct StepExample {
  std::string name, help;
  Program (*program)(Dtype dtype);
};
/// All of them, from two numbers to a block of a Hedgehog Transformer. Drawn numbers are the same everywhere.
const std::vector<StepExample>& step_examples();
/// Throws UsageError naming the nearest.
const StepExample& find_step_example(const std::string& name);

/// The loss of a model on a text, the last token predicted from those before, and its backward pass. `dtype`: f64 or f32.
/// Throws UsageError if the text has fewer than two tokens or more than the context, FileError for a broken checkpoint.
Program checkpoint_program(const std::string& checkpoint, const std::string& text, Dtype dtype);

}  // namespace hedgehog

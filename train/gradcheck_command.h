#pragma once
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "core/op.h"

namespace hedgehog {

/// What `hedgehog gradcheck` is asked to check.
struct GradcheckCommand {
  std::string op = {};     // only this one; empty: every op
  std::int64_t draws = 10; // random inputs a sample
  std::uint64_t seed = 1;
  bool json = false;
};

/// Compares the backward of every op (or of one) with central differences in f64: every sample of its record, every
/// differentiable input, `draws` random inputs each. Prints a table, or one JSON object.
///
///   error = max |analytic - numeric| / max |numeric|, at most 1e-6; max |numeric| at least 1e-3, or the row fails
///
/// Returns 0 if all pass, else 1. Throws UsageError naming the nearest op if `op` is unknown, and if `draws` is under 1.
int run_gradcheck(const GradcheckCommand& command, std::FILE* out);
/// The same for these records, whether registered or not; `command.op` is not looked at.
int run_gradcheck(const GradcheckCommand& command, const std::vector<const Op*>& ops, std::FILE* out);

}  // namespace hedgehog

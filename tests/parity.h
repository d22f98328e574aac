#pragma once
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "tests/op_cases.h"

namespace hedgehog::test {

/// One tensor that a run leaves: a result, the gradient of an argument, or an argument that was overwritten.
struct Left {
  std::string name;
  std::vector<double> values;
};
using Outcome = std::vector<Left>;

using Numbers = std::vector<std::vector<double>>;

/// Forward and backward of something on drawn arguments, to be done in several ways.
struct ParityCase {
  const Op* op = nullptr;  // its names and dtypes of arguments count; with `function`, nothing else of it
  Sample sample = {};
  std::function<Tensors(const Tensors&)> function = {};  // none: applies the op
  int draws = 9;
  int passes = 1;            // of forward and backward: from the second on, gradients meet numbers that are there already
  bool activations = false;  // arguments are copied first, so that their gradients have the dtype of an activation
  /// Makes the drawn numbers hard. What the plain form loses is then measured on the numbers as drawn, which it can stand.
  std::function<void(Numbers&)> change = {};
  double conditioning = 0;   // relative error that the rounding of hard numbers to f32 alone leads to
};

/// Every sample of one op, once for the gradients of parameters and once for those of activations.
std::vector<ParityCase> cases_of(const Op& op);

/// The arguments of a draw in a dtype on the current device. `rounded` is the dtype that the numbers were rounded to before, so
/// that all runs of a draw start from the same.
Tensors arguments_of(const ParityCase& c, std::uint64_t seed, Dtype rounded, Dtype dtype, bool hard = true);

/// Runs a case on the current device with the tape. `rounded` as above, for the cotangents.
Outcome run_case(const ParityCase& c, const Tensors& arguments, bool composed, std::uint64_t seed, Dtype rounded);

/// The program with both operands of every product, and in backward its upstream gradient, rounded to bf16 first.
Program with_rounded_products(Program program);

/// What a case leaves in a dtype, known without running it. Empty if the case refuses the dtype.
struct Kept {
  std::vector<Dtype> dtypes;  // of each tensor of the outcome
  std::size_t results = 0;    // so many of them are results, which come first
  bool narrow = false;        // backward reads something that is kept in bf16
};
std::optional<Kept> kept_in(const ParityCase& c, Dtype dtype);

/// Errors of one tensor over several draws, relative and as root of the mean square; and the largest ones.
struct Errors {
  std::string name;
  double rounding = 0;      // of the dtype, relative
  double conditioning = 0;  // as in the case
  std::vector<double> ours = {}, plain = {};
  double ours_worst = 0, plain_worst = 0, largest_value = 0;
  double nothing = 0;   // largest of ours where the exact tensor is 0

  void add(const std::vector<double>& ours, const std::vector<std::vector<double>>& plain, const std::vector<double>& exact,
           const std::vector<std::vector<double>>& plain_exact);
  /// The largest relative error that passes.
  double allowed() const;
  /// Empty if ours is close enough; else what is wrong.
  std::string verdict() const;
};

/// Runs the draws of a case: `ours` against f64 on the CPU, beside the plain form on the CPU. None if the case refuses the dtype.
using Run = std::function<Outcome(const ParityCase&, std::uint64_t seed)>;
std::vector<Errors> compare(const ParityCase& c, Dtype dtype, const Run& ours);

/// What the current device makes of a draw.
Run run_here(Dtype dtype);

/// Every verdict of a case in every dtype, on the current device. Counts the dtypes that were compared.
int check_parity(const ParityCase& c);

}  // namespace hedgehog::test

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
  int draws = 5;
  int passes = 1;            // of forward and backward: from the second on, gradients meet numbers that are there already
  bool activations = false;  // arguments are copied first, so that their gradients have the dtype of an activation
  /// Makes the drawn numbers hard. What the plain form loses is then measured on the numbers as drawn, which it can stand.
  std::function<void(Numbers&)> change = {};
  double conditioning = 0;   // relative error that the rounding of hard numbers to f32 alone leads to
  std::vector<Dtype> dtypes = {Dtype::f32, Dtype::f64, Dtype::bf16};
};

/// Every sample of one op, once for the gradients of parameters and once for those of activations.
std::vector<ParityCase> cases_of(const Op& op);

/// What a case leaves in a dtype, known without running it.
struct Kept {
  std::vector<Dtype> dtypes;              // of each tensor of the outcome
  std::vector<std::int64_t> terms;        // of each tensor of the outcome: products that add up in one element of it, 0 if it is no product
  std::vector<Dtype> arguments;           // their own dtypes
  std::vector<std::int64_t> cotangents;   // elements of each result, 0 where no gradient starts
  Program program = {};                   // forward and backward in this dtype
};
/// None if the case refuses the dtype.
std::optional<Kept> kept_in(const ParityCase& c, Dtype dtype);

/// The numbers of one draw, rounded to the dtype that is compared, so that all runs start from the same.
struct Drawn {
  Numbers arguments;   // empty for one left out
  Numbers cotangents;  // of each result
};
Drawn draw_case(const ParityCase& c, const Kept& kept, std::uint64_t seed, Dtype dtype, bool hard = true);

/// Runs a case in a dtype on the current device with the tape.
Outcome run_case(const ParityCase& c, const Drawn& drawn, Dtype dtype, bool composed = false);

/// Plain forms of a run in bf16, computed in f32 (or f64) on the CPU. What is stored in bf16 on a device is rounded to `digits`
/// significant bits, 8 being bf16.
///
/// The op's own kernel: what forward stores is rounded before backward reads it, and gradients of activations are when they are
/// written.
Outcome run_stored(const ParityCase& c, const Drawn& drawn, const Kept& kept, Dtype dtype = Dtype::f32, int digits = 8);
/// The composed form: both operands of every product, and in backward its upstream gradient, are rounded first, as tensor cores
/// read them; results when they are made, so that what follows reads what was stored; and what a fused op is documented to store
/// on its way.
Outcome run_products(const ParityCase& c, const Drawn& drawn, const Kept& kept, Dtype dtype = Dtype::f32);

/// The program with both operands of every product, and in backward its upstream gradient, rounded to bf16 first.
Program with_rounded_products(Program program);

/// Whether a case is a fused op, or several ops.
bool is_composite(const ParityCase& c);

/// Errors of one tensor over several draws, relative and as root of the mean square; and the largest ones.
struct Errors {
  std::string name;
  double rounding = 0;      // that passes beside twice the error of the plain form, relative
  double conditioning = 0;  // as in the case
  std::vector<double> ours = {}, plain = {};
  double ours_worst = 0, plain_worst = 0, largest_value = 0;
  double nothing = 0, plain_nothing = 0;  // largest where the exact tensor is 0

  void add(const std::vector<double>& ours, const std::vector<const std::vector<double>*>& plain, const std::vector<double>& exact,
           const std::vector<double>& plain_exact);
  /// The largest relative error that passes.
  double allowed() const;
  /// Empty if ours is close enough; else what is wrong.
  std::string verdict() const;
};

/// Runs the draws of a case: `ours` against f64 on the CPU, beside the plain form on the CPU. None if the case refuses the dtype.
using Run = std::function<Outcome(const ParityCase&, const Drawn&, const Kept&)>;
std::vector<Errors> compare(const ParityCase& c, Dtype dtype, const Run& ours);

/// What the current device makes of a draw.
Run run_here(Dtype dtype);

/// Every verdict of a case in every dtype of it, by `run_of(dtype)`. Counts the dtypes that were compared.
int check_parity(const ParityCase& c, const std::function<Run(Dtype)>& run_of = run_here);

}  // namespace hedgehog::test

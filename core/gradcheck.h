#pragma once
#include <functional>
#include <string>
#include <vector>

#include "core/tape.h"

namespace hedgehog {

struct GradcheckOptions {
  double step = 1e-5;        // of the central difference, times max(1, |x|); a hundredth of it where that one disagrees
  double tolerance = 1e-6;   // on the error below
  double smallest = 1e-3;    // the numeric gradient must be at least this large to be judged
  std::int64_t full = 200;   // an argument with more elements is checked at this many random ones and 4 random directions
  std::uint64_t seed = 1;
};

/// The verdict on one argument. error = max |analytic - numeric| / max |numeric|.
struct GradcheckRow {
  std::string argument;
  std::int64_t checked = 0;  // elements and directions compared
  double error = 0;
  double largest = 0;        // max |numeric|
  bool passed = false;
};

struct GradcheckReport {
  std::vector<GradcheckRow> rows;
  bool passed() const;
  double worst() const;
  std::int64_t checked() const;
};

/// Compares backward with central differences of `function`, at the values that the f64 parameters hold, for one random
/// cotangent a result. Parameters' gradients are overwritten.
///
///   numeric_i = (L(x + h e_i) - L(x - h e_i)) / 2h,   L = sum_j <r_j, y_j>,   r_j standard normal
///
/// Throws ShapeError if a parameter is not f64.
GradcheckReport gradcheck(const std::function<Tensors(const Tensors&)>& function, const Tensors& parameters,
                          const GradcheckOptions& options = {});

/// Arguments for one sample of an op: parameters for those that want a gradient, inputs and states for the others.
Tensors draw_arguments(const Op& op, const Sample& sample, std::uint64_t seed, Dtype dtype = Dtype::f64);
/// The same, filled with zeros.
Tensors empty_arguments(const Op& op, const Sample& sample, Dtype dtype = Dtype::f64);
/// What draw_arguments fills the argument of that number with; empty for an argument left out.
std::vector<double> draw_numbers(const SampleInput& input, std::uint64_t seed, std::uint32_t argument);
/// gradcheck of one op on one sample; an op that changes states sees the same states at every evaluation.
GradcheckReport gradcheck(const Op& op, const Sample& sample, const GradcheckOptions& options = {});

}  // namespace hedgehog

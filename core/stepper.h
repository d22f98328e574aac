#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "core/trace.h"

namespace hedgehog {

/// What can be said of a tensor's numbers at a glance. Infinities and NaN are counted, and left out of the rest.
struct Statistics {
  std::int64_t count = 0, zeros = 0, non_finite = 0;
  double minimum = 0, maximum = 0, mean = 0, deviation = 0, norm = 0;  // norm: root of the sum of squares
};
Statistics statistics(const std::vector<double>& values);

/// One term of the chain rule for an element of x: the gradient of an element of a result y of an op that reads x, times the derivative
/// of that element by this one.
struct Contribution {
  std::size_t entry = 0;       // the backward entry
  std::size_t argument = 0;    // of the op: the one that is x
  std::size_t output = 0;      // y is this output of the op
  std::int64_t element = 0;    // of y
  double upstream = 0;         // dL/dy
  double local = 0;            // dy/dx, from the op's backward with a cotangent that is 1 at y's element and 0 elsewhere
  double product() const { return upstream * local; }
};

/// Where a gradient comes from: gradient = before + seed + sum of the terms + rest, to rounding.
struct Why {
  double gradient = 0;  // as backward left it
  double before = 0;    // what was there before backward: gradients of parameters add up
  double seed = 0;      // what backward began with here
  std::vector<Contribution> terms;  // largest product first
  std::int64_t zeros = 0;           // terms left out, as their upstream or their local derivative is 0
  std::int64_t others = 0;          // terms that were not computed one by one
  double rest = 0;                  // their sum
  bool wide = true;                 // computed in f64
  double sum() const;
  /// Whether the sum is the gradient to 1e-10 (f32: 1e-4) of `largest`, or both are the same infinity.
  bool adds_up(double largest) const;
};

/// A gradient beside central differences of the loss L:
///
///   numeric = (L(x + h) - L(x - h)) / 2h,   error = |analytic - numeric| / max(|analytic|, |numeric|)
///
/// h = 1e-5 max(1, |x|) (f32: 1e-2), then a hundredth of it, then 1e-4 |x|, until one agrees to 1e-6 (f32: 5e-3) and what rounding
/// leaves, 16 last places of L over h. A step at which that is more than a hundredth of the gradient tells nothing. A gradient that is
/// rounding beside the largest of its tensor, under 1e-13 of it, counts as 0, and need not be told from it.
struct DifferenceCheck {
  double analytic = 0, numeric = 0, error = 0;
  double left = 0, right = 0;  // slopes to either side
  bool passed = false;
  bool kink = false;  // the two sides have slopes of their own and the gradient lies between: not differentiable here
  bool unresolved = false;  // rounding of the loss hides the difference at every step
  bool wrong() const { return !passed && !kink && !unresolved; }
};

/// What a change does to the loss.
struct WhatIf {
  double loss = 0;       // without it
  bool differentiable = false;  // whether a gradient reaches it
  double predicted = 0;  // change of the loss by the gradient
  double actual = 0;     // change of the loss, computed anew
};

/// Walks through what a program computed, forward and backward, and explains its gradients.
///
///   Program program = record([&] { Tensor loss = mean(square(matmul(x, w))); backward(loss); return Tensors{loss}; });
///   Stepper stepper(program);
///   stepper.next();
///   Why why = stepper.why(w, 3);
///
/// Everything is computed when it is made (see Trace); moving changes nothing. The loss is what backward began from: sum_j <c_j, y_j>
/// over its results y with their cotangents c.
class Stepper {
 public:
  explicit Stepper(Program program);
  Stepper(Stepper&&) = default;

  const Trace& trace() const { return trace_; }
  const std::vector<Entry>& entries() const { return trace_.entries(); }

  // the cursor

  /// Entries that are done, 0 to size().
  std::size_t position() const { return position_; }
  std::size_t size() const { return trace_.size(); }
  bool next();
  bool previous();
  /// Throws Error if there is no such position.
  void jump(std::size_t position);
  /// The first position after `from` whose entry, the one before it, satisfies the condition.
  std::optional<std::size_t> find_after(std::size_t from, const std::function<bool(std::size_t entry)>& condition) const;
  /// Whether all that an entry wrote is finite.
  bool finite(std::size_t entry) const;
  /// The largest |g| among the gradients that a backward entry wrote; 0 for others.
  double largest_gradient(std::size_t entry) const;

  // tensors by name

  /// The tensor's own name, for results behind the scope they were made in ("block0/attention/q"), else its op's with a number: "matmul2",
  /// "layer_norm1.mean". A gradient is "NAME.grad".
  std::string name(const Tensor& x) const;
  /// The end of that name behind its last "/", where find takes it; else the whole.
  std::string short_name(const Tensor& x) const;
  /// All names, as they first appear: leaves where they are first read, gradients where they are first written.
  const std::vector<std::string>& names() const { return names_; }
  /// The end of a name behind a "/" is enough where only one has it. Throws UsageError naming the nearest, or two that are meant.
  Tensor find(const std::string& name) const;
  /// The same, empty where find throws.
  Tensor find_or_empty(const std::string& name) const;
  /// The window on the gradient of x; empty if none reaches it.
  Tensor gradient_of(const Tensor& x) const;
  /// The tensor whose gradient this is; empty for others.
  Tensor primal_of(const Tensor& gradient) const;
  /// Results that something reads, or that the program returns; if there are none, the first.
  Tensors used_outputs(std::size_t entry) const;
  /// The forward entry of a backward one, or the backward one of a forward one.
  std::optional<std::size_t> partner(std::size_t entry) const;
  /// Entries before the one that backward begins with; none: there is no backward pass.
  std::optional<std::size_t> backward_begins() const { return seeds_.empty() ? std::nullopt : std::optional(seeds_.front().entry); }
  /// What backward began with.
  struct Seed {
    std::size_t entry = 0;
    Tensor result, gradient;  // the same window of both
  };
  const std::vector<Seed>& seeds() const { return seeds_; }
  /// Position where the gradient of x is complete.
  std::size_t gradient_position(const Tensor& x) const;

  // questions about one element of x, counted in order

  /// At most `most` terms of each op are computed one by one, those of results that change with the element and have the largest upstream
  /// gradients; fewer where that takes more than 2 GFLOP. Throws UsageError if no gradient reaches x, or it has no such element; so do check,
  /// check_direction and what_if.
  Why why(const Tensor& x, std::int64_t element, std::int64_t most = 4096) const;
  /// A term's dy/dx by a central difference of the op's forward.
  double local_difference(const Contribution& term, std::int64_t element_of_x) const;
  /// dL/dx[element] against a central difference of the loss (see DifferenceCheck).
  DifferenceCheck check(const Tensor& x, std::int64_t element) const;
  /// The same along a random direction of unit length, for the whole tensor.
  DifferenceCheck check_direction(const Tensor& x, std::uint64_t seed = 1) const;
  /// x[element] + change: predicted = dL/dx[element] change, and the loss computed anew. Without a gradient nothing is predicted. Throws
  /// UsageError for a detached look at a tensor, and for a change of an i32 that is not whole.
  WhatIf what_if(const Tensor& x, std::int64_t element, double change) const;
  /// The loss when x, once it is computed, is changed; without x as it was. Throws Error if there is no backward pass.
  double loss(const Tensor& x = {}, const std::function<void(std::vector<double>&)>& change = {}) const;
  /// FLOPs of computing the loss once.
  double work_of_loss() const;

  /// The simpler ops of the entry's op on the same numbers, with their backward where the entry's has one. Inputs are called as the op's
  /// arguments, results as they are here. Throws UsageError for an op that is a primitive.
  Program expand(std::size_t entry) const;

  /// Classic mistakes that this program shows, one sentence each.
  std::vector<std::string> warnings() const;

 private:
  std::string whole_name(const std::string& name) const;
  void add_name(const Tensor& x, const std::string& name);
  void check_element(const Tensor& x, std::int64_t element) const;
  void name_all();
  void pair_gradients();
  void find_loss();
  Tensor root_gradient(const Tensor& x) const;
  DifferenceCheck compare(double analytic, double largest_gradient, const std::function<double(double)>& loss_at,
                          const std::vector<double>& steps) const;

  Trace trace_;
  std::size_t position_ = 0;
  std::vector<std::string> names_;
  std::map<std::string, Tensor> by_name_;
  std::unordered_map<const Value*, std::string> name_of_;
  std::unordered_map<const Value*, Tensor> gradient_;  // of roots
  std::unordered_map<const Value*, Tensor> primal_;    // roots of gradients
  std::vector<std::optional<std::size_t>> partner_;
  std::vector<Seed> seeds_;
  std::vector<std::size_t> needed_;  // forward entries that the loss depends on
};

}  // namespace hedgehog

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>

#include "core/random.h"
#include "core/stepper.h"
#include "tests/counters.h"
#include "tests/op_cases.h"

// The chain rule in numbers, for every op: what `why` lists adds up to the gradient, and each local derivative is that of the op's
// forward.

using namespace hedgehog;
using namespace hedgehog::test;

namespace {

constexpr std::int64_t kOneByOne = 48;  // results of an op with a cotangent of their own; more would take seconds

struct Tally {
  std::int64_t gradients = 0, terms = 0, locals = 0;
  double worst_sum = 0;
};

/// Checks element i of x. The sum may differ from the gradient by rounding: of its terms, and of others that cancel where it is 0 by
/// symmetry, hence the tensor's largest gradient.
void check_element(const Op& op, const Stepper& stepper, const Tensor& x, std::int64_t i, Tally& tally) {
  const Why why = stepper.why(x, i, kOneByOne);
  double size = largest(stepper.trace().value(stepper.gradient_of(x), stepper.gradient_position(x)));
  for (const Contribution& c : why.terms) size = std::max(size, std::abs(c.product()));
  CAPTURE(i);
  CAPTURE(why.gradient);
  const double error = std::abs(why.sum() - why.gradient) / std::max(size, 1e-300);
  CHECK(error <= 1e-10);
  tally.worst_sum = std::max(tally.worst_sum, size > 0 ? error : 0);
  ++tally.gradients;
  tally.terms += std::int64_t(why.terms.size());
  if (op.views) return;
  // the largest two and the smallest local derivative; a difference in f64 has an error of about 1e-10 of the value over the step
  for (const std::size_t k : {std::size_t(0), std::size_t(1), why.terms.empty() ? 0 : why.terms.size() - 1}) {
    if (k >= why.terms.size()) continue;
    const Contribution& c = why.terms[k];
    const double numeric = stepper.local_difference(c, i);
    const Tensor& y = stepper.entries()[c.entry].outputs[c.output];
    const double value = std::abs(stepper.trace().value(y, stepper.size())[std::size_t(c.element)]);
    CAPTURE(k);
    CAPTURE(c.local);
    CAPTURE(numeric);
    CHECK(std::abs(numeric - c.local) <= 1e-6 * std::max({std::abs(numeric), std::abs(c.local), 1e-3}) + 1e-9 * value);
    ++tally.locals;
  }
}

}  // namespace

TEST_CASE("contributions: for every op they sum to the gradient, and each local derivative is that of the forward") {
  const Threads one(1);
  Tally tally;
  for (const Op* op : all_ops()) {
    if (!has_backward(*op)) continue;
    CAPTURE(op->name);
    for (const Sample& sample : op->samples) {
      CAPTURE(sample.label);
      const Tensors arguments = draw_arguments(*op, sample, 1);
      const Stepper stepper(program_with_backward(*op, sample, arguments, 33));
      std::uint64_t draw = 0;
      for (const Tensor& x : parameters_of(arguments)) {
        CAPTURE(x.name());
        check_element(*op, stepper, x, Random{2, 34, 0}.below(draw++, std::uint32_t(x.size())), tally);
      }
    }
  }
  MESSAGE(tally.gradients << " gradients, " << tally.terms << " terms, " << tally.locals << " local derivatives, worst sum " << tally.worst_sum);
  CHECK(tally.gradients > 300);
}

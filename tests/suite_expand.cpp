#include <doctest/doctest.h>

#include <algorithm>

#include "core/stepper.h"
#include "tests/op_cases.h"

// What `expand` opens, for every op that is made of others: the same values and the same gradients from simpler ops.

using namespace hedgehog;
using namespace hedgehog::test;

namespace {

/// f64 rounds at 1.1e-16; sums of some hundred terms in another order, and a condition of some hundred where quotients and exponentials
/// follow one another, leave 1e-11 of the tensor's size (as suite_reference has it).
void check_same(const std::vector<double>& inside, const std::vector<double>& outside) {
  constexpr double kTolerance = 1e-11;
  REQUIRE(inside.size() == outside.size());
  CHECK(rms(difference(inside, outside)) <= kTolerance * rms(outside));
}

/// Expands one entry of the op, and compares all that comes out of it.
void check_expansion(const Stepper& whole, std::size_t at, std::size_t forward, std::optional<std::size_t> backward,
                     std::int64_t& compared) {
  const Entry& e = whole.entries()[forward];
  const Stepper inside(whole.expand(at));
  const Tensors& results = inside.trace().program().outputs;
  CHECK(std::none_of(inside.entries().begin(), inside.entries().end(), [&](const Entry& inner) { return inner.op == e.op; }));
  for (std::size_t j = 0; j < e.outputs.size(); ++j) {
    CAPTURE(e.op->results[j]);
    REQUIRE(results.at(j));
    check_same(inside.trace().value(results[j], inside.size()), whole.trace().value(e.outputs[j], forward + 1));
    ++compared;
  }
  // results are called as they are outside, but for an argument that is returned, and a detached look at something inside
  for (const Tensor& y : whole.used_outputs(forward)) {
    const Tensor& result = results.at(std::size_t(std::find(e.outputs.begin(), e.outputs.end(), y) - e.outputs.begin()));
    if (result.role() == Role::activation && !(result->base && !result.wants_gradient())) CHECK(inside.name(result) == whole.short_name(y));
  }
  for (std::size_t a = 0; a < e.inputs.size(); ++a) {
    if (!e.inputs[a]) continue;
    const std::string& name = e.op->arguments[a].name;
    CAPTURE(name);
    if (e.op->updates >> a & 1u) {
      check_same(inside.trace().value(inside.find(name), inside.size()), whole.trace().value(e.inputs[a], forward + 1));
      ++compared;
    }
    if (!backward || !whole.entries()[*backward].dx[a]) continue;
    const Tensor gradient = inside.find(name + ".grad");
    check_same(inside.trace().value(gradient, inside.size()), whole.trace().value(whole.entries()[*backward].dx[a], whole.size()));
    ++compared;
  }
}

}  // namespace

TEST_CASE("expand: every op that has a reference opens into it, with the same values and gradients") {
  const Threads one(1);
  std::int64_t ops = 0, compared = 0;
  for (const Op* op : all_ops()) {
    if (!op->reference) continue;
    ++ops;
    CAPTURE(op->name);
    for (const Sample& sample : op->samples) {
      CAPTURE(sample.label);
      const Stepper whole(program_with_backward(*op, sample, draw_arguments(*op, sample, 1), 35));
      const auto find = [&](bool backward) {
        return whole.find_after(0, [&](std::size_t i) { return whole.entries()[i].op == op && whole.entries()[i].backward == backward; });
      };
      const auto forward = find(false), backward = find(true);
      REQUIRE(forward);
      const std::optional<std::size_t> after = backward ? std::optional(*backward - 1) : std::nullopt;
      check_expansion(whole, *forward - 1, *forward - 1, after, compared);
      if (after) check_expansion(whole, *after, *forward - 1, after, compared);
    }
  }
  MESSAGE(ops << " ops, " << compared << " values and gradients");
  CHECK(compared > 500);
}

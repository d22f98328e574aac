#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>

#include "tests/op_cases.h"

// Proves the check itself: a backward that is wrong in one way must fail gradcheck. The check runs here with only a few
// elements an argument (the random directions see all of them), so what is caught here is caught all the more by the full
// check.

using namespace hedgehog;
using namespace hedgehog::test;

namespace {

GradcheckOptions few() {
  GradcheckOptions options;
  options.full = 4;
  return options;
}

struct Score {
  int killed = 0, total = 0;
  void add(bool caught) {
    killed += caught;
    ++total;
  }
};

std::size_t bytes_of(const Ref& r) { return std::size_t(r.size() * size_of(r.dtype)); }

/// The numbers of a contiguous f64 gradient.
std::vector<double> values_of(const Ref& r) { return {r.as<double>(), r.as<double>() + r.size()}; }

/// The op with another backward. It must live as long as its entries.
std::unique_ptr<Op> with_backward(const Op& op, Kernel backward) {
  auto changed = std::make_unique<Op>(op);
  changed->backward.cpu = std::move(backward);
  changed->backward.cuda = {};
  return changed;
}

/// Multiplies what backward contributes to dx[which].
Kernel scaled(const Op& op, std::size_t which, double factor) {
  return [&op, which, factor](const Call& c) {
    const Ref& dx = c.dx[which];
    if (!dx) return op.backward.cpu(c);
    const bool adds = c.modes[which] == Mode::accumulate;
    const std::vector<double> before = adds ? values_of(dx) : std::vector<double>(std::size_t(dx.size()), 0.0);
    op.backward.cpu(c);
    for (std::int64_t i = 0; i < dx.size(); ++i) {
      double& x = dx.as<double>()[i];
      x = before[std::size_t(i)] + factor * (x - before[std::size_t(i)]);
    }
  };
}

enum class Group { inputs, outputs, saved };
enum class Damage { zeros, rotated };

struct Reading {
  Group group;
  std::size_t which;
  std::string name;
};

std::vector<Reading> readings_of(const Op& op) {
  std::vector<Reading> out;
  for (std::size_t i = 0; i < op.arguments.size(); ++i)
    if (op.reads.inputs >> i & 1u) out.push_back({Group::inputs, i, op.arguments[i].name});
  for (std::size_t i = 0; i < op.results.size(); ++i)
    if (op.reads.outputs >> i & 1u) out.push_back({Group::outputs, i, op.results[i]});
  for (std::size_t i = 0; i < op.saved_names.size(); ++i)
    if (op.reads.saved >> i & 1u) out.push_back({Group::saved, i, op.saved_names[i]});
  return out;
}

/// Backward that sees one of the tensors it reads as zeros, or with its elements moved on by `shift`. Sets *changed when
/// that made a difference to what it sees.
Kernel misreading(const Op& op, Reading reading, Damage damage, std::int64_t shift, bool* changed) {
  return [&op, reading, damage, shift, changed](const Call& c) {
    std::vector<Ref> refs[3] = {{c.inputs.begin(), c.inputs.end()}, {c.outputs.begin(), c.outputs.end()}, {c.saved.begin(), c.saved.end()}};
    Ref& r = refs[int(reading.group)][reading.which];
    std::vector<std::byte> copy;
    if (r) {
      const std::size_t bytes = bytes_of(r);
      const auto* from = r.as<std::byte>();
      copy.assign(bytes, std::byte(0));
      if (damage == Damage::rotated) {
        const std::size_t by = std::size_t(shift * size_of(r.dtype)) % bytes;
        std::rotate_copy(from, from + by, from + bytes, copy.begin());
      }
      *changed |= std::memcmp(copy.data(), from, bytes) != 0;
      r.data = copy.data();
    }
    op.backward.cpu({c.attributes, refs[0], refs[1], refs[2], c.dy, c.dx, c.modes, c.workspace});
  };
}

/// Backward that takes write for accumulate, and the other way round, for one gradient. What write would have overwritten
/// is NaN, since it may be anything.
Kernel swapped_mode(const Op& op, std::size_t which) {
  return [&op, which](const Call& c) {
    std::vector<Mode> modes(c.modes.begin(), c.modes.end());
    if (const Ref& dx = c.dx[which]) {
      if (modes[which] == Mode::write) std::fill_n(dx.as<double>(), dx.size(), std::numeric_limits<double>::quiet_NaN());
      modes[which] = modes[which] == Mode::write ? Mode::accumulate : Mode::write;
    }
    op.backward.cpu({c.attributes, c.inputs, c.outputs, c.saved, c.dy, c.dx, modes, c.workspace});
  };
}

/// One sample with its arguments drawn, checked again and again with different backwards.
class Case {
 public:
  Case(const Op& op, const Sample& sample) : op_(op), sample_(sample), arguments_(draw_arguments(op, sample, 1)) {
    for (std::size_t i = 0; i < arguments_.size(); ++i)
      if (arguments_[i] && (op.updates >> i & 1u)) changing_.emplace_back(arguments_[i], arguments_[i].to_vector());
  }

  const Tensors& arguments() const { return arguments_; }

  /// gradcheck of any function of the arguments; `only` restricts it to one parameter.
  bool passes(const std::function<Tensors()>& function, std::size_t only = std::size_t(-1)) const {
    const Tensors parameters = only == std::size_t(-1) ? parameters_of(arguments_) : Tensors{arguments_[only]};
    for (const Tensor& p : parameters_of(arguments_)) p.grad().fill(0);
    const GradcheckReport report = gradcheck(
        [&](const Tensors&) {
          for (const auto& [x, values] : changing_) x.copy_from(values);
          return function();
        },
        parameters, few());
    clear_tape();
    return report.passed();
  }

  bool passes(const Op& op, std::size_t only = std::size_t(-1)) const {
    return passes([&] { return apply(op, sample_.attributes, arguments_); }, only);
  }

  /// The op on a copy of argument `which`, which is also a result itself: read before the op or after it, so that the
  /// op's contribution to the gradient of that copy is the last (added) or the first (written).
  bool passes_with_second_use(const Op& op, std::size_t which, bool written) const {
    return passes(
        [&] {
          Tensors inputs = arguments_;
          inputs[which] = apply(detail::kCopy, {}, {arguments_[which]})[0];
          if (written) {
            const Tensor again = apply(detail::kCopy, {}, {inputs[which]})[0];
            Tensors results = apply(op, sample_.attributes, inputs);
            results.push_back(again);
            return results;
          }
          Tensors results = apply(op, sample_.attributes, inputs);
          results.push_back(apply(detail::kCopy, {}, {inputs[which]})[0]);
          return results;
        },
        which);
  }

 private:
  const Op& op_;
  const Sample& sample_;
  Tensors arguments_;
  std::vector<std::pair<Tensor, std::vector<double>>> changing_;
};

void mutate_gradients(const Op& op, const Case& test, Score& score) {
  for (std::size_t i = 0; i < test.arguments().size(); ++i) {
    if (!test.arguments()[i].wants_gradient()) continue;
    CAPTURE(op.arguments[i].name);
    for (double factor : {-1.0, 2.0, 0.0}) {
      CAPTURE(factor);
      const auto wrong = with_backward(op, scaled(op, i, factor));
      const bool caught = !test.passes(*wrong, i);
      CHECK(caught);
      score.add(caught);
    }
  }
}

void swap_modes(const Op& op, const Case& test, Score& score) {
  for (std::size_t i = 0; i < test.arguments().size(); ++i) {
    if (!test.arguments()[i].wants_gradient()) continue;
    CAPTURE(op.arguments[i].name);
    const auto wrong = with_backward(op, swapped_mode(op, i));
    for (bool written : {true, false}) {
      CAPTURE(written);
      // the right backward must pass in this arrangement, or catching the wrong one would show nothing
      CHECK(test.passes_with_second_use(op, i, written));
      const bool caught = !test.passes_with_second_use(*wrong, i, written);
      CHECK(caught);
      score.add(caught);
    }
  }
}

/// Moves elements on by one; documents by a whole row, so that starts still lie before their tokens.
std::int64_t shift_for(const Op& op, const Sample& sample, const Reading& reading) {
  if (reading.group != Group::inputs || reading.which >= sample.inputs.size()) return 1;
  const SampleInput& in = sample.inputs[reading.which];
  (void)op;
  return in.fill == SampleInput::Fill::documents ? in.shape.last() : 1;
}

void corrupt_readings(const Op& op, Score& score) {
  for (const Reading& reading : readings_of(op)) {
    CAPTURE(reading.name);
    bool any_caught = false, any_changed = false;
    for (Damage damage : {Damage::zeros, Damage::rotated}) {
      CAPTURE(int(damage));
      bool caught = false, changed = false;
      for (const Sample& sample : op.samples) {
        const Case test(op, sample);
        if (parameters_of(test.arguments()).empty()) continue;
        const auto wrong = with_backward(op, misreading(op, reading, damage, shift_for(op, sample, reading), &changed));
        caught |= !test.passes(*wrong);
        if (caught) break;
      }
      any_caught |= caught;
      any_changed |= changed;
      // a tensor that is zero anyway cannot be damaged by zeros; nothing was mutated then
      if (!changed) continue;
      CHECK_MESSAGE(caught, "damaging a tensor that backward reads went unseen");
      score.add(caught);
    }
    CHECK_MESSAGE(any_changed, "no sample gives backward this tensor: a defect of the record's reads or samples");
    CHECK_MESSAGE(any_caught, "backward does not depend on this tensor: a defect of the record's reads");
  }
}

void inject_faults(const Op& op, Score& score) {
  CHECK_MESSAGE(!op.faults.empty(), "the record lists no fault: a term that people forget");
  for (const Fault& fault : op.faults) {
    CAPTURE(fault.name);
    CHECK(bool(fault.backward) != bool(fault.composed));
    int tried = 0;
    for (const Sample& sample : op.samples) {
      CAPTURE(sample.label);
      if (!fault.only_sample.empty() && fault.only_sample != sample.label) continue;
      const Case test(op, sample);
      if (parameters_of(test.arguments()).empty()) continue;
      ++tried;
      bool caught = false;
      if (fault.composed) {
        caught = !test.passes([&] {
          Tensors arguments = test.arguments(), seen;
          arguments.resize(op.arguments.size());
          // results of their own, so that something depends on every parameter even if the fault cuts all paths
          for (Tensor& x : arguments)
            if (x.wants_gradient()) seen.push_back(x = apply(detail::kCopy, {}, {x})[0]);
          Tensors results = fault.composed(complete(op, sample.attributes), arguments);
          for (const Tensor& x : seen) results.push_back(apply(detail::kCopy, {}, {x})[0]);
          return results;
        });
      } else {
        const auto wrong = with_backward(op, fault.backward);
        caught = !test.passes(*wrong);
      }
      CHECK(caught);
      score.add(caught);
    }
    CHECK_MESSAGE(tried > 0, "no sample shows this fault; only_sample names none");
  }
}

/// Runs `mutate` on every differentiable op, and prints how many mutants were killed.
template <class F>
void report(const char* what, F&& mutate) {
  const Threads one(1);
  Score score;
  for (const Op* op : all_ops()) {
    if (!has_backward(*op)) continue;
    CAPTURE(op->name);
    mutate(*op, score);
  }
  CHECK(score.killed == score.total);
  MESSAGE("mutants killed, " << std::string(what) << ": " << score.killed << " of " << score.total);
}

/// Calls f for every sample with a parameter, of an op that has a kernel to change.
template <class F>
void for_each_case(const Op& op, F&& f) {
  if (!op.backward.cpu) return;
  for (const Sample& sample : op.samples) {
    CAPTURE(sample.label);
    const Case test(op, sample);
    if (!parameters_of(test.arguments()).empty()) f(test);
  }
}

}  // namespace

TEST_CASE("mutation: a gradient that is negated, doubled or dropped is caught on every sample of every op") {
  report("wrong sign, factor or nothing", [](const Op& op, Score& score) {
    for_each_case(op, [&](const Case& test) { mutate_gradients(op, test, score); });
  });
}

TEST_CASE("mutation: each tensor that backward reads matters") {
  report("damaged reads", [](const Op& op, Score& score) { corrupt_readings(op, score); });
}

TEST_CASE("mutation: write taken for accumulate, or accumulate for write, is caught") {
  report("swapped modes", [](const Op& op, Score& score) {
    for_each_case(op, [&](const Case& test) { swap_modes(op, test, score); });
  });
}

TEST_CASE("mutation: the faults that each op's record lists are caught") {
  report("faults", [](const Op& op, Score& score) { inject_faults(op, score); });
}

TEST_CASE("mutation: the unchanged backward passes the same short check") {
  const Threads one(1);
  for (const Op* op : all_ops()) {
    CAPTURE(op->name);
    for_each_case(*op, [&](const Case& test) { CHECK(test.passes(*op)); });
  }
}

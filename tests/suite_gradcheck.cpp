#include <doctest/doctest.h>

#include <limits>

#include "tests/counters.h"
#include "tests/op_cases.h"

using namespace hedgehog;
using namespace hedgehog::test;

namespace {

/// Checks every sample of every op with the seeds [first, first + draws), at up to `elements` random elements of an argument
/// and in four random directions, which see all of them. `hedgehog gradcheck` compares more.
void check_all(std::uint64_t first, int draws, std::int64_t elements) {
  const Threads one(1);
  for (const Op* op : all_ops()) {
    CAPTURE(op->name);
    if (!has_backward(*op)) continue;
    CHECK_MESSAGE(!op->samples.empty(), "an op with a backward needs samples");
    for (const Sample& sample : op->samples) {
      CAPTURE(sample.label);
      for (int d = 0; d < draws; ++d) {
        CAPTURE(d);
        GradcheckOptions options;
        options.seed = first + std::uint64_t(d);
        options.full = elements;
        const GradcheckReport report = gradcheck(*op, sample, options);
        clear_tape();
        CHECK(!report.rows.empty());
        for (const GradcheckRow& row : report.rows) {
          CAPTURE(row.argument);
          CAPTURE(row.largest);
          CAPTURE(row.error);
          CHECK(row.passed);
        }
        gradients_checked += std::int64_t(report.rows.size());
      }
    }
    if (first == 1) ++ops_checked;
  }
}

}  // namespace

TEST_CASE("gradcheck: every differentiable argument of every op, one draw a sample") { check_all(1, 1, 10); }

TEST_SUITE("slow") {
  TEST_CASE("gradcheck: every differentiable argument of every op, ten draws a sample") { check_all(2, 10, 48); }
}

TEST_CASE("gradcheck: every argument that the record calls differentiable is checked by some sample") {
  for (const Op* op : all_ops()) {
    if (!has_backward(*op)) continue;
    for (std::size_t a = 0; a < op->arguments.size(); ++a) {
      if (!op->arguments[a].differentiable || (op->updates >> a & 1u)) continue;
      bool checked = false;
      for (const Sample& s : op->samples) {
        using Fill = SampleInput::Fill;
        if (a >= s.inputs.size()) continue;
        const SampleInput& in = s.inputs[a];
        const bool floating = in.fill == Fill::normal || in.fill == Fill::positive || in.fill == Fill::away_from_zero;
        checked |= floating && in.differentiable;
      }
      CAPTURE(op->name);
      CAPTURE(op->arguments[a].name);
      CHECK(checked);
    }
  }
}

TEST_CASE("gradcheck: a wrong gradient, a NaN and a gradient too small to judge all fail") {
  // y = x · scale, with a gradient that is off by `error`
  auto check = [](double scale, double error) {
    Op op;
    op.name = "scaled";
    op.arguments = {{"x"}};
    op.results = {"y"};
    op.infer = [](const Attributes&, std::span<const Meta> in) { return Layout{{in[0]}, {}}; };
    op.forward.cpu = [=](const Call& c) {
      for (std::int64_t i = 0; i < c.inputs[0].size(); ++i) c.outputs[0].as<double>()[i] = scale * c.inputs[0].as<double>()[i];
    };
    op.backward.cpu = [=](const Call& c) {
      for (std::int64_t i = 0; i < c.dx[0].size(); ++i) c.dx[0].as<double>()[i] += scale * c.dy[0].as<double>()[i] * (1 + error);
    };
    const GradcheckReport report = gradcheck(op, {"", {}, {normal({3, 4})}});
    clear_tape();
    return report.passed();
  };
  CHECK(check(1, 0));
  CHECK(!check(1, 1e-5));
  CHECK(!check(1, std::numeric_limits<double>::quiet_NaN()));
  CHECK(!check(1e-5, 0));
}

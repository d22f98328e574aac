#include <doctest/doctest.h>

#include <cstdlib>

#include "nn/recompute.h"
#include "tests/batch_cases.h"
#include "tests/op_cases.h"
#include "tests/cli_cases.h"
#include "tests/device_cases.h"
#include "train/setup.h"

namespace hedgehog {

using namespace test;

namespace {

constexpr Bytes kGiB = Bytes(1) << 30;

GptOptions small(double dropout) {
  GptOptions o = test::small_gpt("hedgehog");
  o.layers = 4;
  o.bias = true;
  o.dropout = dropout;
  o.dtype = current_device().host() ? Dtype::f32 : Dtype::bf16;
  return o;
}

Batch random_batch(const GptOptions& o, std::int64_t rows, std::uint32_t id) {
  Batch b;
  b.rows = rows;
  b.time = o.context;
  const Random random{5, id, 0};
  for (std::int64_t i = 0; i < rows * o.context; ++i) {
    b.tokens.push_back(std::int32_t(random.below(std::uint64_t(2 * i), std::uint32_t(o.vocabulary))));
    b.targets.push_back(std::int32_t(random.below(std::uint64_t(2 * i + 1), std::uint32_t(o.vocabulary))));
  }
  b.valid = rows * o.context;
  return b;
}

/// Losses, gradient norms and weights after some steps.
std::vector<double> trained(const GptOptions& o, const StepShape& shape) {
  Gpt model(o);
  TrainingStep step(model, shape, {}, 3);
  std::vector<double> out;
  for (std::uint32_t k = 0; k < 4; ++k) {
    std::vector<Batch> batches;
    for (std::uint32_t m = 0; m < std::uint32_t(shape.micro_batches); ++m) batches.push_back(random_batch(o, shape.rows, 10 * k + m));
    const StepResult r = step.run(batches, 1e-2);
    REQUIRE(!r.failed);
    out.push_back(r.loss);
    out.insert(out.end(), r.parameter_norms.begin(), r.parameter_norms.end());
  }
  const std::vector<double> weights = model.parameters().flatten().weights.to_vector();
  out.insert(out.end(), weights.begin(), weights.end());
  return out;
}

void same_training() {
  for (const char* attention : {"hedgehog", "softmax"})
    for (double dropout : {0.0, 0.3})
      for (std::int64_t micro_batches : {1, 3}) {
        CAPTURE(attention);
        CAPTURE(dropout);
        CAPTURE(micro_batches);
        GptOptions o = small(dropout);
        o.attention = attention;
        StepShape shape{3, o.context, micro_batches};
        const Cost whole = TrainingStep::predict(o, shape, {});
        const std::vector<double> expected = trained(o, shape);
        for (const Bytes arena : {Bytes(0), whole.arena * 3 / 4}) {
          shape.arena = arena;
          const Cost lean = TrainingStep::predict(o, shape, {});
          CHECK(lean.arena < whole.arena);
          CHECK(lean.repeated > 0);
          CHECK(lean.flops == doctest::Approx(whole.flops + lean.repeated).epsilon(1e-12));
          const std::vector<double> again = trained(o, shape);
          const auto [at, wanted] = std::mismatch(again.begin(), again.end(), expected.begin(), expected.end());
          CAPTURE(at - again.begin());  // losses and gradient norms of each step, then weights
          if (at != again.end()) FAIL_CHECK(fmt::format("{} instead of {}", *at, *wanted));
          CHECK(again.size() == expected.size());
        }
      }
}

/// GPT-2 124M with rotary positions, in bf16, on so many tokens.
Cost long_step(std::int64_t rows, std::int64_t context, Bytes arena) {
  GptOptions o;
  o.layers = o.heads = 12;
  o.width = 768;
  o.context = context;
  o.vocabulary = 50257;
  o.vocabulary_multiple = 128;
  o.bias = true;
  o.dtype = Dtype::bf16;
  StepShape shape{rows, context};
  shape.arena = arena;
  return TrainingStep::predict(o, shape, {});
}

}  // namespace

HH_ON_BOTH("recompute: losses, gradients and weights are those of training without it, bit for bit", same_training)

TEST_CASE("recompute: a step on one sequence of 1,048,576 tokens fits 72 GiB with an eighth more work") {
  const std::int64_t T = 1 << 20;
  const Cost whole = long_step(1, T, StepShape::kUnlimited), lean = long_step(1, T, 69 * kGiB), least = long_step(1, T, 0);
  CHECK(whole.peak > 300 * kGiB);
  CHECK(lean.peak <= 72 * kGiB);
  // forward is a third of the work: repeating all of it would add 0.33
  CHECK(lean.repeated < 0.14 * whole.flops);
  CHECK(least.peak < 52 * kGiB);
  CHECK(least.repeated < 0.17 * whole.flops);
  // 256 rows of 4,096 tokens are the same work in the same memory
  const Cost rows = long_step(256, 4096, 69 * kGiB);
  CHECK(double(rows.peak) == doctest::Approx(double(lean.peak)).epsilon(0.02));
  CHECK(rows.flops == doctest::Approx(lean.flops).epsilon(0.02));
}

TEST_CASE("recompute: less memory never takes less work, and the budget is kept") {
  const Bytes most = long_step(8, 1024, StepShape::kUnlimited).arena, least = long_step(8, 1024, 0).arena;
  double repeated = 0;
  for (int k = 0; k <= 8; ++k) {
    const Bytes budget = most - (most - least) * k / 8;
    CAPTURE(budget);
    const Cost c = long_step(8, 1024, budget);
    CHECK(c.arena <= budget);
    CHECK(c.repeated >= 0.98 * repeated);  // a greedy choice may be a little off
    repeated = c.repeated;
  }
}

TEST_CASE("recompute: the memory given decides, and is refused only where no recomputation fits") {
  const GptOptions o = small(0);
  StepShape shape{64, o.context};
  const Cost whole = fit_step(o, shape, {}, {"none"});
  CHECK(shape.arena == StepShape::kUnlimited);
  // what is free is enough
  CHECK(check_memory(o, shape, {}).repeated == 0);
  const Cost least = check_memory(o, shape, {}, {"all"});
  CHECK(least.peak < whole.peak);
  const Bytes between = (whole.peak + least.peak) / 2;
  const Cost fitted = check_memory(o, shape, {}, {"auto", between});
  CHECK(fitted.peak <= between);
  CHECK(fitted.repeated > 0);
  CHECK(contains(memory_text(fitted), "results made again in backward add "));
  CHECK(!contains(memory_text(whole), "again"));
  const std::string none = message_of<UsageError>([&] { check_memory(o, shape, {}, {"none", between}); });
  CHECK(contains(none, "--memory allows only "));
  CHECK(contains(none, "--recompute=auto takes less memory"));
  const std::string tight = message_of<UsageError>([&] { check_memory(o, shape, {}, {"auto", (least.peak + least.persistent) / 2}); });
  CHECK(contains(tight, "the largest batch that fits is --batch="));
  // where the batch cannot change: what is left of the memory, and the way out of this limit
  const std::string fixed = message_of<UsageError>([&] { check_memory(o, shape, {}, {"none", between}, least.persistent); });
  CHECK(contains(fixed, "--memory allows only " + bytes_text(double(between - least.persistent)) + " more"));
  CHECK(contains(fixed, "raise --memory, or give --recompute=auto"));
  // memory that is held already counts as part of what is allowed
  CHECK(check_memory(o, shape, {}, {"auto", between}, least.persistent).peak <= between);
}

TEST_CASE("cli: recompute and memory are said before training and by info") {
  const TemporaryDirectory d;
  const ProgramResult r = run_program("train --recompute=all --steps=2 --report=false --out=run", d.path().string());
  CAPTURE(r.output);
  CHECK(r.code == 0);
  CHECK(contains(r.output, "results made again in backward add "));
  const ProgramResult info = run_program("info --preset=gpt2 --batch=4 --memory=4");
  CHECK(info.code == 0);
  CHECK(contains(info.output, "step of 4 x 1024"));
  CHECK(contains(info.output, "made again"));
  CHECK(contains(info.output, "; fits"));
  CHECK(contains(run_program("info --preset=gpt2 --batch=4 --memory=1").output, "does not fit, --memory allows only 1 GiB"));
  check_refused(run_program("train --recompute=some"), 2, {"recompute", "some"});
  check_refused(run_program("train --memory=0.001"), 2, {"--memory allows only 1.02 MiB", "not even --batch=1 fits"});
}

}  // namespace hedgehog

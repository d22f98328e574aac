#include <doctest/doctest.h>

#include <cmath>

#include "core/device.h"
#include "core/executor.h"
#include "nn/gpt.h"
#include "ops/optimizer.h"
#include "tests/device_cases.h"
#include "tests/op_cases.h"
#include "tests/temporary_directory.h"
#include "train/checkpoint.h"
#include "train/training_step.h"

using namespace hedgehog;
using namespace hedgehog::test;

namespace {

using Bits = std::vector<std::vector<std::byte>>;

constexpr std::int64_t kRows = 3, kTime = 37, kVocabulary = 61;

GptOptions small(const char* attention, Dtype dtype) {
  GptOptions o;
  o.layers = 2;
  o.heads = 2;
  o.width = 64;
  o.context = kTime;
  o.vocabulary = kVocabulary;
  o.attention = attention;
  o.short_convolution = 4;
  o.dropout = 0.1;
  o.dtype = dtype;
  return o;
}

Batch batch_of(int step) {
  Batch b;
  b.rows = kRows;
  b.time = kTime;
  for (std::int64_t r = 0; r < kRows; ++r)
    for (std::int64_t t = 0; t < kTime; ++t) {
      b.tokens.push_back(std::int32_t((r + t * (step + 2)) % kVocabulary));
      b.targets.push_back(std::int32_t((r + (t + 1) * (step + 2)) % kVocabulary));
    }
  b.targets[std::size_t(step)] = kIgnoredTarget;
  b.document_start.assign(b.tokens.size(), 0);
  b.valid = kRows * kTime - 1;
  return b;
}

/// A model and the lists of its training step, with the inputs that a step reads.
struct Step {
  Gpt model;
  Tensor tokens = input({kRows, kTime}, "tokens", Dtype::i32), targets = input({kRows, kTime}, "targets", Dtype::i32);
  Tensor slots = step_state();

  Step(const char* attention, Dtype dtype) : model(small(attention, dtype)) {
    model.parameters().flatten();
    set_slot(slots, kSeed, 5);
    set_slot(slots, kLearningRate, 1e-2);
  }
  const FlatParameters& flat() { return model.parameters().flatten(); }
  Tensors forward_and_backward() {
    const Tensor loss = model.loss(tokens, targets, {}, {{}, slots, {}}).loss;
    backward(loss);
    return {loss};
  }
  Program gradients() {
    return record([&] { return forward_and_backward(); });
  }
  Program update() {
    return record([&] {
      const Op& adamw = find_op("adamw");
      const Tensor norms = gradient_norm(flat().gradients, flat().spans, {}, slots);
      Tensors arguments{flat().weights, flat().gradients, flat().first_moment, flat().second_moment, flat().spans, norms, slots};
      if (adamw.arguments.size() > arguments.size()) arguments.push_back(flat().copies);
      apply(adamw, {{"weight_decay", 0.1}, {"clip", 1.0}}, arguments);
      return Tensors{norms};
    });
  }
  void read(int step) {
    const Batch b = batch_of(step);
    copy_ids(b.tokens, tokens);
    copy_ids(b.targets, targets);
  }
  Bits weights() { return bits_of(Tensors{flat().weights, flat().copies, flat().first_moment, flat().second_moment}); }
};

/// Losses, norms and weights of five steps; of three on the CPU, where a replay is nothing new.
Bits trained(const char* attention, Dtype dtype, const ExecutorOptions& options) {
  Step s(attention, dtype);
  Executor run(s.gradients() + s.update(), options);
  Bits out;
  const int steps = current_device().host() ? 3 : 5;
  for (int i = 0; i < steps; ++i) {
    s.read(i);
    run.run();
    out.push_back(bits_of(run.output(0)));
    out.push_back(bits_of(run.output(1)));
    CHECK(std::isfinite(run.output(0).item()));
  }
  CHECK(slot_of(s.slots, kNonFinite) == 0);
  for (std::vector<std::byte>& w : s.weights()) out.push_back(std::move(w));
  return out;
}

Bits gradients_eager(const char* attention, Dtype dtype) {
  Step s(attention, dtype);
  s.read(0);
  Bits out = bits_of(s.forward_and_backward());
  clear_tape();
  out.push_back(bits_of(s.flat().gradients));
  return out;
}

Bits gradients_of(const char* attention, Dtype dtype, const ExecutorOptions& options, int runs) {
  Step s(attention, dtype);
  s.read(0);
  Executor run(s.gradients(), options);
  for (int i = 0; i < runs; ++i) {
    s.flat().gradients.fill(0);
    run.run();
  }
  return {bits_of(run.output(0)), bits_of(s.flat().gradients)};
}

template <class F>
void for_each_model(F&& f) {
  for (const char* attention : {"softmax", "hedgehog"})
    for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
      if (dtype == Dtype::bf16 && current_device().host()) continue;
      CAPTURE(attention);
      CAPTURE(std::string(name_of(dtype)));
      f(attention, dtype);
    }
}

void ways_of_running_agree() {
  for_each_model([](const char* attention, Dtype dtype) {
    const Bits planned = trained(attention, dtype, {});
    CHECK(trained(attention, dtype, {.graph = true}) == planned);
    CHECK(trained(attention, dtype, {.reuse = false}) == planned);
    CHECK(trained(attention, dtype, {.poison = true}) == planned);
    const Bits eager = gradients_eager(attention, dtype);
    CHECK(gradients_of(attention, dtype, {}, 1) == eager);
    CHECK(gradients_of(attention, dtype, {.graph = true}, 3) == eager);
  });
}

/// What a training step with two unfinished steps in flight gives, against one step at a time.
void steps_in_flight() {
  for_each_model([](const char* attention, Dtype dtype) {
    Gpt one(small(attention, dtype)), two(small(attention, dtype));
    TrainingStep each(one, {kRows, kTime, 1, false}, {}, 3), ahead(two, {kRows, kTime, 1, false}, {}, 3);
    std::vector<double> expected, got;
    for (int i = 0; i < 6; ++i) expected.push_back(each.run(std::vector<Batch>{batch_of(i)}, 1e-2 / (i + 1)).loss);
    for (int i = 0; i < 6; ++i) {
      ahead.submit(std::vector<Batch>{batch_of(i)}, 1e-2 / (i + 1));
      if (i > 0) got.push_back(ahead.finish().loss);
    }
    got.push_back(ahead.finish().loss);
    CHECK(got == expected);
    CHECK(expected.back() != expected.front());
    CHECK(bits_of(one.parameters().flatten().weights) == bits_of(two.parameters().flatten().weights));
  });
}

void resumes_to_the_bit() {
  const TemporaryDirectory directory;
  for_each_model([&](const char* attention, Dtype dtype) {
    Gpt model(small(attention, dtype));
    const StepShape shape{kRows, kTime, 1, false};
    TrainingStep step(model, shape, {}, 9);
    for (int i = 0; i < 3; ++i) step.run(std::vector<Batch>{batch_of(i)}, 1e-2);
    RunState run;
    run.step = 3;
    run.step_slots = step.step_state().to_vector();
    std::vector<std::string> words{"<end>"};
    while (std::int64_t(words.size()) < kVocabulary) words.push_back("w" + std::to_string(words.size()));
    save_checkpoint(directory / "last", model, *story_tokenizer(words), run);
    Checkpoint loaded = load_checkpoint(directory / "last", true);
    CHECK(bits_of(loaded.model->parameters().flatten().weights) == bits_of(model.parameters().flatten().weights));
    CHECK(bits_of(loaded.model->parameters().all()) == bits_of(model.parameters().all()));
    TrainingStep resumed(*loaded.model, shape, {}, 9);
    resumed.step_state().copy_from(loaded.run.step_slots);
    for (int i = 3; i < 6; ++i) {
      const StepResult a = step.run(std::vector<Batch>{batch_of(i)}, 1e-2), b = resumed.run(std::vector<Batch>{batch_of(i)}, 1e-2);
      CHECK(a.loss == b.loss);
      CHECK(a.gradient_norm == b.gradient_norm);
    }
    for (auto tensor : {&FlatParameters::weights, &FlatParameters::first_moment, &FlatParameters::second_moment})
      CHECK(bits_of(loaded.model->parameters().flatten().*tensor) == bits_of(model.parameters().flatten().*tensor));
    CHECK(bits_of(loaded.model->parameters().all()) == bits_of(model.parameters().all()));
  });
}

/// bf16 copies are the masters, rounded, after every step.
void copies_follow_masters() {
  Gpt model(small("hedgehog", Dtype::bf16));
  TrainingStep step(model, {kRows, kTime, 1, false}, {}, 1);
  for (int i = 0; i < 3; ++i) {
    step.run(std::vector<Batch>{batch_of(i)}, 1e-2);
    const FlatParameters& flat = model.parameters().flatten();
    std::vector<double> expected;
    for (double x : flat.weights.to_vector()) expected.push_back(double(float(BFloat16(float(x)))));
    CHECK(flat.copies.to_vector() == expected);
  }
}

/// The same start, batches and dropout on the CPU and on the device: losses that differ by roundings only.
void follows_the_cpu() {
  auto losses = [](Dtype dtype) {
    Gpt model(small("hedgehog", dtype));
    TrainingStep step(model, {kRows, kTime, 1, false}, {}, 1);
    std::vector<double> out;
    for (int i = 0; i < 4; ++i) out.push_back(step.run(std::vector<Batch>{batch_of(i)}, 1e-3).loss);
    return out;
  };
  std::vector<double> cpu;
  {
    const OnDevice guard(cpu_device());
    cpu = losses(Dtype::f32);
  }
  const std::vector<double> f32 = losses(Dtype::f32), bf16 = losses(Dtype::bf16);
  for (std::size_t i = 0; i < cpu.size(); ++i) {
    CAPTURE(i);
    // the first loss is a mean of a hundred logarithms, each some hundred roundings of 6e-8 off at most; a step of AdamW turns
    // roundings of small gradients into up to the learning rate in single weights
    CHECK(std::abs(f32[i] - cpu[i]) <= (i == 0 ? 1e-5 : 1e-3) * cpu[i]);
    // activations rounded to 2^-9 some dozen times on their way
    CHECK(std::abs(bf16[i] - cpu[i]) <= 0.02 * cpu[i]);
  }
}

}  // namespace

TEST_CASE("device training: planned runs, a replayed one and an eager one have the same bits on the CPU") { ways_of_running_agree(); }
TEST_CASE("device training: a step submitted before the last one is finished changes nothing on the CPU") { steps_in_flight(); }

TEST_SUITE("device") {
  TEST_CASE("device training: planned runs, a replayed graph and an eager run have the same bits on the GPU") {
    on_cuda(ways_of_running_agree);
  }
  TEST_CASE("device training: a step submitted before the last one is finished changes nothing on the GPU") { on_cuda(steps_in_flight); }
  TEST_CASE("device training: resume is bit for bit on the GPU") { on_cuda(resumes_to_the_bit); }
  TEST_CASE("device training: bf16 copies follow their masters") { on_cuda(copies_follow_masters); }
  TEST_CASE("device training: the first steps are those of the CPU up to roundings") { on_cuda(follows_the_cpu); }
}

#include <doctest/doctest.h>

#include <cmath>

#include "core/device.h"
#include "core/executor.h"
#include "nn/gpt.h"
#include "ops/optimizer.h"
#include "tests/batch_cases.h"
#include "tests/device_cases.h"
#include "tests/op_cases.h"
#include "tests/temporary_directory.h"
#include "train/checkpoint.h"
#include "train/evaluation.h"
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
  Batch b = counting_batch(kRows, kTime, kVocabulary, step + 2);
  ignore_target(b, step);
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
      const Tensor norms = gradient_norm(flat().gradients, flat().spans, {}, slots);
      adamw(flat().weights, flat().gradients, flat().first_moment, flat().second_moment, flat().spans, norms, slots,
            {.weight_decay = 0.1, .clip = 1}, flat().copies);
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
      CAPTURE(std::string(attention));
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

/// Relative error of hidden states. On the way through the model a number is rounded at some 10 places a layer and 2 outside;
/// in f32 so is every term of the sums between them, of up to 4 C terms (those of bf16 are f32 sums). Signs are as they fall, so
/// that squares add up.
double relative_error(Dtype dtype) {
  const GptOptions o = small("hedgehog", dtype);
  const double places = double(10 * o.layers + 2);
  return dtype == Dtype::bf16 ? std::sqrt(places) * 0x1p-9 : std::sqrt(places * 4 * double(o.width)) * 0x1p-24;
}

/// How far a model's mean loss may lie from the one in f64: logits are below 1 here, and a loss moves by at most twice what its
/// logits do.
double loss_tolerance(Dtype dtype) { return 2 * relative_error(dtype); }

/// What a step of AdamW adds to that. Its gradients, of norm |g|, are off by the same share e as what they are made from. Weights
/// move by the learning rate r at most, so that the P of them together turn by r sqrt(P) e and the loss by |g| times that; and of
/// the share e whose gradient is smaller than its error each may go the other way, 2 r apart, with signs as they fall: 2 r sqrt(e P),
/// where the next batch's gradient is |g| / sqrt(P) each.
double step_tolerance(Dtype dtype, double rate, double norm, double weights) {
  const double e = relative_error(dtype);
  return rate * norm * (std::sqrt(weights) * e + 2 * std::sqrt(e));
}

/// The same start, batches and dropout in f64 on the CPU, and here in what it computes in: losses that differ by roundings only.
void follows_f64() {
  const double rate = 1e-3;
  auto run = [&](const char* attention, Dtype dtype) {
    Gpt model(small(attention, dtype));
    TrainingStep step(model, {kRows, kTime, 1, false}, {}, 1);
    std::vector<StepResult> out;
    for (int i = 0; i < 4; ++i) out.push_back(step.run(std::vector<Batch>{batch_of(i)}, rate));
    return out;
  };
  for_each_model([&](const char* attention, Dtype dtype) {
    const std::vector<StepResult> here = run(attention, dtype);
    const OnDevice guard(cpu_device());
    const std::vector<StepResult> exact = run(attention, Dtype::f64);
    double tolerance = loss_tolerance(dtype);
    for (std::size_t i = 0; i < exact.size(); ++i) {
      CAPTURE(i);
      CAPTURE(here[i].loss);
      CAPTURE(exact[i].loss);
      CHECK(std::abs(here[i].loss - exact[i].loss) <= tolerance);
      tolerance += step_tolerance(dtype, rate, exact[i].gradient_norm, double(parameter_count(small(attention, dtype))));
    }
  });
}

/// Losses and weights of four steps of micro-batches of two rows, in which documents end if so asked.
std::vector<double> trained_in_parts(const char* attention, Dtype dtype, std::int64_t parts, bool documents) {
  Gpt model(small(attention, dtype));
  TrainingStep step(model, {2, kTime, parts, documents}, {}, 3);
  std::vector<double> out;
  for (int i = 0; i < 4; ++i) {
    Batch whole = counting_batch(2 * parts, kTime, kVocabulary, i + 2);
    ignore_target(whole, i);
    cut_documents(whole, 7 + i);
    const StepResult r = step.run(cut(whole, parts), 1e-2);
    CHECK(!r.failed);
    out.push_back(r.loss);
    out.push_back(r.gradient_norm);
  }
  for (double w : model.parameters().flatten().weights.to_vector()) out.push_back(w);
  return out;
}

void parts_and_documents_repeat() {
  for_each_model([](const char* attention, Dtype dtype) {
    for (const std::int64_t parts : {1, 2, 3}) {
      CAPTURE(parts);
      const std::vector<double> packed = trained_in_parts(attention, dtype, parts, true);
      const std::vector<double> open = trained_in_parts(attention, dtype, parts, false);
      CHECK(trained_in_parts(attention, dtype, parts, true) == packed);
      CHECK(trained_in_parts(attention, dtype, parts, false) == open);
      CHECK(packed[0] != open[0]);
    }
  });
}

/// A step on six rows in some micro-batches. After the first step the first moments are the clipped gradients times 1 - beta1.
struct Accumulated {
  StepResult result;
  std::vector<double> moments;
};
Accumulated accumulated(const char* attention, Dtype dtype, std::int64_t parts) {
  Gpt model(small(attention, dtype));
  TrainingStep step(model, {6 / parts, kTime, parts, true}, {}, 3);
  Batch whole = counting_batch(6, kTime, kVocabulary, 2);
  // unequal parts: the mean is over the targets of the whole step
  for (std::int64_t i = 0; i < 20; ++i) ignore_target(whole, 3 * i);
  cut_documents(whole, 13);
  StepResult result = step.run(cut(whole, parts), 1e-3);
  return {std::move(result), model.parameters().flatten().first_moment.to_vector()};
}

void parts_make_the_step_of_the_whole() {
  for_each_model([](const char* attention, Dtype dtype) {
    const Accumulated exact = accumulated(attention, Dtype::f64, 1), one = accumulated(attention, dtype, 1);
    const double unit = dtype == Dtype::bf16 ? 0x1p-9 : 0x1p-24;
    for (const std::int64_t parts : {2, 3}) {
      CAPTURE(parts);
      const Accumulated several = accumulated(attention, dtype, parts);
      CHECK(std::abs(several.result.loss - exact.result.loss) <= loss_tolerance(dtype));
      if (dtype == Dtype::f32) {
        // sums in another order: a few roundings of f32
        CHECK(several.result.loss == doctest::Approx(one.result.loss).epsilon(1e-6));
        CHECK(several.result.gradient_norm == doctest::Approx(one.result.gradient_norm).epsilon(1e-5));
      }
      // the same numbers are rounded as in one batch, so the error is of the same size: at most twice that, plus one rounding
      CHECK(rms(difference(several.moments, exact.moments)) <=
            2 * rms(difference(one.moments, exact.moments)) + unit * rms(exact.moments));
    }
  });
}

/// Losses of rows with and without documents, without gradients, against those in f64 on the CPU.
void evaluator_follows_f64() {
  auto mean_loss = [](const char* attention, Dtype dtype, bool documents, int batch) {
    const Gpt model(small(attention, dtype));
    Evaluator evaluator(model, kRows, kTime, documents);
    Batch b = batch_of(batch);
    cut_documents(b, 11);
    const double once = evaluator.total_loss(b);
    CHECK(evaluator.total_loss(b) == once);
    return once / double(b.valid);
  };
  for_each_model([&](const char* attention, Dtype dtype) {
    for (const bool documents : {false, true})
      for (const int batch : {0, 1}) {
        CAPTURE(documents);
        CAPTURE(batch);
        const double here = mean_loss(attention, dtype, documents, batch);
        const OnDevice guard(cpu_device());
        const double exact = mean_loss(attention, Dtype::f64, documents, batch);
        CAPTURE(here);
        CAPTURE(exact);
        CHECK(std::abs(here - exact) <= loss_tolerance(dtype));
      }
  });
}

}  // namespace

HH_ON_BOTH("device training: planned runs, a replayed one and an eager one have the same bits", ways_of_running_agree)
HH_ON_BOTH("device training: a step submitted before the last one is finished changes nothing", steps_in_flight)
HH_ON_BOTH("device training: micro-batches and documents give the same bits twice", parts_and_documents_repeat)
HH_ON_BOTH("device training: micro-batches make the step of one batch as large as all of them", parts_make_the_step_of_the_whole)
HH_ON_BOTH("device training: the first steps are those of f64 up to roundings", follows_f64)
HH_ON_BOTH("device training: an evaluator's loss is that of f64 up to roundings", evaluator_follows_f64)

TEST_SUITE("device") {
  TEST_CASE("device training: resume is bit for bit on the GPU") { on_cuda(resumes_to_the_bit); }
  TEST_CASE("device training: bf16 copies follow their masters") { on_cuda(copies_follow_masters); }
}

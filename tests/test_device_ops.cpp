#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>

#include "core/device.h"
#include "core/executor.h"
#include "nn/gpt.h"
#include "ops/dropout.h"
#include "ops/embedding.h"
#include "ops/linear_attention.h"
#include "ops/ops.h"
#include "ops/optimizer.h"
#include "ops/sample_token.h"
#include "tests/device_cases.h"
#include "tests/op_cases.h"
#include "tests/tape_cases.h"
#include "train/bench_attention.h"
#include "train/bench_step.h"
#include "train/config.h"
#include "train/setup.h"
#include "train/training_step.h"

using namespace hedgehog;
using namespace hedgehog::test;

namespace {

using Bits = std::vector<std::vector<std::byte>>;

/// y and dx of dropout, at some step and place in the global batch.
Bits dropped(Dtype dtype, double rate, std::int64_t id) {
  const Tensor x = parameter({3, 67, 65}, "x", dtype), step = step_state(11);
  x.copy_from(draw(x.size(), 4, 0));
  set_slot(step, kRngStep, 123456789);
  set_slot(step, kFirstSequence, 40);
  const Tensor y = dropout(x, step, rate, id);
  backward(y, constant(y.shape(), draw(y.size(), 4, 1), dtype));
  clear_tape();
  return {bits_of(y), bits_of(x.grad())};
}

/// Few rows through a layer of k by n in bf16: near the sums in f64, and each row as it is alone.
void few_rows(std::int64_t k, std::int64_t n) {
  CAPTURE(k);
  CAPTURE(n);
  const no_grad guard;
  const Tensor weight = parameter({k, n}, "weight", Dtype::bf16), bias = parameter({n}, "bias", Dtype::bf16);
  weight.copy_from(draw(k * n, 4, 1));
  bias.copy_from(draw(n, 4, 2));
  const Tensor x = constant({4, k}, draw(4 * k, 4, 3), Dtype::bf16), addend = constant({4, n}, draw(4 * n, 4, 4), Dtype::bf16);
  const std::vector<double> a = x.to_vector(), w = weight.to_vector(), b = bias.to_vector(), c = addend.to_vector();
  const std::vector<double> y = linear(x, weight, bias, addend).to_vector();
  for (std::int64_t r = 0; r < 4; ++r) {
    auto row = [&](const std::vector<double>& of, std::int64_t width) {
      return std::vector<double>(of.begin() + r * width, of.begin() + (r + 1) * width);
    };
    const std::vector<double> alone =
        linear(constant({1, k}, row(a, k), Dtype::bf16), weight, bias, constant({1, n}, row(c, n), Dtype::bf16)).to_vector();
    CHECK(alone == row(y, n));
    for (std::int64_t j = 0; j < n; ++j) {
      double sum = b[std::size_t(j)] + c[std::size_t(r * n + j)], size = std::abs(b[std::size_t(j)]) + std::abs(c[std::size_t(r * n + j)]);
      for (std::int64_t i = 0; i < k; ++i) {
        const double term = a[std::size_t(r * k + i)] * w[std::size_t(i * n + j)];
        sum += term, size += std::abs(term);
      }
      // the rounding to bf16, and one in f32 for each of the terms that meet in a chain of sums
      REQUIRE(std::abs(y[std::size_t(r * n + j)] - sum) <= 0x1p-8 * std::abs(sum) + 64 * 0x1p-24 * size);
    }
  }
}

/// A weight made by the kernel directly before is read as that kernel leaves it.
void made_weight() {
  constexpr std::int64_t k = 768, n = 2304;
  const no_grad guard;
  const Tensor x = constant({1, k}, draw(k, 4, 1), Dtype::bf16), a = constant({k, n}, draw(k * n, 4, 2), Dtype::bf16);
  const Tensor zero = constant({k, n}, std::vector<double>(k * n, 0.0), Dtype::bf16);
  const std::vector<double> expected = linear(x, a).to_vector();
  for (int i = 0; i < 10; ++i) {
    const Tensor first = zero + zero, weight = first + a;
    CHECK(linear(x, weight).to_vector() == expected);
  }
}

/// One AdamW step with the op's last argument, the weights rounded to bf16: weights and copy afterwards.
struct Stepped {
  std::vector<double> weights, copy;
};
Stepped adamw_with_copy(bool failed) {
  const std::int64_t P = 1000;
  auto holding = [&](const char* name, std::uint32_t id, bool positive) {
    const Tensor x = state({P}, Dtype::f32, name);
    std::vector<double> v = draw(P, 8, id);
    for (double& e : v) e = positive ? std::abs(e) : e;
    x.copy_from(v);
    return x;
  };
  const Tensor weights = holding("weights", 0, false), gradients = holding("gradients", 1, false), first = holding("first", 2, false),
               second = holding("second", 3, true), copy = state({P}, Dtype::bf16, "copy"), step = step_state();
  copy.copy_from(weights.to_vector());
  set_slot(step, kLearningRate, 0.1);
  set_slot(step, kStep, 3);
  set_slot(step, kNonFinite, failed);
  // the second of three spans is frozen, and there are gaps between them
  const Tensor spans = constant({3, 5}, {0, 500, 1, 1, 0, 504, 100, 1, 1, 1, 608, 392, 0.5, 0, 0}, Dtype::f64);
  const Tensor norms = gradient_norm(gradients, spans, {}, step);
  adamw(weights, gradients, first, second, spans, norms, step, {.weight_decay = 0.1, .clip = 1}, copy);
  return {weights.to_vector(), copy.to_vector()};
}

void copy_is_the_rounded_weights() {
  for (const bool failed : {false, true}) {
    CAPTURE(failed);
    const Stepped s = adamw_with_copy(failed);
    std::vector<double> rounded;
    for (double w : s.weights) rounded.push_back(double(float(BFloat16(float(w)))));
    CHECK(s.copy == rounded);
    const std::vector<double> start = draw(1000, 8, 0);
    CHECK((std::abs(s.weights[0] - start[0]) > 1e-3) != failed);
    CHECK(s.weights[550] == double(float(start[550])));
  }
}

std::vector<std::string> names_of(const Program& program) {
  std::vector<std::string> names;
  for (const Entry& e : program.entries) names.push_back(e.op->name + (e.backward ? " backward" : ""));
  return names;
}

/// A model's training step and the choice of its next token as the current device would run them, op by op; nothing runs.
std::vector<std::string> recorded_ops(const GptOptions& o, bool documents) {
  Gpt model(o);
  TrainingStep step(model, {2, o.context, 1, documents}, {}, 1);
  std::vector<std::string> names = names_of(step.gradient_executor().program());
  const no_grad guard;
  DecodingState decoding = model.decoding_state(1, o.context);
  const Tensor token = state({1, 1}, Dtype::i32, "token"), draws = draws_state();
  for (std::string& name : names_of(record([&] {
         sample_token(model.decode(token, decoding), token, decoding.position, draws, {});
         return Tensors{};
       })))
    names.push_back(std::move(name));
  return names;
}

/// The preset's model, as it is on the current device but for its size.
GptOptions tiny(const Preset& preset, const char* attention) {
  Config config("train");
  config.apply_preset(preset.name);
  for (const auto& [name, value] : {std::pair{"layers", "2"}, {"heads", "2"}, {"width", "64"}, {"context", "32"}, {"attention", attention}})
    config.set(name, value, OptionSource::kFlag);
  return gpt_options(config, 61);
}

/// The CPU has a kernel for every op. So what it records is what was asked for, and an op that this device runs composed is missing
/// from the device's list.
void presets_run_fused() {
  for (const Preset& preset : preset_table())
    for (const char* attention : {"softmax", "hedgehog", "t2r", "taylor", "cosformer", "performer"})
      for (const bool documents : {false, true}) {
        CAPTURE(preset.name);
        CAPTURE(std::string(attention));
        CAPTURE(documents);
        GptOptions o = tiny(preset, attention);
        o.decay_gate = has_log_features(attention) && documents;  // with a gate and without
        CHECK(o.dtype == (current_device().host() ? Dtype::f32 : Dtype::bf16));
        const std::vector<std::string> here = recorded_ops(o, documents);
        const OnDevice guard(cpu_device());
        const std::vector<std::string> asked = recorded_ops(o, documents);
        std::string composed;
        for (const std::string& name : asked)
          if (std::find(here.begin(), here.end(), name) == here.end() && !mentions(composed, name)) composed += name + "; ";
        CAPTURE(composed);
        CHECK(here == asked);
      }
}

/// Ops of the registry, primitive or not, that lack a kernel here, though the CPU has one.
std::string without_kernel() {
  std::string names;
  for (const Op* op : all_ops()) {
    if (op->views) continue;
    if (!current_device().kernel(*op, false)) names += op->name + "; ";
    if (op->backward.cpu && !current_device().kernel(*op, true)) names += op->name + " backward; ";
  }
  return names;
}

/// Every kind of call that `bench` times, on few tokens; and one that is known to be slow.
void attention_is_fast() {
  const auto slow_calls = [](const AttentionCase& c) {
    const std::int64_t before = linear_attention_slow_calls();
    Executor(attention_program(c, Dtype::bf16, true)).run();
    return linear_attention_slow_calls() - before;
  };
  for (const std::int64_t D : {32, 64, 96, 128}) CHECK(slow_calls({.time = 130, .heads = 2, .head_size = D}) == 0);
  for (const std::int64_t D : {32, 64}) {
    for (const char* map : {"hedgehog-softmax", "hedgehog-joint", "elu", "relu", "exp", "identity"})
      CHECK(slow_calls({.attention = map, .time = 130, .heads = 2, .head_size = D}) == 0);
    CHECK(slow_calls({.time = 130, .heads = 2, .head_size = D, .causal = false}) == 0);
    CHECK(slow_calls({.time = 130, .heads = 2, .head_size = D, .documents = true}) == 0);
    CHECK(slow_calls({.time = 130, .heads = 2, .head_size = D, .turned = true}) == 0);
    CHECK(slow_calls({.time = 130, .heads = 2, .head_size = D, .window = 64}) == 0);
    // turned as they are loaded: no copies
    const AttentionCase plain{.time = 130, .heads = 2, .head_size = D}, rotated{.time = 130, .heads = 2, .head_size = D, .turned = true};
    CHECK(extra_memory(attention_program(rotated, Dtype::bf16, true)) == extra_memory(attention_program(plain, Dtype::bf16, true)));
    CHECK(slow_calls({.time = 130, .heads = 2, .head_size = D, .states = true}) == 0);
  }
  CHECK(slow_calls({.time = 130, .heads = 2, .head_size = 40}) == 2);
}

/// The final shift of a row without numbers has no key to give its gradient to. Rows are shorter than a chunk, so that one behind the
/// end of the first would be one of the second.
void nan_stays_in_its_row() {
  const Shape shape{2, 40, 2, 64}, matrix{2, 64, 64};
  const auto drawn = [](const Shape& of, const char* name, std::uint32_t id) {
    const Tensor x = parameter(of, name, Dtype::bf16);
    x.copy_from(draw(x.size(), 5, id));
    return x;
  };
  const Tensor q = drawn(shape, "q", 1), k = drawn(shape, "k", 2), v = drawn(shape, "v", 3);
  std::vector<double> keys = k.to_vector();
  std::fill_n(keys.begin(), keys.size() / 2, std::nan(""));
  k.copy_from(keys);
  LinearAttentionOptions o;
  o.weight_q = drawn(matrix, "weight_q", 4), o.weight_k = drawn(matrix, "weight_k", 5);
  o.final_state = true;
  backward(sum(linear_attention(q, k, v, o).final_state));
  const std::vector<double> dk = k.grad().to_vector();
  for (std::size_t i = dk.size() / 2; i < dk.size(); ++i) REQUIRE(std::isfinite(dk[i]));
}

}  // namespace

TEST_CASE("adamw: the bf16 copy is the rounded weights") { copy_is_the_rounded_weights(); }

TEST_SUITE("device") {
  TEST_CASE("device ops: dropout has the CPU's bits") {
    on_cuda([] {
      for (const Dtype dtype : {Dtype::f32, Dtype::f64})
        for (const double rate : {0.1, 0.5, 0.9})
          for (const std::int64_t id : {0, 7}) {
            CAPTURE(std::string(name_of(dtype)));
            CAPTURE(rate);
            CAPTURE(id);
            const Bits there = dropped(dtype, rate, id);
            const OnDevice guard(cpu_device());
            CHECK(there == dropped(dtype, rate, id));
          }
      // in bf16 the same elements are dropped
      const Tensor ones = constant({3, 67, 65}, std::vector<double>(3 * 67 * 65, 1.0), Dtype::bf16), step = step_state(11);
      std::vector<double> there = dropout(ones, step, 0.3, 2).to_vector();
      const OnDevice guard(cpu_device());
      const std::vector<double> here = dropout(constant(ones.shape(), ones.to_vector()), step_state(11), 0.3, 2).to_vector();
      for (std::size_t i = 0; i < here.size(); ++i) REQUIRE((here[i] == 0) == (there[i] == 0));
    });
  }

  TEST_CASE("device ops: few rows through a layer, each as it is alone") {
    on_cuda([] {
      few_rows(768, 768), few_rows(3072, 768), few_rows(768, 2304), few_rows(700, 4096), few_rows(2000, 40), few_rows(9, 8);
    });
  }

  TEST_CASE("device ops: a weight made by the kernel before its use") { on_cuda(made_weight); }

  TEST_CASE("device ops: adamw's bf16 copy is the rounded weights") { on_cuda(copy_is_the_rounded_weights); }

  TEST_CASE("device ops: every op has its kernels") {
    on_cuda([] {
      CHECK(without_kernel() == "");
      CHECK(composed_ops().empty());
    });
  }

  TEST_CASE("device ops: nothing in a preset's step or decoding runs composed") { on_cuda(presets_run_fused); }

  TEST_CASE("device ops: linear attention as models call it takes the tensor cores") { on_cuda(attention_is_fast); }

  TEST_CASE("device ops: linear attention of keys that are NaN harms no other row of the batch") { on_cuda(nan_stays_in_its_row); }

  TEST_CASE("device ops: an id out of range gives NaN and harms nothing else") {
    on_cuda([] {
      const no_grad guard;
      const Tensor table = constant({5, 8}, draw(40, 1, 1)), good = constant({4}, {0, 4, 2, 1}, Dtype::i32);
      const std::vector<double> expected = embedding(good, table).to_vector();
      for (const double bad : {5.0, -1.0, 1e9, -1e9}) {
        CAPTURE(bad);
        const std::vector<double> y = embedding(constant({4}, {0, 4, bad, 1}, Dtype::i32), table).to_vector();
        for (std::size_t i = 0; i < y.size(); ++i)
          if (i / 8 == 2) CHECK(std::isnan(y[i]));
          else CHECK(y[i] == expected[i]);
      }
    });
  }
}

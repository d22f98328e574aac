#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>

#include "ops/cross_entropy.h"
#include "ops/linear_attention.h"
#include "ops/softmax_attention.h"
#include "ops/shape.h"
#include "tests/batch_cases.h"
#include "tests/device_cases.h"
#include "tests/op_cases.h"
#include "train/generation.h"
#include "train/training_step.h"

using namespace hedgehog;
using namespace hedgehog::test;

namespace {

std::int64_t elements(const Sample& sample) {
  std::int64_t most = 0;
  for (const SampleInput& in : sample.inputs)
    if (in.fill != SampleInput::Fill::none) most = std::max(most, in.shape.size());
  return most;
}

/// The smallest sample that has more than a warp of elements, else the largest.
const Sample* interesting(const Op& op) {
  const Sample* best = nullptr;
  for (const Sample& s : op.samples) {
    const std::int64_t size = elements(s), before = best ? elements(*best) : 0;
    if (!best || (before <= 32 ? size > before : size > 32 && size < before)) best = &s;
  }
  return best;
}

/// All numbers of the tensors are finite: NaN is what HEDGEHOG_POISON leaves in memory that nothing wrote.
void check_finite(const std::string& what, const Tensors& tensors) {
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    if (!tensors[i]) continue;
    const std::vector<double> values = tensors[i].to_vector();
    CAPTURE(what);
    CAPTURE(i);
    CHECK(std::all_of(values.begin(), values.end(), [](double v) { return std::isfinite(v); }));
  }
}

/// Forward and backward in fresh memory that nothing has filled, so that reading what was never written can be seen: results,
/// arguments (some are updated in place) and gradients are finite.
void run_once(const Tensors& arguments, const std::function<Tensors()>& function) {
  const Tensors results = function();
  Tensors differentiable, cotangents, gradients;
  for (const Tensor& y : results) {
    if (!y.wants_gradient()) continue;
    differentiable.push_back(y);
    cotangents.push_back(constant(y.shape(), draw(y.size(), 1, 0), y.dtype(), "cotangent"));
  }
  if (!differentiable.empty()) backward(differentiable, cotangents);
  clear_tape();
  for (const Tensor& x : arguments) gradients.push_back(x && x.wants_gradient() ? x.grad() : Tensor{});
  check_finite("results", results);
  check_finite("arguments", arguments);
  check_finite("gradients", gradients);
}

/// Queries, keys and values as windows of one packed tensor: what a model hands to attention.
void run_attention(bool linear, Dtype dtype, std::int64_t T, std::int64_t D, bool causal = true, std::int64_t key_heads = 2) {
  const std::int64_t B = 1, H = 2, C = H * D, Ckv = key_heads * D;
  const Tensor packed = parameter({B, T, C + 2 * Ckv}, "qkv", dtype), weight_q = parameter({H, D, D}, "weight_q", dtype),
               weight_k = parameter({H, D, D}, "weight_k", dtype);
  packed.copy_from(draw(packed.size(), 2, 0));
  for (const Tensor& w : {weight_q, weight_k}) {
    std::vector<double> v = draw(w.size(), 2, 1);
    for (double& x : v) x /= std::sqrt(double(D));
    w.copy_from(v);
  }
  run_once({packed, weight_q, weight_k}, [&]() -> Tensors {
    const Tensors parts = split(apply(detail::kCopy, {}, {packed})[0], {C, Ckv, Ckv});
    auto heads = [&](const Tensor& part) { return reshape(part, {B, T, part.shape().last() / D, D}); };
    if (!linear) return {softmax_attention(heads(parts[0]), heads(parts[1]), heads(parts[2]))};
    LinearAttentionOptions o;
    o.weight_q = weight_q;
    o.weight_k = weight_k;
    o.causal = causal;
    return {linear_attention(heads(parts[0]), heads(parts[1]), heads(parts[2]), o).o};
  });
}

GptOptions small_model(const char* attention, Dtype dtype) {
  GptOptions o;
  o.layers = 1;
  o.heads = 2;
  o.width = 64;
  o.context = 40;
  o.vocabulary = 128;
  o.attention = attention;
  o.dropout = 0.1;
  o.short_convolution = 4;
  o.dtype = dtype;
  return o;
}

template <class F>
void for_each_small_model(F&& f) {
  for (const char* attention : {"hedgehog", "softmax", "t2r", "taylor", "cosformer", "performer"})
    for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
      CAPTURE(std::string(attention));
      CAPTURE(std::string(name_of(dtype)));
      f(small_model(attention, dtype));
    }
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
    CAPTURE("decay gate");
    GptOptions o = small_model("hedgehog", dtype);
    o.decay_gate = true;
    f(o);
  }
  for (const char* attention : {"hedgehog", "softmax"})
    for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
      CAPTURE("norms of queries and keys");
      GptOptions o = small_model(attention, dtype);
      o.qk_norm = true;
      f(o);
    }
}

}  // namespace

TEST_SUITE("device") {
  TEST_CASE("gradcheck on the device: every differentiable argument of every op and sample in f64") {
    on_cuda([] {
      GradcheckOptions options;
      options.full = 12;
      int checked = 0;
      for (const Op* op : all_ops()) {
        if (!has_backward(*op) || (!op->views && !op->reference && !current_device().kernel(*op, true))) continue;
        CAPTURE(op->name);
        for (const Sample& sample : op->samples) {
          CAPTURE(sample.label);
          const GradcheckReport report = gradcheck(*op, sample, options);
          clear_tape();
          CHECK(!report.rows.empty());
          for (const GradcheckRow& row : report.rows) {
            CAPTURE(row.argument);
            CAPTURE(row.largest);
            CAPTURE(row.error);
            CHECK(row.passed);
            ++checked;
          }
        }
      }
      CHECK(checked > 0);
      gradients_checked += checked;
    });
  }
}

// few and small calls of every kernel, for compute-sanitizer (tests/gpu.sh)
TEST_SUITE("sanitized") {
  TEST_CASE("every op once in every dtype on the device") {
    on_cuda([] {
      for (const Op* op : all_ops()) {
        if (op->views || !current_device().kernel(*op, false)) continue;
        CAPTURE(op->name);
        const Sample* sample = interesting(*op);
        if (!sample) continue;
        for (const Dtype dtype : {Dtype::f32, Dtype::f64, Dtype::bf16}) {
          CAPTURE(std::string(name_of(dtype)));
          if (!accepts(*op, *sample, dtype)) continue;
          const Tensors arguments = draw_arguments(*op, *sample, 3, dtype);
          CHECK_NOTHROW(run_once(arguments, [&] { return apply(*op, sample->attributes, arguments); }));
        }
      }
    });
  }

  TEST_CASE("attention on tensor cores on the device") {
    on_cuda([] {
      for (const bool linear : {false, true})
        for (const std::int64_t D : {64, 128}) {
          run_attention(linear, Dtype::bf16, 65, D);
          run_attention(linear, Dtype::f32, 33, D);
        }
      // 19 chunks of D tokens and few heads: linear attention cuts the sequence into segments
      for (const std::int64_t D : {32, 64}) run_attention(true, Dtype::bf16, 18 * D + 1, D);
      for (const std::int64_t D : {32, 64}) run_attention(true, Dtype::bf16, 4 * D + 1, D, false);
      run_attention(true, Dtype::bf16, 65, 64, true, 1);
      run_attention(true, Dtype::bf16, 65, 64, false, 1);
    });
  }

  TEST_CASE("a training step on the device") {
    on_cuda([] {
      for_each_small_model([](const GptOptions& o) {
        Gpt model(o);
        TrainingStep step(model, {2, 40, 1, false}, {}, 1);
        // an ordinary run, a captured one and a replayed one
        for (int i = 0; i < 3; ++i) {
          const StepResult r = step.run(std::vector<Batch>{counting_batch(2, 40, 128, 3)}, 1e-3);
          CHECK(std::isfinite(r.loss));
          CHECK(!r.failed);
        }
        check_finite("weights", {model.parameters().flatten().weights});
      });
    });
  }

  TEST_CASE("a text on the device") {
    on_cuda([] {
      for_each_small_model([](const GptOptions& o) {
        const Gpt model(o);
        Generator generator(model, 8);
        generator.read(std::vector<std::int32_t>{1, 2});
        int written = 0;
        // the first is chosen on the CPU; then an ordinary run, a captured one and a replayed one
        generator.generate(4, {.temperature = 1, .top_k = 50, .top_p = 0.9}, {3}, [&](std::int32_t id) {
          CHECK(id >= 0);
          CHECK(id < o.vocabulary);
          ++written;
          return true;
        });
        CHECK(written == 4);
        for (double logit : generator.logits()) CHECK(std::isfinite(logit));
      });
    });
  }
}

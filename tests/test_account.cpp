#include <doctest/doctest.h>

#include "core/account.h"
#include "nn/gpt.h"
#include "ops/elementwise.h"
#include "ops/embedding.h"
#include "ops/norm.h"
#include "ops/optimizer.h"
#include "tests/shape_device.h"
#include "train/training_step.h"

using namespace hedgehog;
using namespace hedgehog::test;

namespace {

constexpr std::int64_t kRows = 6, kColumns = 8, kSize = kRows * kColumns;

/// Bytes of each op of what `function` records with bf16 activations: nothing is computed, so any device will do.
std::map<std::string, Work> work_by_op(const std::function<Tensors()>& function) {
  const OnDevice guard(shape_device());
  return account(record(function)).by_op;
}

Tensor vector(const char* name) { return parameter({kColumns}, name); }

}  // namespace

TEST_CASE("account: a norm moves its rows once each way, and twice where its gradient is added to another") {
  for (const bool residual : {false, true}) {
    CAPTURE(residual);
    const auto work = work_by_op([&] {
      const Tensor x = input({kRows, kColumns}, "x", Dtype::bf16);
      x->wants_gradient = true;
      Tensor y = layer_norm(x, vector("weight"), vector("bias"));
      if (residual) y = add(y, x);
      backward(y);
      return Tensors{y};
    });
    const std::int64_t statistics = 2 * kRows * 4, gradients = 2 * 2 * kColumns * 4;  // of weight and bias, in f32, added to
    CHECK(work.at("layer_norm").bytes == double(2 * 2 * kSize + 2 * kColumns * 4 + statistics));
    CHECK(work.at("layer_norm backward").bytes == double(2 * (residual ? 4 : 3) * kSize + kColumns * 4 + statistics + gradients));
  }
}

TEST_CASE("account: a norm of a sum moves four activations forward and five backward") {
  const auto work = work_by_op([] {
    const Tensor x = input({kRows, kColumns}, "x", Dtype::bf16), r = input({kRows, kColumns}, "r", Dtype::bf16);
    x->wants_gradient = r->wants_gradient = true;
    const NormedSum n = add_rms_norm(x, r, vector("weight"));
    backward({n.y, n.sum}, {{}, {}});
    return Tensors{n.y, n.sum};
  });
  CHECK(work.at("add_rms_norm").bytes == double(4 * 2 * kSize + kColumns * 4 + kRows * 4));
  CHECK(work.at("add_rms_norm backward").bytes == double(5 * 2 * kSize + kColumns * 4 + kRows * 4 + 2 * kColumns * 4));
}

TEST_CASE("account: an embedding moves the rows that are taken, and its gradients in f32") {
  constexpr std::int64_t kBatch = 3, kTime = 5, kVocabulary = 100;
  const auto work = work_by_op([&] {
    const Tensor y = embedding(input({kBatch, kTime}, "tokens", Dtype::i32), parameter({kVocabulary, kColumns}, "table", Dtype::bf16),
                               parameter({2 * kTime, kColumns}, "positions", Dtype::bf16));
    backward(y);
    return Tensors{y};
  });
  const std::int64_t tokens = kBatch * kTime, taken = (tokens + kTime) * kColumns;
  CHECK(work.at("embedding").bytes == double(4 * tokens + 2 * tokens * kColumns + 2 * taken));
  CHECK(work.at("embedding backward").bytes == double(4 * tokens + 2 * tokens * kColumns + 2 * 4 * taken));
  // a short table is not read more often than it has rows
  const auto few = work_by_op([&] {
    return Tensors{embedding(input({kBatch, kTime}, "tokens", Dtype::i32), parameter({4, kColumns}, "table", Dtype::bf16))};
  });
  CHECK(few.at("embedding").bytes == double(4 * tokens + 2 * tokens * kColumns + 2 * 4 * kColumns));
}

TEST_CASE("account: a training step's optimiser moves each of its buffers once each way") {
  const OnDevice guard(shape_device());
  GptOptions o;
  o.layers = 1, o.heads = 2, o.width = 16, o.context = 8, o.vocabulary = 11;
  Gpt model(o);
  TrainingStep step(model, {2, o.context, 1, false}, {}, 1);
  const double P = double(model.parameters().flatten().weights.size());
  const auto work = account(step.gradient_executor().program()).by_op;
  // weights, gradients (cleared) and both moments, read and written
  CHECK(work.at("adamw").bytes == 8 * 4 * P);
  CHECK(work.at("gradient_norm").bytes >= 4 * P);
  CHECK(work.at("gradient_norm").bytes < 4.5 * P);
}

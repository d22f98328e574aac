#include <doctest/doctest.h>

#include <cmath>

#include "core/error.h"
#include "core/random.h"
#include "nn/gpt.h"
#include "tests/batch_cases.h"
#include "tests/op_cases.h"
#include "tests/temporary_directory.h"
#include "train/checkpoint.h"
#include "train/training_step.h"

namespace hedgehog {
namespace {

constexpr std::int64_t B = 2, T = 8, C = 12, V = 11;

GptOptions shape_of(const std::vector<std::string>& targets) {
  GptOptions o;
  o.layers = 2, o.heads = 2, o.width = C, o.context = T, o.vocabulary = V, o.dtype = Dtype::f64, o.bias = true;
  o.embedding_init = 1;
  if (!targets.empty()) o.lora = LoraOptions{3, 6, 0, targets};
  return o;
}

const std::vector<std::string> kAll{"attention", "attention_output", "mlp", "mlp_output"};

/// Updates that do something, where B starts as zero.
void shake(Gpt& model) {
  std::uint32_t id = 0;
  for (const Tensor& t : model.parameters().all())
    if (is_lora(t.name())) model.parameters().assign(t, test::draw(t.size(), 13, id++));
}

struct Ids {
  Tensor tokens, targets;
};
Ids some_ids() {
  const Batch b = test::counting_batch(B, T, V, 3);
  return {constant({B, T}, {b.tokens.begin(), b.tokens.end()}, Dtype::i32),
          constant({B, T}, {b.targets.begin(), b.targets.end()}, Dtype::i32)};
}

/// Product of matrices (m, n) and (n, k), either read transposed.
std::vector<double> product(const std::vector<double>& a, bool transpose_a, const std::vector<double>& b, bool transpose_b, std::size_t m,
                            std::size_t n, std::size_t k) {
  std::vector<double> c(m * k);
  for (std::size_t i = 0; i < m; ++i)
    for (std::size_t l = 0; l < n; ++l)
      for (std::size_t j = 0; j < k; ++j)
        c[i * k + j] += (transpose_a ? a[l * m + i] : a[i * n + l]) * (transpose_b ? b[j * n + l] : b[l * k + j]);
  return c;
}

double distance(const std::vector<double>& a, const std::vector<double>& b) { return test::rms(test::difference(a, b)) / test::rms(b); }

}  // namespace

TEST_CASE("lora: at the start nothing changes, merged it gives the same logits, and the base starts as without") {
  const Ids ids = some_ids();
  const no_grad guard;
  for (const std::vector<std::string>& targets : {kAll, {"attention"}, {"mlp"}, {"attention_output", "mlp_output"}})
    for (const char* activation : {"gelu", "gelu_erf", "silu", "relu"}) {
      CAPTURE(targets.front());
      CAPTURE(activation);
      GptOptions o = shape_of(targets), plain = shape_of({});
      o.activation = plain.activation = activation;
      Gpt model(o);
      const Gpt base(plain);
      CHECK(model.parameters().count() == parameter_count(o));
      const std::vector<double> without = base.logits(base.hidden(ids.tokens)).to_vector();
      CHECK(distance(model.logits(model.hidden(ids.tokens)).to_vector(), without) < 1e-13);
      shake(model);
      const std::vector<double> with = model.logits(model.hidden(ids.tokens)).to_vector();
      CHECK(distance(with, without) > 0.05);
      const Gpt merged = merge_lora(model);
      CHECK(merged.parameters().count() == base.parameters().count());
      CHECK(distance(merged.logits(merged.hidden(ids.tokens)).to_vector(), with) < 1e-12);
    }
}

TEST_CASE("lora: gradients equal those of the merged weight: dA = s dW B^T, dB = s A^T dW") {
  Gpt model(shape_of(kAll));
  shake(model);
  Gpt merged = merge_lora(model);
  const Ids ids = some_ids();
  backward(model.loss(ids.tokens, ids.targets).loss);
  backward(merged.loss(ids.tokens, ids.targets).loss);
  std::size_t compared = 0;
  for (const Tensor& a : model.parameters().all()) {
    if (!a.name().ends_with(".lora_a")) continue;
    const std::string layer = a.name().substr(0, a.name().rfind('.'));
    CAPTURE(layer);
    const Tensor b = model.parameters().find(layer + ".lora_b"), weight = merged.parameters().find(layer + ".weight");
    const std::size_t in = std::size_t(a.shape()[0]), rank = std::size_t(a.shape()[1]), out = std::size_t(b.shape()[1]);
    std::vector<double> dweight = weight.grad().to_vector();
    for (double& x : dweight) x *= 2;  // s = alpha / rank
    CHECK(distance(a.grad().to_vector(), product(dweight, false, b.to_vector(), true, in, out, rank)) < 1e-11);
    CHECK(distance(b.grad().to_vector(), product(a.to_vector(), true, dweight, false, rank, in, out)) < 1e-11);
    ++compared;
  }
  CHECK(compared == 8);
}

TEST_CASE("lora: steps of training move the updates alone, with dropout too") {
  GptOptions o = shape_of(kAll);
  for (const double dropout : {0.0, 0.5}) {
    CAPTURE(dropout);
    o.lora->dropout = dropout;
    Gpt model(o);
    model.parameters().train_only(is_lora);
    std::vector<std::vector<double>> before;
    for (const Tensor& t : model.parameters().all()) before.push_back(t.to_vector());
    const Batch batch = test::counting_batch(B, T, V, 3);
    TrainingStep step(model, {B, T}, {.weight_decay = 0.1}, 1);
    const double first = step.run(std::span(&batch, 1), 0.01).loss;
    double last = first;
    for (int i = 0; i < 40; ++i) last = step.run(std::span(&batch, 1), 0.01).loss;
    CHECK(last < 0.8 * first);
    for (std::size_t i = 0; i < before.size(); ++i) {
      const Tensor& t = model.parameters().all()[i];
      CAPTURE(t.name());
      CHECK((t.to_vector() == before[i]) != is_lora(t.name()));
    }
  }
}

TEST_CASE("lora: dropout acts in training alone") {
  GptOptions o = shape_of({"attention"});
  o.lora->dropout = 0.5;
  Gpt model(o);
  shake(model);
  const Ids ids = some_ids();
  const no_grad guard;
  const Tensor step = step_state();
  const double plain = model.loss(ids.tokens, ids.targets).loss.item(), again = model.loss(ids.tokens, ids.targets).loss.item();
  CHECK(plain == again);
  CHECK(model.loss(ids.tokens, ids.targets, {}, {.step = step}).loss.item() != plain);
}

TEST_CASE("lora: bad sizes and targets are refused, and so are decoding and saving before the merge") {
  auto refused = [](auto&& change, const char* part) {
    GptOptions o = shape_of({"attention"});
    change(*o.lora);
    CHECK_THROWS_WITH_AS(Gpt{o}, doctest::Contains(part), ShapeError);
  };
  refused([](LoraOptions& l) { l.rank = 0; }, "the rank must be from 1 to the model's width of 12, got 0");
  refused([](LoraOptions& l) { l.rank = 13; }, "got 13");
  refused([](LoraOptions& l) { l.alpha = 0; }, "alpha must be a number greater than 0");
  refused([](LoraOptions& l) { l.dropout = 1; }, "dropout must be from 0");
  refused([](LoraOptions& l) { l.targets = {}; }, "names no layer");
  refused([](LoraOptions& l) { l.targets = {"attention", "head"}; }, "target 'head' is not known; choose among attention, ");
  Gpt model(shape_of({"attention"}));
  CHECK_THROWS_WITH_AS(model.decoding_state(1, 8), doctest::Contains("merge_lora"), ShapeError);
  const Gpt plain(shape_of({}));
  CHECK_THROWS_WITH_AS(merge_lora(plain), doctest::Contains("no low-rank updates"), ShapeError);
  const TemporaryDirectory d;
  CHECK_THROWS_WITH_AS(save_checkpoint(d / "last", model, *make_tokenizer("byte", "", 0), {}), doctest::Contains("merge_lora"), Error);
}

}  // namespace hedgehog

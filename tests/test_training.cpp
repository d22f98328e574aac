#include <doctest/doctest.h>

#include <cmath>
#include <cstring>

#include "ops/cpu.h"
#include "core/error.h"
#include "tests/batch_cases.h"
#include "tests/device_cases.h"
#include "tests/op_cases.h"
#include "tests/temporary_directory.h"
#include "train/checkpoint.h"
#include "train/generation.h"
#include "train/setup.h"
#include "train/trainer.h"

namespace hedgehog {
namespace {

using test::counting_batch;
using test::small_gpt;

std::vector<float> weights_of(Gpt& model) {
  const Tensor w = model.parameters().flatten().weights;
  return {w.as<float>(), w.as<float>() + w.size()};
}

const char* const kAttentions[] = {"softmax", "hedgehog", "hedgehog-softmax", "hedgehog-joint", "elu", "relu", "exp",
                                   "t2r", "taylor", "cosformer", "performer"};

/// Forward has seen every token before; decoding has only its state.
void decoding_gives_the_logits() {
  for (const char* attention : kAttentions)
    for (const char* positions : {"rotary", "learned"})
      for (const Dtype dtype : {Dtype::f32, Dtype::f64}) {
        CAPTURE(std::string(attention));
        CAPTURE(std::string(positions));
        CAPTURE(std::string(name_of(dtype)));
        GptOptions o = small_gpt(attention);
        o.dtype = dtype;
        if (dtype == Dtype::f64) {  // and with all that the Llama family has
          o.qk_norm = o.gated_mlp = o.attention_bias = true;
          o.key_heads = 1, o.mlp_width = 24, o.norm_eps = 1e-3, o.rotary_base = 500, o.rotary_scaling = {2, 1, 4, 8};
        }
        o.positions = positions;
        o.tied_head = o.positions == "learned";
        o.short_convolution = o.tied_head ? 0 : 4;
        o.map_weights = !o.tied_head;
        Gpt model(o);
        CHECK(model.parameters().count() == parameter_count(o));
        const Batch b = counting_batch(1, 12, 11, 4);
        const Tensor tokens = input({1, 12}, "tokens", Dtype::i32);
        copy_ids(b.tokens, tokens);
        const no_grad guard;
        const auto whole = model.logits(model.hidden(tokens)).to_vector();
        // some 20 products and sums of up to 64 terms on the way to a logit, each term a rounding
        const double tolerance = 20 * 64 * (dtype == Dtype::f32 ? 0x1p-24 : 0x1p-53) * std::max(1.0, test::largest(whole));
        Generator generator(model, 12);
        for (std::size_t t = 0; t < 12; ++t) {
          generator.read(std::span(&b.tokens[t], 1));
          const std::vector<double> logits = generator.logits();
          for (std::size_t v = 0; v < 11; ++v) CHECK(std::abs(logits[v] - whole[t * 11 + v]) <= tolerance);
        }
        CHECK_THROWS_AS(generator.read(std::span(&b.tokens[0], 1)), UsageError);
      }
}

void documents_are_apart() {
  for (const char* attention : {"softmax", "hedgehog", "elu"}) {
    CAPTURE(std::string(attention));
    GptOptions o = small_gpt(attention);
    o.positions = "none";
    o.short_convolution = 3;
    Gpt model(o);
    const Tensor tokens = input({1, 12}, "tokens", Dtype::i32), documents = input({1, 12}, "documents", Dtype::i32);
    Batch b = counting_batch(1, 12, 11, 4);
    copy_ids({0, 0, 0, 0, 0, 5, 5, 5, 5, 5, 5, 5}, documents);
    const no_grad guard;
    copy_ids(b.tokens, tokens);
    const auto before = model.hidden(tokens, {documents, {}, {}}).to_vector();
    for (int t = 0; t < 5; ++t) b.tokens[std::size_t(t)] = 10 - b.tokens[std::size_t(t)];
    copy_ids(b.tokens, tokens);
    const auto after = model.hidden(tokens, {documents, {}, {}}).to_vector();
    for (std::size_t i = 5 * 16; i < before.size(); ++i) CHECK(before[i] == after[i]);
    CHECK(before[0] != after[0]);
  }
}

}  // namespace

TEST_CASE("a model of every attention learns one batch by heart") {
  for (const char* attention : kAttentions) {
    CAPTURE(std::string(attention));
    Gpt model(small_gpt(attention));
    TrainingStep step(model, {3, 12, 1, false}, {.weight_decay = 0}, 1);
    const std::vector<Batch> batch{counting_batch(3, 12, 11, 3)};
    const double first = step.run(batch, 1e-2).loss;
    double last = first;
    for (int i = 0; i < 150; ++i) last = step.run(batch, 1e-2).loss;
    CHECK(first == doctest::Approx(std::log(11.0)).epsilon(0.15));
    CHECK(last < 0.05);
  }
}

TEST_CASE("gradient norms are shown by layer, an untied classifier's with the final norm") {
  for (const bool tied : {true, false}) {
    CAPTURE(tied);
    GptOptions o = small_gpt("hedgehog");
    o.tied_head = tied;
    const Gpt model(o);
    CHECK(layer_names(o) == std::vector<std::string>{"embedding", "block 0", "block 1", tied ? "final norm" : "final norm and head"});
    const auto norms = layer_norms(model, std::vector<double>(model.parameters().all().size(), 1.0));
    CHECK(norms[0] == 1);
    CHECK(norms[1] == norms[2]);
    CHECK(norms[3] == doctest::Approx(std::sqrt(tied ? 1 : 2)));
  }
}

TEST_CASE("training gives the same bits for any number of threads") {
  std::vector<float> reference;
  for (int threads : {1, 2, 3}) {
    set_thread_count(threads);
    Gpt model(small_gpt("hedgehog"));
    TrainingStep step(model, {3, 12, 1, false}, {}, 1);
    for (int i = 0; i < 5; ++i) step.run(std::vector<Batch>{counting_batch(3, 12, 11, i + 1)}, 1e-2);
    const auto w = weights_of(model);
    if (reference.empty()) reference = w;
    CHECK(std::memcmp(w.data(), reference.data(), w.size() * sizeof(float)) == 0);
  }
  configure_threads();
}

TEST_CASE("a non-finite loss changes nothing and names op, scope and statistics") {
  Gpt model(small_gpt("hedgehog"));
  TrainingStep step(model, {3, 12, 1, false}, {}, 1);
  const std::vector<Batch> batch{counting_batch(3, 12, 11, 2)};
  step.run(batch, 1e-3);
  const Tensor weight = model.parameters().find("h.1.mlp.c_fc.weight");
  weight.as<float>()[3] = INFINITY;
  const auto before = weights_of(model);
  step.run(batch, 1e-3);
  CHECK(step.failed());
  const auto after = weights_of(model);
  CHECK(std::memcmp(before.data(), after.data(), before.size() * sizeof(float)) == 0);
  const auto [cause, report] = step.explain_failure(batch);
  CAPTURE(cause);
  CHECK(contains(cause, "mlp forward in 'block1/mlp'"));
  CHECK(contains(cause, "weight_1 (16, 64)"));
  CHECK(contains(cause, "not finite"));
  CAPTURE(report);
  for (const char* part : {"mlp forward in 'block1/mlp'", "source: layers.cpp:", "'h.1.mlp.c_fc.weight'", "layer_norm forward", "formula: "}) CHECK(contains(report, part));
}

TEST_CASE("a checkpoint restores weights, moments and step state to the bit") {
  const TemporaryDirectory directory;
  struct Case {
    const char* attention;
    double dropout;
    std::int64_t micro_batches;
  };
  for (const auto& [attention, dropout, micro_batches] : {Case{"hedgehog", 0, 1}, {"softmax", 0, 1}, {"hedgehog", 0.2, 3}, {"softmax", 0.2, 1}, {"elu", 0, 1}}) {
    CAPTURE(std::string(attention));
    CAPTURE(dropout);
    CAPTURE(micro_batches);
    GptOptions options = small_gpt(attention);
    options.dropout = dropout;
    if (std::string(attention) == "elu") {
      options.map_weights = options.qk_norm = options.gated_mlp = options.attention_bias = true;
      options.key_heads = 1, options.mlp_width = 24, options.norm_eps = 1e-3, options.rotary_base = 500, options.rotary_scaling = {2, 1, 4, 8};
    }
    Gpt model(options);
    const StepShape shape{3, 12, micro_batches, false};
    TrainingStep step(model, shape, {}, 9);
    auto batch = [&](int i) {
      std::vector<Batch> batches;
      for (std::int64_t k = 0; k < shape.micro_batches; ++k) batches.push_back(counting_batch(3, 12, 11, i + 1 + 2 * k));
      return batches;
    };
    for (int i = 0; i < 3; ++i) step.run(batch(i), 1e-2);
    RunState run;
    run.step = 3;
    const double* slots = step.step_state().as<double>();
    run.step_slots.assign(slots, slots + kStepStateSize);
    const auto tokenizer = story_tokenizer({"<end>", "a", "b", "c", "d", "e", "f", "g", "h", "i", "j"});
    save_checkpoint(directory / "last", model, *tokenizer, run);
    Checkpoint loaded = load_checkpoint(directory / "last", true);
    TrainingStep resumed(*loaded.model, shape, {}, 9);
    std::copy(loaded.run.step_slots.begin(), loaded.run.step_slots.end(), resumed.step_state().as<double>());
    for (int i = 3; i < 6; ++i) {
      const StepResult a = step.run(batch(i), 1e-2), b = resumed.run(batch(i), 1e-2);
      CHECK(a.loss == b.loss);
      CHECK(a.gradient_norm == b.gradient_norm);
    }
    const auto a = weights_of(model), b = weights_of(*loaded.model);
    CHECK(std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
  }
}

HH_ON_BOTH("decoding token by token gives the logits of the whole sequence", decoding_gives_the_logits)
HH_ON_BOTH("packed documents do not see each other in a whole model", documents_are_apart)

TEST_CASE("mimetic start: keys are queries, the output undoes the values, the classifier reads embeddings") {
  GptOptions o = small_gpt("hedgehog");
  o.width = 64;
  o.tied_head = false;
  o.embedding_init = 1;
  o.init = "mimetic";
  Gpt model(o);
  const auto qkv = model.parameters().find("h.1.attn.c_attn.weight").to_vector(), out = model.parameters().find("h.1.attn.c_proj.weight").to_vector();
  const auto table = model.parameters().find("wte.weight").to_vector(), head = model.parameters().find("lm_head.weight").to_vector();
  double trace = 0;
  for (std::size_t i = 0; i < 64; ++i)
    for (std::size_t j = 0; j < 64; ++j) {
      CHECK(qkv[i * 192 + j] == qkv[i * 192 + 64 + j]);
      CHECK(out[j * 64 + i] == doctest::Approx(qkv[i * 192 + 128 + j]));  // sqrt(2 / L) = 1 for two layers
      trace += qkv[i * 192 + 128 + j] * out[j * 64 + i];
    }
  // 4096 squares of deviation 1/8: mean 64, deviation sqrt(2 * 4096) / 64 = 1.4
  CHECK(trace == doctest::Approx(64).epsilon(0.1));
  for (std::size_t i = 0; i < table.size(); ++i) CHECK(head[i] == doctest::Approx(table[i] / 8));
}

TEST_CASE("a GPT refuses options and streams that cannot be") {
  auto refused = [](auto&& change) {
    GptOptions o = small_gpt("hedgehog");
    change(o);
    try {
      parameter_count(o);
    } catch (const ShapeError& e) {
      return std::string(e.what());
    }
    return std::string();
  };
  CHECK(refused([](GptOptions&) {}).empty());
  CHECK(refused([](GptOptions& o) { o.heads = 0; }).find("heads") != std::string::npos);
  CHECK(refused([](GptOptions& o) { o.dropout = -0.1; }).find("dropout must be at least 0 and below 1") != std::string::npos);
  CHECK(refused([](GptOptions& o) { o.embedding_init = 0; }).find("embedding_init must be above 0") != std::string::npos);
  CHECK(refused([](GptOptions& o) { o.norm = "batch"; }).find("choose one of layer, rms") != std::string::npos);
  CHECK(refused([](GptOptions& o) { o.short_convolution = 1; }).find("0, or 2 to 64") != std::string::npos);
  GptOptions o = small_gpt("hedgehog");
  o.positions = "learned";
  CHECK_THROWS_AS(Gpt(o).decoding_state(1, 13), ShapeError);
}

TEST_CASE("a backward after an update through the flat buffers is refused") {
  Parameters parameters(Dtype::f64, 1);
  const Tensor w = parameters.add("w", {3, 2}, Init::normal(1), 1);
  const FlatParameters& flat = parameters.flatten();
  const Tensor loss = sum(square(matmul(constant({1, 3}, {1, 2, 3}, Dtype::f64), w)));
  const Tensor step = step_state();
  adamw(flat.weights, flat.gradients, flat.first_moment, flat.second_moment, flat.spans, gradient_norm(flat.gradients, flat.spans, {}, step), step);
  CHECK(contains(message_of<Error>([&] { backward(loss); }), "overwritten"));
  clear_tape();
}

TEST_CASE("a wide parameter of a bf16 model is its own master: an update below bf16's spacing at 1 is not lost") {
  Parameters parameters(Dtype::bf16, 1);
  const Tensor narrow = parameters.add("narrow", {3, 2}, Init::ones(), 1);
  const Tensor wide = parameters.add("wide", {5}, Init::ones(), 0, true);
  const Tensor last = parameters.add("last", {2}, Init::ones(), 0);
  CHECK(narrow.dtype() == Dtype::bf16);
  CHECK(wide.dtype() == Dtype::f32);
  CHECK(parameters.masters()[1] == wide);
  const FlatParameters& flat = parameters.flatten();
  flat.gradients.copy_from(std::vector<double>(std::size_t(flat.gradients.size()), -1));
  const Tensor step = step_state();
  set_slot(step, kLearningRate, 0x1p-10);  // the first step of AdamW moves each weight by the learning rate
  adamw(flat.weights, flat.gradients, flat.first_moment, flat.second_moment, flat.spans, gradient_norm(flat.gradients, flat.spans, {}, step), step,
        AdamW{}, flat.copies);
  for (double w : wide.to_vector()) CHECK(w == doctest::Approx(1 + 0x1p-10).epsilon(1e-6));
  for (double w : parameters.values(last)) CHECK(w == doctest::Approx(1 + 0x1p-10).epsilon(1e-6));
  for (double w : last.to_vector()) CHECK(w == 1);
  parameters.assign(wide, {1.001, 1, 1, 1, 1});
  parameters.refresh_copies();
  CHECK(wide.to_vector()[0] == double(1.001f));
}

TEST_CASE("a text whose keys and values do not fit the memory is refused with the length that would") {
  GptOptions o = small_gpt("softmax");
  check_decoding_memory(o, 1000);
  const std::string message = message_of<UsageError>([&] { check_decoding_memory(o, std::int64_t(1) << 50); });
  CHECK(contains(message, "a text of 1125899906842624 tokens needs "));
  CHECK(contains(message, "would fit"));
  o.attention = "hedgehog";
  check_decoding_memory(o, std::int64_t(1) << 50);  // one state, however long the text
}

TEST_CASE("predicted FLOPs and memory are those of the recorded step") {
  Gpt model(small_gpt("softmax"));
  const StepShape shape{3, 12, 1, false};
  const Cost predicted = TrainingStep::predict(model.options(), shape, {});
  TrainingStep step(model, shape, {}, 1);
  CHECK(predicted.flops == step.cost().flops);
  CHECK(predicted.arena == step.cost().arena);
  // blocks of up to 64 bytes are rounded up in the one, and not in the other
  CHECK(double(predicted.persistent) == doctest::Approx(double(step.cost().persistent)).epsilon(0.01));
  // 6 FLOPs a weight of matrices and token, attention and the rest besides
  const double products = 6.0 * 36 * (2 * 12 * 16 * 16 + 11 * 16);
  CHECK(predicted.flops > products);
  CHECK(predicted.flops < 1.6 * products);
}

}  // namespace hedgehog

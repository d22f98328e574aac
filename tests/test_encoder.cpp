#include <doctest/doctest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "core/gradcheck.h"
#include "nn/gpt.h"
#include "tests/counters.h"
#include "tests/op_cases.h"
#include "tests/temporary_directory.h"
#include "train/generation.h"
#include "train/checkpoint.h"
#include "train/files.h"

// Encoders: models whose tokens see those behind them.

namespace hedgehog {
namespace {

using namespace test;
using Numbers = std::vector<double>;

GptOptions encoder(const std::string& attention, Dtype dtype = Dtype::f64) {
  GptOptions o;
  o.layers = 2, o.heads = 2, o.width = 12, o.context = 9, o.vocabulary = 11, o.attention = attention, o.dtype = dtype;
  o.embedding_init = 1, o.positions = "learned", o.activation = "gelu_erf", o.bias = true;
  o.causal = false, o.post_norm = true, o.embedding_norm = true, o.token_types = 2, o.pooler = true, o.classes = 3;
  return o;
}

Tensor ids(const Shape& shape, const Numbers& values) { return constant(shape, values, Dtype::i32); }

/// Row b of hidden states (B, T, C), its first `tokens`.
Numbers row_of(const Tensor& hidden, std::int64_t b, std::int64_t tokens) {
  const Numbers all = hidden.to_vector();
  const std::int64_t T = hidden.shape()[1], C = hidden.shape()[2];
  return {all.begin() + b * T * C, all.begin() + (b * T + tokens) * C};
}

/// Biases and gains away from 0 and 1, so that none can be forgotten.
void shake(Gpt& model) {
  std::uint32_t id = 0;
  for (const Tensor& t : model.parameters().all()) {
    Numbers values = model.parameters().values(t);
    const Numbers noise = draw(t.size(), 3, id++);
    for (std::size_t i = 0; i < values.size(); ++i) values[i] += 0.2 * noise[i];
    model.parameters().assign(t, values);
  }
}

RunState unstarted() {
  RunState run;
  run.step_slots.assign(kStepStateSize, 0);
  return run;
}

const Numbers kWords{1, 5, 7, 2, 3, 8, 4, 9, 6};

}  // namespace

TEST_CASE("encoder: every token sees every other, and a post-norm stream ends normed") {
  const no_grad guard;
  for (const char* attention : {"softmax", "hedgehog", "performer"}) {
    CAPTURE(std::string(attention));
    GptOptions o = encoder(attention);
    Gpt model(o);
    Numbers other = kWords;
    other.back() = 0;
    const Tensor one = model.hidden(ids({1, 9}, kWords)), two = model.hidden(ids({1, 9}, other));
    const Numbers first = row_of(one, 0, 1);
    const Numbers changed = difference(one.to_vector(), two.to_vector());
    for (std::ptrdiff_t t = 0; t < 9; ++t) CHECK(largest(Numbers(changed.begin() + t * 12, changed.begin() + (t + 1) * 12)) > 1e-4);
    // gains 1 and biases 0: mean 0 and variance 1
    double mean = 0, square = 0;
    for (double x : first) mean += x / 12, square += x * x / 12;
    CHECK(std::abs(mean) <= 1e-12);
    CHECK(std::abs(square - 1) <= 1e-3);
    o.causal = true, o.post_norm = false, o.pooler = false, o.classes = 0;
    const Gpt causal(o);
    // the shift of a chunk's keys is other, and with it the rounding
    CHECK(largest(difference(row_of(causal.hidden(ids({1, 9}, kWords)), 0, 8), row_of(causal.hidden(ids({1, 9}, other)), 0, 8))) <= 1e-12);
  }
}

TEST_CASE("encoder: padding neither sees nor is seen, in values and gradients") {
  for (const char* attention : {"softmax", "hedgehog", "elu"}) {
    CAPTURE(std::string(attention));
    Gpt model(encoder(attention));
    shake(model);
    const auto run = [&](const Numbers& second, Numbers& gradient) {
      Numbers words = kWords;
      words.insert(words.end(), second.begin(), second.end());
      const Tensor starts = ids({2, 9}, {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 4, 4, 4, 4});
      const Tensor hidden = model.hidden(ids({2, 9}, words), {.document_start = starts});
      backward(sum(square(model.classify(model.pooled(hidden)))));
      gradient = model.parameters().all().front().grad().to_vector();  // of the token table
      for (const Tensor& t : model.parameters().all()) t.grad().copy_from(Numbers(std::size_t(t.size())));
      return row_of(hidden, 1, 4);
    };
    Numbers zeros, others;
    const Numbers found = run({3, 8, 5, 1, 0, 0, 0, 0, 0}, zeros), same = run({3, 8, 5, 1, 9, 2, 7, 7, 4}, others);
    CHECK(largest(difference(found, same)) == 0);
    CHECK(largest(difference(zeros, others)) == 0);
    CHECK(largest(zeros) > 0);
    const no_grad guard;
    // alone: other tiles, other order of sums
    CHECK(largest(difference(found, row_of(model.hidden(ids({1, 4}, {3, 8, 5, 1})), 0, 4))) <= 1e-12);
  }
}

TEST_CASE("encoder: gradients of every parameter, by token types and through pooler and classifier") {
  const Threads one(1);
  for (const char* attention : {"softmax", "hedgehog"}) {
    CAPTURE(std::string(attention));
    Gpt model(encoder(attention));
    shake(model);
    const Tensor words = ids({2, 5}, {1, 5, 7, 2, 3, 8, 4, 9, 6, 0}), types = ids({2, 5}, {0, 0, 1, 1, 1, 0, 1, 0, 1, 0});
    const Tensor starts = ids({2, 5}, {0, 0, 0, 0, 0, 0, 0, 0, 3, 3});
    const auto logits = [&](const Tensors&) {
      return Tensors{model.classify(model.pooled(model.hidden(words, {.document_start = starts, .token_types = types})))};
    };
    const GradcheckReport report = gradcheck(logits, model.parameters().masters(), {.full = 12});
    // what no token of these reads, and biases of keys under softmax, have a gradient of 0
    CHECK(report.rows.size() == model.parameters().masters().size());
    for (const GradcheckRow& row : report.rows) {
      CAPTURE(row.argument);
      CHECK(row.passed);
    }
  }
}

TEST_CASE("encoder: a causal model with token types and a norm of its embeddings decodes as it reads") {
  const no_grad guard;
  GptOptions o = encoder("hedgehog");
  o.causal = true, o.post_norm = false, o.pooler = false, o.classes = 0;
  Gpt model(o);
  shake(model);
  const Numbers all = model.logits(model.hidden(ids({1, 9}, kWords))).to_vector();
  Generator generator(model, 9);
  for (std::size_t t = 0; t < 9; ++t) {
    const auto id = std::int32_t(kWords[t]);
    generator.read(std::span(&id, 1));
    const Numbers found = generator.logits();
    for (std::size_t v = 0; v < found.size(); ++v) CHECK(found[v] == doctest::Approx(all[t * found.size() + v]).epsilon(1e-10));
  }
}

TEST_CASE("encoder: parameters are counted, and a checkpoint gives the same model back") {
  Gpt model(encoder("softmax", Dtype::f32));
  shake(model);
  CHECK(model.parameters().count() == parameter_count(model.options()));
  const TemporaryDirectory d;
  save_checkpoint(d / "model", model, *char_tokenizer("abcdefghijk"), unstarted(), false);
  const Checkpoint loaded = load_checkpoint(d / "model", false);
  const no_grad guard;
  const Tensor words = ids({1, 9}, kWords);
  const auto logits = [&](const Gpt& m) { return m.classify(m.pooled(m.hidden(words))).to_vector(); };
  CHECK(logits(*loaded.model) == logits(model));
}

TEST_CASE("encoder: checkpoints from before there were encoders load as the language models that they are") {
  GptOptions o;
  o.layers = 1, o.width = 8, o.context = 8, o.vocabulary = 11, o.dtype = Dtype::f32;
  Gpt model(o);
  const TemporaryDirectory d;
  save_checkpoint(d / "model", model, *char_tokenizer("abcdefghijk"), unstarted(), false);
  nlohmann::json state = nlohmann::json::parse(read_file(d / "model/state.json"));
  for (const char* name : {"causal", "post_norm", "embedding_norm", "token_types", "pooler", "classes"})
    REQUIRE(state["model"].erase(name) == 1);
  write_file(d / "model/state.json", state.dump());
  const Checkpoint loaded = load_checkpoint(d / "model", false);
  const no_grad guard;
  const Tensor words = ids({1, 8}, {1, 5, 7, 2, 3, 8, 4, 9});
  CHECK(loaded.model->hidden(words).to_vector() == model.hidden(words).to_vector());
}

TEST_CASE("encoder: what it cannot do, and what does not go with it, is refused with a sentence") {
  const Gpt model(encoder("softmax"));
  const auto refused = [](const auto& call, const char* part) {
    const std::string message = message_of<ShapeError>(call);
    CAPTURE(message);
    CHECK(message.find(part) != std::string::npos);
  };
  refused([&] { model.loss(ids({1, 2}, {1, 2}), ids({1, 2}, {2, 3})); }, "an encoder, whose tokens see those behind them");
  refused([&] { model.decoding_state(1, 4); }, "cannot write text");
  refused([&] { model.logits(model.hidden(ids({1, 2}, {1, 2}))); }, "cannot score tokens");
  const auto without = [&](const auto& change, const char* part) {
    GptOptions o = encoder("softmax");
    change(o);
    refused([&] { Gpt{o}; }, part);
    refused([&] { parameter_count(o); }, part);
  };
  without([](GptOptions& o) { o.causal = true; }, "causal must be false");
  without([](GptOptions& o) { o.window = 4; }, "window, short_convolution and decay_gate look back");
  without([](GptOptions& o) { o.short_convolution = 4; }, "look back");
  without([](GptOptions& o) { o.attention = "hedgehog", o.decay_gate = true; }, "look back");
  without([](GptOptions& o) { o.tied_head = false; }, "tied_head must be true");
  without([](GptOptions& o) { o.pooler = false; }, "pooler must be true");
  without([](GptOptions& o) { o.classes = 1; }, "at least 2");
  GptOptions plain = encoder("softmax");
  plain.pooler = false, plain.classes = 0, plain.token_types = 0;
  const Gpt bare(plain);
  const Tensor hidden = bare.hidden(ids({1, 2}, {1, 2}));
  refused([&] { bare.pooled(hidden); }, "no pooler");
  refused([&] { bare.classify(hidden); }, "no classifier");
  refused([&] { bare.hidden(ids({1, 2}, {1, 2}), {.token_types = ids({1, 2}, {0, 1})}); }, "token_types is 0");
}

}  // namespace hedgehog

#include "train/step_programs.h"

#include <fmt/format.h>

#include <cmath>

#include "core/error.h"
#include "core/nearest_name.h"
#include "core/random.h"
#include "nn/hedgehog.h"
#include "train/checkpoint.h"
#include "train/expression.h"

namespace hedgehog {
namespace {

/// Normal draws with two decimals, so that they can be read and typed.
std::vector<double> draws(std::int64_t count, std::uint32_t id, double scale) {
  std::vector<double> values;
  for (std::int64_t i = 0; i < count; ++i) values.push_back(std::round(100 * scale * Random{1, id, 0}.normal(std::uint64_t(i))) / 100);
  return values;
}

Tensor drawn(Shape shape, const char* name, std::uint32_t id, double scale, Dtype dtype) {
  const Tensor x = parameter(shape, name, dtype);
  x.copy_from(draws(x.size(), id, scale));
  return x;
}

Program with_backward(const std::function<Tensor()>& loss) {
  return record([&] {
    const Tensor l = named(loss(), "L");
    backward(l);
    return Tensors{l};
  });
}

Program scalar(Dtype dtype) { return expression_program("L = p^2; p = x*y + 3; x = 2; y = -1", dtype); }

Program paths(Dtype dtype) { return expression_program("L = a*b; a = x*y; b = x + y; x = 2; y = 3", dtype); }

Program matrix(Dtype dtype) {
  const Tensor x = constant({3, 2}, {1, 2, 3, 4, -1, 0.5}, dtype, "x"), w = parameter({2, 2}, "w", dtype), target = constant({3, 2}, {1, 0, 0, 1, 1, 1}, dtype, "target");
  w.copy_from({0.5, -0.3, 0.2, 0.8});
  return with_backward([&] { return mean(square(named(matmul(x, w), "y") - target)); });
}

Program softmax_example(Dtype dtype) {
  const Tensor x = parameter({2, 4}, "x", dtype), target = constant({2}, {2, 0}, Dtype::i32, "target");
  x.copy_from({1, 2, 0.5, -1, 0, 0.3, -0.7, 2});
  return with_backward([&] {
    const Tensor p = named(softmax(x), "p");
    return scale(sum(log(gather_last(p, target))), -0.5);
  });
}

Program norm(Dtype dtype) {
  const Tensor x = drawn({2, 4}, "x", 1, 2, dtype), weight = parameter({4}, "weight", dtype), bias = parameter({4}, "bias", dtype), c = constant({2, 4}, draws(8, 2, 1), dtype, "c");
  weight.copy_from({1, 0.5, 2, 1});
  return with_backward([&] { return sum(named(layer_norm(x, weight, bias), "y") * c); });
}

Program linear_attention_example(Dtype dtype) {
  const Shape shape{1, 4, 1, 2};
  const Tensor q = drawn(shape, "q", 1, 0.8, dtype), k = drawn(shape, "k", 2, 0.8, dtype), v = drawn(shape, "v", 3, 1, dtype), c = constant(shape, draws(8, 4, 1), dtype, "c");
  return with_backward([&] { return sum(named(linear_attention(q, k, v, {.map = "exp"}).o, "o") * c); });
}

/// o = (A v) / z from features, the normaliser z with its gradient or, as many write it, without.
Program normaliser(Dtype dtype, bool mistake) {
  const Tensor q = parameter({4, 2}, "q", dtype), k = parameter({4, 2}, "k", dtype), v = drawn({4, 2}, "v", 3, 1, dtype), c = constant({4, 2}, draws(8, 4, 1), dtype, "c");
  q.copy_from(draws(8, 1, 0.8));
  k.copy_from(draws(8, 2, 0.8));
  return with_backward([&] {
    const Tensor A = named(causal_mask(matmul(exp(q), exp(k), false, true), 0), "A");
    const Tensor z = named(sum(A, -1, true), "z");
    return sum(named(matmul(A, v) / (mistake ? detach(z) : z), "o") * c);
  });
}

/// phi = [exp(u), exp(-u)], u = x W. The mistake: the gradient of the second half is forgotten.
Program map_example(Dtype dtype, bool mistake) {
  const Tensor x = parameter({3, 2}, "x", dtype), w = parameter({2, 2}, "w", dtype), c = constant({3, 2}, draws(6, 2, 1), dtype, "c_plus"), d = constant({3, 2}, draws(6, 3, 1), dtype, "c_minus");
  x.copy_from(draws(6, 1, 1));
  w.copy_from({1, 0, 0, 1});
  return with_backward([&] {
    const Tensor u = named(matmul(x, w), "u");
    const Tensor plus = named(exp(u), "phi_plus"), minus = named(exp(negate(mistake ? detach(u) : u)), "phi_minus");
    return sum(plus * c) + sum(minus * d);
  });
}

GptOptions small_model(Dtype dtype) {
  GptOptions o;
  o.layers = 1, o.heads = 2, o.width = 8, o.context = 6, o.vocabulary = 5, o.map_init_gain = 2, o.embedding_init = 0.5, o.dtype = dtype;
  return o;
}

/// "hedge" by letters, twice over: the loss of the next letter.
Tensors letters() {
  return {constant({1, 6}, {0, 1, 2, 3, 1, 0}, Dtype::i32, "tokens"), constant({1, 6}, {1, 2, 3, 1, 0, 1}, Dtype::i32, "targets")};
}

Program block(Dtype dtype) {
  const Gpt model(small_model(dtype));
  const Tensors ids = letters();
  return with_backward([&] { return model.loss(ids[0], ids[1]).loss; });
}

Program training_step_example(Dtype dtype) {
  Gpt model(small_model(dtype));
  const Tensors ids = letters();
  const FlatParameters& flat = model.parameters().flatten();
  const Tensor step = step_state();
  set_slot(step, kLearningRate, 0.01);
  return record([&] {
    const Tensor loss = named(model.loss(ids[0], ids[1]).loss, "L");
    backward(loss);
    const Scope scope("update");
    const Tensor norms = gradient_norm(flat.gradients, flat.spans, loss, step);
    adamw(flat.weights, flat.gradients, flat.first_moment, flat.second_moment, flat.spans, norms, step, {.weight_decay = 0.1, .clip = 1});
    return Tensors{loss};
  });
}

}  // namespace

const std::vector<StepExample>& step_examples() {
  static const std::vector<StepExample> all = {
      {"scalar", "the chain rule on two numbers: L = (x y + 3)^2", scalar},
      {"paths", "two numbers that reach the loss by two paths each", paths},
      {"matmul", "a matrix product and a squared error", matrix},
      {"softmax", "softmax and the log of the right answer", softmax_example},
      {"layernorm", "layer normalisation", norm},
      {"attention", "linear attention, causal, features exp(x)", linear_attention_example},
      {"normaliser", "linear attention from simple ops, with its normaliser", [](Dtype t) { return normaliser(t, false); }},
      {"normaliser-mistake", "the same linear attention, the gradient of its normaliser forgotten",
       [](Dtype t) { return normaliser(t, true); }},
      {"map", "the Hedgehog feature map: exp(x W) and exp(-x W)", [](Dtype t) { return map_example(t, false); }},
      {"map-mistake", "the Hedgehog feature map, the gradient of its negated half forgotten", [](Dtype t) { return map_example(t, true); }},
      {"hedgehog", "a Transformer of one block with Hedgehog attention on six letters", block},
      {"training", "that Transformer of one block, and a step of AdamW", training_step_example}};
  return all;
}

const StepExample& find_step_example(const std::string& name) {
  std::vector<std::string> names;
  for (const StepExample& e : step_examples()) {
    if (e.name == name) return e;
    names.push_back(e.name);
  }
  const std::string nearest = nearest_name(name, names);
  std::string all;
  for (const std::string& n : names) all += (all.empty() ? "" : ", ") + n;
  throw UsageError(fmt::format("no example is called '{}'; {}", name, nearest.empty() ? "there are " + all : "did you mean '" + nearest + "'?"));
}

Program checkpoint_program(const std::string& checkpoint, const std::string& text, Dtype dtype) {
  const std::filesystem::path directory = find_checkpoint(checkpoint);
  const Checkpoint loaded = load_checkpoint(directory, false);
  const std::vector<std::int32_t> ids = loaded.tokenizer->encode(text);
  const std::int64_t count = std::int64_t(ids.size()) - 1;
  if (count < 1) throw UsageError("--text needs at least two tokens: each is predicted from those before it");
  GptOptions options = loaded.model->options();
  if (count > options.context)
    throw UsageError(fmt::format("--text has {} tokens, but the model's context is {}; give a shorter one", ids.size(), options.context));
  options.dtype = dtype;
  options.dropout = 0;
  Gpt model(options);
  for (const Tensor& p : loaded.model->parameters().all()) model.parameters().assign(model.parameters().find(p.name()), loaded.model->parameters().values(p));
  const auto row = [&](std::size_t from, const char* name) {
    return constant({1, count}, {ids.begin() + std::ptrdiff_t(from), ids.begin() + std::ptrdiff_t(from) + count}, Dtype::i32, name);
  };
  const Tensor tokens = row(0, "tokens"), targets = row(1, "targets");
  return with_backward([&] { return model.loss(tokens, targets).loss; });
}

}  // namespace hedgehog

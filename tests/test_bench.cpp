#include <doctest/doctest.h>

#include "core/account.h"
#include "core/executor.h"
#include "nn/recompute.h"
#include "ops/linear.h"
#include "ops/matmul.h"
#include "ops/mlp.h"
#include "tests/device_cases.h"
#include "tests/op_cases.h"
#include "tests/shape_device.h"
#include "train/bench_attention.h"
#include "train/bench_step.h"
#include "train/step_products.h"
#include "train/training_step.h"

using namespace hedgehog;
using namespace hedgehog::test;

namespace {

using Counts = std::map<ProductShape, double>;

std::int64_t bytes_of(const Tensor& x) { return x.size() * size_of(x.dtype()); }

/// What a program returns.
std::vector<std::vector<double>> results_of(Program program) {
  Executor run(std::move(program), {.reuse = false, .poison = true});
  run.run();
  std::vector<std::vector<double>> all;
  for (std::size_t i = 0; i < run.program().outputs.size(); ++i) all.push_back(run.output(i).to_vector());
  return all;
}

}  // namespace

TEST_CASE("bench: the products of a program are those of its layers, forward and backward") {
  const Tensor x = input({6, 3}, "x"), w = parameter({3, 5}, "w"), bias = parameter({5}, "bias");
  const Counts linear_alone = products_of(record([&] {
    const Tensor y = linear(x, w, bias);
    backward(y);
    return Tensors{y};
  }));
  // data wants no gradient, the weight does
  CHECK(linear_alone == Counts{{{.m = 6, .n = 5, .k = 3}, 1}, {{.m = 3, .n = 5, .k = 6, .transpose_a = true, .into_weight_gradient = true}, 1}});

  const Tensor p = parameter({6, 3}, "p"), w1 = parameter({3, 7}, "w1"), w2 = parameter({7, 4}, "w2");
  const Counts two_layers = products_of(record([&] {
    const Tensor y = mlp(p, w1, w2);
    backward(y);
    return Tensors{y};
  }));
  CHECK(two_layers == Counts{{{.m = 6, .n = 7, .k = 3}, 1},
                             {{.m = 6, .n = 4, .k = 7}, 1},
                             {{.m = 6, .n = 7, .k = 4, .transpose_b = true}, 1},
                             {{.m = 6, .n = 3, .k = 7, .transpose_b = true}, 1},
                             {{.m = 7, .n = 4, .k = 6, .transpose_a = true, .into_weight_gradient = true}, 1},
                             {{.m = 3, .n = 7, .k = 6, .transpose_a = true, .into_weight_gradient = true}, 1}});
}

TEST_CASE("bench: a repeat of mlp for its saved tensors alone counts one product") {
  const Tensor x = input({64, 8}, "x"), w1 = parameter({8, 32}, "w1"), w2 = parameter({32, 8}, "w2");
  const Program whole = record([&] {
    Tensor y = x;
    for (int i = 0; i < 4; ++i) y = mlp(y, w1, w2);
    backward(y);
    return Tensors{y};
  });
  const Program lean = recompute(whole, 0);
  double alone = 0, full = 0;
  for (const Entry& e : lean.entries)
    if (e.repeated) (e.outputs[0] ? full : alone) += 1;
  REQUIRE(alone > 0);
  CHECK(flops_of(products_of(lean)) - flops_of(products_of(whole)) == (alone + 2 * full) * 2.0 * 64 * 8 * 32);
}

TEST_CASE("bench: the products of matmul have the FLOPs of its account, however its factors are stored") {
  for (const bool a : {false, true})
    for (const bool b : {false, true})
      for (const bool many : {false, true}) {
        CAPTURE(a);
        CAPTURE(b);
        CAPTURE(many);
        const Shape x = a ? Shape{2, 3, 6} : Shape{2, 6, 3}, w = b ? Shape{5, 3} : Shape{3, 5};
        const Tensor left = parameter(x, "left"), right = parameter(many ? Shape{2, w[0], w[1]} : w, "right");
        const Program program = record([&] {
          const Tensor y = matmul(left, right, a, b);
          backward(y);
          return Tensors{y};
        });
        const auto by_op = account(program).by_op;
        CHECK(flops_of(products_of(program)) == by_op.at("matmul").flops + by_op.at("matmul backward").flops);
      }
}

TEST_CASE("bench: a training step's products are six times parameters times tokens") {
  GptOptions o;
  o.layers = 3, o.heads = 2, o.width = 16, o.context = 8, o.vocabulary = 128;
  Gpt model(o);
  const std::int64_t rows = 4, tokens = rows * o.context;
  TrainingStep step(model, {rows, o.context, 1, false}, {}, 1);
  const double weights = double(o.layers * 12 * o.width * o.width + 128 * o.width);
  const Counts products = products_of(step.gradient_executor().program());
  CHECK(flops_of(products) == doctest::Approx(6 * weights * double(tokens)).epsilon(1e-12));
  // 3 layers of one shape are one product, made three times
  CHECK(products.at({.m = tokens, .n = 48, .k = 16}) == 3);
}

TEST_CASE("bench: a product is timed alone, into a weight's gradient too, and made as often as it is counted") {
  const ProductShape plain{.m = 48, .n = 32, .k = 64, .transpose_b = true};
  const ProductShape gradient{.m = 48, .n = 32, .k = 64, .transpose_a = true, .into_weight_gradient = true};
  CHECK(seconds_of({{plain, 1}, {gradient, 1}}) > 0);
  // far more than noise can hide
  CHECK(seconds_of({{gradient, 1e6}}) > 100 * seconds_of({{gradient, 1}}));
  CHECK(flops_of({{plain, 3}, {gradient, 2}}) == 5 * 2.0 * 48 * 32 * 64);
}

TEST_CASE("bench: a GPU's steps are GPT-2's at four lengths, and the longest rows only where they fit") {
  const OnDevice guard(shape_device());
  std::map<std::int64_t, int> hedgehog;
  for (const StepCase& c : step_cases(Config("bench"))) {
    CAPTURE(c.name);
    CHECK(c.model.dtype == Dtype::bf16);
    CHECK(c.model.dropout == 0);
    // a table of positions as long as the row would be another model
    CHECK((c.model.positions == "learned") == (c.model.context <= 1024));
    CHECK(c.decodes == (c.model.context <= 1024));
    CHECK(c.if_it_fits == (c.rows * c.model.context > 32768));
    CHECK(TrainingStep::predict(c.model, {c.rows, c.model.context, 1, false}, {}).flops > 0);
    if (c.model.width == 768 && c.model.attention == "hedgehog") ++hedgehog[c.model.context];
  }
  CHECK(hedgehog == std::map<std::int64_t, int>{{1024, 1}, {4096, 2}, {16384, 1}, {32768, 2}, {1048576, 1}});
}

TEST_CASE("bench: attention is timed alone, with the results and gradients that the model would get") {
  std::vector<AttentionCase> cases{{.attention = "hedgehog", .states = true},
                                   {.attention = "hedgehog", .documents = true},
                                   {.attention = "elu", .causal = false},
                                   {.attention = "softmax"}};
  for (AttentionCase& c : cases) {
    CAPTURE(c.attention);
    c.rows = 2, c.time = 37, c.heads = 2, c.head_size = 5;
    const Program forward = attention_program(c, Dtype::f32, false), both = attention_program(c, Dtype::f32, true);
    const std::string op = c.attention == "softmax" ? "softmax_attention" : "linear_attention";
    int kernels = 0;
    for (const Entry& e : both.entries) {
      if (e.op->views) continue;
      ++kernels;
      CHECK(e.op->name == op);
      CHECK(e.backward == (kernels == 2));
    }
    CHECK(kernels == 2);
    // the backward entry writes q's, k's and v's gradients side by side into one packed tensor
    const Entry& back = both.entries.back();
    for (int i : {0, 1, 2}) {
      CHECK(back.dx[std::size_t(i)].root() == back.dx[0].root());
      CHECK(back.dx[std::size_t(i)].stride() == 3 * 10);
      CHECK(back.modes[std::size_t(i)] == Mode::write);
    }
    CHECK(bool(back.dx[0]));
    CHECK(back.dy[0].role() == Role::input);
    if (c.states) CHECK((back.dx[9] && back.dy[1].role() == Role::input));
    if (c.attention == "hedgehog") CHECK((back.dx[3] && back.dx[4]));
    // forward alone saves nothing and gives the same
    std::int64_t saved = 0;
    for (const Entry& e : forward.entries) CHECK(e.saved.empty());
    for (const Entry& e : both.entries)
      for (const Tensor& x : e.backward ? Tensors{} : e.saved) saved += bytes_of(x);
    CHECK(saved == 2 * 37 * 2 * 4);
    CHECK(extra_memory(both) == saved + std::max(both.entries[both.entries.size() - 2].workspace, back.workspace));
    CHECK(results_of(forward) == results_of(both));
  }
}

TEST_CASE("bench: attention's cases hold B T H D fixed, and --attention picks among them") {
  Config config("bench");
  std::int64_t size = 0;
  for (const AttentionCase& c : attention_cases(config)) {
    if (!size) size = c.rows * c.time * c.heads * c.head_size;
    CHECK(c.rows * c.time * c.heads * c.head_size == size);
  }
  config.set("attention", "elu", OptionSource::kFlag);
  const auto chosen = attention_cases(config);
  CHECK(!chosen.empty());
  for (const AttentionCase& c : chosen) CHECK(c.attention == "elu");
}

TEST_CASE("bench: a step that distils maps has the figures of a training step, and attentions without maps have none") {
  GptOptions o;
  o.layers = 1, o.heads = 2, o.width = 16, o.context = 16, o.vocabulary = 20, o.attention = "hedgehog-joint";
  const auto step = bench_distillation({.name = "small", .model = o, .rows = 2, .memory = {}}, {1e9, 1e9});
  CHECK(step["step"] == "distillation");
  CHECK(step["attention"] == "hedgehog-joint");
  CHECK(step["tokens_per_second"] == doctest::Approx(32e3 / step["ms"].get<double>()));
  const std::string ops = step["ops"].dump();
  // the teacher's pass, the comparison, and back to the maps alone
  for (const char* op : {"softmax_attention", "attention_cross_entropy backward", "feature_map backward"}) {
    const std::string name = op;
    CAPTURE(name);
    CHECK(ops.find(name) != std::string::npos);
  }
  CHECK(ops.find("softmax_attention backward") == std::string::npos);
  for (const char* attention : {"softmax", "elu", "hedgehog"}) {
    Config config("bench");
    config.parse(std::vector<std::string>{std::string("--attention=") + attention});
    CHECK(distillation_cases(config).empty() == (std::string(attention) != "hedgehog"));
  }
  for (const char* option : {"--decay_gate", "--window=8"}) {
    Config config("bench");
    config.parse(std::vector<std::string>{"--width=8", "--heads=2", option});
    CHECK(distillation_cases(config).empty());
  }
  Config given("bench");
  given.parse(std::vector<std::string>{"--width=8", "--heads=2", "--batch=3"});
  REQUIRE(distillation_cases(given).size() == 1);
  CHECK(distillation_cases(given)[0].model.width == 8);
  CHECK(distillation_cases(given)[0].rows == 3);
}

TEST_SUITE("device") {
  TEST_CASE("bench: products, attention and a step are timed by the GPU's own clock") {
    on_cuda([] {
      const ProductShape plain{.m = 512, .n = 256, .k = 256, .dtype = Dtype::bf16};
      const ProductShape gradient{.m = 256, .n = 256, .k = 512, .transpose_a = true, .into_weight_gradient = true, .dtype = Dtype::bf16};
      CHECK(seconds_of({{plain, 1}, {gradient, 1}}) > 0);
      for (const char* attention : {"hedgehog", "relu", "softmax"}) {
        CAPTURE(attention);
        const auto row = bench_attention({.attention = attention, .rows = 2, .time = 256, .heads = 2, .head_size = 64}, Dtype::bf16);
        CHECK(row["forward"]["fastest_ms"] > 0);
        CHECK(row["forward_and_backward"]["fastest_ms"] > row["forward"]["fastest_ms"]);
        CHECK(row["extra_memory"] >= 2 * 256 * 2 * 4);
      }
      GptOptions o;
      o.layers = 2, o.heads = 2, o.width = 128, o.context = 128, o.vocabulary = 128, o.dtype = Dtype::bf16;
      const auto step = bench_step({.name = "small", .model = o, .rows = 4, .memory = {}}, {measured_peak_flops(0.1), measured_copy_bandwidth()});
      CHECK(step["products_alone_ms"] > 0);
      CHECK(step["step_over_products"] == doctest::Approx(step["ms"].get<double>() / step["products_alone_ms"].get<double>()));
    });
  }
}

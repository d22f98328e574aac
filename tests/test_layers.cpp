#include <doctest/doctest.h>

#if __has_include(<omp.h>)
#include <omp.h>
#endif

#include <cmath>
#include <limits>

#include "core/error.h"
#include "core/random.h"
#include "core/tape.h"
#include "op_cases.h"
#include "ops/ops.h"

using namespace hedgehog;
using namespace hedgehog::test;
using doctest::Approx;

namespace {

constexpr Dtype f64 = Dtype::f64;

Tensor filled(Shape shape, std::uint32_t id, Dtype dtype = f64, const char* name = "x") {
  Tensor t = parameter(shape, name, dtype);
  t.copy_from(draw(t.size(), 17, id));
  return t;
}

Tensor whole_numbers(Shape shape, int below, std::uint32_t id) {
  const Random random{5, id, 0};
  std::vector<double> v(std::size_t(shape.size()));
  for (std::size_t i = 0; i < v.size(); ++i) v[i] = random.below(i, std::uint32_t(below));
  return constant(shape, v, Dtype::i32);
}

template <class F>
std::string message_of(F&& f) {
  try {
    f();
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

void check_close(const std::vector<double>& a, const std::vector<double>& b, double tolerance) {
  REQUIRE(a.size() == b.size());
  for (std::size_t i = 0; i < a.size(); ++i) {
    CAPTURE(i);
    CHECK(std::abs(a[i] - b[i]) <= tolerance);
  }
}

/// Three parameters of a small training: spans of 2, 1 and 1 elements in buffers of 5.
struct Training {
  Tensor w = state({5}, f64, "w"), g = state({5}, f64, "g"), m = state({5}, f64, "m"), v = state({5}, f64, "v");
  Tensor spans = constant({3, 5}, {0, 2, 1, 1, 0, 2, 1, 0.5, 0, 0, 4, 1, 1, 1, 1}, f64, "spans");
  Tensor step = step_state(7);
  Training() {
    w.copy_from({1, 1, 1, 9, 1});
    step.as<double>()[kLearningRate] = 0.1;
  }
  Tensor update(const std::vector<double>& gradients, const AdamW& options, const Tensor& loss = {}) {
    g.copy_from(gradients);
    const Tensor norms = gradient_norm(g, spans, loss, step);
    adamw(w, g, m, v, spans, norms, step, options);
    return norms;
  }
};

}  // namespace

TEST_CASE("linear: activations at known points, bias inside and addend outside") {
  const Tensor x = constant({5, 1}, {-3, -1, 0.5, 1, 2}, f64), one = constant({1, 1}, {1}, f64);
  // x Phi(x) with Phi by tanh; x / (1 + e^-x)
  const std::vector<double> gelus{-0.0036373920817729943, -0.15880800939172324, 0.34571400982514394, 0.8411919906082768, 1.954597694087775};
  const std::vector<double> silus{-0.14227761953270035, -0.2689414213699951, 0.3112296656009273, 0.7310585786300049, 1.7615941559557646};
  check_close(linear(x, one, {}, {}, "gelu").to_vector(), gelus, 1e-15);
  check_close(linear(x, one, {}, {}, "silu").to_vector(), silus, 1e-15);
  check_close(linear(x, one, {}, {}, "relu").to_vector(), {0, 0, 0.5, 1, 2}, 0);
  const Tensor bias = constant({1}, {1}, f64), addend = constant({5, 1}, {10, 20, 30, 40, 50}, f64);
  check_close(linear(x, one, bias, addend, "relu").to_vector(), {10, 20, 31.5, 42, 53}, 0);
  check_close(linear(x, one, bias, addend).to_vector(), {8, 20, 31.5, 42, 53}, 0);
}

TEST_CASE("linear: errors are sentences that name the argument") {
  const Tensor x = input({4, 3}, "x"), weight = input({2, 3}, "weight");
  CHECK(message_of([&] { linear(x, weight); }) == "[linear] weight must be (K, N) with K = 3 to match x (4, 3), but is (2, 3)");
  const Tensor right = input({3, 2}, "weight"), bias = input({3}, "bias");
  CHECK(message_of([&] { linear(x, right, bias); }) == "[linear] bias must have shape (N) = (2) to match weight (3, 2), but has (3)");
  CHECK(message_of([&] { linear(x, right, {}, {}, "selu"); }) == "[linear] activation must be none, gelu, gelu_erf, silu or relu, but is 'selu'");
}

TEST_CASE("norm: a known row") {
  const Tensor x = constant({1, 4}, {1, 2, 3, 4}, f64);
  const Tensor weight = constant({4}, {1, 1, 2, 2}, f64), bias = constant({4}, {0, 0, 0, 1}, f64);
  // mean 2.5, variance 1.25
  const double r = 1 / std::sqrt(1.25 + 1e-5);
  check_close(layer_norm(x, weight, bias).to_vector(), {-1.5 * r, -0.5 * r, r, 3 * r + 1}, 1e-15);
  const double q = 1 / std::sqrt(7.5 + 0.5);
  check_close(rms_norm(x, weight, 0.5).to_vector(), {q, 2 * q, 6 * q, 8 * q}, 1e-15);
  const Tensor half = constant({1, 4}, {0.5, 1, 1.5, 2}, f64);
  const NormedSum both = add_layer_norm(half, half, weight, bias);
  CHECK(both.sum.to_vector() == x.to_vector());
  CHECK(both.y.to_vector() == layer_norm(x, weight, bias).to_vector());
  const NormedSum rms = add_rms_norm(half, half, weight, 0.5);
  CHECK(rms.y.to_vector() == rms_norm(x, weight, 0.5).to_vector());
  CHECK(message_of([&] { layer_norm(x, constant({3}, {1, 1, 1}, f64)); }) ==
        "[layer_norm] weight must have shape (C) = (4) to match x (1, 4), but has (3)");
  CHECK(message_of([&] { layer_norm(x, weight, bias, 0); }) == "[layer_norm] eps must be above 0, but is 0; 1e-5 is usual");
}

TEST_CASE("norm: a large common offset is harmless in f32") {
  // the two-pass variance sees deviations, not squares of the offset
  std::vector<double> row(64);
  for (int i = 0; i < 64; ++i) row[std::size_t(i)] = 1000 + (i % 2 ? 1 : -1);
  const Tensor ones = constant({64}, std::vector<double>(64, 1.0));
  for (double y : layer_norm(constant({1, 64}, row), ones).to_vector()) CHECK(std::abs(y) == Approx(1).epsilon(1e-5));
}

TEST_CASE("embedding: rows of the table plus positions, and an id outside is named") {
  const Tensor table = constant({3, 2}, {0, 1, 10, 11, 20, 21}, f64);
  const Tensor positions = constant({4, 2}, {0, 0, 0.1, 0.1, 0.2, 0.2, 0.3, 0.3}, f64);
  const Tensor tokens = constant({2, 2}, {2, 0, 1, 1}, Dtype::i32);
  CHECK(embedding(tokens, table).to_vector() == std::vector<double>{20, 21, 0, 1, 10, 11, 10, 11});
  check_close(embedding(tokens, table, positions, 2).to_vector(), {20.2, 21.2, 0.3, 1.3, 10.2, 11.2, 10.3, 11.3}, 1e-14);
  const Tensor wrong = constant({2, 2}, {2, 0, 1, 3}, Dtype::i32);
  CHECK(message_of([&] { embedding(wrong, table); }) ==
        "[embedding] tokens holds 3 at position (1, 1), but must be at least 0 and below V = 3; check the tokenizer and the data");
  CHECK(message_of([&] { embedding(tokens, table, positions, 3); }) ==
        "[embedding] positions has P = 4 rows, but T + offset = 2 + 3 are needed; use shorter rows of tokens");
}

TEST_CASE("rotary: products depend on the distance of positions only") {
  for (const char* layout : {"half", "pairs"}) {
    CAPTURE(layout);
    const Tensor q = filled({1, 1, 1, 8}, 1), k = filled({1, 1, 1, 8}, 2);
    auto product = [&](int at_q, int at_k) {
      const auto a = rotary(q, 100, layout, constant({1}, {double(at_q)}, Dtype::i32)).to_vector();
      const auto b = rotary(k, 100, layout, constant({1}, {double(at_k)}, Dtype::i32)).to_vector();
      double sum = 0;
      for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
      return sum;
    };
    CHECK(product(5, 2) == Approx(product(1003, 1000)).epsilon(1e-11));
    CHECK(product(5, 2) == Approx(product(3, 0)).epsilon(1e-13));
    CHECK(std::abs(product(5, 2) - product(5, 3)) > 1e-3);
  }
  clear_tape();
}

TEST_CASE("rotary: a known angle, both layouts, and odd sizes refused") {
  const Tensor x = constant({1, 2, 1, 4}, {1, 2, 3, 4, 1, 2, 3, 4}, f64);
  const double c0 = std::cos(1), s0 = std::sin(1), c1 = std::cos(0.1), s1 = std::sin(0.1);
  check_close(rotary(x, 100).to_vector(), {1, 2, 3, 4, c0 - 3 * s0, 2 * c1 - 4 * s1, 3 * c0 + s0, 4 * c1 + 2 * s1}, 1e-15);
  check_close(rotary(x, 100, "pairs").to_vector(), {1, 2, 3, 4, c0 - 2 * s0, 2 * c0 + s0, 3 * c1 - 4 * s1, 4 * c1 + 3 * s1}, 1e-15);
  CHECK(message_of([&] { rotary(input({1, 2, 1, 3}, "x"), input({2, 3}, "table")); }) ==
        "[rotary] D must be even, since features turn in pairs, but x is (1, 2, 1, 3); choose another head size");
  // angles are reduced in f64: at position 10^6 an f32 angle would be off by 0.03
  const Tensor far = rotary_table(1, 2, 10000, constant({1}, {1000000}, Dtype::i32));
  check_close(far.to_vector(), {std::cos(1e6), std::sin(1e6)}, 1e-7);
}

TEST_CASE("short convolution: by hand, inside documents, token by token") {
  const Tensor x = constant({1, 4, 2}, {1, 10, 2, 20, 3, 30, 4, 40}, f64);
  const Tensor weight = constant({3, 2}, {1, 1, 0.5, 0, 0.25, -1}, f64);
  check_close(short_convolution(x, weight).to_vector(), {1, 10, 2.5, 20, 4.25, 20, 6, 20}, 1e-15);
  const Tensor start = constant({1, 4}, {0, 0, 2, 2}, Dtype::i32);
  check_close(short_convolution(x, weight, start).to_vector(), {1, 10, 2.5, 20, 3, 30, 5.5, 40}, 1e-15);
  const Tensor memory = state({1, 2, 2}, f64, "memory");
  const Tensors tokens = split(x, {1, 2, 1}, 1);
  std::vector<double> rows;
  for (const Tensor& token : tokens)
    for (double y : short_convolution_step(token, weight, memory).to_vector()) rows.push_back(y);
  check_close(rows, {1, 10, 2.5, 20, 4.25, 20, 6, 20}, 1e-15);
  CHECK(memory.to_vector() == std::vector<double>{3, 30, 4, 40});
  CHECK(message_of([&] { short_convolution(x, constant({3, 3}, std::vector<double>(9), f64)); }) ==
        "[short_convolution] weight must have shape (K, C) = (any, 2) to match x (1, 4, 2), but has (3, 3)");
  CHECK(message_of([&] { short_convolution_step(x, weight, state({1, 3, 2}, f64, "memory")); }) ==
        "[short_convolution_step] state must have shape (B, K - 1, C) = (1, 2, 2) to match weight (3, 2), but has (1, 3, 2)");
}

TEST_CASE("cross entropy: uniform logits give ln V, ignored targets nothing") {
  const Tensor logits = parameter({3, 5}, "logits", f64);
  logits.fill(2.5);
  const Tensor targets = constant({3}, {4, -1, 0}, Dtype::i32);
  const TokenLosses out = cross_entropy(logits, targets);
  CHECK(out.loss.item() == Approx(std::log(5.0)).epsilon(1e-15));
  check_close(out.losses.to_vector(), {std::log(5.0), 0, std::log(5.0)}, 1e-15);
  CHECK_FALSE(out.losses.wants_gradient());
  backward(out.loss);
  check_close(logits.grad().to_vector(), {0.1, 0.1, 0.1, 0.1, -0.4, 0, 0, 0, 0, 0, -0.4, 0.1, 0.1, 0.1, 0.1}, 1e-15);

  const TokenLosses none = cross_entropy(logits, constant({3}, {-1, -1, -1}, Dtype::i32));
  CHECK(none.loss.item() == 0);
  logits.grad().fill(0);
  backward(none.loss);
  CHECK(largest(logits.grad().to_vector()) == 0);

  // padding counts neither in the sum nor as a target
  CHECK(cross_entropy(logits, constant({3}, {0, 1, 2}, Dtype::i32), {}, 3).loss.item() == Approx(std::log(3.0)).epsilon(1e-15));
  CHECK(message_of([&] { cross_entropy(logits, constant({3}, {0, 3, 2}, Dtype::i32), {}, 3); }) ==
        "[cross_entropy] targets holds 3 at position (1), but must be at least -1 and below the number of classes = 3; "
        "check the tokenizer and the data");
  CHECK(message_of([&] { cross_entropy(logits, constant({3}, {0, 2, -2}, Dtype::i32)); }).find("holds -2 at position (2)") !=
        std::string::npos);
}

TEST_CASE("cross entropy: logits of any size are safe") {
  const Tensor logits = constant({2, 3}, {1e4, -1e4, 0, -3e38, -3e38, -3e38});
  const TokenLosses out = cross_entropy(logits, constant({2}, {0, 1}, Dtype::i32));
  CHECK(out.losses.to_vector()[0] == 0);
  CHECK(out.losses.to_vector()[1] == Approx(std::log(3.0)).epsilon(1e-6));
}

TEST_CASE("classifier cross entropy: equals the product and the loss apart, over several tiles and groups") {
  struct Size {
    std::int64_t rows, columns, classes;
  };
  // groups with small weights; one group of two tiles
  for (const Size s : {Size{601, 5, 11}, Size{700, 65, 1030}}) {
    CAPTURE(s.rows);
    const Tensor x = filled({s.rows, s.columns}, 3), weight = filled({s.classes, s.columns}, 4);
    weight.copy_from([&] {
      auto v = weight.to_vector();
      for (double& e : v) e *= 0.3;
      return v;
    }());
    const Tensor targets = whole_numbers({s.rows}, int(s.classes), 5);
    targets.as<std::int32_t>()[7] = -1;
    const TokenLosses fused = classifier_cross_entropy(x, weight, targets);
    backward(scale(fused.loss, 3));
    const auto dx = x.grad().to_vector(), dweight = weight.grad().to_vector();
    x.grad().fill(0);
    weight.grad().fill(0);
    const TokenLosses apart = cross_entropy(matmul(x, weight, false, true), targets);
    backward(scale(apart.loss, 3));
    // f64 sums of some thousand terms in another order
    CHECK(fused.loss.item() == Approx(apart.loss.item()).epsilon(1e-13));
    CHECK(largest(difference(fused.losses.to_vector(), apart.losses.to_vector())) <= 1e-12);
    CHECK(largest(difference(dx, x.grad().to_vector())) <= 1e-12 * largest(dx));
    CHECK(largest(difference(dweight, weight.grad().to_vector())) <= 1e-12 * largest(dweight));
    const no_grad guard;
    CHECK(classifier_cross_entropy(x, weight, targets).loss.item() == fused.loss.item());
  }
}

TEST_CASE("dropout: the share kept, the mean, and the same mask backward") {
  const Tensor x = parameter({16, 1000}, "x"), step = step_state(3);
  x.fill(1);
  const Tensor y = dropout(x, step, 0.25, 2);
  backward(y);
  const auto kept = y.to_vector();
  CHECK(x.grad().to_vector() == kept);
  std::int64_t count = 0;
  for (std::size_t i = 0; i < kept.size(); ++i) {
    const bool keep = Random{3, 2, 0}.uniform(i) >= 0.25f;
    REQUIRE(kept[i] == (keep ? double(float(1 / 0.75)) : 0.0));
    count += keep;
  }
  // four standard deviations of 16,000 draws
  CHECK(std::abs(double(count) / 16000 - 0.75) < 4 * std::sqrt(0.25 * 0.75 / 16000));

  CHECK(dropout(x, step, 0.25, 3).to_vector() != kept);
  step.as<double>()[kRngStep] = 1;
  CHECK(dropout(x, step, 0.25, 2).to_vector() != kept);
  CHECK(dropout(x, step, 0, 2) == x);
  CHECK(message_of([&] { dropout(x, step, 1, 2); }) == "[dropout] rate must be in [0, 1), but is 1; 0.1 is usual");
  clear_tape();
}

TEST_CASE("dropout: micro-batches draw the mask of the whole batch") {
  const Tensor step = step_state(3), whole = constant({6, 35}, std::vector<double>(210, 1.0));
  const Tensor part = constant({2, 35}, std::vector<double>(70, 1.0));
  const auto expected = dropout(whole, step, 0.5, 0).to_vector();
  std::vector<double> joined;
  for (int first : {0, 2, 4}) {
    step.as<double>()[kFirstSequence] = first;
    const auto y = dropout(part, step, 0.5, 0).to_vector();
    joined.insert(joined.end(), y.begin(), y.end());
  }
  CHECK(joined == expected);
}

TEST_CASE("adamw: three steps against numbers computed by hand") {
  Training t;
  const AdamW options{.beta1 = 0.9, .beta2 = 0.99, .epsilon = 1e-8, .weight_decay = 0.01};
  const double expected[3][3] = {
      {0.8990000019999999, 0.05, 0.0025}, {0.9346617728697225, -0.055, 0.012475}, {0.9474051695587573, -0.0245, 0.01297525}};  // w, m, v
  const double gradients[3] = {0.5, -1, 0.25};
  for (int i = 0; i < 3; ++i) {
    CAPTURE(i);
    const double g = gradients[i];
    t.update({g, g, g, 5, g}, options);
    CHECK(t.w.as<double>()[0] == Approx(expected[i][0]).epsilon(1e-14));
    CHECK(t.w.as<double>()[1] == t.w.as<double>()[0]);
    CHECK(t.m.as<double>()[0] == Approx(expected[i][1]).epsilon(1e-14));
    CHECK(t.v.as<double>()[0] == Approx(expected[i][2]).epsilon(1e-14));
    CHECK(t.step.as<double>()[kStep] == i + 1);
    CHECK(t.step.as<double>()[kRngStep] == i + 1);
    // cleared, but not the gap between spans
    CHECK(t.g.to_vector() == std::vector<double>{0, 0, 0, 5, 0});
  }
  // a gap is nobody's, a frozen span stays
  CHECK(t.w.as<double>()[3] == 9);
  CHECK(t.w.as<double>()[4] == 1);
  CHECK(t.m.as<double>()[4] == 0);
}

TEST_CASE("adamw: the first step is the learning rate, by span, whatever the gradient") {
  Training t;
  t.update({3, -3, 0.01, 0, 1}, {.epsilon = 1e-30, .weight_decay = 0});
  check_close(t.w.to_vector(), {0.9, 1.1, 0.95, 9, 1}, 1e-14);
  // the copy follows, rounded to bf16, but for the gap and the frozen span
  const Tensor copy = state({5}, Dtype::bf16, "copy");
  t.w.copy_from({1.001, 2.003, 3.007, 9, 1});
  adamw(t.w, t.g, t.m, t.v, t.spans, gradient_norm(t.g, t.spans, {}, t.step), t.step, {.beta1 = 0}, copy);
  CHECK(copy.to_vector() == std::vector<double>{1, 2, 3, 0, 0});
}

TEST_CASE("adamw: gradients are clipped by the norm of all that are not frozen") {
  Training t;
  const Tensor norms = t.update({3, 0, 4, 100, 100}, {.beta1 = 0, .clip = 1});
  check_close(norms.to_vector(), {3, 4, 0, 5}, 1e-15);
  check_close(t.m.to_vector(), {0.6, 0, 0.8, 0, 0}, 1e-15);
  t.update({0.3, 0, 0.4, 0, 0}, {.beta1 = 0, .clip = 1});
  check_close(t.m.to_vector(), {0.3, 0, 0.4, 0, 0}, 1e-15);
  t.update({0, 0, 0, 0, 0}, {.beta1 = 0, .clip = 1});
  check_close(t.m.to_vector(), {0, 0, 0, 0, 0}, 0);
}

TEST_CASE("adamw: while the flag of a non-finite value is up nothing is touched") {
  const double inf = std::numeric_limits<double>::infinity();
  for (int bad = 0; bad < 2; ++bad) {
    CAPTURE(bad);
    Training t;
    t.update({1, 2, 3, 4, 5}, {});
    const auto w = t.w.to_vector(), m = t.m.to_vector(), v = t.v.to_vector();
    auto step = t.step.to_vector();
    const std::vector<double> g{1, bad == 0 ? std::nan("") : 1.0, 1, 1, 1};
    t.update(g, {}, constant({}, {bad == 0 ? 1.0 : inf}));
    CHECK(t.w.to_vector() == w);
    CHECK(t.m.to_vector() == m);
    CHECK(t.v.to_vector() == v);
    CHECK(std::isnan(t.g.to_vector()[1]) == (bad == 0));
    CHECK(t.g.to_vector()[2] == 1);
    step[kNonFinite] = 1;
    CHECK(t.step.to_vector() == step);
    // good values do not lower it
    t.update({1, 1, 1, 1, 1}, {}, constant({}, {1.0}));
    CHECK(t.step.to_vector() == step);
    CHECK(t.w.to_vector() == w);
    t.step.as<double>()[kNonFinite] = 0;
    t.update({1, 1, 1, 1, 1}, {}, constant({}, {1.0}));
    CHECK(t.w.to_vector() != w);
  }
}

TEST_CASE("gradient norm: sums are exact in f64 over many blocks, and wrong spans are named") {
  const std::int64_t n = 100003;
  const Tensor g = state({n}, Dtype::f32, "g");
  g.fill(0.1f);
  const Tensor norms = gradient_norm(g, constant({2, 5}, {0, 70001, 1, 1, 0, 70001, 30002, 1, 1, 0}, f64), {}, step_state());
  const double unit = double(0.1f);
  CHECK(norms.to_vector()[0] == Approx(unit * std::sqrt(70001.0)).epsilon(1e-12));
  CHECK(norms.to_vector()[2] == Approx(unit * std::sqrt(double(n))).epsilon(1e-12));
  CHECK(message_of([&] { gradient_norm(g, constant({2, 5}, {0, 10, 1, 1, 0, 9, 10, 1, 1, 0}, f64), {}, step_state()); }) ==
        "[gradient_norm] span 1 covers elements 9 to 19, but must start at 10 or later and end by 100003; "
        "spans are ascending and do not overlap");
}

#ifdef _OPENMP
TEST_CASE("layers: sizes of several tiles and blocks give the same bits with 1, 2 and 3 threads") {
  const int before = omp_get_max_threads();
  std::vector<std::vector<std::byte>> first;
  for (int threads : {1, 2, 3}) {
    CAPTURE(threads);
    omp_set_num_threads(threads);
    const Tensor table = filled({50, 96}, 1, Dtype::f32), weight = filled({96, 130}, 2, Dtype::f32), bias = filled({130}, 3, Dtype::f32);
    const Tensor back = filled({130, 96}, 4, Dtype::f32), gain = filled({96}, 5, Dtype::f32), offset = filled({96}, 6, Dtype::f32);
    const Tensor tokens = whole_numbers({4, 250}, 50, 7), targets = whole_numbers({4, 250}, 50, 8);
    const Tensor x = embedding(tokens, table);
    const Tensor h = linear(layer_norm(x, gain, offset), weight, bias, {}, "gelu");
    const NormedSum out = add_layer_norm(linear(h, back, {}, x), x, gain, offset);
    const TokenLosses losses = classifier_cross_entropy(out.y, table, targets);
    backward(losses.loss);
    std::vector<std::vector<std::byte>> bits;
    for (const Tensor& t : {losses.losses, table.grad(), weight.grad(), bias.grad(), back.grad(), gain.grad(), offset.grad()})
      bits.push_back(bits_of(t));
    if (first.empty()) first = bits;
    for (std::size_t i = 0; i < bits.size(); ++i) {
      CAPTURE(i);
      CHECK(bits[i] == first[i]);
    }
  }
  omp_set_num_threads(before);
}
#endif

#include <doctest/doctest.h>

#include <cmath>

#include "core/error.h"
#include "core/random.h"
#include "nn/gpt.h"
#include "tests/batch_cases.h"
#include "tests/op_cases.h"
#include "train/training_step.h"

// What models of the Llama family have besides a GPT's parts: grouped queries, a gated MLP, biases of queries, keys and values alone, and
// rotary positions of another base and scaling.

namespace hedgehog {
namespace {

using namespace test;
using Numbers = std::vector<double>;

GptOptions grouped(const std::string& attention) {
  GptOptions o = small_gpt(attention);
  o.heads = 4, o.key_heads = 2, o.width = 32, o.dtype = Dtype::f64, o.embedding_init = 1;
  return o;
}

/// The columns of a packed projection of grouped queries, keys and values once for every query head.
Numbers ungrouped(const Numbers& packed, const GptOptions& o) {
  const std::int64_t q = o.query_width(), d = o.width / o.heads, H = o.heads, Hkv = o.key_heads, columns = (H + Hkv) * q + Hkv * d;
  Numbers all;
  for (std::size_t row = 0; row < packed.size(); row += std::size_t(columns)) {
    const auto add = [&](std::int64_t first, std::int64_t width, std::int64_t heads) {
      for (std::int64_t h = 0; h < H; ++h)
        for (std::int64_t i = 0; i < width; ++i) all.push_back(packed[row + std::size_t(first + h * heads / H * width + i)]);
    };
    add(0, q, H);
    add(H * q, q, Hkv);
    add((H + Hkv) * q, d, Hkv);
  }
  return all;
}

double relative_difference(const Tensor& a, const Tensor& b) {
  const Numbers x = a.to_vector(), y = b.to_vector();
  double most = 0;
  REQUIRE(x.size() == y.size());
  for (std::size_t i = 0; i < x.size(); ++i) most = std::max(most, std::abs(x[i] - y[i]));
  return most / largest(x);
}

}  // namespace

TEST_CASE("grouped queries: the model is one whose keys and values are written once for every query head") {
  struct Case {
    const char* attention;
    std::int64_t window = 0, convolution = 0;
    bool qk_norm = false, decay_gate = false;
  };
  for (const Case& c : {Case{"softmax"}, {"softmax", 4}, {"hedgehog"}, {"hedgehog", 3}, {"hedgehog", 0, 3, true}, {"hedgehog", 0, 0, false, true},
                        {"t2r"}, {"elu"}, {"taylor", 0, 2}, {"performer"}, {"cosformer"}}) {
    CAPTURE(std::string(c.attention));
    CAPTURE(c.window);
    CAPTURE(c.decay_gate);
    GptOptions o = grouped(c.attention);
    o.window = c.window, o.short_convolution = c.convolution, o.qk_norm = c.qk_norm, o.decay_gate = c.decay_gate;
    o.features.taylor_dim = 6, o.attention_bias = true;
    Gpt model(o);
    CHECK(model.parameters().count() == parameter_count(o));
    GptOptions plain = o;
    plain.key_heads = 0;
    Gpt other(plain);
    std::uint32_t id = 0;
    for (const Tensor& p : model.parameters().all()) {
      const bool packed = p.name().find("c_attn") != std::string::npos || p.name().ends_with("conv.weight");
      if (p.name().ends_with("c_attn.bias")) model.parameters().assign(p, draw(p.size(), 3, ++id));
      const Numbers values = p.to_vector();
      other.parameters().assign(other.parameters().find(p.name()), packed ? ungrouped(values, o) : values);
    }
    const Batch b = counting_batch(2, 12, 11, 4);
    const Tensor tokens = input({2, 12}, "tokens", Dtype::i32);
    copy_ids(b.tokens, tokens);
    const no_grad guard;
    // sums of up to 64 terms, in another order
    CHECK(relative_difference(model.hidden(tokens), other.hidden(tokens)) <= 20 * 64 * 0x1p-53);
    // who looks sees as many keys as queries
    const AttentionHeads heads = model.heads(tokens)[1];
    CHECK(heads.k.shape()[2] == 4);
    CHECK(heads.v.shape()[2] == 4);
    CHECK(relative_difference(heads.o, model.attention(1).attend(heads)) <= 20 * 64 * 0x1p-53);
  }
}

TEST_CASE("gated MLP: activation of one half times the other, with gradients and low-rank updates") {
  for (const char* activation : {"silu", "gelu", "gelu_erf", "relu"}) {
    CAPTURE(std::string(activation));
    Parameters parameters(Dtype::f64);
    Mlp mlp;
    mlp.fc = Linear(parameters, "fc", 3, 8, true, Init::normal(1));
    mlp.out = Linear(parameters, "out", 4, 3, true, Init::normal(1));
    mlp.activation = activation, mlp.gated = true;
    parameters.assign(mlp.fc.bias, draw(8, 7, 3));
    const Tensor x = constant({5, 3}, draw(15, 7, 1), Dtype::f64), residual = constant({5, 3}, draw(15, 7, 2), Dtype::f64);
    const Numbers w = mlp.fc.weight.to_vector(), b = mlp.fc.bias.to_vector(), u = mlp.out.weight.to_vector(), in = x.to_vector();
    const Numbers found = mlp(x, residual, {}).to_vector(), added = residual.to_vector();
    const auto act = [&](double h) {
      if (activation[0] == 's') return h / (1 + std::exp(-h));
      if (activation[0] == 'r') return std::max(h, 0.0);
      if (std::string(activation) == "gelu_erf") return h * std::erfc(-h / std::sqrt(2)) / 2;
      return 0.5 * h * (1 + std::tanh(std::sqrt(2 / M_PI) * (h + 0.044715 * h * h * h)));
    };
    for (std::size_t n = 0; n < 5; ++n)
      for (std::size_t c = 0; c < 3; ++c) {
        double y = added[n * 3 + c];
        for (std::size_t m = 0; m < 4; ++m) {
          double g = b[m], v = b[4 + m];
          for (std::size_t k = 0; k < 3; ++k) g += in[n * 3 + k] * w[k * 8 + m], v += in[n * 3 + k] * w[k * 8 + 4 + m];
          y += act(g) * v * u[m * 3 + c];
        }
        CHECK(found[n * 3 + c] == doctest::Approx(y).epsilon(1e-12));
      }
  }
}

TEST_CASE("rotary scaling: Llama 3's three ranges, linear, and nothing by default") {
  const RotaryScaling llama3{8, 1, 4, 8192};
  for (const double f : {1.0, 0.1, 1e-2, 5e-3, 3.1e-3, 2e-3, 1e-3, 8e-4, 5e-4, 1e-5}) {
    CAPTURE(f);
    // as its reference writes it, by wavelengths
    const double wavelength = 2 * M_PI / f, low = 8192 / 1.0, high = 8192 / 4.0;
    const double smooth = (8192 / wavelength - 1) / (4 - 1);
    const double expected = wavelength < high ? f : wavelength > low ? f / 8 : (1 - smooth) * f / 8 + smooth * f;
    CHECK(llama3.scaled(f) == doctest::Approx(expected).epsilon(1e-14));
    CHECK(RotaryScaling{}.scaled(f) == f);
    CHECK(RotaryScaling{.factor = 4}.scaled(f) == f / 4);
  }
  // the table has them: pair i turns by f_i at position 1
  const Numbers table = rotary_table(2, 8, 500, {}, Dtype::f64, {.factor = 4, .original = 100}).to_vector();
  for (std::size_t i = 0; i < 4; ++i)
    CHECK(table[8 + i] == doctest::Approx(std::cos(RotaryScaling{4, 1, 4, 100}.scaled(std::pow(500, -double(i) / 4)))).epsilon(1e-14));
  CHECK_THROWS_WITH_AS(rotary_table(2, 8, 500, {}, Dtype::f64, {.factor = 0.5}), doctest::Contains("factor >= 1"), ShapeError);
}

TEST_CASE("Llama's parts: a model with all of them learns a batch by heart, planned and with little memory alike") {
  std::vector<double> losses;
  constexpr int kSteps = 60;
  for (const Bytes arena : {StepShape::kUnlimited, Bytes(1)}) {
    const bool whole = arena == StepShape::kUnlimited;
    GptOptions o = grouped("hedgehog");
    o.dtype = Dtype::f32, o.norm = "rms", o.activation = "silu", o.gated_mlp = true, o.mlp_width = 48, o.attention_bias = true;
    o.rotary_base = 500, o.rotary_scaling = {2, 1, 4, 8}, o.norm_eps = 1e-6, o.embedding_init = 0.02;
    Gpt model(o);
    TrainingStep step(model, {.rows = 3, .context = 12, .arena = arena}, {.weight_decay = 0}, 1);
    const std::vector<Batch> batch{counting_batch(3, 12, 11, 3)};
    for (int i = 0; i < (whole ? kSteps : 5); ++i) losses.push_back(step.run(batch, 1e-2).loss);
    if (whole) CHECK(losses.back() < 0.05);
  }
  for (std::size_t i = 0; i < 5; ++i) CHECK(losses[i] == losses[kSteps + i]);
}

TEST_CASE("Llama's parts: what does not fit is refused with a sentence") {
  const auto refused = [](const auto& change, const char* text) {
    GptOptions o = grouped("softmax");
    change(o);
    CHECK_THROWS_WITH_AS(Gpt{o}, doctest::Contains(text), ShapeError);
  };
  refused([](GptOptions& o) { o.key_heads = 3; }, "key_heads must divide heads");
  refused([](GptOptions& o) { o.key_heads = -1; }, "key_heads must divide heads");
  refused([](GptOptions& o) { o.init = "mimetic"; }, "as many key heads as heads");
  refused([](GptOptions& o) { o.mlp_width = -4; }, "mlp_width must be 0");
  refused([](GptOptions& o) { o.norm_eps = 0; }, "norm_eps and rotary_base must be above 0");
}

}  // namespace hedgehog

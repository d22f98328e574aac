#include <doctest/doctest.h>

#include <cmath>

#include "core/error.h"
#include "core/random.h"
#include "nn/gpt.h"

using namespace hedgehog;

namespace {

constexpr std::int64_t B = 2, T = 19, H = 4, kKeyHeads = 2, D = 6;

Tensor draws(const Shape& shape, std::uint32_t id, double scale = 1) {
  const Random random{11, id, 0};
  std::vector<double> values(std::size_t(shape.size()));
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = scale * random.normal(i);
  return constant(shape, values, Dtype::f64);
}

struct Heads {
  Tensor q = draws({B, T, H, D}, 1), k = draws({B, T, kKeyHeads, D}, 2), v = draws({B, T, kKeyHeads, D}, 3);
  Tensor weight_q = draws({H, D, D}, 4, 0.4), weight_k = draws({H, D, D}, 5, 0.4), factor = draws({H}, 6, 0.5);

  HybridAttentionOptions options(std::int64_t window) const {
    HybridAttentionOptions o;
    o.weight_q = weight_q, o.weight_k = weight_k, o.log_factor = factor, o.window = window;
    return o;
  }
};

void check_equal(const Tensor& a, const Tensor& b, double tolerance = 1e-12) {
  const std::vector<double> x = a.to_vector(), y = b.to_vector();
  REQUIRE(x.size() == y.size());
  double worst = 0;
  for (std::size_t i = 0; i < x.size(); ++i) worst = std::max(worst, std::abs(x[i] - y[i]) / (1 + std::abs(y[i])));
  CHECK(worst <= tolerance);
}

/// Token t alone of a (B, T, H, D) tensor.
Tensor token(const Tensor& x, std::int64_t t) {
  const std::int64_t tokens = x.shape()[1];
  if (t == 0) return split(x, {1, tokens - 1}, 1)[0];
  if (t == tokens - 1) return split(x, {t, 1}, 1)[1];
  return split(x, {t, 1, tokens - t - 1}, 1)[1];
}

}  // namespace

TEST_CASE("hybrid attention: a window over everything is softmax attention, whatever its factor") {
  const no_grad guard;
  const Heads x;
  for (std::int64_t window : {T, T + 1, std::int64_t(1000)})
    check_equal(hybrid_attention(x.q, x.k, x.v, x.options(window)), softmax_attention(x.q, x.k, x.v));
  HybridAttentionOptions alone = x.options(5);
  alone.linear = false;
  SoftmaxAttentionOptions near;
  near.window = 5;
  check_equal(hybrid_attention(x.q, x.k, x.v, alone), softmax_attention(x.q, x.k, x.v, near));
}

TEST_CASE("hybrid attention: a window of no weight leaves linear attention of the tokens before it") {
  const no_grad guard;
  const Heads x;
  HybridAttentionOptions o = x.options(1);
  o.log_factor = constant({H}, {-1e4, -1e4, -1e4, -1e4}, Dtype::f64);
  LinearAttentionOptions l;
  l.weight_q = x.weight_q, l.weight_k = x.weight_k;
  // token t without its window of one sees what token t - 1 sees, with its own query
  const Tensor shifted = concat({split(x.q, {1, T - 1}, 1)[1], token(x.q, 0)}, 1);
  const Tensor ours = split(hybrid_attention(x.q, x.k, x.v, o), {1, T - 1}, 1)[1];
  check_equal(ours, split(linear_attention(shifted, x.k, x.v, l).o, {T - 1, 1}, 1)[0]);
}

TEST_CASE("hybrid attention: one token after the other gives the rows of the whole") {
  const no_grad guard;
  const Heads x;
  for (const char* map : {"hedgehog", "hedgehog-softmax", "elu"})
    for (const bool maximum : {false, true})
      for (const bool linear : {true, false}) {
        CAPTURE(map);
        CAPTURE(maximum);
        CAPTURE(linear);
        HybridAttentionOptions o = x.options(4);
        o.map = map, o.maximum = maximum, o.linear = linear;
        const Tensor whole = hybrid_attention(x.q, x.k, x.v, o);
        HybridAttentionStepOptions step;
        step.weight_q = x.weight_q, step.weight_k = x.weight_k, step.log_factor = x.factor;
        step.map = map, step.maximum = maximum, step.linear = linear;
        const std::int64_t F = std::string(map) == "elu" ? D : 2 * D;
        const Tensor memory = state({B, H, F, D + 2}, Dtype::f64, "memory"), cache = state({B, 4, 2, kKeyHeads, D}, Dtype::f64, "cache"),
                     at = state({1}, Dtype::i32, "position");
        for (std::int64_t t = 0; t < T; ++t) {
          check_equal(hybrid_attention_step(token(x.q, t), token(x.k, t), token(x.v, t), memory, cache, at, step), token(whole, t));
          at.copy_from({double(t + 1)});
        }
      }
}

TEST_CASE("hybrid attention: nothing passes from one document to the next") {
  const no_grad guard;
  const Heads x;
  std::vector<double> start;
  for (std::int64_t b = 0; b < B; ++b)
    for (std::int64_t t = 0; t < T; ++t) start.push_back(t < 7 ? 0 : t < 9 ? 7 : 9);
  HybridAttentionOptions o = x.options(3);
  o.document_start = constant({B, T}, start, Dtype::i32);
  const Tensor whole = hybrid_attention(x.q, x.k, x.v, o);
  const auto last = [](const Tensor& t) { return split(t, {9, T - 9}, 1)[1]; };
  o.document_start = {};
  check_equal(last(whole), hybrid_attention(last(x.q), last(x.k), last(x.v), o));
}

TEST_CASE("hybrid attention: scores and features of any size are safe, and features may trade scales") {
  const no_grad guard;
  const Heads x;
  HybridAttentionOptions o;
  o.window = 4;
  const Tensor large = hybrid_attention(scale(x.q, 60), scale(x.k, 60), x.v, o);
  for (double y : large.to_vector()) CHECK(std::isfinite(y));
  // t in the bias of keys and -t in that of queries changes no product of features
  o = x.options(4);
  const Tensor plain = hybrid_attention(x.q, x.k, x.v, o);
  std::vector<double> up(H * D, 0), down(H * D, 0);
  for (std::size_t i = 0; i < up.size(); i += 3) up[i] = 50, down[i] = -50;
  o.bias_k = constant({H, D}, up, Dtype::f64), o.bias_q = constant({H, D}, down, Dtype::f64);
  const Tensor traded = hybrid_attention(x.q, x.k, x.v, o);
  // exp(-u) features trade the other way, so that the product of the two halves is the same too
  check_equal(traded, plain, 1e-9);
}

TEST_CASE("hybrid attention: a model with a window decodes what it computes at once") {
  const no_grad guard;
  for (const char* attention : {"hedgehog", "elu", "t2r", "softmax"}) {
    CAPTURE(attention);
    GptOptions options;
    options.layers = 2, options.heads = 2, options.width = 16, options.context = T, options.vocabulary = 11, options.attention = attention;
    options.dtype = Dtype::f64, options.embedding_init = 1, options.window = 5, options.short_convolution = 2;
    options.qk_norm = options.attention != "elu";
    Gpt model(options);
    CHECK(parameter_count(options) == model.parameters().count());
    std::vector<double> ids;
    for (std::int64_t t = 0; t < T; ++t) ids.push_back(double(t * 7 % 11));
    const Tensor logits = model.logits(model.hidden(constant({1, T}, ids, Dtype::i32)));
    DecodingState state = model.decoding_state(1, T);
    for (std::int64_t t = 0; t < T; ++t) {
      check_equal(model.decode(constant({1, 1}, {ids[std::size_t(t)]}, Dtype::i32), state), reshape(split(reshape(logits, {T, 11}), std::vector<std::int64_t>(T, 1), 0)[std::size_t(t)], {1, 11}), 1e-9);
      state.position.copy_from({double(t + 1)});
    }
  }
}

TEST_CASE("hybrid attention: a model starts with equal weights near and far where scores are 0") {
  const no_grad guard;
  const std::int64_t width = 16, heads = 2, D = width / heads;
  for (const char* map : {"hedgehog", "hedgehog-softmax", "hedgehog-joint", "elu", "exp"}) {
    CAPTURE(std::string(map));
    GptOptions options;
    options.layers = 1, options.heads = heads, options.width = width, options.attention = map, options.window = 3, options.dtype = Dtype::f64;
    const Gpt model(options);
    HybridAttentionOptions o;
    o.map = map, o.window = 3;
    for (const Tensor& t : model.parameters().all())
      if (t.name() == "h.0.attn.log_factor") o.log_factor = t;
    REQUIRE(o.log_factor);
    const Tensor none = constant({1, 8, heads, D}, std::vector<double>(std::size_t(8 * width), 0), Dtype::f64), v = draws({1, 8, heads, D}, 12);
    std::vector<double> mean(std::size_t(width), 0);
    const std::vector<double> values = v.to_vector(), o_all = hybrid_attention(none, none, v, o).to_vector();
    for (std::size_t i = 0; i < values.size(); ++i) mean[i % std::size_t(width)] += values[i] / 8;
    for (std::size_t c = 0; c < mean.size(); ++c) CHECK(o_all[7 * mean.size() + c] == doctest::Approx(mean[c]));
  }
}

TEST_CASE("hybrid attention: with normed queries and keys a model starts with equal weights near and far on average") {
  const no_grad guard;
  constexpr std::int64_t kPairs = 20000, kWidth = 16;
  for (const auto& [map, gain] : {std::pair("hedgehog", 1.0), {"hedgehog", 0.5}, {"hedgehog-softmax", 1.0}, {"hedgehog-joint", 1.0}, {"exp", 1.0}}) {
    CAPTURE(std::string(map));
    CAPTURE(gain);
    GptOptions options;
    options.layers = 1, options.heads = 2, options.width = kWidth, options.attention = map, options.window = 3, options.dtype = Dtype::f64;
    options.qk_norm = true, options.map_init_gain = gain;
    const Gpt model(options);
    const Parameters& all = model.parameters();
    const auto features = [&](const char* weight, std::uint32_t id) {
      const Tensor x = draws({1, kPairs, 2, kWidth / 2}, id);
      return feature_map(x, std::string(map) == "exp" ? Tensor{} : all.find(weight), {}, map);
    };
    const Tensor products = features("h.0.attn.map_q.weight", 1) * features("h.0.attn.map_k.weight", 2);
    const double weight = sum(products).to_vector()[0] / (2 * kPairs), start = all.find("h.0.attn.log_factor").to_vector()[0];
    // the normalised maps, whose products are at most 2, start as at 0; of exp(q + k) the deviation is sqrt(e^2 - 1) of the mean, over 16 x 20,000
    const double tolerance = std::string(map).starts_with("hedgehog-") ? 0.05 : 5 * std::sqrt((std::exp(2) - 1) / (kPairs * kWidth));
    CHECK(std::abs(std::log(weight) - start) <= tolerance);
  }
}

TEST_CASE("hybrid attention: what cannot be is refused with a sentence") {
  const Heads x;
  CHECK_THROWS_WITH_AS(hybrid_attention(x.q, x.k, x.v, x.options(0)), doctest::Contains("window must be at least 1"), ShapeError);
  HybridAttentionOptions o = x.options(4);
  o.log_factor = draws({H + 1}, 7);
  CHECK_THROWS_WITH_AS(hybrid_attention(x.q, x.k, x.v, o), doctest::Contains("log_factor"), ShapeError);
  SoftmaxAttentionOptions s;
  s.window = -1;
  CHECK_THROWS_WITH_AS(softmax_attention(x.q, x.k, x.v, s), doctest::Contains("window must be positive, or 0 for none, but is -1"), ShapeError);
  s.window = 4, s.causal = false;
  CHECK_THROWS_WITH_AS(softmax_attention(x.q, x.k, x.v, s), doctest::Contains("needs causal attention"), ShapeError);
  GptOptions options;
  options.attention = "performer", options.window = 8;
  CHECK_THROWS_WITH_AS(Gpt{options}, doctest::Contains("not with performer"), ShapeError);
}

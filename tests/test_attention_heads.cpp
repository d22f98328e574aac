#include <doctest/doctest.h>

#include <cmath>

#include "core/error.h"
#include "core/random.h"
#include "nn/gpt.h"

using namespace hedgehog;

namespace {

constexpr std::int64_t B = 2, T = 7;

Tensor some_tokens() {
  std::vector<double> ids;
  const Random random{5, 1, 0};
  for (std::int64_t i = 0; i < B * T; ++i) ids.push_back(double(random.below(std::uint64_t(i), 11)));
  return constant({B, T}, ids, Dtype::i32);
}

Gpt model_of(const std::string& attention) {
  GptOptions o;
  o.layers = 2, o.heads = 2, o.width = 16, o.context = T, o.vocabulary = 11, o.attention = attention, o.dtype = Dtype::f64;
  o.embedding_init = 1;
  return Gpt(o);
}

}  // namespace

TEST_CASE("attention heads: the model is the same with them, and features and attend give back each layer's result") {
  const no_grad guard;
  for (const char* attention : {"softmax", "hedgehog", "elu", "t2r", "taylor", "cosformer", "performer"}) {
    CAPTURE(attention);
    const Gpt model = model_of(attention);
    const Tensor tokens = some_tokens();
    std::vector<AttentionHeads> heads;
    AttentionContext context;
    context.heads = &heads;
    const std::vector<double> looked_at = model.hidden(tokens, context).to_vector(), plain = model.hidden(tokens).to_vector();
    for (std::size_t i = 0; i < plain.size(); ++i) CHECK(looked_at[i] == doctest::Approx(plain[i]).epsilon(1e-12));
    REQUIRE(heads.size() == 2);
    for (std::int64_t layer = 0; layer < 2; ++layer) {
      const AttentionHeads& h = heads[std::size_t(layer)];
      const std::vector<double> o = h.o.to_vector(), again = model.attention(layer).attend(h).to_vector();
      for (std::size_t i = 0; i < o.size(); ++i) CHECK(again[i] == doctest::Approx(o[i]).epsilon(1e-12));
      if (std::string(attention) == "softmax") {
        CHECK_THROWS_WITH_AS(model.attention(layer).features(h), doctest::Contains("softmax attention has no features"), ShapeError);
        continue;
      }
      const MappedHeads mapped = model.attention(layer).features(h);
      std::vector<double> q = mapped.q.to_vector(), k = mapped.k.to_vector();
      const std::vector<double> v = h.v.to_vector();
      if (mapped.logarithmic)
        for (auto* side : {&q, &k})
          for (double& x : *side) x = std::exp(x);
      const std::int64_t H = 2, F = mapped.q.shape().last(), D = h.v.shape().last();
      for (std::int64_t b = 0; b < B; ++b)
        for (std::int64_t i = 0; i < T; ++i)
          for (std::int64_t head = 0; head < H; ++head) {
            std::vector<double> sum(std::size_t(D), 0);
            double all = 0;
            for (std::int64_t j = 0; j <= i; ++j) {
              double weight = 0;
              for (std::int64_t f = 0; f < F; ++f)
                weight += q[std::size_t(((b * T + i) * H + head) * F + f)] * k[std::size_t(((b * T + j) * H + head) * F + f)];
              all += weight;
              for (std::int64_t d = 0; d < D; ++d) sum[std::size_t(d)] += weight * v[std::size_t(((b * T + j) * H + head) * D + d)];
            }
            for (std::int64_t d = 0; d < D; ++d)
              CHECK(o[std::size_t(((b * T + i) * H + head) * D + d)] == doctest::Approx(sum[std::size_t(d)] / all).epsilon(1e-9));
          }
    }
  }
}

TEST_CASE("attention heads: with qk_norm queries and keys are gain x / rms(x), and positions turn them after that") {
  const no_grad guard;
  for (const char* attention : {"softmax", "hedgehog", "taylor"})
    for (const char* positions : {"none", "rotary"}) {
      CAPTURE(std::string(attention));
      CAPTURE(std::string(positions));
      GptOptions o = model_of(attention).options();
      o.positions = positions;
      o.features.taylor_dim = 4;
      const Gpt plain(o);
      o.qk_norm = true;
      Gpt model(o);
      Parameters& all = model.parameters();
      CHECK(all.count() == parameter_count(o));
      CHECK(all.count() == plain.parameters().count() + 2 * 2 * o.query_width());
      for (const Tensor& p : plain.parameters().all()) all.assign(all.find(p.name()), p.to_vector());
      const std::int64_t D = o.query_width();
      for (const char* side : {"q", "k"}) {
        std::vector<double> gain;
        for (std::int64_t d = 0; d < D; ++d) gain.push_back(side[0] == 'q' ? 0.5 + double(d) : 2 - double(d % (D / 2)));
        if (std::string(positions) == "rotary")  // gains that a rotation of the halves keeps
          for (std::int64_t d = 0; d < D; ++d) gain[std::size_t(d)] = gain[std::size_t(d % (D / 2))];
        all.assign(all.find(std::string("h.0.attn.") + side + "_norm.weight"), gain);
        const auto of = [&](const Gpt& m) {
          const AttentionHeads h = m.heads(some_tokens())[0];
          return (side[0] == 'q' ? h.q : h.k).to_vector();
        };
        // both are turned alike, and a turn keeps the root mean square
        const std::vector<double> x = of(plain), y = of(model);
        REQUIRE(x.size() == y.size());
        for (std::size_t row = 0; row < x.size(); row += std::size_t(D)) {
          double squares = 0;
          for (std::size_t d = 0; d < std::size_t(D); ++d) squares += x[row + d] * x[row + d];
          for (std::size_t d = 0; d < std::size_t(D); ++d)
            CHECK(y[row + d] == doctest::Approx(gain[d] * x[row + d] / std::sqrt(squares / double(D) + 1e-5)).epsilon(1e-12));
        }
      }
    }
}

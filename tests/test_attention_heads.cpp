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

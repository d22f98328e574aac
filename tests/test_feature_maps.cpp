#include <doctest/doctest.h>

#include <cmath>
#include <numbers>

#include "core/error.h"
#include "core/tape.h"
#include "ops/ops.h"
#include "tests/op_cases.h"
#include "tests/tape_cases.h"

// Closed forms of the features that go into linear attention. Everything is f64.

using namespace hedgehog;
using namespace hedgehog::test;

namespace {

using Numbers = std::vector<double>;
constexpr Dtype f64 = Dtype::f64;

Tensor vectors(const Shape& shape, std::uint32_t id, double scale = 1) {
  Numbers v = draw(shape.size(), 23, id);
  for (double& x : v) x *= scale;
  return constant(shape, v, f64, "x");
}

double product(const Numbers& a, const Numbers& b, std::int64_t i, std::int64_t j, std::int64_t width) {
  double sum = 0;
  for (std::int64_t d = 0; d < width; ++d) sum += a[std::size_t(i * width + d)] * b[std::size_t(j * width + d)];
  return sum;
}

}  // namespace

TEST_CASE("feature maps: products of Taylor features are 1 + s + s^2 / 2, full and compact") {
  for (const std::int64_t D : {1, 2, 5, 16}) {
    CAPTURE(D);
    const std::int64_t T = 6;
    const Tensor q = vectors({1, T, 1, D}, 1, 2), k = vectors({1, T, 1, D}, 2, 2);
    for (const bool compact : {false, true}) {
      CAPTURE(compact);
      const Tensor phi_q = taylor_features(q, compact), phi_k = taylor_features(k, compact);
      const std::int64_t F = phi_q.shape()[3];
      CHECK(F == (compact ? 1 + D + D * (D + 1) / 2 : 1 + D + D * D));
      CHECK(F == taylor_feature_count(D, compact));
      for (std::int64_t i = 0; i < T; ++i)
        for (std::int64_t j = 0; j < T; ++j) {
          const double s = product(q.to_vector(), k.to_vector(), i, j, D) / std::sqrt(double(D)), expected = 1 + s + s * s / 2;
          // sums of F products of rounded numbers; (1 + |s|)^2 bounds their size
          CHECK(std::abs(product(phi_q.to_vector(), phi_k.to_vector(), i, j, F) - expected) <= 1e-14 * double(F) * (1 + s * s));
        }
    }
  }
}

TEST_CASE("feature maps: linear attention of Taylor features is attention with weights 1 + s + s^2 / 2") {
  const std::int64_t B = 1, T = 9, H = 2, D = 16, Dv = 3;  // full: 273 features
  const Tensor q = vectors({B, T, H, D}, 1), k = vectors({B, T, H, D}, 2), v = vectors({B, T, H, Dv}, 3);
  const Numbers qs = q.to_vector(), ks = k.to_vector(), vs = v.to_vector();
  LinearAttentionOptions o;
  o.map = "identity";
  o.chunk = 4;
  for (const bool compact : {true, false}) {
    const Numbers out = linear_attention(taylor_features(q, compact), taylor_features(k, compact), v, o).o.to_vector();
    for (std::int64_t t = 0; t < T; ++t)
      for (std::int64_t h = 0; h < H; ++h) {
        double sum = 0, numerator = 0;
        for (std::int64_t j = 0; j <= t; ++j) {
          const double s = product(qs, ks, t * H + h, j * H + h, D) / std::sqrt(double(D)), weight = 1 + s + s * s / 2;
          sum += weight;
          numerator += weight * vs[std::size_t((j * H + h) * Dv)];
        }
        CHECK(out[std::size_t((t * H + h) * Dv)] == doctest::Approx(numerator / sum).epsilon(1e-12));
      }
  }
}

TEST_CASE("feature maps: linear attention takes 512 features without weights, and says what to do about more") {
  LinearAttentionOptions o;
  o.map = "identity";
  auto run = [&](std::int64_t F) {
    const Tensor phi = constant({1, 2, 1, F}, Numbers(std::size_t(2 * F), 1.0), f64);
    const Numbers out = linear_attention(phi, phi, constant({1, 2, 1, 1}, {1, 3}, f64), o).o.to_vector();
    CHECK(out[1] == doctest::Approx(2));
    const Tensor memory = state({1, 1, F, 3}, f64, "state");
    CHECK(linear_attention_step(phi, phi, constant({1, 2, 1, 1}, {1, 3}, f64), memory, {.map = "identity"}).to_vector()[1] == doctest::Approx(2));
  };
  run(512);
  CHECK(mentions(error_of([&] { run(513); }), "compact"));
  o.map = "hedgehog";
  const Tensor wide = constant({1, 1, 1, 257}, Numbers(257, 0.0), f64);
  CHECK(mentions(error_of([&] { linear_attention(wide, wide, wide, o); }), "at most 256"));
}

TEST_CASE("feature maps: products of cosFormer features are those of rectified vectors times the cosine of their distance") {
  const std::int64_t T = 7, D = 5, M = 11;
  const Tensor q = vectors({1, T, 1, D}, 1), k = vectors({1, T, 1, D}, 2);
  auto rectified = [](Numbers x) {
    for (double& e : x) e = std::max(e, 1e-6);
    return x;
  };
  const Numbers rq = rectified(q.to_vector()), rk = rectified(k.to_vector());
  for (const int offset : {0, 4}) {
    const Tensor at = offset ? constant({1}, {double(offset)}, Dtype::i32) : Tensor{};
    const Numbers phi_q = cosformer_features(q, M, at).to_vector(), phi_k = cosformer_features(k, M, at).to_vector();
    for (std::int64_t i = 0; i < T; ++i) {
      const double angle = std::numbers::pi * double(i + 1 + offset) / double(2 * M);
      CHECK(phi_q[std::size_t(i * 2 * D)] == doctest::Approx(rq[std::size_t(i * D)] * std::sin(angle)).epsilon(1e-14));
      CHECK(phi_q[std::size_t(i * 2 * D + D)] == doctest::Approx(rq[std::size_t(i * D)] * std::cos(angle)).epsilon(1e-14));
      for (std::int64_t j = 0; j < T; ++j)
        CHECK(product(phi_q, phi_k, i, j, 2 * D) ==
              doctest::Approx(product(rq, rk, i, j, D) * std::cos(std::numbers::pi * double(i - j) / double(2 * M))).epsilon(1e-13));
    }
  }
  CHECK(mentions(error_of([&] { cosformer_features(q, T - 1); }), "at least the 7 tokens"));
}

TEST_CASE("feature maps: Performer's projection has orthogonal rows of the right norms, and is the same every time") {
  const std::int64_t D = 8, m = 21;
  for (const bool equal : {false, true}) {
    CAPTURE(equal);
    const Numbers w = performer_projection(m, D, {7, 3, 0}, equal);
    CHECK(w == performer_projection(m, D, {7, 3, 0}, equal));
    CHECK(w != performer_projection(m, D, {8, 3, 0}, equal));
    CHECK(w != performer_projection(m, D, {7, 4, 0}, equal));
    for (std::int64_t i = 0; i < m; ++i)
      for (std::int64_t j = i; j < m && j / D == i / D; ++j) {
        const double norms = std::sqrt(product(w, w, i, i, D) * product(w, w, j, j, D)), dot = product(w, w, i, j, D);
        if (i != j) CHECK(std::abs(dot) <= 1e-14 * norms);
        else if (equal) CHECK(std::sqrt(dot) == doctest::Approx(std::sqrt(double(D))).epsilon(1e-14));
      }
  }
  // the squared norms of Gaussian vectors have mean D and variance 2 D: their mean over n rows lies within 5 sqrt(2 D / n)
  const std::int64_t n = 4000;
  const Numbers w = performer_projection(n, D, {7, 3, 0});
  double mean = 0;
  for (std::int64_t i = 0; i < n; ++i) mean += product(w, w, i, i, D) / double(n);
  CHECK(std::abs(mean - double(D)) <= 5 * std::sqrt(2 * double(D) / double(n)));
  CHECK(mentions(error_of([] { performer_projection(0, 4, {}); }), "at least 1"));
}

TEST_CASE("feature maps: the mean of Performer's products over draws approaches the exponential") {
  const std::int64_t D = 4, m = 8, draws = 3000;
  const Tensor q = vectors({1, 1, 1, D}, 1, 0.7), k = vectors({1, 1, 1, D}, 2, 0.7);
  const double exact = std::exp(product(q.to_vector(), k.to_vector(), 0, 0, D) / std::sqrt(double(D)));
  for (const bool hyperbolic : {false, true}) {
    CAPTURE(hyperbolic);
    double sum = 0, squares = 0;
    for (std::int64_t i = 0; i < draws; ++i) {
      const no_grad guard;
      const std::int64_t rows = hyperbolic ? m / 2 : m;
      const Tensor w = constant({rows, D}, performer_projection(rows, D, {11, std::uint32_t(i), 0}), f64);
      const Numbers a = performer_features(q, w, hyperbolic).to_vector(), b = performer_features(k, w, hyperbolic).to_vector();
      REQUIRE(a.size() == std::size_t(m));
      double estimate = 0;
      for (std::size_t r = 0; r < a.size(); ++r) estimate += std::exp(a[r] + b[r]);
      sum += estimate;
      squares += estimate * estimate;
    }
    const double mean = sum / double(draws), error = std::sqrt((squares / double(draws) - mean * mean) / double(draws));
    // five standard errors of the mean of independent draws
    CHECK(std::abs(mean - exact) <= 5 * error);
    CHECK(error < 0.05 * exact);
  }
}

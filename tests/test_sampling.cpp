#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <set>
#include <vector>

#include "core/error.h"
#include "ops/sample_token.h"
#include "tests/temporary_directory.h"
#include "train/sampling.h"

using namespace hedgehog;

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::int32_t choose(const std::vector<float>& logits, const Sampling& sampling, double uniform) {
  std::vector<Candidate> space(logits.size());
  return choose_token<float>(logits, sampling, uniform, space);
}

/// Shares of each token over evenly spaced uniforms.
std::vector<double> shares(const std::vector<float>& logits, const Sampling& sampling, int draws = 10000) {
  std::vector<double> result(logits.size());
  for (int i = 0; i < draws; ++i) result[size_t(choose(logits, sampling, (i + 0.5) / draws))] += 1.0 / draws;
  return result;
}

}  // namespace

TEST_CASE("sampling: shares are softmax(logits / temperature)") {
  const std::vector<float> logits = {0.5f, 2.0f, -1.0f, 0.5f, -kInfinity};
  for (const double temperature : {0.5, 1.0, 3.0}) {
    const auto found = shares(logits, {.temperature = temperature});
    double total = 0;
    for (const float logit : logits) total += std::exp(logit / temperature);
    // an even grid of 10,000 points misses an interval's length by at most one point at each end
    for (size_t id = 0; id < logits.size(); ++id)
      CHECK(std::abs(found[id] - std::exp(logits[id] / temperature) / total) < 2e-4);
    CHECK(found[4] == 0);
  }
}

TEST_CASE("sampling: temperature 0 and top_k 1 take the first of the most likely") {
  const std::vector<float> logits = {1, 3, 3, 2};
  for (const double uniform : {0.0, 0.5, 0.999999}) {
    CHECK(choose(logits, {.temperature = 0}, uniform) == 1);
    CHECK(choose(logits, {.temperature = 1, .top_k = 1}, uniform) == 1);
    CHECK(choose(logits, {.temperature = 1, .top_p = 1e-9}, uniform) == 1);
  }
}

TEST_CASE("sampling: top_k and top_p keep the most likely") {
  const std::vector<float> logits = {std::log(0.1f), std::log(0.4f), std::log(0.2f), std::log(0.3f)};
  const auto top_two = shares(logits, {.temperature = 1, .top_k = 2});
  CHECK(top_two[1] == doctest::Approx(4.0 / 7).epsilon(1e-3));
  CHECK(top_two[3] == doctest::Approx(3.0 / 7).epsilon(1e-3));
  CHECK(top_two[0] + top_two[2] == 0);
  CHECK(shares(logits, {.temperature = 1, .top_k = 100})[0] == doctest::Approx(0.1).epsilon(1e-2));
  // 0.4 + 0.3 does not reach 0.75, so the third joins
  const auto nucleus = shares(logits, {.temperature = 1, .top_p = 0.75});
  CHECK(nucleus[2] == doctest::Approx(2.0 / 9).epsilon(1e-3));
  CHECK(nucleus[0] == 0);
  // top_p counts within what top_k left: 4/7 reaches 0.5 alone
  CHECK(shares(logits, {.temperature = 1, .top_k = 2, .top_p = 0.5})[1] == doctest::Approx(1));
}

TEST_CASE("sampling: extreme logits and uniforms") {
  const std::vector<float> wide = {-1e38f, 3e38f, 3e38f};
  CHECK(choose(wide, {.temperature = 1}, 0.0) == 1);
  CHECK(choose(wide, {.temperature = 1}, std::nextafter(1.0, 0.0)) == 2);
  const std::vector<float> one = {-kInfinity, 0, -kInfinity};
  CHECK(choose(one, {.temperature = 1}, std::nextafter(1.0, 0.0)) == 1);
  CHECK(choose(one, {.temperature = 1e-300}, 0.5) == 1);
}

TEST_CASE("sampling: mistakes") {
  CHECK(contains(message_of<UsageError>([] { check_sampling({.temperature = -1}); }), "--temperature expects"));
  CHECK(contains(message_of<UsageError>([] { check_sampling({.temperature = NAN}); }), "--temperature expects"));
  CHECK(contains(message_of<UsageError>([] { check_sampling({.top_k = -1}); }), "--top_k expects"));
  CHECK(contains(message_of<UsageError>([] { check_sampling({.top_p = 0}); }), "--top_p expects"));
  CHECK(contains(message_of<UsageError>([] { check_sampling({.top_p = 1.5}); }), "--top_p expects"));
  CHECK(contains(message_of<Error>([] { choose(std::vector<float>{0, NAN}, {}, 0); }),
                 "the logit of token 1 is nan"));
  CHECK(contains(message_of<Error>([] { choose(std::vector<float>{kInfinity}, {}, 0); }),
                 "the logit of token 0 is inf"));
  CHECK(contains(message_of<Error>([] { choose(std::vector<float>{-kInfinity}, {}, 0); }), "no logit is finite"));
  CHECK(contains(message_of<Error>([] { choose({}, {}, 0); }), "no logit is finite"));
}

TEST_CASE("sampling: sample_token draws number after number for each row and raises the position") {
  const std::vector<double> numbers = {0.5, 2, -1, 0.5, 1, 1, 0, 0.25};
  const Tensor logits = constant({2, 4}, numbers), token = state({2, 1}, Dtype::i32, "token"), position = state({1}, Dtype::i32, "position");
  // seed and number fill their upper words
  const Draws draws{(std::uint64_t(7) << 40) + 3, (std::uint64_t(1) << 32) - 3};
  const Tensor words = draws_state(draws);
  const Sampling sampling{.temperature = 1.5, .top_k = 3, .top_p = 0.9};
  const no_grad guard;
  for (std::uint64_t i = 0; i < 6; ++i) {
    sample_token(logits, token, position, words, sampling);
    CHECK(position.item() == double(i + 1));
    for (std::size_t b = 0; b < 2; ++b) {
      const std::vector<float> row(numbers.begin() + std::ptrdiff_t(4 * b), numbers.begin() + std::ptrdiff_t(4 * b + 4));
      CHECK(token.to_vector()[b] == choose(row, sampling, Random{draws.seed, 0x73616d70u, 0}.uniform(draws.first + 2 * i + b)));
    }
  }
  const Draws after = draws_of(words.as<std::int32_t>());
  CHECK(after.seed == draws.seed);
  CHECK(after.first == draws.first + 12);
}

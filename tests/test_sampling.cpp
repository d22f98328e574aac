#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>
#include <vector>

#include "core/error.h"
#include "ops/sample_token.h"
#include "tests/device_cases.h"
#include "tests/op_cases.h"
#include "tests/temporary_directory.h"
#include "train/generation.h"
#include "train/sampling.h"

using namespace hedgehog;

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::int32_t choose(const std::vector<float>& logits, const Sampling& sampling, double uniform) {
  std::vector<Candidate> space(logits.size());
  return choose_token<float>(logits, sampling, uniform, space);
}

GptOptions options(const std::string& attention) {
  GptOptions o;
  o.layers = 2;
  o.heads = 2;
  o.width = 16;
  o.vocabulary = 11;
  o.attention = attention;
  return o;
}

/// Shares of each token over evenly spaced uniforms.
std::vector<double> shares(const std::vector<float>& logits, const Sampling& sampling, int draws = 10000) {
  std::vector<double> result(logits.size());
  for (int i = 0; i < draws; ++i) result[size_t(choose(logits, sampling, (i + 0.5) / draws))] += 1.0 / draws;
  return result;
}

void text_in_pieces() {
  for (const char* attention : {"hedgehog", "softmax"}) {
    CAPTURE(std::string(attention));
    Gpt model(options(attention));
    Generator generator(model, 24);
    const std::vector<std::int32_t> prompt{1, 2, 3};
    const Sampling sampling{.temperature = 1.3, .top_k = 7, .top_p = 0.95};
    std::vector<std::int32_t> whole, pieces, by_hand;
    auto into = [](std::vector<std::int32_t>& list) {
      return [&list](std::int32_t id) {
        list.push_back(id);
        return true;
      };
    };
    generator.read(prompt);
    generator.generate(20, sampling, {5}, into(whole));
    CHECK(whole.size() == 20);
    CHECK(generator.position() == 22);  // the last is read when something follows it

    generator.reset();
    generator.read(prompt);
    for (std::int64_t piece : {1, 7, 1, 11}) generator.generate(piece, sampling, {5, pieces.size()}, into(pieces));
    CHECK(pieces == whole);

    generator.reset();
    generator.read(prompt);
    for (std::uint64_t i = 0; i < 20; ++i) {
      std::vector<Candidate> space(11);
      const std::vector<double> logits = generator.logits();
      by_hand.push_back(choose_token<double>(logits, sampling, Draws{5}.uniform(i), space));
      generator.read(std::span(&by_hand.back(), 1));
    }
    CHECK(by_hand == whole);
    // another way of choosing, from the state as it is
    CHECK_THROWS_AS(generator.generate(3, {.temperature = 0}, {}, into(pieces)), UsageError);
    generator.generate(2, {.temperature = 0}, {}, into(pieces));
  }
}

void text_cut_short() {
  Gpt model(options("hedgehog"));
  Generator generator(model, 64);
  const std::vector<std::int32_t> prompt{4, 5};
  auto text = [&](std::size_t length) {
    std::vector<std::int32_t> ids;
    generator.read(prompt);
    generator.generate(12, {.temperature = 1}, {9}, [&](std::int32_t id) {
      ids.push_back(id);
      return ids.size() < length;
    });
    return ids;
  };
  const auto whole = text(13);
  CHECK(whole.size() == 12);
  for (std::size_t length : {1, 2, 6}) {
    CAPTURE(length);
    generator.reset();
    CHECK(text(length) == std::vector<std::int32_t>(whole.begin(), whole.begin() + std::ptrdiff_t(length)));
    CHECK(contains(message_of<Error>([&] { generator.read(prompt); }), "call reset()"));
    CHECK(contains(message_of<Error>([&] { generator.logits(); }), "call reset()"));
  }
  generator.reset();
  CHECK(contains(message_of<Error>([&] { generator.generate(1, {}, {}, {}); }), "nothing was read yet"));
  generator.set_position(50);
  CHECK(contains(message_of<Error>([&] { generator.generate(1, {}, {}, {}); }), "nothing was read yet"));
  generator.read(prompt);
  CHECK(generator.position() == 52);
}

/// Prompt and text together, greedily or by a seed.
std::vector<std::int32_t> continued(Generator& generator, const std::vector<std::int32_t>& prompt, const Sampling& sampling) {
  std::vector<std::int32_t> ids = prompt;
  generator.read(prompt);
  generator.generate(16, sampling, {5}, [&](std::int32_t id) {
    ids.push_back(id);
    return true;
  });
  return ids;
}

/// Tokens are drawn from the logits that forward has for the text so far, and the same ones again from the start.
void text_of_forward() {
  for (const auto& [attention, positions] :
       {std::pair{"hedgehog", "none"}, {"hedgehog", "rotary"}, {"softmax", "rotary"}, {"softmax", "learned"}}) {
    CAPTURE(std::string(attention));
    CAPTURE(std::string(positions));
    GptOptions o = options(attention);
    o.positions = positions;
    const Gpt model(o);
    Generator generator(model, 24);
    const std::vector<std::int32_t> prompt{1, 2, 3};
    for (const Sampling& sampling : {Sampling{.temperature = 0}, Sampling{.temperature = 1.3}}) {
      CAPTURE(sampling.temperature);
      generator.reset();
      const std::vector<std::int32_t> ids = continued(generator, prompt, sampling);
      const std::vector<double> last = generator.logits();
      generator.reset();
      CHECK(continued(generator, prompt, sampling) == ids);
      CHECK(generator.logits() == last);
      Generator another(model, 24);
      CHECK(continued(another, prompt, sampling) == ids);

      const std::int64_t T = std::int64_t(ids.size()), V = model.options().vocabulary;
      const Tensor tokens = input({1, T}, "tokens", Dtype::i32);
      tokens.write(ids.data(), 0, T);
      const no_grad guard;
      const std::vector<double> whole = model.logits(model.hidden(tokens)).to_vector();
      // some 20 products and sums of up to 64 terms on the way to a logit, each term a rounding
      const double tolerance = 20 * 64 * 0x1p-24 * std::max(1.0, test::largest(whole));
      for (std::int64_t v = 0; v < V; ++v) CHECK(std::abs(last[std::size_t(v)] - whole[std::size_t((T - 1) * V + v)]) <= tolerance);
      if (sampling.temperature > 0) continue;
      for (std::size_t t = prompt.size(); t < ids.size(); ++t) {
        const auto row = whole.begin() + std::ptrdiff_t(t - 1) * V;
        CHECK(row[ids[t]] >= *std::max_element(row, row + V) - 2 * tolerance);
      }
    }
  }
}

/// sample_token chooses from the rows what choose_token does, draw after draw.
void agrees(std::int64_t B, const std::vector<double>& numbers, const std::vector<Sampling>& samplings) {
  const std::int64_t V = std::int64_t(numbers.size()) / B;
  const Tensor logits = constant({B, V}, numbers);
  const Tensor token = state({B, 1}, Dtype::i32, "token"), position = state({1}, Dtype::i32, "position");
  const Tensor words = draws_state({11});
  const no_grad guard;
  std::uint64_t drawn = 0;
  for (const Sampling& sampling : samplings) {
    CAPTURE(sampling.temperature);
    CAPTURE(sampling.top_k);
    for (int i = 0; i < 8; ++i, drawn += std::uint64_t(B)) {
      sample_token(logits, token, position, words, sampling);
      const std::vector<double> got = token.to_vector();
      for (std::int64_t b = 0; b < B; ++b) {
        const std::vector<float> row(numbers.begin() + b * V, numbers.begin() + (b + 1) * V);
        CHECK(got[std::size_t(b)] == choose(row, sampling, Draws{11}.uniform(drawn + std::uint64_t(b))));
      }
    }
  }
}

/// Rows that take up several tiles of a kernel, a tile of tokens that never come among them, also where logits are tied
/// or far apart.
void choice_of_many() {
  constexpr std::int64_t B = 3, V = 4100;
  std::vector<double> numbers(B * V);
  const std::vector<double> normal = test::draw(B * V, 3, 1);
  for (std::size_t i = 0; i < numbers.size(); ++i) numbers[i] = double(float(normal[i]));
  for (std::int64_t id = 1024; id < 2060; ++id) numbers[std::size_t(id)] = -double(kInfinity);
  for (std::int64_t id = 0; id < V; ++id) numbers[std::size_t(V + id)] = double(id % 3);
  numbers[std::size_t(2 * V + 3000)] = 300;
  agrees(B, numbers, {Sampling{.temperature = 1}, Sampling{.temperature = 0.1}, Sampling{.temperature = 0},
                      Sampling{.temperature = 1, .top_k = 1500}, Sampling{.temperature = 2, .top_p = 0.9}});
}

/// More tiles than a block has threads, the most likely token twice and far from the start.
void choice_of_many_tiles() {
  std::vector<double> numbers = test::draw(270'000, 4, 1);
  for (double& x : numbers) x = double(float(x));
  numbers[265'000] = numbers[269'999] = 8;
  agrees(1, numbers, {Sampling{.temperature = 1}, Sampling{.temperature = 0}});
}

/// A jump to a position is what it is on the CPU: of rotary angles alone with a state, and over rows of zeros with a cache.
void jump_to_a_position() {
  for (const char* attention : {"hedgehog", "softmax"}) {
    CAPTURE(std::string(attention));
    auto logits = [&](const char* positions, std::int64_t position) {
      GptOptions o = options(attention);
      o.positions = positions;
      const Gpt model(o);
      Generator generator(model, 64);
      const std::vector<std::int32_t> before{7, 8}, ids{1, 2, 3};
      generator.read(before);
      generator.reset();  // forgets them
      generator.set_position(position);
      generator.read(ids);
      CHECK(generator.position() == position + 3);
      return generator.logits();
    };
    const std::vector<double> here = logits("rotary", 50), start = logits("none", 0), far = logits("none", 50);
    // a state that knows no position is the same anywhere
    if (std::string(attention) == "hedgehog") CHECK(far == start);
    else CHECK(far != start);
    const OnDevice guard(cpu_device());
    const std::vector<double> there = logits("rotary", 50);
    // as above, and angles of up to 53 radians, each off by a rounding of itself
    const double tolerance = (20 * 64 + 2 * 53) * 0x1p-24 * std::max(1.0, test::largest(there));
    CHECK(test::largest(test::difference(here, there)) <= tolerance);
    CHECK(logits("rotary", 0) != there);
  }
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

TEST_CASE("sampling: tokens come in the order of their ids, and where some are cut from the most likely on") {
  const std::vector<float> logits = {std::log(0.2f), -kInfinity, std::log(0.5f), std::log(0.3f)};
  auto order = [&](const Sampling& sampling) {
    std::vector<std::int32_t> ids;
    for (const double uniform : {0.0, 0.1, 0.25, 0.45, 0.6, 0.9, std::nextafter(1.0, 0.0)}) ids.push_back(choose(logits, sampling, uniform));
    return ids;
  };
  CHECK(order({.temperature = 1}) == std::vector<std::int32_t>{0, 0, 2, 2, 2, 3, 3});
  CHECK(order({.temperature = 1, .top_k = 3}) == std::vector<std::int32_t>{2, 2, 2, 2, 3, 0, 0});
  CHECK(order({.temperature = 1, .top_p = 0.99}) == std::vector<std::int32_t>{2, 2, 2, 2, 3, 0, 0});
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
  const Tensor logits = constant({2, 4}, numbers);
  const Tensor token = state({2, 1}, Dtype::i32, "token"), position = state({1}, Dtype::i32, "position");
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

HH_ON_BOTH("sampling: a generator writes the same text in one go, in pieces and by hand", text_in_pieces)
HH_ON_BOTH("sampling: a text that was cut short asks for a reset, and a new one starts afresh", text_cut_short)
HH_ON_BOTH("sampling: a text follows the logits of the whole sequence, and is the same again", text_of_forward)
HH_ON_BOTH("sampling: a jump to a position", jump_to_a_position)
HH_ON_BOTH("sampling: sample_token chooses among many tokens what choose_token does", choice_of_many)
HH_ON_BOTH("sampling: the same among more tiles than a block has threads", choice_of_many_tiles)

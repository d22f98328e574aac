#include <doctest/doctest.h>

#include <cmath>
#include <numeric>

#include "core/error.h"
#include "nn/gpt.h"
#include "tests/bpe_cases.h"
#include "tests/op_cases.h"
#include "tests/temporary_directory.h"
#include "train/evaluation.h"
#include "train/sliding_windows.h"

namespace hedgehog {
namespace {

using namespace test;

std::vector<std::int32_t> some_tokens(std::size_t count) {
  test::Random random(7);
  std::vector<std::int32_t> tokens(count);
  for (std::int32_t& token : tokens) token = std::int32_t(random.below(23));
  return tokens;
}

GptOptions small_model(const std::string& attention, Dtype dtype) {
  GptOptions o;
  o.layers = 1, o.width = 16, o.context = 12, o.vocabulary = 23, o.attention = attention, o.dtype = dtype;
  o.embedding_init = 0.5;
  return o;
}

/// The definition: token t behind tokens [w stride, t) of the first window w that reaches it, one forward pass a token.
double naive_loss(const Gpt& model, const std::vector<std::int32_t>& tokens, std::int64_t stride) {
  const no_grad guard;
  double sum = 0;
  for (std::int64_t t = 1; t < std::int64_t(tokens.size()); ++t) {
    std::int64_t first = 0;
    while (first + model.options().context < t) first += stride;
    const std::vector<double> ids(tokens.begin() + first, tokens.begin() + t);
    const Tensor logits = model.logits(model.hidden(constant({1, t - first}, ids, Dtype::i32)));
    const std::vector<double> all = logits.to_vector();
    const std::span<const double> last(all.data() + all.size() - 23, 23);
    const double most = *std::max_element(last.begin(), last.end());
    double total = 0;
    for (const double x : last) total += std::exp(x - most);
    sum += most + std::log(total) - last[std::size_t(tokens[std::size_t(t)])];
  }
  return sum;
}

}  // namespace

TEST_CASE("sliding windows: every token but the first is a target once, in order, behind at least context - stride others") {
  for (const std::size_t count : {2u, 3u, 11u, 12u, 13u, 14u, 40u, 61u})
    for (const std::int64_t stride : {1, 5, 11, 12})
      for (const std::int64_t rows : {1, 3}) {
        CAPTURE(count);
        CAPTURE(stride);
        std::vector<std::int32_t> tokens(count), seen;
        std::iota(tokens.begin(), tokens.end(), 0);
        const SlidingWindows source(tokens, "text", 12, stride);
        for (std::int64_t i = 0; i < source.validation_batches(rows); ++i) {
          const Batch b = source.validation(i, rows);
          CHECK(b.valid > 0);
          std::int64_t valid = 0;
          for (std::int64_t at = 0; at < rows * 12; ++at) {
            const std::int32_t target = b.targets[std::size_t(at)];
            if (target == kIgnoredTarget) continue;
            ++valid;
            CHECK(b.tokens[std::size_t(at)] == target - 1);
            CHECK(at % 12 + 1 >= std::min<std::int64_t>(target, 12 - stride + 1));
            seen.push_back(target);
          }
          CHECK(valid == b.valid);
        }
        CHECK(seen == std::vector<std::int32_t>(tokens.begin() + 1, tokens.end()));
      }
  for (const std::int64_t stride : {0, 13})
    CHECK(contains(message_of<UsageError>([&] { SlidingWindows({1, 2, 3}, "text", 12, stride); }), "from 1 to the model's context of 12"));
}

TEST_CASE("sliding windows: the loss is that of one forward pass a token") {
  const std::vector<std::int32_t> tokens = some_tokens(61);
  for (const char* attention : {"softmax", "hedgehog"})
    for (const std::int64_t stride : {1, 5, 12}) {
      CAPTURE(attention);
      CAPTURE(stride);
      const Gpt exact(small_model(attention, Dtype::f64)), single(small_model(attention, Dtype::f32));
      const double expected = naive_loss(exact, tokens, stride);
      const SlidingWindows source(tokens, "text", 12, stride);
      Evaluator in_f64(exact, 4, 12, false), in_f32(single, 4, 12, false);
      const SummedLoss sum = in_f64.sum_loss(source);
      CHECK(sum.tokens == 60);
      // 60 losses of some 3 nats, each after a few hundred roundings
      CHECK(std::abs(sum.nats - expected) <= 1e-12 * expected);
      CHECK(std::abs(in_f32.mean_loss(source) - expected / 60) <= 1e-6);
    }
}

TEST_CASE("sliding windows: words are what white space separates") {
  CHECK(count_words("") == 0);
  CHECK(count_words(" \n\t ") == 0);
  CHECK(count_words("one") == 1);
  CHECK(count_words(" = Robert <unk> = \n \n He said , \" no @-@ one \" .\n") == 13);
  CHECK(count_words("a\u00a0b\u3000c\xff d") == 4);  // no-break and ideographic spaces; a byte that is no character
}

}  // namespace hedgehog

#include <doctest/doctest.h>

#include <cmath>

#include "core/error.h"
#include "nn/gpt.h"
#include "ops/ops.h"
#include "tests/device_cases.h"
#include "tests/op_cases.h"
#include "tests/temporary_directory.h"
#include "train/generation.h"

using namespace hedgehog;
using namespace hedgehog::test;

namespace {

struct Case {
  std::int64_t C, D, heads, key_heads;
  std::string norm = "layer";
  bool biases = false, rotary = true;
};

Tensor drawn(Shape shape, Dtype dtype, std::uint32_t id, double scale, double shift = 0) {
  const Tensor x = parameter(shape, "x", dtype);
  std::vector<double> values = draw(x.size(), 5, id);
  for (double& v : values) v = v * scale + shift;
  x.copy_from(values);
  return x;
}

/// Tokens one by one through the op, and through the two that it is made of, from states of their own. All weights are parameters, as a
/// model's, so that kernels fetch them early.
void equals_two_ops(const Case& c, Dtype dtype) {
  CAPTURE(c.C);
  CAPTURE(c.D);
  CAPTURE(c.heads);
  const no_grad guard;
  const bool narrow = dtype == Dtype::bf16, layer = c.norm == "layer";
  const Dtype wide = narrow ? Dtype::f32 : dtype;
  const std::int64_t N = (c.heads + 2 * c.key_heads) * c.D;
  const Tensor norm_weight = drawn({c.C}, wide, 1, 0.5, 1), norm_bias = layer ? drawn({c.C}, wide, 2, 1) : Tensor{};
  const Tensor weight = drawn({c.C, N}, dtype, 3, 1 / std::sqrt(double(c.C))), bias = c.biases ? drawn({N}, dtype, 4, 1) : Tensor{};
  NormLinearAttentionStepOptions o{.heads = c.heads, .key_heads = c.key_heads, .norm = c.norm};
  const double scale = 1 / std::sqrt(double(c.D));
  o.attention.weight_q = drawn({c.heads, c.D, c.D}, dtype, 5, scale);
  o.attention.weight_k = drawn({c.heads, c.D, c.D}, dtype, 6, scale);
  if (c.biases) o.attention.bias_q = drawn({c.heads, c.D}, dtype, 7, 1), o.attention.bias_k = drawn({c.heads, c.D}, dtype, 8, 1);
  const Tensor ours = state({1, c.heads, 2 * c.D, c.D + 2}, wide, "ours"), theirs = state(ours.shape(), wide, "theirs");
  ours.fill(0);
  theirs.fill(0);
  // in bf16 a sum in another order rounds some of q, k and v the other way: less than one rounding of all of them
  // else these are the same kernels on the same numbers
  const double tolerance = narrow ? 0x1p-8 : 0;
  for (std::int64_t t = 0; t < 5; ++t) {
    CAPTURE(t);
    const Tensor x = drawn({1, 1, c.C}, dtype, 10 + std::uint32_t(t), 2, 0.5);
    if (c.rotary) o.attention.rotary = drawn({1, c.D}, wide, 20 + std::uint32_t(t), 0.7);
    const Tensor y = norm_linear_attention_step(x, norm_weight, norm_bias, weight, bias, ours, o);
    const Tensors parts = split(norm_linear(x, norm_weight, norm_bias, weight, bias, {.norm = c.norm}),
                                {c.heads * c.D, c.key_heads * c.D, c.key_heads * c.D});
    auto heads = [&](int part, std::int64_t count) { return reshape(parts[std::size_t(part)], {1, 1, count, c.D}); };
    const Tensor expected = linear_attention_step(heads(0, c.heads), heads(1, c.key_heads), heads(2, c.key_heads), theirs, o.attention);
    auto check = [&](const Tensor& a, const Tensor& b) {
      const std::vector<double> right = b.to_vector();
      CHECK(rms(difference(a.to_vector(), right)) <= tolerance * rms(right));
    };
    check(y, expected);
    check(ours, theirs);
    clear_tape();
  }
}

/// A text read token by token, by replay, ends with the logits of the whole.
void reads_as_the_whole(Dtype dtype) {
  GptOptions o;
  o.layers = 3;
  o.heads = 3;
  o.width = 192;
  o.context = 64;
  o.vocabulary = 96;
  o.bias = true;
  o.dtype = dtype;
  const Gpt model(o);
  std::vector<std::int32_t> ids;
  for (std::int32_t i = 0; i < 40; ++i) ids.push_back(i * 7 % 96);
  Generator generator(model, 64);
  generator.read(ids);
  const no_grad guard;
  const Tensor tokens = input({1, 40}, "tokens", Dtype::i32);
  tokens.copy_from(std::vector<double>(ids.begin(), ids.end()));
  const std::vector<double> all = model.logits(model.hidden(tokens)).to_vector(), last(all.end() - 96, all.end());
  clear_tape();
  // some dozen roundings along the residual stream, of which most are independent
  const double tolerance = dtype == Dtype::bf16 ? 0x1p-5 : 0x1p-16;
  CHECK(rms(difference(generator.logits(), last)) <= tolerance * rms(last));
}

}  // namespace

TEST_CASE("norm_linear_attention_step: equals norm_linear and linear_attention_step one after the other") {
  equals_two_ops({.C = 12, .D = 4, .heads = 2, .key_heads = 2}, Dtype::f64);
  equals_two_ops({.C = 7, .D = 6, .heads = 4, .key_heads = 2, .norm = "rms", .biases = true, .rotary = false}, Dtype::f64);
}

TEST_CASE("norm_linear_attention_step: a text token by token gives the logits of the whole") { reads_as_the_whole(Dtype::f32); }

TEST_CASE("norm_linear_attention_step: wrong arguments are refused with what was expected") {
  const no_grad guard;
  const Tensor x = input({2, 1, 8}, "x"), norm = input({8}, "norm"), weight = input({8, 24}, "weight"), st = state({2, 2, 4, 6}, Dtype::f32, "state");
  const auto refusal = [&](const Tensor& x, const Tensor& norm, const Tensor& weight, const Tensor& st, const NormLinearAttentionStepOptions& o) {
    return message_of<ShapeError>([&] { norm_linear_attention_step(x, norm, {}, weight, {}, st, o); });
  };
  const auto with = [](std::int64_t heads, std::int64_t key_heads, const Tensor& rotary = {}) {
    NormLinearAttentionStepOptions o{.heads = heads, .key_heads = key_heads};
    o.attention.map = "elu";
    o.attention.rotary = rotary;
    return o;
  };
  const auto says = [](const std::string& text, const char* part) {
    CAPTURE(text);
    CHECK(text.find(part) != std::string::npos);
  };
  CHECK(refusal(x, norm, weight, st, with(2, 2)) == "");
  says(refusal(x, norm, weight, st, with(0, 0)), "heads must be at least 1");
  says(refusal(x, norm, weight, st, with(2, -1)), "key_heads must be at least 1, or 0");
  says(refusal(x, norm, weight, st, with(3, 2)), "heads must be a multiple of key_heads");
  says(refusal(x, norm, weight, st, with(5, 5)), "are no multiple of 15");
  says(refusal(input({2, 8}, "x"), norm, weight, st, with(2, 2)), "(B, n, C)");
  says(refusal(x, input({7}, "norm"), weight, st, with(2, 2)), "norm_weight must have shape (C) = (8)");
  says(refusal(x, norm, input({7, 24}, "weight"), st, with(2, 2)), "weight must be (C, (Hq + 2 Hkv) D) with C = 8");
  says(refusal(x, norm, weight, state({2, 2, 5, 6}, Dtype::f32, "state"), with(2, 2)), "state must have shape");
  says(refusal(x, norm, weight, st, with(2, 2, input({2, 4}, "rotary"))), "rotary must have shape (n, D) = (1, 4)");
  says(refusal(x, norm, input({8, 18}, "weight"), st, with(2, 2, input({1, 3}, "rotary"))), "D must be even where rotary is given");
}

TEST_SUITE("device") {
  TEST_CASE("norm_linear_attention_step: equals norm_linear and linear_attention_step one after the other on the GPU") {
    on_cuda([] {
      equals_two_ops({.C = 768, .D = 64, .heads = 12, .key_heads = 12}, Dtype::bf16);
      equals_two_ops({.C = 768, .D = 64, .heads = 12, .key_heads = 4, .biases = true}, Dtype::bf16);
      equals_two_ops({.C = 200, .D = 64, .heads = 3, .key_heads = 1, .norm = "rms", .rotary = false}, Dtype::bf16);
      equals_two_ops({.C = 2048, .D = 64, .heads = 32, .key_heads = 32, .biases = true}, Dtype::bf16);
      // two launches
      equals_two_ops({.C = 2056, .D = 64, .heads = 1, .key_heads = 1}, Dtype::bf16);
      equals_two_ops({.C = 64, .D = 32, .heads = 2, .key_heads = 2}, Dtype::bf16);
      equals_two_ops({.C = 192, .D = 64, .heads = 3, .key_heads = 3}, Dtype::f32);
    });
  }

  TEST_CASE("norm_linear_attention_step: a text token by token gives the logits of the whole on the GPU") {
    on_cuda([] { reads_as_the_whole(Dtype::bf16); });
  }
}

#pragma once
#include "ops/check.h"
#include "ops/feature_map_rows.h"

/// Argument checks shared by the attention ops.
namespace hedgehog {

/// q (B, T, Hq, D), k (B, T, Hkv, D), v (B, T, Hkv, Dv), one dtype, Hq a multiple of Hkv.
inline void check_attention_heads(const Op& op, const Meta& q, const Meta& k, const Meta& v) {
  check_floating(op, "q", q);
  check_rank(op, "q", q, 4, "(B, T, Hq, D)");
  check_rank(op, "k", k, 4, "(B, T, Hkv, D)");
  check_rank(op, "v", v, 4, "(B, T, Hkv, Dv)");
  check_dtype(op, "k", k, q.dtype, "q");
  check_dtype(op, "v", v, q.dtype, "q");
  check_shape(op, "k", k, Shape{q.shape[0], q.shape[1], k.shape[2], q.shape[3]}, "(B, T, Hkv, D)", "q", q);
  check_shape(op, "v", v, Shape{q.shape[0], q.shape[1], k.shape[2], v.shape[3]}, "(B, T, Hkv, Dv)", "k", k);
  if (q.shape[2] % k.shape[2] != 0)
    fail(op, fmt::format("needs a number of query heads that is a multiple of the key heads, but q has {} and k has {}; change one of them",
                         q.shape[2], k.shape[2]));
}

/// i32 (B, T), if given.
inline void check_token_numbers(const Op& op, const char* name, const Meta& numbers, const Meta& q) {
  if (!numbers.given) return;
  check_dtype(op, name, numbers, Dtype::i32);
  check_shape(op, name, numbers, Shape{q.shape[0], q.shape[1]}, "(B, T)", "q", q);
}

/// Table (tokens, D) of rotary_table, if given; `form` as the op's header has it.
inline void check_rotary(const Op& op, const Meta& table, const Meta& q, const char* form) {
  if (!table.given) return;
  if (q.shape[3] % 2 != 0)
    fail(op, fmt::format("D must be even where rotary is given, since features turn in pairs, but q is {}; choose another head size",
                         q.shape.text()));
  check_dtype(op, "rotary", table, accumulator_of(q.dtype), q.dtype == Dtype::bf16 ? nullptr : "q");
  check_shape(op, "rotary", table, {q.shape[1], q.shape[3]}, form, "q", q);
}

/// Keys and values of tokens (B, P, 2, Hkv, D) that belong to keys k (B, n, Hkv, D), and the number of tokens so far, (1); `form` as the op's
/// header has the former.
inline void check_cache(const Op& op, const Meta& cache, const Meta& position, const Meta& q, const Meta& k, const char* form) {
  check_dtype(op, "cache", cache, q.dtype, "q");
  check_rank(op, "cache", cache, 5, form);
  check_shape(op, "cache", cache, Shape{q.shape[0], cache.shape[1], 2, k.shape[2], q.shape[3]}, form, "k", k);
  check_dtype(op, "position", position, Dtype::i32);
  if (!(position.shape == Shape{1})) fail(op, fmt::format("position must have shape (1), but has {}", position.shape.text()));
}

constexpr std::int64_t kLargestWidth = 256;
constexpr std::int64_t kLargestFeatures = 2 * kLargestWidth;

/// Maps of linear attention: weights (Hq, D, D') both or neither, biases (Hq, D') only with them. `maps` starts at weight_q and
/// holds weight_q, weight_k, bias_q, bias_k. Without weights D may be as large as the features of the widest map.
inline void check_attention_maps(const Op& op, const Attributes& attributes, const Meta& q, std::span<const Meta> maps) {
  const std::int64_t D = q.shape[3];
  const FeatureMap map = feature_map_of(op.name.c_str(), attributes);
  if (maps[0].given ? D > kLargestWidth : map.features(D) > kLargestFeatures)
    fail(op, fmt::format("q has head dimension D = {}, but at most {} is supported; use more heads{}", D,
                         maps[0].given || map.two_halves() ? kLargestWidth : kLargestFeatures,
                         map.kind == MapKind::identity || map.kind == MapKind::exp
                             ? ", or fewer features: vectors of fewer dimensions or the compact form of taylor_features, a projection of "
                               "fewer rows of performer_features"
                             : ""));
  if (maps[0].given != maps[1].given)
    fail(op, "needs weight_q and weight_k together, but only one of them is given; give both or neither");
  for (int side = 0; side < 2; ++side) {
    const Meta &weight = maps[side], &bias = maps[2 + side];
    const char* name = side ? "weight_k" : "weight_q";
    if (weight.given) {
      check_dtype(op, name, weight, q.dtype, "q");
      if (weight.shape.rank() != 3 || weight.shape[0] != q.shape[2] || weight.shape[1] != q.shape[3])
        fail(op, fmt::format("{} must have shape (Hq, D, D') = ({}, {}, any) to match q {}, but has {}", name, q.shape[2], q.shape[3],
                             q.shape.text(), weight.shape.text()));
      if (weight.shape[2] != maps[0].shape[2])
        fail(op, fmt::format("weight_q {} and weight_k {} must agree in D', the last extent", maps[0].shape.text(), weight.shape.text()));
      if (weight.shape[2] > kLargestWidth)
        fail(op, fmt::format("{} has D' = {}, but at most {} is supported; use a narrower map", name, weight.shape[2], kLargestWidth));
    }
    if (!bias.given) continue;
    name = side ? "bias_k" : "bias_q";
    if (!weight.given) fail(op, fmt::format("{} needs the weights of the maps; give them or leave it out", name));
    check_dtype(op, name, bias, q.dtype, "q");
    check_shape(op, name, bias, Shape{q.shape[2], weight.shape[2]}, "(Hq, D')", "q", q);
  }
}

}  // namespace hedgehog

#pragma once
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "ops/elementwise.h"
#include "ops/linear_attention.h"
#include "ops/rotary.h"
#include "ops/shape.h"
#include "ops/softmax_attention.h"
#include "tests/parity.h"

/// Cases of both kinds of attention on windows of one packed tensor, tame and hard.
namespace hedgehog::test {

/// Attention on windows of one (B, T, (Hq + 2 Hkv) D) tensor.
struct AttentionShape {
  std::int64_t B = 2, T = 65, Hq = 2, Hkv = 2, D = 64;
  bool causal = true, documents = false;
  double scale = 1;
  std::int64_t window = 0;
  // of linear attention
  bool weights = true;
  double temperature = 1;
  bool initial = false, final = false;  // states
  bool state_alone = false;             // nothing but the final state has a gradient
  bool turned = false;                  // by rotary positions
  bool quarter_turns = false;           // by 0, 1, 2 or 3 right angles, which rounds nothing
  bool uneven = false;                  // of the initial state some rows are empty, and some so large that no key raises their shift
  std::string text() const {
    return fmt::format("B {} T {} H {}/{} D {}{}{}{}{}{} scale {}{}{}{}{}", B, T, Hq, Hkv, D, causal ? " causal" : "", documents ? " documents" : "",
                       window ? fmt::format(" window {}", window) : "",
                       initial ? uneven ? " uneven initial state" : " initial state" : "",
                       final ? state_alone ? " final state alone" : " final state" : "", scale,
                       turned ? " turned" : "", quarter_turns ? " turned by right angles" : "", weights ? "" : " no weights", temperature == 1 ? "" : fmt::format(" temperature {}", temperature));
  }
  SampleInput packed() const { return normal({B, T, (Hq + 2 * Hkv) * D}, scale); }
  Tensors parts(const Tensor& packed) const {
    const Tensors windows = split(packed, {Hq * D, Hkv * D, Hkv * D});
    return {reshape(windows[0], {B, T, Hq, D}), reshape(windows[1], {B, T, Hkv, D}), reshape(windows[2], {B, T, Hkv, D})};
  }
};

inline const Op& packed_softmax() {
  static const Op op{.name = "softmax_attention of packed", .arguments = {{"qkv"}, {"document_start", true, false}}};
  return op;
}

inline ParityCase softmax_case(const AttentionShape& s) {
  ParityCase c{.op = &packed_softmax(), .sample = {s.text(), {}, {s.packed(), s.documents ? documents({s.B, s.T}) : omitted()}}};
  c.function = [s](const Tensors& in) -> Tensors {
    const Tensors p = s.parts(in[0]);
    SoftmaxAttentionOptions o;
    o.causal = s.causal;
    o.document_start = in[1];
    o.window = s.window;
    return {softmax_attention(p[0], p[1], p[2], o)};
  };
  c.draws = s.T == 1 ? 9 : 3;
  c.passes = 2;
  return c;
}

enum PackedLinear : int { kPacked, kWeightQ, kWeightK, kBiasQ, kBiasK, kStart, kInitial };

inline const Op& packed_linear() {
  static const Op op{
      .name = "linear_attention of packed",
      .arguments = {{"qkv"}, {"weight_q", true}, {"weight_k", true}, {"bias_q", true}, {"bias_k", true}, {"document_start", true, false},
                    {"initial_state", true, true, true}},
  };
  return op;
}

/// Every third row gets z = 0, every third c = 6 more.
inline Tensor uneven(const Tensor& state) {
  const std::int64_t columns = state.shape().last(), D = columns - 2;
  std::vector<double> factor(std::size_t(state.size()), 1), addend(std::size_t(state.size()), 0);
  for (std::int64_t row = 0; row < state.size() / columns; ++row) {
    if (row % 3 == 0) factor[std::size_t(row * columns + D)] = 0;
    if (row % 3 == 1) addend[std::size_t(row * columns + D + 1)] = 6;
  }
  return state * constant(state.shape(), factor, state.dtype()) + constant(state.shape(), addend, state.dtype());
}

/// A table that turns pair i of token t by t + i right angles.
inline Tensor quarter_turns(std::int64_t T, std::int64_t D, Dtype dtype) {
  constexpr double kCosines[] = {1, 0, -1, 0}, kSines[] = {0, 1, 0, -1};
  std::vector<double> table(std::size_t(T * D));
  for (std::int64_t t = 0; t < T; ++t)
    for (std::int64_t i = 0; i < D / 2; ++i)
      table[std::size_t(t * D + i)] = kCosines[(t + i) % 4], table[std::size_t(t * D + D / 2 + i)] = kSines[(t + i) % 4];
  return constant({T, D}, table, dtype);
}

inline ParityCase linear_case(const AttentionShape& s, bool bias = false, const char* map = "hedgehog") {
  // features of "identity" must be positive, or denominators come near 0
  const bool identity = std::string(map) == "identity";
  const double size = 1 / std::sqrt(double(s.D));
  const Shape matrix{s.Hq, s.D, s.D}, vector{s.Hq, s.D};
  const SampleInput weight = !s.weights ? omitted() : identity ? positive(matrix) : normal(matrix, size);
  const SampleInput shift = !bias ? omitted() : identity ? positive(vector) : normal(vector, 0.1);
  ParityCase c{.op = &packed_linear(),
               .sample = {s.text() + " " + map,
                          {},
                          {identity ? positive({s.B, s.T, (s.Hq + 2 * s.Hkv) * s.D}, s.scale) : s.packed(), weight, weight, shift, shift,
                           s.documents ? documents({s.B, s.T}) : omitted(),
                           s.initial ? positive({s.B, s.Hq, 2 * s.D, s.D + 2}, 0.5) : omitted()}}};
  c.function = [s, map](const Tensors& in) -> Tensors {
    const Tensors p = s.parts(in[kPacked]);
    LinearAttentionOptions o;
    o.weight_q = in[kWeightQ];
    o.weight_k = in[kWeightK];
    o.bias_q = in[kBiasQ];
    o.bias_k = in[kBiasK];
    o.document_start = in[kStart];
    o.causal = s.causal;
    o.map = map;
    o.temperature = s.temperature;
    o.initial_state = s.uneven ? uneven(in[kInitial]) : in[kInitial];
    o.final_state = s.final;
    if (s.quarter_turns) o.rotary = quarter_turns(s.T, s.D, accumulator_of(p[0].dtype()));
    if (s.turned) o.rotary = rotary_table(s.T, s.D, 10000, {}, accumulator_of(p[0].dtype()));
    const LinearAttentionResult y = linear_attention(p[0], p[1], p[2], o);
    if (s.state_alone) return {y.final_state};
    return s.final ? Tensors{y.o, y.final_state} : Tensors{y.o};
  };
  c.draws = s.T == 1 ? 9 : 3;
  // one token sees itself alone: the gradients of q and k are exactly 0, and what is left of the terms that cancel, a dozen
  // roundings as where a whole tensor is 0, counts against that of v
  if (s.T == 1) c.conditioning = 12 * 0x1p-24;
  c.passes = 2;
  return c;
}

/// One key in the middle of head 0 has u = 120 in feature 5: earlier rows of its tile must be redone in log space.
inline ParityCase one_large_key(const AttentionShape& s, const char* map = "hedgehog") {
  ParityCase c = linear_case(s, false, map);
  c.sample.label += ", a key at u = 120";
  // in its gradient, differences v - o that cancel for this key count 120 times
  c.sample.inputs[kWeightK] = constant_input(c.sample.inputs[kWeightK]);
  c.conditioning = 120 * 0x1p-24;
  c.change = [s](Numbers& numbers) {
    for (std::int64_t i = 0; i < s.D; ++i)
      for (std::int64_t j = 0; j < s.D; ++j) numbers[kWeightK][std::size_t(i * s.D + j)] = i == j;
    const std::int64_t width = (s.Hq + 2 * s.Hkv) * s.D, token = s.T / 2;
    for (std::int64_t i = 0; i < s.D; ++i) numbers[kPacked][std::size_t(token * width + s.Hq * s.D + i)] = i == 5 ? 120 : 0;
  };
  return c;
}

/// Three queries in the middle of head 0 have their features where only the key after them has some: rows that must be redone in log
/// space where a softmax bounds all features.
inline ParityCase late_key(const AttentionShape& s, const char* map) {
  ParityCase c = linear_case(s, false, map);
  c.sample.label += ", a late key";
  // inputs of 60 multiply what cancels in the gradients of the maps
  for (const int weight : {kWeightQ, kWeightK}) c.sample.inputs[std::size_t(weight)] = constant_input(c.sample.inputs[std::size_t(weight)]);
  c.conditioning = 120 * 0x1p-24;
  c.change = [s](Numbers& numbers) {
    for (const int weight : {kWeightQ, kWeightK})
      for (std::int64_t i = 0; i < s.D; ++i)
        for (std::int64_t j = 0; j < s.D; ++j) numbers[std::size_t(weight)][std::size_t(i * s.D + j)] = i == j;
    const std::int64_t width = (s.Hq + 2 * s.Hkv) * s.D, last = s.T / 2 + 3;
    const auto move = [&](std::int64_t token, std::int64_t at, std::int64_t feature) {
      double* const x = numbers[kPacked].data() + token * width + at;
      x[feature] += 60, x[feature + 1] -= 60;
    };
    for (std::int64_t token = last - 3; token < last; ++token) move(token, 0, 5);
    for (std::int64_t token = 0; token <= last; ++token) move(token, s.Hq * s.D, token < last ? 7 : 5);
  };
  return c;
}

/// Queries and keys of "identity" without weights that are 0: the first keys, which leave rows without a denominator, and a few queries.
inline ParityCase empty_rows(const AttentionShape& s) {
  ParityCase c = linear_case(s, false, "identity");
  c.sample.label += ", rows without a denominator";
  c.change = [s](Numbers& numbers) {
    const std::int64_t width = (s.Hq + 2 * s.Hkv) * s.D;
    for (std::int64_t token = 0; token < s.B * s.T; ++token) {
      double* const row = numbers[kPacked].data() + token * width;
      if (token % s.T < 20) std::fill(row + s.Hq * s.D, row + (s.Hq + s.Hkv) * s.D, 0.0);
      if (token % 37 == 5) std::fill(row, row + s.D, 0.0);
    }
  };
  return c;
}

}  // namespace hedgehog::test

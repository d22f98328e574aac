#pragma once
#include "ops/hybrid_attention.h"
#include "tests/attention_map_cases.h"

/// Cases of attention that softmax and linear attention share, and of softmax attention in a window alone.
namespace hedgehog::test {

inline const Op& packed_hybrid() {
  static const Op op{.name = "hybrid_attention of packed",
                     .arguments = {{"qkv"}, {"weight_q", true}, {"weight_k", true}, {"log_factor", true, true, true}, {"document_start", true, false}}};
  return op;
}

inline ParityCase hybrid_case(const AttentionShape& s, const char* map = "hedgehog", bool maximum = false, bool linear = true) {
  const Shape matrix{s.Hq, s.D, s.D};
  const SampleInput weight = s.weights ? normal(matrix, 1 / std::sqrt(double(s.D))) : omitted();
  // where no row reaches beyond its window, neither maps nor the factor matter
  const auto used = [&](const SampleInput& x) { return linear && s.T > s.window ? x : constant_input(x); };
  ParityCase c{.op = &packed_hybrid(),
               .sample = {s.text() + " " + map + (maximum ? " maximum" : "") + (linear ? "" : " window alone"),
                          {},
                          {s.packed(), s.weights ? used(weight) : weight, s.weights ? used(weight) : weight, used(normal({s.Hq}, 0.5)),
                           s.documents ? documents({s.B, s.T}) : omitted()}}};
  c.function = [s, map, maximum, linear](const Tensors& in) -> Tensors {
    const Tensors p = s.parts(in[0]);
    HybridAttentionOptions o;
    o.weight_q = in[1], o.weight_k = in[2], o.log_factor = in[3], o.document_start = in[4];
    o.window = s.window, o.map = map, o.maximum = maximum, o.linear = linear;
    return {hybrid_attention(p[0], p[1], p[2], o)};
  };
  c.draws = 3;
  c.passes = 2;
  return c;
}

inline Cases hybrid_cases() {
  Cases out;
  for (const std::int64_t T : {10, 64, 65, 128, 200, 300}) {
    out.push_back(hybrid_case({.T = T, .window = 64}));
    out.push_back(of_activations(out.back()));
  }
  for (const std::int64_t window : {1, 5, 63, 65, 100}) out.push_back(hybrid_case({.T = 200, .window = window}));
  out.push_back(hybrid_case({.B = 1, .T = 1100, .window = 64}));
  out.push_back(hybrid_case({.B = 1, .T = 1100, .documents = true, .window = 32}));
  out.push_back(hybrid_case({.T = 200, .documents = true, .window = 16}));
  out.push_back(hybrid_case({.T = 200, .scale = 2, .window = 64}));
  for (const std::int64_t D : {32, 40, 96, 128}) out.push_back(hybrid_case({.T = 200, .D = D, .window = 64}));
  out.push_back(hybrid_case({.T = 150, .Hq = 4, .Hkv = 2, .window = 32}));
  for (const char* map : {"hedgehog-softmax", "elu", "relu", "exp"}) out.push_back(hybrid_case({.T = 150, .window = 32}, map));
  out.push_back(hybrid_case({.T = 150, .window = 32, .weights = false}));
  out.push_back(hybrid_case({.T = 150, .Hq = 4, .Hkv = 2, .window = 32}, "hedgehog", true));
  out.push_back(hybrid_case({.T = 150, .window = 32}, "hedgehog", false, false));
  return shortened(out);
}

/// Windows around the sizes of tiles, and documents that end within.
inline Cases softmax_window_cases() {
  Cases out;
  for (const std::int64_t window : {1, 31, 32, 33, 64, 65, 130, 500})
    for (const std::int64_t T : {65, 300}) out.push_back(softmax_case({.T = T, .window = window}));
  for (const std::int64_t D : {32, 40, 96, 128})
    for (const bool documents : {false, true}) out.push_back(softmax_case({.T = 260, .Hq = 4, .D = D, .documents = documents, .window = 50}));
  return shortened(out);
}

}  // namespace hedgehog::test

#include <doctest/doctest.h>
#include <fmt/format.h>

#include <cmath>

#include "ops/embedding.h"
#include "tests/attention_window_cases.h"
#include "tests/device_cases.h"

using namespace hedgehog;
using namespace hedgehog::test;

// Sizes of more than one tile, and numbers that kernels must be prepared for; the samples of the ops are small and tame.

namespace {

ParityCase of(const char* op, const std::string& label, Attributes attributes, std::vector<SampleInput> inputs, int draws = 3) {
  all_ops();
  return {.op = &find_op(op), .sample = {label, std::move(attributes), std::move(inputs)}, .draws = draws};
}

/// Each case for the gradients of parameters, and again for those of activations.
Cases both(Cases cases) {
  const std::size_t count = cases.size();
  for (std::size_t i = 0; i < count; ++i) cases.push_back(of_activations(cases[i]));
  return cases;
}

Cases linear_cases() {
  Cases out;
  struct Size {
    std::int64_t m, k, n;
  };
  // three tiles of 128 rows and an odd rest, two and a rest of columns; k of some steps of 32; rows so few that blocks share their sums
  for (const auto [m, k, n] : {Size{384, 64, 128}, {391, 72, 40}, {391, 33, 65}, {3, 264, 520}, {391, 96, 264}, {2, 1096, 72}})
    for (const char* activation : {"none", "gelu", "gelu_erf", "silu", "relu"})
      for (const bool residual : {false, true}) {
        const bool bias = residual == (std::string(activation) == "none");
        const std::string label = fmt::format("{} x {} x {} {}{}{}", m, k, n, activation, bias ? " bias" : "", residual ? " residual" : "");
        out.push_back(of("linear", label, {{"activation", activation}},
                         {normal({m, k}), normal({k, n}, 1 / std::sqrt(double(k))), bias ? normal({n}) : omitted(),
                          residual ? normal({m, n}) : omitted()}));
      }
  return both(out);
}

Cases mlp_cases() {
  Cases out;
  struct Size {
    std::int64_t m, k, n, width;
  };
  for (const auto [m, k, n, width] : {Size{512, 64, 128, 72}, {1031, 72, 264, 40}, {1031, 33, 65, 31}, {3, 264, 520, 136}})
    for (const char* activation : {"gelu", "gelu_erf", "silu", "relu"})
      for (const bool bias : {false, true})
        out.push_back(of("mlp", fmt::format("{} x {} x {} x {} {}{}", m, k, n, width, activation, bias ? " bias residual" : ""),
                         {{"activation", activation}},
                         {normal({m, k}), normal({k, n}, 1 / std::sqrt(double(k))), normal({n, width}, 1 / std::sqrt(double(n))),
                          bias ? normal({n}) : omitted(), bias ? normal({width}) : omitted(), bias ? normal({m, width}) : omitted()}));
  return both(out);
}

Cases norm_cases() {
  Cases out;
  // several ranges of 32 rows and a rest; rows in registers, in memory, and narrower than a warp
  for (const std::int64_t C : {768, 384, 1000, 7}) {
    const Shape x{C > 500 ? 101 : 213, C};
    const std::string label = fmt::format("{} rows of {}", x[0], C);
    out.push_back(of("layer_norm", label, {}, {normal(x, 2, 0.5), normal({C}), normal({C})}));
    out.push_back(of("layer_norm", label + " without bias", {}, {normal(x, 2, 0.5), normal({C}), omitted()}));
    out.push_back(of("add_layer_norm", label, {}, {normal(x), normal(x, 2), normal({C}), normal({C})}));
    out.push_back(of("rms_norm", label, {}, {normal(x, 2, 0.5), normal({C})}));
    out.push_back(of("add_rms_norm", label, {}, {normal(x), normal(x, 2), normal({C})}));
  }
  return both(out);
}

Cases embedding_cases() {
  // more tokens than are put in order at a time, and rows of one packet or many
  return both({of("embedding", "one token 3000 times", {}, {integers({1, 3000}, 7, 8), normal({1000, 64}), omitted()}),
               of("embedding", "large vocabulary", {}, {integers({4, 512}, 0, 50304), normal({50304, 8}), normal({512, 8})}),
               of("embedding", "wide", {}, {integers({3, 57}, 0, 60), normal({60, 768}), normal({60, 768})})});
}

Cases classifier_cases() {
  auto sizes = [](std::int64_t N, std::int64_t C, std::int64_t V, std::int64_t classes, bool scale) {
    return of("classifier_cross_entropy", fmt::format("{} tokens, {} of {} classes", N, classes ? classes : V, V), {{"classes", classes}},
              {normal({N, C}), normal({V, C}, 1 / std::sqrt(double(C))), integers({N}, -1, classes ? classes : V),
               scale ? constant_input(normal({1}, 0.0, 0.125)) : omitted()});
  };
  Cases out = both({sizes(391, 64, 128, 0, true), sizes(391, 96, 128, 100, false), sizes(1, 64, 128, 0, false),
                    sizes(130, 8, 50304, 50257, true)});
  out[3].draws = out[7].draws = 1;
  // more logits than one tile holds, which is a matter of bytes: fewest in f64
  ParityCase tiles = sizes(700, 4, 50304, 50257, true);
  tiles.draws = 1;
  tiles.dtypes = {Dtype::f64};
  out.push_back(tiles);
  return out;
}

Cases convolution_cases() {
  return both({of("short_convolution", "K 4, C 192", {}, {normal({2, 131, 192}), normal({4, 192}), omitted()}),
               of("short_convolution", "K 4, C 192, documents", {}, {normal({3, 70, 192}), normal({4, 192}), documents({3, 70})}),
               of("short_convolution", "K 4, C 189", {}, {normal({2, 131, 189}), normal({4, 189}), omitted()})});
}

constexpr std::int64_t kTimes[] = {1, 63, 64, 65, 200, 257};

template <class Make>
Cases attention_cases(const Make& make) {
  Cases out;
  for (const std::int64_t D : {32, 64, 128})
    for (const std::int64_t T : kTimes)
      for (const bool causal : {true, false}) out.push_back(make({.T = T, .D = D, .causal = causal}));
  for (const std::int64_t T : {65, 200}) {
    out.push_back(make({.B = 1, .T = T, .Hq = 6, .Hkv = 2, .D = 64}));
    out.push_back(make({.B = 3, .T = T, .Hq = 4, .Hkv = 1, .D = 32, .causal = false}));
    out.push_back(make({.T = T, .D = 64, .documents = true}));
    out.push_back(make({.T = T, .D = 40}));
    out.push_back(of_activations(make({.T = T, .D = 64})));
  }
  // several chunks, and several segments of them, with documents that end within
  for (const std::int64_t T : {150, 1300})
    for (const std::int64_t D : {32, 64}) {
      out.push_back(make({.B = 1, .T = T, .D = D, .documents = true}));
      out.push_back(of_activations(out.back()));
    }
  return out;
}

/// +t to u_k and -t to u_q in every third feature: the exact result stays, but no scalar shift a head would do (design: one shift
/// a feature).
ParityCase shifted_features(const AttentionShape& s, double t) {
  ParityCase c = linear_case(s, true);
  c.sample.label += fmt::format(", features shifted by {}", t);
  c.conditioning = 2 * t * 0x1p-24;
  c.change = [t](Numbers& numbers) {
    for (std::size_t i = 0; i < numbers[kBiasK].size(); i += 3) {
      numbers[kBiasK][i] += t;
      numbers[kBiasQ][i] -= t;
    }
  };
  return c;
}

Cases hard_linear_cases() {
  Cases out;
  for (const std::int64_t T : {63, 65, 200, 257}) {
    out.push_back(linear_case({.T = T, .scale = 8}));
    out.push_back(linear_case({.T = T, .D = 32, .causal = false, .scale = 8}));
    out.push_back(one_large_key({.T = T}));
    out.push_back(one_large_key({.B = 1, .T = T, .D = 128}));
    for (const double t : {50.0, 200.0}) out.push_back(shifted_features({.T = T}, t));
  }
  // few heads and many chunks: segments, of which some are redone and some not
  out.push_back(one_large_key({.B = 1, .T = 1100}));
  out.push_back(linear_case({.B = 1, .T = 1100, .scale = 8}));
  return out;
}

/// Every query sees every key: sums over all tokens come first, of one segment or several, and keys that dwarf the others.
Cases bidirectional_cases() {
  Cases out;
  for (const std::int64_t D : {32, 64}) {
    for (const std::int64_t T : {1, 63, 64, 65, 200}) out.push_back(of_activations(linear_case({.T = T, .D = D, .causal = false})));
    for (const std::int64_t T : {600, 1100}) {
      out.push_back(linear_case({.B = 1, .T = T, .D = D, .causal = false}));
      out.push_back(of_activations(out.back()));
    }
    for (const std::int64_t T : {65, 257, 1100}) {
      out.push_back(linear_case({.B = 1, .T = T, .D = D, .causal = false, .scale = 8}));
      // all queries of head 0 see that key, and the differences that cancel in their gradients are all there is of f32's error
      out.push_back(one_large_key({.B = 1, .T = T, .D = D, .causal = false}));
      out.back().dtypes = {Dtype::bf16};
    }
  }
  return out;
}

/// Heads of 96 and 128: chunks of as many tokens, documents that end within, few heads and many chunks, grouped heads, and numbers
/// that need log space.
Cases large_head_cases() {
  Cases out;
  for (const std::int64_t D : {96, 128}) {
    for (const std::int64_t T : {std::int64_t(1), D - 1, D, D + 1, 2 * D + 5}) {
      out.push_back(linear_case({.B = T < D ? 2 : 1, .T = T, .D = D}));
      out.push_back(of_activations(out.back()));
    }
    for (const AttentionShape& s : {AttentionShape{.B = 2, .T = 2 * D + 70, .Hq = 1, .Hkv = 1, .D = D, .documents = true},
                                    AttentionShape{.B = 1, .T = D + 9, .Hq = 4, .Hkv = 2, .D = D, .documents = true},
                                    AttentionShape{.B = 1, .T = 2 * D + 1, .Hq = 3, .Hkv = 1, .D = D},
                                    AttentionShape{.B = 1, .T = 2 * D + 60, .D = D, .scale = 8},
                                    AttentionShape{.B = 1, .T = 1100, .Hq = 1, .Hkv = 1, .D = D, .documents = true},
                                    AttentionShape{.B = 1, .T = 1100, .Hq = 1, .Hkv = 1, .D = D}}) {
      out.push_back(linear_case(s));
      out.push_back(of_activations(out.back()));
    }
    for (const std::int64_t T : {D - 20, 2 * D + 60, 5 * D}) out.push_back(one_large_key({.B = 1, .T = T, .D = D}));
    out.push_back(of_activations(out.back()));
    out.push_back(one_large_key({.B = 2, .T = 2 * D + 60, .Hq = 2, .Hkv = 1, .D = D, .documents = true}));
    out.push_back(linear_case({.B = 1, .T = 5 * D, .Hq = 1, .Hkv = 1, .D = D, .scale = 8}));
  }
  for (ParityCase& c : out) {
    c.dtypes = {Dtype::bf16};  // others take no tensor cores
    if (c.sample.inputs[0].shape[1] > 1) c.draws = 1;
  }
  return out;
}

const std::vector<std::pair<const char*, Cases (*)()>>& all_cases() {
  static const std::vector<std::pair<const char*, Cases (*)()>> list{
      {"linear", linear_cases},
      {"mlp", mlp_cases},
      {"norms", norm_cases},
      {"embedding", embedding_cases},
      {"classifier", classifier_cases},
      {"short convolution", convolution_cases},
      {"softmax attention", [] { return attention_cases([](const AttentionShape& s) { return softmax_case(s); }); }},
      {"linear attention", [] { return attention_cases([](const AttentionShape& s) { return linear_case(s); }); }},
      {"hard numbers", hard_linear_cases},
      {"bidirectional", bidirectional_cases},
      {"large heads", large_head_cases},
      {"other maps", other_map_cases},
      {"normalised maps", normalised_map_cases},
      {"biases", bias_cases},
      {"one-sided maps", one_sided_map_cases},
      {"states", state_cases},
      {"turned", turned_cases},
      {"softmax window", softmax_window_cases},
      {"hybrid", hybrid_cases},
  };
  return list;
}

/// Whether the CPU has something to show on a case: rows of many hundred tokens are about how a device cuts its walks, and their plain form
/// costs their square.
bool tells_on_cpu(const ParityCase& c) { return !is_composite(c) || c.sample.inputs[0].shape[1] <= 300; }

void check_cases(const char* which, const std::function<Run(Dtype)>& run_of = run_here, bool on_cpu = false) {
  for (const auto& [name, cases] : all_cases()) {
    if (std::string(name) != which) continue;
    for (ParityCase c : cases()) {
      if (on_cpu && !tells_on_cpu(c)) continue;
      if (on_cpu && is_composite(c) && c.sample.inputs[0].shape[1] > 1) c.draws = 1;
      CHECK(check_parity(c, run_of) == int(c.dtypes.size()));  // every dtype was compared
    }
  }
}

}  // namespace

TEST_SUITE("device") {
  TEST_CASE("parity: linear of many tiles, aligned and odd") { on_cuda([] { check_cases("linear"); }); }
  TEST_CASE("parity: mlp of many tiles, aligned and odd") { on_cuda([] { check_cases("mlp"); }); }
  TEST_CASE("parity: norms of the presets' widths and odd ones") { on_cuda([] { check_cases("norms"); }); }
  TEST_CASE("parity: embedding with one token 3000 times, and a large vocabulary") { on_cuda([] { check_cases("embedding"); }); }
  TEST_CASE("parity: classifier over several tiles of tokens, with padded classes") { on_cuda([] { check_cases("classifier"); }); }
  TEST_CASE("parity: short convolution of packed queries, keys and values") { on_cuda([] { check_cases("short convolution"); }); }
  TEST_CASE("parity: softmax attention over packed windows around the tile sizes") { on_cuda([] { check_cases("softmax attention"); }); }
  TEST_CASE("parity: linear attention over packed windows around the tile sizes") { on_cuda([] { check_cases("linear attention"); }); }
  TEST_CASE("parity: linear attention of large numbers, moving shifts and rows redone in log space") {
    on_cuda([] { check_cases("hard numbers"); });
  }
  TEST_CASE("parity: linear attention in which every query sees every key") { on_cuda([] { check_cases("bidirectional"); }); }
  TEST_CASE("parity: linear attention of large heads") { on_cuda([] { check_cases("large heads"); }); }
  TEST_CASE("parity: linear attention of the other maps") { on_cuda([] { check_cases("other maps"); }); }
  TEST_CASE("parity: linear attention of the normalised maps") { on_cuda([] { check_cases("normalised maps"); }); }
  TEST_CASE("parity: linear attention with biases of the maps") { on_cuda([] { check_cases("biases"); }); }
  TEST_CASE("parity: linear attention with one feature a column") { on_cuda([] { check_cases("one-sided maps"); }); }
  TEST_CASE("parity: linear attention from a state to a state") { on_cuda([] { check_cases("states"); }); }
  TEST_CASE("parity: linear attention of queries and keys that rotary turns") { on_cuda([] { check_cases("turned"); }); }
  TEST_CASE("parity: softmax attention in a window") { on_cuda([] { check_cases("softmax window"); }); }
  TEST_CASE("parity: hybrid attention of windows and documents around the tile sizes") { on_cuda([] { check_cases("hybrid"); }); }
}

TEST_CASE("parity: the shapes by hand are accepted") {
  for (const auto& [name, cases] : all_cases()) {
    CAPTURE(name);
    CHECK(!cases().empty());
    for (const ParityCase& c : cases()) {
      CAPTURE(c.sample.label);
      for (const Dtype dtype : c.dtypes) CHECK(kept_in(c, dtype).has_value());
    }
  }
}

// what the suite above costs without a device, whose part is small
TEST_CASE("parity: the CPU passes the shapes by hand in a device's place" * doctest::test_suite("slow")) {
  auto stored = [](Dtype dtype) -> Run {
    return [dtype](const ParityCase& c, const Drawn& drawn, const Kept& kept) {
      return dtype == Dtype::bf16 ? run_stored(c, drawn, kept, Dtype::f64) : run_case(c, drawn, dtype);
    };
  };
  for (const auto& [name, cases] : all_cases()) {
    SUBCASE(name) { check_cases(name, stored, true); }
  }
}

TEST_CASE("parity: tensor cores' roundings pass on the shapes by hand" * doctest::test_suite("slow")) {
  auto products = [](Dtype) -> Run {
    return [](const ParityCase& c, const Drawn& drawn, const Kept& kept) { return run_products(c, drawn, kept, Dtype::f64); };
  };
  for (const auto& [name, cases] : all_cases()) {
    CAPTURE(name);
    for (ParityCase c : cases()) {
      // composed exponentials of hard numbers overflow
      if (!is_composite(c) || !tells_on_cpu(c) || c.change || c.dtypes.back() != Dtype::bf16) continue;
      c.dtypes = {Dtype::bf16};
      c.draws = 1;
      check_parity(c, products);
    }
  }
}

TEST_CASE("parity: the CPU's kernel of linear attention stands the hard numbers, and redoes rows in log space") {
  const std::int64_t before = linear_attention_log_space_rows();
  for (ParityCase c : hard_linear_cases()) {
    CAPTURE(c.sample.label);
    c.draws = 1;
    if (c.sample.inputs[0].shape[1] != 65) continue;
    for (const Errors& e : compare(c, Dtype::f32, run_here(Dtype::f32))) {
      const std::string wrong = e.verdict();
      CHECK_MESSAGE(wrong.empty(), wrong);
    }
  }
  CHECK(linear_attention_log_space_rows() > before);
}

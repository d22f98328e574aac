#include "ops/linear_attention.h"

#include <fmt/format.h>

#include <atomic>

#include "core/dispatch.h"
#include "ops/attention_check.h"
#include "ops/linear_attention_sizes.h"

namespace hedgehog {

extern const Op kLinearAttention;

namespace linear_attention_detail {
namespace {

Layout infer(const Attributes& attributes, std::span<const Meta> in) {
  const Op& op = kLinearAttention;
  const Meta& q = in[kQ];
  check_attention_heads(op, q, in[kK], in[kV]);
  check_attention_maps(op, attributes, q, in.subspan(kWeightQ, 4));
  check_token_numbers(op, "document_start", in[kDocumentStart], q);
  check_token_numbers(op, "mask", in[kMask], q);
  check_rotary(op, in[kRotary], q, "(T, D)");
  const std::int64_t chunk = attributes.integer("chunk");
  if (chunk < 0) fail(op, fmt::format("chunk must be positive, or 0 to let the op choose, but is {}", chunk));
  const Sizes s = sizes_of(attributes, q.shape, in[kK].shape, in[kV].shape, in[kWeightQ].given ? &in[kWeightQ].shape : nullptr);
  if (in[kInitialState].given) {
    check_dtype(op, "initial_state", in[kInitialState], accumulator_of(q.dtype), q.dtype == Dtype::bf16 ? nullptr : "q");
    check_shape(op, "initial_state", in[kInitialState], s.state_shape(), "(B, Hq, F, Dv + 2)", "q", q);
  }
  Layout layout;
  layout.outputs = {{Shape{s.B, s.T, s.Hq, s.Dv}, q.dtype}, {s.final_state ? s.state_shape() : Shape{1}, accumulator_of(q.dtype)}};
  layout.saved = {{Shape{s.B, s.T, s.Hq}, accumulator_of(q.dtype)}};
  dispatch_workspace(q.dtype, [&](auto) {
    layout.forward_workspace = forward_bytes(s, q.dtype);
    layout.backward_workspace = backward_bytes(s, q.dtype);
  });
  return layout;
}

/// Multiply-adds of one head and token: maps, inside a chunk (half of it visible), states.
std::pair<Work, Work> cost(const Attributes& a, std::span<const Meta> in, std::span<const Meta>) {
  const Sizes s = sizes_of(a, in[kQ].shape, in[kK].shape, in[kV].shape, in[kWeightQ].given ? &in[kWeightQ].shape : nullptr);
  const double rows = double(s.B * s.T * s.Hq), F = double(s.F), Dv = double(s.Dv);
  const double map = in[kWeightQ].given ? double(s.D * s.width) : 0, seen = s.causal ? double(s.chunk + 1) / 2 : 0;
  const bool states = !s.causal || s.chunks() > 1 || s.final_state || in[kInitialState].given;
  const double forward = 2 * map + seen * (F + Dv) + (states ? 2 * F * Dv : 0);
  const double backward = 6 * map + seen * (3 * F + 2 * Dv) + (states ? 5 * F * Dv : 0);
  const double turns = in[kRotary].given ? 3.0 * double(in[kQ].shape.size() + in[kK].shape.size()) : 0;
  return {{2 * rows * forward + turns}, {2 * rows * backward + 2 * turns}};
}

/// Sizes of a sample: extents differ pairwise.
struct SampleShape {
  std::int64_t B = 2, T = 11, Hq = 4, Hkv = 2, D = 3, Dv = 5, width = 6;
};

struct SampleArguments {
  bool weights = true, bias = false, documents = false, mask = false, initial = false, positive = false, only_v = false, rotary = false;
};

Sample sample(std::string label, Attributes attributes, const SampleShape& s, const SampleArguments& g) {
  const std::string map = attributes.contains("map") ? attributes.text("map") : "hedgehog";
  const std::int64_t width = g.weights ? s.width : s.D, F = map.rfind("hedgehog", 0) == 0 ? 2 * width : width;
  auto features = [&](const Shape& shape) {
    const SampleInput in = g.positive ? positive(shape, 0.5) : map == "relu" && !g.weights ? away_from_zero(shape, 1) : normal(shape, 0.8);
    return g.only_v ? constant_input(in) : in;
  };
  auto optional = [&](bool given, const SampleInput& in) { return !given ? omitted() : g.only_v ? constant_input(in) : in; };
  // relu: most features alive, else the gradient is a difference of nearly equal sums
  const SampleInput weight = normal({s.Hq, s.D, width}, 0.5), bias = normal({s.Hq, width}, 0.5, map == "relu" ? 1 : 0);
  return {std::move(label),
          std::move(attributes),
          {features({s.B, s.T, s.Hq, s.D}), features({s.B, s.T, s.Hkv, s.D}), normal({s.B, s.T, s.Hkv, s.Dv}), optional(g.weights, weight),
           optional(g.weights, weight), optional(g.bias, bias), optional(g.bias, bias),
           g.documents ? documents({s.B, s.T}) : omitted(), g.mask ? mask({s.B, s.T}) : omitted(),
           g.initial ? positive({s.B, s.Hq, F, s.Dv + 2}, 0.5) : omitted(), g.rotary ? normal({s.T, s.D}) : omitted()}};
}

std::vector<Sample> samples() {
  std::vector<Sample> list;
  const SampleShape usual;
  for (bool causal : {true, false}) {
    const std::string suffix = causal ? " causal" : " bidirectional";
    for (const char* map : {"hedgehog", "hedgehog-softmax", "hedgehog-joint", "elu", "relu", "exp", "identity"}) {
      const bool identity = std::string(map) == "identity";
      const Attributes a{{"map", map}, {"causal", causal}, {"temperature", std::string(map) == "exp" ? 0.75 : 1.0}, {"chunk", 4}};
      list.push_back(sample(map + suffix, a, usual, {.weights = !identity, .bias = !identity, .positive = identity}));
    }
    const Attributes state{{"causal", causal}, {"chunk", 4}, {"final_state", true}};
    list.push_back(sample("states" + suffix, state, usual, {.initial = true}));
    list.push_back(sample("final state" + suffix, state, {.T = 9, .Hq = 6}, {.bias = true}));
    list.push_back(sample("everything" + suffix, state, {.B = 3, .T = 17, .Hq = 2, .Hkv = 1},
                          {.bias = true, .documents = true, .initial = true}));
    list.push_back(sample("mask and states" + suffix, state, usual, {.mask = true, .initial = true}));
    list.push_back(sample("elu states" + suffix, {{"map", "elu"}, {"causal", causal}, {"chunk", 4}, {"final_state", true}}, usual,
                          {.documents = true, .initial = true}));
    const Attributes plain{{"causal", causal}, {"chunk", 4}};
    list.push_back(sample("documents" + suffix, plain, {.T = 17}, {.documents = true}));
    list.push_back(sample("mask" + suffix, plain, {.T = 13, .Hq = 1, .Hkv = 1}, {.mask = true}));
    list.push_back(sample("relu mask" + suffix, {{"map", "relu"}, {"causal", causal}, {"chunk", 3}}, usual, {.bias = true, .mask = true}));
    list.push_back(sample("documents and mask" + suffix, plain, {.T = 17, .Hkv = 4}, {.documents = true, .mask = true}));
    list.push_back(sample("no weights" + suffix, plain, {.T = 7, .D = 5, .Dv = 3}, {.weights = false}));
    list.push_back(sample("turned" + suffix, plain, {.T = 13, .D = 6, .width = 7}, {.bias = true, .documents = true, .rotary = true}));
    list.push_back(sample("turned, no weights" + suffix, {{"map", "elu"}, {"causal", causal}, {"chunk", 4}}, {.Hkv = 4, .D = 8},
                          {.weights = false, .rotary = true}));
    for (std::int64_t T : {3, 4, 5, 17})
      list.push_back(sample(fmt::format("T = {}{}", T, suffix), plain, {.B = 3, .T = T, .Hq = 2, .Hkv = 2, .D = 6, .width = 7}, {}));
    list.push_back(sample("chosen chunk" + suffix, {{"causal", causal}}, {.B = 1, .T = 37, .Hq = 2, .Hkv = 2}, {}));
    list.push_back(sample("smallest" + suffix, {{"causal", causal}}, {.B = 1, .T = 1, .Hq = 1, .Hkv = 1, .D = 1, .Dv = 1},
                          {.weights = false, .only_v = true}));
  }
  return list;
}

Fault fault(const char* name, const char* what, Lost lost, const char* only = "") {
  return {name, what, {}, [lost](const Attributes& a, const Tensors& in) { return composed(a, in, lost); }, only};
}

std::atomic<std::int64_t> slow_calls{0};

}  // namespace

void count_slow_call() { slow_calls.fetch_add(1, std::memory_order_relaxed); }

}  // namespace linear_attention_detail

std::int64_t linear_attention_slow_calls() { return linear_attention_detail::slow_calls.load(); }

namespace la = linear_attention_detail;

const Op kLinearAttention{
    .name = "linear_attention",
    .arguments = {{"q"}, {"k"}, {"v"}, {"weight_q", true}, {"weight_k", true}, {"bias_q", true}, {"bias_k", true},
                  {"document_start", true, false}, {"mask", true, false}, {"initial_state", true, true, true}, {"rotary", true, false, true}},
    .results = {"o", "final_state"},
    .saved_names = {"denominator"},
    .attributes = {{"map", "hedgehog"}, {"causal", true}, {"temperature", 1.0}, {"chunk", 0}, {"final_state", false}},
    .infer = la::infer,
    .forward = {la::forward_cpu},
    .backward = {la::backward_cpu},
    .reads = {.inputs = (1u << la::kInputs) - 1, .outputs = bits(0), .saved = bits(0)},
    .strided = bits(0, 1, 2),
    .cost = la::cost,
    .reference = [](const Attributes& a, const Tensors& in) { return la::composed(a, in, la::Lost::nothing); },
    .formula_forward = "q, k turned by rotary, if there is a table;  A_ij = phi_q(q_i) . phi_k(k_j);  o_i = sum_j A_ij v_j / sum_j A_ij",
    .formula_backward = "W_ij = (G_i . (v_j - o_i)) / den_i;  dphi_q = W phi_k;  dphi_k = W^T phi_q;  dv = (A / den)^T G;  dq, dk turned back by rotary",
    .samples = la::samples(),
    .faults = {la::fault("normaliser to k", "the path of the normaliser to k is lost (dk alone is wrong)",
                                              la::Lost::normaliser_to_k, "hedgehog causal"),
               la::fault("normaliser to q", "the path of the normaliser to q is lost",
                                              la::Lost::normaliser_to_q, "hedgehog causal"),
               la::fault("mask before the map", "padding is zeroed before the map, and phi(0) is not 0",
                                              la::Lost::mask_first, "mask causal")},
};

LinearAttentionResult linear_attention(const Tensor& q, const Tensor& k, const Tensor& v, const LinearAttentionOptions& o,
                                       SourceLine where) {
  const Attributes attributes{
      {"map", o.map}, {"causal", o.causal}, {"temperature", o.temperature}, {"chunk", o.chunk}, {"final_state", o.final_state}};
  const Tensors results = apply(kLinearAttention, attributes,
                                {q, k, v, o.weight_q, o.weight_k, o.bias_q, o.bias_k, o.document_start, o.mask, o.initial_state, o.rotary},
                                where);
  return {results[0], results[1]};
}

}  // namespace hedgehog

#include "ops/linear_attention_step.h"

#include <fmt/format.h>

#include "core/dispatch.h"
#include "ops/attention_check.h"
#include "ops/linear_attention_step_token.h"

namespace hedgehog {

extern const Op kLinearAttentionStep;

namespace linear_attention_detail {
namespace {

constexpr const char* kName = "linear_attention_step";

template <class T>
void forward(const Call& c) {
  const Sizes s = step_sizes(c.attributes, c.inputs);
  const HeadRows<T> q(kName, c.inputs[kStepQ]), k(kName, c.inputs[kStepK]), v(kName, c.inputs[kStepV]), o(kName, c.outputs[0]);
  Carver carver(c.workspace);
  std::vector<StepScratch<T>> scratch;
  for (std::int64_t w = 0; w < worker_count(s.B * s.Hq); ++w) scratch.emplace_back(carver, s);
  worker_tasks(s.B * s.Hq, [&](std::int64_t task, std::int64_t worker) {
    const std::int64_t b = task / s.Hq, h = task % s.Hq, hkv = h / s.group();
    auto of_head = [&](StepInput i, std::int64_t size) { return c.inputs[i] ? c.inputs[i].template as<T>() + h * size : nullptr; };
    const T *weight_q = of_head(kStepWeightQ, s.D * s.width), *weight_k = of_head(kStepWeightK, s.D * s.width);
    const T *bias_q = of_head(kStepBiasQ, s.width), *bias_k = of_head(kStepBiasK, s.width);
    const StepScratch<T>& x = scratch[worker];
    T* const state = c.inputs[kState].template as<T>() + task * s.F * (s.Dv + 2);
    const T* const table = c.inputs[kStepRotary].template as<T>();
    for (std::int64_t t = 0; t < s.T; ++t) {
      token_features(s, turned_rows<T>(s, table, {k.at(b, t, hkv), k.row}, t, 1, x.turned), 1, weight_k, bias_k, x.u, x.k);
      token_features(s, turned_rows<T>(s, table, {q.at(b, t, h), q.row}, t, 1, x.turned), 1, weight_q, bias_q, x.u, x.q);
      take_token(s, static_cast<const T*>(v.at(b, t, hkv)), state, x);
      read_token(s, static_cast<const T*>(state), o.at(b, t, h), x);
    }
  });
}

std::vector<Sample> samples() {
  std::vector<Sample> list;
  for (const char* map : {"hedgehog", "hedgehog-softmax", "hedgehog-joint", "elu", "relu", "exp", "identity"}) {
    const std::int64_t F = std::string(map).rfind("hedgehog", 0) == 0 ? 12 : 6;
    list.push_back({map,
                    {{"map", map}, {"temperature", std::string(map) == "exp" ? 0.75 : 1.0}},
                    {positive({2, 1, 4, 3}), positive({2, 1, 1, 3}), normal({2, 1, 1, 5}), positive({2, 4, F, 7}), normal({4, 3, 6}, 0.5, 1),
                     normal({4, 3, 6}, 0.5, 1), omitted(), omitted(), omitted()}});
  }
  list.push_back({"several tokens",
                  {},
                  {normal({2, 5, 3, 4}), normal({2, 5, 3, 4}), normal({2, 5, 3, 6}), positive({2, 3, 14, 8}), normal({3, 4, 7}), normal({3, 4, 7}),
                   normal({3, 7}), normal({3, 7}), normal({5, 4})}});
  // sizes that kernels hold in registers and share among blocks
  list.push_back({"two parts",
                  {},
                  {normal({2, 3, 2, 32}), normal({2, 3, 1, 32}), normal({2, 3, 1, 32}), positive({2, 2, 64, 34}), normal({2, 32, 32}, 0.2),
                   normal({2, 32, 32}, 0.2), normal({2, 32}), normal({2, 32}), normal({3, 32})}});
  list.push_back({"heads of 64",
                  {},
                  {normal({2, 1, 2, 64}), normal({2, 1, 2, 64}), normal({2, 1, 2, 64}), positive({2, 2, 128, 66}), normal({2, 64, 64}, 0.1),
                   normal({2, 64, 64}, 0.1), omitted(), omitted(), omitted()}});
  list.push_back({"heads of 64, turned",
                  {},
                  {normal({1, 3, 2, 64}), normal({1, 3, 1, 64}), normal({1, 3, 1, 64}), positive({1, 2, 128, 66}), normal({2, 64, 64}, 0.1),
                   normal({2, 64, 64}, 0.1), normal({2, 64}), normal({2, 64}), normal({3, 64})}});
  list.push_back({"four parts",
                  {{"map", "hedgehog-softmax"}},
                  {normal({1, 2, 1, 96}), normal({1, 2, 1, 96}), normal({1, 2, 1, 64}), positive({1, 1, 192, 66}), normal({1, 96, 96}, 0.1),
                   normal({1, 96, 96}, 0.1), omitted(), omitted(), omitted()}});
  list.push_back({"many features",
                  {},
                  {normal({1, 2, 1, 128}), normal({1, 2, 1, 128}), normal({1, 2, 1, 16}), positive({1, 1, 256, 18}), normal({1, 128, 128}, 0.1),
                   normal({1, 128, 128}, 0.1), omitted(), omitted(), normal({2, 128})}});
  list.push_back({"turned",
                  {{"map", "elu"}},
                  {positive({2, 3, 2, 6}), positive({2, 3, 1, 6}), normal({2, 3, 1, 5}), positive({2, 2, 6, 7}), omitted(), omitted(), omitted(),
                   omitted(), normal({3, 6})}});
  list.push_back({"smallest",
                  {},
                  {normal({1, 1, 1, 1}), normal({1, 1, 1, 1}), normal({1, 1, 1, 1}), positive({1, 1, 2, 3}), omitted(), omitted(), omitted(),
                   omitted(), omitted()}});
  return list;
}

}  // namespace

Layout infer_step(const Op& op, const Attributes& attributes, std::span<const Meta> in) {
  const Meta &q = in[kStepQ], &state = in[kState];
  check_attention_heads(op, q, in[kStepK], in[kStepV]);
  check_attention_maps(op, attributes, q, in.subspan(kStepWeightQ, 4));
  const Sizes s = step_sizes(attributes, in, op.name.c_str());
  check_dtype(op, "state", state, accumulator_of(q.dtype), q.dtype == Dtype::bf16 ? nullptr : "q");
  check_shape(op, "state", state, s.state_shape(), "(B, Hq, F, Dv + 2)", "q", q);
  check_rotary(op, in[kStepRotary], q, "(n, D)");
  Layout layout;
  layout.outputs = {{Shape{s.B, s.T, s.Hq, s.Dv}, q.dtype}};
  dispatch_workspace(q.dtype, [&](auto zero) {
    Carver carver;
    for (std::int64_t w = 0; w < worker_count(s.B * s.Hq); ++w) StepScratch<decltype(zero)>(carver, s);
    layout.forward_workspace = carver.used();
  });
  return layout;
}

}  // namespace linear_attention_detail

namespace la = linear_attention_detail;

const Op kLinearAttentionStep{
    .name = la::kName,
    .arguments = {{"q", false, false}, {"k", false, false}, {"v", false, false}, {"state", false, false, true}, {"weight_q", true, false},
                  {"weight_k", true, false}, {"bias_q", true, false}, {"bias_k", true, false}, {"rotary", true, false, true}},
    .results = {"o"},
    .constant_outputs = bits(0),
    .attributes = {{"map", "hedgehog"}, {"temperature", 1.0}},
    .infer = [](const Attributes& a, std::span<const Meta> in) { return la::infer_step(kLinearAttentionStep, a, in); },
    .forward = {[](const Call& c) { dispatch(c.inputs[0].dtype, [&](auto zero) { la::forward<decltype(zero)>(c); }); }},
    .strided = bits(la::kStepQ, la::kStepK, la::kStepV),
    .updates = bits(la::kState),
    .cost =
        [](const Attributes& a, std::span<const Meta> in, std::span<const Meta>) {
          const la::Sizes s = la::step_sizes(a, in);
          const double map = in[la::kStepWeightQ].given ? double(s.D * s.width) : 0;
          return std::pair<Work, Work>{{2.0 * double(s.B * s.T * s.Hq) * (2 * map + 2 * double(s.F * (s.Dv + 1)))}, {}};
        },
    .formula_forward = "q, k turned by rotary, if there is a table;  S += phi_k v^T;  z += phi_k;  o = phi_q^T S / (phi_q . z)",
    .samples = la::samples(),
};

Tensor linear_attention_step(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& state, const LinearAttentionStepOptions& o,
                             SourceLine where) {
  return apply(kLinearAttentionStep, {{"map", o.map}, {"temperature", o.temperature}},
               {q, k, v, state, o.weight_q, o.weight_k, o.bias_q, o.bias_k, o.rotary}, where)[0];
}

}  // namespace hedgehog

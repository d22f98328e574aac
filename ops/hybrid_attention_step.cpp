#include "ops/hybrid_attention_step.h"

#include "core/dispatch.h"
#include "ops/attention_check.h"
#include "ops/hybrid_attention_step_sizes.h"
#include "ops/linear_attention_step_token.h"

namespace hedgehog {

extern const Op kHybridAttentionStep;

namespace hybrid_attention_step_detail {
namespace {

namespace la = linear_attention_detail;

template <class T>
struct Scratch : la::StepScratch<T> {
  T *scores, *near;  // (W), (D)
  Scratch(Carver& carver, const Sizes& s) : la::StepScratch<T>(carver, s), scores(carver.take<T>(s.window)), near(carver.take<T>(s.D)) {}
};

Layout infer(const Attributes& attributes, std::span<const Meta> in) {
  const Op& op = kHybridAttentionStep;
  const Meta &q = in[kQ], &k = in[kK], &state = in[kState], &cache = in[kCache];
  check_attention_heads(op, q, k, in[kV]);
  check_shape(op, "v", in[kV], k.shape, "(B, n, Hkv, D)", "k", k);
  check_attention_maps(op, attributes, q, in.subspan(kWeightQ, 4));
  check_cache(op, cache, in[kPosition], q, k, "(B, W, 2, Hkv, D)");
  const Sizes s = sizes_of(attributes, in);
  check_dtype(op, "state", state, accumulator_of(q.dtype), q.dtype == Dtype::bf16 ? nullptr : "q");
  check_shape(op, "state", state, s.state_shape(), "(B, Hq, F, D + 2)", "q", q);
  if (in[kLogFactor].given) {
    check_dtype(op, "log_factor", in[kLogFactor], accumulator_of(q.dtype), q.dtype == Dtype::bf16 ? nullptr : "q");
    check_shape(op, "log_factor", in[kLogFactor], Shape{s.Hq}, "(Hq)", "q", q);
  }
  const double scale = attributes.real("scale");
  if (!(scale >= 0)) fail(op, fmt::format("scale must be positive, or 0 for 1 / sqrt(D), but is {}", scale));
  Layout layout;
  layout.outputs = {{q.shape, q.dtype}};
  dispatch_workspace(q.dtype, [&](auto zero) {
    Carver carver;
    for (std::int64_t w = 0; w < worker_count(s.B * s.Hkv); ++w) Scratch<decltype(zero)>(carver, s);
    layout.forward_workspace = carver.used();
  });
  return layout;
}

/// One stream and key head.
template <class T>
class Stream {
 public:
  Stream(const Call& c, const Sizes& s, std::int64_t b, std::int64_t hkv, const Scratch<T>& x)
      : c_(c), s_(s), b_(b), hkv_(hkv), x_(x), keys_(c.inputs[kCache].as<T>() + (b * s.window * 2 * s.Hkv + hkv) * s.D) {}

  void take(std::int64_t t, std::int64_t position) const {
    T* const slot = key(position % s_.window);
    if (s_.linear && position >= s_.window)
      for (std::int64_t h = first(); h < first() + s_.group(); ++h) {
        features(slot, kWeightK, kBiasK, h, x_.k);
        std::fill_n(x_.q, s_.F, T(0));
        la::take_token(s_, static_cast<const T*>(slot + s_.Hkv * s_.D), state(h), x_);
      }
    const HeadRows<T> k("hybrid_attention_step", c_.inputs[kK]), v("hybrid_attention_step", c_.inputs[kV]);
    std::copy_n(k.at(b_, t, hkv_), s_.D, slot);
    std::copy_n(v.at(b_, t, hkv_), s_.D, slot + s_.Hkv * s_.D);
    for (std::int64_t h = first(); h < first() + s_.group(); ++h) read(t, position, h);
  }

 private:
  std::int64_t first() const { return hkv_ * s_.group(); }
  T* key(std::int64_t slot) const { return keys_ + slot * 2 * s_.Hkv * s_.D; }
  T* state(std::int64_t h) const { return c_.inputs[kState].as<T>() + (b_ * s_.Hq + h) * s_.F * (s_.D + 2); }
  void features(const T* vector, Input weight, Input bias, std::int64_t h, T* y) const {
    const auto of_head = [&](Input i, std::int64_t size) { return c_.inputs[i] ? c_.inputs[i].as<T>() + h * size : nullptr; };
    la::token_features(s_, {vector, s_.D}, 1, of_head(weight, s_.D * s_.width), of_head(bias, s_.width), x_.u, y);
  }

  void read(std::int64_t t, std::int64_t position, std::int64_t h) const {
    const HeadRows<T> q("hybrid_attention_step", c_.inputs[kQ]), out("hybrid_attention_step", c_.outputs[0]);
    T* const o = out.at(b_, t, h);
    const std::int64_t seen = std::min(position + 1, s_.window);
    T largest = -la::kInfinity<T>, sum = 0;
    for (std::int64_t j = 0; j < seen; ++j)
      largest = std::max(largest, x_.scores[j] = T(s_.score_scale) * rows::dot(q.at(b_, t, h), static_cast<const T*>(key(j)), s_.D));
    std::fill_n(x_.near, s_.D, T(0));
    for (std::int64_t j = 0; j < seen; ++j) {
      const T weight = vector_exp(x_.scores[j] - largest);
      const T* const v = key(j) + s_.Hkv * s_.D;
      sum += weight;
      for (std::int64_t e = 0; e < s_.D; ++e) x_.near[e] += weight * v[e];
    }
    T of_window = std::log(sum) + (s_.maximum ? T(0) : largest), share = 1, rest = 0;
    if (c_.inputs[kLogFactor]) of_window += c_.inputs[kLogFactor].as<T>()[h];
    if (s_.linear && position >= s_.window) {
      features(q.at(b_, t, h), kWeightQ, kBiasQ, h, x_.q);
      if (s_.map.logarithmic())
        for (std::int64_t r = 0; r < s_.F; ++r) x_.q[r] += state(h)[r * (s_.D + 2) + s_.D + 1];
      const T of_linear = la::read_token(s_, static_cast<const T*>(state(h)), o, x_), base = std::max(of_window, of_linear);
      const T whole = base + std::log(std::exp(of_window - base) + std::exp(of_linear - base));
      share = std::exp(of_window - whole), rest = std::exp(of_linear - whole);
    }
    for (std::int64_t e = 0; e < s_.D; ++e) o[e] = share * x_.near[e] / sum + (rest > T(0) ? rest * o[e] : T(0));
  }

  const Call& c_;
  const Sizes& s_;
  std::int64_t b_, hkv_;
  const Scratch<T>& x_;
  T* keys_;
};

template <class T>
void forward(const Call& c) {
  const Sizes s = sizes_of(c.attributes, c.inputs);
  const std::int64_t before = *c.inputs[kPosition].as<std::int32_t>();
  if (before < 0) throw Error(fmt::format("[hybrid_attention_step] position counts tokens and is at least 0, but is {}", before));
  Carver carver(c.workspace);
  std::vector<Scratch<T>> scratch;
  for (std::int64_t w = 0; w < worker_count(s.B * s.Hkv); ++w) scratch.emplace_back(carver, s);
  worker_tasks(s.B * s.Hkv, [&](std::int64_t task, std::int64_t worker) {
    const Stream<T> stream(c, s, task / s.Hkv, task % s.Hkv, scratch[std::size_t(worker)]);
    for (std::int64_t t = 0; t < s.T; ++t) stream.take(t, before + t);
  });
}

Sample sample(std::string label, Attributes attributes, std::int64_t Hkv, std::int64_t window, std::int64_t n, int from, bool weights, bool factor) {
  const std::string map = attributes.contains("map") ? attributes.text("map") : "hedgehog";
  const std::int64_t width = weights ? 6 : 3, F = map.rfind("hedgehog", 0) == 0 ? 2 * width : width;
  const SampleInput weight = weights ? normal({4, 3, 6}, 0.5, map == "relu" ? 1 : 0) : omitted();
  return {std::move(label), std::move(attributes),
          {positive({2, n, 4, 3}), positive({2, n, Hkv, 3}), normal({2, n, Hkv, 3}), positive({2, 4, F, 5}), positive({2, window, 2, Hkv, 3}),
           integers({1}, from, from + 1), weight, weight, omitted(), omitted(), factor ? normal({4}, 0.5) : omitted()}};
}

std::vector<Sample> samples() {
  std::vector<Sample> list;
  for (const char* map : {"hedgehog", "hedgehog-softmax", "hedgehog-joint", "elu", "relu", "exp", "identity"})
    list.push_back(sample(map, {{"map", map}, {"temperature", std::string(map) == "exp" ? 0.75 : 1.0}}, 2, 5, 1, 12, std::string(map) != "identity", true));
  list.push_back(sample("several tokens", {}, 4, 3, 5, 1, true, false));
  list.push_back(sample("maximum", {{"maximum", true}, {"scale", 0.4}}, 1, 4, 2, 9, true, true));
  list.push_back(sample("window alone", {{"linear", false}}, 2, 4, 3, 6, true, true));
  list.push_back(sample("first token", {{"map", "elu"}}, 2, 4, 1, 0, false, false));
  return list;
}

}  // namespace
}  // namespace hybrid_attention_step_detail

namespace hs = hybrid_attention_step_detail;

const Op kHybridAttentionStep{
    .name = "hybrid_attention_step",
    .arguments = {{"q", false, false}, {"k", false, false}, {"v", false, false}, {"state", false, false, true}, {"cache", false, false},
                  {"position", false, false}, {"weight_q", true, false}, {"weight_k", true, false}, {"bias_q", true, false}, {"bias_k", true, false},
                  {"log_factor", true, false, true}},
    .results = {"o"},
    .constant_outputs = bits(0),
    .attributes = {{"map", "hedgehog"}, {"temperature", 1.0}, {"scale", 0.0}, {"maximum", false}, {"linear", true}},
    .infer = hs::infer,
    .forward = {[](const Call& c) { dispatch(c.inputs[hs::kQ].dtype, [&](auto zero) { hs::forward<decltype(zero)>(c); }); }},
    .strided = bits(hs::kQ, hs::kK, hs::kV),
    .updates = bits(hs::kState, hs::kCache),
    .cost =
        [](const Attributes& a, std::span<const Meta> in, std::span<const Meta>) {
          const hs::Sizes s = hs::sizes_of(a, in);
          const double map = in[hs::kWeightQ].given ? double(s.D * s.width) : 0;
          return std::pair<Work, Work>{{2.0 * double(s.B * s.T * s.Hq) * (2 * map + 2 * double(s.F * (s.D + 1)) + 2 * double(s.window * s.D))}, {}};
        },
    .formula_forward = "S += phi_k v^T of the token that leaves the window;  cache[position mod W] = [k, v];  o = (e V + phi_q^T S) / (sum e + phi_q . z)",
    .samples = hs::samples(),
};

Tensor hybrid_attention_step(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& state, const Tensor& cache, const Tensor& position,
                             const HybridAttentionStepOptions& o, SourceLine where) {
  return apply(kHybridAttentionStep,
               {{"map", o.map}, {"temperature", o.temperature}, {"scale", o.scale}, {"maximum", o.maximum}, {"linear", o.linear}},
               {q, k, v, state, cache, position, o.weight_q, o.weight_k, o.bias_q, o.bias_k, o.log_factor}, where)[0];
}

}  // namespace hedgehog

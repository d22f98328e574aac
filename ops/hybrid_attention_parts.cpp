#include "ops/hybrid_attention_parts.h"

#include <algorithm>
#include <cmath>

#include "core/dispatch.h"
#include "ops/feature_map_rows.h"
#include "ops/head_rows.h"
#include "ops/linear_attention_sizes.h"
#include "ops/softmax_attention_sizes.h"

namespace hedgehog {

extern const Op kLinearAttention, kSoftmaxAttention;

namespace hybrid_attention_detail {
namespace {

namespace la = linear_attention_detail;
namespace sa = softmax_attention_detail;

constexpr std::int64_t kAlignment = 256;
std::int64_t padded(std::int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

Attributes window_attributes(const Attributes& a) {
  return {{"causal", true}, {"scale", a.real("scale")}, {"window", a.integer("window")}};
}
Meta left_out(const Meta&) { return {{}, Dtype::f32, false}; }
Ref left_out(const Ref&) { return {}; }
template <class X>
std::vector<X> window_inputs(std::span<const X> in) {
  return {in[kQ], in[kK], in[kV], in[kDocumentStart], left_out(in[kQ])};
}

Ref whole(void* data, const Shape& shape, Dtype dtype) { return {data, shape, dtype, shape.size(), shape.size(), true}; }

std::vector<Meta> metas_of(std::span<const Ref> refs) {
  std::vector<Meta> metas;
  for (const Ref& x : refs) metas.push_back({x.shape, x.dtype, x.given});
  return metas;
}

/// The call of linear_attention that a call of hybrid_attention makes.
struct LinearCall {
  Attributes attributes;
  std::vector<Ref> inputs, outputs, saved, dy, dx;
  std::vector<Mode> modes;

  explicit LinearCall(const Parts& w) : attributes(linear_attributes(w.c.attributes)), inputs(la::kInputs, Ref{}) {
    const Sizes& s = w.s;
    const Call& c = w.c;
    const auto of_queries = [&](const Ref& x) { return some_tokens(x, s.window, s.behind); };
    const auto of_keys = [&](const Ref& x) { return some_tokens(x, 0, s.behind); };
    inputs[la::kQ] = of_queries(c.inputs[kQ]), inputs[la::kK] = of_keys(c.inputs[kK]), inputs[la::kV] = of_keys(c.inputs[kV]);
    for (int i = 0; i < 4; ++i) inputs[std::size_t(la::kWeightQ + i)] = c.inputs[std::size_t(kWeightQ + i)];
    if (w.x.starts) inputs[la::kDocumentStart] = whole(w.x.starts, {s.B, s.behind}, Dtype::i32);
    const Ref none{nullptr, Shape{1}, s.accumulator()};
    outputs = {of_queries(c.outputs[0]), whole(w.x.no_state, {1}, s.accumulator())};
    saved.assign(c.saved.begin(), c.saved.end());
    saved[0] = whole(w.x.denominator, {s.B, s.behind, s.Hq}, s.accumulator());
    if (c.dx.empty()) return;
    dy = {of_queries(c.dy[0]), none};
    dx.assign(la::kInputs, Ref{});
    modes.assign(la::kInputs, Mode::write);
    for (int i : {kQ, kK, kV}) modes[std::size_t(i)] = c.modes[std::size_t(i)];
    dx[la::kQ] = of_queries(c.dx[kQ]), dx[la::kK] = of_keys(c.dx[kK]), dx[la::kV] = of_keys(c.dx[kV]);
    for (int i = 0; i < 4; ++i) {
      dx[std::size_t(la::kWeightQ + i)] = c.dx[std::size_t(kWeightQ + i)];
      modes[std::size_t(la::kWeightQ + i)] = c.modes[std::size_t(kWeightQ + i)];
    }
  }
  Call call(void* workspace) const { return {attributes, inputs, outputs, saved, dy, dx, modes, workspace}; }
};

/// The window's result and ln denominator to `o` and x.log_window.
void run_window(const Parts& w, const Ref& o, const Backend& backend) {
  const Attributes attributes = window_attributes(w.c.attributes);
  const std::vector<Ref> inputs = window_inputs(w.c.inputs), outputs{o}, saved{whole(w.x.log_window, {w.s.B, w.s.T, w.s.Hq}, w.s.accumulator())};
  backend.run(kSoftmaxAttention, Pass::forward, {attributes, inputs, outputs, saved, {}, {}, {}, w.x.rest});
}

void run_window_backward(const Parts& w, const Backend& backend) {
  const Call& c = w.c;
  const Attributes attributes = window_attributes(c.attributes);
  const std::vector<Ref> inputs = window_inputs(c.inputs), saved{whole(w.x.log_window, {w.s.B, w.s.T, w.s.Hq}, w.s.accumulator())};
  std::vector<Ref> dx(sa::kInputs, Ref{});
  // adds to what the linear part has written
  std::vector<Mode> modes(sa::kInputs, Mode::accumulate);
  for (int i : {kQ, kK, kV}) {
    dx[std::size_t(i)] = c.dx[std::size_t(i)];
    if (w.s.behind == 0) modes[std::size_t(i)] = c.modes[std::size_t(i)];
  }
  backend.run(kSoftmaxAttention, Pass::backward, {attributes, inputs, c.outputs, saved, c.dy, dx, modes, w.x.rest});
}

Parts parts_of(const Call& c, Pass pass) {
  const Sizes s = sizes_of(c.attributes, metas_of(c.inputs));
  return {c, s, Scratch(s, pass, c.inputs[kLogFactor].given, c.inputs[kDocumentStart].given, c.workspace)};
}

}  // namespace

Sizes sizes_of(const Attributes& a, std::span<const Meta> in) {
  const Shape &q = in[kQ].shape, &k = in[kK].shape, &v = in[kV].shape;
  const double scale = a.real("scale");
  const std::int64_t window = a.integer("window"), T = q[1];
  return {.B = q[0], .T = T, .Hq = q[2], .Hkv = k[2], .D = q[3], .Dv = v[3], .window = window,
          .behind = a.flag("linear") ? std::max<std::int64_t>(T - window, 0) : 0,
          .scale = scale == 0 ? 1 / std::sqrt(double(q[3])) : scale,
          .maximum = a.flag("maximum"), .logarithmic = feature_map_of("hybrid_attention", a).logarithmic(), .dtype = in[kQ].dtype};
}

Scratch::Scratch(const Sizes& s, Pass pass, bool has_factor, bool has_documents, void* workspace) {
  const auto take = [&](std::int64_t count, std::int64_t size) {
    void* const at = workspace ? static_cast<std::byte*>(workspace) + used : nullptr;
    used += padded(count * size);
    return at;
  };
  const std::int64_t number = std::int64_t(size_of(s.accumulator())), id = std::int64_t(sizeof(std::int32_t));
  const bool sums = pass == Pass::backward && (has_factor || s.maximum);
  const Shape o{s.B, s.T, s.Hq, s.Dv};
  if (pass == Pass::forward ? s.behind > 0 : sums) o_window = whole(take(o.size(), std::int64_t(size_of(s.dtype))), o, s.dtype);
  log_window = take(s.rows(), number);
  if (s.behind > 0) denominator = take(s.B * s.behind * s.Hq, number), no_state = take(1, number);
  if (s.behind > 0 && has_documents) starts = static_cast<std::int32_t*>(take(s.B * s.behind, id));
  if (s.maximum) largest = take(s.rows(), number), nearest = static_cast<std::int32_t*>(take(s.rows(), id));
  if (sums) row_sums = take(s.rows(), number);
  rest = workspace ? static_cast<std::byte*>(workspace) + used : nullptr;
}

Attributes linear_attributes(const Attributes& a) {
  return {{"map", a.text("map")}, {"causal", true}, {"temperature", a.real("temperature")}, {"chunk", a.integer("chunk")}, {"final_state", false}};
}

std::vector<Meta> linear_inputs(const Sizes& s, std::span<const Meta> in) {
  std::vector<Meta> metas(la::kInputs, Meta{{}, Dtype::f32, false});
  for (int i : {kQ, kK, kV}) metas[std::size_t(i)] = {Shape{s.B, s.behind, in[std::size_t(i)].shape[2], in[std::size_t(i)].shape[3]}, in[std::size_t(i)].dtype, true};
  for (int i = 0; i < 4; ++i) metas[std::size_t(la::kWeightQ + i)] = in[std::size_t(kWeightQ + i)];
  if (in[kDocumentStart].given) metas[la::kDocumentStart] = {Shape{s.B, s.behind}, Dtype::i32, true};
  return metas;
}

void forward(const Call& c, const Backend& backend) {
  const Parts w = parts_of(c, Pass::forward);
  if (w.s.maximum) backend.find_largest(w);
  if (w.s.behind > 0) {
    if (w.x.starts) backend.gather_starts(w);
    backend.run(kLinearAttention, Pass::forward, LinearCall(w).call(w.x.rest));
  }
  run_window(w, w.s.behind > 0 ? w.x.o_window : c.outputs[0], backend);
  backend.merge(w);
}

void backward(const Call& c, const Backend& backend) {
  const Parts w = parts_of(c, Pass::backward);
  if (w.s.maximum) backend.find_largest(w);
  const bool sums = w.s.maximum || c.dx[kLogFactor];
  if (sums) {
    run_window(w, w.x.o_window, backend);  // again: nobody has kept its result
    backend.sum_rows(w);
  }
  backend.part_denominators(w);
  const auto begins = [&](int i) { return c.dx[std::size_t(i)] && c.modes[std::size_t(i)] == Mode::write; };
  if (w.s.behind > 0) {
    // tokens that the linear part has no gradient for
    if (begins(kQ)) backend.zero(some_tokens(c.dx[kQ], 0, w.s.window));
    for (int i : {kK, kV})
      if (begins(i)) backend.zero(some_tokens(c.dx[std::size_t(i)], w.s.behind, w.s.window));
    if (w.x.starts) backend.gather_starts(w);
    backend.run(kLinearAttention, Pass::backward, LinearCall(w).call(w.x.rest));
  } else {
    for (int i : {kWeightQ, kWeightK, kBiasQ, kBiasK})
      if (begins(i)) backend.zero(c.dx[std::size_t(i)]);
  }
  run_window_backward(w, backend);
  if (c.dx[kLogFactor]) backend.factor_gradient(w);
  if (w.s.maximum) backend.take_from_largest(w);
}

std::int64_t bytes(Pass pass, const Backend& backend, const Attributes& a, std::span<const Meta> in) {
  const Sizes s = sizes_of(a, in);
  const std::vector<Meta> window = window_inputs(in);
  std::int64_t most = backend.bytes(kSoftmaxAttention, pass, window_attributes(a), window);
  if (pass == Pass::backward) most = std::max(most, backend.bytes(kSoftmaxAttention, Pass::forward, window_attributes(a), window));
  if (s.behind > 0) most = std::max(most, backend.bytes(kLinearAttention, pass, linear_attributes(a), linear_inputs(s, in)));
  return Scratch(s, pass, in[kLogFactor].given, in[kDocumentStart].given, nullptr).used + most;
}

}  // namespace hybrid_attention_detail
}  // namespace hedgehog

#include <fmt/format.h>

#include <cmath>

#include "core/dispatch.h"
#include "ops/attention_check.h"
#include "ops/feature_map_rows.h"
#include "ops/softmax_attention.h"
#include "ops/worker_tasks.h"

namespace hedgehog {

extern const Op kSoftmaxAttentionStep;

namespace {

enum Input : int { kQ, kK, kV, kCache, kPosition };

Layout infer(const Attributes& attributes, std::span<const Meta> in) {
  const Op& op = kSoftmaxAttentionStep;
  const Meta &q = in[kQ], &k = in[kK], &cache = in[kCache];
  check_attention_heads(op, q, k, in[kV]);
  check_shape(op, "v", in[kV], k.shape, "(B, n, Hkv, D)", "k", k);
  check_cache(op, cache, in[kPosition], q, k, "(B, P, 2, Hkv, D)");
  const double scale = attributes.real("scale");
  if (!(scale >= 0)) fail(op, fmt::format("scale must be positive, or 0 for 1 / sqrt(D), but is {}", scale));
  Layout layout;
  layout.outputs = {{q.shape, q.dtype}};
  dispatch_workspace(q.dtype, [&](auto zero) {
    Carver carver;
    for (std::int64_t w = 0; w < worker_count(q.shape[0] * q.shape[2]); ++w) carver.take<decltype(zero)>(cache.shape[1]);
    layout.forward_workspace = carver.used();
  });
  return layout;
}

/// One query against the first n cached tokens.
template <class T>
void attend(const T* q, const T* keys, const T* values, std::int64_t row, std::int64_t n, std::int64_t D, T scale, T* __restrict p,
            T* __restrict o) {
  T largest = -std::numeric_limits<T>::infinity();
  for (std::int64_t j = 0; j < n; ++j) {
    p[j] = scale * rows::dot(q, keys + j * row, D);
    largest = std::max(largest, p[j]);
  }
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t j = 0; j < n; ++j) {
    p[j] = vector_exp(p[j] - largest);
    sum += p[j];
  }
  std::fill_n(o, D, T(0));
  for (std::int64_t j = 0; j < n; ++j) {
    const T* __restrict v = values + j * row;
    const T weight = p[j] / sum;
    for (std::int64_t e = 0; e < D; ++e) o[e] += weight * v[e];
  }
}

template <class T>
void forward(const Call& c) {
  const Shape &q = c.inputs[kQ].shape, &cache = c.inputs[kCache].shape;
  const std::int64_t B = q[0], n = q[1], Hq = q[2], D = q[3], P = cache[1], Hkv = cache[3], row = 2 * Hkv * D;
  const std::int64_t before = *c.inputs[kPosition].as<std::int32_t>();
  if (before < 0 || before + n > P)
    throw Error(fmt::format("[softmax_attention_step] the cache holds {} of at most {} tokens and has no room for {} more; make a larger "
                            "cache or start again with a shorter prompt",
                            before, P, n));
  T* const stored = c.inputs[kCache].as<T>();
  for (std::int64_t b = 0; b < B; ++b)
    for (std::int64_t t = 0; t < n; ++t) {
      T* const to = stored + (b * P + before + t) * row;
      std::copy_n(c.inputs[kK].as<T>() + (b * n + t) * Hkv * D, Hkv * D, to);
      std::copy_n(c.inputs[kV].as<T>() + (b * n + t) * Hkv * D, Hkv * D, to + Hkv * D);
    }
  const double given = c.attributes.real("scale");
  const T scale = T(given == 0 ? 1 / std::sqrt(double(D)) : given);
  Carver carver(c.workspace);
  std::vector<T*> weights;
  for (std::int64_t w = 0; w < worker_count(B * Hq); ++w) weights.push_back(carver.take<T>(P));
  worker_tasks(B * Hq, [&](std::int64_t task, std::int64_t worker) {
    const std::int64_t b = task / Hq, h = task % Hq;
    const T* keys = stored + b * P * row + h / (Hq / Hkv) * D;
    for (std::int64_t t = 0; t < n; ++t) {
      const std::int64_t at = ((b * n + t) * Hq + h) * D;
      attend(c.inputs[kQ].as<T>() + at, keys, keys + Hkv * D, row, before + t + 1, D, scale, weights[worker], c.outputs[0].as<T>() + at);
    }
  });
}

}  // namespace

const Op kSoftmaxAttentionStep{
    .name = "softmax_attention_step",
    .arguments = {{"q", false, false}, {"k", false, false}, {"v", false, false}, {"cache", false, false}, {"position", false, false}},
    .results = {"o"},
    .constant_outputs = bits(0),
    .attributes = {{"scale", 0.0}},
    .infer = infer,
    .forward = {[](const Call& c) { dispatch(c.inputs[kQ].dtype, [&](auto zero) { forward<decltype(zero)>(c); }); }},
    .updates = bits(kCache),
    .cost =
        [](const Attributes&, std::span<const Meta> in, std::span<const Meta>) {
          const Shape &q = in[kQ].shape, &cache = in[kCache].shape;
          return std::pair<Work, Work>{{4.0 * double(q.size()) * double(cache[1])}, {}};
        },
    .formula_forward = "cache[position] = [k, v];  o = softmax(scale q K^T) V",
    .samples = {{"several tokens",
                 {},
                 {normal({2, 3, 6, 5}), normal({2, 3, 3, 5}), normal({2, 3, 3, 5}), normal({2, 9, 2, 3, 5}), integers({1}, 4, 6)}},
                {"one token",
                 {{"scale", 0.3}},
                 {normal({1, 1, 2, 3}), normal({1, 1, 2, 3}), normal({1, 1, 2, 3}), normal({1, 1, 2, 2, 3}), integers({1}, 0, 1)}}},
};

Tensor softmax_attention_step(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cache, const Tensor& position, double scale,
                              SourceLine where) {
  return apply(kSoftmaxAttentionStep, {{"scale", scale}}, {q, k, v, cache, position}, where)[0];
}

}  // namespace hedgehog

#include "ops/taylor_features.h"

#include <cmath>

#include "core/dispatch.h"
#include "core/parallel.h"
#include "ops/check.h"
#include "ops/elementwise.h"
#include "ops/rows.h"
#include "ops/shape.h"

namespace hedgehog {

extern const Op kTaylorFeatures;

namespace {

constexpr std::int64_t kLargestDepth = 256;

Layout infer(const Attributes& attributes, std::span<const Meta> in) {
  const Meta& x = in[0];
  check_floating(kTaylorFeatures, "x", x);
  check_rank(kTaylorFeatures, "x", x, 4, "(B, T, H, D)");
  const std::int64_t D = x.shape[3];
  if (D > kLargestDepth)
    fail(kTaylorFeatures, fmt::format("x has D = {}, whose {} features are too many; project it to fewer dimensions (16 are usual)", D,
                                      taylor_feature_count(D, attributes.flag("compact"))));
  return {{{Shape{x.shape[0], x.shape[1], x.shape[2], taylor_feature_count(D, attributes.flag("compact"))}, x.dtype}}, {}};
}

/// Factors of x and of the pairs.
template <class T>
struct Factors {
  T first, pair, mixed;  // mixed: of pairs i < j in the compact form
  Factors(std::int64_t D, bool compact)
      : first(T(std::pow(double(D), -0.25))), pair(T(1 / std::sqrt(2 * double(D)))), mixed(compact ? T(1 / std::sqrt(double(D))) : pair) {}
};

/// Calls body(n) for every vector n of x.
template <class Body>
void for_vectors(const Ref& x, const Ref& phi, const Body& body) {
  const std::int64_t D = x.shape[3], F = phi.shape[3];
  parallel_for(x.size() / D, std::max<std::int64_t>(1, 16384 / F), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t n = begin; n < end; ++n) body(n);
  });
}

template <class T>
void forward(const Call& c) {
  const Ref &x = c.inputs[0], &phi = c.outputs[0];
  const std::int64_t D = x.shape[3], F = phi.shape[3];
  const bool compact = c.attributes.flag("compact");
  const Factors<T> factors(D, compact);
  for_vectors(x, phi, [&](std::int64_t n) {
    const T* __restrict from = x.as<T>() + strided_offset(x, n * D);
    T* __restrict to = phi.as<T>() + strided_offset(phi, n * F);
    *to++ = 1;
    for (std::int64_t i = 0; i < D; ++i) *to++ = factors.first * from[i];
    for (std::int64_t i = 0; i < D; ++i) {
      const std::int64_t start = compact ? i : 0;
      const T scaled = factors.mixed * from[i];
      for (std::int64_t j = start; j < D; ++j) to[j - start] = scaled * from[j];
      to[i - start] = factors.pair * from[i] * from[i];
      to += D - start;
    }
  });
}

/// `square`: what the derivative of x_i x_i counts, 2 unless a fault forgets one of both factors.
template <class T>
void backward(const Call& c, T square) {
  const Ref &x = c.inputs[0], &dphi = c.dy[0], &dx = c.dx[0];
  if (!dx) return;
  const std::int64_t D = x.shape[3], F = dphi.shape[3];
  const bool compact = c.attributes.flag("compact"), add = c.modes[0] == Mode::accumulate;
  const Factors<T> factors(D, compact);
  for_vectors(x, dphi, [&](std::int64_t n) {
    const T* __restrict from = x.as<T>() + strided_offset(x, n * D);
    const T* __restrict g = dphi.as<T>() + strided_offset(dphi, n * F);
    T* const to = dx.as<T>() + strided_offset(dx, n * D);
    T sums[kLargestDepth];  // added once, whatever is there already
    for (std::int64_t i = 0; i < D; ++i) sums[i] = factors.first * g[1 + i];
    g += 1 + D;
    for (std::int64_t i = 0; i < D; ++i) {
      const std::int64_t start = compact ? i : 0;
      const T scaled = factors.mixed * from[i];
      T sum = 0;
      for (std::int64_t j = start; j < D; ++j) {
        if (j == i) continue;
        sum += g[j - start] * from[j];
        sums[j] += g[j - start] * scaled;
      }
      sums[i] += factors.mixed * sum + square * factors.pair * g[i - start] * from[i];
      g += D - start;
    }
    for (std::int64_t i = 0; i < D; ++i) to[i] = add ? to[i] + sums[i] : sums[i];
  });
}

Tensors reference(const Attributes& a, const Tensors& in) {
  const Tensor& x = in[0];
  const Shape& s = x.shape();
  const std::int64_t D = s[3];
  const Factors<double> factors(D, a.flag("compact"));
  std::vector<std::int64_t> ones(std::size_t(D), 1);
  const Tensors columns = split(x, ones);
  Tensors parts = {affine(columns[0], 0, 1), scale(x, factors.first)};
  if (!a.flag("compact")) {
    const Tensor pairs = reshape(x, {s[0], s[1], s[2], D, 1}) * reshape(x, {s[0], s[1], s[2], 1, D});
    parts.push_back(reshape(scale(pairs, factors.pair), {s[0], s[1], s[2], D * D}));
    return {concat(parts)};
  }
  for (std::int64_t i = 0; i < D; ++i) {
    parts.push_back(scale(square(columns[std::size_t(i)]), factors.pair));
    if (i + 1 < D) parts.push_back(scale(columns[std::size_t(i)] * split(x, {i + 1, D - i - 1})[1], factors.mixed));
  }
  return {concat(parts)};
}

std::vector<Sample> samples() {
  std::vector<Sample> list;
  for (const bool compact : {true, false}) {
    const std::string name = compact ? "compact" : "full";
    list.push_back({name, {{"compact", compact}}, {normal({2, 5, 3, 4})}});
    list.push_back({name + ", odd", {{"compact", compact}}, {normal({1, 7, 2, 5})}});
    list.push_back({name + ", smallest", {{"compact", compact}}, {normal({1, 1, 1, 1})}});
  }
  list.push_back({"wide", {}, {normal({1, 2, 1, 37})}});
  return list;
}

}  // namespace

const Op kTaylorFeatures{
    .name = "taylor_features",
    .arguments = {{"x"}},
    .results = {"phi"},
    .attributes = {{"compact", true}},
    .infer = infer,
    .forward = {[](const Call& c) { dispatch(c.inputs[0].dtype, [&](auto zero) { forward<decltype(zero)>(c); }); }},
    .backward = {[](const Call& c) { dispatch(c.inputs[0].dtype, [&](auto zero) { backward(c, decltype(zero)(2)); }); }},
    .reads = {.inputs = bits(0)},
    .strided = bits(0),
    .cost =
        [](const Attributes&, std::span<const Meta>, std::span<const Meta> out) {
          const double n = double(out[0].shape.size());
          return std::pair{Work{2 * n}, Work{4 * n}};
        },
    .reference = reference,
    .formula_forward = "phi = [1, x / D^(1/4), x_i x_j / sqrt(2 D)];  compact: i <= j, times sqrt(2) where i < j",
    .formula_backward = "dx = dphi_1 / D^(1/4) + (G + G^T) x / sqrt(2 D),  G the gradient of the pairs",
    .samples = samples(),
    .faults = {{"square", "the derivative of x_i^2 lacks its factor 2",
                [](const Call& c) { dispatch(c.inputs[0].dtype, [&](auto zero) { backward(c, decltype(zero)(1)); }); }}},
};

Tensor taylor_features(const Tensor& x, bool compact, SourceLine where) {
  return apply(kTaylorFeatures, {{"compact", compact}}, {whole_vectors(x)}, where)[0];
}

}  // namespace hedgehog

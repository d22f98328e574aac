#include "ops/cosformer_features.h"

#include <cmath>
#include <numbers>

#include "core/dispatch.h"
#include "core/parallel.h"
#include "ops/check.h"
#include "ops/elementwise.h"
#include "ops/feature_map_rows.h"
#include "ops/rotary.h"
#include "ops/rows.h"
#include "ops/shape.h"

namespace hedgehog {

extern const Op kCosformerFeatures;

namespace {

Layout infer(const Attributes& attributes, std::span<const Meta> in) {
  const Op& op = kCosformerFeatures;
  const Meta &x = in[0], &offset = in[1];
  check_floating(op, "x", x);
  check_rank(op, "x", x, 4, "(B, T, H, D)");
  const std::int64_t length = attributes.integer("length"), T = x.shape[1];
  if (length < T)
    fail(op, fmt::format("length must be at least the {} tokens of x {}, but is {}; tokens further apart would get negative weights", T,
                         x.shape.text(), length));
  if (offset.given && !(offset.dtype == Dtype::i32 && offset.shape == Shape{1}))
    fail(op, fmt::format("offset must be i32 (1), but is {} {}", name_of(offset.dtype), offset.shape.text()));
  return {{{Shape{x.shape[0], T, x.shape[2], 2 * x.shape[3]}, x.dtype}}, {}};
}

/// Calls body(vector, sine, cosine) for every vector of x.
template <class Body>
void for_vectors(const Call& c, const Body& body) {
  const Shape& s = c.inputs[0].shape;
  const std::int64_t first = 1 + (c.inputs[1] ? c.inputs[1].as<std::int32_t>()[0] : 0);
  const double turn = std::numbers::pi / (2 * double(c.attributes.integer("length")));
  parallel_for(s[0] * s[1], std::max<std::int64_t>(1, 8192 / (s[2] * s[3])), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t token = begin; token < end; ++token) {
      const double angle = double(first + token % s[1]) * turn, sine = std::sin(angle), cosine = std::cos(angle);
      for (std::int64_t h = 0; h < s[2]; ++h) body(token * s[2] + h, sine, cosine);
    }
  });
}

template <class T>
void forward(const Call& c) {
  const Ref &x = c.inputs[0], &phi = c.outputs[0];
  const std::int64_t D = x.shape[3];
  for_vectors(c, [&](std::int64_t n, double sine, double cosine) {
    const T* __restrict from = x.as<T>() + strided_offset(x, n * D);
    T* __restrict to = phi.as<T>() + strided_offset(phi, n * 2 * D);
    for (std::int64_t d = 0; d < D; ++d) {
      const T r = from[d] < T(kReluFloor) ? T(kReluFloor) : from[d];
      to[d] = r * T(sine);
      to[D + d] = r * T(cosine);
    }
  });
}

template <class T>
void backward(const Call& c, bool masked) {
  const Ref &x = c.inputs[0], &dphi = c.dy[0], &dx = c.dx[0];
  if (!dx) return;
  const std::int64_t D = x.shape[3];
  const bool add = c.modes[0] == Mode::accumulate;
  for_vectors(c, [&](std::int64_t n, double sine, double cosine) {
    const T* __restrict from = x.as<T>() + strided_offset(x, n * D);
    const T* __restrict g = dphi.as<T>() + strided_offset(dphi, n * 2 * D);
    T* __restrict to = dx.as<T>() + strided_offset(dx, n * D);
    for (std::int64_t d = 0; d < D; ++d) {
      const T sum = masked && !(from[d] > T(kReluFloor)) ? T(0) : g[d] * T(sine) + g[D + d] * T(cosine);
      to[d] = add ? to[d] + sum : sum;
    }
  });
}

/// rotary_table's second pair turns by base^(-1/2) a token; its row 0 is position 0, which there is not.
Tensors reference(const Attributes& a, const Tensors& in) {
  const Tensor& x = in[0];
  const std::int64_t T = x.shape()[1];
  const double base = 2 * double(a.integer("length")) / std::numbers::pi;
  Tensor table = rotary_table(T + 1, 4, base * base, in.size() > 1 ? in[1] : Tensor{}, accumulator_of(x.dtype()));
  if (table.dtype() != x.dtype()) table = cast(table, x.dtype());
  const Tensors columns = split(split(table, {1, T}, 0)[1], {1, 1, 1, 1});
  auto by_token = [&](const Tensor& column) { return reshape(column, {T, 1, 1}); };
  const Tensor r = floor_at(x, kReluFloor);
  return {concat({r * by_token(columns[3]), r * by_token(columns[1])})};
}

std::vector<Sample> samples() {
  return {{"usual", {{"length", 9}}, {away_from_zero({2, 5, 3, 4}), omitted()}},
          {"offset", {{"length", 40}}, {away_from_zero({1, 3, 2, 5}), integers({1}, 3, 30)}},
          {"all of length", {{"length", 7}}, {away_from_zero({1, 7, 1, 3}), omitted()}},
          {"smallest", {{"length", 1}}, {positive({1, 1, 1, 1}), omitted()}}};
}

}  // namespace

const Op kCosformerFeatures{
    .name = "cosformer_features",
    .arguments = {{"x"}, {"offset", true, false}},
    .results = {"phi"},
    .attributes = {{"length", 1}},
    .infer = infer,
    .forward = {[](const Call& c) { dispatch(c.inputs[0].dtype, [&](auto zero) { forward<decltype(zero)>(c); }); }},
    .backward = {[](const Call& c) { dispatch(c.inputs[0].dtype, [&](auto zero) { backward<decltype(zero)>(c, true); }); }},
    .reads = {.inputs = bits(0, 1)},
    .strided = bits(0),
    .cost =
        [](const Attributes&, std::span<const Meta>, std::span<const Meta> out) {
          const double n = double(out[0].shape.size());
          return std::pair{Work{1.5 * n}, Work{2 * n}};
        },
    .reference = reference,
    .formula_forward = "phi = [r sin a_i, r cos a_i],  r = max(x, 1e-6),  a_i = pi i / (2 M)",
    .formula_backward = "dx = dphi_sin sin a_i + dphi_cos cos a_i where x > 1e-6, else 0",
    .samples = samples(),
    .faults = {{"mask", "the gradient passes where x is at the floor",
                [](const Call& c) { dispatch(c.inputs[0].dtype, [&](auto zero) { backward<decltype(zero)>(c, false); }); }, {}, "usual"}},
};

Tensor cosformer_features(const Tensor& x, std::int64_t length, const Tensor& offset, SourceLine where) {
  return apply(kCosformerFeatures, {{"length", length}}, {whole_vectors(x), offset}, where)[0];
}

}  // namespace hedgehog

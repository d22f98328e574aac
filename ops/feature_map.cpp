#include "ops/feature_map.h"

#include <fmt/format.h>

#include "ops/blas.h"
#include "core/dispatch.h"
#include "core/nearest_name.h"
#include "ops/check.h"
#include "ops/elementwise.h"
#include "ops/feature_map_rows.h"
#include "ops/head_rows.h"
#include "ops/matmul.h"
#include "ops/rows.h"
#include "ops/shape.h"
#include "ops/softmax.h"
#include "ops/worker_tasks.h"

namespace hedgehog {

extern const Op kFeatureMap;

FeatureMap feature_map_of(const char* op, const Attributes& attributes) {
  static const std::vector<std::string> kNames = {"hedgehog", "hedgehog-softmax", "hedgehog-joint", "elu", "relu", "exp", "identity"};
  const std::string& name = attributes.text("map");
  const double temperature = attributes.real("temperature");
  for (std::size_t i = 0; i < kNames.size(); ++i) {
    if (kNames[i] != name) continue;
    const FeatureMap map{MapKind(i), temperature};
    if (map.kind != MapKind::exp && temperature != 1)
      fail(op, fmt::format("temperature belongs to the map 'exp', but map is '{}' and temperature is {}; leave it at 1", name, temperature));
    return map;
  }
  std::string all;
  for (const std::string& known : kNames) all += (all.empty() ? "" : ", ") + known;
  const std::string nearest = nearest_name(name, kNames);
  fail(op, fmt::format("knows no map '{}'; {}the maps are: {}", name, nearest.empty() ? "" : fmt::format("did you mean '{}'? ", nearest), all));
}

namespace {

constexpr std::int64_t kTile = 64;  // tokens mapped at once

struct Sizes {
  std::int64_t B, T, H, D, width, F;
  FeatureMap map;
  bool log;
  std::int64_t tasks() const { return B * H; }
};

Sizes sizes_of(const Attributes& attributes, const Shape& x, const Shape* weight) {
  const FeatureMap map = feature_map_of("feature_map", attributes);
  const std::int64_t width = weight ? (*weight)[2] : x[3];
  return {x[0], x[1], x[2], x[3], width, map.features(width), map, attributes.flag("log")};
}

Sizes sizes_of(const Call& c) { return sizes_of(c.attributes, c.inputs[0].shape, c.inputs[1].given ? &c.inputs[1].shape : nullptr); }

/// Scratch of one worker, and the partial sums of dweight and dbias of each (b, h).
template <class T>
struct Scratch {
  T *u, *dy, *du, *dweight, *dbias;
  Scratch(Carver& carver, const Sizes& s)
      : u(carver.take<T>(kTile * s.width)), dy(carver.take<T>(kTile * s.F)), du(carver.take<T>(kTile * s.width)) {}
};

template <class T>
std::int64_t workspace_bytes(const Sizes& s, bool backward) {
  Carver carver;
  for (std::int64_t w = 0; w < worker_count(s.tasks()); ++w) Scratch<T>(carver, s);
  if (backward) carver.take<T>(s.tasks() * (s.D + 1) * s.width);
  return carver.used();
}

Layout infer(const Attributes& attributes, std::span<const Meta> in) {
  const Op& op = kFeatureMap;
  const Meta &x = in[0], &weight = in[1], &bias = in[2];
  check_floating(op, "x", x);
  check_rank(op, "x", x, 4, "(B, T, H, D)");
  if (weight.given) {
    check_dtype(op, "weight", weight, x.dtype, "x");
    if (weight.shape.rank() != 3 || weight.shape[0] != x.shape[2] || weight.shape[1] != x.shape[3])
      fail(op, fmt::format("weight must have shape (H, D, D') = ({}, {}, any) to match x {}, but has {}", x.shape[2], x.shape[3],
                           x.shape.text(), weight.shape.text()));
  }
  const Sizes s = sizes_of(attributes, x.shape, weight.given ? &weight.shape : nullptr);
  if (s.log && !s.map.logarithmic())
    fail(op, fmt::format("log needs one of the Hedgehog maps or 'exp', but map is '{}'; take the logarithm of its features instead",
                         attributes.text("map")));
  if (bias.given) {
    if (!weight.given) fail(op, "bias needs a weight; give both or neither");
    check_dtype(op, "bias", bias, x.dtype, "x");
    check_shape(op, "bias", bias, Shape{s.H, s.width}, "(H, D')", "weight", weight);
  }
  Layout layout;
  layout.outputs = {{Shape{s.B, s.T, s.H, s.F}, x.dtype}};
  dispatch_workspace(x.dtype, [&](auto zero) {
    layout.forward_workspace = workspace_bytes<decltype(zero)>(s, false);
    layout.backward_workspace = workspace_bytes<decltype(zero)>(s, true);
  });
  return layout;
}

template <class T>
void forward(const Call& c) {
  const Sizes s = sizes_of(c);
  const HeadRows<T> x("feature_map", c.inputs[0]), y("feature_map", c.outputs[0]);
  const T* weight = c.inputs[1].as<T>();
  const T* bias = c.inputs[2].as<T>();
  Carver carver(c.workspace);
  std::vector<Scratch<T>> scratch;
  for (std::int64_t w = 0; w < worker_count(s.tasks()); ++w) scratch.emplace_back(carver, s);
  worker_tasks(s.tasks(), [&](std::int64_t task, std::int64_t worker) {
    const std::int64_t b = task / s.H, h = task % s.H;
    for (std::int64_t t0 = 0; t0 < s.T; t0 += kTile) {
      const std::int64_t n = std::min(kTile, s.T - t0);
      T* const u = scratch[worker].u;
      if (weight) {
        if (bias)
          for (std::int64_t i = 0; i < n; ++i) std::copy_n(bias + h * s.width, s.width, u + i * s.width);
        gemm_serial<T>(false, false, n, s.width, s.D, 1, x.at(b, t0, h), x.row, weight + h * s.D * s.width, s.width, bias ? T(1) : T(0), u,
                       s.width);
      }
      for (std::int64_t i = 0; i < n; ++i) {
        T* __restrict row = y.at(b, t0 + i, h);
        working_features(s.map, s.width, weight ? u + i * s.width : x.at(b, t0 + i, h), row);
        if (s.map.logarithmic() && !s.log)
          for (std::int64_t r = 0; r < s.F; ++r) row[r] = vector_exp(row[r]);
      }
    }
  });
}

/// du of n rows from t0 on.
template <class T>
void map_rows_backward(const Sizes& s, const HeadRows<T>& y, const HeadRows<T>& dy, std::int64_t b, std::int64_t h, std::int64_t t0,
                       std::int64_t n, const Scratch<T>& scratch) {
  for (std::int64_t i = 0; i < n; ++i) {
    const T* __restrict upstream = dy.at(b, t0 + i, h);
    const T* __restrict phi = y.at(b, t0 + i, h);
    T* __restrict g = scratch.dy + i * s.F;
    if (s.map.logarithmic() && !s.log) {
      for (std::int64_t r = 0; r < s.F; ++r) g[r] = upstream[r] * phi[r];
      working_features_backward(s.map, s.width, phi, g, scratch.du + i * s.width);
    } else if (s.map.normalised()) {
      for (std::int64_t r = 0; r < s.F; ++r) g[r] = vector_exp(phi[r]);
      working_features_backward(s.map, s.width, static_cast<const T*>(g), upstream, scratch.du + i * s.width);
    } else {
      working_features_backward(s.map, s.width, phi, upstream, scratch.du + i * s.width);
    }
  }
}

template <class T>
void backward(const Call& c) {
  const Sizes s = sizes_of(c);
  const HeadRows<T> x("feature_map", c.inputs[0]), y("feature_map", c.outputs[0]), dy("feature_map", c.dy[0]), dx("feature_map", c.dx[0]);
  const T* weight = c.inputs[1].as<T>();
  const bool add = c.modes[0] == Mode::accumulate, wants_weight(c.dx[1]), wants_bias(c.dx[2]);
  Carver carver(c.workspace);
  std::vector<Scratch<T>> scratch;
  for (std::int64_t w = 0; w < worker_count(s.tasks()); ++w) scratch.emplace_back(carver, s);
  T* const dweight = carver.take<T>(s.tasks() * (s.D + 1) * s.width);
  T* const dbias = dweight + s.tasks() * s.D * s.width;
  worker_tasks(s.tasks(), [&](std::int64_t task, std::int64_t worker) {
    const std::int64_t b = task / s.H, h = task % s.H;
    T* const du = scratch[worker].du;
    if (wants_bias) std::fill_n(dbias + task * s.width, s.width, T(0));
    for (std::int64_t t0 = 0; t0 < s.T; t0 += kTile) {
      const std::int64_t n = std::min(kTile, s.T - t0);
      map_rows_backward(s, y, dy, b, h, t0, n, scratch[worker]);
      if (dx && weight)
        gemm_serial<T>(false, true, n, s.D, s.width, 1, du, s.width, weight + h * s.D * s.width, s.width, add ? T(1) : T(0), dx.at(b, t0, h),
                       dx.row);
      for (std::int64_t i = 0; i < n && dx && !weight; ++i) {
        T* __restrict row = dx.at(b, t0 + i, h);
        for (std::int64_t r = 0; r < s.D; ++r) row[r] = add ? row[r] + du[i * s.width + r] : du[i * s.width + r];
      }
      if (wants_weight)
        gemm_serial<T>(true, false, s.D, s.width, n, 1, x.at(b, t0, h), x.row, du, s.width, t0 ? T(1) : T(0), dweight + task * s.D * s.width,
                       s.width);
      for (std::int64_t i = 0; i < n && wants_bias; ++i)
        for (std::int64_t r = 0; r < s.width; ++r) dbias[task * s.width + r] += du[i * s.width + r];
    }
  });
  if (wants_weight) add_blocks(dweight, s.B, s.H * s.D * s.width, s.H * s.D * s.width, c.dx[1].as<T>(), c.modes[1]);
  if (wants_bias) add_blocks(dbias, s.B, s.H * s.width, s.H * s.width, c.dx[2].as<T>(), c.modes[2]);
}

Tensor mapped(const Tensors& in) {
  const Tensor& x = in[0];
  if (!in[1]) return x;
  const std::int64_t width = in[1].shape()[2];
  const std::int64_t B = x.shape()[0], T = x.shape()[1], H = x.shape()[2];
  const Tensor by_head = reshape(permute(x, {2, 0, 1, 3}), Shape{H, B * T, x.shape()[3]});
  const Tensor u = permute(reshape(matmul(by_head, in[1]), Shape{H, B, T, width}), {1, 2, 0, 3});  // (B, T, H, D')
  return in[2] ? u + reshape(in[2], Shape{1, 1, H, width}) : u;
}

Tensors reference(const Attributes& a, Tensors in) {
  in.resize(3);
  const Tensor u = mapped(in);
  const FeatureMap map = feature_map_of("feature_map", a);
  const bool log_wanted = a.flag("log");
  switch (map.kind) {
    case MapKind::hedgehog: {
      const Tensor y = concat({u, -u}, 3);
      return {log_wanted ? y : exp(y)};
    }
    case MapKind::hedgehog_softmax: {
      const Tensor y = concat({softmax(u), softmax(-u)}, 3);
      return {log_wanted ? log(y) : y};
    }
    case MapKind::hedgehog_joint: {
      const Tensor y = softmax(concat({2.0 * u, -2.0 * u}, 3));
      return {log_wanted ? log(y) : y};
    }
    case MapKind::exp: return {log_wanted ? scale(u, map.temperature) : exp(scale(u, map.temperature))};
    case MapKind::elu: return {floor_at(elu_plus_one(u), kEluFloor)};
    case MapKind::relu: return {floor_at(u, kReluFloor)};
    case MapKind::identity: return {scale(u, 1)};
  }
  return {};
}

/// The gradient of the half of -u (or the one row of features there is) is forgotten.
template <class T>
void lose_negative_half(const Call& c) {
  const Sizes s = sizes_of(c);
  std::vector<T> copy(c.dy[0].as<T>(), c.dy[0].as<T>() + c.dy[0].size());
  for (std::int64_t row = 0; row < s.B * s.T * s.H; ++row)
    std::fill_n(copy.begin() + row * s.F + (s.map.two_halves() ? s.width : 0), s.map.two_halves() ? s.F - s.width : s.F, T(0));
  std::vector<Ref> dy(c.dy.begin(), c.dy.end());
  dy[0].data = copy.data();
  backward<T>(Call{c.attributes, c.inputs, c.outputs, c.saved, dy, c.dx, c.modes, c.workspace});
}

std::pair<Work, Work> cost(const Attributes& a, std::span<const Meta> in, std::span<const Meta>) {
  const Sizes s = sizes_of(a, in[0].shape, in[1].given ? &in[1].shape : nullptr);
  const double rows = double(s.B * s.T * s.H), product = in[1].given ? 2.0 * rows * double(s.D * s.width) : 0;
  return {{product + 4 * rows * double(s.F)}, {2 * product + 3 * rows * double(s.F)}};
}

std::vector<Sample> samples() {
  std::vector<Sample> list;
  for (const char* map : {"hedgehog", "hedgehog-softmax", "hedgehog-joint", "elu", "relu", "exp", "identity"}) {
    const Attributes a{{"map", map}, {"temperature", std::string(map) == "exp" ? 0.75 : 1.0}};
    list.push_back({std::string(map), a, {normal({2, 5, 3, 4}), normal({3, 4, 6}, 0.5), normal({3, 6}, 0.5)}});
    list.push_back({std::string(map) + " without weight", a, {away_from_zero({2, 3, 4, 5}), omitted(), omitted()}});
  }
  for (const char* map : {"hedgehog", "hedgehog-softmax", "hedgehog-joint", "exp"})
    list.push_back({std::string(map) + " log", {{"map", map}, {"log", true}}, {normal({2, 3, 4, 5}), normal({4, 5, 6}, 0.5), omitted()}});
  list.push_back({"several tiles", {}, {normal({2, 67, 1, 3}), normal({1, 3, 2}, 0.5), normal({1, 2}, 0.5)}});
  list.push_back({"smallest", {}, {normal({1, 1, 1, 1}), normal({1, 1, 1}), omitted()}});
  return list;
}

}  // namespace

const Op kFeatureMap{
    .name = "feature_map",
    .arguments = {{"x"}, {"weight", true}, {"bias", true}},
    .results = {"phi"},
    .attributes = {{"map", "hedgehog"}, {"temperature", 1.0}, {"log", false}},
    .infer = infer,
    .forward = {[](const Call& c) { dispatch(c.inputs[0].dtype, [&](auto zero) { forward<decltype(zero)>(c); }); }},
    .backward = {[](const Call& c) { dispatch(c.inputs[0].dtype, [&](auto zero) { backward<decltype(zero)>(c); }); }},
    .reads = {.inputs = bits(0, 1), .outputs = bits(0)},
    .strided = bits(0),
    .cost = cost,
    .reference = reference,
    .formula_forward = "u = x W + b;  hedgehog: phi = [exp(u), exp(-u)]",
    .formula_backward = "g = dphi * phi;  hedgehog: du = g+ - g-;  dx = du W^T;  dW = x^T du;  db = sum du",
    .samples = samples(),
    .faults = {{"negative half", "the gradient of the features of -u is forgotten",
                [](const Call& c) { dispatch(c.inputs[0].dtype, [&](auto zero) { lose_negative_half<decltype(zero)>(c); }); }}},
};

Tensor feature_map(const Tensor& x, const Tensor& weight, const Tensor& bias, const std::string& map, double temperature, bool log,
                   SourceLine where) {
  return apply(kFeatureMap, {{"map", map}, {"temperature", temperature}, {"log", log}}, {x, weight, bias}, where)[0];
}

}  // namespace hedgehog

#include "ops/short_convolution.h"

#include "core/dispatch.h"
#include "ops/check.h"
#include "ops/elementwise.h"
#include "ops/rows.h"
#include "ops/shape.h"

namespace hedgehog {

extern const Op kShortConvolution, kShortConvolutionStep;

namespace {

struct Sizes {
  std::int64_t B, T, C, K;
  std::int64_t rows() const { return B * T; }
  std::int64_t blocks() const { return row_blocks(rows()); }
  std::int64_t partial() const { return padded_row(K * C); }  // elements of a block's dweight
  std::int64_t grain() const { return std::max<std::int64_t>(1, 8192 / (K * C)); }
};

template <class In>
Sizes sizes_of(const In& in) {
  return {in[0].shape[0], in[0].shape[1], in[0].shape[2], in[1].shape[0]};
}

void check_pair(const Op& op, const Meta& x, const Meta& weight) {
  check_floating(op, "x", x);
  check_rank(op, "x", x, 3, "(B, T, C)");
  check_dtype(op, "weight", weight, x.dtype, "x");
  if (weight.shape.rank() != 2 || weight.shape[1] != x.shape[2])
    fail(op, fmt::format("weight must have shape (K, C) = (any, {}) to match x {}, but has {}", x.shape[2], x.shape.text(),
                         weight.shape.text()));
}

Layout infer(const Attributes&, std::span<const Meta> in) {
  const Meta &x = in[0], &start = in[2];
  check_pair(kShortConvolution, x, in[1]);
  if (start.given) {
    check_dtype(kShortConvolution, "document_start", start, Dtype::i32);
    check_shape(kShortConvolution, "document_start", start, {x.shape[0], x.shape[1]}, "(B, T)", "x", x);
  }
  const Sizes s = sizes_of(in);
  Layout layout{{{x.shape, x.dtype, true}}, {}};
  layout.backward_workspace = s.blocks() * s.partial() * size_of(x.dtype);
  return layout;
}

/// Whether row n and the row `lag` further on are tokens of one document.
bool together(const Sizes& s, const std::int32_t* start, std::int64_t n, std::int64_t lag) {
  return n % s.T + lag < s.T && (!start || start[n] == start[n + lag]);
}

template <class T>
void multiply_add(const T* __restrict a, const T* __restrict b, T* __restrict y, std::int64_t n) {
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) y[i] += a[i] * b[i];
}

template <class T>
void forward(const Call& c) {
  const Sizes s = sizes_of(c.inputs);
  const Ref& x = c.inputs[0];
  const T* const weight = c.inputs[1].as<T>();
  const std::int32_t* const start = c.inputs[2].as<std::int32_t>();
  T* const y = c.outputs[0].as<T>();
  parallel_for(s.rows(), s.grain(), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t n = begin; n < end; ++n) {
      T* const row = y + n * s.C;
      std::fill_n(row, s.C, T(0));
      for (std::int64_t j = 0; j < s.K && j <= n % s.T && together(s, start, n - j, j); ++j)
        multiply_add(weight + j * s.C, static_cast<const T*>(x.as<T>() + strided_offset(x, (n - j) * s.C)), row, s.C);
    }
  });
}

template <class T>
void backward_x(const Call& c, const Sizes& s) {
  const T *const weight = c.inputs[1].as<T>(), *const dy = c.dy[0].as<T>();
  const std::int32_t* const start = c.inputs[2].as<std::int32_t>();
  const Ref& dx = c.dx[0];
  parallel_for(s.rows(), s.grain(), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t n = begin; n < end; ++n) {
      T* const row = dx.as<T>() + strided_offset(dx, n * s.C);
      if (c.modes[0] == Mode::write) std::fill_n(row, s.C, T(0));
      for (std::int64_t j = 0; j < s.K && together(s, start, n, j); ++j)
        multiply_add(weight + j * s.C, dy + (n + j) * s.C, row, s.C);
    }
  });
}

template <class T>
void backward_weight(const Call& c, const Sizes& s) {
  const Ref& x = c.inputs[0];
  const T* const dy = c.dy[0].as<T>();
  const std::int32_t* const start = c.inputs[2].as<std::int32_t>();
  T* const partials = static_cast<T*>(c.workspace);
  parallel_tasks(s.blocks(), [&](std::int64_t block) {
    T* const partial = partials + block * s.partial();
    std::fill_n(partial, s.K * s.C, T(0));
    for (std::int64_t n = s.rows() * block / s.blocks(); n < s.rows() * (block + 1) / s.blocks(); ++n)
      for (std::int64_t j = 0; j < s.K && j <= n % s.T && together(s, start, n - j, j); ++j)
        multiply_add(dy + n * s.C, static_cast<const T*>(x.as<T>() + strided_offset(x, (n - j) * s.C)), partial + j * s.C, s.C);
  });
  add_blocks(partials, s.blocks(), s.partial(), s.K * s.C, c.dx[1].as<T>(), c.modes[1]);
}

void run_backward(const Call& c) {
  const Sizes s = sizes_of(c.inputs);
  dispatch(c.dy[0].dtype, [&](auto zero) {
    if (c.dx[0]) backward_x<decltype(zero)>(c, s);
    if (c.dx[1]) backward_weight<decltype(zero)>(c, s);
  });
}

/// x moved `lag` tokens on; what has no token before it is `fill`.
Tensor moved_on(const Tensor& x, std::int64_t lag, double fill) {
  const Shape& s = x.shape();
  const std::int64_t missing = std::min(lag, s[1]);
  const Shape before{s[0], missing, s[2]};
  const Tensor filled = constant(before, std::vector<double>(std::size_t(before.size()), fill), x.dtype());
  return missing == s[1] ? filled : concat({filled, split(x, {s[1] - missing, missing}, 1)[0]}, 1);
}

/// `forget_lags` cuts the gradient to earlier tokens, as a wrong backward would.
Tensors composed(const Tensors& in, bool forget_lags = false) {
  const Sizes s{in[0].shape()[0], in[0].shape()[1], in[0].shape()[2], in[1].shape()[0]};
  const Tensors rows = split(in[1], std::vector<std::int64_t>(std::size_t(s.K), 1), 0);
  Tensor y;
  for (std::int64_t j = 0; j < s.K; ++j) {
    Tensor x = j == 0 ? in[0] : moved_on(forget_lags ? detach(in[0]) : in[0], j, 0);
    if (j > 0 && in[2]) {
      const Tensor start = reshape(cast(in[2], x.dtype()), {s.B, s.T, 1});
      x = x * relu(1.0 - square(start - moved_on(start, j, -1)));
    }
    const Tensor term = x * reshape(rows[std::size_t(j)], {1, 1, s.C});
    y = y ? y + term : term;
  }
  return {y};
}

Layout infer_step(const Attributes&, std::span<const Meta> in) {
  const Op& op = kShortConvolutionStep;
  const Meta &x = in[0], &weight = in[1], &state = in[2];
  check_pair(op, x, weight);
  if (weight.shape[0] < 2) fail(op, "weight must have at least 2 rows: with one there is nothing to remember");
  check_dtype(op, "state", state, accumulator_of(x.dtype), x.dtype == Dtype::bf16 ? nullptr : "x");
  check_shape(op, "state", state, {x.shape[0], weight.shape[0] - 1, x.shape[2]}, "(B, K - 1, C)", "weight", weight);
  return {{{x.shape, x.dtype, true}}, {}};
}

template <class T>
void step_forward(const Call& c) {
  const Sizes s = sizes_of(c.inputs);
  const Ref& x = c.inputs[0];
  const T* const weight = c.inputs[1].as<T>();
  const std::int64_t remembered = (s.K - 1) * s.C;
  for (std::int64_t n = 0; n < s.rows(); ++n) {
    const T* const token = x.as<T>() + strided_offset(x, n * s.C);
    T* const state = c.inputs[2].as<T>() + n / s.T * remembered;
    T* const y = c.outputs[0].as<T>() + n * s.C;
    std::fill_n(y, s.C, T(0));
    multiply_add(weight, token, y, s.C);
    for (std::int64_t j = 1; j < s.K; ++j)
      multiply_add(weight + j * s.C, static_cast<const T*>(state + remembered - j * s.C), y, s.C);
    std::copy(state + s.C, state + remembered, state);
    std::copy_n(token, s.C, state + remembered - s.C);
  }
}

std::pair<Work, Work> cost(std::span<const Meta> in) {
  const double multiply_adds = 2.0 * double(in[0].shape.size()) * double(in[1].shape[0]);
  return {Work{multiply_adds}, Work{2 * multiply_adds}};
}

}  // namespace

const Op kShortConvolution{
    .name = "short_convolution",
    .arguments = {{"x"}, {"weight"}, {"document_start", true, false}},
    .results = {"y"},
    .infer = infer,
    .forward = {[](const Call& c) { dispatch(c.inputs[0].dtype, [&](auto zero) { forward<decltype(zero)>(c); }); }},
    .backward = {run_backward},
    .reads = {.inputs = bits(0, 1, 2)},
    .strided = bits(0),
    .cost = [](const Attributes&, std::span<const Meta> in, std::span<const Meta>) { return cost(in); },
    .reference = [](const Attributes&, const Tensors& in) { return composed(in); },
    .formula_forward = "y[b, t, c] = sum_j weight[j, c] x[b, t - j, c], j < K, t - j in the same document",
    .formula_backward = "dx[b, t, c] = sum_j weight[j, c] dy[b, t + j, c];  dweight[j, c] = sum_{b, t} dy[b, t, c] x[b, t - j, c]",
    .samples = {{"smallest", {}, {normal({1, 1, 1}), normal({1, 1}), omitted()}},
                {"row", {}, {normal({2, 9, 5}), normal({4, 5}), omitted()}},
                {"shorter than the kernel", {}, {normal({2, 3, 4}), normal({6, 4}), omitted()}},
                {"documents", {}, {normal({2, 37, 19}), normal({3, 19}), documents({2, 37})}}},
    .faults = {{"lags", "no gradient to earlier tokens", {}, [](const Attributes&, const Tensors& in) { return composed(in, true); }, "row"},
               {"leak",
                "gradients cross the borders of documents",
                [](const Call& c) {
                  std::vector<Ref> inputs(c.inputs.begin(), c.inputs.end());
                  inputs[2] = {};
                  run_backward({c.attributes, inputs, c.outputs, c.saved, c.dy, c.dx, c.modes, c.workspace});
                },
                {},
                "documents"}},
};

const Op kShortConvolutionStep{
    .name = "short_convolution_step",
    .arguments = {{"x", false, false}, {"weight", false, false}, {"state", false, false, true}},
    .results = {"y"},
    .constant_outputs = bits(0),
    .infer = infer_step,
    .forward = {[](const Call& c) { dispatch(c.inputs[0].dtype, [&](auto zero) { step_forward<decltype(zero)>(c); }); }},
    .strided = bits(0),
    .updates = bits(2),
    .cost = [](const Attributes&, std::span<const Meta> in, std::span<const Meta>) { return std::pair{cost(in).first, Work{}}; },
    .formula_forward = "y = weight[0] x + sum_j weight[j] state[K - 1 - j];  state = (state[1 ..], x)",
    .samples = {{"smallest", {}, {normal({1, 1, 1}), normal({2, 1}), normal({1, 1, 1})}},
                {"one token", {}, {normal({3, 1, 6}), normal({4, 6}), normal({3, 3, 6})}},
                {"several tokens", {}, {normal({2, 5, 3}), normal({3, 3}), normal({2, 2, 3})}}},
};

Tensor short_convolution(const Tensor& x, const Tensor& weight, const Tensor& document_start, SourceLine where) {
  return apply(kShortConvolution, {}, {whole_vectors(x), weight, document_start}, where)[0];
}

Tensor short_convolution_step(const Tensor& x, const Tensor& weight, const Tensor& state, SourceLine where) {
  return apply(kShortConvolutionStep, {}, {whole_vectors(x), weight, state}, where)[0];
}

}  // namespace hedgehog

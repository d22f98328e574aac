#include "ops/blas.h"
#include "core/dispatch.h"
#include "core/parallel.h"
#include "ops/cross_entropy.h"
#include "ops/cross_entropy_rows.h"
#include "ops/elementwise.h"
#include "ops/matmul.h"
#include "ops/rows.h"

namespace hedgehog {

extern const Op kClassifierCrossEntropy;

using namespace detail;

namespace {

/// How tokens are cut: groups run in parallel with a dweight of their own each where the classifier is small, else one
/// group whose products are parallel. Depends on the shapes alone.
struct Cut {
  std::int64_t groups, tile;  // tile: most rows of logits alive in a group
  Cut(std::int64_t rows, std::int64_t columns, std::int64_t classes, std::int64_t element) {
    groups = columns * classes <= 65536 ? std::clamp<std::int64_t>(rows / 96, 1, 8) : 1;
    tile = std::clamp<std::int64_t>((std::int64_t(8) << 20) / (classes * element), 1, 512);
    tile = std::min(tile, (rows + groups - 1) / groups);
  }
};

Layout infer_classifier(const Attributes& a, std::span<const Meta> in) {
  const Meta &x = in[0], &weight = in[1];
  check_floating(kClassifierCrossEntropy, "x", x);
  if (x.shape.rank() < 2)
    fail(kClassifierCrossEntropy,
         fmt::format("x must be (..., C) with at least two axes, but is {}; reshape it to (1, C)", x.shape.text()));
  check_rank(kClassifierCrossEntropy, "weight", weight, 2, "(V, C)");
  if (weight.shape[1] != x.shape.last())
    fail(kClassifierCrossEntropy, fmt::format("weight must be (V, C) with C = {} to match x {}, but is {}; transpose a (C, V) weight",
                                              x.shape.last(), x.shape.text(), weight.shape.text()));
  check_dtype(kClassifierCrossEntropy, "weight", weight, x.dtype, "x");
  const std::int64_t rows = x.shape.rows(), columns = x.shape.last(), classes = weight.shape[0], element = size_of(x.dtype);
  Layout layout{infer_losses(kClassifierCrossEntropy, a, x, "x", classes, in[2], in[3]),
                {{{rows, columns}, x.dtype, true}, {{classes, columns}, accumulator_of(x.dtype), true}}};
  const Cut cut(rows, columns, classes, element);
  layout.forward_workspace = cut.groups * padded_row(cut.tile * classes) * element;
  if (cut.groups > 1) layout.forward_workspace += cut.groups * padded_row(classes * columns) * element;
  return layout;
}

/// Losses of some rows of logits; with kGradient the logits become dlogits for dloss = 1.
template <bool kGradient, class T>
void tile_losses(T* logits, const std::int32_t* targets, T* losses, std::int64_t rows, std::int64_t columns, std::int64_t classes,
                 T scale) {
  parallel_for(rows, std::max<std::int64_t>(1, 2048 / columns), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t n = begin; n < end; ++n) {
      T* const row = logits + n * columns;
      const std::int32_t target = targets[n];
      if (target < 0) {
        losses[n] = 0;
        if constexpr (kGradient) std::fill_n(row, columns, T(0));
        continue;
      }
      const T own = row[target];
      const ExpSum<T> e = exp_sum<kGradient>(row, classes);
      losses[n] = std::log(e.sum) - (own - e.highest);
      if constexpr (kGradient) {
        const T factor = scale / e.sum;
#pragma omp simd
        for (std::int64_t v = 0; v < classes; ++v) row[v] *= factor;
        std::fill(row + classes, row + columns, T(0));
        row[target] -= scale;
      }
    }
  });
}

template <class T>
void classifier_forward(const Call& c) {
  const Ref &x = c.inputs[0], &weight = c.inputs[1], &targets = c.inputs[2];
  const std::int64_t rows = x.shape.rows(), columns = x.shape.last(), width = weight.shape[0];
  const std::int64_t classes = classes_of(c.attributes, width);
  check_indices("classifier_cross_entropy", "targets", targets, classes, true, "the number of classes");
  const double scale = loss_scale<T>(c.inputs[3], targets);
  const Cut cut(rows, columns, width, size_of(x.dtype));
  const std::int64_t logits_size = padded_row(cut.tile * width), weight_size = padded_row(width * columns);
  T* const workspace = static_cast<T*>(c.workspace);
  T *const dx = c.saved[0].as<T>(), *const dweight = c.saved[1].as<T>(), *const losses = c.outputs[1].as<T>();
  T* const partials = cut.groups > 1 ? workspace + cut.groups * logits_size : dweight;
  const auto product = cut.groups > 1 ? gemm_serial<T> : gemm<T>;
  parallel_tasks(cut.groups, [&](std::int64_t g) {
    T* const logits = workspace + g * logits_size;
    const std::int64_t first = rows * g / cut.groups, last = rows * (g + 1) / cut.groups;
    for (std::int64_t r = first; r < last; r += cut.tile) {
      const std::int64_t m = std::min(cut.tile, last - r);
      const T* const from = x.as<T>() + r * columns;
      const std::int32_t* const aims = targets.as<std::int32_t>() + r;
      product(false, true, m, width, columns, 1, from, columns, weight.as<T>(), columns, 0, logits, width);
      if (!dx) {
        tile_losses<false>(logits, aims, losses + r, m, width, classes, T(scale));
        continue;
      }
      tile_losses<true>(logits, aims, losses + r, m, width, classes, T(scale));
      product(false, false, m, columns, width, 1, logits, width, weight.as<T>(), columns, 0, dx + r * columns, columns);
      product(true, false, width, columns, m, 1, logits, width, from, columns, r > first ? 1 : 0, partials + g * weight_size, columns);
    }
  });
  if (dx && cut.groups > 1) add_blocks(partials, cut.groups, weight_size, width * columns, dweight, Mode::write);
  *c.outputs[0].as<T>() = scaled_sum(losses, rows, scale);
}

template <class T>
void classifier_backward(const Call& c) {
  const T upstream = c.dy[0] ? *c.dy[0].as<T>() : T(0);
  for (int i : {0, 1})
    if (c.dx[i]) scale_into(c.saved[i].as<T>(), upstream, c.dx[i].as<T>(), c.dx[i].size(), c.modes[i]);
}

/// As the kernel would be if it handed out what forward made for dloss = 1.
template <class T>
void unscaled_backward(const Call& c) {
  for (int i : {0, 1})
    if (c.dx[i]) scale_into(c.saved[i].as<T>(), T(1), c.dx[i].as<T>(), c.dx[i].size(), c.modes[i]);
}

}  // namespace

const Op kClassifierCrossEntropy{
    .name = "classifier_cross_entropy",
    .arguments = {{"x"}, {"weight"}, {"targets", false, false}, {"scale", true, false, true}},
    .results = {"loss", "losses"},
    .constant_outputs = bits(1),
    .saved_names = {"dx", "dweight"},
    .attributes = {{"classes", 0}},
    .infer = infer_classifier,
    .forward = {[](const Call& c) { dispatch(c.inputs[0].dtype, [&](auto zero) { classifier_forward<decltype(zero)>(c); }); }},
    .backward = {[](const Call& c) { dispatch(c.inputs[0].dtype, [&](auto zero) { classifier_backward<decltype(zero)>(c); }); }},
    .reads = {.saved = bits(0, 1)},
    .cost = [](const Attributes&, std::span<const Meta> in, std::span<const Meta>) {
      const double logits = double(in[0].shape.rows()) * double(in[1].shape[0]), product = 2 * logits * double(in[0].shape.last());
      // forward makes the gradients
      return std::pair{Work{3 * product + 20 * logits}, Work{double(in[0].shape.size() + in[1].shape.size())}};
    },
    .reference = [](const Attributes& a, const Tensors& in) {
      return composed_losses(matmul(in[0], in[1], false, true), in[2], in[3], a.integer("classes"));
    },
    .formula_forward = "logits = x weight^T;  losses[n] = ln sum_v exp(logits[n, v]) - logits[n, target[n]];  loss = scale sum_n losses[n]",
    .formula_backward = "dlogits = dloss scale (softmax(logits) - onehot(target));  dx = dlogits weight;  dweight = dlogits^T x",
    .samples = {{"smallest", {}, {normal({1, 1}), normal({2, 1}), integers({1}, 0, 2), omitted()}},
                {"ignored", {}, {normal({2, 7, 3}), normal({5, 3}), integers({2, 7}, -1, 5), omitted()}},
                {"scale", {}, {normal({5, 3}), normal({4, 3}), integers({5}, 0, 4), constant_input(positive({1}))}},
                {"padded", {{"classes", 6}}, {normal({3, 4}), normal({8, 4}), integers({3}, -1, 6), omitted()}},
                {"groups", {}, {normal({2, 101, 3}), normal({7, 3}), integers({2, 101}, -1, 7), omitted()}}},
    .faults = {{"upstream", "dx and dweight are handed out as made for dloss = 1",
                [](const Call& c) { dispatch(c.dy[0].dtype, [&](auto zero) { unscaled_backward<decltype(zero)>(c); }); }, {}, {}}},
};

TokenLosses classifier_cross_entropy(const Tensor& x, const Tensor& weight, const Tensor& targets, const Tensor& scale,
                                     std::int64_t classes, SourceLine where) {
  const Tensors results = apply(kClassifierCrossEntropy, {{"classes", classes}}, {x, weight, targets, scale}, where);
  return {results[0], results[1]};
}

}  // namespace hedgehog

#include "ops/cross_entropy.h"

#include "core/dispatch.h"
#include "core/parallel.h"
#include "ops/cross_entropy_rows.h"
#include "ops/elementwise.h"
#include "ops/gather.h"
#include "ops/reduce.h"
#include "ops/shape.h"
#include "ops/softmax.h"

namespace hedgehog {

extern const Op kCrossEntropy;

using namespace detail;

namespace {

Layout infer_cross_entropy(const Attributes& a, std::span<const Meta> in) {
  const Meta& logits = in[0];
  check_floating(kCrossEntropy, "logits", logits);
  if (logits.shape.rank() < 1) fail(kCrossEntropy, "logits must be (..., V), but is a scalar; reshape it to (1)");
  const Meta row{{logits.shape.rows()}, accumulator_of(logits.dtype), true};
  return {infer_losses(kCrossEntropy, a, logits, "logits", logits.shape.last(), in[1], in[2]), {row, row}};
}

template <class T>
void cross_entropy_forward(const Call& c) {
  const Ref &logits = c.inputs[0], &targets = c.inputs[1];
  const std::int64_t columns = logits.shape.last(), rows = logits.shape.rows(), classes = classes_of(c.attributes, columns);
  check_indices("cross_entropy", "targets", targets, classes, true, "the number of classes");
  T* const losses = c.outputs[1].as<T>();
  parallel_for(rows, std::max<std::int64_t>(1, 2048 / columns), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t n = begin; n < end; ++n) {
      const T* row = logits.as<T>() + n * columns;
      const std::int32_t target = targets.as<std::int32_t>()[n];
      const ExpSum<T> e = exp_sum<false>(row, classes);
      losses[n] = target < 0 ? T(0) : std::log(e.sum) - (row[target] - e.highest);
      if (c.saved[0]) c.saved[0].as<T>()[n] = e.highest;
      if (c.saved[1]) c.saved[1].as<T>()[n] = e.sum;
    }
  });
  *c.outputs[0].as<T>() = scaled_sum(losses, rows, loss_scale<T>(c.inputs[2], targets));
}

template <class T>
void cross_entropy_backward(const Call& c, bool ignores) {
  const Ref &logits = c.inputs[0], &targets = c.inputs[1], &dlogits = c.dx[0];
  if (!dlogits) return;
  const std::int64_t columns = logits.shape.last(), classes = classes_of(c.attributes, columns);
  const T upstream = c.dy[0] ? T(double(*c.dy[0].as<T>()) * loss_scale<T>(c.inputs[2], targets)) : T(0);
  const bool add = c.modes[0] == Mode::accumulate;
  parallel_for(logits.shape.rows(), std::max<std::int64_t>(1, 2048 / columns), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t n = begin; n < end; ++n) {
      const T* row = logits.as<T>() + n * columns;
      T* const out = dlogits.as<T>() + n * columns;
      const std::int32_t target = targets.as<std::int32_t>()[n];
      const T highest = c.saved[0].as<T>()[n], factor = target < 0 && ignores ? T(0) : upstream, share = factor / c.saved[1].as<T>()[n];
      if (!add) std::fill_n(out, columns, T(0));
      if (factor == T(0)) continue;
#pragma omp simd
      for (std::int64_t v = 0; v < classes; ++v) out[v] += share * vector_exp(row[v] - highest);
      if (target >= 0) out[target] -= factor;
    }
  });
}

void backward_cross_entropy(const Call& c) {
  dispatch(c.inputs[0].dtype, [&](auto zero) { cross_entropy_backward<decltype(zero)>(c, true); });
}

}  // namespace

namespace detail {

Tensors composed_losses(const Tensor& logits, const Tensor& targets, const Tensor& scale, std::int64_t classes) {
  // losses and their scale are f32 where logits are bf16
  const Dtype dtype = accumulator_of(logits.dtype());
  Tensor scores = logits.dtype() == dtype ? logits : cast(logits, dtype);
  const std::int64_t columns = logits.shape().last();
  if (classes && classes < columns) {
    std::vector<double> counts(std::size_t(columns), 0.0);
    std::fill_n(counts.begin(), classes, 1.0);
    scores = mask_fill(scores, constant({columns}, counts, Dtype::i32, "classes"), -std::numeric_limits<double>::infinity());
  }
  const Tensor losses = negate(gather_last(log_softmax(scores), targets));
  Tensor factor = scale;
  if (!scale) {
    const Tensor ones = constant(logits.shape(), std::vector<double>(std::size_t(logits.size()), 1.0), dtype, "ones");
    const Tensor counted = gather_last(ones, targets);
    factor = reciprocal(floor_at(sum(counted), 1));
  }
  return {multiply(sum(losses), reshape(factor, {})), detach(losses)};
}

}  // namespace detail

const Op kCrossEntropy{
    .name = "cross_entropy",
    .arguments = {{"logits"}, {"targets", false, false}, {"scale", true, false, true}},
    .results = {"loss", "losses"},
    .constant_outputs = bits(1),
    .saved_names = {"highest", "sum"},
    .attributes = {{"classes", 0}},
    .infer = infer_cross_entropy,
    .forward = {[](const Call& c) { dispatch(c.inputs[0].dtype, [&](auto zero) { cross_entropy_forward<decltype(zero)>(c); }); }},
    .backward = {backward_cross_entropy},
    .reads = {.inputs = bits(0, 1, 2), .saved = bits(0, 1)},
    .cost = [](const Attributes&, std::span<const Meta> in, std::span<const Meta>) {
      const double n = double(in[0].shape.size());
      return std::pair{Work{20 * n}, Work{20 * n}};
    },
    .reference = [](const Attributes& a, const Tensors& in) { return composed_losses(in[0], in[1], in[2], a.integer("classes")); },
    .formula_forward = "losses[n] = ln sum_v exp(logits[n, v]) - logits[n, target[n]], 0 where target = -1;  loss = scale sum_n losses[n]",
    .formula_backward = "dlogits = dloss scale (softmax(logits) - onehot(target)), 0 where target = -1",
    .samples = {{"smallest", {}, {normal({1, 2}), integers({1}, 0, 2), omitted()}},
                {"ignored", {}, {normal({2, 7, 5}), integers({2, 7}, -1, 5), omitted()}},
                {"scale", {}, {normal({3, 2, 4}), integers({3, 2}, 0, 4), constant_input(positive({1}))}},
                {"padded", {{"classes", 5}}, {normal({4, 7}), integers({4}, -1, 5), omitted()}}},
    .faults = {{"one hot", "the gradient is that of ln sum exp alone, without the target",
                {},
                [](const Attributes& a, const Tensors& in) {
                  const Tensors right = composed_losses(in[0], in[1], in[2], a.integer("classes"));
                  // the target's own logit, cut off
                  const Tensor taken = gather_last(in[0], in[1]);
                  const Tensor lost = subtract(taken, detach(taken));
                  const Tensor ones = constant(in[0].shape(), std::vector<double>(std::size_t(in[0].size()), 1.0), in[0].dtype(), "ones");
                  const Tensor factor = in[2] ? in[2] : reciprocal(floor_at(sum(gather_last(ones, in[1])), 1));
                  return Tensors{add(right[0], multiply(sum(lost), reshape(factor, {}))), right[1]};
                },
                {}},
               {"ignored", "ignored targets still push all logits down",
                [](const Call& c) {
                  dispatch(c.inputs[0].dtype, [&](auto zero) { cross_entropy_backward<decltype(zero)>(c, false); });
                },
                {}, "ignored"}},
};

TokenLosses cross_entropy(const Tensor& logits, const Tensor& targets, const Tensor& scale, std::int64_t classes, SourceLine where) {
  const Tensors results = apply(kCrossEntropy, {{"classes", classes}}, {logits, targets, scale}, where);
  return {results[0], results[1]};
}

}  // namespace hedgehog

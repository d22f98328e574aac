#pragma once
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "core/op.h"
#include "ops/check.h"
#include "ops/math.h"

/// What the two cross entropies share. Internal to ops/.
namespace hedgehog::detail {

/// What a softmax needs of a row: its largest score, and the sum of the exponentials shifted by it. Kept apart, they stay
/// exact however large the scores are.
template <class T>
struct ExpSum {
  T highest, sum;
};

/// Over `classes` scores; with kStore the shifted exponentials replace the scores.
template <bool kStore, class Logit>
inline ExpSum<std::remove_const_t<Logit>> exp_sum(Logit* logits, std::int64_t classes) {
  using T = std::remove_const_t<Logit>;
  T highest = logits[0], sum = 0;
#pragma omp simd reduction(max : highest)
  for (std::int64_t v = 0; v < classes; ++v) highest = logits[v] > highest ? logits[v] : highest;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t v = 0; v < classes; ++v) {
    const T e = vector_exp(logits[v] - highest);
    if constexpr (kStore) logits[v] = e;
    sum += e;
  }
  return {highest, sum};
}

/// The factor of the sum of losses: the given scale, or 1 / number of targets that count.
template <class T>
double loss_scale(const Ref& scale, const Ref& targets) {
  if (scale) return double(scale.as<T>()[0]);
  std::int64_t count = 0;
  for (std::int64_t n = 0; n < targets.size(); ++n) count += targets.as<std::int32_t>()[n] >= 0;
  return count ? 1.0 / double(count) : 0.0;
}

/// scale * sum of losses, in f64 and in order.
template <class T>
T scaled_sum(const T* losses, std::int64_t n, double scale) {
  double sum = 0;
  for (std::int64_t i = 0; i < n; ++i) sum += double(losses[i]);
  // without a target that counts the scale is 0, and so is the loss
  return T(sum * scale);
}

inline std::int64_t classes_of(const Attributes& a, std::int64_t columns) {
  const std::int64_t classes = a.integer("classes");
  return classes ? classes : columns;
}

/// Checks classes, targets and scale; returns the metas of loss and losses.
inline std::vector<Meta> infer_losses(const Op& op, const Attributes& a, const Meta& x, const char* x_name, std::int64_t columns,
                                      const Meta& targets, const Meta& scale) {
  const std::int64_t classes = a.integer("classes");
  if (classes < 0 || classes > columns)
    fail(op, fmt::format("classes must be from 1 to V = {}, or 0 for all, but is {}", columns, classes));
  check_dtype(op, "targets", targets, Dtype::i32);
  const Dtype dtype = accumulator_of(x.dtype);
  Shape leading;
  for (int i = 0; i + 1 < x.shape.rank(); ++i) leading.push_back(x.shape[i]);
  check_shape(op, "targets", targets, leading, "(...)", x_name, x);
  if (scale.given) {
    check_dtype(op, "scale", scale, dtype, x.dtype == dtype ? x_name : nullptr);
    if (scale.shape.size() != 1) fail(op, fmt::format("scale must have one element, but has shape {}", scale.shape.text()));
  }
  return {{{}, dtype, true}, {leading, dtype, true}};
}

/// The part that follows the logits, from primitives.
Tensors composed_losses(const Tensor& logits, const Tensor& targets, const Tensor& scale, std::int64_t classes);

}  // namespace hedgehog::detail

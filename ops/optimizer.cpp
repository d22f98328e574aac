#include "ops/optimizer.h"

#include <cmath>

#include "core/dispatch.h"
#include "core/parallel.h"
#include "ops/check.h"

namespace hedgehog {

extern const Op kGradientNorm, kAdamW;

namespace {

constexpr std::int64_t kBlock = 16384;  // elements

/// Part of one span: the unit of parallel work, and of the order of sums.
struct Block {
  std::int64_t begin, end, span;
  double squares;
};

/// Blocks never cross a span, so each span adds at most one partial block.
std::int64_t most_blocks(std::int64_t elements, std::int64_t spans) { return elements / kBlock + spans; }

/// Cuts the spans into blocks; returns how many. Throws Error on spans that cannot be.
std::int64_t cut_blocks(const char* op, const Ref& spans, std::int64_t elements, Block* blocks) {
  std::int64_t count = 0, free_from = 0;
  for (std::int64_t s = 0; s < spans.shape[0]; ++s) {
    const double* const row = spans.as<double>() + s * kSpanColumns;
    const std::int64_t offset = std::int64_t(row[kSpanOffset]), length = std::int64_t(row[kSpanLength]);
    if (length == 0) continue;
    if (offset < free_from || length < 0 || offset + length > elements)
      throw Error(fmt::format("[{}] span {} covers elements {} to {}, but must start at {} or later and end by {}; "
                              "spans are ascending and do not overlap",
                              op, s, offset, offset + length, free_from, elements));
    free_from = offset + length;
    for (std::int64_t begin = offset; begin < free_from; begin += kBlock)
      blocks[count++] = {begin, std::min(begin + kBlock, free_from), s, 0};
  }
  return count;
}

void check_spans(const Op& op, const Meta& spans) {
  check_dtype(op, "spans", spans, Dtype::f64);
  if (spans.shape.rank() != 2 || spans.shape[1] != kSpanColumns)
    fail(op, fmt::format("spans must be (S, 5): offset, length, learning-rate factor, decay factor, frozen; but is {}",
                         spans.shape.text()));
}

void check_step(const Op& op, const Meta& step) {
  if (!(step.dtype == Dtype::f64 && step.shape == Shape{kStepStateSize}))
    fail(op, fmt::format("step must be f64 (8), but is {} {}; make it with step_state()", name_of(step.dtype), step.shape.text()));
}

Layout infer_norm(const Attributes&, std::span<const Meta> in) {
  const Meta &gradients = in[0], &spans = in[1], &loss = in[2];
  check_floating(kGradientNorm, "gradients", gradients);
  check_rank(kGradientNorm, "gradients", gradients, 1, "(P)");
  check_spans(kGradientNorm, spans);
  if (loss.given) {
    check_floating(kGradientNorm, "loss", loss);
    if (loss.shape.size() != 1) fail(kGradientNorm, fmt::format("loss must have one element, but has shape {}", loss.shape.text()));
  }
  check_step(kGradientNorm, in[3]);
  Layout layout{{{{spans.shape[0] + 1}, Dtype::f64, true}}, {}};
  layout.forward_workspace = most_blocks(gradients.shape.size(), spans.shape[0]) * std::int64_t(sizeof(Block));
  return layout;
}

template <class T>
double sum_of_squares(const T* x, std::int64_t n) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t i = 0; i < n; ++i) sum += double(x[i]) * double(x[i]);
  return sum;
}

template <class T>
void norm_forward(const Call& c) {
  const Ref &gradients = c.inputs[0], &spans = c.inputs[1], &loss = c.inputs[2];
  const std::int64_t count_spans = spans.shape[0];
  Block* const blocks = static_cast<Block*>(c.workspace);
  const std::int64_t count = cut_blocks("gradient_norm", spans, gradients.size(), blocks);
  const auto frozen = [&](std::int64_t s) { return spans.as<double>()[s * kSpanColumns + kSpanFrozen] != 0; };
  parallel_for(count, 4, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t b = begin; b < end; ++b)
      if (!frozen(blocks[b].span)) blocks[b].squares = sum_of_squares(gradients.as<T>() + blocks[b].begin, blocks[b].end - blocks[b].begin);
  });
  double* const norms = c.outputs[0].as<double>();
  std::fill_n(norms, count_spans + 1, 0.0);
  for (std::int64_t b = 0; b < count; ++b) norms[blocks[b].span] += blocks[b].squares;
  for (std::int64_t s = 0; s < count_spans; ++s) {
    norms[count_spans] += norms[s];
    norms[s] = std::sqrt(norms[s]);
  }
  norms[count_spans] = std::sqrt(norms[count_spans]);
  double watched = norms[count_spans];
  if (loss) dispatch(loss.dtype, [&](auto zero) { watched += double(*loss.as<decltype(zero)>()); });
  if (!std::isfinite(watched)) c.inputs[3].as<double>()[kNonFinite] = 1;
}

Layout infer_adamw(const Attributes& a, std::span<const Meta> in) {
  static constexpr const char* kNames[] = {"weights", "gradients", "first_moment", "second_moment"};
  check_floating(kAdamW, "weights", in[0]);
  if (in[0].dtype == Dtype::bf16)
    fail(kAdamW, "weights must be f32 or f64, but are bf16, where small updates round away; give the bf16 weights as copy");
  check_rank(kAdamW, "weights", in[0], 1, "(P)");
  for (int i = 1; i < 4; ++i) {
    check_dtype(kAdamW, kNames[i], in[i], in[0].dtype, "weights");
    check_shape(kAdamW, kNames[i], in[i], in[0].shape, "(P)", "weights", in[0]);
  }
  check_spans(kAdamW, in[4]);
  check_dtype(kAdamW, "norms", in[5], Dtype::f64);
  check_shape(kAdamW, "norms", in[5], {in[4].shape[0] + 1}, "(S + 1)", "spans", in[4]);
  check_step(kAdamW, in[6]);
  if (in[7].given) {
    check_dtype(kAdamW, "copy", in[7], Dtype::bf16);
    check_shape(kAdamW, "copy", in[7], in[0].shape, "(P)", "weights", in[0]);
  }
  for (const char* name : {"beta1", "beta2"})
    if (!(a.real(name) >= 0 && a.real(name) < 1)) fail(kAdamW, fmt::format("{} must be in [0, 1), but is {}", name, a.real(name)));
  if (!(a.real("epsilon") > 0)) fail(kAdamW, fmt::format("epsilon must be above 0, but is {}; 1e-8 is usual", a.real("epsilon")));
  for (const char* name : {"weight_decay", "clip"})
    if (!(a.real(name) >= 0)) fail(kAdamW, fmt::format("{} must be 0 or more, but is {}", name, a.real(name)));
  Layout layout;
  layout.forward_workspace = most_blocks(in[0].shape.size(), in[4].shape[0]) * std::int64_t(sizeof(Block));
  return layout;
}

/// What does not depend on the element.
template <class T>
struct AdamWNumbers {
  T beta1, beta2, gradient;  // factor on the gradient: clipping
  T rate, root, epsilon;     // lr / (1 - beta1^t), 1 / sqrt(1 - beta2^t)
  T shrink;                  // lr * weight decay
};

template <class T>
void adamw_block(const AdamWNumbers<T>& k, T* w, T* g, T* m, T* v, std::int64_t n) {
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) {
    const T gradient = k.gradient * g[i];
    const T first = k.beta1 * m[i] + (T(1) - k.beta1) * gradient;
    const T second = k.beta2 * v[i] + (T(1) - k.beta2) * gradient * gradient;
    w[i] -= k.rate * first / (std::sqrt(second) * k.root + k.epsilon) + k.shrink * w[i];
    m[i] = first;
    v[i] = second;
    g[i] = T(0);
  }
}

template <class T>
void adamw_forward(const Call& c) {
  const Ref& spans = c.inputs[4];
  double* const step = c.inputs[6].as<double>();
  if (step[kNonFinite] != 0) return;
  Block* const blocks = static_cast<Block*>(c.workspace);
  const std::int64_t count = cut_blocks("adamw", spans, c.inputs[0].size(), blocks);
  const Attributes& a = c.attributes;
  const double t = step[kStep] + 1, clip = a.real("clip"), norm = c.inputs[5].as<double>()[spans.shape[0]];
  const double beta1 = a.real("beta1"), beta2 = a.real("beta2");
  AdamWNumbers<T> k{T(beta1), T(beta2), T(clip > 0 && norm > clip ? clip / norm : 1), 0,
                    T(1 / std::sqrt(1 - std::pow(beta2, t))), T(a.real("epsilon")), 0};
  const double rate = step[kLearningRate], corrected = rate / (1 - std::pow(beta1, t)), decay = rate * a.real("weight_decay");
  T* const w = c.inputs[0].as<T>();
  T* const g = c.inputs[1].as<T>();
  parallel_for(count, 2, [&, k](std::int64_t begin, std::int64_t end) {
    AdamWNumbers<T> here = k;
    for (std::int64_t b = begin; b < end; ++b) {
      const std::int64_t at = blocks[b].begin, n = blocks[b].end - at;
      const double* const span = spans.as<double>() + blocks[b].span * kSpanColumns;
      if (span[kSpanFrozen] != 0) {
        std::fill_n(g + at, n, T(0));
        continue;
      }
      here.rate = T(corrected * span[kSpanLearningRate]);
      here.shrink = T(decay * span[kSpanLearningRate] * span[kSpanDecay]);
      adamw_block(here, w + at, g + at, c.inputs[2].as<T>() + at, c.inputs[3].as<T>() + at, n);
      if (BFloat16* const copy = c.inputs[7].as<BFloat16>())
        for (std::int64_t i = at; i < at + n; ++i) copy[i] = BFloat16(float(w[i]));
    }
  });
  step[kStep] += 1;
  step[kRngStep] += 1;
}

}  // namespace

const Op kGradientNorm{
    .name = "gradient_norm",
    .arguments = {{"gradients", false, false, true}, {"spans", false, false}, {"loss", true, false, true}, {"step", false, false}},
    .results = {"norms"},
    .constant_outputs = bits(0),
    .infer = infer_norm,
    .forward = {[](const Call& c) { dispatch(c.inputs[0].dtype, [&](auto zero) { norm_forward<decltype(zero)>(c); }); }},
    .updates = bits(3),
    .cost = [](const Attributes&, std::span<const Meta> in, std::span<const Meta>) {
      return std::pair{Work{2.0 * double(in[0].shape.size())}, Work{}};
    },
    .formula_forward = "norms[s] = sqrt(sum over span s of gradient^2);  norms[S] = sqrt(sum_s norms[s]^2);  non-finite raises a flag",
    .samples = {{"spans", {}, {normal({23}), numbers({3, 5}, {0, 7, 1, 1, 0, 7, 5, 1, 0, 1, 16, 6, 0.5, 0, 0}), omitted(),
                               numbers({8}, {1e-3, 2, 2, 0, 1, 0, 0, 0})}},
                {"loss", {}, {normal({1}), numbers({1, 5}, {0, 1, 1, 1, 0}), constant_input(normal({})),
                              numbers({8}, {1e-3, 0, 0, 0, 1, 0, 0, 0})}}},
};

const Op kAdamW{
    .name = "adamw",
    .arguments = {{"weights", false, false, true}, {"gradients", false, false, true}, {"first_moment", false, false, true}, {"second_moment", false, false, true},
                  {"spans", false, false}, {"norms", false, false}, {"step", false, false}, {"copy", true, false}},
    .attributes = {{"beta1", 0.9}, {"beta2", 0.999}, {"epsilon", 1e-8}, {"weight_decay", 0.0}, {"clip", 0.0}},
    .infer = infer_adamw,
    .forward = {[](const Call& c) { dispatch(c.inputs[0].dtype, [&](auto zero) { adamw_forward<decltype(zero)>(c); }); }},
    .updates = bits(0, 1, 2, 3, 6, 7),
    .cost = [](const Attributes&, std::span<const Meta> in, std::span<const Meta>) {
      const double n = double(in[0].shape.size());
      // four buffers read and written, and the copy written
      return std::pair{Work{15 * n, 8 * n * double(size_of(in[0].dtype)) + (in[7].given ? 2 * n : 0)}, Work{}};
    },
    .formula_forward = "g = gradient min(1, clip / norm);  m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;  "
                       "w -= lr (m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps) + decay w);  copy = bf16(w);  gradient = 0",
    .samples = {{"spans",
                 {{"weight_decay", 0.1}, {"clip", 1.0}},
                 {normal({23}), normal({23}), normal({23}), positive({23}),
                  numbers({3, 5}, {0, 7, 1, 1, 0, 7, 5, 1, 0, 1, 16, 6, 0.5, 0, 0}), numbers({4}, {2, 0, 1, 2.25}),
                  numbers({8}, {1e-3, 2, 2, 0, 1, 0, 0, 0}), omitted()}},
                {"smallest",
                 {{"beta1", 0.5}, {"beta2", 0.9}, {"epsilon", 1e-6}},
                 {normal({1}), normal({1}), normal({1}), positive({1}), numbers({1, 5}, {0, 1, 1, 1, 0}), numbers({2}, {1, 1}),
                  numbers({8}, {1e-2, 0, 0, 0, 1, 0, 0, 0}), omitted()}}},
};

Tensor gradient_norm(const Tensor& gradients, const Tensor& spans, const Tensor& loss, const Tensor& step, SourceLine where) {
  return apply(kGradientNorm, {}, {gradients, spans, loss, step}, where)[0];
}

void adamw(const Tensor& weights, const Tensor& gradients, const Tensor& first_moment, const Tensor& second_moment, const Tensor& spans,
           const Tensor& norms, const Tensor& step, const AdamW& o, const Tensor& copy, SourceLine where) {
  apply(kAdamW,
        {{"beta1", o.beta1}, {"beta2", o.beta2}, {"epsilon", o.epsilon}, {"weight_decay", o.weight_decay}, {"clip", o.clip}},
        {weights, gradients, first_moment, second_moment, spans, norms, step, copy}, where);
}

}  // namespace hedgehog

#include "train/attention_weights.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "ops/blas.h"

namespace hedgehog {

namespace {

// products of shifted features below this may have lost terms to underflow
constexpr double kTiny = 1e-200;

/// One head of (T, H, F) as (T, F).
std::vector<double> head_of(const std::vector<double>& all, std::int64_t tokens, std::int64_t heads, std::int64_t features, std::int64_t head) {
  std::vector<double> one(std::size_t(tokens * features));
  for (std::int64_t t = 0; t < tokens; ++t)
    std::copy_n(all.begin() + (t * heads + head) * features, features, one.begin() + t * features);
  return one;
}

/// Turns the logarithms of each vector into exp(l - shift) and returns the shifts.
std::vector<double> exponentials(std::vector<double>& logarithms, std::int64_t tokens, std::int64_t features) {
  std::vector<double> shift(static_cast<std::size_t>(tokens));
  for (std::int64_t t = 0; t < tokens; ++t) {
    double* const row = logarithms.data() + t * features;
    shift[std::size_t(t)] = *std::max_element(row, row + features);
    for (std::int64_t f = 0; f < features; ++f) row[f] = std::exp(row[f] - shift[std::size_t(t)]);
  }
  return shift;
}

}  // namespace

WeightSource softmax_weights() {
  return {.name = "softmax", .of_score = [](double s) { return s; }};
}

HeadWeights::HeadWeights(const LayerVectors& vectors, const WeightSource& source, std::int64_t head)
    : vectors_(vectors), source_(source), head_(head) {
  if (source.of_score) return;
  const std::int64_t T = vectors.tokens, F = source.features;
  q_ = head_of(source.q, T, vectors.heads, F, head);
  k_ = head_of(source.k, T, vectors.heads, F, head);
  if (!source.logarithmic) return;
  shift_q_ = exponentials(q_, T, F);
  shift_k_ = exponentials(k_, T, F);
}

double HeadWeights::log_product(std::int64_t i, std::int64_t j) const {
  const std::int64_t H = vectors_.heads, F = source_.features;
  const double* const q = source_.q.data() + (i * H + head_) * F;
  const double* const k = source_.k.data() + (j * H + head_) * F;
  double most = -INFINITY, sum = 0;
  for (std::int64_t f = 0; f < F; ++f) most = std::max(most, q[f] + k[f]);
  for (std::int64_t f = 0; f < F; ++f) sum += std::exp(q[f] + k[f] - most);
  return most + std::log(sum);
}

void HeadWeights::rows(std::int64_t begin, std::int64_t end, const double* scores, double* weights, double* normalisers) const {
  const std::int64_t T = vectors_.tokens, F = source_.features;
  if (!source_.of_score) gemm_serial<double>(false, true, end - begin, end, F, 1, q_.data() + begin * F, F, k_.data(), F, 0, weights, T);
  for (std::int64_t i = begin; i < end; ++i) {
    const std::int64_t first = vectors_.first_seen(i);
    double* const row = weights + (i - begin) * T;
    double most = -INFINITY;
    for (std::int64_t j = first; j <= i; ++j) {
      if (source_.of_score) row[j] = source_.of_score(scores[(i - begin) * T + j]);
      else if (!source_.logarithmic) row[j] = row[j] < 0 ? NAN : std::log(row[j]);
      else row[j] = row[j] < kTiny ? log_product(i, j) : std::log(row[j]) + shift_q_[std::size_t(i)] + shift_k_[std::size_t(j)];
      most = std::isnan(row[j]) ? NAN : std::max(most, row[j]);
      if (std::isnan(most)) break;
    }
    if (!std::isfinite(most))
      throw Error(fmt::format("[analyze] the weights of {} attention in head {} are no positive finite numbers at token {}: its vectors or maps are damaged",
                              source_.name, head_ + 1, i + 1));
    double sum = 0;
    for (std::int64_t j = first; j <= i; ++j) sum += std::exp(row[j] - most);
    const double normaliser = most + std::log(sum);
    if (normalisers) normalisers[i - begin] = normaliser;
    for (std::int64_t j = first; j <= i; ++j) row[j] -= normaliser;
  }
}

void attention_scores(const LayerVectors& vectors, std::int64_t head, std::int64_t begin, std::int64_t end, double* scores) {
  const std::int64_t D = vectors.width, row = vectors.heads * D, T = vectors.tokens;
  gemm_serial<double>(false, true, end - begin, end, D, 1 / std::sqrt(double(D)), vectors.q.data() + begin * row + head * D, row,
                      vectors.k.data() + head * D, row, 0, scores, T);
}

}  // namespace hedgehog

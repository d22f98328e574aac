#include "train/window_factor.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "core/parallel.h"
#include "train/analysis.h"

namespace hedgehog {
namespace {

constexpr std::int64_t kRows = 64;  // attention rows at a time

/// A sum over rows, and how many.
struct RowMean {
  double sum = 0;
  std::int64_t rows = 0;
};

double log_sum(const double* values, std::int64_t n) {
  const double most = *std::max_element(values, values + n);
  double sum = 0;
  for (std::int64_t i = 0; i < n; ++i) sum += std::exp(values[i] - most);
  return most + std::log(sum);
}

/// The rows of one head of one text.
RowMean measure_head(const LayerVectors& v, const WeightSource& softmax, const WeightSource& map, std::int64_t head, std::int64_t window) {
  const HeadWeights teacher(v, softmax, head), student(v, map, head);
  const std::int64_t T = v.tokens;
  std::vector<double> scores(std::size_t(kRows * T)), p(scores.size()), a(scores.size());
  std::vector<double> p_sums(kRows), a_sums(kRows);
  RowMean mean;
  for (std::int64_t begin = window; begin < T; begin += kRows) {
    const std::int64_t end = std::min(begin + kRows, T);
    attention_scores(v, head, begin, end, scores.data());
    teacher.rows(begin, end, scores.data(), p.data(), p_sums.data());
    student.rows(begin, end, scores.data(), a.data(), a_sums.data());
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t first = v.first_seen(i), n = i - window + 1 - first, at = (i - begin) * T + first;
      if (n < 1) continue;
      const double p_far = log_sum(p.data() + at, n) + p_sums[std::size_t(i - begin)];
      const double a_far = log_sum(a.data() + at, n) + a_sums[std::size_t(i - begin)];
      if (!std::isfinite(a_far) || !std::isfinite(p_far)) continue;  // all of its weights are 0
      mean.sum += a_far - p_far, ++mean.rows;
    }
  }
  return mean;
}

}  // namespace

void match_window(const Gpt& teacher, Gpt& student, const std::vector<Batch>& texts, bool documents) {
  const std::int64_t window = student.options().window, heads = student.options().heads;
  if (window < 1) throw Error("[match_window] the student has no window");
  std::vector<std::vector<RowMean>> means(std::size_t(student.options().layers), std::vector<RowMean>(std::size_t(heads)));
  const WeightSource softmax = softmax_weights();
  for (const Batch& text : texts) {
    const std::vector<LayerVectors> layers = read_vectors(teacher, text, documents);
    for (std::size_t l = 0; l < layers.size(); ++l) {
      const WeightSource map = weights_of(student, std::int64_t(l), layers[l], student.options().attention);
      parallel_tasks(heads, [&](std::int64_t h) {
        const RowMean found = measure_head(layers[l], softmax, map, h, window);
        means[l][std::size_t(h)].sum += found.sum, means[l][std::size_t(h)].rows += found.rows;
      });
    }
  }
  for (std::size_t l = 0; l < means.size(); ++l) {
    const Tensor factor = student.parameters().find(fmt::format("h.{}.attn.log_factor", l));
    std::vector<double> values = student.parameters().values(factor);
    for (std::size_t h = 0; h < values.size(); ++h)
      if (means[l][h].rows > 0) values[h] = means[l][h].sum / double(means[l][h].rows);
    student.parameters().assign(factor, values);
  }
}

}  // namespace hedgehog

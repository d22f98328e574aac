#include "train/analysis.h"

#include <algorithm>
#include <cmath>
#include <exception>

#include "core/parallel.h"
#include "core/random.h"
#include "train/rank_correlation.h"

namespace hedgehog {

namespace {

constexpr std::int64_t kRows = 64;  // attention rows a task

/// Sums over rows, and how many rows each is over.
struct RowSums {
  double entropy = 0, share = 0, rank = 0, divergence = 0;
  std::int64_t rows = 0, shared = 0, ranked = 0;
  void operator+=(const RowSums& o) {
    entropy += o.entropy, share += o.share, rank += o.rank, divergence += o.divergence;
    rows += o.rows, shared += o.shared, ranked += o.ranked;
  }
  WeightMeasures means(double pooled) const {
    const auto over = [](double sum, std::int64_t n) { return n ? sum / double(n) : 0; };
    return {over(entropy, rows), over(share, shared), over(rank, ranked), pooled, over(divergence, rows)};
  }
};

/// Rows whose pairs tell the rank correlations: one of each of equal stretches, so many that their pairs are about `pairs`.
std::vector<std::int64_t> ranked_rows(const LayerVectors& v, std::int64_t pairs, std::uint64_t seed) {
  double all = 0;
  for (std::int64_t i = 0; i < v.tokens; ++i) all += double(i - v.first_seen(i) + 1);
  const std::int64_t T = v.tokens, count = std::clamp<std::int64_t>(std::int64_t(double(pairs) / all * double(T)), 1, T);
  std::vector<std::int64_t> rows;
  const Random random{seed, 0x72616e6b, 0};
  for (std::int64_t r = 0; r < count; ++r) {
    const std::int64_t first = r * T / count, stretch = (r + 1) * T / count - first;
    rows.push_back(first + random.below(std::uint64_t(r), std::uint32_t(stretch)));
  }
  return rows;
}

/// One head of one text: what tasks share. Tasks write to places of their own.
struct HeadWork {
  std::vector<HeadWeights> weights;            // a source
  std::vector<std::vector<RowSums>> sums;      // (sources, chunks)
  std::vector<double> scores;                  // of ranked pairs
  std::vector<std::vector<double>> log_weights;  // (sources) of ranked pairs
};

/// A row's entropy and divergence from the teacher's logarithms p.
void add_row(RowSums& sums, const double* p, const double* a, std::int64_t n) {
  double entropy = 0, divergence = 0;
  for (std::int64_t j = 0; j < n; ++j) {
    const double weight = std::exp(a[j]), teacher = std::exp(p[j]);
    if (weight > 0) entropy -= weight * a[j];
    if (teacher > 0) divergence += teacher * (p[j] - a[j]);
  }
  sums.entropy += entropy, sums.divergence += divergence, ++sums.rows;
  if (n < 2) return;
  sums.share += entropy / std::log(double(n)), ++sums.shared;
}

struct RankPlan {
  std::vector<std::int64_t> at;  // (T) where a row's pairs begin in the list of ranked pairs; -1: not ranked
  std::int64_t pairs = 0;
};

RankPlan plan_ranks(const LayerVectors& v, const AnalysisOptions& options) {
  RankPlan plan{std::vector<std::int64_t>(std::size_t(v.tokens), -1), 0};
  for (const std::int64_t i : ranked_rows(v, options.pairs, options.seed)) {
    plan.at[std::size_t(i)] = plan.pairs;
    plan.pairs += i - v.first_seen(i) + 1;
  }
  return plan;
}

void measure_rows(const LayerVectors& v, std::int64_t head, std::int64_t chunk, const RankPlan& plan, HeadWork& work) {
  const std::int64_t T = v.tokens, begin = chunk * kRows, end = std::min(begin + kRows, T);
  std::vector<double> scores(std::size_t((end - begin) * T)), p(scores.size()), a(scores.size());
  attention_scores(v, head, begin, end, scores.data());
  std::vector<std::vector<double>> ranks(std::size_t(end - begin));
  for (std::size_t source = 0; source < work.weights.size(); ++source) {
    double* const to = source == 0 ? p.data() : a.data();
    work.weights[source].rows(begin, end, scores.data(), to);
    RowSums& sums = work.sums[source][std::size_t(chunk)];
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t first = v.first_seen(i), n = i - first + 1, at = plan.at[std::size_t(i)], row = (i - begin) * T + first;
      add_row(sums, p.data() + row, to + row, n);
      if (at < 0) continue;
      std::copy_n(to + row, n, work.log_weights[source].begin() + at);
      if (source == 0) std::copy_n(scores.data() + row, n, work.scores.begin() + at);
      if (n < 3) continue;
      std::vector<double>& ranked = ranks[std::size_t(i - begin)];
      if (source == 0) ranked = mean_ranks({scores.data() + row, std::size_t(n)});
      sums.rank += correlation(ranked, mean_ranks({to + row, std::size_t(n)})), ++sums.ranked;
    }
  }
}

}  // namespace

WeightMeasures& WeightMeasures::operator+=(const WeightMeasures& other) {
  for (const MeasureColumn& c : measure_columns()) this->*c.value += other.*c.value;
  return *this;
}

WeightMeasures WeightMeasures::scaled(double factor) const {
  WeightMeasures result;
  for (const MeasureColumn& c : measure_columns()) result.*c.value = factor * this->*c.value;
  return result;
}

const std::vector<MeasureColumn>& measure_columns() {
  static const std::vector<MeasureColumn> columns = {{"entropy", "entropy, nats", &WeightMeasures::entropy},
                                                     {"entropy_share", "of ln n", &WeightMeasures::entropy_share},
                                                     {"rank_in_rows", "rank in rows", &WeightMeasures::rank_in_rows},
                                                     {"rank_pooled", "rank pooled", &WeightMeasures::rank_pooled},
                                                     {"divergence", "KL, nats", &WeightMeasures::divergence}};
  return columns;
}

WeightMeasures MapAnalysis::layer(std::size_t index) const {
  WeightMeasures sum;
  for (const WeightMeasures& head : heads[index]) sum += head;
  return sum.scaled(1 / double(heads[index].size()));
}

WeightMeasures MapAnalysis::mean() const {
  WeightMeasures sum;
  for (std::size_t l = 0; l < heads.size(); ++l) sum += layer(l);
  return sum.scaled(1 / double(heads.size()));
}

std::vector<std::vector<WeightMeasures>> measure_layer(const LayerVectors& v, const std::vector<WeightSource>& sources,
                                                       const AnalysisOptions& options) {
  const std::int64_t chunks = (v.tokens + kRows - 1) / kRows;
  const RankPlan plan = plan_ranks(v, options);
  std::vector<HeadWork> work(static_cast<std::size_t>(v.heads));
  parallel_tasks(v.heads, [&](std::int64_t head) {
    HeadWork& w = work[std::size_t(head)];
    for (const WeightSource& source : sources) w.weights.emplace_back(v, source, head);
    w.sums.assign(sources.size(), std::vector<RowSums>(std::size_t(chunks)));
    w.scores.resize(std::size_t(plan.pairs));
    w.log_weights.assign(sources.size(), w.scores);
  });
  std::vector<std::exception_ptr> errors(std::size_t(v.heads * chunks));
  parallel_tasks(v.heads * chunks, [&](std::int64_t task) {
    try {
      measure_rows(v, task / chunks, task % chunks, plan, work[std::size_t(task / chunks)]);
    } catch (...) {
      errors[std::size_t(task)] = std::current_exception();
    }
  });
  for (const std::exception_ptr& e : errors)
    if (e) std::rethrow_exception(e);
  std::vector<std::vector<WeightMeasures>> result(sources.size(), std::vector<WeightMeasures>(std::size_t(v.heads)));
  parallel_tasks(v.heads, [&](std::int64_t head) {
    const HeadWork& w = work[std::size_t(head)];
    const std::vector<double> ranks = mean_ranks(w.scores);
    for (std::size_t s = 0; s < sources.size(); ++s) {
      RowSums sums;
      for (const RowSums& chunk : w.sums[s]) sums += chunk;
      result[s][std::size_t(head)] = sums.means(correlation(ranks, mean_ranks(w.log_weights[s])));
    }
  });
  return result;
}

}  // namespace hedgehog

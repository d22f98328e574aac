#include <vector>

#include "core/dispatch.h"
#include "ops/attention_cross_entropy_sizes.h"
#include "ops/attention_tiles.h"
#include "ops/feature_map_rows.h"
#include "ops/worker_tasks.h"

namespace hedgehog::attention_cross_entropy_detail {
namespace {

constexpr const char* kName = "attention_cross_entropy";

template <class T>
constexpr T kInfinity = std::numeric_limits<T>::infinity();
/// Pairs whose shifted features have a smaller product are summed in log space.
template <class T>
constexpr T kSmallest = T(1) / T(std::int64_t(1) << 60);

/// A log is (rows, columns) of a tile, features are divided by the exponential of a shift a token.
template <class T>
struct Scratch {
  T *scores, *weights;           // (rows, columns): the teacher's; the student's, then their logarithms or gradients
  T *q, *k, *shift_q, *shift_k;  // (rows, F), (T, F), (rows), (T)
  T *m, *sum, *cross, *own;      // (rows) of the teacher: largest score, sums of e = exp(s - m), of e ln A and of e s
  T *largest, *den;              // (rows) of the student: largest ln A, sum of exp(ln A - largest)
  T *dq, *dk, *more_q, *more_k;  // like q and k: gradients of the features over their scale; those of pairs in log space

  Scratch(Carver& carver, const Sizes& s, bool backward) {
    for (T** block : {&scores, &weights}) *block = carver.take<T>(s.rows() * s.columns());
    q = carver.take<T>(s.rows() * s.F), k = carver.take<T>(s.T * s.F);
    shift_q = carver.take<T>(s.rows()), shift_k = carver.take<T>(s.T);
    for (T** row : {&m, &sum, &cross, &own, &largest, &den}) *row = carver.take<T>(s.rows());
    for (T** block : {&dq, &more_q}) *block = carver.take<T>(backward ? s.rows() * s.F : 0);
    for (T** block : {&dk, &more_k}) *block = carver.take<T>(backward ? s.T * s.F : 0);
  }
};

template <class T>
std::vector<Scratch<T>> scratch_of(const Sizes& s, bool backward, Carver& carver) {
  std::vector<Scratch<T>> scratch;
  for (std::int64_t w = 0; w < worker_count(s.B * s.Hq); ++w) scratch.emplace_back(carver, s, backward);
  return scratch;
}

template <class T>
class CrossEntropy {
 public:
  CrossEntropy(const Call& c, const Sizes& s)
      : c_(c), s_(s), q_(kName, c.inputs[kQ]), k_(kName, c.inputs[kK]), features_q_(kName, c.inputs[kFeaturesQ]),
        features_k_(kName, c.inputs[kFeaturesK]) {
    for (std::size_t i = 0; i < 4; ++i) saved_[i] = c.saved[i].as<T>();
    if (c.dx.empty()) return;
    dfeatures_q_ = HeadRows<T>(kName, c.dx[kFeaturesQ]);
    dfeatures_k_ = HeadRows<T>(kName, c.dx[kFeaturesK]);
  }

  void forward(std::int64_t b, std::int64_t h, const Scratch<T>& x) const {
    load(features_k_, b, h, 0, s_.T, x.k, x.shift_k);
    for_row_tiles(b, h, [&](const AttentionTile& rows, std::int64_t begin, std::int64_t end) {
      load(features_q_, b, h, rows.i0, rows.rows(), x.q, x.shift_q);
      for (T* largest : {x.m, x.largest}) std::fill_n(largest, rows.rows(), -kInfinity<T>);
      for (T* sum : {x.sum, x.cross, x.own, x.den}) std::fill_n(sum, rows.rows(), T(0));
      for_tiles(rows, s_.columns(), begin, end, [&](const AttentionTile& t) {
        make_pairs(t, x);
        for (std::int64_t i = 0; i < t.rows(); ++i) add_row(t, i, x);
      });
      for (std::int64_t i = 0; i < rows.rows(); ++i) finish_row(rows, i, x);
    });
  }

  void backward(std::int64_t b, std::int64_t h, const Scratch<T>& x) const {
    load(features_k_, b, h, 0, s_.T, x.k, x.shift_k);
    for (T* sums : {x.dk, x.more_k}) std::fill_n(sums, s_.T * s_.F, T(0));
    for_row_tiles(b, h, [&](const AttentionTile& rows, std::int64_t begin, std::int64_t end) {
      load(features_q_, b, h, rows.i0, rows.rows(), x.q, x.shift_q);
      for (T* sums : {x.dq, x.more_q}) std::fill_n(sums, rows.rows() * s_.F, T(0));
      for_tiles(rows, s_.columns(), begin, end, [&](const AttentionTile& t) { tile_backward(t, x); });
      store(x.q, x.dq, x.more_q, rows.rows(), dfeatures_q_, kFeaturesQ, b, h, rows.i0);
    });
    store(x.k, x.dk, x.more_k, s_.T, dfeatures_k_, kFeaturesK, b, h, 0);
  }

 private:
  const std::int32_t* row_of(Input i, std::int64_t b) const {
    return c_.inputs[i] ? c_.inputs[i].template as<std::int32_t>() + b * s_.T : nullptr;
  }
  std::int64_t place(const AttentionTile& t, std::int64_t i) const { return (t.b * s_.T + t.i0 + i) * s_.Hq + t.h; }

  /// Calls body(rows, begin, end) for tiles of rows of each document [begin, end).
  template <class Body>
  void for_row_tiles(std::int64_t b, std::int64_t h, const Body& body) const {
    for_each_document(row_of(kDocumentStart, b), s_.T, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i0 = begin; i0 < end; i0 += s_.rows())
        body(AttentionTile{b, h, h / s_.group(), i0, std::min(i0 + s_.rows(), end), 0, 0, s_.causal}, begin, end);
    });
  }

  /// Features of n tokens over the exponential of their largest logarithm.
  void load(const HeadRows<T>& features, std::int64_t b, std::int64_t h, std::int64_t t0, std::int64_t n, T* y, T* shift) const {
    for (std::int64_t t = 0; t < n; ++t) {
      const T* __restrict x = features.at(b, t0 + t, h);
      T* __restrict row = y + t * s_.F;
      shift[t] = s_.logarithmic ? rows::max_of(x, s_.F) : T(0);
      if (!s_.logarithmic) std::copy_n(x, s_.F, row);
      else
        for (std::int64_t r = 0; r < s_.F; ++r) row[r] = vector_exp(x[r] - shift[t]);
    }
  }

  /// Scores and weights of a tile.
  void make_pairs(const AttentionTile& t, const Scratch<T>& x) const {
    tile_scores(t, s_.D, T(s_.scale), q_, k_, row_of(kMask, t.b), x.scores);
    gemm_serial<T>(false, true, t.rows(), t.columns(), s_.F, 1, x.q, s_.F, x.k + t.j0 * s_.F, s_.F, 0, x.weights, t.columns());
  }

  bool far_apart(T weight) const { return s_.logarithmic && weight < kSmallest<T>; }
  /// ln A of row i and column j, whose shifted features have the product `weight`.
  T log_weight(const AttentionTile& t, std::int64_t i, std::int64_t j, T weight, const Scratch<T>& x) const {
    if (!far_apart(weight)) return std::log(weight) + (x.shift_q[i] + x.shift_k[t.j0 + j]);
    const T *q = features_q_.at(t.b, t.i0 + i, t.h), *k = features_k_.at(t.b, t.j0 + j, t.h);
    T largest = -kInfinity<T>, sum = 0;
    for (std::int64_t r = 0; r < s_.F; ++r) largest = std::max(largest, q[r] + k[r]);
    for (std::int64_t r = 0; r < s_.F; ++r) sum += vector_exp(q[r] + k[r] - largest);
    return largest + std::log(sum);
  }

  /// Takes a tile's columns into the sums of row i.
  void add_row(const AttentionTile& t, std::int64_t i, const Scratch<T>& x) const {
    const std::int64_t n = t.seen(i);
    const T* const s = x.scores + i * t.columns();
    T* const log_a = x.weights + i * t.columns();
    T m = x.m[i], largest = x.largest[i];
    for (std::int64_t j = 0; j < n; ++j) {
      log_a[j] = s[j] == -kInfinity<T> ? s[j] : log_weight(t, i, j, log_a[j], x);
      m = s[j] > m ? s[j] : m;
      largest = log_a[j] > largest ? log_a[j] : largest;
    }
    if (m == -kInfinity<T>) return;  // all that was seen so far is masked
    const T alpha = vector_exp(x.m[i] - m);
    // what is infinite may be of a key that a later one takes all weight from
    T sum = x.sum[i] * alpha, cross = alpha > T(0) ? x.cross[i] * alpha : T(0), own = x.own[i] * alpha;
    T den = largest == -kInfinity<T> ? T(0) : x.den[i] * vector_exp(x.largest[i] - largest);
    for (std::int64_t j = 0; j < n; ++j) {
      const T e = vector_exp(s[j] - m);
      if (e > T(0)) sum += e, cross += e * log_a[j], own += e * s[j];
      if (log_a[j] > -kInfinity<T>) den += vector_exp(log_a[j] - largest);
    }
    x.m[i] = m, x.sum[i] = sum, x.cross[i] = cross, x.own[i] = own, x.largest[i] = largest, x.den[i] = den;
  }

  void finish_row(const AttentionTile& t, std::int64_t i, const Scratch<T>& x) const {
    const bool sees = x.m[i] != -kInfinity<T>;
    const std::int64_t at = place(t, i);
    c_.outputs[0].template as<T>()[at] = sees ? (x.largest[i] - x.cross[i] / x.sum[i]) + std::log(x.den[i]) : T(0);
    c_.outputs[1].template as<T>()[at] = sees ? (x.m[i] - x.own[i] / x.sum[i]) + std::log(x.sum[i]) : T(0);
    if (!saved_[0]) return;
    // exp(x - inf) = 0: a row that sees nothing has no weights
    saved_[0][at] = sees ? x.m[i] : kInfinity<T>, saved_[1][at] = sees ? x.sum[i] : T(1);
    saved_[2][at] = sees ? x.largest[i] : kInfinity<T>, saved_[3][at] = sees ? x.den[i] : T(1);
  }

  void tile_backward(const AttentionTile& t, const Scratch<T>& x) const {
    make_pairs(t, x);
    for (std::int64_t i = 0; i < t.rows(); ++i) {
      const std::int64_t n = t.seen(i);
      const std::int64_t at = place(t, i);
      const T g = c_.dy[0].template as<T>()[at], m = saved_[0][at], largest = saved_[2][at];
      const T of_sum = T(1) / saved_[1][at], of_den = T(1) / saved_[3][at];
      const T* const s = x.scores + i * t.columns();
      T* const r = x.weights + i * t.columns();
      for (std::int64_t j = 0; j < n; ++j) {
        if (s[j] == -kInfinity<T>) {
          r[j] = 0;
          continue;
        }
        const T weight = r[j], p = vector_exp(s[j] - m) * of_sum;
        if (far_apart(weight)) {
          const T log_a = log_weight(t, i, j, weight, x);
          pair_backward(t, i, j, log_a, g * (vector_exp(log_a - largest) * of_den - p), x);
          r[j] = 0;
        } else {
          r[j] = g * (vector_exp((x.shift_q[i] + x.shift_k[t.j0 + j]) - largest) * of_den - p / weight);  // (a - p) over the shifted A
        }
      }
      std::fill(r + n, r + t.columns(), T(0));
    }
    gemm_serial<T>(false, false, t.rows(), s_.F, t.columns(), 1, x.weights, t.columns(), x.k + t.j0 * s_.F, s_.F, 1, x.dq, s_.F);
    gemm_serial<T>(true, false, t.columns(), s_.F, t.rows(), 1, x.weights, t.columns(), x.q, s_.F, 1, x.dk + t.j0 * s_.F, s_.F);
  }

  /// One pair in log space: the gradient of ln A goes to both logarithms of a feature by its share of A.
  void pair_backward(const AttentionTile& t, std::int64_t i, std::int64_t j, T log_a, T of_log, const Scratch<T>& x) const {
    const T *q = features_q_.at(t.b, t.i0 + i, t.h), *k = features_k_.at(t.b, t.j0 + j, t.h);
    T *to_q = x.more_q + i * s_.F, *to_k = x.more_k + (t.j0 + j) * s_.F;
    for (std::int64_t r = 0; r < s_.F; ++r) {
      const T share = of_log * vector_exp(q[r] + k[r] - log_a);
      to_q[r] += share;
      to_k[r] += share;
    }
  }

  /// Gradients of what was given of n tokens.
  void store(const T* features, const T* gradients, const T* more, std::int64_t n, const HeadRows<T>& to, Input i, std::int64_t b,
             std::int64_t h, std::int64_t t0) const {
    for (std::int64_t t = 0; t < n && to; ++t) {
      T* __restrict row = to.at(b, t0 + t, h);
      for (std::int64_t r = 0; r < s_.F; ++r) {
        const std::int64_t at = t * s_.F + r;
        const T value = s_.logarithmic ? features[at] * gradients[at] + more[at] : gradients[at];
        row[r] = c_.modes[i] == Mode::write ? value : row[r] + value;
      }
    }
  }

  const Call& c_;
  const Sizes& s_;
  HeadRows<T> q_, k_, features_q_, features_k_, dfeatures_q_, dfeatures_k_;
  T* saved_[4];  // as the record names them
};

template <class T>
void run(const Call& c, bool backward) {
  const Sizes s = sizes_of(c.attributes, c.inputs);
  Carver carver(c.workspace);
  const auto scratch = scratch_of<T>(s, backward, carver);
  const CrossEntropy<T> pass(c, s);
  worker_tasks(s.B * s.Hq, [&](std::int64_t task, std::int64_t worker) {
    if (backward) pass.backward(task / s.Hq, task % s.Hq, scratch[worker]);
    else pass.forward(task / s.Hq, task % s.Hq, scratch[worker]);
  });
}

}  // namespace

void forward_cpu(const Call& c) {
  dispatch(c.inputs[kQ].dtype, [&](auto zero) { run<decltype(zero)>(c, false); });
}
void backward_cpu(const Call& c) {
  dispatch(c.inputs[kQ].dtype, [&](auto zero) { run<decltype(zero)>(c, true); });
}
std::int64_t workspace_bytes(const Sizes& s, Dtype dtype, bool backward) {
  Carver carver;
  dispatch_workspace(dtype, [&](auto zero) { scratch_of<decltype(zero)>(s, backward, carver); });
  return carver.used();
}

}  // namespace hedgehog::attention_cross_entropy_detail

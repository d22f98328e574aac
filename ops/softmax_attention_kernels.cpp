#include <limits>

#include "core/dispatch.h"
#include "ops/attention_tiles.h"
#include "ops/feature_map_rows.h"
#include "ops/softmax_attention_sizes.h"
#include "ops/worker_tasks.h"

namespace hedgehog::softmax_attention_detail {
namespace {

constexpr const char* kName = "softmax_attention";

template <class T>
constexpr T kInfinity = std::numeric_limits<T>::infinity();

template <class T>
struct Scratch {
  T *p, *ds;       // (rows, columns)
  T *m, *sum;      // (rows): largest score and sum of exponentials so far; in backward sum is do . o
  T *dk, *dv;      // (T, D), (T, Dv): sums over tiles and query heads

  Scratch(Carver& carver, const Sizes& s, bool backward) {
    p = carver.take<T>(s.rows() * s.columns());
    ds = carver.take<T>(backward ? s.rows() * s.columns() : 0);
    m = carver.take<T>(s.rows());
    sum = carver.take<T>(s.rows());
    dk = carver.take<T>(backward ? s.T * s.D : 0);
    dv = carver.take<T>(backward ? s.T * s.Dv : 0);
  }
};

template <class T>
std::vector<Scratch<T>> scratch_of(const Sizes& s, std::int64_t tasks, bool backward, Carver& carver) {
  std::vector<Scratch<T>> scratch;
  for (std::int64_t w = 0; w < worker_count(tasks); ++w) scratch.emplace_back(carver, s, backward);
  return scratch;
}

using Tile = AttentionTile;

template <class T>
class Attention {
 public:
  Attention(const Call& c, const Sizes& s)
      : c_(c), s_(s), q_(kName, c.inputs[kQ]), k_(kName, c.inputs[kK]), v_(kName, c.inputs[kV]), o_(kName, c.outputs[0]),
        lse_(c.saved[0].as<T>()) {
    if (c.dx.empty()) return;
    G_ = HeadRows<T>(kName, c.dy[0]);
    dq_ = HeadRows<T>(kName, c.dx[kQ]);
    dk_ = HeadRows<T>(kName, c.dx[kK]);
    dv_ = HeadRows<T>(kName, c.dx[kV]);
  }

  void forward(std::int64_t b, std::int64_t h, const Scratch<T>& x) const {
    for_each_document(document_start(b), s_.T, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i0 = begin; i0 < end; i0 += s_.rows()) {
        const Tile rows{b, h, h / s_.group(), i0, std::min(i0 + s_.rows(), end), 0, 0, s_.causal, s_.window};
        std::fill_n(x.m, rows.rows(), -kInfinity<T>);
        std::fill_n(x.sum, rows.rows(), T(0));
        bool first = true;
        for_tiles(rows, s_.columns(), begin, end, [&](const Tile& t) { add_tile(t, first, x), first = false; });
        finish_rows(rows, x);
      }
    });
  }

  void backward(std::int64_t b, std::int64_t h, const Scratch<T>& x) const {
    const std::int64_t hkv = h / s_.group(), g = h % s_.group();
    if (g == 0) std::fill_n(x.dk, s_.T * s_.D, T(0)), std::fill_n(x.dv, s_.T * s_.Dv, T(0));
    for_each_document(document_start(b), s_.T, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i0 = begin; i0 < end; i0 += s_.rows()) {
        const Tile rows{b, h, hkv, i0, std::min(i0 + s_.rows(), end), 0, 0, s_.causal, s_.window};
        for (std::int64_t i = 0; i < rows.rows(); ++i) x.sum[i] = rows::dot(G_.at(b, i0 + i, h), o_.at(b, i0 + i, h), s_.Dv);
        bool first = true;
        for_tiles(rows, s_.columns(), begin, end, [&](const Tile& t) { tile_backward(t, first, x), first = false; });
      }
    });
    if (g + 1 == s_.group()) store(x.dk, dk_, kK, b, hkv, s_.D), store(x.dv, dv_, kV, b, hkv, s_.Dv);
  }

 private:
  const std::int32_t* document_start(std::int64_t b) const { return row_of(kDocumentStart, b); }
  const std::int32_t* row_of(Input i, std::int64_t b) const {
    return c_.inputs[i] ? c_.inputs[i].template as<std::int32_t>() + b * s_.T : nullptr;
  }
  T& lse(const Tile& t, std::int64_t i) const { return lse_[(t.b * s_.T + t.i0 + i) * s_.Hq + t.h]; }
  void scores(const Tile& t, T* p) const { tile_scores(t, s_.D, T(s_.scale), q_, k_, row_of(kMask, t.b), p); }

  void add_tile(const Tile& t, bool first, const Scratch<T>& x) const {
    scores(t, x.p);
    for (std::int64_t i = 0; i < t.rows(); ++i) {
      T* __restrict p = x.p + i * t.columns();
      const std::int64_t begin = t.left(i), n = t.seen(i);
      T m = x.m[i];
#pragma omp simd reduction(max : m)
      for (std::int64_t j = begin; j < n; ++j) m = p[j] > m ? p[j] : m;
      // no score is above -infinity: the row sees nothing, unless they are NaN
      if (m == -kInfinity<T> && std::all_of(p + begin, p + n, [](T score) { return score == -kInfinity<T>; })) {
        std::fill_n(p, t.columns(), T(0));
        continue;
      }
      T sum = 0;
#pragma omp simd reduction(+ : sum)
      for (std::int64_t j = begin; j < n; ++j) {
        p[j] = vector_exp(p[j] - m);
        sum += p[j];
      }
      std::fill(p, p + begin, T(0));
      std::fill(p + n, p + t.columns(), T(0));
      const T alpha = vector_exp(x.m[i] - m);
      x.m[i] = m;
      x.sum[i] = x.sum[i] * alpha + sum;
      if (first || alpha == T(1)) continue;
      T* __restrict o = o_.at(t.b, t.i0 + i, t.h);
      for (std::int64_t e = 0; e < s_.Dv; ++e) o[e] *= alpha;
    }
    gemm_serial<T>(false, false, t.rows(), s_.Dv, t.columns(), 1, x.p, t.columns(), v_.at(t.b, t.j0, t.hkv), v_.row, first ? T(0) : T(1),
                   o_.at(t.b, t.i0, t.h), o_.row);
  }

  void finish_rows(const Tile& t, const Scratch<T>& x) const {
    for (std::int64_t i = 0; i < t.rows(); ++i) {
      const T inverse = x.sum[i] == T(0) ? T(0) : T(1) / x.sum[i];
      T* __restrict o = o_.at(t.b, t.i0 + i, t.h);
      for (std::int64_t e = 0; e < s_.Dv; ++e) o[e] *= inverse;
      // exp(s - inf) = 0: a row that sees nothing has no weights in backward either
      if (lse_) lse(t, i) = x.sum[i] == T(0) ? kInfinity<T> : x.m[i] + std::log(x.sum[i]);
    }
  }

  void tile_backward(const Tile& t, bool first, const Scratch<T>& x) const {
    const std::int64_t n = t.rows(), columns = t.columns();
    const T *q = q_.at(t.b, t.i0, t.h), *k = k_.at(t.b, t.j0, t.hkv), *v = v_.at(t.b, t.j0, t.hkv), *G = G_.at(t.b, t.i0, t.h);
    scores(t, x.p);
    for (std::int64_t i = 0; i < n; ++i) {
      T* __restrict p = x.p + i * columns;
      const T l = lse(t, i);
      const std::int64_t begin = t.left(i), visible = t.seen(i);
      for (std::int64_t j = begin; j < visible; ++j) p[j] = vector_exp(p[j] - l);
      std::fill(p, p + begin, T(0));
      std::fill(p + visible, p + columns, T(0));
    }
    if (dv_) gemm_serial<T>(true, false, columns, s_.Dv, n, 1, x.p, columns, G, G_.row, 1, x.dv + t.j0 * s_.Dv, s_.Dv);
    if (!dq_ && !dk_) return;
    gemm_serial<T>(false, true, n, columns, s_.Dv, 1, G, G_.row, v, v_.row, 0, x.ds, columns);
    for (std::int64_t i = 0; i < n; ++i) {
      T* __restrict ds = x.ds + i * columns;
      const T* __restrict p = x.p + i * columns;
      const T row_term = x.sum[i], scale = T(s_.scale);
      for (std::int64_t j = 0; j < columns; ++j) ds[j] = scale * p[j] * (ds[j] - row_term);
    }
    if (dq_) {
      const T beta = first && c_.modes[kQ] == Mode::write ? T(0) : T(1);
      gemm_serial<T>(false, false, n, s_.D, columns, 1, x.ds, columns, k, k_.row, beta, dq_.at(t.b, t.i0, t.h), dq_.row);
    }
    if (dk_) gemm_serial<T>(true, false, columns, s_.D, n, 1, x.ds, columns, q, q_.row, 1, x.dk + t.j0 * s_.D, s_.D);
  }

  void store(const T* sums, const HeadRows<T>& to, Input i, std::int64_t b, std::int64_t h, std::int64_t depth) const {
    if (!to) return;
    for (std::int64_t t = 0; t < s_.T; ++t) {
      T* __restrict row = to.at(b, t, h);
      const T* __restrict from = sums + t * depth;
      if (c_.modes[i] == Mode::write) std::copy_n(from, depth, row);
      else
        for (std::int64_t e = 0; e < depth; ++e) row[e] += from[e];
    }
  }

  const Call& c_;
  const Sizes& s_;
  HeadRows<T> q_, k_, v_, o_, G_, dq_, dk_, dv_;
  T* lse_;
};

template <class T>
void forward(const Call& c) {
  const Sizes s = sizes_of(c);
  Carver carver(c.workspace);
  const auto scratch = scratch_of<T>(s, s.B * s.Hq, false, carver);
  const Attention<T> attention(c, s);
  worker_tasks(s.B * s.Hq, [&](std::int64_t task, std::int64_t worker) { attention.forward(task / s.Hq, task % s.Hq, scratch[worker]); });
}

/// A task is a key head: its query heads add to the same dk and dv, in order.
template <class T>
void backward(const Call& c) {
  const Sizes s = sizes_of(c);
  Carver carver(c.workspace);
  const auto scratch = scratch_of<T>(s, s.B * s.Hkv, true, carver);
  const Attention<T> attention(c, s);
  worker_tasks(s.B * s.Hkv, [&](std::int64_t task, std::int64_t worker) {
    const std::int64_t b = task / s.Hkv, h = task % s.Hkv * s.group();
    for (std::int64_t g = 0; g < s.group(); ++g) attention.backward(b, h + g, scratch[worker]);
  });
}

std::int64_t bytes(const Sizes& s, std::int64_t tasks, bool backward, Dtype dtype) {
  Carver carver;
  dispatch_workspace(dtype, [&](auto zero) { scratch_of<decltype(zero)>(s, tasks, backward, carver); });
  return carver.used();
}

}  // namespace

void forward_cpu(const Call& c) {
  dispatch(c.inputs[kQ].dtype, [&](auto zero) { forward<decltype(zero)>(c); });
}
void backward_cpu(const Call& c) {
  dispatch(c.inputs[kQ].dtype, [&](auto zero) { backward<decltype(zero)>(c); });
}
std::int64_t forward_bytes(const Sizes& s, Dtype dtype) { return bytes(s, s.B * s.Hq, false, dtype); }
std::int64_t backward_bytes(const Sizes& s, Dtype dtype) { return bytes(s, s.B * s.Hkv, true, dtype); }

}  // namespace hedgehog::softmax_attention_detail

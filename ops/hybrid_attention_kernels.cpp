#include <algorithm>
#include <cmath>
#include <limits>

#include "core/dispatch.h"
#include "ops/head_rows.h"
#include "ops/hybrid_attention_parts.h"
#include "ops/rows.h"
#include "ops/worker_tasks.h"

namespace hedgehog::hybrid_attention_detail {
namespace {

constexpr const char* kName = "hybrid_attention";

template <class T>
constexpr T kInfinity = std::numeric_limits<T>::infinity();

template <class T>
T dot(const T* a, const T* b, std::int64_t n) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

/// The numbers of one call.
template <class T>
struct Rows {
  const Parts& w;
  const Sizes& s;
  const std::int32_t* start;
  const T* factor;
  T *saved, *log_window, *denominator, *largest, *row_sums;

  explicit Rows(const Parts& work)
      : w(work), s(work.s), start(work.c.inputs[kDocumentStart].as<std::int32_t>()), factor(work.c.inputs[kLogFactor].as<T>()),
        saved(work.c.saved[0].as<T>()), log_window(static_cast<T*>(work.x.log_window)), denominator(static_cast<T*>(work.x.denominator)),
        largest(static_cast<T*>(work.x.largest)), row_sums(static_cast<T*>(work.x.row_sums)) {}

  HeadRows<T> heads(const Ref& x) const { return HeadRows<T>(kName, x); }
  std::int64_t place(std::int64_t b, std::int64_t t, std::int64_t h) const { return (b * s.T + t) * s.Hq + h; }
  /// Of the linear part's row that belongs to token t.
  T& linear(std::int64_t b, std::int64_t t, std::int64_t h) const { return denominator[(b * s.behind + t - s.window) * s.Hq + h]; }
  bool reaches(std::int64_t b, std::int64_t t) const { return s.behind > 0 && Parts::reaches(start ? start + b * s.T : nullptr, t, s.window); }
  /// ln of what multiplies exp(score) in the window.
  T log_weight(std::int64_t b, std::int64_t t, std::int64_t h) const {
    return (factor ? factor[h] : T(0)) - (largest ? largest[place(b, t, h)] : T(0));
  }
  /// First key in the window of row t.
  std::int64_t first(std::int64_t b, std::int64_t t) const {
    return std::max<std::int64_t>({0, t + 1 - s.window, start ? start[b * s.T + t] : 0});
  }
  /// f(b, t, h) for all rows, in parallel.
  template <class F>
  void each(const F& f) const {
    parallel_for(s.B * s.T, 16, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i)
        for (std::int64_t h = 0; h < s.Hq; ++h) f(i / s.T, i % s.T, h);
    });
  }

  void find_largest() const {
    const HeadRows<T> q = heads(w.c.inputs[kQ]), k = heads(w.c.inputs[kK]);
    each([&](std::int64_t b, std::int64_t t, std::int64_t h) {
      T most = -kInfinity<T>;
      std::int64_t at = t;
      for (std::int64_t j = first(b, t); j <= t; ++j) {
        const T score = T(s.scale) * dot(q.at(b, t, h), k.at(b, j, h / s.group()), s.D);
        if (score > most) most = score, at = j;
      }
      largest[place(b, t, h)] = most;
      w.x.nearest[place(b, t, h)] = std::int32_t(at);
    });
  }

  void merge() const {
    const HeadRows<T> o = heads(w.c.outputs[0]), near = heads(w.x.o_window);
    each([&](std::int64_t b, std::int64_t t, std::int64_t h) {
      T whole = log_window[place(b, t, h)] + log_weight(b, t, h);
      T* const row = o.at(b, t, h);
      const T* const window = near ? near.at(b, t, h) : nullptr;
      if (reaches(b, t)) {
        const T of_window = whole, of_linear = s.logarithmic ? linear(b, t, h) : std::log(linear(b, t, h));
        const T base = std::max(of_window, of_linear);
        whole = base + std::log(std::exp(of_window - base) + std::exp(of_linear - base));
        const T share = std::exp(of_window - whole), rest = std::exp(of_linear - whole);
        for (std::int64_t e = 0; e < s.Dv; ++e) row[e] = share * window[e] + rest * row[e];
      } else if (window) {
        std::copy_n(window, s.Dv, row);
      }
      if (saved) saved[place(b, t, h)] = whole;
    });
  }

  void part_denominators() const {
    each([&](std::int64_t b, std::int64_t t, std::int64_t h) {
      const T whole = saved[place(b, t, h)];
      log_window[place(b, t, h)] = whole - log_weight(b, t, h);
      if (s.behind > 0 && t >= s.window) linear(b, t, h) = !reaches(b, t) ? kInfinity<T> : s.logarithmic ? whole : std::exp(whole);
    });
  }

  void sum_rows() const {
    const HeadRows<T> G = heads(w.c.dy[0]), o = heads(w.c.outputs[0]), near = heads(w.x.o_window);
    each([&](std::int64_t b, std::int64_t t, std::int64_t h) {
      const std::int64_t i = place(b, t, h);
      if (!reaches(b, t)) {  // the window has all the weight, whatever its factor
        row_sums[i] = 0;
        return;
      }
      const T share = std::exp(log_window[i] + log_weight(b, t, h) - saved[i]);
      row_sums[i] = share * (dot(G.at(b, t, h), near.at(b, t, h), s.Dv) - dot(G.at(b, t, h), o.at(b, t, h), s.Dv));
    });
  }

  void factor_gradient() const {
    T* const to = w.c.dx[kLogFactor].template as<T>();
    parallel_for(s.Hq, 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t h = begin; h < end; ++h) {
        double sum = 0;
        for (std::int64_t i = 0; i < s.B * s.T; ++i) sum += double(row_sums[i * s.Hq + h]);
        to[h] = (w.c.modes[kLogFactor] == Mode::write ? T(0) : to[h]) + T(sum);
      }
    });
  }

  void take_from_largest() const {
    const HeadRows<T> q = heads(w.c.inputs[kQ]), k = heads(w.c.inputs[kK]), dq = heads(w.c.dx[kQ]), dk = heads(w.c.dx[kK]);
    worker_tasks(s.B * s.Hkv, [&](std::int64_t task, std::int64_t) {
      const std::int64_t b = task / s.Hkv, hkv = task % s.Hkv;
      for (std::int64_t h = hkv * s.group(); h < (hkv + 1) * s.group(); ++h)
        for (std::int64_t t = 0; t < s.T; ++t) {
          const std::int64_t j = w.x.nearest[place(b, t, h)];
          const T less = T(s.scale) * row_sums[place(b, t, h)];
          for (std::int64_t d = 0; d < s.D; ++d) {
            if (dq) dq.at(b, t, h)[d] -= less * k.at(b, j, hkv)[d];
            if (dk) dk.at(b, j, hkv)[d] -= less * q.at(b, t, h)[d];
          }
        }
    });
  }
};

class Cpu final : public Backend {
  void run(const Op& op, Pass pass, const Call& c) const override { (pass == Pass::forward ? op.forward : op.backward).cpu(c); }
  std::int64_t bytes(const Op& op, Pass pass, const Attributes& attributes, std::span<const Meta> inputs) const override {
    const Layout layout = op.infer(attributes, inputs);
    return pass == Pass::forward ? layout.forward_workspace : layout.backward_workspace;
  }
  void gather_starts(const Parts& w) const override {
    const std::int32_t* const from = w.c.inputs[kDocumentStart].as<std::int32_t>();
    for (std::int64_t b = 0; b < w.s.B; ++b) std::copy_n(from + b * w.s.T, w.s.behind, w.x.starts + b * w.s.behind);
  }
  void find_largest(const Parts& w) const override { rows(w, [](const auto& r) { r.find_largest(); }); }
  void merge(const Parts& w) const override { rows(w, [](const auto& r) { r.merge(); }); }
  void part_denominators(const Parts& w) const override { rows(w, [](const auto& r) { r.part_denominators(); }); }
  void sum_rows(const Parts& w) const override { rows(w, [](const auto& r) { r.sum_rows(); }); }
  void factor_gradient(const Parts& w) const override { rows(w, [](const auto& r) { r.factor_gradient(); }); }
  void take_from_largest(const Parts& w) const override { rows(w, [](const auto& r) { r.take_from_largest(); }); }
  void zero(const Ref& x) const override {
    dispatch(x.dtype, [&](auto zero) {
      using T = decltype(zero);
      if (x.shape.rank() != 4) return void(std::fill_n(x.as<T>(), x.size(), T(0)));
      const HeadRows<T> rows(kName, x);
      for (std::int64_t b = 0; b < x.shape[0]; ++b)
        for (std::int64_t t = 0; t < x.shape[1]; ++t)
          for (std::int64_t h = 0; h < x.shape[2]; ++h) std::fill_n(rows.at(b, t, h), x.shape[3], T(0));
    });
  }
  template <class F>
  static void rows(const Parts& w, const F& f) {
    dispatch(w.s.dtype, [&](auto zero) { f(Rows<decltype(zero)>(w)); });
  }
};

}  // namespace

const Backend& cpu() {
  static const Cpu backend;
  return backend;
}

}  // namespace hedgehog::hybrid_attention_detail

#include <atomic>

#include "core/dispatch.h"
#include "ops/linear_attention.h"
#include "ops/linear_attention_state.h"

namespace hedgehog {

namespace linear_attention_detail {
namespace {

std::atomic<std::int64_t> log_space_rows{0};

template <class T>
struct Scratch {
  T *q, *k, *spare;    // (chunk, F)
  T *u, *scores;       // (chunk, D'), (chunk, chunk)
  T* turned;           // (chunk, D)
  T *m, *den, *weight;  // (chunk)
  T *shift, *factor, *row;  // (F)
  State<T> state;

  Scratch(Carver& carver, const Sizes& s) {
    q = carver.take<T>(s.chunk * s.F);
    k = carver.take<T>(s.chunk * s.F);
    spare = carver.take<T>(s.chunk * s.F);
    u = carver.take<T>(s.chunk * s.width);
    turned = carver.take<T>(s.chunk * s.D);
    scores = carver.take<T>(s.causal ? s.chunk * s.chunk : 0);
    m = carver.take<T>(s.chunk);
    den = carver.take<T>(s.chunk);
    weight = carver.take<T>(s.chunk);
    shift = carver.take<T>(s.F);
    factor = carver.take<T>(s.F);
    row = carver.take<T>(s.F);
    state.take(carver, s);
  }
};

template <class T>
class Forward {
 public:
  Forward(const Call& c, const Sizes& s)
      : c_(c), s_(s), features_(c, s), v_("linear_attention", c.inputs[kV]),
        o_("linear_attention", c.outputs[0]), saved_(c.saved[0].as<T>()) {}

  void run(std::int64_t b, std::int64_t h, Scratch<T>& scratch) const {
    const Head<T> head(c_, s_, b, h);
    const std::int64_t stored = s_.F * (s_.Dv + 2) * (b * s_.Hq + h);
    for_each_document(head.document_start, s_.T, [&](std::int64_t begin, std::int64_t end) {
      const Ref& initial = c_.inputs[kInitialState];
      load_state(s_, begin == 0 && initial ? initial.as<T>() + stored : nullptr, scratch.state);
      const bool final = end == s_.T && s_.final_state;
      if (s_.causal) causal(head, begin, end, final, scratch);
      else bidirectional(head, begin, end, scratch);
      if (final) store_state(s_, scratch.state, c_.outputs[1].as<T>() + stored);
    });
  }

 private:
  T* saved_row(const Head<T>& head, std::int64_t t) const { return saved_ ? saved_ + (head.b * s_.T + t) * s_.Hq + head.h : nullptr; }

  void causal(const Head<T>& head, std::int64_t begin, std::int64_t end, bool final, Scratch<T>& x) const {
    for (std::int64_t t0 = begin; t0 < end; t0 += s_.chunk) {
      const std::int64_t n = std::min(s_.chunk, end - t0);
      const bool visible = any_visible(head, t0, n);
      if (!visible && !x.state.filled) {
        for (std::int64_t i = 0; i < n; ++i) empty_row(s_, o_.at(head.b, t0 + i, head.h), saved_row(head, t0 + i));
        continue;
      }
      features_.of_keys(head, t0, n, x, x.k);
      const bool raised = raise_shift(s_, head, t0, n, x.k, x.state.shift, x.shift, x.factor);
      scale_keys(s_, head, t0, n, x.shift, x.k);
      features_.of_queries(head, t0, n, x, x.q);
      scale_queries(s_, n, x.shift, x.q, x.m);
      inside_chunk(head, t0, n, x);
      if (x.state.filled) before_chunk(head, t0, n, raised, x);
      finish_chunk(head, t0, n, x);
      if (!visible || (t0 + n == end && !final)) continue;
      absorb(s_, n, x.k, v_.at(head.b, t0, head.hkv), v_.row, x.factor, raised, x.state);
      std::copy_n(x.shift, s_.F, x.state.shift);
      x.state.filled = true;
    }
  }

  void inside_chunk(const Head<T>& head, std::int64_t t0, std::int64_t n, Scratch<T>& x) const {
    lower_product<T>(n, s_.F, x.q, s_.F, x.k, s_.F, nullptr, x.scores);
    lower_times<T>(n, s_.Dv, x.scores, v_.at(head.b, t0, head.hkv), v_.row, 0, o_.at(head.b, t0, head.h), o_.row);
    for (std::int64_t i = 0; i < n; ++i) x.den[i] = rows::sum_of(x.scores + i * n, i + 1);
  }

  /// Adds what comes from the state before the chunk.
  void before_chunk(const Head<T>& head, std::int64_t t0, std::int64_t n, bool raised, Scratch<T>& x) const {
    const T* queries = x.q;
    if (raised) {
      for (std::int64_t i = 0; i < n; ++i)
        for (std::int64_t r = 0; r < s_.F; ++r) x.spare[i * s_.F + r] = x.q[i * s_.F + r] * x.factor[r];
      queries = x.spare;
    }
    read_state(s_, n, queries, x.state, T(1), o_.at(head.b, t0, head.h), o_.row, x.den);
  }

  void finish_chunk(const Head<T>& head, std::int64_t t0, std::int64_t n, Scratch<T>& x) const {
    bool seen = x.state.filled, raw = false;
    std::int64_t redone = 0;
    for (std::int64_t i = 0; i < n; ++i) {
      T* const o = o_.at(head.b, t0 + i, head.h);
      T* const saved = saved_row(head, t0 + i);
      seen = seen || head.visible(t0 + i);
      if (!seen) {
        empty_row(s_, o, saved);
      } else if (s_.map.logarithmic() && x.den[i] < kSmallest<T>) {
        if (!raw) features_.of_keys(head, t0, n, x, x.spare);
        raw = true;
        log_space_row(head, t0, i, o, saved, x);
        ++redone;
      } else {
        finish_row(s_, x.den[i], x.m[i], o, saved);
      }
    }
    if (redone) log_space_rows.fetch_add(redone, std::memory_order_relaxed);
  }

  /// One row with the exponents of its own keys only; x.spare holds ln phi of the chunk's keys.
  void log_space_row(const Head<T>& head, std::int64_t t0, std::int64_t i, T* __restrict o, T* saved, Scratch<T>& x) const {
    T* __restrict a = x.row;
    features_.of_queries(head, t0 + i, 1, x, a);
    T largest = -kInfinity<T>;
    const T* __restrict before = x.state.shift;
    for (std::int64_t r = 0; r < s_.F && x.state.filled; ++r) largest = std::max(largest, a[r] + before[r]);
    for (std::int64_t j = 0; j <= i; ++j)
      for (std::int64_t r = 0; r < s_.F && head.visible(t0 + j); ++r) largest = std::max(largest, a[r] + x.spare[j * s_.F + r]);
    T den = 0;
    std::fill_n(o, s_.Dv, T(0));
    for (std::int64_t j = 0; j <= i; ++j) {
      if (!head.visible(t0 + j)) continue;
      T p = 0;
      for (std::int64_t r = 0; r < s_.F; ++r) p += vector_exp(a[r] + x.spare[j * s_.F + r] - largest);
      const T* __restrict v = v_.at(head.b, t0 + j, head.hkv);
      for (std::int64_t e = 0; e < s_.Dv; ++e) o[e] += p * v[e];
      den += p;
    }
    for (std::int64_t r = 0; r < s_.F && x.state.filled; ++r) {
      const T p = vector_exp(a[r] + before[r] - largest);
      for (std::int64_t e = 0; e < s_.Dv; ++e) o[e] += p * x.state.S[r * s_.Dv + e];
      den += p * x.state.z[r];
    }
    finish_row(s_, den, largest, o, saved);
  }

  void bidirectional(const Head<T>& head, std::int64_t begin, std::int64_t end, Scratch<T>& x) const {
    for (std::int64_t t0 = begin; t0 < end; t0 += s_.chunk) {
      const std::int64_t n = std::min(s_.chunk, end - t0);
      if (!any_visible(head, t0, n)) continue;
      features_.of_keys(head, t0, n, x, x.k);
      const bool raised = raise_shift(s_, head, t0, n, x.k, x.state.shift, x.shift, x.factor);
      scale_keys(s_, head, t0, n, x.shift, x.k);
      absorb(s_, n, x.k, v_.at(head.b, t0, head.hkv), v_.row, x.factor, raised, x.state);
      std::copy_n(x.shift, s_.F, x.state.shift);
      x.state.filled = true;
    }
    for (std::int64_t t0 = begin; t0 < end; t0 += s_.chunk) {
      const std::int64_t n = std::min(s_.chunk, end - t0);
      if (x.state.filled) {
        features_.of_queries(head, t0, n, x, x.q);
        scale_queries(s_, n, x.state.shift, x.q, x.m);
        read_state(s_, n, x.q, x.state, T(0), o_.at(head.b, t0, head.h), o_.row, x.den);
      }
      for (std::int64_t i = 0; i < n; ++i) {
        T* const o = o_.at(head.b, t0 + i, head.h);
        if (x.state.filled) finish_row(s_, x.den[i], x.m[i], o, saved_row(head, t0 + i));
        else empty_row(s_, o, saved_row(head, t0 + i));
      }
    }
  }

  const Call& c_;
  const Sizes& s_;
  HeadFeatures<T> features_;
  HeadRows<T> v_, o_;
  T* saved_;
};

template <class T>
void forward(const Call& c) {
  const Sizes s = sizes_of(c);
  if (!s.final_state) *c.outputs[1].as<T>() = 0;
  Carver carver(c.workspace);
  std::vector<Scratch<T>> scratch;
  for (std::int64_t w = 0; w < worker_count(s.B * s.Hq); ++w) scratch.emplace_back(carver, s);
  const Forward<T> pass(c, s);
  worker_tasks(s.B * s.Hq, [&](std::int64_t task, std::int64_t worker) { pass.run(task / s.Hq, task % s.Hq, scratch[worker]); });
}

}  // namespace

void forward_cpu(const Call& c) {
  dispatch(c.inputs[kQ].dtype, [&](auto zero) { forward<decltype(zero)>(c); });
}

std::int64_t forward_bytes(const Sizes& s, Dtype dtype) {
  Carver carver;
  for (std::int64_t w = 0; w < worker_count(s.B * s.Hq); ++w) {
    if (dtype == Dtype::f64) Scratch<double>(carver, s);
    else Scratch<float>(carver, s);
  }
  return carver.used();
}

}  // namespace linear_attention_detail

std::int64_t linear_attention_log_space_rows() { return linear_attention_detail::log_space_rows.load(); }

}  // namespace hedgehog

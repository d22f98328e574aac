#include "ops/linear_attention_backward.h"

#include "core/dispatch.h"

namespace hedgehog::linear_attention_detail {

template <class T>
void Backward<T>::causal(const Head<T>& head, std::int64_t begin, std::int64_t end, const T* dfinal, T* dinitial, BackwardScratch<T>& x) const {
  const std::int64_t chunks = (end - begin + s_.chunk - 1) / s_.chunk;
  forward_states(head, begin, end, dfinal != nullptr, x);
  bool reversed = start_reverse(dfinal, x.states[chunks], x);
  for (std::int64_t index = chunks; index-- > 0;) {
    const Chunk<T> c = chunk(head, begin + index * s_.chunk, end, x);
    const State<T>&before = x.states[index], &after = x.states[index + 1];
    if (!after.filled) {
      zero_gradients(head, c.t0, c.n, x);
      continue;
    }
    const bool goes_on = before.filled;
    chunk_backward(head, c, before, after.shift, reversed, goes_on, x);
    reversed |= goes_on;
  }
  if (dinitial) store_initial(x.states[0], x.states[chunks].shift, reversed, x, dinitial);
}

template <class T>
void Backward<T>::chunk_backward(const Head<T>& head, const Chunk<T>& c, const State<T>& before, const T* after, bool reversed,
                                 bool goes_on, BackwardScratch<T>& x) const {
  const std::int64_t n = c.n, F = s_.F;
  features_.of_keys(head, c.t0, n, x, x.k);
  scale_keys(s_, head, c.t0, n, after, x.k);
  features_.of_queries(head, c.t0, n, x, x.q);
  const std::int64_t redo = normalised_queries(head, c, after, true, x);
  deltas(head, c, x);
  for (std::int64_t r = 0; r < F; ++r) x.factor[r] = after[r] == before.shift[r] ? T(1) : vector_exp(before.shift[r] - after[r]);

  lower_product(n, s_.Dv, c.G, c.G_row, c.v, c.v_row, static_cast<const T*>(x.delta), x.dscores);
  if (wants_q_) {
    lower_times<T>(n, F, x.dscores, x.k, F, 0, x.dq, F);
    if (before.filled) queries_from_state(c, before, x.factor, T(1), x);
    query_working_gradient(head, c, x);
  }
  if (wants_k_) {
    lower_transposed_times<T>(n, F, x.dscores, x.q, F, 0, x.dk, F);
    if (reversed) keys_from_reverse(c, T(1), x);
    key_working_gradient(head, c, x);
    shift_gradient(c, before.shift, after, x);
  }
  if (dv_) {
    T* const dv = dvalues(c.t0, x);
    lower_product<T>(n, F, x.q, F, x.k, F, nullptr, x.scores);
    lower_transposed_times(n, s_.Dv, x.scores, c.G, c.G_row, earlier(head), dv, s_.Dv);
    if (reversed) gemm_serial<T>(false, false, n, s_.Dv, F, 1, x.k, F, x.R, s_.Dv, 1, dv, s_.Dv);
  }
  if (goes_on) reverse(c, reversed, x.factor, x);
  if (redo) {
    features_.of_keys(head, c.t0, n, x, x.spare);
    for (std::int64_t l = 0; l < redo; ++l) log_space_row(head, c, x.log_rows[l], before, goes_on, x);
  }
  if (wants_q_) through_map(head, c, 0, x);
  if (wants_k_) through_map(head, c, 1, x);
  store_keys(head, c.t0, n, x);
}

/// Adds one row that forward made in log space; x.spare holds ln phi of the chunk's keys, [R, y] has the scale of the state
/// before the chunk.
template <class T>
void Backward<T>::log_space_row(const Head<T>& head, const Chunk<T>& c, std::int64_t i, const State<T>& before, bool goes_on,
                                BackwardScratch<T>& x) const {
  const std::int64_t F = s_.F;
  T* __restrict a = x.row;
  features_.of_queries(head, c.t0 + i, 1, x, a);
  const T den = saved(head, c.t0 + i), delta = x.delta[i];
  const T* __restrict G = c.G + i * c.G_row;
  T* __restrict dq = x.dq + i * F;
  for (std::int64_t j = 0; j <= i; ++j) {
    if (!head.visible(c.t0 + j)) continue;
    const T* __restrict b = x.spare + j * F;
    const T dscore = rows::dot(G, c.v + j * c.v_row, s_.Dv) + delta;
    T* __restrict dk = x.dk + j * F;
    T score = 0;
    for (std::int64_t r = 0; r < F; ++r) {
      const T p = vector_exp((a[r] + b[r]) - den);
      score += p;
      if (wants_q_) dq[r] += dscore * p;
      if (wants_k_) dk[r] += dscore * p;
    }
    if (!dv_) continue;
    T* __restrict dv = dvalues(c.t0, x) + j * s_.Dv;
    for (std::int64_t e = 0; e < s_.Dv; ++e) dv[e] += score * G[e];
  }
  for (std::int64_t r = 0; r < F && goes_on; ++r) {
    const T p = vector_exp((a[r] + before.shift[r]) - den);
    if (wants_q_) dq[r] += p * (rows::dot(before.S + r * s_.Dv, G, s_.Dv) + delta * before.z[r]);
    for (std::int64_t e = 0; e < s_.Dv; ++e) x.R[r * s_.Dv + e] += p * G[e];
    x.y[r] += p * delta;
  }
}

template <class T>
void Backward<T>::bidirectional(const Head<T>& head, std::int64_t begin, std::int64_t end, const T* dfinal, T* dinitial,
                                BackwardScratch<T>& x) const {
  const State<T>& initial = x.states[0];
  State<T>& all = x.states[1];
  std::copy_n(initial.shift, s_.F, all.shift);
  if (initial.filled) std::copy_n(initial.S, s_.F * s_.Dv, all.S), std::copy_n(initial.z, s_.F, all.z);
  all.filled = initial.filled;
  for (std::int64_t t0 = begin; t0 < end; t0 += s_.chunk) {
    const std::int64_t n = std::min(s_.chunk, end - t0);
    if (!any_visible(head, t0, n)) continue;
    features_.of_keys(head, t0, n, x, x.k);
    const bool raised = raise_shift(s_, head, t0, n, x.k, all.shift, x.row, x.factor);
    scale_keys(s_, head, t0, n, x.row, x.k);
    absorb(s_, n, x.k, v_.at(head.b, t0, head.hkv), v_.row, x.factor, raised, all);
    std::copy_n(x.row, s_.F, all.shift);
    all.filled = true;
  }
  bool reversed = start_reverse(dfinal, all, x);
  for (std::int64_t t0 = begin; t0 < end && !all.filled; t0 += s_.chunk) zero_gradients(head, t0, std::min(s_.chunk, end - t0), x);
  std::fill_n(x.factor, s_.F, T(1));
  for (std::int64_t t0 = begin; t0 < end && all.filled; t0 += s_.chunk) {
    const Chunk<T> c = chunk(head, t0, end, x);
    features_.of_queries(head, t0, c.n, x, x.q);
    normalised_queries(head, c, all.shift, false, x);
    deltas(head, c, x);
    reverse(c, reversed, x.factor, x);
    reversed = true;
    if (!wants_q_) continue;
    queries_from_state(c, all, x.factor, T(0), x);
    query_working_gradient(head, c, x);
    through_map(head, c, 0, x);
  }
  for (std::int64_t t0 = begin; t0 < end && all.filled; t0 += s_.chunk) {
    const Chunk<T> c = chunk(head, t0, end, x);
    features_.of_keys(head, t0, c.n, x, x.k);
    scale_keys(s_, head, t0, c.n, all.shift, x.k);
    if (dv_) gemm_serial<T>(false, false, c.n, s_.Dv, s_.F, 1, x.k, s_.F, x.R, s_.Dv, earlier(head), dvalues(t0, x), s_.Dv);
    if (wants_k_) {
      keys_from_reverse(c, T(0), x);
      key_working_gradient(head, c, x);
      shift_gradient(c, initial.shift, all.shift, x);
      through_map(head, c, 1, x);
    }
    store_keys(head, t0, c.n, x);
  }
  if (!dinitial) return;
  for (std::int64_t r = 0; r < s_.F; ++r)
    x.factor[r] = all.shift[r] == initial.shift[r] ? T(1) : vector_exp(initial.shift[r] - all.shift[r]);
  if (reversed) scale_reverse(x.factor, x);
  store_initial(initial, all.shift, reversed, x, dinitial);
}

namespace {

template <class T>
void backward(const Call& c) {
  const Sizes s = sizes_of(c);
  Carver carver(c.workspace);
  std::vector<BackwardScratch<T>> scratch;
  for (std::int64_t w = 0; w < worker_count(s.tasks()); ++w) scratch.emplace_back(carver, s);
  const Backward<T> pass(c, s, carver.take<T>(2 * s.B * s.Hq * (s.D + 1) * s.width));
  worker_tasks(s.tasks(), [&](std::int64_t task, std::int64_t worker) {
    const std::int64_t b = task / s.Hkv, hkv = task % s.Hkv;
    for (std::int64_t g = 0; g < s.group(); ++g) pass.run(b, hkv * s.group() + g, scratch[worker]);
  });
  pass.finish();
}

template <class T>
std::int64_t bytes(const Sizes& s) {
  Carver carver;
  for (std::int64_t w = 0; w < worker_count(s.tasks()); ++w) BackwardScratch<T>(carver, s);
  carver.take<T>(2 * s.B * s.Hq * (s.D + 1) * s.width);
  return carver.used();
}

}  // namespace

void backward_cpu(const Call& c) {
  dispatch(c.inputs[kQ].dtype, [&](auto zero) { backward<decltype(zero)>(c); });
}

std::int64_t backward_bytes(const Sizes& s, Dtype dtype) { return dtype == Dtype::f64 ? bytes<double>(s) : bytes<float>(s); }

}  // namespace hedgehog::linear_attention_detail

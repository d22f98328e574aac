#pragma once
#include <cmath>

#include "ops/linear_attention_tile.h"

/// One token of decoding with linear attention, on the CPU. Internal to ops/.
namespace hedgehog::linear_attention_detail {

template <class T>
struct StepScratch {
  T *turned, *u, *q, *k, *factor;  // (D), (D'), (F), (F), (F)
  StepScratch(Carver& carver, const Sizes& s)
      : turned(carver.take<T>(s.D)), u(carver.take<T>(s.width)), q(carver.take<T>(s.F)), k(carver.take<T>(s.F)),
        factor(carver.take<T>(s.F)) {}
};

/// Takes one key and value into the state. x.k holds the working features of the key on entry.
template <class T>
void take_token(const Sizes& s, const T* __restrict v, T* state, const StepScratch<T>& x) {
  const std::int64_t row = s.Dv + 2;
  const bool logarithmic = s.map.logarithmic();
  for (std::int64_t r = 0; r < s.F; ++r) {
    const bool empty = !(state[r * row + s.Dv] > T(0));
    T& c = state[r * row + s.Dv + 1];
    x.factor[r] = 1;
    if (!logarithmic) continue;
    const T next = empty ? x.k[r] : std::max(c, x.k[r]);
    x.factor[r] = empty ? -kInfinity<T> : c - next;
    x.k[r] -= next;
    x.q[r] += next;
    c = next;
  }
  for (std::int64_t r = 0; r < s.F && logarithmic; ++r) x.factor[r] = vector_exp(x.factor[r]), x.k[r] = vector_exp(x.k[r]);
  for (std::int64_t r = 0; r < s.F; ++r) {
    T* __restrict to = state + r * row;
    const T f = x.factor[r], k = x.k[r];
    for (std::int64_t e = 0; e < s.Dv; ++e) to[e] = to[e] * f + k * v[e];
    to[s.Dv] = to[s.Dv] * f + k;
  }
}

/// o = q^T S / (q . z). x.q holds ln phi_q + c (or phi_q) on entry. Returns ln of q . z in true scale.
template <class T>
T read_token(const Sizes& s, const T* state, T* __restrict o, const StepScratch<T>& x) {
  T largest = 0;
  if (s.map.logarithmic()) {
    largest = rows::max_of(x.q, s.F);
    for (std::int64_t r = 0; r < s.F; ++r) x.q[r] = vector_exp(x.q[r] - largest);
  }
  T den = 0;
  std::fill_n(o, s.Dv, T(0));
  for (std::int64_t r = 0; r < s.F; ++r) {
    const T* __restrict from = state + r * (s.Dv + 2);
    const T q = x.q[r];
    for (std::int64_t e = 0; e < s.Dv; ++e) o[e] += q * from[e];
    den += q * from[s.Dv];
  }
  const T inverse = den == T(0) ? T(0) : T(1) / den;
  for (std::int64_t e = 0; e < s.Dv; ++e) o[e] *= inverse;
  return largest + std::log(den);
}

}  // namespace hedgehog::linear_attention_detail

#pragma once
#include "ops/linear_attention_tile.h"

/// Loading and storing states, and log-feature shifts of queries. Internal to ops/.
namespace hedgehog::linear_attention_detail {

/// Reads a stored state (F, Dv + 2); without one the state is empty.
template <class T>
void load_state(const Sizes& s, const T* stored, State<T>& state) {
  const bool logarithmic = s.map.logarithmic();
  std::fill_n(state.shift, s.F, logarithmic ? -kInfinity<T> : T(0));
  state.filled = false;
  if (!stored) return;
  for (std::int64_t r = 0; r < s.F; ++r) {
    const T* row = stored + r * (s.Dv + 2);
    const bool empty = logarithmic && !(row[s.Dv] > T(0));
    for (std::int64_t e = 0; e < s.Dv; ++e) state.S[r * s.Dv + e] = empty ? T(0) : row[e];
    state.z[r] = empty ? T(0) : row[s.Dv];
    if (logarithmic && !empty) state.shift[r] = row[s.Dv + 1];
    state.filled |= logarithmic ? !empty : row[s.Dv] != T(0);
  }
  if (!logarithmic) state.filled = true;
}

template <class T>
void store_state(const Sizes& s, const State<T>& state, T* stored) {
  for (std::int64_t r = 0; r < s.F; ++r) {
    T* row = stored + r * (s.Dv + 2);
    const bool empty = !state.filled || state.shift[r] == -kInfinity<T>;
    for (std::int64_t e = 0; e < s.Dv; ++e) row[e] = empty ? T(0) : state.S[r * s.Dv + e];
    row[s.Dv] = empty ? T(0) : state.z[r];
    row[s.Dv + 1] = empty ? T(0) : state.shift[r];
  }
}

/// Query features in the scale of the keys, in place: exp(ln phi + shift - m), m the largest exponent of the row. For
/// maps without logarithm nothing changes and m is 0.
template <class T>
void scale_queries(const Sizes& s, std::int64_t n, const T* __restrict shift, T* q, T* m) {
  for (std::int64_t i = 0; i < n; ++i) {
    T* __restrict row = q + i * s.F;
    m[i] = 0;
    if (!s.map.logarithmic()) continue;
    T largest = -kInfinity<T>;
#pragma omp simd reduction(max : largest)
    for (std::int64_t r = 0; r < s.F; ++r) {
      row[r] += shift[r];
      largest = row[r] > largest ? row[r] : largest;
    }
    for (std::int64_t r = 0; r < s.F; ++r) row[r] = vector_exp(row[r] - largest);
    m[i] = largest;
  }
}

/// out_i (+)= queries_i [S, z]
template <class T>
void read_state(const Sizes& s, std::int64_t n, const T* queries, const State<T>& state, T beta, T* o, std::int64_t o_row, T* den) {
  gemm_serial<T>(false, false, n, s.Dv, s.F, 1, queries, s.F, state.S, s.Dv, beta, o, o_row);
  for (std::int64_t i = 0; i < n; ++i) den[i] = (beta == T(0) ? T(0) : den[i]) + rows::dot(queries + i * s.F, state.z, s.F);
}

/// Turns numerators into outputs and denominators into what backward needs of them.
template <class T>
void finish_row(const Sizes& s, T den, T m, T* __restrict o, T* saved) {
  const T inverse = den == T(0) ? T(0) : T(1) / den;
  for (std::int64_t e = 0; e < s.Dv; ++e) o[e] *= inverse;
  if (saved) *saved = s.map.logarithmic() ? m + std::log(den) : den;
}

/// A row that sees no key.
template <class T>
void empty_row(const Sizes& s, T* o, T* saved) {
  std::fill_n(o, s.Dv, T(0));
  if (saved) *saved = s.map.logarithmic() ? kInfinity<T> : T(0);
}

}  // namespace hedgehog::linear_attention_detail

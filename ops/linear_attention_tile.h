#pragma once
#include <algorithm>
#include <limits>
#include <vector>

#include "ops/blas.h"
#include "ops/head_rows.h"
#include "ops/linear_attention_sizes.h"
#include "ops/rotary_vector.h"

/// Steps on one chunk of n tokens of one head, shared by forward, backward and decoding. Internal to ops/.
namespace hedgehog::linear_attention_detail {

constexpr std::int64_t kRows = 32;  // rows of a block of the lower triangle

/// Rows whose denominator is smaller are redone in log space.
template <class T>
constexpr T kSmallest = T(1) / T(std::int64_t(1) << 60);

template <class T>
constexpr T kInfinity = std::numeric_limits<T>::infinity();

/// Vectors of tokens, `row` elements apart.
template <class T>
struct TokenRows {
  const T* at;
  std::int64_t row;
};

/// n vectors from token t0 on, turned by the rows of the table (T, D) into `turned` (n, D) if there is one.
template <class T>
TokenRows<T> turned_rows(const Sizes& s, const T* table, TokenRows<T> x, std::int64_t t0, std::int64_t n, T* turned) {
  if (!table) return x;
  for (std::int64_t i = 0; i < n; ++i) {
    const T* const angles = table + (t0 + i) * s.D;
    turn_vector<false, false>(x.at + i * x.row, angles, angles + s.D / 2, T(1), turned + i * s.D, s.D / 2);
  }
  return {turned, s.D};
}

/// Features of n tokens in working form (see working_features).
///
/// x (n, D)   u (n, D') scratch   y (n, F)
template <class T>
void token_features(const Sizes& s, TokenRows<T> x, std::int64_t n, const T* weight, const T* bias, T* u, T* y) {
  if (weight) {
    for (std::int64_t i = 0; bias && i < n; ++i) std::copy_n(bias, s.width, u + i * s.width);
    gemm_serial<T>(false, false, n, s.width, s.D, 1, x.at, x.row, weight, s.width, bias ? T(1) : T(0), u, s.width);
    x = {u, s.width};
  }
  for (std::int64_t i = 0; i < n; ++i) working_features(s.map, s.width, x.at + i * x.row, y + i * s.F);
}

/// Queries and keys of a call by chunks: turned by rotary, and as features in working form. A pass gives its scratch, which has
/// `turned` (chunk, D) and `u` (chunk, D').
template <class T>
class HeadFeatures {
 public:
  HeadFeatures(const Call& c, const Sizes& s) : s_(s), q_("linear_attention", c.inputs[kQ]), k_("linear_attention", c.inputs[kK]) {}

  /// n vectors from token t0 on.
  template <class Scratch>
  TokenRows<T> keys(const Head<T>& head, std::int64_t t0, std::int64_t n, const Scratch& x) const {
    return turned_rows<T>(s_, head.rotary, {k_.at(head.b, t0, head.hkv), k_.row}, t0, n, x.turned);
  }
  template <class Scratch>
  TokenRows<T> queries(const Head<T>& head, std::int64_t t0, std::int64_t n, const Scratch& x) const {
    return turned_rows<T>(s_, head.rotary, {q_.at(head.b, t0, head.h), q_.row}, t0, n, x.turned);
  }
  /// Their features, (n, F).
  template <class Scratch>
  void of_keys(const Head<T>& head, std::int64_t t0, std::int64_t n, const Scratch& x, T* y) const {
    token_features(s_, keys(head, t0, n, x), n, head.weight_k, head.bias_k, x.u, y);
  }
  template <class Scratch>
  void of_queries(const Head<T>& head, std::int64_t t0, std::int64_t n, const Scratch& x, T* y) const {
    token_features(s_, queries(head, t0, n, x), n, head.weight_q, head.bias_q, x.u, y);
  }

 private:
  const Sizes& s_;
  HeadRows<T> q_, k_;
};

/// Raises the running shift to cover the visible keys of a chunk. Writes factor = exp(old - new); returns whether any
/// of it differs from 1. Does nothing for maps without logarithm.
template <class T>
bool raise_shift(const Sizes& s, const Head<T>& head, std::int64_t t0, std::int64_t n, const T* log_k, const T* __restrict before,
                 T* __restrict after, T* __restrict factor) {
  std::copy_n(before, s.F, after);
  std::fill_n(factor, s.F, T(1));
  if (!s.map.logarithmic()) return false;
  for (std::int64_t j = 0; j < n; ++j) {
    if (!head.visible(t0 + j)) continue;
    const T* __restrict row = log_k + j * s.F;
    for (std::int64_t r = 0; r < s.F; ++r) after[r] = row[r] > after[r] ? row[r] : after[r];
  }
  bool raised = false;
  for (std::int64_t r = 0; r < s.F; ++r) raised |= after[r] != before[r];
  if (raised)
    for (std::int64_t r = 0; r < s.F; ++r) factor[r] = after[r] == before[r] ? T(1) : vector_exp(before[r] - after[r]);
  return raised;
}

/// exp(ln phi_k - shift) in place, and zeros for masked keys.
template <class T>
void scale_keys(const Sizes& s, const Head<T>& head, std::int64_t t0, std::int64_t n, const T* __restrict shift, T* k) {
  for (std::int64_t j = 0; j < n; ++j) {
    T* __restrict row = k + j * s.F;
    if (!head.visible(t0 + j)) std::fill_n(row, s.F, T(0));
    else if (s.map.logarithmic())
      for (std::int64_t r = 0; r < s.F; ++r) row[r] = vector_exp(row[r] - shift[r]);
  }
}

/// State becomes (state rows times factor) + keys^T [v, 1].
template <class T>
void absorb(const Sizes& s, std::int64_t n, const T* keys, const T* v, std::int64_t v_row, const T* factor, bool rescale, State<T>& state) {
  T* __restrict z = state.z;
  if (state.filled && rescale)
    for (std::int64_t r = 0; r < s.F; ++r) {
      T* __restrict row = state.S + r * s.Dv;
      const T f = factor[r];
      for (std::int64_t e = 0; e < s.Dv; ++e) row[e] *= f;
      z[r] *= f;
    }
  if (!state.filled) std::fill_n(z, s.F, T(0));
  gemm_serial<T>(true, false, s.F, s.Dv, n, 1, keys, s.F, v, v_row, state.filled ? T(1) : T(0), state.S, s.Dv);
  for (std::int64_t j = 0; j < n; ++j) {
    const T* __restrict row = keys + j * s.F;
    for (std::int64_t r = 0; r < s.F; ++r) z[r] += row[r];
  }
}

/// Whether a chunk holds a visible key.
template <class T>
bool any_visible(const Head<T>& head, std::int64_t t0, std::int64_t n) {
  for (std::int64_t j = 0; j < n; ++j)
    if (head.visible(t0 + j)) return true;
  return false;
}

/// Calls body(i0, i1) for blocks of rows of a lower triangle.
template <class Body>
void for_row_blocks(std::int64_t n, const Body& body) {
  for (std::int64_t i0 = 0; i0 < n; i0 += kRows) body(i0, std::min(i0 + kRows, n));
}

/// Lower triangle of a b^T: c[i, j] = a_i . b_j (+ add_i) for j <= i, 0 above it up to the end of the block of rows.
template <class T>
void lower_product(std::int64_t n, std::int64_t depth, const T* a, std::int64_t a_row, const T* b, std::int64_t b_row, const T* add, T* c) {
  for_row_blocks(n, [&](std::int64_t i0, std::int64_t i1) {
    gemm_serial<T>(false, true, i1 - i0, i1, depth, 1, a + i0 * a_row, a_row, b, b_row, 0, c + i0 * n, n);
    for (std::int64_t i = i0; i < i1; ++i) {
      T* __restrict row = c + i * n;
      if (add)
        for (std::int64_t j = 0; j <= i; ++j) row[j] += add[i];
      std::fill(row + i + 1, row + i1, T(0));
    }
  });
}

/// out_i = beta out_i + sum over j <= i of c[i, j] b_j.
template <class T>
void lower_times(std::int64_t n, std::int64_t columns, const T* c, const T* b, std::int64_t b_row, T beta, T* out, std::int64_t out_row) {
  for_row_blocks(n, [&](std::int64_t i0, std::int64_t i1) {
    gemm_serial<T>(false, false, i1 - i0, columns, i1, 1, c + i0 * n, n, b, b_row, beta, out + i0 * out_row, out_row);
  });
}

/// out_j = beta out_j + sum over i >= j of c[i, j] b_i.
template <class T>
void lower_transposed_times(std::int64_t n, std::int64_t columns, const T* c, const T* b, std::int64_t b_row, T beta, T* out,
                            std::int64_t out_row) {
  for_row_blocks(n, [&](std::int64_t j0, std::int64_t j1) {
    gemm_serial<T>(true, false, j1 - j0, columns, n - j0, 1, c + j0 * n + j0, n, b + j0 * b_row, b_row, beta, out + j0 * out_row, out_row);
  });
}

}  // namespace hedgehog::linear_attention_detail

#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>

/// Products with one row or one column of results, as gemm needs them where m or n is 1 (decoding: one token). BLAS
/// would pack the whole matrix to use it once, or hand over to its own gemv. Private to ops/blas.cpp.
namespace hedgehog::vector_product {

using std::int64_t;

/// y[j * dy] = alpha * sum_t x[t * dx] * matrix(t, j) + beta * y[j * dy], for n results of k terms.
template <class T>
struct Row {
  int64_t n, k;
  T alpha;
  const T* x;
  int64_t dx;
  const T* matrix;
  int64_t ld;
  T beta;
  T* y;
  int64_t dy;
};

/// 64 bytes of numbers; the compiler maps it to the registers there are.
template <class T>
struct Lanes {
  static constexpr int64_t kCount = 64 / sizeof(T);
  typedef T Vector __attribute__((vector_size(64)));
  Vector v = {};

  static Lanes load(const T* p) {
    Lanes l;
    std::memcpy(&l.v, p, sizeof l.v);
    return l;
  }
  static Lanes load(const T* p, int64_t count) {
    Lanes l;
    std::memcpy(&l.v, p, count * sizeof(T));
    return l;
  }
  /// Pairs at distance 8, 4, 2, 1: a fixed order.
  T sum() const {
    T part[kCount];
    std::memcpy(part, &v, sizeof part);
    for (int64_t half = kCount / 2; half > 0; half /= 2) {
      for (int64_t l = 0; l < half; ++l) part[l] += part[l + half];
    }
    return part[0];
  }
};

template <class T>
void store(const Row<T>& p, int64_t j, T sum) {
  T& y = p.y[j * p.dy];
  // beta = 0 must not read y: it may be NaN
  y = p.beta == T(0) ? p.alpha * sum : p.alpha * sum + p.beta * y;
}

/// matrix stored (k, n): a block of results stays in registers while the rows stream by.
template <class T>
void rows(const Row<T>& p) {
  constexpr int64_t kVectors = 8, kBlock = kVectors * Lanes<T>::kCount;
  for (int64_t begin = 0; begin < p.n; begin += kBlock) {
    const int64_t width = std::min(kBlock, p.n - begin);
    const T* row = p.matrix + begin;
    T sum[kBlock] = {};
    if (width == kBlock) {
      Lanes<T> lanes[kVectors];
      for (int64_t t = 0; t < p.k; ++t, row += p.ld) {
        const T factor = p.x[t * p.dx];
#pragma GCC unroll 8
        for (int64_t l = 0; l < kVectors; ++l) {
          lanes[l].v += factor * Lanes<T>::load(row + l * Lanes<T>::kCount).v;
        }
      }
      std::memcpy(sum, lanes, sizeof sum);
    } else {
      for (int64_t t = 0; t < p.k; ++t, row += p.ld) {
        const T factor = p.x[t * p.dx];
        for (int64_t j = 0; j < width; ++j) sum[j] += factor * row[j];
      }
    }
    for (int64_t j = 0; j < width; ++j) store(p, begin + j, sum[j]);
  }
}

/// Dot products of x with R neighbouring rows of a matrix stored (n, k); each is the same sum for any R.
template <class T, int R>
void dots(const Row<T>& p, const T* x, int64_t begin, int64_t width, int64_t j) {
  constexpr int64_t kCount = Lanes<T>::kCount;
  Lanes<T> lanes[R][2];
  const T* row = p.matrix + j * p.ld + begin;
  int64_t t = 0;
  for (; t + 2 * kCount <= width; t += 2 * kCount) {
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      lanes[r][0].v += Lanes<T>::load(x + t).v * Lanes<T>::load(row + r * p.ld + t).v;
      lanes[r][1].v += Lanes<T>::load(x + t + kCount).v * Lanes<T>::load(row + r * p.ld + t + kCount).v;
    }
  }
  for (; t < width; t += kCount) {
    const int64_t count = std::min(kCount, width - t);
    for (int r = 0; r < R; ++r) lanes[r][0].v += Lanes<T>::load(x + t, count).v * Lanes<T>::load(row + r * p.ld + t, count).v;
  }
  for (int r = 0; r < R; ++r) {
    lanes[r][0].v += lanes[r][1].v;
    const T sum = lanes[r][0].sum();
    if (begin == 0) {
      store(p, j + r, sum);
    } else {
      p.y[(j + r) * p.dy] += p.alpha * sum;
    }
  }
}

/// matrix stored (n, k): one dot product a result, in blocks of k so that a strided x is gathered only once.
template <class T>
void columns(const Row<T>& p) {
  constexpr int64_t kBlock = 2048, kRows = 4;
  T gathered[kBlock];
  for (int64_t begin = 0; begin < p.k; begin += kBlock) {
    const int64_t width = std::min(kBlock, p.k - begin);
    const T* x = p.x + begin;
    if (p.dx != 1) {
      for (int64_t t = 0; t < width; ++t) gathered[t] = p.x[(begin + t) * p.dx];
      x = gathered;
    }
    int64_t j = 0;
    for (; j + kRows <= p.n; j += kRows) dots<T, kRows>(p, x, begin, width, j);
    for (; j < p.n; ++j) dots<T, 1>(p, x, begin, width, j);
  }
}

}  // namespace hedgehog::vector_product

#include "ops/blas.h"

#include <cblas.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <limits>
#include <string>
#include <type_traits>

#include "ops/blas_runtime.h"
#include "ops/cpu.h"
#include "core/error.h"
#include "ops/vector_product.h"

namespace hedgehog {
namespace {

using std::int64_t;

template <class T>
struct Product {
  bool transpose_a, transpose_b;
  int64_t m, n, k;
  T alpha;
  const T* a;
  int64_t lda;
  const T* b;
  int64_t ldb;
  T beta;
  T* c;
  int64_t ldc;
};

/// Rows [i, i + m) and columns [j, j + n) of c.
template <class T>
Product<T> tile(Product<T> p, int64_t i, int64_t j, int64_t m, int64_t n) {
  p.a += p.transpose_a ? i : i * p.lda;
  p.b += p.transpose_b ? j * p.ldb : j;
  p.c += i * p.ldc + j;
  p.m = m;
  p.n = n;
  return p;
}

template <class T>
void check(const Product<T>& p) {
  const int64_t sizes[] = {p.m, p.n, p.k, p.lda, p.ldb, p.ldc};
  for (const int64_t size : sizes) {
    if (size < 0 || size > std::numeric_limits<int>::max()) {
      throw Error("[gemm] sizes and row distances must lie between 0 and 2^31 - 1, but one is " + std::to_string(size));
    }
  }
  if (p.lda < (p.transpose_a ? p.m : p.k) || p.ldb < (p.transpose_b ? p.k : p.n) || p.ldc < p.n) {
    throw Error("[gemm] row distances (" + std::to_string(p.lda) + ", " + std::to_string(p.ldb) + ", " +
                std::to_string(p.ldc) + ") are shorter than the rows of a (" + std::to_string(p.m) + ", " +
                std::to_string(p.k) + ") by (" + std::to_string(p.k) + ", " + std::to_string(p.n) + ") product");
  }
}

template <class T>
Product<T> checked(const Product<T>& p) {
  check(p);
  warn_if_slow_core();
  return p;
}

/// An OpenMP build of OpenBLAS starts its own threads wherever it is not called from a parallel region.
class OneThread {
 public:
  OneThread() {
    if (!blas_runtime().openmp || in_parallel_region()) return;
    before_ = thread_count();
    set_thread_count(1);
  }
  ~OneThread() {
    if (before_) set_thread_count(before_);
  }
  OneThread(const OneThread&) = delete;
  OneThread& operator=(const OneThread&) = delete;

 private:
  int before_ = 0;
};

void call(const Product<float>& p) {
  cblas_sgemm(CblasRowMajor, p.transpose_a ? CblasTrans : CblasNoTrans, p.transpose_b ? CblasTrans : CblasNoTrans,
              static_cast<int>(p.m), static_cast<int>(p.n), static_cast<int>(p.k), p.alpha, p.a,
              static_cast<int>(p.lda), p.b, static_cast<int>(p.ldb), p.beta, p.c, static_cast<int>(p.ldc));
}

void call(const Product<double>& p) {
  cblas_dgemm(CblasRowMajor, p.transpose_a ? CblasTrans : CblasNoTrans, p.transpose_b ? CblasTrans : CblasNoTrans,
              static_cast<int>(p.m), static_cast<int>(p.n), static_cast<int>(p.k), p.alpha, p.a,
              static_cast<int>(p.lda), p.b, static_cast<int>(p.ldb), p.beta, p.c, static_cast<int>(p.ldc));
}

template <class T>
void scale(const Product<T>& p) {
  for (int64_t i = 0; i < p.m; ++i) {
    T* row = p.c + i * p.ldc;
    for (int64_t j = 0; j < p.n; ++j) row[j] = p.beta == T(0) ? T(0) : p.beta * row[j];
  }
}

template <class T>
void product_with_vector(const Product<T>& p) {
  using namespace vector_product;
  if (p.m == 1) {
    const Row<T> row{p.n, p.k, p.alpha, p.a, p.transpose_a ? p.lda : 1, p.b, p.ldb, p.beta, p.c, 1};
    p.transpose_b ? columns(row) : rows(row);
  } else {
    const Row<T> row{p.m, p.k, p.alpha, p.b, p.transpose_b ? 1 : p.ldb, p.a, p.lda, p.beta, p.c, p.ldc};
    p.transpose_a ? rows(row) : columns(row);
  }
}

std::atomic<bool> clock_on{false};
std::atomic<int64_t> clock_nanoseconds{0};

/// Counts the time from here to the end of the scope, while the clock is on.
class Measured {
 public:
  Measured() : on_(clock_on.load(std::memory_order_relaxed)) {
    if (on_) start_ = Clock::now();
  }
  ~Measured() {
    if (on_) clock_nanoseconds += std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - start_).count();
  }

 private:
  using Clock = std::chrono::steady_clock;
  bool on_;
  Clock::time_point start_{};
};

template <class T>
void serial(const Product<T>& p) {
  if (p.m == 0 || p.n == 0) return;
  const Measured measured;
  if (p.k == 0) {
    scale(p);
  } else if (p.m == 1 || p.n == 1) {
    product_with_vector(p);
  } else {
    call(p);
  }
}

struct Grid {
  int64_t rows = 1, columns = 1;
};

int64_t parts(int64_t extent, int64_t length) { return std::max<int64_t>(1, (extent + length - 1) / length); }

/// Tiles under 100^3 multiplications run on OpenBLAS's AVX-512 kernels without packing: 7 % faster than one large
/// call while k is short (measured on Zen 4), and as many tiles as there may be threads.
Grid small_tile_grid(int64_t m, int64_t n, int64_t k) {
  const int64_t area = 980000 / k;
  const int64_t height = area >= 9000 ? 64 : area >= 4000 ? 48 : 24;
  const int64_t rows = parts(m, std::min(height, m));
  const int64_t width = std::max<int64_t>(16, area / parts(m, rows) / 16 * 16);
  return {rows, parts(n, width)};
}

/// Every cut of the rows packs b once more, every cut of the columns a. What that takes of the time of the arithmetic
/// was measured on Zen 4, in extents of a tile: packing across the rows of a matrix is the dear case. Tiles are as many
/// as cost at most 2 %, but enough for two threads, or for four where the result is large. Powers of two share evenly.
Grid packed_tile_grid(int64_t m, int64_t n, bool transpose_a, bool transpose_b) {
  constexpr int64_t kMostTiles = 64;
  const double row_cut = (transpose_b ? 30.0 : 8.0) / static_cast<double>(m);
  const double column_cut = (transpose_a ? 20.0 : 35.0) / static_cast<double>(n);
  const int64_t fewest = m * n < 1 << 18 ? 2 : 4;
  Grid grid;
  double cost = 0;
  while (grid.rows * grid.columns < kMostTiles) {
    const double more_rows = row_cut * static_cast<double>(grid.rows);
    const double more_columns = column_cut * static_cast<double>(grid.columns);
    cost += std::min(more_rows, more_columns);
    if (grid.rows * grid.columns >= fewest && cost > 0.02) break;
    (more_rows <= more_columns ? grid.rows : grid.columns) *= 2;
  }
  return grid;
}

/// A function of the shape, the transposes and the kernel only: never of the number of threads.
template <class T>
Grid tile_grid(const Product<T>& p) {
  const int64_t work = p.m * p.n * p.k;
  // below this, waking a thread costs more than it saves
  if (work < 1 << 20) return {};
  if (p.m == 1 || p.n == 1) {
    const int64_t tiles = std::min<int64_t>(work >> 19, 64);
    return p.m == 1 ? Grid{1, tiles} : Grid{tiles, 1};
  }
  const bool small = std::is_same_v<T, float> && blas_runtime().small_kernels && !p.transpose_b &&
                     p.k <= (p.transpose_a ? 384 : 192);
  return small ? small_tile_grid(p.m, p.n, p.k) : packed_tile_grid(p.m, p.n, p.transpose_a, p.transpose_b);
}

template <class T>
void tiled(const Product<T>& p) {
  const Grid grid = tile_grid(p);
  const auto run = [&](int64_t t) {
    const int64_t row = t / grid.columns, column = t % grid.columns;
    const int64_t i = p.m * row / grid.rows, j = p.n * column / grid.columns;
    serial(tile(p, i, j, p.m * (row + 1) / grid.rows - i, p.n * (column + 1) / grid.columns - j));
  };
  const int64_t tiles = grid.rows * grid.columns;
  if (tiles == 1 || in_parallel_region()) {
    const OneThread guard;
    for (int64_t t = 0; t < tiles; ++t) run(t);
    return;
  }
#pragma omp parallel for schedule(dynamic, 1)
  for (int64_t t = 0; t < tiles; ++t) run(t);
}

}  // namespace

template <class T>
void gemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, T alpha, const T* a, int64_t lda,
          const T* b, int64_t ldb, T beta, T* c, int64_t ldc) {
  tiled(checked(Product<T>{transpose_a, transpose_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc}));
}

template <class T>
void gemm_serial(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, T alpha, const T* a, int64_t lda,
                 const T* b, int64_t ldb, T beta, T* c, int64_t ldc) {
  const auto p = checked(Product<T>{transpose_a, transpose_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc});
  const OneThread guard;
  serial(p);
}

void GemmClock::start() {
  clock_nanoseconds = 0;
  clock_on = true;
}

double GemmClock::stop() {
  clock_on = false;
  return double(clock_nanoseconds) * 1e-9;
}

void gemm_library_threads(int64_t m, int64_t n, int64_t k, const float* a, const float* b, float* c) {
  set_library_threads(thread_count());
  call(Product<float>{false, false, m, n, k, 1.0f, a, k, b, n, 0.0f, c, n});
  set_library_threads(1);
}

#define HH_INSTANTIATE(T)                                                                                            \
  template void gemm(bool, bool, int64_t, int64_t, int64_t, T, const T*, int64_t, const T*, int64_t, T, T*, int64_t); \
  template void gemm_serial(bool, bool, int64_t, int64_t, int64_t, T, const T*, int64_t, const T*, int64_t, T, T*,   \
                            int64_t);
HH_INSTANTIATE(float)
HH_INSTANTIATE(double)
#undef HH_INSTANTIATE

}  // namespace hedgehog

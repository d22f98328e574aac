#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "ops/blas.h"
#include "ops/cpu.h"
#include "core/error.h"

using namespace hedgehog;
using std::int64_t;

namespace {

template <class T>
std::vector<T> numbers(int64_t count, unsigned seed) {
  std::vector<T> x(count);
  unsigned state = seed * 2654435761u + 1;
  for (T& value : x) {
    state = state * 1664525u + 1013904223u;
    value = static_cast<T>(static_cast<double>(state >> 8) / (1 << 23) - 1.0);
  }
  return x;
}

template <class T>
struct Case {
  bool ta, tb;
  int64_t m, n, k, padding = 0;
  T alpha = 1, beta = 0;
  int64_t lda() const { return (ta ? m : k) + padding; }
  int64_t ldb() const { return (tb ? k : n) + padding; }
  int64_t ldc() const { return n + padding; }
  std::vector<T> a() const { return numbers<T>((ta ? k : m) * lda(), 1); }
  std::vector<T> b() const { return numbers<T>((tb ? n : k) * ldb(), 2); }
};

template <class T>
std::vector<double> naive(const Case<T>& p, const std::vector<T>& c) {
  const std::vector<T> a = p.a(), b = p.b();
  std::vector<double> y(c.begin(), c.end());
  for (int64_t i = 0; i < p.m; ++i) {
    for (int64_t j = 0; j < p.n; ++j) {
      double sum = 0;
      for (int64_t t = 0; t < p.k; ++t) {
        sum += static_cast<double>(a[p.ta ? t * p.lda() + i : i * p.lda() + t]) * b[p.tb ? j * p.ldb() + t : t * p.ldb() + j];
      }
      double& value = y[i * p.ldc() + j];
      value = p.alpha * sum + (p.beta == T(0) ? 0.0 : p.beta * value);
    }
  }
  return y;
}

/// Rounding of k products and sums of numbers up to 1, plus one for the scaling.
template <class T>
double bound(const Case<T>& p) {
  return (std::abs(p.alpha) * p.k * std::sqrt(double(p.k)) + 2) * std::numeric_limits<T>::epsilon();
}

template <class T>
void check(const Case<T>& p) {
  CAPTURE(p.ta);
  CAPTURE(p.tb);
  CAPTURE(p.m);
  CAPTURE(p.n);
  CAPTURE(p.k);
  CAPTURE(p.beta);
  const std::vector<T> a = p.a(), b = p.b();
  const std::vector<T> start = p.beta == T(0) ? std::vector<T>(p.m * p.ldc(), T(NAN)) : numbers<T>(p.m * p.ldc(), 3);
  const std::vector<double> expected = naive(p, start);
  for (const bool serial : {false, true}) {
    CAPTURE(serial);
    std::vector<T> c = start;
    auto product = serial ? gemm_serial<T> : gemm<T>;
    product(p.ta, p.tb, p.m, p.n, p.k, p.alpha, a.data(), p.lda(), b.data(), p.ldb(), p.beta, c.data(), p.ldc());
    double worst = 0;
    bool outside_kept = true;
    for (int64_t i = 0; i < p.m; ++i) {
      for (int64_t j = 0; j < p.ldc(); ++j) {
        const int64_t at = i * p.ldc() + j;
        if (j >= p.n) {
          outside_kept = outside_kept && std::memcmp(&c[at], &start[at], sizeof(T)) == 0;
        } else if (!(std::abs(c[at] - expected[at]) <= worst)) {
          worst = std::abs(c[at] - expected[at]);
        }
      }
    }
    CHECK(worst <= bound(p));
    CHECK(outside_kept);
  }
}

template <class T>
std::vector<T> run(const Case<T>& p) {
  const std::vector<T> a = p.a(), b = p.b();
  std::vector<T> c = numbers<T>(p.m * p.ldc(), 3);
  gemm<T>(p.ta, p.tb, p.m, p.n, p.k, p.alpha, a.data(), p.lda(), b.data(), p.ldb(), p.beta, c.data(), p.ldc());
  return c;
}

template <class T>
bool same_bits(const std::vector<T>& x, const std::vector<T>& y) {
  return x.size() == y.size() && std::memcmp(x.data(), y.data(), x.size() * sizeof(T)) == 0;
}

}  // namespace

TEST_CASE_TEMPLATE("gemm agrees with a plain loop for odd sizes, all transposes, alpha and beta", T, float, double) {
  const int64_t sizes[][3] = {{1, 1, 1},   {1, 7, 5},    {7, 1, 5},     {3, 5, 1},    {2, 3, 4},     {17, 19, 23},
                              {64, 64, 64}, {65, 33, 67}, {1, 200, 131}, {200, 1, 131}, {129, 131, 70}, {1, 3, 2100}};
  for (const auto& [m, n, k] : sizes) {
    for (int transposes = 0; transposes < 4; ++transposes) {
      const bool ta = transposes & 1, tb = transposes & 2;
      check(Case<T>{ta, tb, m, n, k});
      check(Case<T>{ta, tb, m, n, k, 3, T(-0.5), T(1)});
      check(Case<T>{ta, tb, m, n, k, 5, T(2), T(0.25)});
    }
  }
}

TEST_CASE_TEMPLATE("gemm agrees with a plain loop where it is cut into tiles", T, float, double) {
  for (int transposes = 0; transposes < 4; ++transposes) {
    const bool ta = transposes & 1, tb = transposes & 2;
    check(Case<T>{ta, tb, 173, 211, 61, 2, T(1), T(1)});
    check(Case<T>{ta, tb, 131, 149, 201});
    check(Case<T>{ta, tb, 1, 1200, 1001});
    check(Case<T>{ta, tb, 1200, 1, 1001, 0, T(1), T(1)});
  }
}

TEST_CASE_TEMPLATE("gemm with an extent of 0 scales or leaves c", T, float, double) {
  const T a[4] = {1, 2, 3, 4};
  std::vector<T> c(6, T(3));
  gemm<T>(false, false, 2, 3, 0, T(1), a, 0, a, 3, T(0.5), c.data(), 3);
  CHECK(c == std::vector<T>(6, T(1.5)));
  c.assign(6, T(NAN));
  gemm<T>(false, false, 2, 3, 0, T(1), a, 0, a, 3, T(0), c.data(), 3);
  CHECK(c == std::vector<T>(6, T(0)));
  c.assign(6, T(3));
  gemm<T>(false, false, 0, 3, 2, T(1), a, 2, a, 3, T(0), c.data(), 3);
  gemm<T>(false, false, 2, 0, 2, T(1), a, 2, a, 0, T(0), c.data(), 3);
  CHECK(c == std::vector<T>(6, T(3)));
}

TEST_CASE("gemm refuses sizes it cannot pass on, and rows that overlap") {
  float x[4] = {};
  CHECK_THROWS_AS(gemm<float>(false, false, 1, 1, int64_t(1) << 31, 1, x, int64_t(1) << 31, x, 1, 0, x, 1), Error);
  CHECK_THROWS_AS(gemm<float>(false, false, -1, 1, 1, 1, x, 1, x, 1, 0, x, 1), Error);
  CHECK_THROWS_AS(gemm<float>(false, false, 2, 2, 2, 1, x, 1, x, 2, 0, x, 2), Error);
}

TEST_CASE_TEMPLATE("gemm gives the same bits for any number of threads, and inside a parallel region", T, float, double) {
  const int before = thread_count();
  for (const Case<T>& p : {Case<T>{false, false, 768, 130, 128}, Case<T>{false, true, 300, 700, 100},
                           Case<T>{true, false, 128, 512, 200, 0, T(1), T(1)}, Case<T>{true, true, 257, 263, 300},
                           Case<T>{false, false, 1, 2000, 1501}, Case<T>{false, true, 1, 2000, 1501}}) {
    CAPTURE(p.m);
    set_thread_count(1);
    const std::vector<T> expected = run(p);
    for (const int threads : {2, 3, 5}) {
      CAPTURE(threads);
      set_thread_count(threads);
      CHECK(same_bits(run(p), expected));
    }
    std::vector<std::vector<T>> inside(2);
#pragma omp parallel for num_threads(2)
    for (int i = 0; i < 2; ++i) inside[i] = run(p);
    CHECK(same_bits(inside[0], expected));
    CHECK(same_bits(inside[1], expected));
  }
  set_thread_count(before);
}

TEST_CASE("the BLAS kernel follows from what the processor can do") {
  const CpuFeatures none, avx{.x86 = true, .avx = true}, avx2{.x86 = true, .avx = true, .avx2 = true, .fma = true};
  CpuFeatures avx512 = avx2;
  avx512.avx512f = avx512.avx512bw = avx512.avx512dq = avx512.avx512vl = true;
  CpuFeatures knights_landing = avx2;
  knights_landing.avx512f = true;
  CpuFeatures without_fma = avx2;
  without_fma.fma = false;

  CHECK(core_for(none) == "");
  CHECK(core_for(CpuFeatures{.x86 = true}) == "");
  CHECK(core_for(avx) == "Sandybridge");
  CHECK(core_for(without_fma) == "Sandybridge");
  CHECK(core_for(avx2) == "Haswell");
  CHECK(core_for(knights_landing) == "Haswell");
  CHECK(core_for(avx512) == "SkylakeX");

  struct {
    const char* core;
    const CpuFeatures& features;
    bool fits;
  } const rows[] = {{"Prescott", avx512, false}, {"Haswell", avx512, false},  {"Zen", avx512, false},
                    {"SkylakeX", avx512, true},  {"skylakex", avx512, true},  {"Cooperlake", avx512, true},
                    {"SapphireRapids", avx512, true}, {"Prescott", avx2, false}, {"Sandybridge", avx2, false},
                    {"Zen", avx2, true},         {"Haswell", avx2, true},     {"Prescott", avx, false},
                    {"Sandybridge", avx, true},  {"neoversen1", none, true},  {"", avx512, true}};
  for (const auto& row : rows) {
    CAPTURE(row.core);
    CHECK(core_fits(row.core, row.features) == row.fits);
  }
}

TEST_CASE("this process runs on a kernel that fits and is right") {
  CHECK(blas_check() == "");
  const BlasInfo info = blas_info();
  CHECK_FALSE(info.library.empty());
  CHECK_FALSE(info.chosen_by.empty());
  CHECK(info.threads == 1);
  // a kernel named by the user is respected, whatever it is
  if (info.chosen_by != "OPENBLAS_CORETYPE") CHECK(core_fits(info.core, cpu_features()));
}

TEST_CASE("cores and memory are read") {
  CHECK(usable_cores() >= 1);
  CHECK(available_memory() > 0);
  CHECK(cpu_model() != "");
}

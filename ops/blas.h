#pragma once
#include <cstdint>
#include <string>

namespace hedgehog {

/// Matrix product on the CPU, row-major, in parallel.
///
///   c = alpha * op(a) op(b) + beta * c,   op(x) = x or its transpose
///
/// op(a)   (m, k)  stored (m, k), or (k, m) if transpose_a; rows lda elements apart
/// op(b)   (k, n)  stored (k, n), or (n, k) if transpose_b; rows ldb elements apart
/// c       (m, n)  rows ldc elements apart; must not overlap a or b; not read when beta is 0
/// T       float | double
///
/// The product is cut into tiles whose borders depend on the shapes and on the BLAS kernel alone; each tile is one
/// single-threaded CBLAS call (a loop of ours where m or n is 1). So the bits are the same for any number of threads.
/// Called inside an OpenMP parallel region, the calling thread computes all tiles itself, with the same bits.
/// m, n or k of 0 are fine: k = 0 gives beta * c.
/// Throws: Error if a size or a row distance exceeds 2^31 - 1, or a row distance is shorter than its row.
template <class T>
void gemm(bool transpose_a, bool transpose_b, std::int64_t m, std::int64_t n, std::int64_t k, T alpha, const T* a,
          std::int64_t lda, const T* b, std::int64_t ldb, T beta, T* c, std::int64_t ldc);

/// As gemm, but untiled and in the calling thread: for many small products inside an OpenMP loop. Up to 64 x 64 x 64
/// its overhead over the arithmetic is well under a microsecond. Its bits may differ from gemm's.
template <class T>
void gemm_serial(bool transpose_a, bool transpose_b, std::int64_t m, std::int64_t n, std::int64_t k, T alpha,
                 const T* a, std::int64_t lda, const T* b, std::int64_t ldb, T beta, T* c, std::int64_t ldc);

/// Seconds that all threads together spend inside matrix products, for profiles.
struct GemmClock {
  static void start();
  /// Stops and returns the seconds since start.
  static double stop();
};

/// c = a b (m x k times k x n, f32) in one call of the library on all its threads: what our tiles are compared with.
void gemm_library_threads(std::int64_t m, std::int64_t n, std::int64_t k, const float* a, const float* b, float* c);

/// What the matrix products of this process run on, as `info`, `bench` and state.json show it.
struct BlasInfo {
  std::string library;        // "OpenBLAS 0.3.21"
  std::string config;         // as the library reports it; empty if it does not
  std::string core;           // name of its kernel, e.g. "SkylakeX"; empty if unknown
  std::string chosen_by;      // "the library", "OPENBLAS_CORETYPE", or "hedgehog (the library would take Prescott)"
  std::string expected_best;  // the kernel that fits this processor; empty if we have no opinion
  int threads = 1;            // threads inside one call of the library; 1 unless it cannot be told
};
BlasInfo blas_info();

/// Makes this process run on the best correct kernel of the BLAS library; call it first in main.
///
/// OpenBLAS fixes its kernel when it is loaded, and old releases take a very slow one on processors they do not know.
/// If its own choice does not fit the processor, OPENBLAS_CORETYPE is set and the program starts itself again, once,
/// with the same arguments. The new kernel must pass a product check, else the library's own choice is used and a line
/// on stderr says so. Nothing happens if the user has set OPENBLAS_CORETYPE. Without this call, the first product of
/// the process warns once.
void ensure_best_blas(int argc, char** argv);

/// What the processor and the operating system offer, as far as the choice of a kernel depends on it.
struct CpuFeatures {
  bool x86 = false, avx = false, avx2 = false, fma = false;
  bool avx512f = false, avx512bw = false, avx512dq = false, avx512vl = false;
};
CpuFeatures cpu_features();

/// The OPENBLAS_CORETYPE for a processor; empty where the library's own choice is best (not x86, or before AVX).
///
/// AVX-512 (f, bw, dq, vl) takes SkylakeX, also on Zen 4 and later, and on Intel processors whose AMX is hidden by a
/// virtual machine; AVX2 with FMA takes Haswell, also on Zen; AVX takes Sandybridge.
std::string core_for(const CpuFeatures& features);

/// Whether a kernel is as fast as core_for(features) on such a processor, so that changing it gains nothing.
bool core_fits(const std::string& core, const CpuFeatures& features);

/// Compares products of odd sizes, float and double, all transposes, with a plain loop.
/// Returns "" or what differs, e.g. "float 67 x 65 x 129 differs by 0.5 at (3, 4)".
std::string blas_check();

}  // namespace hedgehog

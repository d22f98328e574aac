#include "cuda/blas.h"

#include <cublasLt.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <map>
#include <memory>
#include <tuple>

#include "core/device.h"
#include "core/error.h"
#include "cuda/stream.h"

namespace hedgehog::cuda {
namespace {

bool tf32 = false;

void check_blas(cublasStatus_t status, const char* what) {
  if (status != CUBLAS_STATUS_SUCCESS) throw Error(fmt::format("[cublas] {} failed with {}", what, cublasLtGetStatusString(status)));
}

constexpr std::size_t kWorkspace = std::size_t(32) << 20;  // bytes, what NVIDIA recommends for Hopper

struct Library {
  cublasLtHandle_t handle = nullptr;
  void* workspace = nullptr;
  Library() {
    check_blas(cublasLtCreate(&handle), "start of cuBLASLt");
    workspace = cuda_device().allocate(kWorkspace);
  }
};
/// Products run one after the other on one stream, so they share one workspace.
Library& library() {
  static Library library;
  return library;
}

cudaDataType_t type_of(Dtype d) {
  if (d == Dtype::f64) return CUDA_R_64F;
  if (d == Dtype::bf16) return CUDA_R_16BF;
  if (d == Dtype::f32) return CUDA_R_32F;
  throw DtypeError("computes in f32, f64 or bf16, but got i32; use cast first");
}

cublasLtEpilogue_t epilogue_of(const Product& p) {
  switch (p.epilogue) {
    case Epilogue::none: return CUBLASLT_EPILOGUE_DEFAULT;
    case Epilogue::bias: return CUBLASLT_EPILOGUE_BIAS;
    case Epilogue::gelu: return p.aux ? CUBLASLT_EPILOGUE_GELU_AUX : CUBLASLT_EPILOGUE_GELU;
    case Epilogue::gelu_bias: return p.aux ? CUBLASLT_EPILOGUE_GELU_AUX_BIAS : CUBLASLT_EPILOGUE_GELU_BIAS;
    case Epilogue::dgelu: return CUBLASLT_EPILOGUE_DGELU;
  }
  return CUBLASLT_EPILOGUE_DEFAULT;
}

/// Largest power of two up to 16 that divides the address: the kernels that the heuristic may choose depend on it, and none needs
/// more than 16 bytes. More would make the choice, and with it the bits, depend on where a buffer happens to lie.
std::uint32_t alignment_of(const void* data) {
  const auto at = reinterpret_cast<std::uintptr_t>(data);
  std::uint32_t alignment = 16;
  while (at % alignment) alignment /= 2;
  return alignment;
}

using Key = std::tuple<int, int, bool, bool, std::int64_t, std::int64_t, std::int64_t, std::int64_t, std::int64_t, std::int64_t, std::int64_t,
                       std::int64_t, std::int64_t, std::int64_t, int, bool, bool, std::int64_t, std::uint32_t, std::uint32_t, std::uint32_t,
                       std::uint32_t, std::uint32_t, std::uint32_t>;

/// A product prepared for one key: descriptors and the chosen algorithm. Pointers are set at each call.
struct Prepared {
  cublasLtMatmulDesc_t operation = nullptr;
  cublasLtMatrixLayout_t first = nullptr, second = nullptr, result = nullptr;
  cublasLtMatmulAlgo_t algorithm{};
  cublasStatus_t refused = CUBLAS_STATUS_SUCCESS;  // why there is no algorithm

  Prepared() = default;
  Prepared(const Prepared&) = delete;
  ~Prepared() {
    cublasLtMatmulDescDestroy(operation);
    for (cublasLtMatrixLayout_t l : {first, second, result}) cublasLtMatrixLayoutDestroy(l);
  }
};

template <class T>
void set(cublasLtMatmulDesc_t d, cublasLtMatmulDescAttributes_t attribute, const T& value) {
  check_blas(cublasLtMatmulDescSetAttribute(d, attribute, &value, sizeof(value)), "description of a product");
}
template <class T>
void set(cublasLtMatmulPreference_t p, cublasLtMatmulPreferenceAttributes_t attribute, const T& value) {
  check_blas(cublasLtMatmulPreferenceSetAttribute(p, attribute, &value, sizeof(value)), "preference of a product");
}

cublasLtMatrixLayout_t layout(Dtype dtype, std::int64_t rows, std::int64_t columns, std::int64_t ld, std::int64_t batch, std::int64_t step) {
  cublasLtMatrixLayout_t l = nullptr;
  check_blas(cublasLtMatrixLayoutCreate(&l, type_of(dtype), std::uint64_t(rows), std::uint64_t(columns), ld), "layout of a matrix");
  if (batch > 1) {
    const auto count = std::int32_t(batch);
    check_blas(cublasLtMatrixLayoutSetAttribute(l, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count, sizeof(count)), "layout of a batch");
    check_blas(cublasLtMatrixLayoutSetAttribute(l, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &step, sizeof(step)), "layout of a batch");
  }
  return l;
}

/// The library is column-major: a row-major D = A B is its D^T = B^T A^T, with the memory of B as first operand.
void describe(Prepared& x, const Product& p) {
  const bool f64 = p.dtype == Dtype::f64;
  const cublasComputeType_t compute = f64 ? CUBLAS_COMPUTE_64F : p.dtype == Dtype::f32 && tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F;
  check_blas(cublasLtMatmulDescCreate(&x.operation, compute, f64 ? CUDA_R_64F : CUDA_R_32F), "description of a product");
  set(x.operation, CUBLASLT_MATMUL_DESC_TRANSA, p.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N);
  set(x.operation, CUBLASLT_MATMUL_DESC_TRANSB, p.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N);
  set(x.operation, CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue_of(p));
  if (p.bias) set(x.operation, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, std::int32_t(type_of(p.dtype)));
  if (p.aux) set(x.operation, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, p.ld_aux);
  x.first = p.transpose_b ? layout(p.dtype, p.k, p.n, p.ldb, p.batch, p.step_b) : layout(p.dtype, p.n, p.k, p.ldb, p.batch, p.step_b);
  x.second = p.transpose_a ? layout(p.dtype, p.m, p.k, p.lda, p.batch, p.step_a) : layout(p.dtype, p.k, p.m, p.lda, p.batch, p.step_a);
  x.result = layout(p.result, p.n, p.m, p.ldd, p.batch, p.step_d);
}

void set_pointers(const Prepared& x, const Product& p) {
  if (p.bias) set(x.operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, p.bias);
  if (p.aux) set(x.operation, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, p.aux);
}

/// Whether an offer is one of the library's kernels for Hopper (number 66) in which two warpgroups have a tile each, so that one
/// multiplies while the other stores its results: custom options up to 3. From 4 on both share a tile.
bool ping_pongs(const cublasLtMatmulHeuristicResult_t& offer) {
  std::int32_t kernel = 0;
  std::uint32_t option = 0;
  std::size_t written = 0;
  return cublasLtMatmulAlgoConfigGetAttribute(&offer.algo, CUBLASLT_ALGO_CONFIG_ID, &kernel, sizeof kernel, &written) == CUBLAS_STATUS_SUCCESS &&
         cublasLtMatmulAlgoConfigGetAttribute(&offer.algo, CUBLASLT_ALGO_CONFIG_CUSTOM_OPTION, &option, sizeof option, &written) ==
             CUBLAS_STATUS_SUCCESS &&
         kernel == 66 && option < 4;
}
/// Large products with short sums, which spend much of their time on results: there an H100 takes 5 to 20 % less with the kernels
/// above than with the library's own first choice (cuda/README.md).
bool ends_often(const Product& p) {
  return p.dtype == Dtype::bf16 && p.k <= 600 * size_of(p.result) && p.m * p.n >= std::int64_t(1) << 22;
}

void choose_algorithm(Prepared& x, const Product& p) {
  cublasLtMatmulPreference_t preference = nullptr;
  check_blas(cublasLtMatmulPreferenceCreate(&preference), "preference of a product");
  const std::unique_ptr<std::remove_pointer_t<cublasLtMatmulPreference_t>, void (*)(cublasLtMatmulPreference_t)> owner(
      preference, [](cublasLtMatmulPreference_t gone) { cublasLtMatmulPreferenceDestroy(gone); });
  set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, std::uint64_t(kWorkspace));
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment_of(p.b));
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment_of(p.a));
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment_of(p.c ? p.c : p.d));
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment_of(p.d));
  std::array<cublasLtMatmulHeuristicResult_t, 8> offers{};
  int found = 0;
  const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(library().handle, x.operation, x.first, x.second, x.result, x.result, preference,
                                                               int(offers.size()), offers.data(), &found);
  if (status == CUBLAS_STATUS_SUCCESS && found == 0) x.refused = CUBLAS_STATUS_NOT_SUPPORTED;
  else x.refused = status;
  const auto last = offers.begin() + found;
  const auto better = ends_often(p) ? std::find_if(offers.begin(), last, ping_pongs) : last;
  x.algorithm = (better == last ? offers.front() : *better).algo;
}

Prepared& prepared(const Product& p) {
  static std::map<Key, Prepared> cache;
  const Key key{int(p.dtype), int(p.result), p.transpose_a, p.transpose_b, p.m, p.n, p.k, p.lda, p.ldb, p.ldd, p.batch, p.step_a, p.step_b,
                p.step_d, int(p.epilogue), p.aux != nullptr, tf32 && p.dtype == Dtype::f32, p.ld_aux, alignment_of(p.a), alignment_of(p.b),
                alignment_of(p.c ? p.c : p.d), alignment_of(p.d), alignment_of(p.bias), alignment_of(p.aux)};
  const auto [at, fresh] = cache.try_emplace(key);
  if (!fresh) return at->second;
  try {
    describe(at->second, p);
    set_pointers(at->second, p);
    choose_algorithm(at->second, p);
  } catch (...) {
    cache.erase(at);
    throw;
  }
  return at->second;
}

}  // namespace

void allow_tf32(bool allowed) { tf32 = allowed; }

bool fuses(Epilogue epilogue, Dtype dtype, std::int64_t n) {
  if (epilogue == Epilogue::none) return true;
  if (epilogue == Epilogue::bias) return dtype != Dtype::f64;
  return dtype == Dtype::bf16 && n % 8 == 0;  // rows of aux must be multiples of 16 bytes
}

void multiply(const Product& p) {
  if (try_multiply(p)) return;
  throw Error(fmt::format("[cublas] has no algorithm for a {} product of ({}, {}) and ({}, {}) with epilogue {}: {}", name_of(p.dtype), p.m, p.k, p.k,
                          p.n, int(p.epilogue), cublasLtGetStatusString(prepared(p).refused)));
}

bool try_multiply(const Product& p) {
  const Prepared& x = prepared(p);
  if (x.refused != CUBLAS_STATUS_SUCCESS) return false;
  set_pointers(x, p);
  const bool f64 = p.dtype == Dtype::f64;
  const float alpha = float(p.alpha), beta = float(p.beta);
  const void* a = f64 ? static_cast<const void*>(&p.alpha) : &alpha;
  const void* b = f64 ? static_cast<const void*>(&p.beta) : &beta;
  check_blas(cublasLtMatmul(library().handle, x.operation, a, p.b, x.first, p.a, x.second, b, p.c ? p.c : p.d, x.result, p.d, x.result,
                            &x.algorithm, library().workspace, kWorkspace, stream()),
             "product");
  return true;
}

}  // namespace hedgehog::cuda

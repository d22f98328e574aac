#pragma once
#include <cstdint>

#include "core/op.h"

/// Matrix products by cuBLASLt. The algorithm of a product is a function of shapes, dtypes, epilogue, alignment, device
/// and library version alone: it is taken from the list of the library's own heuristic by a fixed rule and is cached by these.
namespace hedgehog::cuda {

/// Epilogue of a product D = alpha op(A) op(B) + beta C.
enum class Epilogue : std::uint8_t {
  none,
  bias,       // D += bias, along the columns of each row
  gelu,       // D = gelu(product); the product before it goes to aux if aux is not null
  gelu_bias,  // D = gelu(product + bias); product + bias goes to aux if aux is not null
  dgelu,      // D = product * gelu'(aux)
};

/// One row-major matrix product, or a batch of equally spaced ones.
///
///   D (m, n) = alpha op(A) (m, k) op(B) (k, n) + beta C,   C like D; D itself unless given
///
/// Elements of A and B share one dtype (f32, f64, bf16); D has that dtype, or f32 where A and B are bf16. Sums are f32
/// (f64 for f64). Leading dimensions are elements from row to row as stored.
struct Product {
  Dtype dtype = Dtype::f32, result = Dtype::f32;
  bool transpose_a = false, transpose_b = false;
  std::int64_t m = 0, n = 0, k = 0;
  const void* a = nullptr;
  const void* b = nullptr;
  void* d = nullptr;
  const void* c = nullptr;
  std::int64_t lda = 0, ldb = 0, ldd = 0;
  double alpha = 1, beta = 0;
  std::int64_t batch = 1, step_a = 0, step_b = 0, step_d = 0;  // elements from product to product
  Epilogue epilogue = Epilogue::none;
  const void* bias = nullptr;  // (n), dtype of A
  void* aux = nullptr;         // (m, n) dtype of A, rows ld_aux apart
  std::int64_t ld_aux = 0;
};
/// Whether the library fuses this epilogue for these dtypes and sizes; the caller runs a kernel of its own otherwise.
bool fuses(Epilogue epilogue, Dtype dtype, std::int64_t n);
/// TF32 for products of f32: the upper 10 bits of each operand's fraction, three to eight times as fast. Off at the start.
void allow_tf32(bool allowed);
/// Enqueues the product. Throws Error naming the shape when the library refuses it.
void multiply(const Product& product);
/// As multiply, but returns false, and enqueues nothing, where the library has no algorithm for the epilogue. Which it is,
/// is settled by the first call with these sizes.
bool try_multiply(const Product& product);

}  // namespace hedgehog::cuda

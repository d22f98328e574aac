#pragma once
#include "cuda/common.cuh"

/// Instructions of the tensor cores and of asynchronous copies that CUDA C++ has no name for, and the launch.
namespace hedgehog::cuda::linear_attention_mma {

/// Four 8 x 8 matrices from shared memory; lane l gives the address of row l % 8 of matrix l / 8, and gets of each matrix
/// elements (l / 4, l % 4 * 2) and the next.
__device__ __forceinline__ void load_matrices(unsigned (&r)[4], const bf16* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(unsigned(__cvta_generic_to_shared(row))));
}
/// The same of the transposed matrices.
__device__ __forceinline__ void load_matrices_transposed(unsigned (&r)[4], const bf16* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(unsigned(__cvta_generic_to_shared(row))));
}

/// c (16, 8) += a (16, 16) b (16, 8). With g = lane / 4 and t = lane % 4 * 2 a lane holds of a the pairs (g, t), (g + 8, t),
/// (g, t + 8), (g + 8, t + 8), of b the pairs down (t, g), (t + 8, g), of c (g, t), (g, t + 1), (g + 8, t), (g + 8, t + 1).
__device__ __forceinline__ void multiply_add(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// Starts a copy of 16 bytes, or of 16 zeros.
__device__ __forceinline__ void copy_async(bf16* to, const bf16* from, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(unsigned(__cvta_generic_to_shared(to))), "l"(from),
               "r"(valid ? 16 : 0)
               : "memory");
}
/// Waits for all copies that this thread has started.
__device__ __forceinline__ void wait_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

/// Two numbers rounded to bf16, the first in the low half.
__device__ __forceinline__ unsigned pack(float low, float high) {
  unsigned r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
__device__ __forceinline__ float low_of(unsigned pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high_of(unsigned pair) { return __uint_as_float(pair & 0xffff0000u); }

/// 2^x to about 2 units in the last place; exactly 1 at 0, and 0 at -infinity.
__device__ __forceinline__ float power_of_two(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// The block's dynamic shared memory.
__device__ __forceinline__ unsigned char* shared_bytes() {
  extern __shared__ __align__(1024) unsigned char bytes[];
  return bytes;
}

template <class Arguments>
void launch(void (*kernel)(Arguments), std::int64_t blocks, int threads, std::size_t shared, const Arguments& arguments) {
  if (shared > 0) allow_shared_memory(reinterpret_cast<const void*>(kernel), shared);
  kernel<<<unsigned(blocks), unsigned(threads), shared, stream()>>>(arguments);
  check_launch("linear_attention");
}

}  // namespace hedgehog::cuda::linear_attention_mma

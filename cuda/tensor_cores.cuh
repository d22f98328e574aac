#pragma once
#include "cuda/common.cuh"

/// Instructions of the tensor cores and of asynchronous copies that CUDA C++ has no name for, and fragments of
/// mma.sync.m16n8k16 in bf16. Everything here runs on sm_80 and later.
///
/// With g = lane / 4 and t = lane % 4 * 2 a lane holds of a left operand (16, 16) the pairs (g, t), (g + 8, t), (g, t + 8),
/// (g + 8, t + 8), of a right one (16, 8) the pairs down (t, g), (t + 8, g), of a result (16, 8) the elements (g, t), (g, t + 1),
/// (g + 8, t), (g + 8, t + 1): two neighbouring results, rounded, are the left operand of the next product.
namespace hedgehog::cuda {

constexpr float kLog2e = 1.4426950408889634f;

__device__ __forceinline__ unsigned shared_address(const void* p) { return unsigned(__cvta_generic_to_shared(p)); }

/// Four 8 x 8 matrices from shared memory; lane l gives the address of row l % 8 of matrix l / 8, and gets of each matrix
/// elements (l / 4, l % 4 * 2) and the next.
__device__ __forceinline__ void load_matrices(unsigned (&r)[4], unsigned row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row)
               : "memory");
}
/// The same of the transposed matrices.
__device__ __forceinline__ void load_matrices_transposed(unsigned (&r)[4], unsigned row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row)
               : "memory");
}

/// c (16, 8) += a (16, 16) b (16, 8).
__device__ __forceinline__ void multiply_add(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// Starts a copy of 16 bytes to shared memory, or of 16 zeros, with nothing read.
__device__ __forceinline__ void copy_async(unsigned to, const void* from, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(valid ? 16 : 0) : "memory");
}
/// Ends a group of copies.
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
/// Waits for the groups that this thread has ended, but for the kLeft newest.
template <int kLeft = 0>
__device__ __forceinline__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
}
/// Waits for all copies that this thread has started.
__device__ __forceinline__ void wait_all_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

/// 2^x to about 2 units in the last place; exactly 1 at 0, 0 at -infinity, NaN at NaN.
__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// Two numbers rounded to bf16, the first in the low half.
__device__ __forceinline__ unsigned pack(float low, float high) {
  unsigned r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
/// Left operand of 16 columns from two neighbouring results.
__device__ __forceinline__ void pack_operand(unsigned (&a)[4], const float (&left)[4], const float (&right)[4]) {
  a[0] = pack(left[0], left[1]);
  a[1] = pack(left[2], left[3]);
  a[2] = pack(right[0], right[1]);
  a[3] = pack(right[2], right[3]);
}

/// Over the 4 lanes that share the rows of a fragment.
__device__ __forceinline__ float row_sum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}
__device__ __forceinline__ float row_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

/// The pieces of 8 elements in row `row` of a tile change places by an exclusive or with this number, so that the same piece of
/// the 8 rows of a matrix lies in 8 different banks. Rows have kColumns elements.
template <int kColumns>
__device__ __forceinline__ int piece_key(int row) {
  static_assert(kColumns % 32 == 0);
  return kColumns % 64 == 0 ? row & 7 : row >> 1 & 3;
}

}  // namespace hedgehog::cuda

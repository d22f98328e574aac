#pragma once
#include "cuda/tensor_cores.cuh"

/// Products of a warpgroup, the 4 warps of a block of 128 threads: wgmma.m64n64k16 in bf16 with f32 sums. sm_90a only: elsewhere
/// kernels made of them are empty, and nothing launches them (has_warpgroups).
///
/// A tile has rows of 64 elements, swizzled in pieces of 16 bytes (piece_key<64>, the hardware's 128-byte swizzle), and starts at
/// a multiple of 1,024 bytes. The same tile serves as (rows, k) or, transposed, as (k, rows). Results lie as those of
/// mma.sync: warp w has rows 16 w to 16 w + 15, so that two neighbouring column tiles, rounded, are a left operand.
///
/// The tensor cores read shared memory beside the threads: whoever has written a tile calls shared_written() before the barrier.
/// Results may be touched after finish_products() and own() only.
namespace hedgehog::cuda {

#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define HEDGEHOG_WARPGROUPS 1
#else
#define HEDGEHOG_WARPGROUPS 0
#endif

/// What this thread has stored in shared memory is there for the tensor cores, after the next barrier.
__device__ __forceinline__ void shared_written() {
#if HEDGEHOG_WARPGROUPS
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

/// Registers of operands and sums are ready; before the first product after they were touched.
__device__ __forceinline__ void start_products() {
#if HEDGEHOG_WARPGROUPS
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}
/// Ends a batch of products.
__device__ __forceinline__ void commit_products() {
#if HEDGEHOG_WARPGROUPS
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}
/// Waits until at most kLeft of the newest batches are unfinished.
template <int kLeft = 0>
__device__ __forceinline__ void finish_products() {
#if HEDGEHOG_WARPGROUPS
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kLeft) : "memory");
#endif
}
/// Keeps the compiler from moving uses of results to before this line, or changes to after it.
template <int kTiles>
__device__ __forceinline__ void own(float (&c)[kTiles][4]) {
#pragma unroll
  for (int n = 0; n < kTiles; ++n) asm volatile("" : "+f"(c[n][0]), "+f"(c[n][1]), "+f"(c[n][2]), "+f"(c[n][3])::"memory");
}

/// How a tile serves in a product: as it lies, its columns being summed over, or transposed, its rows being summed over.
enum class Side : int { straight = 0, transposed = 1 };

/// Addresses in a block's shared memory as one number and constants: the compiler would make every address anew from registers that
/// it then spills.
struct SharedAddresses {
  const char* object;  // at the start of shared memory
  unsigned base;

  __device__ explicit SharedAddresses(const void* of)
      : object(static_cast<const char*>(of)), base(__shfl_sync(0xffffffffu, shared_address(of), 0)) {}
  /// Once a round of a loop: else what follows from the base is made before the loop, for all rounds, and spilled.
  __device__ __forceinline__ void forget() { asm volatile("" : "+r"(base)); }
  __device__ __forceinline__ unsigned operator()(const void* p) const { return base + unsigned(static_cast<const char*>(p) - object); }
};

/// Descriptor of a tile: groups of 8 rows, 1,024 bytes each.
__device__ __forceinline__ std::uint64_t describe(unsigned tile) {
  constexpr std::uint64_t kSwizzle128 = std::uint64_t(1) << 62, kGroup = std::uint64_t(1024 >> 4) << 32, kUnused = std::uint64_t(1) << 16;
  return (tile >> 4 & 0x3fff) | kUnused | kGroup | kSwizzle128;
}
/// From one step of 16 to the next, in the descriptor's units of 16 bytes.
template <Side kSide>
constexpr std::uint64_t kDescriptorStep = kSide == Side::straight ? 2 : 128;

#define HEDGEHOG_SUMS_8(c, n) "+f"(c[n][0]), "+f"(c[n][1]), "+f"(c[n][2]), "+f"(c[n][3]), "+f"(c[n + 1][0]), "+f"(c[n + 1][1]), "+f"(c[n + 1][2]), "+f"(c[n + 1][3])
#define HEDGEHOG_SUMS_32(c) HEDGEHOG_SUMS_8(c, 0), HEDGEHOG_SUMS_8(c, 2), HEDGEHOG_SUMS_8(c, 4), HEDGEHOG_SUMS_8(c, 6)
#define HEDGEHOG_NAMES_32                                                                                                    \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, " \
  "%26, %27, %28, %29, %30, %31}"

/// c (64, 64) = a b where `fresh`, else c += a b, over one step of 16, both operands in shared memory.
template <Side kA, Side kB>
__device__ __forceinline__ void warpgroup_multiply(float (&c)[8][4], std::uint64_t a, std::uint64_t b, bool fresh) {
#if HEDGEHOG_WARPGROUPS
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 " HEDGEHOG_NAMES_32 ", %32, %33, p, 1, 1, %35, %36;\n}\n"
      : HEDGEHOG_SUMS_32(c)
      : "l"(a), "l"(b), "r"(int(!fresh)), "n"(int(kA)), "n"(int(kB)));
#else
  __trap();
#endif
}
/// The same with the left operand in registers.
template <Side kB>
__device__ __forceinline__ void warpgroup_multiply(float (&c)[8][4], const unsigned (&a)[4], std::uint64_t b, bool fresh) {
#if HEDGEHOG_WARPGROUPS
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 " HEDGEHOG_NAMES_32 ", {%32, %33, %34, %35}, %36, p, 1, 1, %38;\n}\n"
      : HEDGEHOG_SUMS_32(c)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int(!fresh)), "n"(int(kB)));
#else
  __trap();
#endif
}

/// Starts c (64, 64) = or += a b, summed over 64; a and b are addresses of tiles. a is (64, 64) for Side::straight, b (columns, k) for Side::straight.
template <Side kA, Side kB>
__device__ __forceinline__ void product(float (&c)[8][4], unsigned a, unsigned b, bool fresh) {
  const std::uint64_t of_a = describe(a), of_b = describe(b);
#pragma unroll
  for (int k = 0; k < 4; ++k)
    warpgroup_multiply<kA, kB>(c, of_a + k * kDescriptorStep<kA>, of_b + k * kDescriptorStep<kB>, fresh && k == 0);
}
/// The same with a (64, 16 kSteps) in registers.
template <Side kB, int kSteps>
__device__ __forceinline__ void product(float (&c)[8][4], const unsigned (&a)[kSteps][4], unsigned b, bool fresh) {
  const std::uint64_t of_b = describe(b);
#pragma unroll
  for (int k = 0; k < kSteps; ++k) warpgroup_multiply<kB>(c, a[k], of_b + k * kDescriptorStep<kB>, fresh && k == 0);
}

/// Stores a result, rounded, as a tile: four 8 x 8 matrices at a time.
__device__ __forceinline__ void store_matrices(unsigned row, unsigned r0, unsigned r1, unsigned r2, unsigned r3) {
#if HEDGEHOG_WARPGROUPS
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row), "r"(r0), "r"(r1), "r"(r2), "r"(r3) : "memory");
#endif
}

}  // namespace hedgehog::cuda

#pragma once
#include <cstdint>

/// A small matrix product by one block. Everything is in global memory; the block's threads meet at its end.
namespace hedgehog::cuda::linear_attention_generic {

constexpr int kThreads = 256;

/// out (m, n) (+)= left (m, k) right (k, n). `row` and `column` are elements from one row or column to the next.
template <class A>
struct Factors {
  int m, n, k;
  const A* left;
  int left_row, left_column;
  const A* right;
  int right_row, right_column;
  A* out;  // rows out_row apart, columns contiguous
  int out_row;
  bool adds = false;
  bool lower = false;  // writes 0 above the diagonal
};

/// Values of a 64 by 16 slab that one thread carries from global to shared memory. Neighbouring threads take neighbouring
/// elements in memory, whichever way the matrix lies.
template <class A>
struct Slab {
  static constexpr int kTile = 64, kDepth = 16, kEach = kTile * kDepth / kThreads;
  A value[kEach];

  static __device__ __forceinline__ int across(int e, bool deep) { return deep ? e / kDepth : e % kTile; }
  static __device__ __forceinline__ int depth(int e, bool deep) { return deep ? e % kDepth : e / kTile; }

  /// Elements (i0 + i, t0 + t), zeros beyond (limit, k).
  __device__ __forceinline__ void fetch(const A* from, int across_step, int depth_step, int i0, int limit, int t0, int k) {
#pragma unroll
    for (int u = 0; u < kEach; ++u) {
      const int e = int(threadIdx.x) + u * kThreads;
      const int i = i0 + across(e, depth_step == 1), t = t0 + depth(e, depth_step == 1);
      value[u] = i < limit && t < k ? from[std::int64_t(i) * across_step + std::int64_t(t) * depth_step] : A(0);
    }
  }
  template <class Shared>
  __device__ __forceinline__ void put(Shared& to, int depth_step) const {
#pragma unroll
    for (int u = 0; u < kEach; ++u) {
      const int e = int(threadIdx.x) + u * kThreads;
      to[depth(e, depth_step == 1)][across(e, depth_step == 1)] = value[u];
    }
  }
};

/// Tiles of 64 by 64 through shared memory, 4 by 4 elements a thread; the next slab of 16 is on its way from global memory while
/// one is multiplied. Sums run over k in order. Never inlined: a kernel multiplies in twenty places.
template <class A>
__device__ __noinline__ void block_product(const Factors<A>& f) {
  constexpr int kTile = Slab<A>::kTile, kDepth = Slab<A>::kDepth, kPitch = kTile + 4, kSide = 4;
  __shared__ __align__(16) A left[kDepth][kPitch], right[kDepth][kPitch];
  const int row = int(threadIdx.x) / 16 * kSide, column = int(threadIdx.x) % 16 * kSide;
  for (int i0 = 0; i0 < f.m; i0 += kTile)
    for (int j0 = 0; j0 < f.n; j0 += kTile) {
      const int k = f.lower && j0 >= i0 + kTile ? 0 : f.k;
      A sum[kSide][kSide] = {};
      Slab<A> a, b;
      a.fetch(f.left, f.left_row, f.left_column, i0, f.m, 0, k);
      b.fetch(f.right, f.right_column, f.right_row, j0, f.n, 0, k);
      for (int t0 = 0; t0 < k; t0 += kDepth) {
        a.put(left, f.left_column);
        b.put(right, f.right_row);
        __syncthreads();
        if (t0 + kDepth < k) {
          a.fetch(f.left, f.left_row, f.left_column, i0, f.m, t0 + kDepth, k);
          b.fetch(f.right, f.right_column, f.right_row, j0, f.n, t0 + kDepth, k);
        }
#pragma unroll 4
        for (int t = 0; t < kDepth; ++t) {
          A x[kSide], y[kSide];
#pragma unroll
          for (int u = 0; u < kSide; ++u) x[u] = left[t][row + u], y[u] = right[t][column + u];
#pragma unroll
          for (int u = 0; u < kSide; ++u)
#pragma unroll
            for (int v = 0; v < kSide; ++v) sum[u][v] += x[u] * y[v];
        }
        __syncthreads();  // the slab has been read
      }
#pragma unroll
      for (int u = 0; u < kSide; ++u)
#pragma unroll
        for (int v = 0; v < kSide; ++v) {
          const int i = i0 + row + u, j = j0 + column + v;
          if (i >= f.m || j >= f.n) continue;
          A* const to = f.out + std::int64_t(i) * f.out_row + j;
          const A value = f.lower && j > i ? A(0) : sum[u][v];
          *to = f.adds ? *to + value : value;
        }
    }
  __syncthreads();
}

}  // namespace hedgehog::cuda::linear_attention_generic

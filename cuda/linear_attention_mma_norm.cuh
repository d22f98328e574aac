#pragma once
#include "cuda/linear_attention_mma_tile.cuh"

/// Maps whose features a softmax normalises, on the tensor-core path of linear attention. In base 2
///
///   log phi = [u, -u] - c,   u = scale x W,   c = log2 of a token's sum of 2^u: of each sign ("hedgehog-softmax") or of both
///
/// c is made before all else (make_log_sums). Where it is one for both signs ("hedgehog-joint") that of queries cancels in o, and with
/// it in their gradient; it is left out. Kernels know by kNormed whether there is a c at all: the plain map has none.
///
/// Gradients: with g = dphi phi, G the sums of g over the features of the softmax and p = 2^(+-u - c), those of log phi are g - p G.
namespace hedgehog::cuda::linear_attention_mma {

enum Of : int { kOfQueries, kOfKeys };

struct MapNorm {
  float* log_sums = nullptr;  // (queries and keys, signs, B H, T), null for the plain map
  std::int64_t count = 0, T = 0;  // count: B H T
  float scale = kLog2e;
  bool joint = false;  // one softmax over both signs

  /// c of token t of batch element and head `index`.
  __device__ __forceinline__ float at(Of of, int sign, std::int64_t index, std::int64_t t) const {
    return of == kOfQueries && joint ? 0.0f : log_sums[(2 * of + sign) * count + index * T + t];
  }
  /// Of gradients of log phi, on the way to those of x W.
  __device__ __forceinline__ float factor() const { return joint ? 2.0f : 1.0f; }
};

template <bool kNormed>
__device__ __forceinline__ float exponent_scale(const MapNorm& norm) {
  if constexpr (kNormed) return norm.scale;
  else return kLog2e;
}

/// Adds c of a token to x, if there is one: for rows in log space.
template <bool kNormed>
__device__ __forceinline__ float plus_norm(float x, const MapNorm& norm, Of of, int sign, std::int64_t index, std::int64_t t) {
  if constexpr (kNormed) return x + norm.at(of, sign, index, t);
  else return x;
}

/// c of the two rows of a lane.
template <bool kNormed>
struct RowNorm {
  float scale, c[2][2];  // c: sign, half

  __device__ __forceinline__ void fetch(const MapNorm& norm, Of of, std::int64_t index, std::int64_t t0, int count, int row) {
    scale = norm.scale;
#pragma unroll
    for (int sign = 0; sign < 2; ++sign)
#pragma unroll
      for (int x = 0; x < 2; ++x) c[sign][x] = row + 8 * x < count ? norm.at(of, sign, index, t0 + row + 8 * x) : 0.0f;
  }
  __device__ __forceinline__ float plus(float x, int sign, int half) const { return x + c[sign][half]; }
  __device__ __forceinline__ float minus(float x, int sign, int half) const { return x - c[sign][half]; }
};
template <>
struct RowNorm<false> {
  static constexpr float scale = kLog2e;

  __device__ __forceinline__ void fetch(const MapNorm&, Of, std::int64_t, std::int64_t, int, int) {}
  __device__ __forceinline__ float plus(float x, int, int) const { return x; }
  __device__ __forceinline__ float minus(float x, int, int) const { return x; }
};

/// c of a chunk of keys, in shared memory.
template <bool kNormed>
struct ChunkNorm {
  float scale;
  const float* c;  // (signs, chunk)
};
template <>
struct ChunkNorm<false> {};
template <bool kNormed>
__device__ __forceinline__ ChunkNorm<kNormed> chunk_norm(const MapNorm& norm, const float* c) {
  if constexpr (kNormed) return {norm.scale, c};
  else return {};
}

/// c that thread sign kD + token brings for a chunk of keys; 0 beyond the sequence.
template <int kD>
__device__ __forceinline__ float fetch_key_norm(const MapNorm& norm, std::int64_t index, std::int64_t t0) {
  const std::int64_t t = t0 + threadIdx.x % kD;
  return t < norm.T ? norm.at(kOfKeys, int(threadIdx.x) / kD, index, t) : 0.0f;
}

/// Sums of the plus and minus features over the lanes of a row, where one softmax has both over both.
__device__ __forceinline__ void sum_rows(float (&sums)[2][2], bool joint) {
#pragma unroll
  for (int x = 0; x < 2; ++x) {
    const float plus = row_sum(sums[0][x]), minus = row_sum(sums[1][x]);
    sums[0][x] = joint ? plus + minus : plus, sums[1][x] = joint ? plus + minus : minus;
  }
}

}  // namespace hedgehog::cuda::linear_attention_mma

#pragma once
#include "cuda/packet.cuh"
#include "cuda/vector_product.h"

/// What kernels for a few bf16 rows share: how weights are read, norms of the rows, sums within a warp.
namespace hedgehog::cuda {

constexpr int kEach = kVector<bf16>;
constexpr int kWarpLanes = int(kWarp);

/// 16 bytes that are not needed again.
__device__ __forceinline__ uint4 stream_in(const bf16* at) { return __ldcs(reinterpret_cast<const uint4*>(at)); }

/// Calls body(j, element j as a float).
template <class Body>
__device__ __forceinline__ void for_each_element(const uint4& packet, const Body& body) {
  const unsigned words[4] = {packet.x, packet.y, packet.z, packet.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    body(2 * i, low_of(words[i]));
    body(2 * i + 1, high_of(words[i]));
  }
}

constexpr int kRowThreads = 128, kRowWarps = kRowThreads / kWarpLanes;  // that normalise a row
constexpr int kRowPackets = int(kMostNormed) / (kRowThreads * kEach);   // of a row that a thread has

/// Norms of the rows of x, in the shared memory of a block.
template <int M>
struct NormedRows {
  static constexpr bool kStaged = M == 1;  // weights and biases are here before x is
  bf16 rows[M][kMostNormed];
  float weight[kStaged ? kMostNormed : 1], bias[kStaged ? kMostNormed : 1];
  float2 sums[M][kRowWarps];

  template <int kBlock>
  __device__ __forceinline__ void fetch_parameters(const VectorProduct& p) {
    if constexpr (kStaged) {
      for (int i = int(threadIdx.x) * 4; i < int(p.k); i += kBlock * 4) {
        *reinterpret_cast<float4*>(weight + i) = *reinterpret_cast<const float4*>(p.norm_weight + i);
        *reinterpret_cast<float4*>(bias + i) =
            p.norm_bias ? *reinterpret_cast<const float4*>(p.norm_bias + i) : make_float4(0, 0, 0, 0);
      }
    }
  }

  /// The whole block calls it. A row is the work of four warps, in one order whatever the kernel. Sums of both powers are made at
  /// once, of distances from the row's first element: as that is one of the row, the square of its distance from the mean is at
  /// most k variances, and what cancels is at most k roundings of an f32.
  template <int kBlock>
  __device__ __forceinline__ void make(const VectorProduct& p) {
    constexpr int kAtOnce = kBlock / kRowThreads, kRounds = (M + kAtOnce - 1) / kAtOnce;
    const int first = int(threadIdx.x) / kRowThreads, thread = int(threadIdx.x) % kRowThreads, packets = int(p.k) / kEach;
    const float each = 1.0f / float(p.k);
    uint4 x[kRounds][kRowPackets];
    float pivot[kRounds];
#pragma unroll
    for (int round = 0; round < kRounds; ++round) {
      const int r = first + round * kAtOnce;
      pivot[round] = 0;
      if (r >= p.m || r >= M) continue;
      const bf16* const row = static_cast<const bf16*>(p.x) + r * p.ldx;
      if (p.centred) pivot[round] = convert<float>(row[0]);
#pragma unroll
      for (int i = 0; i < kRowPackets; ++i)
        if (const int at = thread + i * kRowThreads; at < packets) x[round][i] = *reinterpret_cast<const uint4*>(row + at * kEach);
      float2 sum = {};
#pragma unroll
      for (int i = 0; i < kRowPackets; ++i)
        if (thread + i * kRowThreads < packets)
          for_each_element(x[round][i], [&](int, float value) {
            const float distance = value - pivot[round];
            sum.x += distance;
            sum.y += distance * distance;
          });
      sum = {warp_sum(sum.x), warp_sum(sum.y)};
      if (thread % kWarpLanes == 0) sums[r][thread / kWarpLanes] = sum;
    }
    __syncthreads();
#pragma unroll
    for (int round = 0; round < kRounds; ++round) {
      const int r = first + round * kAtOnce;
      if (r >= p.m || r >= M) continue;
      float2 sum = {};
#pragma unroll
      for (int w = 0; w < kRowWarps; ++w) sum.x += sums[r][w].x, sum.y += sums[r][w].y;
      const float shift = p.centred ? sum.x * each : 0.0f, mean = pivot[round] + shift;
      const float rstd = rsqrtf(fmaxf(sum.y * each - shift * shift, 0.0f) + p.eps);
      const float *const weights = kStaged ? weight : p.norm_weight, *const biases = kStaged ? bias : p.norm_bias;
#pragma unroll
      for (int i = 0; i < kRowPackets; ++i)
        if (const int at = (thread + i * kRowThreads) * kEach; at < int(p.k)) {
          const Packet<float, kEach> w = load_packet<kEach>(weights + at);
          Packet<float, kEach> b = {};
          if (biases) b = load_packet<kEach>(biases + at);
          Packet<bf16, kEach> y;
          for_each_element(x[round][i], [&](int j, float value) { y[j] = convert<bf16>((value - mean) * rstd * w[j] + b[j]); });
          store_packet(&rows[r][at], y);
        }
    }
    __syncthreads();
  }
};

/// Sums over the lanes of a warp that are kLanes apart. Each step sends half of what is left and keeps the other half: on return
/// a lane has the sums of the columns from `column` on, as many as it returns.
template <int kLanes>
__device__ __forceinline__ int sum_over_groups(float (&sums)[kEach], int& column) {
  int count = kEach;
  column = 0;
#pragma unroll
  for (int offset = kWarpLanes / 2; offset >= kLanes; offset /= 2) {
    const bool upper = threadIdx.x & unsigned(offset);
    if (count == 1) {
      sums[0] += __shfl_xor_sync(0xffffffffu, sums[0], offset);
      continue;
    }
    count /= 2;
    if (upper) column += count;
#pragma unroll
    for (int j = 0; j < kEach / 2; ++j) {
      if (j >= count) break;
      const float kept = upper ? sums[j + count] : sums[j], sent = upper ? sums[j] : sums[j + count];
      sums[j] = kept + __shfl_xor_sync(0xffffffffu, sent, offset);
    }
  }
  return count;
}

}  // namespace hedgehog::cuda

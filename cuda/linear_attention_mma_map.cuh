#pragma once
#include "cuda/linear_attention_mma_rotary.cuh"

/// Maps other than the plain one, [exp(u), exp(-u)] with u = x W, on the tensor-core path of linear attention: biases, no weights,
/// features that a softmax normalises, and those of one sign. In base 2
///
///   log phi = [u, -u] - c,   u = scale (x W + bias),   c = log2 of a token's sum of 2^u: of each sign ("hedgehog-softmax"), of both
///                                                      ("hedgehog-joint"), or 0; infinity for -u of the keys of "exp"
///
/// c is made before all else (make_log_sums). Where it is one for both signs that of queries cancels in o, and with it in their gradient;
/// it is left out. Kernels know by kGeneral whether there is any of this: for the plain map it is not compiled.
///
/// Gradients: with g = dphi phi, G the sums of g over the features of the softmax and p = 2^(+-u - c), those of log phi are g - p G.
namespace hedgehog::cuda::linear_attention_mma {

enum Of : int { kOfQueries, kOfKeys };

struct GeneralMap {
  bool general = false;       // any of what follows is there
  const bf16* bias[2] = {};   // (H, D') of queries and keys, or null
  float* log_sums = nullptr;  // (queries and keys, signs, B H, T), of keys alone if joint, or null
  std::int64_t count = 0, T = 0;  // count: B H T
  float scale = kLog2e;
  bool joint = false;  // one softmax over both signs
  bool one_sign = false;  // keys have no features of -u, and what is made of those is 0

  __device__ __forceinline__ bool normalises(Of of) const { return log_sums && !(of == kOfQueries && joint); }
  /// c of token t of batch element and head `index`.
  __device__ __forceinline__ float at(Of of, int sign, std::int64_t index, std::int64_t t) const {
    if (one_sign && sign == 1 && of == kOfKeys) return INFINITY;
    return normalises(of) ? *log_sum(of, sign, index, t) : 0.0f;
  }
  __device__ __forceinline__ float* log_sum(Of of, int sign, std::int64_t index, std::int64_t t) const {
    return log_sums + ((joint ? 0 : 2 * of) + sign) * count + index * T + t;
  }
  /// Of gradients of log phi, on the way to those of x W.
  __device__ __forceinline__ float factor() const { return scale * kLn2; }
};

/// Bias of a head, or null.
template <bool kGeneral>
__device__ __forceinline__ const bf16* bias_of(const GeneralMap& map, Of of, std::int64_t h, int D) {
  if constexpr (kGeneral) return map.bias[of] ? map.bias[of] + h * D : nullptr;
  else return nullptr;
}
/// x W + bias before the product is added: by token, a lane's columns from `column` on.
template <bool kGeneral, int kTiles>
__device__ __forceinline__ void start_by_token(float (&u)[kTiles][4], const bf16* bias, int column) {
#pragma unroll
  for (int n = 0; n < kTiles; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) u[n][e] = 0;
  if (!kGeneral || !bias) return;
  bias += column;
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
    const float pair[2] = {__bfloat162float(bias[8 * n]), __bfloat162float(bias[8 * n + 1])};
#pragma unroll
    for (int e = 0; e < 4; ++e) u[n][e] = pair[e % 2];
  }
}
/// The same by feature, a lane's rows from `row` on.
template <bool kGeneral, int kTiles>
__device__ __forceinline__ void start_by_feature(float (&u)[kTiles][4], const bf16* bias, int row) {
  const bool there = kGeneral && bias;
  const float of_rows[2] = {there ? __bfloat162float(bias[row]) : 0.0f, there ? __bfloat162float(bias[row + 8]) : 0.0f};
#pragma unroll
  for (int n = 0; n < kTiles; ++n)
#pragma unroll
    for (int p = 0; p < 4; ++p) u[n][p] = of_rows[p / 2];
}
/// The true feature of a token from its logarithm, which rounding alone, or a row that is not there, brings above 0.
__device__ __forceinline__ float true_feature(float log_phi) { return exp2_fast(fminf(log_phi, 0)); }

template <bool kGeneral>
__device__ __forceinline__ float exponent_scale(const GeneralMap& map) {
  if constexpr (kGeneral) return map.scale;
  else return kLog2e;
}

/// Adds c of a token to x, if there is one: for rows in log space.
template <bool kGeneral>
__device__ __forceinline__ float plus_norm(float x, const GeneralMap& map, Of of, int sign, std::int64_t index, std::int64_t t) {
  if constexpr (kGeneral) return x + map.at(of, sign, index, t);
  else return x;
}

/// c of the two rows of a lane.
template <bool kGeneral>
struct RowNorm {
  float scale, c[2][2];  // c: sign, half

  __device__ __forceinline__ void fetch(const GeneralMap& map, Of of, std::int64_t index, std::int64_t t0, int count, int row) {
    scale = map.scale;
#pragma unroll
    for (int sign = 0; sign < 2; ++sign)
#pragma unroll
      for (int x = 0; x < 2; ++x) c[sign][x] = row + 8 * x < count ? map.at(of, sign, index, t0 + row + 8 * x) : 0.0f;
  }
  __device__ __forceinline__ float plus(float x, int sign, int half) const { return x + c[sign][half]; }
  __device__ __forceinline__ float minus(float x, int sign, int half) const { return x - c[sign][half]; }
};
template <>
struct RowNorm<false> {
  static constexpr float scale = kLog2e;

  __device__ __forceinline__ void fetch(const GeneralMap&, Of, std::int64_t, std::int64_t, int, int) {}
  __device__ __forceinline__ float plus(float x, int, int) const { return x; }
  __device__ __forceinline__ float minus(float x, int, int) const { return x; }
};

/// c of a chunk of keys, in shared memory, and what else their features need.
template <bool kGeneral>
struct ChunkNorm {
  float scale;
  const float* c;    // (signs, chunk)
  const bf16* bias;  // of the head, in global memory, or null
};
template <>
struct ChunkNorm<false> {};
template <bool kGeneral>
__device__ __forceinline__ ChunkNorm<kGeneral> chunk_norm(const GeneralMap& map, const float* c, std::int64_t h, int D) {
  if constexpr (kGeneral) return {map.scale, c, bias_of<true>(map, kOfKeys, h, D)};
  else return {};
}

/// c that thread sign kD + token brings for a chunk of keys; 0 beyond the sequence. Finite, so that features that are not there have
/// a shift, if one that no query reaches.
template <int kD>
__device__ __forceinline__ float fetch_key_norm(const GeneralMap& map, std::int64_t index, std::int64_t t0) {
  const std::int64_t t = t0 + threadIdx.x % kD;
  return t < map.T ? fminf(map.at(kOfKeys, int(threadIdx.x) / kD, index, t), 1e30f) : 0.0f;
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

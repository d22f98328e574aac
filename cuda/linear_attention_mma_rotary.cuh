#pragma once
#include "cuda/linear_attention_mma_tile.cuh"

/// Rotary positions on the tensor-core path of linear attention: rows of queries and keys are turned where they lie in shared memory, when
/// they have arrived, and rounded as the op rotary would store them; gradients are turned back in registers. The angles come from the
/// table (T, D) of rotary_table, [cosines | sines] by token. Where there is room a chunk's rows of it are in shared memory ahead of their
/// use: too few blocks run at a time to hide loads, and registers are all taken.
namespace hedgehog::cuda::linear_attention_mma {

/// A pair of features turned by an angle, not rounded.
__device__ __forceinline__ float2 turned_pair(float a, float b, float cosine, float sine) {
  return {a * cosine - b * sine, b * cosine + a * sine};
}
/// Feature d of a vector in memory, turned and rounded as in a tile. angles: its row of the table, or null.
template <int kD>
__device__ __forceinline__ float turned_element(const bf16* x, int d, const float* angles) {
  if (!angles) return __bfloat162float(x[d]);
  const int i = d % (kD / 2);
  const float2 y = turned_pair(__bfloat162float(x[i]), __bfloat162float(x[kD / 2 + i]), angles[i], angles[kD / 2 + i]);
  return __bfloat162float(__float2bfloat16(d < kD / 2 ? y.x : y.y));
}

/// Element d of a vector, turned back.
template <int kD>
__device__ __forceinline__ float turned_back_element(const float* x, int d, const float* angles) {
  if (!angles) return x[d];
  const int i = d % (kD / 2);
  const float2 y = turned_pair(x[i], x[kD / 2 + i], angles[i], -angles[kD / 2 + i]);
  return d < kD / 2 ? y.x : y.y;
}
/// Four neighbours, 16 bytes at a time if `vector`.
__device__ __forceinline__ float4 four_at(const float* at, bool vector) {
  return vector ? *reinterpret_cast<const float4*>(at) : float4{at[0], at[1], at[2], at[3]};
}
/// Turns a warp's 16 rows of a tile when its copies have arrived; rows of zeros stay so. angles: of the first row of the tile, rows
/// `pitch` apart; those after `last` are not read. vector: they may be read 16 bytes at a time.
template <int kD>
__device__ __forceinline__ void turn_rows(bf16* tile, const float* angles, int pitch, int last, bool vector, const Lanes<kD>& l) {
  constexpr int kPieces = kD / 16;  // of half a row
  __syncwarp();
#pragma unroll
  for (int x = 0; x < kPieces / 2; ++x) {
    const int unit = l.lane + 32 * x, row = 16 * l.warp + unit / kPieces, column = unit % kPieces * 8;
    const float* const of_row = angles + min(row, last) * pitch + column;
    float4 cosines[2], sines[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      cosines[i] = four_at(of_row + 4 * i, vector);
      sines[i] = four_at(of_row + kD / 2 + 4 * i, vector);
    }
    uint4* const pieces[2] = {reinterpret_cast<uint4*>(tile + place<kD>(row, column)),
                              reinterpret_cast<uint4*>(tile + place<kD>(row, kD / 2 + column))};
    uint4 low = *pieces[0], high = *pieces[1];
    unsigned* const words[2] = {&low.x, &high.x};
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      unsigned &a = words[0][w], &b = words[1][w];
      const float4 c = cosines[w / 2], s = sines[w / 2];
      const float2 even = turned_pair(low_of(a), low_of(b), w % 2 ? c.z : c.x, w % 2 ? s.z : s.x);
      const float2 odd = turned_pair(high_of(a), high_of(b), w % 2 ? c.w : c.y, w % 2 ? s.w : s.y);
      a = pack(even.x, odd.x), b = pack(even.y, odd.y);
    }
    *pieces[0] = low, *pieces[1] = high;
  }
  __syncwarp();
}
/// Turns gradients of a warp's 16 rows back.
template <int kD>
__device__ __forceinline__ void turn_back(float (&c)[kD / 8][4], const float* angles, int pitch, int last, bool vector, const Lanes<kD>& l) {
  const auto two_at = [&](const float* at) { return vector ? *reinterpret_cast<const float2*>(at) : float2{at[0], at[1]}; };
  constexpr int kTiles = kD / 16;  // of half a row
#pragma unroll
  for (int x = 0; x < 2; ++x) {
    const float* const of_row = angles + min(l.row + 8 * x, last) * pitch + l.column;
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      const float2 cosines = two_at(of_row + 8 * n), sines = two_at(of_row + kD / 2 + 8 * n);
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float &a = c[n][2 * x + e], &b = c[n + kTiles][2 * x + e];
        const float2 y = turned_pair(a, b, e ? cosines.y : cosines.x, e ? -sines.y : -sines.x);
        a = y.x, b = y.y;
      }
    }
  }
}

/// A chunk's rows of the table behind the tiles of a kernel with room for them. Each warp brings and reads its own 16.
template <class Tiles, int kD, bool kTurned>
struct WithAngles : Tiles {
  static constexpr int kPitch = kD + 8;  // neighbouring rows in other banks
  alignas(16) float angles[kD * kPitch];

  /// Starts the copies for `count` tokens from t on; the warp is done with those before.
  __device__ __forceinline__ void load_angles(const float* rotary, std::int64_t t, std::int64_t count, const Lanes<kD>& l) {
    __syncwarp();
#pragma unroll
    for (int x = 0; x < kD / 8; ++x) {
      const int piece = l.lane + 32 * x, row = 16 * l.warp + piece / (kD / 4), column = piece % (kD / 4) * 4;
      const bool valid = row < count;
      copy_async(shared_address(angles + row * kPitch + column), rotary + (t + (valid ? row : 0)) * kD + column, valid);
    }
  }
  __device__ __forceinline__ void turn(bf16* tile, const Lanes<kD>& l) const { turn_rows<kD>(tile, angles, kPitch, kD - 1, true, l); }
  __device__ __forceinline__ void turn_back(float (&c)[kD / 8][4], const Lanes<kD>& l) const {
    linear_attention_mma::turn_back<kD>(c, angles, kPitch, kD - 1, true, l);
  }
};
template <class Tiles, int kD>
struct WithAngles<Tiles, kD, false> : Tiles {
  __device__ __forceinline__ void load_angles(const float*, std::int64_t, std::int64_t, const Lanes<kD>&) {}
  __device__ __forceinline__ void turn(bf16*, const Lanes<kD>&) const {}
  __device__ __forceinline__ void turn_back(float (&)[kD / 8][4], const Lanes<kD>&) const {}
};

}  // namespace hedgehog::cuda::linear_attention_mma

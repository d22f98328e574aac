#pragma once
#include "cuda/linear_attention_mma_state.cuh"
#include "cuda/warpgroup.cuh"

/// The running state of keys where a warpgroup makes the products (sm_90a, heads of 64). Layouts and formulas are those of
/// linear_attention_mma_state.cuh; what differs is that the state is brought to the scale of the chunk as soon as that is known.
namespace hedgehog::cuda::linear_attention_mma {

constexpr int kWide = 64, kWideTile = kWide * kWide;
constexpr unsigned kTileBytes = kWideTile * sizeof(bf16);

using cuda::own;

/// A result of 16 rows a warp, rounded, into a tile at row `first`.
__device__ __forceinline__ void store_tile(unsigned tile, int first, const float (&c)[8][4], const Lanes<kWide>& l) {
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    unsigned r[4];
    pack_operand(r, c[2 * k], c[2 * k + 1]);
    store_matrices(l.block(tile, first + 16 * l.warp, 16 * k), r[0], r[1], r[2], r[3]);
  }
}

/// Rows of a result times factor[half], where any differs from 1 in the warp.
__device__ __forceinline__ void scale_rows(float (&c)[8][4], const float (&factor)[2]) {
  if (__all_sync(0xffffffffu, factor[0] == 1 && factor[1] == 1)) return;
#pragma unroll
  for (int n = 0; n < 8; ++n)
#pragma unroll
    for (int p = 0; p < 4; ++p) c[n][p] *= factor[p / 2];
}

/// S of Sums. Its shifts and z are kept in FeatureRows, of the newest chunk.
using State = float[2][8][4];

/// A state, and the rows of features that go with it.
__device__ __forceinline__ void start(Sums<kWide>& sums, FeatureRows<kWide>& features, const KeyState<kWide>& from, const Lanes<kWide>& l) {
  sums = from.sums;
  for (int s = 0; s < 2; ++s)
    for (int x = 0; x < 2; ++x) {
      const int row = s * kWide + l.row + 8 * x;
      if (l.column == 0) features.shift[row] = from.shift[s][x], features.z[row] = from.sums.z[s][x], features.added[row] = 0;
    }
  __syncwarp();
}
/// The state before a segment.
__device__ __forceinline__ void start(Sums<kWide>& sums, FeatureRows<kWide>& features, const SumSlots& states, const Sequence& sequence,
                                      const Walk& walk, const Lanes<kWide>& l) {
  KeyState<kWide> from;
  from.start(states, sequence, walk, l);
  start(sums, features, from, l);
}

/// The state after a chunk, of which `last` is the first token of the document at its end.
__device__ __forceinline__ KeyState<kWide> state_of(const State& S, const FeatureRows<kWide>& features, int last, const Lanes<kWide>& l) {
  KeyState<kWide> state;
#pragma unroll
  for (int s = 0; s < 2; ++s) {
#pragma unroll
    for (int n = 0; n < 8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) state.sums.S[s][n][e] = S[s][n][e];
#pragma unroll
    for (int x = 0; x < 2; ++x) {
      const int row = s * kWide + l.row + 8 * x;
      state.sums.z[s][x] = features.added[row] + (last >= 0 ? 0.0f : features.z[row]);
      state.shift[s][x] = features.shift[row];
    }
  }
  return state;
}

/// Takes in a chunk of keys: their features, and the state before the chunk in their scale, to tiles for all. `last`: first token of
/// the document at the end of the chunk before, -1 where that is older. The block synchronises before (keys) and after (phi,
/// S_tile, features). kPublish: whether the state is wanted in S_tile.
template <bool kPublish, bool kGeneral>
__device__ __forceinline__ void enter(State& S, unsigned weight, unsigned keys, int count, const signed char* rows, int last, unsigned phi,
                                      unsigned S_tile, FeatureRows<kWide>& features, const Lanes<kWide>& l, const ChunkNorm<kGeneral>& norm) {
  float u[8][4];
  if constexpr (kGeneral) start_by_feature<true>(u, norm.bias, l.row);
  start_products();
  product<Side::transposed, Side::straight>(u, weight, keys, !kGeneral);
  commit_products();
  finish_products();
  own(u);
  float before[2][2], factor[2][2], after[2][2], z[2][2];
#pragma unroll
  for (int s = 0; s < 2; ++s)
#pragma unroll
    for (int x = 0; x < 2; ++x) {
      const int row = s * kWide + l.row + 8 * x;
      before[s][x] = rows[0] >= 0 ? -INFINITY : features.shift[row];
      z[s][x] = features.added[row] + (last >= 0 ? 0.0f : features.z[row]);
    }
  __syncwarp();
  const auto store = [&](int s, const unsigned(&of)[8][2]) {
#pragma unroll
    for (int k = 0; k < 4; ++k)
      store_matrices(l.block(phi, s * kWide + 16 * l.warp, 16 * k), of[2 * k][0], of[2 * k][1], of[2 * k + 1][0], of[2 * k + 1][1]);
  };
  if (count == kWide && rows[kWide - 1] < 0) features_of<true>(u, count, -1, before, after, factor, features, store, l, norm);
  else features_of<false>(u, count, rows[count - 1], before, after, factor, features, store, l, norm);
#pragma unroll
  for (int s = 0; s < 2; ++s) {
#pragma unroll
    for (int x = 0; x < 2; ++x)
      if (l.column == 0) features.z[s * kWide + l.row + 8 * x] = z[s][x] * factor[s][x];
    scale_rows(S[s], factor[s]);
    if constexpr (kPublish) store_tile(S_tile, s * kWide, S[s], l);
  }
}

/// Starts S (F, D) += features (F, tokens) x (tokens, D), where `fresh` instead of what was there; own() follows the wait.
__device__ __forceinline__ void start_add(State& S, unsigned features, unsigned x, bool fresh) {
#pragma unroll
  for (int s = 0; s < 2; ++s)
    product<Side::straight, Side::transposed>(S[s], features + s * kTileBytes, x, fresh);
}
/// The same of the tokens with keep(token) alone.
template <class Keep>
__device__ __forceinline__ void start_add(State& S, unsigned features, unsigned x, bool fresh, const Keep& keep,
                                          const Lanes<kWide>& l) {
#pragma unroll
  for (int s = 0; s < 2; ++s) {
    unsigned a[4][4];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      load_matrices(a[k], l.block(features, s * kWide + 16 * l.warp, 16 * k));
      keep_tokens(a[k], 16 * k, l.column, keep);
    }
    start_products();
    product<Side::transposed>(S[s], a, x, fresh);
    commit_products();
    finish_products();
  }
}
__device__ __forceinline__ void own(State& S) {
  own(S[0]);
  own(S[1]);
}

/// c of a chunk of keys behind the tiles of a kernel, where its map has such numbers.
template <class Tiles, bool kGeneral>
struct WithKeyNorm : Tiles {
  __device__ __forceinline__ float* norm() { return nullptr; }
};
template <class Tiles>
struct WithKeyNorm<Tiles, true> : Tiles {
  float key_norm[2 * kWide];  // (signs, chunk)
  __device__ __forceinline__ float* norm() { return key_norm; }
};

/// Zeros outside a triangle of a left operand (64, 64): the columns up to the row stay, or those from it on.
template <bool kUpToRow>
__device__ __forceinline__ void keep_triangle(unsigned (&a)[4][4], const Lanes<kWide>& l) {
  const int row = l.lane / 4, column = l.column;
  const bool low = kUpToRow ? column <= row : column >= row, high = kUpToRow ? column + 1 <= row : column + 1 >= row;
  const unsigned diagonal = (low ? 0x0000ffffu : 0u) | (high ? 0xffff0000u : 0u);
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const unsigned all = (kUpToRow ? k < l.warp : k > l.warp) ? 0xffffffffu : 0u, on = k == l.warp ? diagonal : all;
    a[k][0] &= on;
    a[k][3] &= on;
    a[k][kUpToRow ? 2 : 1] &= all;
    a[k][kUpToRow ? 1 : 2] &= k == l.warp ? 0xffffffffu : all;
  }
}
/// Zeros in a left operand (64, 64) where keep(row half, column) is false.
template <class Keep>
__device__ __forceinline__ void keep_elements(unsigned (&a)[4][4], const Keep& keep, const Lanes<kWide>& l) {
#pragma unroll
  for (int k = 0; k < 4; ++k)
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int column = 16 * k + e / 2 * 8 + l.column;
      a[k][e] &= (keep(e % 2, column) ? 0x0000ffffu : 0u) | (keep(e % 2, column + 1) ? 0xffff0000u : 0u);
    }
}

/// Zeros in the rows of a result of which keep[half] is false.
__device__ __forceinline__ void keep_rows(float (&c)[8][4], const bool (&keep)[2]) {
#pragma unroll
  for (int n = 0; n < 8; ++n)
#pragma unroll
    for (int p = 0; p < 4; ++p)
      if (!keep[p / 2]) c[n][p] = 0;
}

/// Adds the keys of a chunk to the state, those of the last token's document alone. Starts the product: the caller waits and owns.
__device__ __forceinline__ void start_leave(State& S, unsigned phi, unsigned v, int first, const Lanes<kWide>& l) {
  if (first > 0) return start_add(S, phi, v, true, [&](int token) { return token >= first; }, l);
  start_products();
  start_add(S, phi, v, first >= 0);
  commit_products();
}

}  // namespace hedgehog::cuda::linear_attention_mma

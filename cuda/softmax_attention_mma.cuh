#pragma once
#include "cuda/softmax_attention.cuh"
#include "cuda/tensor_cores.cuh"

/// Tensor-core pieces of softmax attention: tiles of bf16 vectors in shared memory, and products of them.
namespace hedgehog::cuda::softmax_attention {

constexpr int kKeyTile = 64;     // keys (or queries) that arrive at a time
constexpr int kPadding = 128;    // backward's row statistics are padded to a multiple of this

/// Rows of D bf16 in shared memory in pieces of 16 bytes. The pieces of a row are permuted: piece_key.
template <int D>
struct Tile {
  static constexpr int kPieces = D / 8, kRowBytes = 2 * D;

  static __device__ __forceinline__ unsigned offset(int row, int piece) {
    return unsigned(row * kRowBytes) + (unsigned(piece ^ piece_key<D>(row)) << 4);
  }
  /// Asks for kRows vectors `step` elements apart; those from `count` (at least 1) on become zeros.
  template <int kRows, int kThreads>
  static __device__ __forceinline__ void fetch(unsigned tile, const bf16* from, std::int64_t step, int count) {
    static_assert(kRows * kPieces % kThreads == 0);
#pragma unroll
    for (int i = 0; i < kRows * kPieces / kThreads; ++i) {
      const int n = i * kThreads + int(threadIdx.x), row = n / kPieces, piece = n % kPieces;
      const bool inside = row < count;
      copy_async(tile + offset(row, piece), from + (inside ? row * step : 0) + piece * 8, inside);
    }
  }
};

/// Where a lane reads fragments of a tile. Rows given to `at` are multiples of 16 and pieces are even, so that the permutation
/// is one exclusive or.
template <int D>
struct Reader {
  unsigned base, mix;

  __device__ __forceinline__ Reader(unsigned tile, int row, int piece)
      : base(tile + unsigned(row * Tile<D>::kRowBytes)), mix(unsigned(piece ^ piece_key<D>(row)) << 4) {}
  __device__ __forceinline__ unsigned at(int row, int piece) const {
    return base + unsigned(row * Tile<D>::kRowBytes) + (unsigned(piece << 4) ^ mix);
  }
};
/// For left operands (rows, depth) as they lie, and for right operands (depth, columns) read transposed.
template <int D>
__device__ __forceinline__ Reader<D> reader_by_row(unsigned tile) {
  const int lane = threadIdx.x % kWarp;
  return {tile, lane & 15, lane >> 4};
}
/// For right operands that lie as (columns, depth).
template <int D>
__device__ __forceinline__ Reader<D> reader_by_column(unsigned tile) {
  const int lane = threadIdx.x % kWarp;
  return {tile, (lane & 7) + ((lane >> 4) << 3), (lane >> 3) & 1};
}

/// products (16 kRowTiles, 16 kPairs) = x y^T: x are the warp's rows of a tile, y are rows of another from y_row on.
template <int D, int kRowTiles, int kPairs>
__device__ __forceinline__ void multiply_rows(float (&products)[kRowTiles][2 * kPairs][4], const Reader<D>& x, const Reader<D>& y,
                                              int y_row) {
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m)
#pragma unroll
    for (int n = 0; n < 2 * kPairs; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) products[m][n][e] = 0;
#pragma unroll
  for (int d = 0; d < D / 16; ++d) {
    unsigned a[kRowTiles][4];
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) load_matrices(a[m], x.at(16 * m, 2 * d));
#pragma unroll
    for (int n = 0; n < kPairs; ++n) {
      unsigned b[4];
      load_matrices(b, y.at(y_row + 16 * n, 2 * d));
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
        multiply_add(products[m][2 * n], a[m], b[0], b[1]);
        multiply_add(products[m][2 * n + 1], a[m], b[2], b[3]);
      }
    }
  }
}

/// sums (16 kRowTiles, D) += weights (16 kRowTiles, 16 kPairs) x, x being rows of a tile from x_row on.
template <int D, int kRowTiles, int kPairs>
__device__ __forceinline__ void add_weighted_rows(float (&sums)[kRowTiles][D / 8][4], const unsigned (&weights)[kRowTiles][kPairs][4],
                                                  const Reader<D>& x, int x_row) {
#pragma unroll
  for (int j = 0; j < kPairs; ++j)
#pragma unroll
    for (int n = 0; n < D / 16; ++n) {
      unsigned b[4];
      load_matrices_transposed(b, x.at(x_row + 16 * j, 2 * n));
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
        multiply_add(sums[m][2 * n], weights[m][j], b[0], b[1]);
        multiply_add(sums[m][2 * n + 1], weights[m][j], b[2], b[3]);
      }
    }
}

/// Writes the warp's rows to vectors that lie `step` apart, by way of shared memory (`tile` starts with the warp's rows, which
/// nobody else reads) so that whole rows are written at once, or added to what lies there. Rows from `count` on are dropped.
template <int D, int kRowTiles>
__device__ __forceinline__ void write_rows(const float (&x)[kRowTiles][D / 8][4], unsigned char* tile, bf16* to, std::int64_t step,
                                           int count, bool adds = false) {
  const int lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
  __syncwarp();  // every lane has read what the rows held
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m)
#pragma unroll
    for (int n = 0; n < D / 8; ++n)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        *reinterpret_cast<unsigned*>(tile + Tile<D>::offset(16 * m + 8 * half + g, n) + 4 * t) =
            pack(x[m][n][2 * half], x[m][n][2 * half + 1]);
  __syncwarp();
#pragma unroll
  for (int i = lane; i < 16 * kRowTiles * Tile<D>::kPieces; i += kWarp) {
    const int row = i / Tile<D>::kPieces, piece = i % Tile<D>::kPieces;
    if (row >= count) continue;
    uint4 sum = *reinterpret_cast<const uint4*>(tile + Tile<D>::offset(row, piece));
    uint4& at = *reinterpret_cast<uint4*>(to + row * step + 8 * piece);
    if (adds) {
      const uint4 before = at;
      const auto add = [](unsigned a, unsigned b) { return pack(low_of(a) + low_of(b), high_of(a) + high_of(b)); };
      sum = {add(sum.x, before.x), add(sum.y, before.y), add(sum.z, before.z), add(sum.w, before.w)};
    }
    at = sum;
  }
}

/// Whether every vector of a gradient lies where 16 bytes may be reached at once.
__device__ __forceinline__ bool lies_evenly(const HeadsTarget<bf16>& dx) {
  return !dx.wide && ((reinterpret_cast<std::uintptr_t>(dx.data) >> 1 | std::uintptr_t(dx.batch | dx.token | dx.head)) & 7) == 0;
}

/// The same for a gradient, times `scale`: straight to memory where it is f32 or lies unevenly. t0 is the token of the
/// warp's first row, `tokens` how many there are.
template <int D, int kRowTiles>
__device__ __forceinline__ void write_gradient(float (&x)[kRowTiles][D / 8][4], float scale, unsigned char* tile,
                                               const HeadsTarget<bf16>& dx, std::int64_t b, int t0, std::int64_t h, int tokens) {
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m)
#pragma unroll
    for (int n = 0; n < D / 8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) x[m][n][e] *= scale;
  if (lies_evenly(dx)) {
    // the address of a row beyond the end is never formed
    if (t0 < tokens) write_rows<D, kRowTiles>(x, tile, static_cast<bf16*>(dx.data) + dx.at(b, t0, h), dx.token, tokens - t0, dx.adds);
    return;
  }
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int token = t0 + 16 * m + 8 * half + lane / 4;
      if (token >= tokens) continue;
#pragma unroll
      for (int n = 0; n < D / 8; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e) dx.put(dx.at(b, token, h) + 8 * n + 2 * (lane % 4) + e, x[m][n][2 * half + e]);
    }
}

/// Calls f(std::integral_constant<int, D>) for the widths that suits_mma lets through.
template <class F>
void dispatch_width(std::int64_t width, F&& f) {
  if (width == 32) return f(std::integral_constant<int, 32>{});
  if (width == 64) return f(std::integral_constant<int, 64>{});
  if (width == 96) return f(std::integral_constant<int, 96>{});
  f(std::integral_constant<int, 128>{});
}

}  // namespace hedgehog::cuda::softmax_attention

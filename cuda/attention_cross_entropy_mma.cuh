#pragma once
#include "cuda/attention_cross_entropy.cuh"
#include "cuda/tensor_cores.cuh"

/// Tensor-core pieces of attention_cross_entropy: features split in two bf16 numbers, tiles of 64 tokens in shared memory, and the products
/// of two of them. All runs on sm_80 and later.
namespace hedgehog::cuda::attention_cross_entropy {

constexpr int kTokens = 64, kThreads = 128, kTiles = kTokens / 8;  // tokens of a tile; column tiles of a product of two
/// Products of features below this have lost terms that count. Where all terms are positive, by the range of numbers alone; where some are
/// not, by what rounding leaves of a sum that is small beside its terms. Their pairs are done again one by one.
constexpr float kSmallestPositive = 0x1p-96f, kSmallestSigned = 0x1p-4f;

/// Features as the products take them: phi = 2^(shift kLog2e) (high + low), high and low rounded to bf16 and at most 1. So 16 bits of each
/// count, where bf16 alone has 8: the weights' distance from the teacher's is made of differences of nearly equal numbers.
struct SplitFeatures {
  bf16 *high = nullptr, *low = nullptr;  // (B, Hq, T, width)
  float* shift = nullptr;                // (B, Hq, T) nats
  float* smallest = nullptr;             // (B, Hq, T) product that is trusted
};

/// One call of the kernels.
struct MmaCall {
  Arguments<bf16> a;
  SplitFeatures features_q, features_k;
  int width;  // F, rounded up to a multiple of 64
  int depth;  // D, likewise
  int tiles;  // of tokens
};

/// A matrix of bf16 rows in shared memory, a multiple of 64 each, in pieces of 16 bytes. The pieces of a row are permuted: piece_key.
struct Matrix {
  unsigned base, row_bytes;

  __device__ __forceinline__ unsigned at(int row, int piece) const {
    return base + unsigned(row) * row_bytes + (unsigned(piece ^ (row & 7)) << 4);
  }
  /// Asks for 64 rows of `pieces` pieces, `step` elements apart; those from `count` (at least 1) on become zeros.
  __device__ __forceinline__ void fetch(const bf16* from, std::int64_t step, int pieces, int count) const {
    for (int n = int(threadIdx.x); n < kTokens * pieces; n += kThreads) {
      const int row = n / pieces, piece = n % pieces;
      const bool inside = row < count;
      copy_async(at(row, piece), from + (inside ? row * step : 0) + piece * 8, inside);
    }
  }
  /// Left operand, rows `row` to `row` + 15, of step k.
  __device__ __forceinline__ void left(unsigned (&r)[4], int row, int k) const {
    const int lane = threadIdx.x % kWarp;
    load_matrices(r, at(row + (lane & 15), 2 * k + (lane >> 4)));
  }
  /// Right operands of 16 columns, which are rows here, of step k.
  __device__ __forceinline__ void right(unsigned (&r)[4], int row, int k) const {
    const int lane = threadIdx.x % kWarp;
    load_matrices(r, at(row + (lane & 7) + ((lane >> 4) << 3), 2 * k + (lane >> 3 & 1)));
  }
  /// Right operands of 16 columns from `piece` on, the rows from `row` on being summed over.
  __device__ __forceinline__ void right_transposed(unsigned (&r)[4], int row, int piece) const {
    const int lane = threadIdx.x % kWarp;
    load_matrices_transposed(r, at(row + (lane & 15), piece + (lane >> 4)));
  }
};

/// What a tile of tokens has in shared memory: as rows or as keys.
struct TokenNumbers {
  float shift[kTokens], smallest[kTokens];
  std::int32_t document[kTokens];  // of the token; -1: no key, or no token
  // of rows, in backward
  float weight[kTokens], largest_score[kTokens], score_factor[kTokens], largest_log_weight[kTokens], log_weight_factor[kTokens];
};
struct Tile {
  Matrix high, low, vectors;  // vectors: q or k
  TokenNumbers* numbers;

  __device__ __forceinline__ Tile(unsigned char* memory, const MmaCall& c, TokenNumbers* numbers)
      : high{shared_address(memory), unsigned(2 * c.width)}, low{high.base + kTokens * high.row_bytes, high.row_bytes},
        vectors{low.base + kTokens * high.row_bytes, unsigned(2 * c.depth)}, numbers(numbers) {}
  static std::size_t bytes(const MmaCall& c) { return std::size_t(kTokens) * 2 * (2 * c.width + c.depth); }

  /// Asks for tokens t0 on of a batch element and head.
  template <bool kKeys, bool kBackward>
  __device__ __forceinline__ void fetch(const MmaCall& c, std::int64_t b, std::int64_t h, int t0) const {
    const Arguments<bf16>& a = c.a;
    const int T = int(a.s.T), count = min(T - t0, kTokens);
    const SplitFeatures& f = kKeys ? c.features_k : c.features_q;
    const std::int64_t at = (b * a.s.Hq + h) * T + t0;
    high.fetch(f.high + at * c.width, c.width, c.width / 8, count);
    low.fetch(f.low + at * c.width, c.width, c.width / 8, count);
    if constexpr (kKeys) vectors.fetch(a.k.at(b, t0, h / (a.s.Hq / a.s.Hkv)), a.k.token, int(a.s.D) / 8, count);
    else vectors.fetch(a.q.at(b, t0, h), a.q.token, int(a.s.D) / 8, count);
    commit_copies();
    const int i = int(threadIdx.x);
    if (i >= kTokens) return;
    const bool there = i < count;
    numbers->shift[i] = there ? f.shift[at + i] : 0, numbers->smallest[i] = there ? f.smallest[at + i] : 0;
    const std::int64_t token = b * T + t0 + i;
    numbers->document[i] = !there || (kKeys && !is_key(a, b, t0 + i)) ? -1 : a.document_start ? a.document_start[token] : 0;
    if constexpr (!kKeys && kBackward) {
      const std::int64_t row = token * a.s.Hq + h;
      numbers->weight[i] = there ? a.dy[row] : 0;
      numbers->largest_score[i] = there ? a.saved[0][row] : 0, numbers->score_factor[i] = there ? 1 / a.saved[1][row] : 0;
      numbers->largest_log_weight[i] = there ? a.saved[2][row] : 0, numbers->log_weight_factor[i] = there ? 1 / a.saved[3][row] : 0;
    }
  }
};

/// Scores and products of features of the warp's 16 tokens of one tile with all of another.
struct Products {
  float scores[kTiles][4], features[kTiles][4];

  __device__ __forceinline__ Products(const MmaCall& c, const Tile& own, const Tile& other) {
    const int row = int(threadIdx.x / kWarp) * 16;
#pragma unroll
    for (int n = 0; n < kTiles; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) scores[n][e] = features[n][e] = 0;
#pragma unroll 1
    for (int k = 0; k < int(c.a.s.D) / 16; ++k) {
      unsigned x[4];
      own.vectors.left(x, row, k);
#pragma unroll
      for (int n = 0; n < kTiles; n += 2) {
        unsigned y[4];
        other.vectors.right(y, 8 * n, k);
        multiply_add(scores[n], x, y[0], y[1]);
        multiply_add(scores[n + 1], x, y[2], y[3]);
      }
    }
#pragma unroll 1
    for (int k = 0; k < c.width / 16; ++k) {
      unsigned high[4], low[4];
      own.high.left(high, row, k);
      own.low.left(low, row, k);
#pragma unroll
      for (int n = 0; n < kTiles; n += 2) {
        unsigned y[4], z[4];
        other.high.right(y, 8 * n, k);
        other.low.right(z, 8 * n, k);
#pragma unroll
        for (int x = 0; x < 2; ++x) {
          multiply_add(features[n + x], high, z[2 * x], z[2 * x + 1]);
          multiply_add(features[n + x], low, y[2 * x], y[2 * x + 1]);
          multiply_add(features[n + x], high, y[2 * x], y[2 * x + 1]);
        }
      }
    }
  }
};

/// Whether no token of the tile at t0 shares a document with one of the tile at s0: documents are runs of tokens.
__device__ __forceinline__ bool apart(const Arguments<bf16>& a, std::int64_t b, int t0, int s0) {
  if (!a.document_start || t0 == s0) return false;
  const int late = max(t0, s0), early = min(t0, s0);
  return a.document_start[b * a.s.T + late] >= early + kTokens;
}

/// Calls each(e, i, j, n) for the elements of a product: i is the token of the own tile, j that of the other, of 64 each.
template <class Each>
__device__ __forceinline__ void for_pairs(const Each& each) {
  const int lane = threadIdx.x % kWarp, row = int(threadIdx.x / kWarp) * 16 + lane / 4, column = lane % 4 * 2;
#pragma unroll
  for (int n = 0; n < kTiles; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) each(n, e, row + e / 2 * 8, 8 * n + column + e % 2);
}

}  // namespace hedgehog::cuda::attention_cross_entropy

#pragma once
#include "cuda/linear_attention_mma_backward.cuh"

/// What the kernels for large heads share. A block has kD / 16 warps and one chunk of kD tokens of one batch element and head.
///
/// With u = log2(e) x W, G = dy, delta_i = -G_i . o_i, den the denominator's logarithm, and shifts `top` (largest +-u of the chunk's
/// keys), `before` and `after` (largest of the document's keys before the chunk, and with the chunk), all by feature:
///   keys     2^(+-u - top) for the queries of the chunk,     2^(+-u - after) for those of later chunks
///   queries  2^(+-u + top - m) for the keys of the chunk,    2^(+-u + before - m) for the state before it
/// m is the largest exponent of the row, in backward `den`. Features before the chunk never see what later keys do to the scale, so
/// that rows of a small denominator are rare ones within their chunk alone; cuda/linear_attention_large_rare.cu redoes those.
namespace hedgehog::cuda::linear_attention_large {

using linear_attention_mma::document_row;
using linear_attention_mma::KeyHeads;
using linear_attention_mma::kLn2;
using linear_attention_mma::kSmallest;
using linear_attention_mma::kSmallestLog;
using linear_attention_mma::launch;
using linear_attention_mma::multiply;
using linear_attention_mma::multiply_step;
using linear_attention_mma::pair_at;
using linear_attention_mma::Sequence;
using linear_attention_mma::shared_bytes;
using linear_attention_mma::store_rows;

/// Sums at chunks: S and z before each, in the scale `before`, or R and y after each, in the scale `after`.
struct ChunkSums {
  bf16* S;   // (B H chunks, F, D)
  float* z;  // (B H chunks, F)
};
/// Base 2 exponents, (B H chunks, F).
struct Shifts {
  float *top, *local;  // largest of the chunk's keys, and of those of its last token's document
  float* after;        // of that document so far
};

struct Arguments {
  Sequence s;
  ChunkSums sums;
  Shifts shifts;
  unsigned short* redo;  // (B H chunks, D / 16) bits of the rare rows
  int* any_redo;         // 1 if there is a rare row at all
  float* saved;          // (B, T, H) natural logarithm of the denominator; forward: or null
  HeadsTarget<bf16> o;   // forward
  float* no_state;       // the second output, one 0, or null; forward
  // backward
  Heads<bf16> y, dy;
  HeadsTarget<bf16> dv;
  HeadsTarget<bf16> du;  // (B, T, H, D') in the workspace
  float* delta;          // (B H, T)
};

/// The products with a weight that follow du.
struct ProductArguments {
  KeyHeads x;            // q, or k
  const bf16* weight;    // (H, D, D')
  HeadsTarget<bf16> du;  // (B, T, H, D')
  HeadsTarget<bf16> dx;  // by query head
  float* dweight;        // (H, ranges, D, D') parts, or null
  std::int64_t T;
  int H;
  bool vector;
  // how tokens are shared out: made by multiply_weight
  int element_tiles, tiles;  // of one batch element, of all
  int ranges, range_tiles;
};

/// Sums of each chunk alone: keys (S, z and shifts), or queries (R and y, each in the slot of the chunk before it).
void sum_chunks(const Arguments& p, bool queries, std::int64_t batch, int D);
/// From those to what lies before each chunk, or after it.
void scan_chunks(const Arguments& p, bool queries, std::int64_t batch, int D);
void attend(const Arguments& p, std::int64_t batch, int D);
/// du of queries, delta and the rare rows; du of keys and dv.
void backward_queries(const Arguments& p, std::int64_t batch, int D);
void backward_keys(const Arguments& p, std::int64_t batch, int D);
/// Bytes of shared memory of those two, which need the most.
std::size_t shared_memory_of(std::int64_t D);
/// Returns how many parts of dweight a head has; there are no more of them than chunks.
int multiply_weight(ProductArguments p, std::int64_t batch, int D);
/// Rows in log space: o and its denominator anew; what they add to du of queries; what they add to du of keys and to dv.
enum class Rare : int { forward, queries, keys };
void add_rare_rows(const Arguments& p, Rare what, std::int64_t batch, int D);

/// The chunk of a block.
struct Chunk {
  std::int64_t slot, index, b, h, t0;  // slot = index chunks + chunk, index = b H + h
  int chunk, count;                    // count: tokens

  __device__ __forceinline__ Chunk(const Sequence& s, int tokens, unsigned of = blockIdx.x) : slot(of) {
    index = of / unsigned(s.chunks), chunk = int(of % unsigned(s.chunks));
    b = index / s.H, h = index % s.H, t0 = std::int64_t(chunk) * tokens;
    count = s.T - t0 < tokens ? int(s.T - t0) : tokens;
  }
};

/// Places in tiles in which the same piece of 8 rows lies in 8 different banks: rows are 8 elements longer than they need be, or, where
/// room is short, their pieces are swizzled as in Lanes.
/// `warp` is the one of the warp's 16 rows: those of two warps that share a scheduler have about as many tokens before them as any
/// other two.
template <int kD>
struct LargeLanes : linear_attention_mma::Lanes<kD> {
  static constexpr bool kSwizzled = kD == 96;
  static constexpr int kPitch = kSwizzled ? kD : kD + 8, kTile = kD * kPitch;

  __device__ __forceinline__ LargeLanes() {
    if (kD == 128 && this->warp >= 4) this->warp = 11 - this->warp;
    this->row = 16 * this->warp + this->lane / 4;
    const int crossed = (this->lane >> 4 << 3) + (this->lane & 7);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      straight_[i] = place(this->lane & 15, 16 * i + (this->lane >> 4 << 3));
      crossed_[i] = place(crossed, 16 * i + (this->lane & 8));
    }
  }
  /// Element (row, column), the first of a piece.
  static __device__ __forceinline__ int place(int row, int column) {
    if constexpr (kSwizzled) return row * kPitch + (column & ~31) + (column & 31 ^ linear_attention_mma::swizzle<kD>(row));
    else return row * kPitch + column;
  }
  /// As those of Lanes.
  __device__ __forceinline__ void a(unsigned (&r)[4], const bf16* tile, int m, int k) const {
    load_matrices(r, address(tile, m, k, straight_));
  }
  __device__ __forceinline__ void a_transposed(unsigned (&r)[4], const bf16* tile, int m, int k) const {
    load_matrices_transposed(r, address(tile, k, m, crossed_));
  }
  __device__ __forceinline__ void b(unsigned (&r)[4], const bf16* tile, int n, int k) const {
    load_matrices(r, address(tile, n, k, crossed_));
  }
  __device__ __forceinline__ void b_transposed(unsigned (&r)[4], const bf16* tile, int n, int k) const {
    load_matrices_transposed(r, address(tile, k, n, straight_));
  }

 private:
  int straight_[2], crossed_[2];  // where rows are swizzled, of odd steps of 16 columns, too

  /// Block (row, column) of 16 x 16.
  __device__ __forceinline__ unsigned address(const bf16* tile, int row, int column, const int (&of_lane)[2]) const {
    if constexpr (kSwizzled) return shared_address(tile + row * kPitch + (column & ~31) + (column >> 4 & 1 ? of_lane[1] : of_lane[0]));
    else return shared_address(tile + row * kPitch + column + of_lane[0]);
  }
};

/// The first `count` of kRows rows, `step` elements apart, into a tile, and zeros after them.
template <int kD, int kRows = kD>
__device__ __forceinline__ void load_tile(bf16* tile, const bf16* from, std::int64_t step, int count, bool vector,
                                          const LargeLanes<kD>& l) {
  constexpr int kPieces = kD / 8, kEach = kRows / 16;
  static_assert(2 * kD == 16 * kPieces);
  const int row = int(threadIdx.x) / kPieces, column = int(threadIdx.x) % kPieces * 8;
  if (vector) {
    // 16 rows at a time; the source of a row past the end is not read
    const unsigned to = shared_address(tile + l.place(row, column));
    const bf16* source = from + row * step + column;
#pragma unroll
    for (int x = 0; x < kEach; ++x, source += 16 * step)
      copy_async(to + unsigned(sizeof(bf16)) * 16 * x * l.kPitch, source, row + 16 * x < count);
  } else {
#pragma unroll 1
    for (int i = row; i < kRows; i += 16)
      for (int e = 0; e < 8; ++e)
        tile[l.place(i, column) + e] = i < count ? from[i * step + column + e] : __float2bfloat16(0.0f);
  }
}
/// S or R of a slot into two tiles.
template <int kD>
__device__ __forceinline__ void load_sums(bf16* tiles, const ChunkSums& from, std::int64_t slot, const LargeLanes<kD>& l) {
  const bf16* const S = from.S + slot * 2 * kD * kD;
  load_tile<kD>(tiles, S, kD, kD, true, l);
  load_tile<kD>(tiles + LargeLanes<kD>::kTile, S + kD * kD, kD, kD, true, l);
}

/// u of a warp's rows.
template <int kD>
__device__ __forceinline__ void exponents(float (&u)[kD / 8][4], const bf16* x, const bf16* weight, const LargeLanes<kD>& l) {
#pragma unroll
  for (int n = 0; n < kD / 8; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) u[n][e] = 0;
#pragma unroll 2
  for (int k = 0; k < kD; k += 16) {
    unsigned a[4];
    l.a(a, x, 16 * l.warp, k);
    multiply_step(u, a, [&](unsigned(&b)[4], int n) { l.b_transposed(b, weight, n, k); });
  }
#pragma unroll
  for (int n = 0; n < kD / 8; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) u[n][e] *= kLog2e;
}

/// The number whose addition a compiler leaves out.
constexpr float kNothing = -0.0f;
/// One feature: keys are in the scale of `shift`, queries undo it. of_row is minus infinity for a row that has none.
template <bool kKeys>
__device__ __forceinline__ float feature(float u, bool minus, float shift, float of_row) {
  return exp2_fast((minus ? -u : u) + (kKeys ? -shift : shift) + of_row);
}
/// Features 16 step to 16 step + 16 of a warp's rows, as an operand.
template <bool kKeys, int kD>
__device__ __forceinline__ void feature_operand(unsigned (&a)[4], const float (&u)[kD / 8][4], int step, const float* shift,
                                                const float (&of_rows)[2], const LargeLanes<kD>& l) {
  const bool minus = step >= kD / 16;
  const int first = 2 * (step % (kD / 16));
  float phi[2][4];
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    const float2 of_columns = pair_at(shift, 16 * step + 8 * n + l.column);
#pragma unroll
    for (int e = 0; e < 4; ++e) phi[n][e] = feature<kKeys>(u[first + n][e], minus, e % 2 ? of_columns.y : of_columns.x, of_rows[e / 2]);
  }
  pack_operand(a, phi[0], phi[1]);
}
/// All features of a warp's rows, as operands.
template <bool kKeys, int kD>
__device__ __forceinline__ void feature_operands(unsigned (&a)[kD / 8][4], const float (&u)[kD / 8][4], const float* shift,
                                                 const float (&of_rows)[2], const LargeLanes<kD>& l) {
#pragma unroll
  for (int step = 0; step < kD / 8; ++step) feature_operand<kKeys, kD>(a[step], u, step, shift, of_rows, l);
}
/// c (16, 16) = a b^T for rows `row` to row + 16 of tiles b (row, k), kSteps / kD * 16 of them side by side. Two sums each, so that fewer
/// products wait for one another.
template <int kD, int kSteps>
__device__ __forceinline__ void multiply_block(float (&c)[2][4], const unsigned (&a)[kSteps][4], const bf16* tiles, int row,
                                               const LargeLanes<kD>& l) {
  float sums[2][2][4] = {};
#pragma unroll
  for (int k = 0; k < kSteps; ++k) {
    unsigned b[4];
    l.b(b, tiles + k / (kD / 16) * LargeLanes<kD>::kTile, row, 16 * (k % (kD / 16)));
    multiply_add(sums[k % 2][0], a[k], b[0], b[1]);
    multiply_add(sums[k % 2][1], a[k], b[2], b[3]);
  }
#pragma unroll
  for (int n = 0; n < 2; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) c[n][e] = sums[0][n][e] + sums[1][n][e];
}
/// Puts operand `a` where `all` has number i, which is not known in advance.
template <int kCount>
__device__ __forceinline__ void keep_operand(unsigned (&all)[kCount][4], int i, const unsigned (&a)[4]) {
#pragma unroll
  for (int j = 0; j < kCount; ++j)
#pragma unroll
    for (int e = 0; e < 4; ++e) all[j][e] = j == i ? a[e] : all[j][e];
}
/// All features of a warp's rows into two tiles (token, feature), one a sign.
template <bool kKeys, int kD>
__device__ __forceinline__ void store_features(bf16* tiles, const float (&u)[kD / 8][4], const float* shift, const float (&of_rows)[2],
                                               const LargeLanes<kD>& l) {
  using L = LargeLanes<kD>;
#pragma unroll
  for (int step = 0; step < kD / 8; ++step) {
    unsigned a[4];
    feature_operand<kKeys, kD>(a, u, step, shift, of_rows, l);
    bf16* const to = tiles + (step >= kD / 16 ? L::kTile : 0) + l.column;
#pragma unroll
    for (int e = 0; e < 4; ++e)
      *reinterpret_cast<unsigned*>(to + L::place(l.row, 16 * (step % (kD / 16)) + e / 2 * 8) + e % 2 * 8 * L::kPitch) = a[e];
  }
}

/// Those of keys; zeros past the end.
template <int kD>
__device__ __forceinline__ void store_key_features(bf16* tiles, const float (&u)[kD / 8][4], const float* shift, int count,
                                                   const LargeLanes<kD>& l) {
  if (count == kD) {
    store_features<true, kD>(tiles, u, shift, {kNothing, kNothing}, l);
  } else {
    store_features<true, kD>(tiles, u, shift, {l.row < count ? 0.0f : -INFINITY, l.row + 8 < count ? 0.0f : -INFINITY}, l);
  }
}

/// Leaves the bits of a warp's rare rows, each in some of the lanes that have the row.
template <int kD>
__device__ __forceinline__ void mark_rare_rows(const Arguments& p, const Chunk& at, unsigned bits, const LargeLanes<kD>& l) {
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) bits |= __shfl_xor_sync(0xffffffffu, bits, offset);
  if (l.lane != 0) return;
  p.redo[at.slot * (kD / 16) + l.warp] = static_cast<unsigned short>(bits);
  if (bits) *p.any_redo = 1;
}

/// Numbers of a block's chunk in shared memory.
template <int kD>
struct ChunkNumbers {
  float top[2 * kD], before[2 * kD], after[2 * kD];
  float z[2 * kD];  // of the sums
  signed char rows[kD];

  /// Of one feature and perhaps one row, which a thread has: fetched ahead of other loads, kept when those are on their way.
  struct Fetched {
    float top, before, after, z;
    signed char row;
  };
  static __device__ __forceinline__ Fetched fetch(const Arguments& p, const Chunk& at) {
    const int thread = int(threadIdx.x);
    const std::int64_t place = at.slot * 2 * kD + thread;
    const bool continues = at.chunk > 0 && document_row(p.s, at.b, at.t0, 0) < 0;
    return {p.shifts.top[place], continues ? p.shifts.after[place - 2 * kD] : -INFINITY, p.shifts.after[place], p.sums.z[place],
            document_row(p.s, at.b, at.t0, thread % kD)};
  }
  /// The block synchronises after it.
  __device__ __forceinline__ void keep(const Fetched& x) {
    const int thread = int(threadIdx.x);
    top[thread] = x.top, before[thread] = x.before, after[thread] = x.after, z[thread] = x.z;
    if (thread < kD) rows[thread] = x.row;
  }
};

}  // namespace hedgehog::cuda::linear_attention_large

#pragma once
#include "cuda/early_launch.cuh"
#include "cuda/packet.cuh"
#include "cuda/tensor_cores.cuh"

/// Tiles and fragments of the tensor-core path of linear attention.
///
/// A block has kD / 16 warps and walks chunks of kD tokens, kD = D = Dv = D', F = 2 kD. All tiles have rows of kD elements.
/// Exponents are in base 2 throughout: log phi = [u, -u] with u = log2(e) x W for the plain map, else as in linear_attention_mma_map.cuh.
namespace hedgehog::cuda::linear_attention_mma {

constexpr float kLn2 = 0.6931471805599453f;
/// Rows whose denominator is below 2^-60 are redone in log space.
constexpr float kSmallestLog = -60, kSmallest = 1.0f / float(1ull << 60);

/// The block's dynamic shared memory.
__device__ __forceinline__ unsigned char* shared_bytes() {
  extern __shared__ __align__(1024) unsigned char bytes[];
  return bytes;
}

/// Early: the kernel calls wait_for_kernels.
template <class Arguments>
void launch(void (*kernel)(Arguments), std::int64_t blocks, int threads, std::size_t shared, const Arguments& arguments) {
  if (shared > 0) allow_shared_memory(reinterpret_cast<const void*>(kernel), shared);
  launch_early("linear_attention", kernel, unsigned(blocks), unsigned(threads), shared, arguments);
}

/// piece_key in elements.
template <int kD>
__device__ __forceinline__ int swizzle(int row) {
  return piece_key<kD>(row) << 3;
}
/// Element (row, column) of a tile.
template <int kD>
__device__ __forceinline__ int place(int row, int column) {
  return row * kD + ((column & ~7) ^ swizzle<kD>(row)) + (column & 7);
}

/// A lane's place in its warp's fragments, and loads of operands. Offsets m, n, k are multiples of 16.
template <int kD>
struct Lanes {
  int warp, lane, row, column;  // row: 16 warp + lane / 4, of the first half of a fragment; column: lane % 4 * 2

  __device__ Lanes() : warp(threadIdx.x / 32), lane(threadIdx.x % 32) {
    row = 16 * warp + lane / 4;
    column = lane % 4 * 2;
    straight_ = (lane & 15) * kD + ((lane >> 4 << 3) ^ swizzle<kD>(lane & 15));
    const int r = (lane >> 4 << 3) + (lane & 7);
    crossed_ = r * kD + ((lane & 8) ^ swizzle<kD>(r));
  }
  /// a (16, 16) from a tile (m, k), or from a tile (k, m).
  __device__ __forceinline__ void a(unsigned (&r)[4], const bf16* tile, int m, int k) const {
    load_matrices(r, shared_address(tile + m * kD + (straight_ ^ k)));
  }
  __device__ __forceinline__ void a_transposed(unsigned (&r)[4], const bf16* tile, int m, int k) const {
    load_matrices_transposed(r, shared_address(tile + k * kD + (crossed_ ^ m)));
  }
  /// b (16, 16), two operands of 8 columns: from a tile (n, k), or from a tile (k, n).
  __device__ __forceinline__ void b(unsigned (&r)[4], const bf16* tile, int n, int k) const {
    load_matrices(r, shared_address(tile + n * kD + (crossed_ ^ k)));
  }
  __device__ __forceinline__ void b_transposed(unsigned (&r)[4], const bf16* tile, int n, int k) const {
    load_matrices_transposed(r, shared_address(tile + k * kD + (straight_ ^ n)));
  }
  /// Address of the row of a 16 x 16 block that this lane gives for four 8 x 8 matrices: (0, 0), (8, 0), (0, 8), (8, 8).
  __device__ __forceinline__ unsigned block(unsigned tile, int m, int k) const {
    return tile + unsigned(sizeof(bf16)) * (m * kD + (straight_ ^ k));
  }

 private:
  int straight_, crossed_;
};

/// c (16, kN) += a b over one step of 16; load_b(b, n) gives the operand of columns n to n + 16.
template <int kTiles, class B>
__device__ __forceinline__ void multiply_step(float (&c)[kTiles][4], const unsigned (&a)[4], const B& load_b) {
#pragma unroll
  for (int n = 0; n < kTiles; n += 2) {
    unsigned b[4];
    load_b(b, 8 * n);
    multiply_add(c[n], a, b[0], b[1]);
    multiply_add(c[n + 1], a, b[2], b[3]);
  }
}
/// c (16, 8 kTiles) += a (16, kK) b; load_a(a, k) and load_b(b, n, k) load operands.
template <int kK, int kTiles, class A, class B>
__device__ __forceinline__ void multiply(float (&c)[kTiles][4], const A& load_a, const B& load_b) {
#pragma unroll
  for (int k = 0; k < kK; k += 16) {
    unsigned a[4];
    load_a(a, k);
    multiply_step(c, a, [&](unsigned(&b)[4], int n) { load_b(b, n, k); });
  }
}
__device__ __forceinline__ float2 pair_at(const float* row, int column) { return *reinterpret_cast<const float2*>(row + column); }

/// The first `count` of kD rows, `step` elements apart, into a tile, and zeros after them. Each warp brings its own 16 rows:
/// those may be used or overwritten by it without the other warps.
template <int kD>
__device__ __forceinline__ void load_rows(bf16* tile, const bf16* from, std::int64_t step, std::int64_t count, bool vector,
                                          const Lanes<kD>& l) {
  constexpr int kPieces = kD / 8;
#pragma unroll
  for (int x = 0; x < kPieces / 2; ++x) {
    const int piece = l.lane + 32 * x, row = 16 * l.warp + piece / kPieces, column = piece % kPieces * 8;
    const bool valid = row < count;
    const bf16* source = from + (valid ? row : 0) * step + column;
    bf16* to = tile + place<kD>(row, column);
    if (vector) {
      copy_async(shared_address(to), source, valid);
    } else {
      for (int e = 0; e < 8; ++e) to[e] = valid ? source[e] : __float2bfloat16(0.0f);
    }
  }
}

/// The map (D, D') of a head into a tile. kGeneral: without maps it is the identity, with which x W is x to the bit.
template <int kD, bool kGeneral>
__device__ __forceinline__ void load_weight(bf16* tile, const bf16* weights, std::int64_t h, bool vector, const Lanes<kD>& l) {
  if constexpr (kGeneral) {
    for (int i = l.lane; !weights && i < 16 * kD; i += 32) {
      const int row = 16 * l.warp + i / kD, column = i % kD;
      tile[place<kD>(row, column)] = __float2bfloat16(row == column ? 1.0f : 0.0f);
    }
    if (!weights) return;
  }
  load_rows<kD>(tile, weights + h * kD * kD, kD, kD, vector, l);
}

/// Stores a warp's 16 rows of a product's result, those under `count`. The 4 lanes of a row swap their pairs of 4 column
/// tiles, so that each has 16 bytes of one tile.
template <int kD, int kTiles>
__device__ __forceinline__ void store_rows(const HeadsTarget<bf16>& to, std::int64_t at, const float (&c)[kTiles][4], std::int64_t count,
                                           const Lanes<kD>& l) {
  if (!to.data) return;
  if (!to.vector) {
#pragma unroll
    for (int n = 0; n < kTiles; ++n)
#pragma unroll
      for (int p = 0; p < 4; ++p) {
        const int row = l.row + p / 2 * 8;
        if (row < count) to.put(at + row * to.token + 8 * n + l.column + p % 2, c[n][p]);
      }
    return;
  }
  // masks instead of conditions, of which a compiler makes branches that lanes go apart through, shuffles and all
  const unsigned odd = 0u - (l.lane & 1u), upper = 0u - (l.lane >> 1 & 1u);
  const auto choose = [](unsigned mask, unsigned set, unsigned clear) { return clear ^ ((set ^ clear) & mask); };
  // lanes under the mask give `first` for the other's `second`
  const auto swap = [&](unsigned mask, unsigned& first, unsigned& second, int other) {
    const unsigned got = __shfl_xor_sync(0xffffffffu, choose(mask, first, second), other);
    first = choose(mask, got, first), second = choose(mask, second, got);
  };
#pragma unroll
  for (int x = 0; x < 2; ++x)
#pragma unroll
    for (int n = 0; n < kTiles; n += 4) {
      unsigned r[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) r[i] = pack(c[n + i][2 * x], c[n + i][2 * x + 1]);
      // even lanes keep even tiles, then the lower two lanes the lower two
      swap(odd, r[0], r[1], 1), swap(odd, r[2], r[3], 1);
      swap(upper, r[0], r[2], 2), swap(upper, r[1], r[3], 2);
      const int row = l.row + 8 * x;
      if (row < count)
        *reinterpret_cast<uint4*>(static_cast<bf16*>(to.data) + at + row * to.token + 8 * (n + l.lane % 4)) =
            uint4{r[0], r[1], r[2], r[3]};
    }
}

}  // namespace hedgehog::cuda::linear_attention_mma

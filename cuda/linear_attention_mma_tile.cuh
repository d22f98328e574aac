#pragma once
#include "cuda/linear_attention_mma_ptx.cuh"

/// Tiles, fragments and running sums of the tensor-core path of linear attention.
///
/// A block has kD / 16 warps and walks chunks of kD tokens, kD = D = Dv = D', F = 2 kD. All tiles have rows of kD elements.
/// Exponents are in base 2 throughout: log phi = [u, -u] with u = log2(e) x W.
namespace hedgehog::cuda::linear_attention_mma {

constexpr float kLog2e = 1.4426950408889634f, kLn2 = 0.6931471805599453f;
/// Rows whose denominator is below 2^-60 are redone in log space.
constexpr float kSmallestLog = -60, kSmallest = 1.0f / float(1ull << 60);

/// Element (row, column) of a tile: pieces of 8 elements are swapped so that the 8 rows of a matrix lie in different banks.
template <int kD>
__device__ __forceinline__ int swizzle(int row) {
  static_assert(kD == 32 || kD == 64);
  return (kD == 64 ? row & 7 : row >> 1 & 3) << 3;
}
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
    load_matrices(r, tile + m * kD + (straight_ ^ k));
  }
  __device__ __forceinline__ void a_transposed(unsigned (&r)[4], const bf16* tile, int m, int k) const {
    load_matrices_transposed(r, tile + k * kD + (crossed_ ^ m));
  }
  /// b (16, 16), two operands of 8 columns: from a tile (n, k), or from a tile (k, n).
  __device__ __forceinline__ void b(unsigned (&r)[4], const bf16* tile, int n, int k) const {
    load_matrices(r, tile + n * kD + (crossed_ ^ k));
  }
  __device__ __forceinline__ void b_transposed(unsigned (&r)[4], const bf16* tile, int n, int k) const {
    load_matrices_transposed(r, tile + k * kD + (straight_ ^ n));
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
/// The operand of columns 16 k to 16 k + 16 of a product's result.
template <int kTiles>
__device__ __forceinline__ void pack_operand(unsigned (&a)[4], const float (&c)[kTiles][4], int k) {
  a[0] = pack(c[2 * k][0], c[2 * k][1]);
  a[1] = pack(c[2 * k][2], c[2 * k][3]);
  a[2] = pack(c[2 * k + 1][0], c[2 * k + 1][1]);
  a[3] = pack(c[2 * k + 1][2], c[2 * k + 1][3]);
}

/// Over the 4 lanes that share the rows of a fragment.
__device__ __forceinline__ float row_sum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}
__device__ __forceinline__ float row_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
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
      copy_async(to, source, valid);
    } else {
      for (int e = 0; e < 8; ++e) to[e] = valid ? source[e] : __float2bfloat16(0.0f);
    }
  }
}

/// Rows that a kernel produces: an output or a gradient.
struct Target {
  void* data = nullptr;
  std::int64_t batch = 0, token = 0, head = 0;  // elements from one to the next
  bool f32 = false, adds = false, vector = false;  // vector: bf16 that is written, 16 bytes at a time

  __device__ __forceinline__ void store(std::int64_t at, float x) const {
    if (f32) hedgehog::cuda::store(static_cast<float*>(data) + at, x, adds);
    else hedgehog::cuda::store(static_cast<bf16*>(data) + at, x, adds);
  }
};

/// Stores a warp's 16 rows of a product's result, those under `count`. The 4 lanes of a row swap their pairs of 4 column
/// tiles, so that each has 16 bytes of one tile.
template <int kD>
__device__ __forceinline__ void store_rows(const Target& to, std::int64_t at, const float (&c)[kD / 8][4], std::int64_t count,
                                           const Lanes<kD>& l) {
  if (!to.data) return;
  if (!to.vector) {
#pragma unroll
    for (int n = 0; n < kD / 8; ++n)
#pragma unroll
      for (int p = 0; p < 4; ++p) {
        const int row = l.row + p / 2 * 8;
        if (row < count) to.store(at + row * to.token + 8 * n + l.column + p % 2, c[n][p]);
      }
    return;
  }
  const bool odd = l.lane & 1, upper = l.lane & 2;
  auto swap = [](unsigned& keep0, unsigned& keep1, unsigned give0, unsigned give1, int other) {
    keep0 = __shfl_xor_sync(0xffffffffu, give0, other);
    keep1 = __shfl_xor_sync(0xffffffffu, give1, other);
  };
#pragma unroll
  for (int x = 0; x < 2; ++x)
#pragma unroll
    for (int n = 0; n < kD / 8; n += 4) {
      unsigned r[4], s0, s1;
#pragma unroll
      for (int i = 0; i < 4; ++i) r[i] = pack(c[n + i][2 * x], c[n + i][2 * x + 1]);
      // even lanes keep even tiles, then the lower two lanes the lower two
      swap(s0, s1, odd ? r[0] : r[1], odd ? r[2] : r[3], 1);
      if (odd) r[0] = s0, r[2] = s1;
      else r[1] = s0, r[3] = s1;
      swap(s0, s1, upper ? r[0] : r[2], upper ? r[1] : r[3], 2);
      if (upper) r[0] = s0, r[1] = s1;
      else r[2] = s0, r[3] = s1;
      const int row = l.row + 8 * x;
      if (row < count)
        *reinterpret_cast<uint4*>(static_cast<bf16*>(to.data) + at + row * to.token + 8 * (n + l.lane % 4)) = uint4{r[0], r[1], r[2], r[3]};
    }
}

/// Addresses of one call, shared by its kernels.
struct Sequence {
  Heads<bf16> q, k, v;
  const bf16 *weight_q, *weight_k;   // (H, D, D')
  const std::int32_t* document_start;  // (B, T) or null
  std::int64_t T;
  int H;
  bool vector;   // rows of q, k, v, the weights and dy may be read 16 bytes at a time
  int chunks;    // of the sequence
  int segments;  // that blocks walk side by side
  int segment_chunks;
};

/// The part of a sequence that a block walks.
struct Walk {
  std::int64_t b, h, index;  // index = b H + h
  std::int64_t slot;         // index segments + segment
  int segment, begin, end;   // chunks

  __device__ explicit Walk(const Sequence& s) : slot(blockIdx.x) {
    index = slot / s.segments, segment = int(slot % s.segments);
    b = index / s.H, h = index % s.H;
    begin = segment * s.segment_chunks;
    end = begin + s.segment_chunks < s.chunks ? begin + s.segment_chunks : s.chunks;
  }
};

/// Sums at the ends of segments, one slot a segment.
struct SumSlots {
  float* S = nullptr;      // (slots, F, D)
  float* z = nullptr;      // (slots, F)
  float* local = nullptr;  // (slots, F) shifts of what one segment alone adds; of keys only
  float* shift = nullptr;  // (slots, F)
};

/// First token of the document of token i, as a row of the chunk at t0; -1: before the chunk.
__device__ __forceinline__ signed char document_row(const Sequence& s, std::int64_t b, std::int64_t t0, int i) {
  if (!s.document_start || t0 + i >= s.T) return -1;
  const std::int64_t start = s.document_start[b * s.T + t0 + i] - t0;
  return start < 0 ? -1 : static_cast<signed char>(start);
}

/// Zeros in an operand (features, tokens) for the tokens of which keep(token) is false; the operand starts at token k.
template <class Keep>
__device__ __forceinline__ void keep_tokens(unsigned (&a)[4], int k, int column, const Keep& keep) {
#pragma unroll
  for (int p = 0; p < 4; ++p) {
    const int token = k + column + p / 2 * 8;
    a[p] &= (keep(token) ? 0x0000ffffu : 0u) | (keep(token + 1) ? 0xffff0000u : 0u);
  }
}

/// A (F, kD) matrix of sums with a column of its own aside, spread over the block: a warp holds the rows of 16 features of
/// either sign. Element [sign][n][2 x + e] is row sign kD + row + 8 x, column 8 n + column + e.
template <int kD>
struct Sums {
  float S[2][kD / 8][4], z[2][2];

  __device__ void clear() {
#pragma unroll
    for (int s = 0; s < 2; ++s) {
#pragma unroll
      for (int n = 0; n < kD / 8; ++n)
#pragma unroll
        for (int p = 0; p < 4; ++p) S[s][n][p] = 0;
      z[s][0] = z[s][1] = 0;
    }
  }
  __device__ __forceinline__ void load(const SumSlots& from, std::int64_t slot, const Lanes<kD>& l) {
#pragma unroll
    for (int s = 0; s < 2; ++s)
#pragma unroll
      for (int x = 0; x < 2; ++x) {
        const std::int64_t row = slot * 2 * kD + s * kD + l.row + 8 * x;
        z[s][x] = from.z[row];
#pragma unroll
        for (int n = 0; n < kD / 8; ++n) {
          const float2 pair = *reinterpret_cast<const float2*>(from.S + row * kD + 8 * n + l.column);
          S[s][n][2 * x] = pair.x, S[s][n][2 * x + 1] = pair.y;
        }
      }
  }
  __device__ __forceinline__ void store(const SumSlots& to, std::int64_t slot, const Lanes<kD>& l) const {
#pragma unroll
    for (int s = 0; s < 2; ++s)
#pragma unroll
      for (int x = 0; x < 2; ++x) {
        const std::int64_t row = slot * 2 * kD + s * kD + l.row + 8 * x;
        if (l.column == 0) to.z[row] = z[s][x];
#pragma unroll
        for (int n = 0; n < kD / 8; ++n)
          *reinterpret_cast<float2*>(to.S + row * kD + 8 * n + l.column) = float2{S[s][n][2 * x], S[s][n][2 * x + 1]};
      }
  }
  /// Rows times factor, as operands of other warps.
  __device__ __forceinline__ void publish(const float (&factor)[2][2], bf16* S_tile, float* z_row, const Lanes<kD>& l) const {
#pragma unroll
    for (int s = 0; s < 2; ++s)
#pragma unroll
      for (int x = 0; x < 2; ++x) {
        const int row = s * kD + l.row + 8 * x;
#pragma unroll
        for (int n = 0; n < kD / 8; ++n)
          *reinterpret_cast<unsigned*>(S_tile + place<kD>(row, 8 * n + l.column)) =
              pack(S[s][n][2 * x] * factor[s][x], S[s][n][2 * x + 1] * factor[s][x]);
        if (l.column == 0) z_row[row] = z[s][x] * factor[s][x];
      }
  }
  __device__ __forceinline__ void scale(const float (&factor)[2][2]) {
#pragma unroll
    for (int s = 0; s < 2; ++s) {
#pragma unroll
      for (int n = 0; n < kD / 8; ++n)
#pragma unroll
        for (int p = 0; p < 4; ++p) S[s][n][p] *= factor[s][p / 2];
#pragma unroll
      for (int x = 0; x < 2; ++x) z[s][x] *= factor[s][x];
    }
  }
  /// S += features (F, tokens) x (tokens, kD); the tile `features` has been written by the same warp. Where `masked`, only
  /// tokens with keep(token).
  template <class Keep>
  __device__ __forceinline__ void add(const bf16* features, const bf16* x, bool masked, const Keep& keep, const Lanes<kD>& l) {
#pragma unroll
    for (int k = 0; k < kD; k += 16) {
      unsigned a[2][4];
#pragma unroll
      for (int s = 0; s < 2; ++s) {
        l.a(a[s], features, s * kD + 16 * l.warp, k);
        if (masked) keep_tokens(a[s], k, l.column, keep);
      }
#pragma unroll
      for (int n = 0; n < kD / 8; n += 2) {
        unsigned b[4];
        l.b_transposed(b, x, 8 * n, k);
#pragma unroll
        for (int s = 0; s < 2; ++s) {
          multiply_add(S[s][n], a[s], b[0], b[1]);
          multiply_add(S[s][n + 1], a[s], b[2], b[3]);
        }
      }
    }
  }
};

/// Numbers of a chunk by feature, in shared memory.
template <int kD>
struct FeatureRows {
  float shift[2 * kD];  // of the chunk
  float z[2 * kD];      // key sums before the chunk, in its scale
  float added[2 * kD];  // what the chunk adds to them
};

/// Running state of keys with its shifts: row r stands for 2^shift_r times what is stored.
template <int kD>
struct KeyState {
  Sums<kD> sums;
  float shift[2][2];  // before the chunk

  __device__ void clear() {
    sums.clear();
    for (int s = 0; s < 2; ++s) shift[s][0] = shift[s][1] = -INFINITY;
  }
  /// The state before a segment: empty before the first.
  __device__ __forceinline__ void start(const SumSlots& states, const Walk& walk, const Lanes<kD>& l) {
    if (walk.segment == 0) return clear();
    sums.load(states, walk.slot, l);
#pragma unroll
    for (int s = 0; s < 2; ++s)
#pragma unroll
      for (int x = 0; x < 2; ++x) shift[s][x] = states.shift[walk.slot * 2 * kD + s * kD + l.row + 8 * x];
  }

  /// Log features of a chunk of keys by feature, their shift, and what the rows of the chunk read: the features in the scale
  /// of the shift and the state before the chunk in that scale. `rows` are the chunk's document rows. The block synchronises
  /// before (keys) and after (phi, S_tile, features).
  __device__ __forceinline__ void enter(const bf16* weight, const bf16* keys, int count, const signed char* rows, bf16* phi, bf16* S_tile,
                                        FeatureRows<kD>& features, const Lanes<kD>& l) {
    float factor[2][2];
    float u[kD / 8][4] = {};
    multiply<kD>(u, [&](unsigned(&a)[4], int k) { l.a_transposed(a, weight, 16 * l.warp, k); },
                 [&](unsigned(&b)[4], int n, int k) { l.b(b, keys, n, k); });
    float top[2][2] = {{-INFINITY, -INFINITY}, {-INFINITY, -INFINITY}};
#pragma unroll
    for (int n = 0; n < kD / 8; ++n)
#pragma unroll
      for (int p = 0; p < 4; ++p) {
        u[n][p] *= kLog2e;
        if (8 * n + l.column + p % 2 < count) {
          top[0][p / 2] = fmaxf(top[0][p / 2], u[n][p]);
          top[1][p / 2] = fmaxf(top[1][p / 2], -u[n][p]);
        }
      }
    const bool begins = rows[0] >= 0;
    const int first = rows[count - 1];
#pragma unroll
    for (int s = 0; s < 2; ++s)
#pragma unroll
      for (int x = 0; x < 2; ++x) {
        const int row = s * kD + l.row + 8 * x;
        if (begins) shift[s][x] = -INFINITY;
        const float after = fmaxf(shift[s][x], row_max(top[s][x]));
        factor[s][x] = power_of_two(shift[s][x] - after);
        float sum = 0;
#pragma unroll
        for (int n = 0; n < kD / 8; ++n) {
          const int token = 8 * n + l.column;
          const float u0 = s ? -u[n][2 * x] : u[n][2 * x], u1 = s ? -u[n][2 * x + 1] : u[n][2 * x + 1];
          const unsigned both = pack(token < count ? power_of_two(u0 - after) : 0.0f,
                                     token + 1 < count ? power_of_two(u1 - after) : 0.0f);
          *reinterpret_cast<unsigned*>(phi + place<kD>(row, token)) = both;
          sum += (token >= first ? low_of(both) : 0.0f) + (token + 1 >= first ? high_of(both) : 0.0f);
        }
        sum = row_sum(sum);
        if (l.column == 0) features.shift[row] = after, features.added[row] = sum;
      }
    sums.publish(factor, S_tile, features.z, l);
  }

  /// Takes in the keys of the chunk, of the last token's document alone.
  __device__ __forceinline__ void leave(const bf16* phi, const bf16* v, int first, const FeatureRows<kD>& features, const Lanes<kD>& l) {
    float factor[2][2];
#pragma unroll
    for (int s = 0; s < 2; ++s)
#pragma unroll
      for (int x = 0; x < 2; ++x) {
        const float after = features.shift[s * kD + l.row + 8 * x];
        factor[s][x] = first >= 0 ? 0.0f : power_of_two(shift[s][x] - after);
        shift[s][x] = after;
      }
    sums.scale(factor);
    sums.add(phi, v, first > 0, [&](int token) { return token >= first; }, l);
#pragma unroll
    for (int s = 0; s < 2; ++s)
#pragma unroll
      for (int x = 0; x < 2; ++x) sums.z[s][x] += features.added[s * kD + l.row + 8 * x];
  }
};

/// u = log2(e) x W of `count` rows by plain sums, for the rare rows in log space. weight is a tile.
template <int kD>
__device__ __noinline__ void plain_logs(float* u, const bf16* x, std::int64_t step, int count, const bf16* weight) {
  for (int i = int(threadIdx.x); i < count * kD; i += 2 * kD) {
    const bf16* row = x + i / kD * step;
    float sum = 0;
    for (int d = 0; d < kD; ++d) sum += __bfloat162float(row[d]) * __bfloat162float(weight[place<kD>(d, i % kD)]);
    u[i] = sum * kLog2e;
  }
}

}  // namespace hedgehog::cuda::linear_attention_mma

#pragma once
#include "cuda/linear_attention_mma_map.cuh"

/// What a block of the tensor-core path of linear attention walks, and the sums it carries along.
namespace hedgehog::cuda::linear_attention_mma {

/// Heads of keys or values by the query head that reads them.
struct KeyHeads : Heads<bf16> {
  unsigned group = 1;  // query heads for each

  __device__ __forceinline__ bf16* at(std::int64_t b, std::int64_t t, std::int64_t query_head) const {
    return Heads<bf16>::at(b, t, unsigned(query_head) / group);
  }
};

/// Addresses of one call, shared by its kernels.
struct Sequence {
  Heads<bf16> q;
  KeyHeads k, v;
  const bf16 *weight_q, *weight_k;   // (H, D, D'), or null
  const std::int32_t* document_start;  // (B, T) or null
  std::int64_t T;
  int H;
  bool vector;   // rows of q, k, v, the weights, the table and dy may be read 16 bytes at a time
  bool initial;  // there is a state before the first token
  int chunks;    // of the sequence
  int segments;  // that blocks walk side by side
  int segment_chunks;
  bool warpgroups;  // products are made by warpgroups
  GeneralMap map;
  const float* rotary = nullptr;  // (T, D), or null: queries and keys are turned as they are loaded

  /// Slot of the state before a segment: the first of a head has one only if something is before it.
  __device__ __forceinline__ std::int64_t state_slot(std::int64_t index, int segment) const {
    return index * segments + segment - (initial ? 0 : index + 1);
  }
};

/// The part of a sequence that a block walks.
struct Walk {
  std::int64_t b, h, index;  // index = b H + h
  std::int64_t slot;         // index segments + segment
  int segment, begin, end;   // chunks

  __device__ explicit Walk(const Sequence& s, std::int64_t of = blockIdx.x) : slot(of) {
    index = slot / s.segments, segment = int(slot % s.segments);
    b = index / s.H, h = index % s.H;
    begin = segment * s.segment_chunks;
    end = begin + s.segment_chunks < s.chunks ? begin + s.segment_chunks : s.chunks;
  }
};

/// Sums at the ends of segments, each in a slot of its own: of states by Sequence::state_slot.
struct SumSlots {
  float* S = nullptr;      // (slots, F, D)
  float* z = nullptr;      // (slots, F)
  float* shift = nullptr;  // (slots, F), of keys
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
/// each sign, of which there are two or one. Element [sign][n][2 x + e] is row sign kD + row + 8 x, column 8 n + column + e.
template <int kD, int kSigns = 2>
struct Sums {
  float S[kSigns][kD / 8][4], z[kSigns][2];

  __device__ void clear() {
#pragma unroll
    for (int s = 0; s < kSigns; ++s) {
#pragma unroll
      for (int n = 0; n < kD / 8; ++n)
#pragma unroll
        for (int p = 0; p < 4; ++p) S[s][n][p] = 0;
      z[s][0] = z[s][1] = 0;
    }
  }
  __device__ __forceinline__ void load(const SumSlots& from, std::int64_t slot, const Lanes<kD>& l) {
#pragma unroll
    for (int s = 0; s < kSigns; ++s)
#pragma unroll
      for (int x = 0; x < 2; ++x) {
        const std::int64_t row = slot * kSigns * kD + s * kD + l.row + 8 * x;
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
    for (int s = 0; s < kSigns; ++s)
#pragma unroll
      for (int x = 0; x < 2; ++x) {
        const std::int64_t row = slot * kSigns * kD + s * kD + l.row + 8 * x;
        if (l.column == 0) to.z[row] = z[s][x];
#pragma unroll
        for (int n = 0; n < kD / 8; ++n)
          *reinterpret_cast<float2*>(to.S + row * kD + 8 * n + l.column) = float2{S[s][n][2 * x], S[s][n][2 * x + 1]};
      }
  }
  /// Rows times factor, as operands of other warps.
  __device__ __forceinline__ void publish(const float (&factor)[kSigns][2], bf16* S_tile, float* z_row, const Lanes<kD>& l) const {
#pragma unroll
    for (int s = 0; s < kSigns; ++s)
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
  __device__ __forceinline__ void scale(const float (&factor)[kSigns][2]) {
#pragma unroll
    for (int s = 0; s < kSigns; ++s) {
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
      unsigned a[kSigns][4];
#pragma unroll
      for (int s = 0; s < kSigns; ++s) {
        l.a(a[s], features, s * kD + 16 * l.warp, k);
        if (masked) keep_tokens(a[s], k, l.column, keep);
      }
#pragma unroll
      for (int n = 0; n < kD / 8; n += 2) {
        unsigned b[4];
        l.b_transposed(b, x, 8 * n, k);
#pragma unroll
        for (int s = 0; s < kSigns; ++s) {
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

/// Bits that features of documents which end in a chunk may exceed the scale of the chunk by: a state of 2^20 keys stays finite in f32.
constexpr float kOldDocuments = 90;
/// Bits that the scale may still be above the keys of a document before their sums against time leave f32.
constexpr float kBelowScale = 110;

/// Features of a chunk of keys by feature from u = x W, in the scale of the shift of the chunk, which becomes `after` and scales
/// the state with the shift `before` by `factor`. store(sign, phi) gets those of either sign, rounded: phi[n][x] are row + 8 x,
/// tokens 8 n + column and the next. What the chunk adds to z comes from token `first` on.
/// kWhole: all tokens are there and count for the state.
///
/// The shift is the largest log feature so far; where a document starts inside the chunk, that of this document alone if it is at most
/// kOldDocuments less, else so much less than the largest. Later chunks start from it: the largest of an older document, which they do not
/// see, would push their features below what f32 and bf16 hold. So documents lose nothing until their keys are 200 bits, 138 nats,
/// apart in a feature.
template <bool kWhole, int kD, class Store, bool kGeneral = false>
__device__ __forceinline__ void features_of(float (&u)[kD / 8][4], int count, int first, const float (&before)[2][2],
                                          float (&after)[2][2], float (&factor)[2][2], FeatureRows<kD>& features, const Store& store,
                                          const Lanes<kD>& l, const ChunkNorm<kGeneral>& norm = {}) {
  // log phi of two tokens of half x, less what is the same for both
  const auto pair_of = [&](int s, int n, int x, float less) {
    if constexpr (kGeneral) {
      const float2 c = pair_at(norm.c + s * kD, 8 * n + l.column);
      const float scale = s ? -norm.scale : norm.scale;
      return float2{fmaf(u[n][2 * x], scale, -less) - c.x, fmaf(u[n][2 * x + 1], scale, -less) - c.y};
    } else {
      const float scale = s ? -kLog2e : kLog2e;
      return float2{fmaf(u[n][2 * x], scale, -less), fmaf(u[n][2 * x + 1], scale, -less)};
    }
  };
  float top[2][2] = {{-INFINITY, -INFINITY}, {-INFINITY, -INFINITY}}, newest[2][2] = {{-INFINITY, -INFINITY}, {-INFINITY, -INFINITY}};
  const auto raise = [&](float (&to)[2][2], int from) {
#pragma unroll
    for (int n = 0; n < kD / 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int token = 8 * n + l.column;
        const float2 log_phi = pair_of(i / 2, n, i % 2, 0);
        float& largest = to[i / 2][i % 2];
        if (kWhole || (token >= from && token < count)) largest = fmaxf(largest, log_phi.x);
        if (kWhole || (token + 1 >= from && token + 1 < count)) largest = fmaxf(largest, log_phi.y);
      }
  };
  if (!kWhole && first > 0) raise(newest, first);  // the document that the chunk ends with
  if constexpr (kGeneral) {
    raise(top, 0);
  } else {
#pragma unroll
    for (int n = 0; n < kD / 8; ++n)
#pragma unroll
      for (int p = 0; p < 4; ++p) {
        if (kWhole || 8 * n + l.column + p % 2 < count) {
          top[0][p / 2] = fmaxf(top[0][p / 2], u[n][p]);
          top[1][p / 2] = fmaxf(top[1][p / 2], -u[n][p]);
        }
      }
  }
#pragma unroll
  for (int s = 0; s < 2; ++s) {
    unsigned phi[kD / 8][2];
#pragma unroll
    for (int x = 0; x < 2; ++x) {
      after[s][x] = fmaxf(before[s][x], row_max(top[s][x]) * (kGeneral ? 1.0f : kLog2e));
      if (!kWhole && first > 0) after[s][x] = fmaxf(row_max(newest[s][x]), after[s][x] - kOldDocuments);
      factor[s][x] = exp2_fast(before[s][x] - after[s][x]);
      float sum = 0;
#pragma unroll
      for (int n = 0; n < kD / 8; ++n) {
        const int token = 8 * n + l.column;
        const float2 log_phi = pair_of(s, n, x, after[s][x]);
        const float e0 = kWhole || token < count ? exp2_fast(log_phi.x) : 0.0f;
        const float e1 = kWhole || token + 1 < count ? exp2_fast(log_phi.y) : 0.0f;
        phi[n][x] = pack(e0, e1);
        sum += (kWhole || token >= first ? e0 : 0.0f) + (kWhole || token + 1 >= first ? e1 : 0.0f);
      }
      sum = row_sum(sum);
      const int row = s * kD + l.row + 8 * x;
      if (l.column == 0) features.shift[row] = after[s][x], features.added[row] = sum;
    }
    store(s, phi);
  }
}

/// Exponents of a chunk of queries by token from u = x W, and the largest of each row of a lane with the shift of keys, of the lane's
/// own columns.
template <int kD, bool kGeneral = false>
__device__ __forceinline__ void query_exponents(float (&u)[kD / 8][4], float (&largest)[2], const float* shift, const Lanes<kD>& l,
                                                const RowNorm<kGeneral>& norm = {}) {
#pragma unroll
  for (int n = 0; n < kD / 8; ++n) {
    const float2 plus = pair_at(shift, 8 * n + l.column), minus = pair_at(shift, kD + 8 * n + l.column);
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      u[n][e] *= norm.scale;
      largest[e / 2] = fmaxf(largest[e / 2], fmaxf(norm.minus((e % 2 ? plus.y : plus.x) + u[n][e], 0, e / 2),
                                                   norm.minus((e % 2 ? minus.y : minus.x) - u[n][e], 1, e / 2)));
    }
  }
}
/// Features of those queries in the scale of keys, as operands.
template <int kD, bool kGeneral = false>
__device__ __forceinline__ void query_operands(unsigned (&q)[kD / 8][4], const float (&u)[kD / 8][4], const float (&largest)[2],
                                               const float* shift, const Lanes<kD>& l, const RowNorm<kGeneral>& norm = {}) {
#pragma unroll
  for (int sign = 0; sign < 2; ++sign) {
    const float less[2] = {norm.plus(largest[0], sign, 0), norm.plus(largest[1], sign, 1)};
    float phi[kD / 8][4];
#pragma unroll
    for (int n = 0; n < kD / 8; ++n) {
      const float2 of_columns = pair_at(shift, sign * kD + 8 * n + l.column);
#pragma unroll
      for (int e = 0; e < 4; ++e)
        phi[n][e] = exp2_fast((sign ? -u[n][e] : u[n][e]) + (e % 2 ? of_columns.y : of_columns.x) - less[e / 2]);
    }
#pragma unroll
    for (int k = 0; k < kD / 16; ++k) pack_operand(q[sign * (kD / 16) + k], phi[2 * k], phi[2 * k + 1]);
  }
}

/// Running state of keys with its shifts: row r stands for 2^shift_r times what is stored.
template <int kD>
struct KeyState {
  Sums<kD> sums;
  float shift[2][2];  // before the chunk

  /// Base 2 logarithm of a row's sum of keys, which its shift exceeds where it is of an older document; -infinity for an empty row.
  __device__ __forceinline__ float log_sum(int s, int x) const { return shift[s][x] + log2f(sums.z[s][x]); }

  __device__ void clear() {
    sums.clear();
    for (int s = 0; s < 2; ++s) shift[s][0] = shift[s][1] = -INFINITY;
  }
  /// The state before a segment.
  __device__ __forceinline__ void start(const SumSlots& states, const Sequence& sequence, const Walk& walk, const Lanes<kD>& l) {
    if (walk.segment == 0 && !sequence.initial) return clear();
    const std::int64_t slot = sequence.state_slot(walk.index, walk.segment);
    sums.load(states, slot, l);
#pragma unroll
    for (int s = 0; s < 2; ++s)
#pragma unroll
      for (int x = 0; x < 2; ++x) shift[s][x] = states.shift[slot * 2 * kD + s * kD + l.row + 8 * x];
  }

  /// Log features of a chunk of keys by feature, their shift, and what the rows of the chunk read: the features in the scale
  /// of the shift and the state before the chunk in that scale. The block synchronises before (keys) and after (phi, S_tile,
  /// features).
  template <bool kGeneral = false>
  __device__ __forceinline__ void enter(const bf16* weight, const bf16* keys, int count, const signed char* rows, bf16* phi, bf16* S_tile,
                                        FeatureRows<kD>& features, const Lanes<kD>& l, const ChunkNorm<kGeneral>& norm = {}) {
    float factor[2][2], after[2][2];
    float u[kD / 8][4];
    if constexpr (kGeneral) start_by_feature<true>(u, norm.bias, l.row);
    else start_by_feature<false>(u, nullptr, l.row);
    multiply<kD>(u, [&](unsigned(&a)[4], int k) { l.a_transposed(a, weight, 16 * l.warp, k); },
                 [&](unsigned(&b)[4], int n, int k) { l.b(b, keys, n, k); });
    const auto store = [&](int s, const unsigned(&of)[kD / 8][2]) {
#pragma unroll
      for (int n = 0; n < kD / 8; ++n)
#pragma unroll
        for (int x = 0; x < 2; ++x)
          *reinterpret_cast<unsigned*>(phi + place<kD>(s * kD + l.row + 8 * x, 8 * n + l.column)) = of[n][x];
    };
    if (rows[0] >= 0)
      for (int s = 0; s < 2; ++s) shift[s][0] = shift[s][1] = -INFINITY;
    features_of<false>(u, count, rows[count - 1], shift, after, factor, features, store, l, norm);
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
        factor[s][x] = first >= 0 ? 0.0f : exp2_fast(shift[s][x] - after);
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

/// u = scale (x W + bias) of `count` rows from token t on by plain sums, for the rare rows in log space. weight is a tile, bias may be
/// null, as may the table of rotary.
template <int kD>
__device__ __noinline__ void plain_logs(float* u, const bf16* x, std::int64_t step, int count, const bf16* weight, float scale,
                                         const bf16* bias, const float* rotary, std::int64_t t) {
  for (int i = int(threadIdx.x); i < count * kD; i += 2 * kD) {
    const bf16* const row = x + i / kD * step;
    const float* const angles = rotary ? rotary + (t + i / kD) * kD : nullptr;
    float sum = bias ? __bfloat162float(bias[i % kD]) : 0.0f;
#pragma unroll 1
    for (int d = 0; d < kD; ++d) sum += turned_element<kD>(row, d, angles) * __bfloat162float(weight[place<kD>(d, i % kD)]);
    u[i] = sum * scale;
  }
}

}  // namespace hedgehog::cuda::linear_attention_mma

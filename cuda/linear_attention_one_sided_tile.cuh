#pragma once
#include "cuda/linear_attention_mma_backward.cuh"
#include "cuda/linear_attention_mma_bidirectional.cuh"

/// What the kernels of linear attention with one feature a column share.
///
/// F = D throughout. Rows of a tile are tokens: a warp maps the 16 rows that it has brought itself, and their features take their
/// place, so that no other warp is waited for.
namespace hedgehog::cuda::linear_attention_one_sided {

using namespace linear_attention_mma;

/// phi = max(f(u), floor) with u = x W + bias. f(u) = u, or for "elu" u + 1 above 0 and e^u below.
struct OneSidedMap {
  bool elu = false;
  float floor = -INFINITY;  // none for "identity"
  float stored_floor = -INFINITY;  // the floor as features are stored

  OneSidedMap() = default;
  explicit OneSidedMap(const Attributes& attributes) {
    const MapKind kind = feature_map_of("linear_attention", attributes).kind;
    elu = kind == MapKind::elu;
    if (kind == MapKind::identity) return;
    floor = float(elu ? kEluFloor : kReluFloor);
    stored_floor = convert<float>(convert<bf16>(floor));
  }
  /// Features in place of u.
  template <int kTiles>
  __device__ __forceinline__ void apply(float (&u)[kTiles][4]) const {
    if (elu) {
#pragma unroll
      for (int n = 0; n < kTiles; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) u[n][e] = u[n][e] < 0 ? exp2_fast(u[n][e] * kLog2e) : 1 + u[n][e];
    }
#pragma unroll
    for (int n = 0; n < kTiles; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) u[n][e] = u[n][e] < floor ? floor : u[n][e];
  }
  /// dphi / du where phi, as stored, is the feature.
  __device__ __forceinline__ float slope(float phi) const { return phi <= stored_floor ? 0.0f : elu ? fminf(phi, 1) : 1.0f; }
};

/// Features of a warp's 16 rows of x. Without maps, weight and bias are null.
template <int kD>
__device__ __forceinline__ void features_of_rows(float (&u)[kD / 8][4], const bf16* x, const bf16* weight, const bf16* bias,
                                                 const OneSidedMap& map, const Lanes<kD>& l) {
  if (weight) {
    start_by_token<true>(u, bias, l.column);
    multiply<kD>(u, [&](unsigned(&a)[4], int k) { l.a(a, x, 16 * l.warp, k); },
                 [&](unsigned(&b)[4], int n, int k) { l.b_transposed(b, weight, n, k); });
  } else {
    // an operand holds the pairs of two results
#pragma unroll
    for (int k = 0; k < kD / 16; ++k) {
      unsigned a[4];
      l.a(a, x, 16 * l.warp, 16 * k);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        u[2 * k + e / 2][e % 2 * 2] = low_of(a[e]);
        u[2 * k + e / 2][e % 2 * 2 + 1] = high_of(a[e]);
      }
    }
  }
  map.apply(u);
}
/// The map of a head into a tile, which is returned; null without maps.
template <int kD>
__device__ __forceinline__ const bf16* load_map(bf16* tile, const bf16* weights, const Sequence& s, const Walk& walk, const Lanes<kD>& l) {
  if (!weights) return nullptr;
  load_weight<kD, false>(tile, weights, walk.h, s.vector, l);
  return tile;
}
/// Numbers of a warp's 16 rows as operands.
template <int kSteps, int kTiles>
__device__ __forceinline__ void pack_rows(unsigned (&a)[kSteps][4], const float (&x)[kTiles][4]) {
#pragma unroll
  for (int k = 0; k < kSteps; ++k) pack_operand(a[k], x[2 * k], x[2 * k + 1]);
}
/// Those operands into the tile.
template <int kD>
__device__ __forceinline__ void store_operands(bf16* tile, const unsigned (&a)[kD / 16][4], const Lanes<kD>& l) {
#pragma unroll
  for (int k = 0; k < kD / 16; ++k) store_operand<kD>(tile, a[k], 16 * k, l);
}

/// Sums over earlier keys, [S, z] = sum phi_k [v, 1]^T, or over later queries, [R, y] = sum phi_q [dy, delta]^T with phi_q over its
/// denominator.
template <int kD>
struct FeatureSums : Sums<kD, 1> {
  using Sums<kD, 1>::S;
  using Sums<kD, 1>::z;

  /// Adds the tokens of a chunk from their features, (chunk, F), and x, (chunk, D). Of keys the last column is 1, of queries `last`.
  /// Where `masked`, only tokens with keep(token).
  template <Of kOf, class Keep>
  __device__ __forceinline__ void absorb(const bf16* phi, const bf16* x, const float* last, bool masked, const Keep& keep,
                                         const Lanes<kD>& l) {
    float added[2] = {0, 0};
#pragma unroll
    for (int k = 0; k < kD; k += 16) {
      unsigned a[4];
      l.a_transposed(a, phi, 16 * l.warp, k);
      if (masked) keep_tokens(a, k, l.column, keep);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        if constexpr (kOf == kOfKeys) {
          added[e % 2] += low_of(a[e]) + high_of(a[e]);
        } else {
          const float2 of_tokens = pair_at(last, k + e / 2 * 8 + l.column);
          added[e % 2] += low_of(a[e]) * of_tokens.x + high_of(a[e]) * of_tokens.y;
        }
      }
      multiply_step(S[0], a, [&](unsigned(&b)[4], int n) { l.b_transposed(b, x, n, k); });
    }
#pragma unroll
    for (int x = 0; x < 2; ++x) z[0][x] += row_sum(added[x]);
  }
  /// As operands of all warps.
  __device__ __forceinline__ void show(bf16* S_tile, float* z_row, const Lanes<kD>& l) const {
    const float ones[1][2] = {{1, 1}};
    Sums<kD, 1>::publish(ones, S_tile, z_row, l);
  }
};

struct BackwardArguments {
  Sequence s;
  OneSidedMap map;
  Heads<bf16> o, dy;
  const float* saved;          // (B, T, H) denominators
  HeadsTarget<bf16> dx[2], dv;  // dx: of queries and keys
  SumSlots sums;               // of keys before each segment, then of queries after each; not causal: of each segment
  Totals totals;               // not causal: over all keys, then over all queries
  bool causal;
  // made by the pass in the order of time
  float *delta, *inverse;      // (B H, T); inverse of the denominator, 0 of 0
  float* dweight[2];           // (B H segments, D, D') parts, null where not wanted
  float* dbias[2];             // (B H segments, D') the same
};

/// What the tokens of a chunk bring to sums beside their vectors, fetched a chunk ahead: a lane has what its rows of queries are
/// multiplied by, a thread the first row of a token's document and the last column of a query.
template <int kD, Of kOf>
struct TokenNumbers {
  float inverse[2], delta = 0;
  signed char row = -1;

  __device__ __forceinline__ void fetch(const BackwardArguments& p, const Walk& walk, int chunk, const Lanes<kD>& l) {
    const std::int64_t t0 = std::int64_t(chunk) * kD, first = walk.index * p.s.T;
    const int thread = int(threadIdx.x);
    if constexpr (kOf == kOfQueries) {
#pragma unroll
      for (int x = 0; x < 2; ++x) {
        const std::int64_t t = t0 + l.row + 8 * x;
        inverse[x] = t < p.s.T ? p.inverse[first + t] : 0.0f;
      }
      if (thread < kD) delta = t0 + thread < p.s.T ? p.delta[first + t0 + thread] : 0.0f;
    }
    if (thread < kD) row = document_row(p.s, walk.b, t0, thread);
  }
  __device__ __forceinline__ void keep(float* deltas, signed char* rows) const {
    if (threadIdx.x >= kD) return;
    rows[threadIdx.x] = row;
    if constexpr (kOf == kOfQueries) deltas[threadIdx.x] = delta;
  }
  /// Queries over their denominators.
  __device__ __forceinline__ void divide(float (&phi)[kD / 8][4]) const {
    if constexpr (kOf == kOfQueries)
#pragma unroll
      for (int n = 0; n < kD / 8; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) phi[n][e] *= inverse[e / 2];
  }
};

/// x of queries or keys, its map, and what goes with it in sums: v of keys, dy of queries.
template <Of kOf>
struct Side {
  static constexpr Of kOther = kOf == kOfKeys ? kOfQueries : kOfKeys;

  template <int kD>
  __device__ __forceinline__ static void load_x(bf16* tile, const Sequence& s, const Walk& walk, std::int64_t t0, const Lanes<kD>& l) {
    if constexpr (kOf == kOfKeys) load_rows<kD>(tile, s.k.at(walk.b, t0, walk.h), s.k.token, s.T - t0, s.vector, l);
    else load_rows<kD>(tile, s.q.at(walk.b, t0, walk.h), s.q.token, s.T - t0, s.vector, l);
  }
  template <int kD>
  __device__ __forceinline__ static void load_values(bf16* tile, const BackwardArguments& p, const Walk& walk, std::int64_t t0,
                                                     const Lanes<kD>& l) {
    const Sequence& s = p.s;
    if constexpr (kOf == kOfKeys) load_rows<kD>(tile, s.v.at(walk.b, t0, walk.h), s.v.token, s.T - t0, s.vector, l);
    else load_rows<kD>(tile, p.dy.at(walk.b, t0, walk.h), p.dy.token, s.T - t0, s.vector, l);
  }
  __device__ __forceinline__ static const bf16* weight(const Sequence& s) { return kOf == kOfKeys ? s.weight_k : s.weight_q; }
};

/// The order in which a walk takes its chunks: sums of keys go with time, those of queries against it.
template <Of kSums>
__device__ __forceinline__ int chunk_of(const Walk& walk, int i) {
  return kSums == kOfKeys ? walk.begin + i : walk.end - 1 - i;
}
/// Whether token j of a chunk counts for sums that leave it. rows: its document rows; last: of its last token.
template <Of kSums>
__device__ __forceinline__ bool leaves(const signed char* rows, int last, int token) {
  return kSums == kOfKeys ? token >= last : rows[token] < 0;
}

/// Segments that walks are cut into in both passes.
inline Segments segments_of(const Shape& q, bool causal) {
  return causal ? linear_attention_mma::segments_of(q, Pass::forward) : even_segments(q, kThreeEach);
}
/// Slots for all segments; none for one segment that is causal.
inline SumSlots take_sums(Workspace& w, const Shape& q, bool causal) {
  const Segments g = segments_of(q, causal);
  return w.take_slots(causal && g.count == 1 ? 0 : q[0] * q[2] * g.count, q[3], false, q[3]);
}
/// The call with those segments.
inline Sequence sequence_of(const Call& c) {
  return cut(linear_attention_mma::sequence_of(c, Pass::forward), segments_of(c.inputs[kQ].shape, c.attributes.flag("causal")));
}

/// Fills the slots with the sums of keys before, or of queries after each segment; if not causal, the totals. Nothing to do for one
/// segment that is causal.
void make_sums(const BackwardArguments& p, Of of, std::int64_t batch, int D);

}  // namespace hedgehog::cuda::linear_attention_one_sided

#pragma once
#include "cuda/linear_attention_mma_call.cuh"

/// What the kernels of the backward pass share: one in the order of time gives dq, one against it gives dk and dv.
///
/// With phi_q divided by the denominator, G = dy, delta_i = -G_i . o_i and W_ij = G_i . v_j + delta_i for j <= i:
///   dphi_q = W phi_k + [G, delta] [S, z]^T      S, z: state before the chunk
///   dphi_k = W^T phi_q + [v, 1] [R, y]^T        R, y: sums of phi_q^T [G, delta] after the chunk
///   dv     = A^T G + phi_k R
/// all in the scale of the chunk's shift, in which the gradients of the log features are dphi phi. Where a sequence has several
/// segments, states and reversed sums at their ends are made beforehand.
namespace hedgehog::cuda::linear_attention_mma {

struct BackwardArguments {
  Sequence s;
  Heads<bf16> o, dy;
  const float* saved;  // (B, T, H) natural logarithm of the denominator
  HeadsTarget<bf16> dq, dk, dv;
  SumSlots states;    // before each segment, and from final_slot on the final ones: kept by forward
  std::int64_t final_slot;
  SumSlots reversed;  // R and y after each segment, and after those of all heads those before the first token
  // gradients of the states, (B, H, F, D + 2), and that of the final c, which goes to the key that has raised it last
  const float* dfinal;    // null: none
  Target<float> dinitial;
  float* dshift;          // (B H, F)
  bf16* no_gradient;      // (D) zeros, for a dy that is not there
  // made by the pass in the order of time
  float* shifts;             // (B H, chunks, F) of each chunk
  float* delta;              // (B H, T)
  float* denominators;       // (signs, B H, T) base 2 logarithm with c of the query, infinity for rows in log space; plain: one sign
  unsigned long long* redo;  // (B H, chunks) bits of the rows in log space
  float* dweight[2];         // (B H segments, D, D') parts of dweight_q and dweight_k
  float* dbias[2];           // (B H segments, D') the same of biases, null without them
  // where products are a warpgroup's, else null
  int* handover;  // (walks) the chunk where the walk in the order of time has stopped, its end if it is done, -1 before that
  int walks;      // B H segments

  /// Whether a walk ends with the gradient of an initial state.
  __device__ __forceinline__ bool reaches_initial(const Walk& walk) const { return walk.segment == 0 && dinitial; }
};

/// Shared memory of both forms of the pass in the order of time.
template <int kD>
struct QueriesTiles {
  static constexpr int kTile = kD * kD;
  bf16 weight_q[kTile], weight_k[kTile];         // (D, D')
  bf16 q[kTile], k[kTile], v[kTile], dy[kTile];  // (chunk, D)
  bf16 du[kTile];                                // (chunk, D'); o until its rows are used up
  bf16 phi[2 * kTile];                           // (F, chunk) of keys
  bf16 S[2 * kTile];                             // (F, Dv), in the scale of the chunk
  FeatureRows<kD> features;
  signed char rows[2][kD];  // document rows of this chunk and the next
};

/// What the pass in the order of time has left for a chunk, on its way to shared memory: fetched a chunk ahead. A thread has one
/// feature and perhaps one row. kGeneral: denominators of either sign.
template <int kD, bool kGeneral = false>
struct ChunkNumbers {
  float shift = 0, den = INFINITY, delta = 0;
  signed char row = -1;

  __device__ __forceinline__ void fetch(const BackwardArguments& p, const Walk& walk, int chunk) {
    const Sequence& s = p.s;
    const int thread = int(threadIdx.x);
    if (chunk < 0) {  // before the first token
      shift = p.states.shift[s.state_slot(walk.index, 0) * 2 * kD + thread];
      return;
    }
    shift = p.shifts[(walk.index * s.chunks + chunk) * 2 * kD + thread];
    const std::int64_t t0 = std::int64_t(chunk) * kD, t = t0 + thread;
    if constexpr (kGeneral) {
      const std::int64_t sign = thread / kD, token = t0 + thread % kD;
      den = token < s.T ? p.denominators[sign * s.map.count + walk.index * s.T + token] : INFINITY;
    }
    if (thread >= kD) return;
    if constexpr (!kGeneral) den = t < s.T ? p.denominators[walk.index * s.T + t] : INFINITY;
    delta = t < s.T ? p.delta[walk.index * s.T + t] : 0.0f;
    row = document_row(s, walk.b, t0, thread);
  }
  template <class Memory>
  __device__ __forceinline__ void keep(Memory& m, int chunk) const {
    const int thread = int(threadIdx.x);
    m.shift[chunk & 1][thread] = shift;
    if constexpr (kGeneral) m.den[chunk & 1][thread] = den;
    if (thread >= kD) return;
    if constexpr (!kGeneral) m.den[chunk & 1][thread] = den;
    m.delta[chunk & 1][thread] = delta, m.rows[chunk & 1][thread] = row;
  }
};

void backward_queries(const BackwardArguments& p, std::int64_t batch, int D);
void backward_keys(const BackwardArguments& p, std::int64_t batch, int D);
/// Passes with products of a warpgroup, for heads of 64: dq, what segments add to R and y, dk and dv. Walks that meet rows in log
/// space are left to the functions above, those in the order of time from the chunk where they stopped. Without segments, keys
/// follow queries directly.
enum class WarpgroupPass : int { queries, sums, keys };
void warpgroup_backward(const BackwardArguments& p, WarpgroupPass pass);
/// Turns what each segment alone adds to R and y into the sums after each segment, in slots of so many features.
void scan_reversed(const BackwardArguments& p, std::int64_t batch, int D, int features);
/// Brings the gradients of final states to where R and y begin, and dshift.
void begin_reversed(const BackwardArguments& p, std::int64_t batch, int D);
/// Gradients of initial states, from R and y before the first token.
void end_reversed(const BackwardArguments& p, std::int64_t batch, int D);
/// Brings the gradient of the final c to keys and their map, when those have theirs.
void add_shift_gradients(const BackwardArguments& p, std::int64_t batch, int D);
/// Gradients of two inputs of `matrix` elements a head, those that are wanted, from parts (B H segments, matrix): summed in order.
/// Parts that are null are left for later.
void sum_parts(const Call& c, Input of_query_map, Input of_key_map, std::int64_t matrix, const float* query_parts,
               std::int64_t query_segments, const float* key_parts, std::int64_t key_segments, bool joined = false);
/// Gradients of the weights that are wanted, from parts (B H segments, D, D') of queries and of keys. Null: later. joined: segments are
/// those of all batch elements together, parts (H segments, D, D').
void sum_weight_parts(const Call& c, const float* of_queries, std::int64_t query_segments, const float* of_keys, std::int64_t key_segments,
                      bool joined = false);
/// Zeros for the gradients of a call whose output nothing reads.
void write_zeros(const Call& c);
/// Room for the gradient of k or v by query head, where several query heads share a key head.
HeadsTarget<bf16> take_group_part(Workspace& w, const Shape& q);
/// Gradients of k and v from those by query head, if there are groups.
void sum_groups(const Call& c, const HeadsTarget<bf16>& dk, const HeadsTarget<bf16>& dv);

/// dweight (D, D') += x^T du over the tokens of a chunk; a warp holds 16 rows.
template <int kD>
__device__ __forceinline__ void add_weight_gradient(float (&dweight)[kD / 8][4], const bf16* x, const bf16* du, const Lanes<kD>& l) {
  multiply<kD>(dweight, [&](unsigned(&a)[4], int k) { l.a_transposed(a, x, 16 * l.warp, k); },
               [&](unsigned(&b)[4], int n, int k) { l.b_transposed(b, du, n, k); });
}
template <int kD>
__device__ __forceinline__ void store_weight_gradient(float* to, const float (&dweight)[kD / 8][4], const Lanes<kD>& l) {
#pragma unroll
  for (int n = 0; n < kD / 8; ++n)
#pragma unroll
    for (int x = 0; x < 2; ++x)
      *reinterpret_cast<float2*>(to + (l.row + 8 * x) * kD + 8 * n + l.column) = float2{dweight[n][2 * x], dweight[n][2 * x + 1]};
}

/// The gradient of a bias of D' columns is the sum of du over tokens. Each thread has one column of half the rows of a chunk.
template <int kD>
__device__ __forceinline__ float add_bias_gradient(float dbias, const bf16* du, int count) {
  const int column = int(threadIdx.x) % kD, first = int(threadIdx.x) / kD * (kD / 2), end = min(first + kD / 2, count);
#pragma unroll 2
  for (int row = first; row < end; ++row) dbias += __bfloat162float(du[place<kD>(row, column)]);
  return dbias;
}
/// Joins the halves by way of 2 kD numbers in shared memory that the block is done with.
template <int kD>
__device__ __forceinline__ void store_bias_gradient(float* to, float dbias, float* halves) {
  __syncthreads();
  halves[threadIdx.x] = dbias;
  __syncthreads();
  if (threadIdx.x < kD) to[threadIdx.x] = halves[threadIdx.x] + halves[kD + threadIdx.x];
}

template <int kD>
__device__ __forceinline__ void load_weight_gradient(float (&dweight)[kD / 8][4], const float* from, const Lanes<kD>& l) {
#pragma unroll
  for (int n = 0; n < kD / 8; ++n)
#pragma unroll
    for (int x = 0; x < 2; ++x) {
      const float2 pair = *reinterpret_cast<const float2*>(from + (l.row + 8 * x) * kD + 8 * n + l.column);
      dweight[n][2 * x] = pair.x, dweight[n][2 * x + 1] = pair.y;
    }
}

/// An operand of a warp's 16 rows into its tile, from column k on.
template <int kD>
__device__ __forceinline__ void store_operand(bf16* tile, const unsigned (&a)[4], int k, const Lanes<kD>& l) {
#pragma unroll
  for (int e = 0; e < 4; ++e)
    *reinterpret_cast<unsigned*>(tile + place<kD>(l.row + e % 2 * 8, k + e / 2 * 8 + l.column)) = a[e];
}

/// Rounds the gradient of u of a warp's rows into its tile and multiplies it by the transposed weight: dx = du W^T.
template <int kD>
__device__ __forceinline__ void through_weight(float (&dx)[kD / 8][4], const float (&du)[kD / 8][4], const bf16* weight, bf16* du_tile,
                                               const Lanes<kD>& l) {
#pragma unroll
  for (int n = 0; n < kD / 8; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) dx[n][e] = 0;
#pragma unroll
  for (int k = 0; k < kD / 16; ++k) {
    unsigned a[4];
    pack_operand(a, du[2 * k], du[2 * k + 1]);
    store_operand<kD>(du_tile, a, 16 * k, l);
    multiply_step(dx, a, [&](unsigned(&b)[4], int n) { l.b(b, weight, n, 16 * k); });
  }
}

/// Gradients of keys' x W + bias from those of log phi, summed over signs, where `gradients` has the sums of a lane's rows by sign: less
/// the true features times the sums of a row, if a softmax has made them: p = phi 2^shift, both at most 1.
template <int kD>
__device__ __forceinline__ void through_norm(float (&du)[kD / 8][4], float (&gradients)[2][2], const unsigned (&phi)[kD / 8][4],
                                             const float* shift, const GeneralMap& map, const Lanes<kD>& l) {
  sum_rows(gradients, map.joint);
#pragma unroll
  for (int x = 0; x < 2; ++x)
    if (!map.log_sums) gradients[0][x] = gradients[1][x] = 0;
  const float factor = map.factor();
#pragma unroll
  for (int n = 0; n < kD / 8; ++n) {
    const float2 plus = pair_at(shift, 8 * n + l.column), minus = pair_at(shift, kD + 8 * n + l.column);
    const float unit[2][2] = {{true_feature(plus.x), true_feature(plus.y)}, {true_feature(minus.x), true_feature(minus.y)}};
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      float parts[2];
#pragma unroll
      for (int sign = 0; sign < 2; ++sign) {
        const unsigned pair = phi[sign * (kD / 16) + n / 2][n % 2 * 2 + e / 2];
        parts[sign] = (e % 2 ? high_of(pair) : low_of(pair)) * unit[sign][e % 2] * gradients[sign][e / 2];
      }
      du[n][e] = factor * (du[n][e] - (parts[0] - parts[1]));
    }
  }
}

/// The same of queries, log_phi(n, e) being u of a lane's element in the scale of the map.
template <int kD, class LogPhi>
__device__ __forceinline__ void through_query_norm(float (&du)[kD / 8][4], float (&gradients)[2][2], const LogPhi& log_phi,
                                                   const RowNorm<true>& norm, const GeneralMap& map) {
  sum_rows(gradients, false);
#pragma unroll
  for (int n = 0; n < kD / 8; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      if (map.normalises(kOfQueries)) {
        du[n][e] -= true_feature(norm.minus(log_phi(n, e), 0, e / 2)) * gradients[0][e / 2] -
                    true_feature(norm.minus(-log_phi(n, e), 1, e / 2)) * gradients[1][e / 2];
      } else {
        du[n][e] *= map.factor();  // over both signs the gradients of a row sum to 0
      }
    }
}

/// Zeros in the rows of an operand of which keep[half] is false.
__device__ __forceinline__ void keep_rows(unsigned (&a)[4], const bool (&keep)[2]) {
#pragma unroll
  for (int e = 0; e < 4; ++e)
    if (!keep[e % 2]) a[e] = 0;
}

}  // namespace hedgehog::cuda::linear_attention_mma

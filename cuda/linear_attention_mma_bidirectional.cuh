#pragma once
#include "cuda/linear_attention_mma_call.cuh"

/// Linear attention in which every query sees every key, on tensor cores. Sums over all keys, and in backward over all queries, are
/// made first; chunks of tokens do not depend on each other then. With exponents in base 2, G = dy and delta_i = -G_i . o_i:
///
///   shift  = max_j +-u_k,j                    phi_k = 2^(+-u_k - shift)
///   S      = sum_j phi_k,j v_j                z     = sum_j phi_k,j
///   o_i    = phi_q,i S / (phi_q,i . z)        phi_q = 2^(+-u_q + shift - m_i), in backward over the denominator
///   R      = sum_i phi_q,i G_i                y     = sum_i phi_q,i delta_i
///   dphi_q = [G, delta] [S, z]^T              dphi_k = [v, 1] [R, y]^T             dv = phi_k R
///
/// A feature has a key with phi_k = 1, and a query a feature with phi_q = 1: denominators are at least 1, and no row needs log space.
namespace hedgehog::cuda::linear_attention_mma {

/// Sums over all tokens of one batch element and head, as operands of its chunks.
struct Totals {
  bf16* S;       // (B H, F, D): S or R
  float* z;      // (B H, F): z or y
  float* shift;  // (B H, F), of keys only
};

/// Sums over the keys of each segment of `s`. parts: S, z and shift, (B H segments) slots.
void sum_keys(const Sequence& s, const SumSlots& parts, std::int64_t batch, int D);
/// Sums over the sequence from those over each of `segments` segments, in the order of time, in slots of so many features.
void sum_segments(const SumSlots& parts, const Totals& totals, std::int64_t heads, std::int64_t segments, int D, int features);

/// Blocks of heads of 64 that an H100 holds at a time, by how many a multiprocessor.
constexpr std::int64_t kTwoEach = 264, kThreeEach = 396, kFourEach = 528;

/// Segments of passes whose chunks are independent.
inline Segments even_segments(const Shape& q, std::int64_t held) { return cut_walks(q, held, 2, 0); }
inline Sequence cut(Sequence s, const Segments& g) {
  s.chunks = g.chunks, s.segments = g.count, s.segment_chunks = g.length;
  return s;
}

inline SumSlots take_parts(Workspace& w, const Shape& q, std::int64_t segments) { return w.take_slots(q[0] * q[2] * segments, q[3], true); }
/// Of 2 D features with their shifts, or of so many without.
inline Totals take_totals(Workspace& w, const Shape& q, std::int64_t features = 0) {
  const std::int64_t rows = q[0] * q[2] * (features ? features : 2 * q[3]);
  return {w.take<bf16>(rows * q[3]), w.take<float>(rows), features ? nullptr : w.take<float>(rows)};
}

/// S of one batch element and head into a tile of F rows, kD for each of one sign or two, and its rows of numbers; a thread has one
/// feature. The copies are waited for by the caller.
template <int kD, int kSigns = 2>
__device__ __forceinline__ void load_totals(bf16* S, float* z, const Totals& from, std::int64_t index, const Lanes<kD>& l) {
  const bf16* const source = from.S + index * kSigns * kD * kD;
#pragma unroll
  for (int sign = 0; sign < kSigns; ++sign) load_rows<kD>(S + sign * kD * kD, source + sign * kD * kD, kD, kD, true, l);
  if (threadIdx.x < kSigns * kD) z[threadIdx.x] = from.z[index * kSigns * kD + threadIdx.x];
}

std::int64_t bidirectional_forward_workspace(const Shape& q);
std::int64_t bidirectional_backward_workspace(const Shape& q, std::int64_t key_heads);
void bidirectional_forward(const Call& c);
/// Backward of a call whose output has a gradient.
void bidirectional_backward(const Call& c);

}  // namespace hedgehog::cuda::linear_attention_mma

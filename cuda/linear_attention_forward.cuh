#pragma once
#include "cuda/linear_attention_mma_call.cuh"

/// What the two forms of the forward pass on tensor cores share.
namespace hedgehog::cuda::linear_attention_mma {

struct ForwardArguments {
  Sequence s;
  HeadsTarget<bf16> o;
  float* saved;  // (B, T, H) or null
  SumSlots states;         // before each segment
  // for backward, or null: states before each segment of backward, and from slot `kept_final` on the final ones
  SumSlots kept;
  int kept_segments, kept_length;  // length: chunks of a segment
  std::int64_t kept_final;
  float* final_state;      // (B, H, F, D + 2), the second output, or null
  float* local;  // (slots, F) shifts of what the keys of a segment alone add
  int* rare;     // (B H segments) 1: the walk is left to the kernel that knows log space; null: it has all walks
  float* no_state;  // the second output, one 0, or null
};

/// Shared memory of both forms.
template <int kD>
struct ForwardTiles {
  static constexpr int kTile = kD * kD;
  bf16 weight_q[kTile], weight_k[kTile];  // (D, D')
  bf16 q[kTile], k[kTile], v[kTile];      // (chunk, D)
  bf16 phi[2 * kTile];                    // (F, chunk)
  bf16 S[2 * kTile];                      // (F, Dv), in the scale of the chunk
  FeatureRows<kD> features;
  signed char rows[2][kD];                // document rows of this chunk and the next
};

/// Whether backward wants the state before a chunk, and in which slot.
__device__ __forceinline__ bool keeps(const ForwardArguments& p, int chunk) {
  return p.kept.S && chunk % p.kept_length == 0 && (chunk > 0 || p.s.initial);
}
__device__ __forceinline__ std::int64_t kept_slot(const ForwardArguments& p, const Walk& walk, int chunk) {
  Sequence s = p.s;
  s.segments = p.kept_segments;
  return s.state_slot(walk.index, chunk / p.kept_length);
}
template <int kD>
__device__ __forceinline__ void keep_state(const ForwardArguments& p, const KeyState<kD>& state, std::int64_t slot, const Lanes<kD>& l) {
  state.sums.store(p.kept, slot, l);
#pragma unroll
  for (int s = 0; s < 2; ++s)
#pragma unroll
    for (int x = 0; x < 2; ++x)
      if (l.column == 0) p.kept.shift[slot * 2 * kD + s * kD + l.row + 8 * x] = state.shift[s][x];
}
/// The state after the last chunk.
template <int kD>
__device__ void end_with(const ForwardArguments& p, const KeyState<kD>& state, std::int64_t index, const Lanes<kD>& l) {
  if (p.kept.S) keep_state(p, state, p.kept_final + index, l);
  for (int s = 0; s < 2; ++s)
    for (int x = 0; x < 2; ++x) {
      float* const row = p.final_state + (index * 2 * kD + s * kD + l.row + 8 * x) * (kD + 2);
      if (l.column == 0) row[kD] = state.sums.z[s][x], row[kD + 1] = state.shift[s][x] * kLn2;
#pragma unroll
      for (int n = 0; n < kD / 8; ++n)
        *reinterpret_cast<float2*>(row + 8 * n + l.column) = float2{state.sums.S[s][n][2 * x], state.sums.S[s][n][2 * x + 1]};
    }
}

/// Starts all walks with products of a warpgroup, and marks in `rare` those that are left undone.
void warpgroup_forward(const ForwardArguments& p, std::int64_t blocks);

}  // namespace hedgehog::cuda::linear_attention_mma

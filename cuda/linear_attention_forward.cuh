#pragma once
#include "cuda/linear_attention_mma_call.cuh"

/// What the two forms of the forward pass on tensor cores share.
namespace hedgehog::cuda::linear_attention_mma {

struct ForwardArguments {
  Sequence s;
  HeadsTarget<bf16> o;
  float* saved;  // (B, T, H) or null
  SumSlots states;
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

/// Starts all walks with products of a warpgroup, and marks in `rare` those that are left undone.
void warpgroup_forward(const ForwardArguments& p, std::int64_t blocks);

}  // namespace hedgehog::cuda::linear_attention_mma

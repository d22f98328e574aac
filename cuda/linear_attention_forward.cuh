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
};

/// Starts all walks with products of a warpgroup; those marked in `rare` are left undone.
void warpgroup_forward(const ForwardArguments& p, std::int64_t blocks);

}  // namespace hedgehog::cuda::linear_attention_mma

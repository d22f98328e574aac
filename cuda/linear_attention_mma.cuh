#pragma once
#include <cstdint>
#include <span>

#include "core/op.h"

/// The fast path of linear_attention: bf16 on tensor cores, phi never in device memory. A block walks the chunks of one batch
/// element and head, or of a segment of it where batch and heads are few; then states at the segments' ends are made first. Where
/// every query sees every key, sums over all keys are made first, and all else is independent (linear_attention_mma_bidirectional.cuh).
namespace hedgehog::cuda::linear_attention_mma {

/// Whether forward and backward below take a call, from attributes, shapes and dtypes: bf16, a map with a logarithm, D = Dv = D' of 32
/// or 64, chunk 0 and no mask. With states or if not causal the map is "hedgehog" with weights and without biases, and there are no
/// documents; if not causal there are no states.
bool supports(const Attributes& attributes, std::span<const Meta> inputs);

/// Whether they turn queries and keys of a supported call by a table of rotary as they load them.
bool applies_rotary(const Attributes& attributes, std::span<const Meta> inputs);

/// What forward keeps for backward: states before its segments, final states, and what normalises features.
std::vector<Meta> kept(const Attributes& attributes, std::span<const Meta> inputs);

/// Bytes of workspace of a supported call.
std::int64_t forward_workspace(const Attributes& attributes, std::span<const Meta> inputs);
std::int64_t backward_workspace(const Attributes& attributes, std::span<const Meta> inputs);

void forward(const Call& c);
void backward(const Call& c);

}  // namespace hedgehog::cuda::linear_attention_mma

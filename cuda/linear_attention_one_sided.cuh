#pragma once
#include <cstdint>
#include <span>

#include "core/op.h"

/// linear_attention with a map of one feature a column and no logarithm, "elu", "relu" and "identity": bf16 on tensor cores with
/// `mma.sync`, phi never in device memory. Blocks walk chunks as those of linear_attention_mma.cuh do, but features enter as they are:
/// nothing has a shift, and no row needs log space.
namespace hedgehog::cuda::linear_attention_one_sided {

/// Whether forward and backward below take a call, from attributes, shapes and dtypes: bf16, one of these maps with or without weights
/// and biases, D = Dv = D' of 32 or 64, chunk 0, no mask and no states; if not causal no documents.
bool supports(const Attributes& attributes, std::span<const Meta> inputs);

/// Bytes of workspace of a supported call.
std::int64_t forward_workspace(const Attributes& attributes, std::span<const Meta> inputs);
std::int64_t backward_workspace(const Attributes& attributes, std::span<const Meta> inputs);

void forward(const Call& c);
void backward(const Call& c);

}  // namespace hedgehog::cuda::linear_attention_one_sided

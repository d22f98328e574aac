#pragma once
#include <cstdint>
#include <span>

#include "core/op.h"

/// linear_attention for large heads: bf16 on tensor cores (mma.sync), where a state is too large to be carried along in registers
/// beside everything else. Chunks of D tokens are independent blocks; sums over earlier and later chunks go through memory:
///
///   forward    sums of each chunk, their scan, o
///   backward   the same sums and scan, du of queries, dq and dweight_q; sums of queries, their scan against time, du of keys and dv,
///              dk and dweight_k
///
/// with u = x W, so that dx = du W^T and dweight = sum x^T du are products of their own.
namespace hedgehog::cuda::linear_attention_large {

/// Whether forward and backward below take a call, from attributes, shapes and dtypes: bf16, causal, map "hedgehog" with weights and
/// without biases, D = Dv = D' of 96 or 128, chunk 0, no mask and no states; on a GPU with shared memory of 112 KiB a block for
/// heads of 96, of 210 KiB for those of 128.
bool supports(const Attributes& attributes, std::span<const Meta> inputs);

/// Bytes of workspace of a supported call.
std::int64_t forward_workspace(const Attributes& attributes, std::span<const Meta> inputs);
std::int64_t backward_workspace(const Attributes& attributes, std::span<const Meta> inputs);

void forward(const Call& c);
void backward(const Call& c);

}  // namespace hedgehog::cuda::linear_attention_large

#pragma once
#include "cuda/packet.cuh"
#include "ops/softmax_attention_sizes.h"

/// What the kernels of softmax attention share.
namespace hedgehog::cuda::softmax_attention {

using softmax_attention_detail::Sizes;
using softmax_attention_detail::sizes_of;
namespace input = softmax_attention_detail;  // kQ, kK, ...

constexpr const char* kName = "softmax_attention";

/// One call, as its kernels see it. Backward fills dy, delta and the gradients too.
template <class T>
struct Arguments {
  Sizes s;
  Heads<const T> q, k, v, dy;
  Heads<T> o;
  Accumulator<T>* log_sum_exp = nullptr;  // (B, T, Hq)
  const std::int32_t* document_start = nullptr;  // (B, T)
  const std::int32_t* mask = nullptr;            // (B, T)
  HeadsTarget<T> dq, dk, dv;
  void* workspace = nullptr;

  explicit Arguments(const Call& c)
      : s(sizes_of(c)),
        q(Heads<const T>(kName, c.inputs[input::kQ])),
        k(Heads<const T>(kName, c.inputs[input::kK])),
        v(Heads<const T>(kName, c.inputs[input::kV])),
        o(Heads<T>(kName, c.outputs[0])),
        log_sum_exp(c.saved[0].as<Accumulator<T>>()),
        document_start(c.inputs[input::kDocumentStart].as<std::int32_t>()),
        mask(c.inputs[input::kMask].as<std::int32_t>()),
        workspace(c.workspace) {
    if (c.dx.empty()) return;
    dy = Heads<const T>(kName, c.dy[0]);
    dq = HeadsTarget<T>(kName, c, input::kQ);
    dk = HeadsTarget<T>(kName, c, input::kK);
    dv = HeadsTarget<T>(kName, c, input::kV);
  }
};

/// Grid of a number of blocks that must be one each.
inline unsigned grid_of(std::int64_t blocks) {
  if (blocks > std::int64_t(2147483647))
    throw ShapeError("[softmax_attention] too many tokens and heads for one launch; use a smaller batch");
  return unsigned(blocks);
}

/// Tensor-core kernels: bf16, D = Dv of 32, 64, 96 or 128, no mask, vectors on 16-byte boundaries.
bool suits_mma(const Arguments<bf16>& a);
void forward_mma(const Arguments<bf16>& a);
void backward_mma(const Arguments<bf16>& a);
/// Whether a block of this GPU has the shared memory that backward needs: 129 KiB for heads of 128.
bool backward_mma_fits(const Sizes& s);
std::int64_t backward_mma_bytes(const Sizes& s);

}  // namespace hedgehog::cuda::softmax_attention

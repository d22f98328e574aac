#pragma once
#include "cuda/common.cuh"
#include "ops/softmax_attention_sizes.h"

/// What the kernels of softmax attention share.
namespace hedgehog::cuda::softmax_attention {

using softmax_attention_detail::Sizes;
using softmax_attention_detail::sizes_of;
namespace input = softmax_attention_detail;  // kQ, kK, ...

constexpr const char* kName = "softmax_attention";

/// Where a gradient goes: elements like the input's, or f32 for a bf16 parameter.
template <class T>
struct Gradient {
  Heads<T> narrow;
  Heads<float> wide;
  bool adds = false;

  Gradient() = default;
  Gradient(const Ref& dx, Mode mode) : adds(mode == Mode::accumulate) {
    if (std::is_same_v<T, bf16> && dx.dtype == Dtype::f32) wide = Heads<float>(kName, dx);
    else narrow = Heads<T>(kName, dx);
  }
  template <class A>
  __device__ __forceinline__ void put(std::int64_t b, std::int64_t t, std::int64_t h, std::int64_t e, A value) const {
    if (wide) store(wide.at(b, t, h) + e, float(value), adds);
    else store(narrow.at(b, t, h) + e, value, adds);
  }
  __host__ __device__ explicit operator bool() const { return narrow.data || wide.data; }
};

/// One call, as its kernels see it. Backward fills dy, delta and the gradients too.
template <class T>
struct Arguments {
  Sizes s;
  Heads<const T> q, k, v, dy;
  Heads<T> o;
  Accumulator<T>* log_sum_exp = nullptr;  // (B, T, Hq)
  const std::int32_t* document_start = nullptr;  // (B, T)
  const std::int32_t* mask = nullptr;            // (B, T)
  Gradient<T> dq, dk, dv;
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
    dq = Gradient<T>(c.dx[input::kQ], c.modes[input::kQ]);
    dk = Gradient<T>(c.dx[input::kK], c.modes[input::kK]);
    dv = Gradient<T>(c.dx[input::kV], c.modes[input::kV]);
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
std::int64_t backward_mma_bytes(const Sizes& s);

}  // namespace hedgehog::cuda::softmax_attention

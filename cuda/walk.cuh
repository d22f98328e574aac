#pragma once
#include "cuda/packet.cuh"
#include "ops/broadcast.h"

/// Elementwise loops over several tensors on the device: the walks of ops/broadcast.h, 16 bytes a thread where the memory
/// allows it, one element a thread elsewhere.
namespace hedgehog::cuda {

constexpr unsigned kThreads = 256;  // of an elementwise block

/// Where one thread is in a walk: at n neighbours, or at one element (then all n lanes hold it, so that the arithmetic
/// stands once and gives the same bits either way).
template <int N, int n>
struct Lanes {
  detail::Offsets<N> at, step;
  bool whole;

  /// The lanes of operand k.
  template <class T, class A>
  __device__ __forceinline__ void load(int k, const T* data, A (&out)[n]) const {
    if (whole && step[k] == 1) return load_packet<n>(data + at[k], out);
    const A x = convert<A>(data[at[k]]);
#pragma unroll
    for (int j = 0; j < n; ++j) out[j] = x;
  }
  /// Writes or adds to operand 0.
  template <class T, class A>
  __device__ __forceinline__ void store(T* data, const A (&values)[n], bool adds = false) const {
    if (whole) put_packet<n>(data + at[0], values, adds);
    else cuda::store(data + at[0], values[0], adds);
  }
  template <class T>
  __device__ __forceinline__ void store(const Target<T>& to, const Accumulator<T> (&values)[n]) const {
    if constexpr (std::is_same_v<T, bf16>) {
      if (to.wide) return store(static_cast<float*>(to.data), values, to.adds);
    }
    store(static_cast<T*>(to.data), values, to.adds);
  }
};

/// A walk cut into groups of n neighbours. Operand 0 is the result. Operands that are null are not touched.
template <int N>
struct VectorWalk {
  detail::Walk<N> walk;
  std::int64_t size = 1, vectors = 0, threads = 1;  // elements; groups of n; groups and what is left

  VectorWalk(const detail::Walk<N>& w, int n, const std::array<const void*, N>& data) : walk(w), size(w.count()) {
    const detail::Offsets<N> step = w.step();
    bool fits = w.rank > 0 && step[0] == 1 && (w.rank == 1 || w.inner() % n == 0);
    for (int k = 0; k < N; ++k) {
      if (!data[k] || step[k] == 0) continue;
      fits = fits && step[k] == 1 && aligned({data[k]});
      for (int i = 0; i + 1 < w.rank; ++i) fits = fits && w.stride[i][k] % n == 0;
    }
    vectors = fits ? size / n : 0;
    threads = vectors + (size - vectors * n);
  }
  unsigned blocks() const { return blocks_for(threads, kThreads); }
};

/// An address that lies at a boundary where both do: for an operand that is two tensors of one layout.
inline const void* both(const void* a, const void* b) {
  return reinterpret_cast<const void*>(reinterpret_cast<std::uintptr_t>(a) | reinterpret_cast<std::uintptr_t>(b));
}

/// Calls body(lanes) for everything that falls to this thread. All accesses of a body before its store: operands may
/// share memory.
template <int n, int N, class Body>
__device__ __forceinline__ void for_each_lanes(const VectorWalk<N>& w, const Body& body) {
  const detail::Offsets<N> step = w.walk.step();
  const std::int64_t grid = std::int64_t(gridDim.x) * blockDim.x;
  for (std::int64_t t = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x; t < w.threads; t += grid) {
    const bool whole = t < w.vectors;
    const std::int64_t first = whole ? t * n : t + w.vectors * (n - 1);
    body(Lanes<N, n>{w.walk.at(first), step, whole});
  }
}

}  // namespace hedgehog::cuda

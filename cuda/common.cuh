#pragma once
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "core/error.h"
#include "core/op.h"
#include "cuda/kernels.h"
#include "cuda/stream.h"

/// What all kernel files share: element types, launches, rows with a stride, block sums.
namespace hedgehog::cuda {

using bf16 = __nv_bfloat16;

/// Sums, normalisers and running states of elements of type T.
template <class T>
using Accumulator = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <class To, class From>
__host__ __device__ __forceinline__ To convert(From x) {
  if constexpr (std::is_same_v<To, From>) return x;
  else if constexpr (std::is_same_v<From, bf16>) return To(__bfloat162float(x));
  else if constexpr (std::is_same_v<To, bf16>) return __float2bfloat16(float(x));
  else return To(x);
}
/// The halves of two bf16 in 32 bits: a bf16 is the upper half of an f32.
__device__ __forceinline__ float low_of(unsigned pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high_of(unsigned pair) { return __uint_as_float(pair & 0xffff0000u); }
/// The element as its accumulator.
template <class T>
__device__ __forceinline__ Accumulator<T> load(const T* at) {
  return convert<Accumulator<T>>(*at);
}
/// Writes or adds, rounding once.
template <class T, class A>
__device__ __forceinline__ void store(T* at, A value, bool adds) {
  *at = convert<T>(adds ? A(convert<A>(*at) + value) : value);
}

/// Calls f(T{}) with the element type of a computing dtype: f32, f64 or bf16.
template <class F>
void dispatch_floating(Dtype dtype, F&& f) {
  if (dtype == Dtype::f32) return f(float{});
  if (dtype == Dtype::f64) return f(double{});
  if (dtype == Dtype::bf16) return f(bf16{});
  throw DtypeError("computes in f32, f64 or bf16, but got i32; use cast first");
}

/// A gradient's element type: that of the input, or f32 for the gradient of a bf16 parameter. Calls f(G{}).
template <class T, class F>
void dispatch_gradient(const Ref& dx, F&& f) {
  if constexpr (std::is_same_v<T, bf16>) {
    if (dx.dtype == Dtype::f32) return f(float{});
  }
  f(T{});
}

inline bool adds(const Call& c, int i) { return c.modes[std::size_t(i)] == Mode::accumulate; }

/// Elements of a tensor that may be rows of `columns` contiguous elements, `stride` apart.
template <class T>
struct Rows {
  T* data = nullptr;
  std::int64_t columns = 1, stride = 1;

  Rows() = default;
  explicit Rows(const Ref& x) : data(static_cast<T*>(x.data)), columns(x.columns), stride(x.stride) {}
  /// Address of element i in row-major order.
  __device__ __forceinline__ T* at(std::int64_t i) const {
    return columns == stride ? data + i : data + i / columns * stride + i % columns;
  }
  __host__ __device__ explicit operator bool() const { return data != nullptr; }
};

/// Vectors (b, t, h) of a (B, T, H, D) tensor that may be a window of a packed one: token t of one batch element and head
/// lies `token` elements after token t - 1. Built on the host; throws ShapeError where tokens are not evenly spaced.
template <class T>
struct Heads {
  T* data = nullptr;
  std::int64_t batch = 0, token = 0, head = 0;  // elements from one to the next

  Heads() = default;
  /// Empty for a tensor without data.
  Heads(const char* op, const Ref& x) : data(static_cast<T*>(x.data)) {
    if (!data) return;
    const std::int64_t depth = x.shape[3], width = x.shape[2] * depth, tokens = x.shape[1];
    // the place of a vector: runs of x.columns elements lie x.stride apart
    auto place = [&](std::int64_t flat) { return flat / x.columns * x.stride + flat % x.columns; };
    head = x.shape[2] > 1 ? place(depth) : depth;
    token = tokens > 1 ? place(width) : width;
    batch = x.batch ? x.batch : x.shape[0] > 1 ? place(tokens * width) : 0;
    const bool even = x.columns % depth == 0 && place((x.shape[2] - 1) * depth) == (x.shape[2] - 1) * head &&
                      place((tokens - 1) * width) == (tokens - 1) * token &&
                      (x.batch || place((x.shape[0] - 1) * tokens * width) == (x.shape[0] - 1) * batch);
    if (!even) throw_uneven(op, x);
  }
  __device__ __forceinline__ T* at(std::int64_t b, std::int64_t t, std::int64_t h) const {
    return data + b * batch + t * token + h * head;
  }
  __host__ __device__ explicit operator bool() const { return data != nullptr; }
};

/// Blocks for n items, `each` items a block, at most `most`: kernels walk the rest with a grid stride.
inline unsigned blocks_for(std::int64_t n, std::int64_t each, std::int64_t most = 132 * 32) {
  const std::int64_t blocks = (n + each - 1) / each;
  return unsigned(blocks < 1 ? 1 : blocks < most ? blocks : most);
}

constexpr unsigned kWarp = 32;

/// Over kLanes neighbouring lanes, a power of two of them; all of them get it.
template <int kLanes = int(kWarp), class T>
__device__ __forceinline__ T warp_sum(T x) {
#pragma unroll
  for (int offset = kLanes / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
  return x;
}
template <int kLanes = int(kWarp), class T>
__device__ __forceinline__ T warp_max(T x) {
#pragma unroll
  for (int offset = kLanes / 2; offset > 0; offset /= 2) {
    const T other = __shfl_xor_sync(0xffffffffu, x, offset);
    x = other > x ? other : x;
  }
  return x;
}

/// Sum over the block in a fixed order; every thread gets it. blockDim.x is a multiple of 32, at most 1024.
template <class T>
__device__ __forceinline__ T block_sum(T x) {
  __shared__ T parts[32];
  x = warp_sum(x);
  const unsigned warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  __syncthreads();  // the sum before this one has been read
  if (lane == 0) parts[warp] = x;
  __syncthreads();
  x = lane < blockDim.x / kWarp ? parts[lane] : T(0);
  return warp_sum(x);
}

/// Largest over the block, likewise; x is not NaN.
template <class T>
__device__ __forceinline__ T block_max(T x) {
  __shared__ T parts[32];
  x = warp_max(x);
  const unsigned warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  __syncthreads();  // the maximum before this one has been read
  if (lane == 0) parts[warp] = x;
  __syncthreads();
  x = lane < blockDim.x / kWarp ? parts[lane] : -std::numeric_limits<T>::infinity();
  return warp_max(x);
}

}  // namespace hedgehog::cuda

#include "cuda/row_blocks.cuh"
#include "cuda/moves.cuh"
#include "cuda/reduce.cuh"
#include "ops/math.h"

namespace hedgehog::cuda {
namespace {

/// x as (outer, n, inner), where n is the axis.
struct AxisView {
  std::int64_t outer = 1, n = 1, inner = 1;

  explicit AxisView(const Call& c) {
    const Shape& x = c.inputs[0].shape;
    const std::int64_t given = c.attributes.integer("axis"), axis = given < 0 ? given + x.rank() : given;
    for (int i = 0; i < x.rank(); ++i) (i < axis ? outer : i == axis ? n : inner) *= x[i];
  }
  __host__ __device__ std::int64_t results() const { return outer * inner; }
  __host__ __device__ std::int64_t size() const { return outer * n * inner; }
  /// First element of result r in x.
  __device__ std::int64_t first(std::int64_t r) const { return inner == 1 ? r * n : r / inner * n * inner + r % inner; }
};

/// An element and where it is.
template <class A>
struct Placed {
  A value;
  std::int64_t index;
};

/// The one that a maximum takes: the first NaN, else the first of the largest. A total order, so any tree gives it.
template <class A>
__device__ __forceinline__ Placed<A> better(const Placed<A>& a, const Placed<A>& b) {
  const bool a_nan = a.value != a.value, b_nan = b.value != b.value;
  if (a_nan != b_nan) return a_nan ? a : b;
  if (!a_nan && a.value != b.value) return a.value > b.value ? a : b;
  return a.index <= b.index ? a : b;
}

template <class A>
__device__ __forceinline__ Placed<A> warp_best(Placed<A> x) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2)
    x = better(x, Placed<A>{__shfl_xor_sync(0xffffffffu, x.value, offset), __shfl_xor_sync(0xffffffffu, x.index, offset)});
  return x;
}

/// Maximum along the last axis: a block a row, so that reads are side by side.
template <class T>
__global__ void max_rows_kernel(const T* x, T* y, std::int32_t* where, std::int64_t rows, std::int64_t n) {
  using A = Accumulator<T>;
  __shared__ A values[32];
  __shared__ std::int64_t indices[32];
  const unsigned warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const Placed<A> none{-std::numeric_limits<A>::infinity(), std::numeric_limits<std::int64_t>::max()};
  for (std::int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    Placed<A> best = none;
    for (std::int64_t i = threadIdx.x; i < n; i += blockDim.x) best = better(best, Placed<A>{load(x + row * n + i), i});
    best = warp_best(best);
    __syncthreads();  // the row before this one has been read
    if (lane == 0) values[warp] = best.value, indices[warp] = best.index;
    __syncthreads();
    best = lane < blockDim.x / kWarp ? Placed<A>{values[lane], indices[lane]} : none;
    best = warp_best(best);
    if (threadIdx.x != 0) continue;
    y[row] = x[row * n + best.index];
    if (where) where[row] = std::int32_t(best.index);
  }
}

/// Maximum along an outer axis: a thread a result, neighbouring results side by side.
template <class T>
__global__ void max_columns_kernel(const T* x, T* y, std::int32_t* where, AxisView v) {
  using A = Accumulator<T>;
  const std::int64_t grid = std::int64_t(gridDim.x) * blockDim.x;
  for (std::int64_t r = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x; r < v.results(); r += grid) {
    const T* at = x + v.first(r);
    Placed<A> best{load(at), 0};
    for (std::int64_t k = 1; k < v.n; ++k) best = better(best, Placed<A>{load(at + k * v.inner), k});
    y[r] = at[best.index * v.inner];
    if (where) where[r] = std::int32_t(best.index);
  }
}

/// dx (+)= dy where the largest element was, else 0. One element of x a thread.
template <class T>
__global__ void max_backward_kernel(Target<T> dx, const T* dy, const std::int32_t* where, AxisView v) {
  using A = Accumulator<T>;
  const std::int64_t grid = std::int64_t(gridDim.x) * blockDim.x, size = v.size();
  for (std::int64_t e = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x; e < size; e += grid) {
    const std::int64_t row = e / v.inner, r = row / v.n * v.inner + e % v.inner;
    dx.put(e, where[r] == row % v.n ? load(dy + r) : A(0));
  }
}

/// A shift that makes no exponential overflow; -inf - -inf would be NaN.
template <class A>
__device__ __forceinline__ A finite_shift(A m) {
  return isfinite(m) ? m : A(0);
}

/// y = m + ln sum e^(x - m) along the last axis: a block a row, which it reads twice.
template <class T>
__global__ void logsumexp_rows_kernel(const T* x, T* y, std::int64_t rows, std::int64_t n) {
  using A = Accumulator<T>;
  for (std::int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const T* at = x + row * n;
    const A shift = finite_shift(largest_of(at, n));
    A sum = 0;
    for (std::int64_t i = threadIdx.x; i < n; i += blockDim.x) sum += vector_exp(load(at + i) - shift);
    sum = block_sum(sum);
    if (threadIdx.x == 0) y[row] = convert<T>(shift + std::log(sum));
  }
}

/// The same along an outer axis: a thread a result, neighbouring results side by side.
template <class T>
__global__ void logsumexp_columns_kernel(const T* x, T* y, AxisView v) {
  using A = Accumulator<T>;
  const std::int64_t grid = std::int64_t(gridDim.x) * blockDim.x;
  for (std::int64_t r = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x; r < v.results(); r += grid) {
    const T* at = x + v.first(r);
    A m = load(at), sum = 0;
    for (std::int64_t k = 1; k < v.n; ++k) {
      const A next = load(at + k * v.inner);
      m = next > m ? next : m;
    }
    const A shift = finite_shift(m);
    for (std::int64_t k = 0; k < v.n; ++k) sum += vector_exp(load(at + k * v.inner) - shift);
    y[r] = convert<T>(shift + std::log(sum));
  }
}

/// dx (+)= dy e^(x - y). One element of x a thread.
template <class T>
__global__ void logsumexp_backward_kernel(Target<T> dx, const T* dy, const T* x, const T* y, AxisView v) {
  using A = Accumulator<T>;
  const std::int64_t grid = std::int64_t(gridDim.x) * blockDim.x, size = v.size();
  for (std::int64_t e = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x; e < size; e += grid) {
    const std::int64_t row = e / v.inner, r = row / v.n * v.inner + e % v.inner;
    const A xe = load(x + e);
    // all -inf: y is -inf too, and x - y would be NaN
    dx.put(e, xe == -std::numeric_limits<A>::infinity() ? A(0) : load(dy + r) * vector_exp(xe - load(y + r)));
  }
}

void max_forward(const Call& c) {
  const AxisView v(c);
  std::int32_t* const where = c.saved[0].as<std::int32_t>();
  dispatch_floating(c.inputs[0].dtype, [&](auto zero) {
    using T = decltype(zero);
    const T* x = c.inputs[0].as<T>();
    T* y = c.outputs[0].as<T>();
    if (v.inner == 1) max_rows_kernel<T><<<blocks_for(v.outer, 1), short_row_threads(v.n), 0, stream()>>>(x, y, where, v.outer, v.n);
    else max_columns_kernel<T><<<blocks_for(v.results(), kThreads), kThreads, 0, stream()>>>(x, y, where, v);
  });
  check_launch("max");
}

void max_backward(const Call& c) {
  const Ref &dx = c.dx[0], &dy = c.dy[0];
  if (!dx) return;
  if (!dy) return add_nothing("max", dx, c.modes[0]);
  const AxisView v(c);
  dispatch_floating(dy.dtype, [&](auto zero) {
    using T = decltype(zero);
    max_backward_kernel<T><<<blocks_for(v.size(), kThreads), kThreads, 0, stream()>>>(Target<T>(c, 0), dy.as<T>(),
                                                                                      c.saved[0].as<std::int32_t>(), v);
  });
  check_launch("max");
}

void logsumexp_forward(const Call& c) {
  const AxisView v(c);
  dispatch_floating(c.inputs[0].dtype, [&](auto zero) {
    using T = decltype(zero);
    const T* x = c.inputs[0].as<T>();
    T* y = c.outputs[0].as<T>();
    if (v.inner == 1) logsumexp_rows_kernel<T><<<blocks_for(v.outer, 1), short_row_threads(v.n), 0, stream()>>>(x, y, v.outer, v.n);
    else logsumexp_columns_kernel<T><<<blocks_for(v.results(), kThreads), kThreads, 0, stream()>>>(x, y, v);
  });
  check_launch("logsumexp");
}

void logsumexp_backward(const Call& c) {
  const Ref &dx = c.dx[0], &dy = c.dy[0];
  if (!dx) return;
  if (!dy) return add_nothing("logsumexp", dx, c.modes[0]);
  const AxisView v(c);
  dispatch_floating(dy.dtype, [&](auto zero) {
    using T = decltype(zero);
    logsumexp_backward_kernel<T><<<blocks_for(v.size(), kThreads), kThreads, 0, stream()>>>(
        Target<T>(c, 0), dy.as<T>(), c.inputs[0].as<T>(), c.outputs[0].as<T>(), v);
  });
  check_launch("logsumexp");
}

}  // namespace

void register_reduce_axis(KernelTable& table) {
  table["max"] = {max_forward, max_backward};
  table["logsumexp"] = {logsumexp_forward, logsumexp_backward};
}

}  // namespace hedgehog::cuda

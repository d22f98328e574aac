#include "cuda/elementwise.cuh"
#include "cuda/moves.cuh"

namespace hedgehog::cuda {
namespace {

using namespace detail;

/// y[.., i, j] = scores[.., i, j] for j <= i, else value. One element a thread.
template <class T>
__global__ void causal_mask_forward_kernel(const T* x, T* y, std::int64_t size, std::int64_t columns, T value) {
  const std::int64_t grid = std::int64_t(gridDim.x) * blockDim.x;
  for (std::int64_t e = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x; e < size; e += grid)
    y[e] = e % columns <= e / columns % columns ? x[e] : value;
}

/// dscores (+)= dy for j <= i, else 0.
template <class T>
__global__ void causal_mask_backward_kernel(const T* dy, Target<T> dx, std::int64_t size, std::int64_t columns) {
  using A = Accumulator<T>;
  const std::int64_t grid = std::int64_t(gridDim.x) * blockDim.x;
  for (std::int64_t e = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x; e < size; e += grid)
    dx.put(e, e % columns <= e / columns % columns ? load(dy + e) : A(0));
}

/// y = mask != 0 ? x : value. Walks over {y, x, mask}.
template <class T>
__global__ void mask_fill_forward_kernel(const __grid_constant__ VectorWalk<3> walk, T* y, const T* x, const std::int32_t* mask,
                                         Accumulator<T> value) {
  using A = Accumulator<T>;
  constexpr int n = kVector<T>;
  for_each_lanes<n>(walk, [&](const Lanes<3, n>& lanes) {
    A v[n];
    std::int32_t keeps[n];
    lanes.load(1, x, v);
    lanes.load(2, mask, keeps);
#pragma unroll
    for (int j = 0; j < n; ++j) v[j] = keeps[j] != 0 ? v[j] : value;
    lanes.store(y, v);
  });
}

/// dx (+)= dy where mask != 0, else 0. Walks over {dx, dy, mask}.
template <class T>
__global__ void mask_fill_backward_kernel(const __grid_constant__ VectorWalk<3> walk, Target<T> dx, const T* dy,
                                          const std::int32_t* mask) {
  using A = Accumulator<T>;
  constexpr int n = kVector<T>;
  for_each_lanes<n>(walk, [&](const Lanes<3, n>& lanes) {
    A g[n];
    std::int32_t keeps[n];
    lanes.load(1, dy, g);
    lanes.load(2, mask, keeps);
#pragma unroll
    for (int j = 0; j < n; ++j) g[j] = keeps[j] != 0 ? g[j] : A(0);
    lanes.store(dx, g);
  });
}

void causal_mask_forward(const Call& c) {
  const Ref &x = c.inputs[0], &y = c.outputs[0];
  dispatch_floating(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    const T value = convert<T>(c.attributes.real("value"));
    causal_mask_forward_kernel<T>
        <<<blocks_for(x.size(), kThreads), kThreads, 0, stream()>>>(x.as<T>(), y.as<T>(), x.size(), x.shape.last(), value);
  });
  check_launch("causal_mask");
}

void causal_mask_backward(const Call& c) {
  const Ref &dx = c.dx[0], &dy = c.dy[0];
  if (!dx) return;
  if (!dy) return add_nothing("causal_mask", dx, c.modes[0]);
  dispatch_floating(dy.dtype, [&](auto zero) {
    using T = decltype(zero);
    causal_mask_backward_kernel<T><<<blocks_for(dx.size(), kThreads), kThreads, 0, stream()>>>(
        dy.as<T>(), Target<T>(c, 0), dx.size(), dx.shape.last());
  });
  check_launch("causal_mask");
}

void mask_fill_forward(const Call& c) {
  const Ref &x = c.inputs[0], &mask = c.inputs[1], &y = c.outputs[0];
  dispatch_floating(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    const VectorWalk<3> walk(walk_over(y.shape, y, x, mask), kVector<T>, {y.data, x.data, mask.data});
    mask_fill_forward_kernel<T><<<walk.blocks(), kThreads, 0, stream()>>>(walk, y.as<T>(), x.as<T>(), mask.as<std::int32_t>(),
                                                                          Accumulator<T>(c.attributes.real("value")));
  });
  check_launch("mask_fill");
}

void mask_fill_backward(const Call& c) {
  const Ref &dx = c.dx[0], &dy = c.dy[0], &mask = c.inputs[1];
  if (!dx) return;
  if (!dy) return add_nothing("mask_fill", dx, c.modes[0]);
  dispatch_floating(dy.dtype, [&](auto zero) {
    using T = decltype(zero);
    const VectorWalk<3> walk(walk_over(dx.shape, dx, dy, mask), kVector<T>, {dx.data, dy.data, mask.data});
    mask_fill_backward_kernel<T>
        <<<walk.blocks(), kThreads, 0, stream()>>>(walk, Target<T>(c, 0), dy.as<T>(), mask.as<std::int32_t>());
  });
  check_launch("mask_fill");
}

}  // namespace

void register_masks(KernelTable& table) {
  table["causal_mask"] = {causal_mask_forward, causal_mask_backward};
  table["mask_fill"] = {mask_fill_forward, mask_fill_backward};
}

}  // namespace hedgehog::cuda

#pragma once
#include <cmath>

#include "cuda/common.cuh"
#include "ops/feature_map_rows.h"

/// Feature maps by warps, with the formulas of ops/feature_map_rows.h. Element r of a row of u, and the features r and width + r
/// made of it, belong to lane r % 32; other lanes see what was written after __syncwarp.
namespace hedgehog::cuda {

/// ln(sum exp(sign u_r)), the same in every lane.
template <class A, class U>
__device__ __forceinline__ A log_sum_exp_warp(int width, A sign, const U& u) {
  A largest = -A(INFINITY), sum = 0;
  for (int r = int(threadIdx.x % kWarp); r < width; r += kWarp) largest = sign * u(r) > largest ? sign * u(r) : largest;
  largest = warp_max(largest);
  for (int r = int(threadIdx.x % kWarp); r < width; r += kWarp) sum += std::exp(sign * u(r) - largest);
  return largest + std::log(warp_sum(sum));
}

/// One feature in working form of a map that is not normalised, from u, or in the second half from -u.
template <class A>
__device__ __forceinline__ A working_feature(const FeatureMap& map, A u) {
  A phi = u;
  if (map.kind == MapKind::exp) phi = A(map.temperature) * u;
  if (map.kind == MapKind::elu) phi = u < A(0) ? std::exp(u) : A(1) + u;
  const A floor = A(map.kind == MapKind::relu ? kReluFloor : kEluFloor);
  if (map.kind == MapKind::relu || map.kind == MapKind::elu) phi = phi < floor ? floor : phi;
  return phi;
}

/// Features in working form: calls y(r, ln phi_r) where the map is logarithmic, else y(r, phi_r).
template <class A, class U, class Y>
__device__ void working_features_warp(const FeatureMap& map, int width, const U& u, const Y& y) {
  const int lane = int(threadIdx.x % kWarp);
  if (!map.two_halves()) {
    for (int r = lane; r < width; r += kWarp) y(r, working_feature<A>(map, u(r)));
    return;
  }
  A scale = 1, up = 0, down = 0;
  if (map.kind == MapKind::hedgehog_softmax) {
    up = log_sum_exp_warp<A>(width, A(1), u);
    down = log_sum_exp_warp<A>(width, A(-1), u);
  } else if (map.kind == MapKind::hedgehog_joint) {
    const A a = log_sum_exp_warp<A>(width, A(2), u), b = log_sum_exp_warp<A>(width, A(-2), u), m = a > b ? a : b;
    up = down = m + std::log(std::exp(a - m) + std::exp(b - m));
    scale = 2;
  }
  for (int r = lane; r < width; r += kWarp) {
    const A x = u(r);
    y(r, scale * x - up);
    y(width + r, -scale * x - down);
  }
}

/// From the gradient dy(r) of the working form to the mapped row: calls du(r, gradient). phi(r) is read only where the map is
/// not logarithmic or is normalised; it was stored as elements of type T, and so was a floor.
template <class A, class T, class Phi, class Dy, class Du>
__device__ void working_features_backward_warp(const FeatureMap& map, int width, const Phi& phi, const Dy& dy, const Du& du) {
  const int lane = int(threadIdx.x % kWarp);
  if (!map.two_halves()) {
    const A floor = convert<A>(convert<T>(A(map.kind == MapKind::relu ? kReluFloor : kEluFloor)));
    for (int r = lane; r < width; r += kWarp) {
      A g = dy(r);
      if (map.kind == MapKind::exp) g *= A(map.temperature);
      if (map.kind == MapKind::relu || map.kind == MapKind::elu) {
        const A value = phi(r);
        if (map.kind == MapKind::elu) g *= value > A(1) ? A(1) : value;
        if (value <= floor) g = 0;
      }
      du(r, g);
    }
    return;
  }
  A up = 0, down = 0;
  if (map.normalised()) {
    for (int r = lane; r < width; r += kWarp) {
      up += dy(r);
      down += dy(width + r);
    }
    up = warp_sum(up);
    down = warp_sum(down);
    if (map.kind == MapKind::hedgehog_joint) up = down = up + down;
  }
  for (int r = lane; r < width; r += kWarp) {
    A g = dy(r), minus = dy(width + r);
    if (map.normalised()) {
      g -= phi(r) * up;
      minus -= phi(width + r) * down;
    }
    du(r, map.kind == MapKind::hedgehog_joint ? A(2) * (g - minus) : g - minus);
  }
}

}  // namespace hedgehog::cuda

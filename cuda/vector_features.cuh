#pragma once
#include "cuda/common.cuh"

/// Launchers of the ops that turn vectors of x into features, whose gradients go to x alone.
namespace hedgehog::cuda {

/// Calls run(T{}, x, phi).
template <class Run>
void features_forward(const char* op, const Call& c, const Run& run) {
  dispatch_floating(c.inputs[0].dtype, [&](auto zero) {
    using T = decltype(zero);
    run(zero, Rows<const T>(c.inputs[0]), Rows<T>(c.outputs[0]));
  });
  check_launch(op);
}
/// Calls run(T{}, x, dphi, dx, adds), if dx is wanted; dphi may be empty.
template <class Run>
void features_backward(const char* op, const Call& c, const Run& run) {
  if (!c.dx[0]) return;
  dispatch_floating(c.inputs[0].dtype, [&](auto zero) {
    using T = decltype(zero);
    dispatch_gradient<T>(c.dx[0], [&](auto gradient) {
      run(zero, Rows<const T>(c.inputs[0]), Rows<const T>(c.dy[0]), Rows<decltype(gradient)>(c.dx[0]), adds(c, 0));
    });
  });
  check_launch(op);
}

}  // namespace hedgehog::cuda

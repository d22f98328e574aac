#include "cuda/elementwise.cuh"
#include "cuda/moves.cuh"
#include "ops/elementwise_formulas.h"

namespace hedgehog::cuda {
namespace {

using namespace detail;

/// y = value(x). One group of neighbours a thread.
template <class F, class T>
__global__ void unary_forward_kernel(const __grid_constant__ VectorWalk<2> walk, F f, T* y, const T* x) {
  using A = Accumulator<T>;
  constexpr int n = kVector<T>;
  for_each_lanes<n>(walk, [&](const Lanes<2, n>& lanes) {
    A v[n];
    lanes.load(1, x, v);
#pragma unroll
    for (int j = 0; j < n; ++j) v[j] = f.value(v[j]);
    lanes.store(y, v);
  });
}

/// dx (+)= dy * slope(x, y). Walks over {dx, y and dy, x}.
template <class F, class T>
__global__ void unary_backward_kernel(const __grid_constant__ VectorWalk<3> walk, F f, Target<T> dx, const T* dy, const T* y,
                                      const T* x) {
  using A = Accumulator<T>;
  constexpr int n = kVector<T>;
  constexpr bool kReadsX = F::reads.inputs != 0, kReadsY = F::reads.outputs != 0;
  for_each_lanes<n>(walk, [&](const Lanes<3, n>& lanes) {
    A g[n], vy[n] = {}, vx[n] = {};
    lanes.load(1, dy, g);
    if constexpr (kReadsY) lanes.load(1, y, vy);
    if constexpr (kReadsX) lanes.load(2, x, vx);
#pragma unroll
    for (int j = 0; j < n; ++j) g[j] *= f.slope(vx[j], vy[j]);
    lanes.store(dx, g);
  });
}

template <class F, class T>
void unary_forward(const char* op, const Call& c) {
  const Ref &x = c.inputs[0], &y = c.outputs[0];
  const VectorWalk<2> walk(walk_over(y.shape, y, x), kVector<T>, {y.data, x.data});
  unary_forward_kernel<F, T><<<walk.blocks(), kThreads, 0, stream()>>>(walk, make_formula<F>(c.attributes), y.as<T>(), x.as<T>());
  check_launch(op);
}

template <class F, class T>
void unary_backward(const char* op, const Call& c) {
  const Ref &dx = c.dx[0], &y = c.outputs[0], &x = c.inputs[0];
  const VectorWalk<3> walk(walk_over(y.shape, dx, y, x), kVector<T>, {dx.data, both(c.dy[0].data, y.data), x.data});
  unary_backward_kernel<F, T><<<walk.blocks(), kThreads, 0, stream()>>>(walk, make_formula<F>(c.attributes), Target<T>(c, 0),
                                                                        c.dy[0].as<T>(), y.as<T>(), x.as<T>());
  check_launch(op);
}

template <class F>
void register_formula(KernelTable& table, const char* op) {
  table[op] = {[op](const Call& c) {
                 dispatch_floating(c.inputs[0].dtype, [&](auto zero) { unary_forward<F, decltype(zero)>(op, c); });
               },
               [op](const Call& c) {
                 if (!c.dx[0]) return;
                 if (!c.dy[0]) return add_nothing(op, c.dx[0], c.modes[0]);
                 dispatch_floating(c.inputs[0].dtype, [&](auto zero) { unary_backward<F, decltype(zero)>(op, c); });
               }};
}

}  // namespace

void register_unary(KernelTable& table) {
  register_formula<Affine>(table, "affine");
  register_formula<Negate>(table, "negate");
  register_formula<Exp>(table, "exp");
  register_formula<Log>(table, "log");
  register_formula<Tanh>(table, "tanh");
  register_formula<Sigmoid>(table, "sigmoid");
  register_formula<Square>(table, "square");
  register_formula<Sqrt>(table, "sqrt");
  register_formula<Reciprocal>(table, "reciprocal");
  register_formula<Relu>(table, "relu");
  register_formula<Gelu>(table, "gelu");
  register_formula<GeluErf>(table, "gelu_erf");
  register_formula<Silu>(table, "silu");
  register_formula<EluPlusOne>(table, "elu_plus_one");
  register_formula<FloorAt>(table, "floor_at");
}

}  // namespace hedgehog::cuda

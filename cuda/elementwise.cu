#include "cuda/elementwise.cuh"

#include "cuda/early_launch.cuh"
#include "cuda/moves.cuh"
#include "cuda/reduce.cuh"
#include "ops/elementwise_formulas.h"

namespace hedgehog::cuda {
namespace {

using namespace detail;

/// y = value(a, b). One group of neighbours a thread; arguments that repeat along the inner axis are read once a group.
template <class F, class T>
__global__ void binary_forward_kernel(const __grid_constant__ VectorWalk<3> walk, T* y, const T* a, const T* b) {
  using A = Accumulator<T>;
  constexpr int n = kVector<T>;
  wait_for_kernels();
  for_each_lanes<n>(walk, [&](const Lanes<3, n>& lanes) {
    A va[n], vb[n], vy[n];
    lanes.load(1, a, va);
    lanes.load(2, b, vb);
#pragma unroll
    for (int j = 0; j < n; ++j) vy[j] = F::value(va[j], vb[j]);
    lanes.store(y, vy);
  });
}

/// The gradient of argument kSide in the shape of y, before it is summed to the argument's shape. Walks over
/// {to, y and dy, a, b}.
template <class F, int kSide, class T>
__global__ void binary_backward_kernel(const __grid_constant__ VectorWalk<4> walk, Target<T> to, const T* dy, const T* y, const T* a,
                                       const T* b) {
  using A = Accumulator<T>;
  constexpr int n = kVector<T>;
  constexpr bool kReadsA = F::reads.inputs & 1u, kReadsB = F::reads.inputs >> 1 & 1u, kReadsY = F::reads.outputs & 1u;
  for_each_lanes<n>(walk, [&](const Lanes<4, n>& lanes) {
    A g[n], vy[n] = {}, va[n] = {}, vb[n] = {};
    lanes.load(1, dy, g);
    if constexpr (kReadsY) lanes.load(1, y, vy);
    if constexpr (kReadsA) lanes.load(2, a, va);
    if constexpr (kReadsB) lanes.load(3, b, vb);
#pragma unroll
    for (int j = 0; j < n; ++j) g[j] = kSide == 0 ? F::da(g[j], vy[j], va[j], vb[j]) : F::db(g[j], vy[j], va[j], vb[j]);
    lanes.store(to, g);
  });
}

template <class F, class T>
void binary_forward(const char* op, const Call& c) {
  const Ref &y = c.outputs[0], &a = c.inputs[0], &b = c.inputs[1];
  const VectorWalk<3> walk(walk_over(y.shape, y, a, b), kVector<T>, {y.data, a.data, b.data});
  launch_early(op, binary_forward_kernel<F, T>, walk.blocks(), kThreads, 0, walk, y.as<T>(), a.as<T>(), b.as<T>());
}

/// Gradient of argument kSide, laid out like `layout`, whose shape has as many elements as y.
template <class F, int kSide, class T>
void binary_terms(const char* op, const Call& c, const Ref& layout, const Target<T>& to) {
  const Ref &y = c.outputs[0], &a = c.inputs[0], &b = c.inputs[1];
  // what the formula does not read is null, and its layout does not matter
  const VectorWalk<4> walk(walk_over(y.shape, layout, y, a, b), kVector<T>, {to.data, both(c.dy[0].data, y.data), a.data, b.data});
  binary_backward_kernel<F, kSide, T>
      <<<walk.blocks(), kThreads, 0, stream()>>>(walk, to, c.dy[0].as<T>(), y.as<T>(), a.as<T>(), b.as<T>());
  check_launch(op);
}

std::int64_t terms_bytes(std::int64_t elements, Dtype dtype) {
  return (elements * size_of(accumulator_of(dtype)) + 255) / 256 * 256;
}

/// Whether the gradients are dy but for a factor.
template <class F>
constexpr bool reads_nothing = F::reads.inputs == 0 && F::reads.outputs == 0;

template <class F, int kSide, class T>
void binary_gradient(const char* op, const Call& c) {
  const Ref &dx = c.dx[kSide], &y = c.outputs[0];
  const Mode mode = c.modes[kSide];
  if (!dx) return;
  if (!c.dy[0]) return add_nothing(op, dx, mode);
  if (dx.size() == y.size()) return binary_terms<F, kSide, T>(op, c, dx, Target<T>(c, kSide));
  const SumWalk walk = sum_walk(y.shape, dx.shape);
  if constexpr (reads_nothing<F>) {
    // the terms are dy itself
    const double factor = kSide == 0 ? F::da(1.0, 0.0, 0.0, 0.0) : F::db(1.0, 0.0, 0.0, 0.0);
    sum_to(op, y.dtype, c.dy[0].data, walk, dx, factor, mode, c.workspace);
  } else {
    // a repeated argument: the terms are made first, unrounded, then summed
    Ref terms = flat(y);
    terms.data = c.workspace;
    terms.dtype = accumulator_of(y.dtype);
    binary_terms<F, kSide, T>(op, c, terms, Target<T>(terms, false));
    sum_to(op, terms.dtype, terms.data, walk, dx, 1.0, mode,
           static_cast<std::byte*>(c.workspace) + terms_bytes(y.size(), y.dtype));
  }
}

template <class F>
std::int64_t binary_workspace(const Attributes&, std::span<const Meta> in) {
  const Shape &a = in[0].shape, &b = in[1].shape;
  std::int64_t elements = 1;
  for (int i = -std::max(a.rank(), b.rank()); i < 0; ++i)
    elements *= std::max(-i <= a.rank() ? a[i] : 1, -i <= b.rank() ? b[i] : 1);
  if (a.size() == elements && b.size() == elements) return 0;
  return (reads_nothing<F> ? 0 : terms_bytes(elements, in[0].dtype)) + sum_bytes(elements);
}

template <class F>
void register_binary(KernelTable& table, const char* op) {
  table[op] = {[op](const Call& c) {
                 dispatch_floating(c.outputs[0].dtype, [&](auto zero) { binary_forward<F, decltype(zero)>(op, c); });
               },
               [op](const Call& c) {
                 dispatch_floating(c.outputs[0].dtype, [&](auto zero) {
                   using T = decltype(zero);
                   binary_gradient<F, 0, T>(op, c);
                   binary_gradient<F, 1, T>(op, c);
                 });
               },
               {}, binary_workspace<F>};
}

}  // namespace

void register_elementwise(KernelTable& table) {
  register_binary<Add>(table, "add");
  register_binary<Subtract>(table, "subtract");
  register_binary<Multiply>(table, "multiply");
  register_binary<Divide>(table, "divide");
  register_unary(table);
  register_masks(table);
}

}  // namespace hedgehog::cuda

#include "cuda/row_blocks.cuh"
#include "cuda/moves.cuh"
#include "ops/math.h"

namespace hedgehog::cuda {
namespace {

/// y = e^(x - m) / sum e^(x - m), or its logarithm. A block a row, which it reads three times (from cache if it fits); y
/// may be x: each thread writes only what it alone reads after the sums.
template <class T, bool kLog>
__global__ void softmax_forward_kernel(const T* x, T* y, std::int64_t rows, std::int64_t n) {
  using A = Accumulator<T>;
  for (std::int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const T* from = x + row * n;
    T* to = y + row * n;
    const A m = largest_of(from, n);
    A sum = 0;
    for (std::int64_t i = threadIdx.x; i < n; i += blockDim.x) sum += vector_exp(load(from + i) - m);
    sum = block_sum(sum);
    const A scale = A(1) / sum, ln = std::log(sum);
    for (std::int64_t i = threadIdx.x; i < n; i += blockDim.x) {
      const A shifted = load(from + i) - m;
      // not x - (m + ln): a large m would swallow ln
      to[i] = convert<T>(kLog ? shifted - ln : vector_exp(shifted) * scale);
    }
  }
}

/// dx (+)= y (dy - sum dy y), or dy - e^y sum dy. A block a row; dx may be dy.
template <class T, bool kLog>
__global__ void softmax_backward_kernel(const T* y, const T* dy, Target<T> dx, std::int64_t rows, std::int64_t n) {
  using A = Accumulator<T>;
  for (std::int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const std::int64_t first = row * n;
    A sum = 0;
    for (std::int64_t i = threadIdx.x; i < n; i += blockDim.x)
      sum += load(dy + first + i) * (kLog ? A(1) : load(y + first + i));
    sum = block_sum(sum);
    for (std::int64_t i = threadIdx.x; i < n; i += blockDim.x) {
      const A g = load(dy + first + i), yi = load(y + first + i);
      dx.put(first + i, kLog ? g - vector_exp(yi) * sum : yi * (g - sum));
    }
  }
}

template <bool kLog>
void softmax_forward(const char* op, const Call& c) {
  const Ref &x = c.inputs[0], &y = c.outputs[0];
  const std::int64_t rows = x.shape.rows(), n = x.shape.last();
  dispatch_floating(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    softmax_forward_kernel<T, kLog><<<blocks_for(rows, 1), short_row_threads(n), 0, stream()>>>(x.as<T>(), y.as<T>(), rows, n);
  });
  check_launch(op);
}

template <bool kLog>
void softmax_backward(const char* op, const Call& c) {
  const Ref &dx = c.dx[0], &dy = c.dy[0], &y = c.outputs[0];
  if (!dx) return;
  if (!dy) return add_nothing(op, dx, c.modes[0]);
  const std::int64_t rows = y.shape.rows(), n = y.shape.last();
  dispatch_floating(y.dtype, [&](auto zero) {
    using T = decltype(zero);
    softmax_backward_kernel<T, kLog>
        <<<blocks_for(rows, 1), short_row_threads(n), 0, stream()>>>(y.as<T>(), dy.as<T>(), Target<T>(c, 0), rows, n);
  });
  check_launch(op);
}

}  // namespace

void register_softmax(KernelTable& table) {
  table["softmax"] = {[](const Call& c) { softmax_forward<false>("softmax", c); },
                      [](const Call& c) { softmax_backward<false>("softmax", c); }};
  table["log_softmax"] = {[](const Call& c) { softmax_forward<true>("log_softmax", c); },
                          [](const Call& c) { softmax_backward<true>("log_softmax", c); }};
}

}  // namespace hedgehog::cuda

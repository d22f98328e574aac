#include "cuda/cross_entropy_rows.cuh"

namespace hedgehog::cuda {
namespace {

/// losses[n] = ln sum_v exp(logits[n, v]) - logits[n, target[n]], 0 where the target is -1, NaN where it is outside the
/// classes. A block for each row.
template <class T, int N>
__global__ void __launch_bounds__(512) cross_entropy_forward_kernel(const T* logits, const std::int32_t* targets, std::int64_t columns,
                                                                    std::int64_t classes, Accumulator<T>* losses, Accumulator<T>* highest,
                                                                    Accumulator<T>* sum) {
  using A = Accumulator<T>;
  const std::int64_t row = blockIdx.x, target = targets[row];
  const T* const scores = logits + row * columns;
  const RowExpSum<A> e = row_exp_sum<false, N>(scores, classes);
  if (threadIdx.x != 0) return;
  const A own = target >= 0 && target < classes ? load(scores + target) : A(__int_as_float(0x7fffffff));
  losses[row] = target == -1 ? A(0) : log(e.sum) - (own - e.highest);
  if (highest) highest[row] = e.highest;
  if (sum) sum[row] = e.sum;
}

void forward(const Call& c) {
  const Ref &logits = c.inputs[0], &targets = c.inputs[1];
  const std::int64_t rows = logits.shape.rows(), columns = logits.shape.last(), classes = classes_of(c.attributes, columns);
  const std::int32_t* const aims = targets.as<std::int32_t>();
  auto* const scale = static_cast<double*>(c.workspace);
  dispatch_floating(logits.dtype, [&](auto zero) {
    using T = decltype(zero);
    using A = Accumulator<T>;
    auto launch = [&](auto kernel, int n) {
      kernel<<<unsigned(rows), class_threads(classes, n), 0, stream()>>>(logits.as<T>(), aims, columns, classes, c.outputs[1].as<A>(),
                                                                         c.saved[0].as<A>(), c.saved[1].as<A>());
    };
    constexpr int N = kVector<T>;
    columns % N == 0 && aligned({logits.data}) ? launch(cross_entropy_forward_kernel<T, N>, N) : launch(cross_entropy_forward_kernel<T, 1>, 1);
    loss_scale_kernel<A><<<1, 1024, 0, stream()>>>(c.inputs[2].as<A>(), aims, rows, scale);
    loss_sum_kernel<A><<<1, 1024, 0, stream()>>>(c.outputs[1].as<A>(), rows, scale, c.outputs[0].as<A>());
  });
  check_launch("cross_entropy");
}

/// dlogits (+)= dloss scale (softmax(logits) - onehot(target)), 0 in the padding and where ignored. A block for each row.
template <class T, int N>
__global__ void __launch_bounds__(512) cross_entropy_backward_kernel(const T* logits, const std::int32_t* targets, std::int64_t columns,
                                                                     std::int64_t classes, const Accumulator<T>* dloss, const double* scale,
                                                                     const Accumulator<T>* highest, const Accumulator<T>* sum,
                                                                     Target<T> dlogits) {
  using A = Accumulator<T>;
  const std::int64_t row = blockIdx.x, target = targets[row];
  const A factor = dloss && target != -1 ? A(double(*dloss) * *scale) : A(0);
  if (factor == 0 && dlogits.adds) return;
  const A most = highest[row], share = factor / sum[row];
  for (std::int64_t c = std::int64_t(threadIdx.x) * N; c < columns; c += std::int64_t(blockDim.x) * N) {
    const Packet<T, N> packet = load_packet<N>(logits + row * columns + c);
    A d[N];
#pragma unroll
    for (int i = 0; i < N; ++i) {
      d[i] = factor != 0 && c + i < classes ? share * shifted_exp<false>(convert<A>(packet[i]) - most) : A(0);
      if (c + i == target) d[i] -= factor;
    }
    dlogits.put(row * columns + c, d);
  }
}

void backward(const Call& c) {
  const Ref &logits = c.inputs[0], &targets = c.inputs[1];
  if (!c.dx[0]) return;
  const std::int64_t rows = logits.shape.rows(), columns = logits.shape.last(), classes = classes_of(c.attributes, columns);
  const std::int32_t* const aims = targets.as<std::int32_t>();
  auto* const scale = static_cast<double*>(c.workspace);
  dispatch_floating(logits.dtype, [&](auto zero) {
    using T = decltype(zero);
    using A = Accumulator<T>;
    const Target<T> dlogits(c, 0);
    loss_scale_kernel<A><<<1, 1024, 0, stream()>>>(c.inputs[2].as<A>(), aims, rows, scale);
    auto launch = [&](auto kernel, int n) {
      kernel<<<unsigned(rows), class_threads(columns, n), 0, stream()>>>(logits.as<T>(), aims, columns, classes, c.dy[0].as<A>(), scale,
                                                                         c.saved[0].as<A>(), c.saved[1].as<A>(), dlogits);
    };
    constexpr int N = kVector<T>;
    columns % N == 0 && aligned({logits.data, dlogits.data}) ? launch(cross_entropy_backward_kernel<T, N>, N)
                                                             : launch(cross_entropy_backward_kernel<T, 1>, 1);
  });
  check_launch("cross_entropy");
}

std::int64_t workspace(const Attributes&, std::span<const Meta>) { return kScaleBytes; }

}  // namespace

void register_cross_entropy(KernelTable& table) { table["cross_entropy"] = {forward, backward, workspace, workspace}; }

}  // namespace hedgehog::cuda

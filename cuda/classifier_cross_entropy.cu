#include <algorithm>

#include "cuda/blas.h"
#include "cuda/cross_entropy_rows.cuh"
#include "cuda/stream.h"
#include "cuda/tensor_cores.cuh"

namespace hedgehog::cuda {
namespace {

/// How tokens are cut, by the shapes alone. A tile of logits goes through memory five times and each tile costs one pass over
/// the f32 dweight, so tiles are as large as the memory they take is small beside the activations: twenty times x, about what one
/// or two layers keep for backward.
struct Tiles {
  std::int64_t rows;  // of a tile; the last may have fewer
  Tiles(std::int64_t tokens, std::int64_t width, std::int64_t classes, std::int64_t element) {
    constexpr std::int64_t kLeast = std::int64_t(256) << 20, kMost = std::int64_t(1) << 30, kStep = 128;
    const std::int64_t bytes = std::clamp(20 * tokens * width * element, kLeast, kMost);
    const std::int64_t most = std::max(kStep, bytes / (classes * element) / kStep * kStep), count = (tokens + most - 1) / most;
    rows = std::min(tokens, ((tokens + count - 1) / count + kStep - 1) / kStep * kStep);
  }
};
/// Bytes of a row of logits that a block keeps in shared memory, two blocks a multiprocessor; a longer row is read twice.
constexpr std::int64_t kLongestRow = 110 << 10;

/// losses[n] = ln sum_v exp(logits[n, v]) - logits[n, target[n]]; with `gradient` the logits become those of
/// dlogits = scale (softmax(logits) - onehot(target)). A block for each row; with kKept the row comes to shared memory first.
/// The padding's and ignored rows' gradients are 0; a target outside the classes gives NaN.
template <class T, int N, bool kKept>
__global__ void __launch_bounds__(512) classifier_losses_kernel(T* logits, const std::int32_t* targets, Accumulator<T>* losses,
                                                                std::int64_t columns, std::int64_t classes, const double* scale,
                                                                bool gradient) {
  using A = Accumulator<T>;
  constexpr bool kFast = std::is_same_v<T, bf16>;
  const std::int64_t row = blockIdx.x, target = targets[row];
  T* const scores = logits + row * columns;
  if (target == -1) {
    if (threadIdx.x == 0) losses[row] = 0;
    if (!gradient) return;
    const A zeros[N] = {};
    for (std::int64_t c = std::int64_t(threadIdx.x) * N; c < columns; c += std::int64_t(blockDim.x) * N) put_packet<N>(scores + c, zeros, false);
    return;
  }
  // read before any thread overwrites it: the sums have barriers
  const A own = target >= 0 && target < classes ? load(scores + target) : A(__int_as_float(0x7fffffff));
  const T* from = scores;
  if constexpr (kKept) {  // a thread reads what it has copied itself
    extern __shared__ uint4 row_bytes[];
    T* const kept = reinterpret_cast<T*>(row_bytes);
    for (std::int64_t c = std::int64_t(threadIdx.x) * N; c < columns; c += std::int64_t(blockDim.x) * N)
      copy_async(shared_address(kept + c), scores + c, true);
    wait_all_copies();
    from = kept;
  }
  const RowExpSum<A> e = row_exp_sum<kFast, N>(from, classes);
  if (threadIdx.x == 0) losses[row] = log(e.sum) - (own - e.highest);
  if (!gradient) return;
  const A factor = A(*scale), share = factor / e.sum;
  for (std::int64_t c = std::int64_t(threadIdx.x) * N; c < columns; c += std::int64_t(blockDim.x) * N) {
    const Packet<T, N> packet = load_packet<N>(from + c);
    A d[N];
#pragma unroll
    for (int i = 0; i < N; ++i) {
      d[i] = c + i < classes ? share * shifted_exp<kFast>(convert<A>(packet[i]) - e.highest) : A(0);
      if (c + i == target) d[i] -= factor;
    }
    put_packet<N>(scores + c, d, false);
  }
}

template <class T>
void tile_losses(T* logits, const std::int32_t* targets, Accumulator<T>* losses, std::int64_t rows, std::int64_t columns,
                 std::int64_t classes, const double* scale, bool gradient) {
  constexpr int N = kVector<T>;
  const auto launch = [&](auto kernel, int n, std::size_t shared) {
    if (shared > 0) allow_shared_memory(reinterpret_cast<const void*>(kernel), shared);
    kernel<<<unsigned(rows), class_threads(columns, n), shared, stream()>>>(logits, targets, losses, columns, classes, scale, gradient);
  };
  const std::int64_t bytes = columns * std::int64_t(sizeof(T));
  if (columns % N != 0) launch(classifier_losses_kernel<T, 1, false>, 1, 0);
  else if (gradient && bytes <= std::min(kLongestRow, std::int64_t(largest_shared_memory()))) launch(classifier_losses_kernel<T, N, true>, N, std::size_t(bytes));
  else launch(classifier_losses_kernel<T, N, false>, N, 0);
  check_launch("classifier_cross_entropy");
}

void forward(const Call& c) {
  const Ref &x = c.inputs[0], &weight = c.inputs[1], &targets = c.inputs[2], &dx = c.saved[0], &dweight = c.saved[1];
  const std::int64_t rows = x.shape.rows(), columns = x.shape.last(), width = weight.shape[0], element = size_of(x.dtype);
  const std::int64_t classes = classes_of(c.attributes, width);
  const Tiles tiles(rows, columns, width, element);
  auto* const scale = static_cast<double*>(c.workspace);
  std::byte* const logits = static_cast<std::byte*>(c.workspace) + kScaleBytes;
  const std::int32_t* const aims = targets.as<std::int32_t>();
  dispatch_floating(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    using A = Accumulator<T>;
    A* const losses = c.outputs[1].as<A>();
    loss_scale_kernel<A><<<1, 1024, 0, stream()>>>(c.inputs[3].as<A>(), aims, rows, scale);
    for (std::int64_t first = 0; first < rows; first += tiles.rows) {
      const std::int64_t m = std::min(tiles.rows, rows - first);
      const T* const from = x.as<T>() + first * columns;
      multiply({.dtype = x.dtype, .result = x.dtype, .transpose_b = true, .m = m, .n = width, .k = columns, .a = from, .b = weight.data,
                .d = logits, .lda = columns, .ldb = columns, .ldd = width});
      tile_losses(reinterpret_cast<T*>(logits), aims + first, losses + first, m, width, classes, scale, dx || dweight);
      if (dx)
        multiply({.dtype = x.dtype, .result = x.dtype, .m = m, .n = columns, .k = width, .a = logits, .b = weight.data,
                  .d = dx.as<T>() + first * columns, .lda = width, .ldb = columns, .ldd = columns});
      if (dweight)
        multiply({.dtype = x.dtype, .result = dweight.dtype, .transpose_a = true, .m = width, .n = columns, .k = m, .a = logits, .b = from,
                  .d = dweight.data, .lda = width, .ldb = columns, .ldd = columns, .beta = first > 0 ? 1.0 : 0.0});
    }
    loss_sum_kernel<A><<<1, 1024, 0, stream()>>>(losses, rows, scale, c.outputs[0].as<A>());
  });
  check_launch("classifier_cross_entropy");
}

/// dx (+)= dloss * saved, where dloss lies in device memory; null: 0.
template <class S, class T>
__global__ void classifier_backward_kernel(const S* saved, const Accumulator<T>* dloss, std::int64_t size, bool vectors, Target<T> dx) {
  using A = Accumulator<T>;
  constexpr int N = kVector<T>;
  const A factor = dloss ? *dloss : A(0);
  const std::int64_t stride = std::int64_t(gridDim.x) * blockDim.x * N;
  for (std::int64_t i = (std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x) * N; i < size; i += stride) {
    if (vectors && i + N <= size) {
      const Packet<S, N> packet = load_packet<N>(saved + i);
      A values[N];
#pragma unroll
      for (int e = 0; e < N; ++e) values[e] = factor * convert<A>(packet[e]);
      dx.put(i, values);
    } else {
      for (std::int64_t e = i; e < min(i + N, size); ++e) dx.put(e, factor * load(saved + e));
    }
  }
}

template <class S, class T>
void scale_into(const Call& c, int i) {
  const Target<T> dx(c, i);
  if (!dx) return;
  const Ref& saved = c.saved[std::size_t(i)];
  classifier_backward_kernel<S, T><<<blocks_for(saved.size(), 256 * kVector<T>, 132 * 64), 256, 0, stream()>>>(
      saved.as<S>(), c.dy[0].as<Accumulator<T>>(), saved.size(), aligned({saved.data, dx.data}), dx);
  check_launch("classifier_cross_entropy");
}

void backward(const Call& c) {
  dispatch_floating(c.inputs[0].dtype, [&](auto zero) {
    using T = decltype(zero);
    scale_into<T, T>(c, 0);
    scale_into<Accumulator<T>, T>(c, 1);
  });
}

}  // namespace

void register_classifier_cross_entropy(KernelTable& table) {
  table["classifier_cross_entropy"] = {forward, backward, [](const Attributes&, std::span<const Meta> in) {
                                         const std::int64_t width = in[1].shape[0], element = size_of(in[0].dtype);
                                         return kScaleBytes + Tiles(in[0].shape.rows(), in[0].shape.last(), width, element).rows * width * element;
                                       }, {}};
}

}  // namespace hedgehog::cuda

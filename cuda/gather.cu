#include <limits>

#include "cuda/moves.cuh"

namespace hedgehog::cuda {
namespace {

/// y[n] = table[index[n]]; NaN for an index outside the table. One element a thread.
template <class T>
__global__ void gather_rows_forward_kernel(const T* table, const std::int32_t* index, T* y, std::int64_t size, std::int64_t columns,
                                           std::int64_t rows) {
  const T nan = convert<T>(std::numeric_limits<float>::quiet_NaN());
  const std::int64_t grid = std::int64_t(gridDim.x) * blockDim.x;
  for (std::int64_t e = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x; e < size; e += grid) {
    const std::int64_t row = index[e / columns];
    y[e] = row >= 0 && row < rows ? table[row * columns + e % columns] : nan;
  }
}

/// dtable[v] (+)= sum over n with index[n] = v of dy[n], in order of n. A block for each row and kThreads of its columns:
/// it looks through the index list, kThreads places at a time, and only it writes its elements, so nothing is atomic.
template <class T>
__global__ void gather_rows_backward_kernel(const std::int32_t* index, const T* dy, Target<T> dtable, std::int64_t places,
                                            std::int64_t rows, std::int64_t columns) {
  using A = Accumulator<T>;
  __shared__ bool hits[kThreads];
  const std::int64_t tiles = (columns + kThreads - 1) / kThreads;
  for (std::int64_t task = blockIdx.x; task < rows * tiles; task += gridDim.x) {
    const std::int64_t row = task / tiles, column = task % tiles * kThreads + threadIdx.x;
    A sum = 0;
    for (std::int64_t first = 0; first < places; first += kThreads) {
      const std::int64_t place = first + threadIdx.x;
      const bool hit = place < places && index[place] == row;
      // also the barrier behind the reads of `hits` before
      if (!__syncthreads_or(hit)) continue;
      hits[threadIdx.x] = hit;
      __syncthreads();
      for (unsigned i = 0; column < columns && i < kThreads; ++i)
        if (hits[i]) sum += load(dy + (first + i) * columns + column);
    }
    if (column < columns) dtable.put(row * columns + column, sum);
  }
}

/// y[n] = x[n, index[n]], 0 where index = -1; NaN for an index outside the row. One row a thread.
template <class T>
__global__ void gather_last_forward_kernel(const T* x, const std::int32_t* index, T* y, std::int64_t rows, std::int64_t columns) {
  const T nan = convert<T>(std::numeric_limits<float>::quiet_NaN()), zero = convert<T>(0.0f);
  const std::int64_t grid = std::int64_t(gridDim.x) * blockDim.x;
  for (std::int64_t row = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x; row < rows; row += grid) {
    const std::int64_t at = index[row];
    y[row] = at == -1 ? zero : at >= 0 && at < columns ? x[row * columns + at] : nan;
  }
}

/// dx[n, index[n]] (+)= dy[n], 0 elsewhere. One element of dx a thread.
template <class T>
__global__ void gather_last_backward_kernel(const std::int32_t* index, const T* dy, Target<T> dx, std::int64_t size, std::int64_t columns) {
  using A = Accumulator<T>;
  const std::int64_t grid = std::int64_t(gridDim.x) * blockDim.x;
  for (std::int64_t e = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x; e < size; e += grid) {
    const std::int64_t row = e / columns;
    const bool taken = index[row] == e % columns;
    if (taken || !dx.adds) dx.put(e, taken ? load(dy + row) : A(0));
  }
}

void gather_rows_forward(const Call& c) {
  const Ref &table = c.inputs[0], &index = c.inputs[1], &y = c.outputs[0];
  dispatch_floating(table.dtype, [&](auto zero) {
    using T = decltype(zero);
    gather_rows_forward_kernel<T><<<blocks_for(y.size(), kThreads), kThreads, 0, stream()>>>(
        table.as<T>(), index.as<std::int32_t>(), y.as<T>(), y.size(), table.shape.last(), table.shape[0]);
  });
  check_launch("gather_rows");
}

void gather_rows_backward(const Call& c) {
  const Ref &dtable = c.dx[0], &index = c.inputs[1], &dy = c.dy[0];
  if (!dtable) return;
  if (!dy) return add_nothing("gather_rows", dtable, c.modes[0]);
  const std::int64_t rows = dtable.shape[0], columns = dtable.shape.last();
  const std::int64_t tasks = rows * ((columns + kThreads - 1) / kThreads);
  dispatch_floating(dy.dtype, [&](auto zero) {
    using T = decltype(zero);
    gather_rows_backward_kernel<T><<<blocks_for(tasks, 1), kThreads, 0, stream()>>>(
        index.as<std::int32_t>(), dy.as<T>(), Target<T>(c, 0), index.size(), rows, columns);
  });
  check_launch("gather_rows");
}

void gather_last_forward(const Call& c) {
  const Ref &x = c.inputs[0], &index = c.inputs[1], &y = c.outputs[0];
  dispatch_floating(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    gather_last_forward_kernel<T><<<blocks_for(y.size(), kThreads), kThreads, 0, stream()>>>(
        x.as<T>(), index.as<std::int32_t>(), y.as<T>(), y.size(), x.shape.last());
  });
  check_launch("gather_last");
}

void gather_last_backward(const Call& c) {
  const Ref &dx = c.dx[0], &index = c.inputs[1], &dy = c.dy[0];
  if (!dx) return;
  if (!dy) return add_nothing("gather_last", dx, c.modes[0]);
  dispatch_floating(dy.dtype, [&](auto zero) {
    using T = decltype(zero);
    gather_last_backward_kernel<T><<<blocks_for(dx.size(), kThreads), kThreads, 0, stream()>>>(
        index.as<std::int32_t>(), dy.as<T>(), Target<T>(c, 0), dx.size(), dx.shape.last());
  });
  check_launch("gather_last");
}

}  // namespace

void register_gather(KernelTable& table) {
  table["gather_rows"] = {gather_rows_forward, gather_rows_backward};
  table["gather_last"] = {gather_last_forward, gather_last_backward};
}

}  // namespace hedgehog::cuda

#include "cuda/reduce.cuh"

#include <algorithm>
#include <string>

#include "cuda/moves.cuh"

namespace hedgehog::cuda {
namespace {

using namespace detail;

// how far a sum is cut into parts: enough to fill a device, fixed by shapes alone
constexpr std::int64_t kRowParts = 1024, kRowPart = 2048;         // blocks of a sum; fewest elements of one
constexpr std::int64_t kColumnParts = 65536, kColumnPart = 32;    // threads of a sum; fewest elements of one
constexpr std::int64_t kSerialParts = 64;                         // most parts that one thread adds up

/// Where sums go: element k of the target, in row-major order, by way of its rows.
struct SumTarget {
  void* data;
  Dtype dtype;
  std::int64_t columns, stride;
  double factor;
  bool adds;

  SumTarget(const Ref& y, double by, Mode mode)
      : data(y.data), dtype(y.dtype), columns(y.columns), stride(y.stride), factor(by), adds(mode == Mode::accumulate) {}
  __device__ void put(std::int64_t k, double sum) const {
    const std::int64_t at = columns == stride ? k : k / columns * stride + k % columns;
    const double value = factor * sum;
    if (dtype == Dtype::f32) store(static_cast<float*>(data) + at, value, adds);
    else if (dtype == Dtype::bf16) store(static_cast<bf16*>(data) + at, value, adds);
    else store(static_cast<double*>(data) + at, value, adds);
  }
};

/// Sums whose inner axis is reduced: a block for each part of each result, its threads side by side along the axis.
/// Parts (parts, K) are written when there are several, else the results themselves.
template <class T>
__global__ void sum_rows_kernel(const T* x, const __grid_constant__ SumWalk walk, std::int64_t results, std::int64_t terms,
                                std::int64_t parts, double* partials, SumTarget target) {
  for (std::int64_t task = blockIdx.x; task < results * parts; task += gridDim.x) {
    const std::int64_t k = task / parts, part = task % parts;
    const std::int64_t last = terms * (part + 1) / parts;
    const T* base = x + walk.kept.at(k)[0];
    double total = 0;
#pragma unroll 4
    for (std::int64_t r = terms * part / parts + threadIdx.x; r < last; r += blockDim.x)
      total += convert<double>(base[walk.reduced.at(r)[0]]);
    total = block_sum(total);
    if (threadIdx.x != 0) continue;
    if (parts > 1) partials[part * results + k] = total;
    else target.put(k, total);
  }
}

/// Sums whose inner axis is kept: a thread for each part of each result, neighbouring results side by side.
template <class T>
__global__ void sum_columns_kernel(const T* x, const __grid_constant__ SumWalk walk, std::int64_t results, std::int64_t terms,
                                   std::int64_t parts, double* partials, SumTarget target) {
  const std::int64_t grid = std::int64_t(gridDim.x) * blockDim.x;
  for (std::int64_t task = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x; task < results * parts; task += grid) {
    const std::int64_t k = task % results, part = task / results;
    const std::int64_t last = terms * (part + 1) / parts;
    const T* base = x + walk.kept.at(k)[0];
    double total = 0;
#pragma unroll 4
    for (std::int64_t r = terms * part / parts; r < last; ++r) total += convert<double>(base[walk.reduced.at(r)[0]]);
    if (parts > 1) partials[task] = total;
    else target.put(k, total);
  }
}

std::int64_t parts_of(const SumWalk& walk) {
  const std::int64_t results = walk.kept.count(), terms = walk.reduced.count();
  const std::int64_t most = walk.inner_kept ? kColumnParts / results : kRowParts / results;
  const std::int64_t useful = terms / (walk.inner_kept ? kColumnPart : kRowPart);
  return std::max<std::int64_t>(1, std::min(most, useful));
}

template <class T>
void sum_pass(const char* op, const T* x, const SumWalk& walk, std::int64_t parts, double* partials, const SumTarget& target) {
  const std::int64_t results = walk.kept.count(), terms = walk.reduced.count();
  if (walk.inner_kept) {
    const unsigned blocks = blocks_for(results * parts, kThreads);
    sum_columns_kernel<T><<<blocks, kThreads, 0, stream()>>>(x, walk, results, terms, parts, partials, target);
  } else {
    const unsigned threads = terms / parts > 1024 ? kThreads : kWarp;
    sum_rows_kernel<T><<<blocks_for(results * parts, 1), threads, 0, stream()>>>(x, walk, results, terms, parts, partials, target);
  }
  check_launch(op);
}

/// dx (+)= dy * factor, repeated along the reduced axes. Walks over {dx, dy}.
template <class T>
__global__ void sum_backward_kernel(const __grid_constant__ VectorWalk<2> walk, Target<T> dx, const T* dy, Accumulator<T> factor) {
  constexpr int n = kVector<T>;
  for_each_lanes<n>(walk, [&](const Lanes<2, n>& lanes) {
    Accumulator<T> g[n];
    lanes.load(1, dy, g);
#pragma unroll
    for (int j = 0; j < n; ++j) g[j] *= factor;
    lanes.store(dx, g);
  });
}

/// Shape of the result with the reduced axes kept at extent 1.
Shape kept_shape(const Call& c) {
  Shape y = c.inputs[0].shape;
  const bool all = c.attributes.flag("all");
  const std::int64_t axis = c.attributes.integer("axis");
  for (int i = 0; i < y.rank(); ++i)
    if (all || i == axis || i == axis + y.rank()) y.set(i, 1);
  return y;
}

template <bool kMean>
double sum_factor(const Call& c) {
  return kMean ? double(c.outputs[0].size()) / double(c.inputs[0].size()) : 1.0;
}

template <bool kMean>
void sum_forward(const char* op, const Call& c) {
  const Ref& x = c.inputs[0];
  sum_to(op, x.dtype, x.data, sum_walk(x.shape, kept_shape(c)), c.outputs[0], sum_factor<kMean>(c), Mode::write, c.workspace);
}

template <bool kMean>
void sum_backward(const char* op, const Call& c) {
  const Ref& dx = c.dx[0];
  if (!dx) return;
  if (!c.dy[0]) return add_nothing(op, dx, c.modes[0]);
  Ref dy = c.dy[0];
  dy.shape = kept_shape(c);
  dispatch_floating(dy.dtype, [&](auto zero) {
    using T = decltype(zero);
    const VectorWalk<2> walk(walk_over(dx.shape, dx, dy), kVector<T>, {dx.data, dy.data});
    sum_backward_kernel<T><<<walk.blocks(), kThreads, 0, stream()>>>(walk, Target<T>(c, 0), dy.as<T>(),
                                                                     Accumulator<T>(sum_factor<kMean>(c)));
  });
  check_launch(op);
}

template <bool kMean>
void register_sum(KernelTable& table, const char* op) {
  table[op] = {[op](const Call& c) { sum_forward<kMean>(op, c); }, [op](const Call& c) { sum_backward<kMean>(op, c); },
               [](const Attributes&, std::span<const Meta> in) { return sum_bytes(in[0].shape.size()); }};
}

}  // namespace

// several parts hold at least kColumnPart elements each, and are at most kColumnParts
std::int64_t sum_bytes(std::int64_t size) { return 8 * std::min(kColumnParts, size / kColumnPart); }

void sum_to(const char* op, Dtype dtype, const void* x, const SumWalk& walk, const Ref& y, double factor, Mode mode, void* workspace) {
  const std::int64_t parts = parts_of(walk), results = walk.kept.count();
  const SumTarget target(y, factor, mode);
  double* const partials = static_cast<double*>(workspace);
  if (results != y.size())
    throw ShapeError(std::string("[") + op + "] sums over axes that do not leave the shape of the target; this is a defect of the kernel");
  dispatch_floating(dtype, [&](auto zero) {
    using T = decltype(zero);
    sum_pass(op, static_cast<const T*>(x), walk, parts, partials, target);
  });
  if (parts == 1) return;
  SumWalk second;  // over (parts, K)
  second.kept.push(results, {1});
  second.reduced.push(parts, {results});
  second.inner_kept = parts <= kSerialParts;
  sum_pass<double>(op, partials, second, 1, nullptr, target);
}

void register_reduce(KernelTable& table) {
  register_sum<false>(table, "sum");
  register_sum<true>(table, "mean");
  register_reduce_axis(table);
}

}  // namespace hedgehog::cuda

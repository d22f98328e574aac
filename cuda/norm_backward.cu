#include "cuda/norm.cuh"
#include "cuda/partial_sums.cuh"
#include "cuda/stream.h"
#include "cuda/tensor_cores.cuh"

namespace hedgehog::cuda {
namespace {

constexpr unsigned kWarps = 8;  // of a block with a row for each warp

/// xhat = (normed - mean) rstd,  g = dy weight
/// dx = dresidual = dsum + rstd (g - mean_c(g) - xhat mean_c(g xhat)),  without mean_c(g) if not centred
template <class T>
struct NormBackward {
  const T *dy, *dsum, *normed;           // (rows, columns), null: zeros
  const Accumulator<T>* weight;          // (columns)
  const Accumulator<T>*mean, *rstd;      // (rows); mean null: not centred
  Target<T> dx, dresidual;               // (rows, columns)
  Accumulator<T>* partials;              // (blocks, 2, columns): dweight and dbias of each block's rows; null: not wanted
  std::int64_t rows, columns;
};

/// A block owns a range of rows, one at a time for each of its warps, which has kStages rows on their way to shared memory: a lane
/// reads there what it has copied itself. The warp's part of dweight and dbias stays in registers; the warps' parts are added in
/// order through shared memory, so no sum depends on timing.
template <class T, int kPackets, int kStages>
__global__ void __launch_bounds__(kWarps* kWarp, kPackets <= 3 ? 2 : 1) norm_backward_warp_kernel(const NormBackward<T> k) {
  constexpr int N = kVector<T>;
  extern __shared__ float4 shared[];
  const int lane = int(threadIdx.x % kWarp), warp = int(threadIdx.x / kWarp), packets = int(k.columns / N);
  // a gradient that is added to comes ahead of time, too
  const bool onto = k.dx.adds && !k.dx.wide && !k.dsum && !k.dresidual;
  const T* const added = onto ? static_cast<const T*>(k.dx.data) : k.dsum;
  Target<T> to = k.dx;
  to.adds = to.adds && !onto;
  const auto place = [&](std::int64_t row, int p) { return row * k.columns + std::int64_t(p * kWarp + lane) * N; };
  // dy, normed and what is added to dx, of a row
  T* const mine = reinterpret_cast<T*>(shared) + warp * kStages * 3 * k.columns + lane * N;
  const auto staged = [&](int stage, int which, int p) { return mine + (stage * 3 + which) * k.columns + p * kWarp * N; };
  const std::int64_t end = range_begin(k.rows, blockIdx.x + 1, gridDim.x);
  const auto fetch = [&](std::int64_t row, int stage) {
#pragma unroll
    for (int p = 0; p < kPackets; ++p)
      if (row < end && p * kWarp + lane < packets) {
        copy_async(shared_address(staged(stage, 0, p)), k.dy + place(row, p), true);
        copy_async(shared_address(staged(stage, 1, p)), k.normed + place(row, p), true);
        if (added) copy_async(shared_address(staged(stage, 2, p)), added + place(row, p), true);
      }
    commit_copies();
  };
  float dweight[kPackets][N] = {}, dbias[kPackets][N] = {};
  wait_for_kernels();
  const std::int64_t begin = range_begin(k.rows, blockIdx.x, gridDim.x) + warp;
  for (int i = 0; i + 1 < kStages; ++i) fetch(begin + i * kWarps, i);
  int stage = 0;
  for (std::int64_t row = begin; row < end; row += kWarps, stage = stage + 1 == kStages ? 0 : stage + 1) {
    fetch(row + (kStages - 1) * kWarps, stage == 0 ? kStages - 1 : stage - 1);
    const float rstd = k.rstd[row], mean = k.mean ? k.mean[row] : 0.0f;
    wait_copies<kStages - 1>();
    float g_sum = 0, g_xhat = 0;
#pragma unroll
    for (int p = 0; p < kPackets; ++p)
      if (const int at = p * kWarp + lane; at < packets) {
        const Packet<T, N> dy = load_packet<N>(staged(stage, 0, p)), x = load_packet<N>(staged(stage, 1, p));
        const Packet<float, N> weight = load_packet<N>(k.weight + at * N);
#pragma unroll
        for (int i = 0; i < N; ++i) {
          const float d = convert<float>(dy[i]), xhat = (convert<float>(x[i]) - mean) * rstd, g = d * weight[i];
          dweight[p][i] += d * xhat;
          dbias[p][i] += d;
          g_sum += g;
          g_xhat += g * xhat;
        }
      }
    if (!k.dx && !k.dresidual) continue;
    const float a = k.mean ? warp_sum(g_sum) / float(k.columns) : 0.0f, b = warp_sum(g_xhat) / float(k.columns);
#pragma unroll
    for (int p = 0; p < kPackets; ++p)
      if (const int at = p * kWarp + lane; at < packets) {
        const Packet<T, N> dy = load_packet<N>(staged(stage, 0, p)), x = load_packet<N>(staged(stage, 1, p));
        const Packet<float, N> weight = load_packet<N>(k.weight + at * N);
        Packet<T, N> before;
        if (added) before = load_packet<N>(staged(stage, 2, p));
        float dx[N];
#pragma unroll
        for (int i = 0; i < N; ++i) {
          const float xhat = (convert<float>(x[i]) - mean) * rstd, g = convert<float>(dy[i]) * weight[i];
          dx[i] = rstd * (g - a - xhat * b) + (added ? convert<float>(before[i]) : 0.0f);
        }
        if (to) to.put(place(row, p), dx);
        if (k.dresidual) k.dresidual.put(place(row, p), dx);
      }
  }
  if (!k.partials) return;
  wait_copies();
  __syncthreads();  // the rows make room
  float* const combined = reinterpret_cast<float*>(shared);  // (2, columns)
  for (int turn = 0; turn < int(kWarps); ++turn) {
    if (turn == warp) {
#pragma unroll
      for (int p = 0; p < kPackets; ++p)
        if (const int at = p * kWarp + lane; at < packets) {
          put_packet<N>(combined + at * N, dweight[p], turn > 0);
          put_packet<N>(combined + k.columns + at * N, dbias[p], turn > 0);
        }
    }
    __syncthreads();
  }
  float* const out = k.partials + std::int64_t(blockIdx.x) * 2 * k.columns;
  for (int i = int(threadIdx.x); i < 2 * int(k.columns); i += int(blockDim.x)) out[i] = combined[i];
}

/// Any row: a block walks the rows of its range one after the other, each thread always the same columns, and
/// sums its dweight and dbias in the workspace.
template <class T>
__global__ void norm_backward_kernel(const NormBackward<T> k) {
  using A = Accumulator<T>;
  A* const dweight = k.partials ? k.partials + std::int64_t(blockIdx.x) * 2 * k.columns : nullptr;
  if (dweight)
    for (std::int64_t i = threadIdx.x; i < k.columns; i += blockDim.x) dweight[i] = dweight[k.columns + i] = 0;
  const std::int64_t end = range_begin(k.rows, blockIdx.x + 1, gridDim.x);
  for (std::int64_t row = range_begin(k.rows, blockIdx.x, gridDim.x); row < end; ++row) {
    A rstd = 0, mean = 0, a = 0, b = 0;
    const std::int64_t start = row * k.columns;
    if (k.dy) {
      rstd = k.rstd[row];
      mean = k.mean ? k.mean[row] : A(0);
      for (std::int64_t i = threadIdx.x; i < k.columns; i += blockDim.x) {
        const A d = load(k.dy + start + i), xhat = (load(k.normed + start + i) - mean) * rstd, g = d * k.weight[i];
        if (dweight) {
          dweight[i] += d * xhat;
          dweight[k.columns + i] += d;
        }
        a += g;
        b += g * xhat;
      }
    }
    if (!k.dx && !k.dresidual) continue;
    if (k.dy) {
      a = block_sum(a) / A(k.columns);
      b = block_sum(b) / A(k.columns);
      if (!k.mean) a = 0;
    }
    for (std::int64_t i = threadIdx.x; i < k.columns; i += blockDim.x) {
      A dx = 0;
      if (k.dy) dx = rstd * (load(k.dy + start + i) * k.weight[i] - a - (load(k.normed + start + i) - mean) * rstd * b);
      if (k.dsum) dx += load(k.dsum + start + i);
      if (k.dx) k.dx.put(start + i, dx);
      if (k.dresidual) k.dresidual.put(start + i, dx);
    }
  }
}

template <class T>
bool launch_warps(const char* op, const NormBackward<T>& k, unsigned blocks) {
  constexpr int N = kVector<T>;
  if (!k.dy || k.columns % N != 0) return false;
  if (!aligned({k.dy, k.dsum, k.normed, k.weight, k.dx.data, k.dresidual.data})) return false;
  return with_packets_per_lane(k.columns / N, [&](auto packets) {
    constexpr int kPackets = packets.value;
    const std::size_t stage = std::size_t(kWarps) * 3 * std::size_t(k.columns) * sizeof(T);
    const std::size_t room = std::min<std::size_t>(kPackets <= 3 ? 112 << 10 : 224 << 10, largest_shared_memory());
    const auto launch = [&](auto kernel, std::size_t stages) {
      allow_shared_memory(reinterpret_cast<const void*>(kernel), stages * stage);
      launch_early(op, kernel, blocks, kWarps * kWarp, stages * stage, k);
    };
    if (3 * stage <= room) launch(norm_backward_warp_kernel<T, kPackets, 3>, 3);
    else if (2 * stage <= room) launch(norm_backward_warp_kernel<T, kPackets, 2>, 2);
    else launch(norm_backward_warp_kernel<T, kPackets, 1>, 1);
  });
}

}  // namespace

std::int64_t norm_backward_workspace(std::span<const Meta> in) {
  return row_ranges(in[0].shape.rows()) * 2 * in[0].shape.last() * size_of(accumulator_of(in[0].dtype));
}

void norm_backward(const Call& c, const NormPlaces& places) {
  const Ref& x = c.inputs[0];
  dispatch_floating(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    using A = Accumulator<T>;
    NormBackward<T> k{};
    k.dy = c.dy[0].as<T>();
    k.dsum = places.added ? c.dy[1].as<T>() : nullptr;
    k.normed = (places.added ? c.outputs[1] : x).template as<T>();
    k.weight = c.inputs[std::size_t(places.weight())].as<A>();
    k.mean = places.centred ? c.saved[0].as<A>() : nullptr;
    k.rstd = c.saved[places.rstd()].as<A>();
    k.dx = Target<T>(c, 0);
    if (places.added) k.dresidual = Target<T>(c, 1);
    const Target<T> dweight(c, places.weight()), dbias = places.centred ? Target<T>(c, places.bias()) : Target<T>();
    k.partials = dweight || dbias ? static_cast<A*>(c.workspace) : nullptr;
    k.rows = x.shape.rows();
    k.columns = x.shape.last();
    const unsigned blocks = unsigned(row_ranges(k.rows));
    bool launched = false;
    if constexpr (!std::is_same_v<T, double>) launched = launch_warps(places.op, k, blocks);
    if (!launched) {
      norm_backward_kernel<T><<<blocks, row_threads(k.columns, 256), 0, stream()>>>(k);
      check_launch(places.op);
    }
    if (k.partials) sum_partials<T>(places.op, k.partials, blocks, k.columns, dweight, dbias, 2);
  });
}

}  // namespace hedgehog::cuda

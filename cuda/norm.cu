#include "cuda/early_launch.cuh"
#include "cuda/norm.cuh"

namespace hedgehog::cuda {
namespace {

constexpr unsigned kWarps = 8;        // of a block with a row for each warp
constexpr std::int64_t kFewRows = 64;  // up to here a launch lasts as long as its waits for memory

/// y = (in - mean) rstd weight + bias, where in is x, or the stored sum of x and residual.
template <class T>
struct NormForward {
  const T *x, *residual;                  // (rows, columns), like x or null
  const Accumulator<T>*weight, *bias;     // (columns), like weight or null
  T *y, *sum;                             // (rows, columns), like y if there is a residual
  Accumulator<T>*mean, *rstd;             // (rows), null where not kept
  std::int64_t rows, columns;
  Accumulator<T> eps;
  bool centred, parameters;               // weight and bias are parameters
};

/// A warp for each row, which stays in registers between the sums: memory is passed over once. All loads of a row are in
/// flight before the first store, which might lie in the same memory. kFew: a warp has one row at most, and weight and bias are
/// on their way before it.
template <class T, int kPackets, bool kFew>
__global__ void __launch_bounds__(kWarps* kWarp) norm_forward_warp_kernel(const NormForward<T> k) {
  constexpr int N = kVector<T>;
  const int lane = int(threadIdx.x % kWarp), packets = int(k.columns / N);
  const std::int64_t first = std::int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  constexpr int kHeld = kFew ? kPackets : 1;
  Packet<float, N> weights[kHeld], biases[kHeld];
  if constexpr (kFew) start_next_kernel();
  if (!kFew || !k.parameters) wait_for_kernels();
  if constexpr (kFew) {
#pragma unroll
    for (int p = 0; p < kPackets; ++p)
      if (const int at = p * kWarp + lane; first < k.rows && at < packets) {
        weights[p] = load_packet<N>(k.weight + at * N);
        if (k.bias) biases[p] = load_packet<N>(k.bias + at * N);
      }
    if (k.parameters) wait_for_kernels();
  }
  for (std::int64_t row = first; row < k.rows; row += std::int64_t(gridDim.x) * kWarps) {
    Packet<T, N> in[kPackets];
#pragma unroll
    for (int p = 0; p < kPackets; ++p)
      if (const int at = p * kWarp + lane; at < packets) in[p] = load_packet<N>(k.x + row * k.columns + at * N);
    if (k.residual) {
      Packet<T, N> residual[kPackets];
#pragma unroll
      for (int p = 0; p < kPackets; ++p)
        if (const int at = p * kWarp + lane; at < packets) residual[p] = load_packet<N>(k.residual + row * k.columns + at * N);
#pragma unroll
      for (int p = 0; p < kPackets; ++p)
        if (const int at = p * kWarp + lane; at < packets) {
          // the norm is that of the sum as stored: backward reads it
#pragma unroll
          for (int i = 0; i < N; ++i) in[p][i] = convert<T>(convert<float>(in[p][i]) + convert<float>(residual[p][i]));
          store_packet(k.sum + row * k.columns + at * N, in[p]);
        }
    }
    float mean = 0, square = 0;
    if (k.centred) {
#pragma unroll
      for (int p = 0; p < kPackets; ++p)
        if (p * int(kWarp) + lane < packets) {
#pragma unroll
          for (int i = 0; i < N; ++i) mean += convert<float>(in[p][i]);
        }
      mean = warp_sum(mean) / float(k.columns);
    }
#pragma unroll
    for (int p = 0; p < kPackets; ++p)
      if (p * int(kWarp) + lane < packets) {
#pragma unroll
        for (int i = 0; i < N; ++i) {
          const float centred = convert<float>(in[p][i]) - mean;
          square += centred * centred;
        }
      }
    const float rstd = 1.0f / sqrtf(warp_sum(square) / float(k.columns) + k.eps);
#pragma unroll
    for (int p = 0; p < kPackets; ++p)
      if (const int at = p * kWarp + lane; at < packets) {
        Packet<float, N> weight, bias;
        if constexpr (kFew) {
          weight = weights[p], bias = biases[p];
        } else {
          weight = load_packet<N>(k.weight + at * N);
          if (k.bias) bias = load_packet<N>(k.bias + at * N);
        }
        Packet<T, N> y;
#pragma unroll
        for (int i = 0; i < N; ++i)
          y[i] = convert<T>((convert<float>(in[p][i]) - mean) * rstd * weight[i] + (k.bias ? bias[i] : 0.0f));
        store_packet(k.y + row * k.columns + at * N, y);
      }
    if (lane != 0) continue;
    if (k.mean) k.mean[row] = mean;
    if (k.rstd) k.rstd[row] = rstd;
  }
}

/// Any row: a block walks it three times, each thread the same elements, so that results may take the place of arguments.
template <class T>
__global__ void norm_forward_kernel(const NormForward<T> k) {
  using A = Accumulator<T>;
  for (std::int64_t row = blockIdx.x; row < k.rows; row += gridDim.x) {
    const T* in = k.x + row * k.columns;
    if (k.residual) {
      T* const sum = k.sum + row * k.columns;
      for (std::int64_t i = threadIdx.x; i < k.columns; i += blockDim.x)
        sum[i] = convert<T>(load(in + i) + load(k.residual + row * k.columns + i));
      in = sum;
    }
    A mean = 0, square = 0;
    if (k.centred) {
      for (std::int64_t i = threadIdx.x; i < k.columns; i += blockDim.x) mean += load(in + i);
      mean = block_sum(mean) / A(k.columns);
    }
    for (std::int64_t i = threadIdx.x; i < k.columns; i += blockDim.x) {
      const A centred = load(in + i) - mean;
      square += centred * centred;
    }
    const A rstd = A(1) / sqrt(block_sum(square) / A(k.columns) + k.eps);
    for (std::int64_t i = threadIdx.x; i < k.columns; i += blockDim.x)
      k.y[row * k.columns + i] = convert<T>((load(in + i) - mean) * rstd * k.weight[i] + (k.bias ? k.bias[i] : A(0)));
    if (threadIdx.x != 0) continue;
    if (k.mean) k.mean[row] = mean;
    if (k.rstd) k.rstd[row] = rstd;
  }
}

template <class T>
bool launch_warps(const char* op, const NormForward<T>& k) {
  constexpr int N = kVector<T>;
  if (k.columns % N != 0 || !aligned({k.x, k.residual, k.weight, k.bias, k.y, k.sum})) return false;
  return with_packets_per_lane(k.columns / N, [&](auto packets) {
    const unsigned warps = unsigned(std::min<std::int64_t>(k.rows, kWarps));
    auto launch = [&](auto kernel) { launch_early(op, kernel, blocks_for(k.rows, kWarps), warps * kWarp, 0, k); };
    if (k.rows <= kFewRows) launch(norm_forward_warp_kernel<T, packets.value, true>);
    else launch(norm_forward_warp_kernel<T, packets.value, false>);
  });
}

}  // namespace

void norm_forward(const Call& c, const NormPlaces& places) {
  const Ref& x = c.inputs[0];
  dispatch_floating(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    using A = Accumulator<T>;
    NormForward<T> k{};
    k.x = x.as<T>();
    k.y = c.outputs[0].as<T>();
    if (places.added) {
      k.residual = c.inputs[1].as<T>();
      k.sum = c.outputs[1].as<T>();
    }
    const Ref& weight = c.inputs[std::size_t(places.weight())];
    k.weight = weight.as<A>();
    k.parameters = weight.parameter;
    if (places.centred) {
      const Ref& bias = c.inputs[std::size_t(places.bias())];
      k.bias = bias.as<A>();
      k.parameters = k.parameters && (!bias || bias.parameter);
      k.mean = c.saved[0].as<A>();
    }
    k.rstd = c.saved[places.rstd()].as<A>();
    k.rows = x.shape.rows();
    k.columns = x.shape.last();
    k.eps = A(c.attributes.real("eps"));
    k.centred = places.centred;
    if constexpr (!std::is_same_v<T, double>) {
      if (launch_warps(places.op, k)) return;
    }
    norm_forward_kernel<T><<<blocks_for(k.rows, 1), row_threads(k.columns, 256), 0, stream()>>>(k);
    check_launch(places.op);
  });
}

void register_norm(KernelTable& table) {
  static constexpr NormPlaces kNorms[] = {
      {"layer_norm", true, false}, {"add_layer_norm", true, true}, {"rms_norm", false, false}, {"add_rms_norm", false, true}};
  for (const NormPlaces& places : kNorms)
    table[places.op] = {[&places](const Call& c) { norm_forward(c, places); }, [&places](const Call& c) { norm_backward(c, places); }, {},
                        [](const Attributes&, std::span<const Meta> in) { return norm_backward_workspace(in); }};
}

}  // namespace hedgehog::cuda

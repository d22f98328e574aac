#include "cuda/vector_features.cuh"

namespace hedgehog::cuda {
namespace {

constexpr const char* kName = "taylor_features";
constexpr int kThreads = 256, kWarps = kThreads / int(kWarp);

/// Extents, and factors of x, of x_i^2 and of x_i x_j.
template <class A>
struct TaylorSizes {
  std::int64_t vectors;  // B T H
  int D, F;
  bool compact;
  A first, pair, mixed;

  explicit TaylorSizes(const Call& c)
      : vectors(c.inputs[0].size() / c.inputs[0].shape[3]), D(int(c.inputs[0].shape[3])), F(int(c.outputs[0].shape[3])),
        compact(c.attributes.flag("compact")), first(A(std::pow(double(D), -0.25))), pair(A(1 / std::sqrt(2 * double(D)))),
        mixed(compact ? A(1 / std::sqrt(double(D))) : pair) {}
  /// Feature of the pair (i, j), i <= j where compact.
  __device__ __forceinline__ int at(int i, int j) const { return 1 + D + (compact ? i * D - i * (i - 1) / 2 + j - i : i * D + j); }
};

/// A warp makes the features of one vector, the pairs row by row.
template <class T>
__global__ __launch_bounds__(kThreads) void taylor_features_forward_kernel(const TaylorSizes<Accumulator<T>> s, const Rows<const T> x,
                                                                           const Rows<T> phi) {
  using A = Accumulator<T>;
  const int lane = int(threadIdx.x % kWarp);
  const std::int64_t warps = std::int64_t(gridDim.x) * kWarps;
  for (std::int64_t n = std::int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp; n < s.vectors; n += warps) {
    const T* const from = x.at(n * s.D);
    T* const to = phi.at(n * s.F);
    if (lane == 0) to[0] = convert<T>(A(1));
    for (int j = lane; j < s.D; j += kWarp) to[1 + j] = convert<T>(s.first * load(from + j));
    for (int i = 0; i < s.D; ++i) {
      const A xi = load(from + i);
      for (int j = (s.compact ? i : 0) + lane; j < s.D; j += kWarp) to[s.at(i, j)] = convert<T>((i == j ? s.pair : s.mixed) * xi * load(from + j));
    }
  }
}

/// dx_i = dphi_i / D^(1/4) + sum over j of the gradients of both pairs (i, j) and (j, i), times x_j. A warp takes one vector, a lane
/// every 32nd i.
template <class T, class G>
__global__ __launch_bounds__(kThreads) void taylor_features_backward_kernel(const TaylorSizes<Accumulator<T>> s, const Rows<const T> x,
                                                                            const Rows<const T> dphi, const Rows<G> dx, bool adds) {
  using A = Accumulator<T>;
  const int lane = int(threadIdx.x % kWarp);
  const std::int64_t warps = std::int64_t(gridDim.x) * kWarps;
  for (std::int64_t n = std::int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp; n < s.vectors; n += warps) {
    const T *const from = x.at(n * s.D), *const g = dphi ? dphi.at(n * s.F) : nullptr;
    G* const to = dx.at(n * s.D);
    for (int i = lane; i < s.D; i += kWarp) {
      A sum = 0;
      for (int j = 0; j < s.D && g; ++j) {
        const A both = i == j ? 2 * load(g + s.at(i, i))
                     : s.compact ? load(g + s.at(i < j ? i : j, i < j ? j : i))
                                 : load(g + s.at(i, j)) + load(g + s.at(j, i));
        sum += (i == j ? s.pair : s.mixed) * both * load(from + j);
      }
      if (g) sum += s.first * load(g + 1 + i);
      store(to + i, sum, adds);
    }
  }
}

void forward(const Call& c) {
  features_forward(kName, c, [&](auto zero, const auto& x, const auto& phi) {
    const TaylorSizes<Accumulator<decltype(zero)>> s(c);
    taylor_features_forward_kernel<<<blocks_for(s.vectors, kWarps), kThreads, 0, stream()>>>(s, x, phi);
  });
}

void backward(const Call& c) {
  features_backward(kName, c, [&](auto zero, const auto& x, const auto& dphi, const auto& dx, bool adds) {
    const TaylorSizes<Accumulator<decltype(zero)>> s(c);
    taylor_features_backward_kernel<<<blocks_for(s.vectors, kWarps), kThreads, 0, stream()>>>(s, x, dphi, dx, adds);
  });
}

}  // namespace

void register_taylor_features(KernelTable& table) { table["taylor_features"] = {forward, backward, {}, {}}; }

}  // namespace hedgehog::cuda

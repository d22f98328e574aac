#include "cuda/feature_map.cuh"

namespace hedgehog::cuda {
namespace {

constexpr const char* kName = "feature_map";
constexpr int kThreads = 256, kWarps = kThreads / int(kWarp);

struct Sizes {
  std::int64_t B, T, H, D, width, F;
  FeatureMap map;
  bool log;
  __host__ __device__ std::int64_t rows() const { return B * T * H; }
};

template <class In>
Sizes sizes_of(const Attributes& attributes, const In& in) {
  const FeatureMap map = feature_map_of(kName, attributes);
  const Shape& x = in[0].shape;
  const std::int64_t width = in[1].given ? in[1].shape[2] : x[3];
  if (width > INT32_MAX / 2) throw ShapeError("[feature_map] D' is more than a warp can index; use a narrower map");
  return {x[0], x[1], x[2], x[3], width, map.features(width), map, attributes.flag("log")};
}

template <class T>
struct ForwardArguments {
  Sizes s;
  Heads<const T> x;
  const T *weight, *bias;
  Heads<T> y;
  Accumulator<T>* u;  // (warps of the launch, D')
};

/// phi, or its logarithm. A warp takes one (b, t, h) at a time: its lanes share the columns of u = x W + b, read W by rows, and
/// apply the map to what they hold; the row of u lies in workspace of the warp's own, so any width fits.
template <class T>
__global__ __launch_bounds__(kThreads) void feature_map_forward_kernel(const __grid_constant__ ForwardArguments<T> a) {
  using A = Accumulator<T>;
  const Sizes& s = a.s;
  const int width = int(s.width), lane = int(threadIdx.x % kWarp);
  const std::int64_t warp = (blockIdx.x * std::int64_t(kThreads) + threadIdx.x) / kWarp, warps = std::int64_t(gridDim.x) * kWarps;
  A* const u = a.u + warp * width;
  for (std::int64_t row = warp; row < s.rows(); row += warps) {
    const std::int64_t h = row % s.H, t = row / s.H % s.T, b = row / s.H / s.T;
    const T* const x = a.x.at(b, t, h);
    T* const y = a.y.at(b, t, h);
    for (int j = lane; j < width && a.weight; j += kWarp) {
      A sum = a.bias ? load(a.bias + h * width + j) : A(0);
      const T* column = a.weight + h * s.D * width + j;
      for (std::int64_t d = 0; d < s.D; ++d, column += width) sum += load(x + d) * load(column);
      u[j] = sum;
    }
    __syncwarp();
    const bool exponential = s.map.logarithmic() && !s.log;
    working_features_warp<A>(
        s.map, width, [&](int r) { return a.weight ? u[r] : load(x + r); },
        [&](int r, A value) { y[r] = convert<T>(exponential ? std::exp(value) : value); });
    __syncwarp();
  }
}

template <class T>
struct BackwardArguments {
  Sizes s;
  const T* weight;
  Heads<const T> y, dy;
  Accumulator<T>* du;  // (B, T, H, D')
};

/// du of every row, kept for the gradients of weight and bias, and dx = du W^T. A warp takes one row at a time; the products with
/// rows of W are sums over its lanes.
template <class T, class G>
__global__ __launch_bounds__(kThreads) void feature_map_backward_kernel(const __grid_constant__ BackwardArguments<T> a, Heads<G> dx,
                                                                        bool adds) {
  using A = Accumulator<T>;
  const Sizes& s = a.s;
  const int width = int(s.width), lane = int(threadIdx.x % kWarp);
  const std::int64_t warp = (blockIdx.x * std::int64_t(kThreads) + threadIdx.x) / kWarp, warps = std::int64_t(gridDim.x) * kWarps;
  for (std::int64_t row = warp; row < s.rows(); row += warps) {
    const std::int64_t h = row % s.H, t = row / s.H % s.T, b = row / s.H / s.T;
    const T *y = a.y.at(b, t, h), *dy = a.dy ? a.dy.at(b, t, h) : nullptr;
    A* const du = a.du + row * width;
    const bool exponential = s.map.logarithmic() && !s.log;
    auto phi = [&](int r) { return s.log ? std::exp(load(y + r)) : load(y + r); };
    auto working = [&](int r) {
      const A g = dy ? load(dy + r) : A(0);
      return exponential ? g * phi(r) : g;
    };
    working_features_backward_warp<A, T>(s.map, width, phi, working, [&](int r, A g) { du[r] = g; });
    __syncwarp();
    if (!dx) continue;
    G* const to = dx.at(b, t, h);
    if (!a.weight)
      for (int r = lane; r < width; r += kWarp) store(to + r, du[r], adds);
    for (std::int64_t d = 0; d < s.D && a.weight; ++d) {
      const T* const w = a.weight + (h * s.D + d) * width;
      A sum = 0;
      for (int r = lane; r < width; r += kWarp) sum += du[r] * load(w + r);
      sum = warp_sum(sum);
      if (lane == 0) store(to + d, sum, adds);
    }
  }
}

/// dweight[h, d, :] = sum over b, t of x_d du, or dbias[h, :] = sum of du where x is null (d is 0 then). A block takes 32 columns
/// of one (h, d); its warps share the tokens and their sums are added in order.
template <class T, class G>
__global__ __launch_bounds__(kThreads) void feature_map_weight_backward_kernel(const __grid_constant__ Sizes s, Heads<const T> x,
                                                                               const Accumulator<T>* du, G* out, bool adds) {
  using A = Accumulator<T>;
  __shared__ A parts[kWarps][kWarp];
  const std::int64_t depth = x ? s.D : 1, h = blockIdx.x / depth, d = blockIdx.x % depth;
  const std::int64_t lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  for (std::int64_t column0 = blockIdx.y * std::int64_t(kWarp); column0 < s.width; column0 += gridDim.y * std::int64_t(kWarp)) {
    const std::int64_t column = column0 + lane;
    A sum = 0;
    for (std::int64_t b = 0; b < s.B && column < s.width; ++b)
      for (std::int64_t t = warp; t < s.T; t += kWarps) {
        const A g = du[((b * s.T + t) * s.H + h) * s.width + column];
        sum += x ? load(x.at(b, t, h) + d) * g : g;
      }
    parts[warp][lane] = sum;
    __syncthreads();
    if (warp == 0 && column < s.width) {
      sum = 0;
      for (int w = 0; w < kWarps; ++w) sum += parts[w][lane];
      store(out + (h * depth + d) * s.width + column, sum, adds);
    }
    __syncthreads();
  }
}

void forward(const Call& c) {
  const Sizes s = sizes_of(c.attributes, c.inputs);
  dispatch_floating(c.inputs[0].dtype, [&](auto zero) {
    using T = decltype(zero);
    const ForwardArguments<T> arguments{s,
                                        Heads<const T>(kName, c.inputs[0]),
                                        c.inputs[1].as<const T>(),
                                        c.inputs[2].as<const T>(),
                                        Heads<T>(kName, c.outputs[0]),
                                        static_cast<Accumulator<T>*>(c.workspace)};
    feature_map_forward_kernel<T><<<blocks_for(s.rows(), kWarps), kThreads, 0, stream()>>>(arguments);
    check_launch(kName);
  });
}

template <class T>
void weight_backward(const Call& c, const Sizes& s, int i, const Heads<const T>& x, const Accumulator<T>* du) {
  if (!c.dx[i]) return;
  const dim3 grid(unsigned(s.H * (x ? s.D : 1)), blocks_for(s.width, kWarp, 65535));
  dispatch_gradient<T>(c.dx[i], [&](auto zero) {
    using G = decltype(zero);
    feature_map_weight_backward_kernel<T, G><<<grid, kThreads, 0, stream()>>>(s, x, du, c.dx[i].as<G>(), adds(c, i));
    check_launch(kName);
  });
}

void backward(const Call& c) {
  const Sizes s = sizes_of(c.attributes, c.inputs);
  if (s.H * s.D > INT32_MAX) throw ShapeError("[feature_map] H times D is more than a grid holds; use fewer heads");
  dispatch_floating(c.inputs[0].dtype, [&](auto zero) {
    using T = decltype(zero);
    auto* const du = static_cast<Accumulator<T>*>(c.workspace);
    const BackwardArguments<T> arguments{s, c.inputs[1].as<const T>(), Heads<const T>(kName, c.outputs[0]), Heads<const T>(kName, c.dy[0]), du};
    dispatch_gradient<T>(c.dx[0], [&](auto gradient) {
      using G = decltype(gradient);
      feature_map_backward_kernel<T, G>
          <<<blocks_for(s.rows(), kWarps), kThreads, 0, stream()>>>(arguments, Heads<G>(kName, c.dx[0]), adds(c, 0));
      check_launch(kName);
    });
    weight_backward<T>(c, s, 1, Heads<const T>(kName, c.inputs[0]), du);
    weight_backward<T>(c, s, 2, {}, du);
  });
}

std::int64_t forward_workspace(const Attributes& attributes, std::span<const Meta> in) {
  const Sizes s = sizes_of(attributes, in);
  return in[1].given ? blocks_for(s.rows(), kWarps) * kWarps * s.width * size_of(accumulator_of(in[0].dtype)) : 0;
}

std::int64_t backward_workspace(const Attributes& attributes, std::span<const Meta> in) {
  const Sizes s = sizes_of(attributes, in);
  return s.rows() * s.width * size_of(accumulator_of(in[0].dtype));
}

}  // namespace

void register_feature_map(KernelTable& table) { table["feature_map"] = {forward, backward, forward_workspace, backward_workspace}; }

}  // namespace hedgehog::cuda

#include "cuda/vector_features.cuh"

namespace hedgehog::cuda {
namespace {

constexpr const char* kName = "performer_features";
constexpr int kEdge = 32, kThreads = 256, kEach = kEdge * kEdge / kThreads, kRowsApart = kThreads / kEdge;

template <class A>
struct PerformerSizes {
  std::int64_t vectors;  // B T H
  int D, m, F;
  bool hyperbolic;
  A factor, constant;  // D^(-1/4), ln(F) / 2

  explicit PerformerSizes(const Call& c)
      : vectors(c.inputs[0].size() / c.inputs[0].shape[3]), D(int(c.inputs[0].shape[3])), m(int(c.inputs[1].shape[0])),
        F(int(c.outputs[0].shape[3])), hyperbolic(c.attributes.flag("hyperbolic")), factor(A(std::pow(double(D), -0.25))),
        constant(A(std::log(double(F)) / 2)) {}
};

/// ln phi of 32 vectors and 32 rows of the projection a block, and as many rows at a time as the grid has columns. A lane takes one row,
/// a warp every 8th vector; both are brought to shared memory 32 dimensions at a time, and the squares are summed along the way.
template <class T>
__global__ __launch_bounds__(kThreads) void performer_features_forward_kernel(const PerformerSizes<Accumulator<T>> s, const Rows<const T> x,
                                                                              const Accumulator<T>* projection, const Rows<T> phi) {
  using A = Accumulator<T>;
  __shared__ A vectors[kEdge][kEdge + 1], rows[kEdge][kEdge + 1];
  const int lane = int(threadIdx.x % kEdge), warp = int(threadIdx.x / kEdge);
  const std::int64_t n0 = std::int64_t(blockIdx.x) * kEdge;
  for (int r0 = int(blockIdx.y) * kEdge; r0 < s.m; r0 += int(gridDim.y) * kEdge) {
    A products[kEach] = {}, squares[kEach] = {};
    for (int d0 = 0; d0 < s.D; d0 += kEdge) {
      const bool inside = d0 + lane < s.D;
      __syncthreads();
      for (int i = warp; i < kEdge; i += kRowsApart) {
        vectors[i][lane] = inside && n0 + i < s.vectors ? s.factor * load(x.at((n0 + i) * s.D) + d0 + lane) : A(0);
        rows[i][lane] = inside && r0 + i < s.m ? projection[std::int64_t(r0 + i) * s.D + d0 + lane] : A(0);
      }
      __syncthreads();
#pragma unroll 8
      for (int d = 0; d < kEdge; ++d)
#pragma unroll
        for (int e = 0; e < kEach; ++e) {
          const A y = vectors[warp + e * kRowsApart][d];
          products[e] += y * rows[lane][d];
          squares[e] += y * y;
        }
    }
#pragma unroll
    for (int e = 0; e < kEach; ++e) {
      const std::int64_t n = n0 + warp + e * kRowsApart;
      if (n >= s.vectors || r0 + lane >= s.m) continue;
      T* const to = phi.at(n * s.F) + r0 + lane;
      const A less = squares[e] / 2 + s.constant;
      to[0] = convert<T>(products[e] - less);
      if (s.hyperbolic) to[s.m] = convert<T>(-products[e] - less);
    }
  }
}

/// dx of 32 vectors and 32 dimensions a block, likewise; the sums run over the rows of the projection.
template <class T, class G>
__global__ __launch_bounds__(kThreads) void performer_features_backward_kernel(const PerformerSizes<Accumulator<T>> s, const Rows<const T> x,
                                                                               const Accumulator<T>* projection, const Rows<const T> dphi,
                                                                               const Rows<G> dx, bool adds) {
  using A = Accumulator<T>;
  __shared__ A differences[kEdge][kEdge + 1], sums[kEdge][kEdge + 1], rows[kEdge][kEdge + 1];
  const int lane = int(threadIdx.x % kEdge), warp = int(threadIdx.x / kEdge);
  const std::int64_t n0 = std::int64_t(blockIdx.x) * kEdge;
  for (int d0 = int(blockIdx.y) * kEdge; d0 < s.D; d0 += int(gridDim.y) * kEdge) {
    A products[kEach] = {}, all[kEach] = {};
    for (int r0 = 0; r0 < s.m; r0 += kEdge) {
      __syncthreads();
      for (int i = warp; i < kEdge; i += kRowsApart) {
        A plus = 0, minus = 0;
        if (dphi && n0 + i < s.vectors && r0 + lane < s.m) {
          const T* const g = dphi.at((n0 + i) * s.F) + r0 + lane;
          plus = load(g);
          if (s.hyperbolic) minus = load(g + s.m);
        }
        differences[i][lane] = plus - minus;
        sums[i][lane] = plus + minus;
        rows[i][lane] = r0 + i < s.m && d0 + lane < s.D ? projection[std::int64_t(r0 + i) * s.D + d0 + lane] : A(0);
      }
      __syncthreads();
#pragma unroll 8
      for (int r = 0; r < kEdge; ++r)
#pragma unroll
        for (int e = 0; e < kEach; ++e) {
          products[e] += differences[warp + e * kRowsApart][r] * rows[r][lane];
          all[e] += sums[warp + e * kRowsApart][r];
        }
    }
#pragma unroll
    for (int e = 0; e < kEach; ++e) {
      const std::int64_t n = n0 + warp + e * kRowsApart;
      if (n >= s.vectors || d0 + lane >= s.D) continue;
      const A y = s.factor * load(x.at(n * s.D) + d0 + lane);
      store(dx.at(n * s.D) + d0 + lane, s.factor * (products[e] - all[e] * y), adds);
    }
  }
}

dim3 grid_for(std::int64_t vectors, std::int64_t columns) {
  const std::int64_t tiles = (vectors + kEdge - 1) / kEdge;
  if (tiles > INT32_MAX) throw ShapeError("[performer_features] x has more vectors than a grid holds; use a smaller batch");
  return dim3(unsigned(tiles), blocks_for(columns, kEdge, 65535));
}

void forward(const Call& c) {
  features_forward(kName, c, [&](auto zero, const auto& x, const auto& phi) {
    using T = decltype(zero);
    const PerformerSizes<Accumulator<T>> s(c);
    performer_features_forward_kernel<T>
        <<<grid_for(s.vectors, s.m), kThreads, 0, stream()>>>(s, x, c.inputs[1].as<const Accumulator<T>>(), phi);
  });
}

void backward(const Call& c) {
  features_backward(kName, c, [&](auto zero, const auto& x, const auto& dphi, const auto& dx, bool adds) {
    using T = decltype(zero);
    const PerformerSizes<Accumulator<T>> s(c);
    performer_features_backward_kernel<T>
        <<<grid_for(s.vectors, s.D), kThreads, 0, stream()>>>(s, x, c.inputs[1].as<const Accumulator<T>>(), dphi, dx, adds);
  });
}

}  // namespace

void register_performer_features(KernelTable& table) { table["performer_features"] = {forward, backward, {}, {}}; }

}  // namespace hedgehog::cuda

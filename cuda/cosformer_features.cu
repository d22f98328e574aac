#include "cuda/vector_features.cuh"
#include "ops/feature_map_rows.h"

namespace hedgehog::cuda {
namespace {

constexpr const char* kName = "cosformer_features";
constexpr int kThreads = 128;

struct CosformerSizes {
  std::int64_t tokens, T, H;  // tokens: B T
  int D;
  double length;
  const std::int32_t* offset;

  explicit CosformerSizes(const Call& c)
      : tokens(c.inputs[0].shape[0] * c.inputs[0].shape[1]), T(c.inputs[0].shape[1]), H(c.inputs[0].shape[2]), D(int(c.inputs[0].shape[3])),
        length(double(c.attributes.integer("length"))), offset(c.inputs[1].as<std::int32_t>()) {}
};

/// Sine and cosine of the token's angle, in f64, by one thread for its block.
__device__ __forceinline__ void angle_of(const CosformerSizes& s, std::int64_t token, double& sine, double& cosine) {
  __shared__ double turned[2];
  __syncthreads();  // those of the token before have been read
  if (threadIdx.x == 0) sincospi(double(1 + token % s.T + (s.offset ? *s.offset : 0)) / (2 * s.length), turned, turned + 1);
  __syncthreads();
  sine = turned[0], cosine = turned[1];
}

/// A block takes one token after the other.
template <class T>
__global__ __launch_bounds__(kThreads) void cosformer_features_forward_kernel(const CosformerSizes s, const Rows<const T> x, const Rows<T> phi) {
  using A = Accumulator<T>;
  for (std::int64_t token = blockIdx.x; token < s.tokens; token += gridDim.x) {
    double sine, cosine;
    angle_of(s, token, sine, cosine);
    for (std::int64_t e = threadIdx.x; e < s.H * s.D; e += kThreads) {
      const std::int64_t h = e / s.D, d = e % s.D, vector = token * s.H + h;
      const A value = load(x.at(vector * s.D) + d), r = value < A(kReluFloor) ? A(kReluFloor) : value;
      T* const to = phi.at(vector * 2 * s.D);
      to[d] = convert<T>(r * A(sine));
      to[s.D + d] = convert<T>(r * A(cosine));
    }
  }
}

template <class T, class G>
__global__ __launch_bounds__(kThreads) void cosformer_features_backward_kernel(const CosformerSizes s, const Rows<const T> x,
                                                                               const Rows<const T> dphi, const Rows<G> dx, bool adds) {
  using A = Accumulator<T>;
  for (std::int64_t token = blockIdx.x; token < s.tokens; token += gridDim.x) {
    double sine, cosine;
    angle_of(s, token, sine, cosine);
    for (std::int64_t e = threadIdx.x; e < s.H * s.D; e += kThreads) {
      const std::int64_t h = e / s.D, d = e % s.D, vector = token * s.H + h;
      A sum = 0;
      if (dphi && load(x.at(vector * s.D) + d) > A(kReluFloor)) {
        const T* const g = dphi.at(vector * 2 * s.D);
        sum = load(g + d) * A(sine) + load(g + s.D + d) * A(cosine);
      }
      store(dx.at(vector * s.D) + d, sum, adds);
    }
  }
}

void forward(const Call& c) {
  const CosformerSizes s(c);
  features_forward(kName, c, [&](auto, const auto& x, const auto& phi) {
    cosformer_features_forward_kernel<<<blocks_for(s.tokens, 1), kThreads, 0, stream()>>>(s, x, phi);
  });
}

void backward(const Call& c) {
  const CosformerSizes s(c);
  features_backward(kName, c, [&](auto, const auto& x, const auto& dphi, const auto& dx, bool adds) {
    cosformer_features_backward_kernel<<<blocks_for(s.tokens, 1), kThreads, 0, stream()>>>(s, x, dphi, dx, adds);
  });
}

}  // namespace

void register_cosformer_features(KernelTable& table) { table["cosformer_features"] = {forward, backward, {}, {}}; }

}  // namespace hedgehog::cuda

#include "cuda/feature_map.cuh"
#include "cuda/packet.cuh"
#include "ops/linear_attention_sizes.h"

namespace hedgehog::cuda {
namespace {

using namespace linear_attention_detail;

constexpr const char* kName = "linear_attention_step";
constexpr int kThreads = 512, kWarps = kThreads / int(kWarp);
constexpr int kPairs = 2 * int(kWarp);  // columns of a state that may lie in registers, two a lane
constexpr int kEach = 8;                // weights that a thread reads at once

template <class T>
struct StepArguments {
  using A = Accumulator<T>;
  Sizes s;
  Heads<const T> q, k, v;
  Heads<T> o;
  A* state;
  const T *weight[2], *bias[2];  // of queries and keys, or null
  bool vectors;                  // weights may be read kEach at once
};

/// Shared memory of one block, in elements.
template <class A>
struct StepMemory {
  A *parts, *u, *q, *k, *factor, *z, *shift;  // sums of warps; (2, D'); (F) each
  std::int64_t size;

  __host__ __device__ StepMemory(A* memory, std::int64_t width, std::int64_t F, bool vectors) {
    const std::int64_t states = kWarps * kPairs, maps = vectors ? 2 * kWarps * width : 0;
    parts = memory;
    u = parts + (states > maps ? states : maps);
    q = u + 2 * width;
    k = q + F;
    factor = k + F;
    z = factor + F;
    shift = z + F;
    size = shift + F - memory;
  }
};

/// u = x W + b of one query and its key, to shared memory. In vectors each thread takes 8 columns of some rows of both matrices,
/// so that all of W is on its way at once; sums over lanes and warps follow in a fixed order.
template <class T, class A = Accumulator<T>>
__device__ __forceinline__ void map_token(const StepArguments<T>& a, const T* const (&x)[2], std::int64_t h, const StepMemory<A>& m) {
  const int width = int(a.s.width), D = int(a.s.D), thread = int(threadIdx.x), side = thread / width, column = thread % width;
  if (a.vectors) {
    const int groups = width / kEach, group = thread % groups, lane = thread % int(kWarp), warp = thread / int(kWarp);
    A sum[2][kEach] = {};
    for (int d = thread / groups; d < D; d += kThreads / groups)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        A w[kEach];
        // f64 weights are read one by one
        if constexpr (sizeof(A) == 4) load_packet<kEach>(a.weight[i] + (h * D + d) * width + group * kEach, w);
        const A factor = load(x[i] + d);
#pragma unroll
        for (int e = 0; e < kEach; ++e) sum[i][e] += factor * w[e];
      }
    for (int offset = groups; offset < int(kWarp); offset *= 2)
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int e = 0; e < kEach; ++e) sum[i][e] += __shfl_xor_sync(0xffffffffu, sum[i][e], offset);
    if (lane < groups)
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int e = 0; e < kEach; ++e) m.parts[(warp * 2 + i) * width + group * kEach + e] = sum[i][e];
    __syncthreads();
  }
  if (side < 2) {
    A sum = a.bias[side] ? load(a.bias[side] + h * width + column) : A(0);
    if (a.vectors)
      for (int w = 0; w < kWarps; ++w) sum += m.parts[(w * 2 + side) * width + column];
    else if (a.weight[side])
      for (int d = 0; d < D; ++d) sum += load(x[side] + d) * load(a.weight[side] + (h * D + d) * width + column);
    else sum = load(x[side] + column);
    m.u[thread] = sum;
  }
  __syncthreads();
}

/// Takes one key into shift, factor and z, and turns both features into what the state is updated and read with. Thread r does
/// feature r. Returns 1 / (q . z), or 0.
template <class A>
__device__ __forceinline__ A take_key(const FeatureMap& map, int F, const StepMemory<A>& m) {
  const int r = int(threadIdx.x);
  const bool logarithmic = map.logarithmic();
  A q = r < F ? m.q[r] : -A(INFINITY);
  if (r < F) {
    A factor = 1, k = m.k[r];
    if (logarithmic) {
      const bool empty = !(m.z[r] > A(0));
      const A before = m.shift[r], next = empty || before < k ? k : before;
      factor = empty ? A(0) : std::exp(before - next);
      k = std::exp(k - next);
      q += next;
      m.shift[r] = next;
    }
    m.factor[r] = factor;
    m.k[r] = k;
    m.z[r] = m.z[r] * factor + k;
  }
  const A largest = logarithmic ? block_max(q) : A(0);
  if (logarithmic) q = std::exp(q - largest);
  if (r < F) m.q[r] = q;
  // its barriers also show all threads what was written here
  const A den = block_sum(r < F ? q * m.z[r] : A(0));
  return den == A(0) ? A(0) : A(1) / den;
}

/// One block decodes the tokens of one batch element and head: both maps, the shift, and one pass over the state that updates
/// and reads it. With kRows > 0 (f32, Dv even and at most 64) the state is fetched into registers while the maps are made, kRows
/// rows a warp and two columns a lane, and written back after the last token; with kRows = 0 it is updated where it lies, 32
/// columns at a time. Nothing is shared between blocks.
template <class T, int kRows>
__global__ __launch_bounds__(kThreads) void linear_attention_step_kernel(const __grid_constant__ StepArguments<T> a) {
  using A = Accumulator<T>;
  extern __shared__ __align__(16) unsigned char memory[];
  const Sizes& s = a.s;
  const int F = int(s.F), lane = int(threadIdx.x % kWarp), warp = int(threadIdx.x / kWarp), thread = int(threadIdx.x);
  const StepMemory<A> m(reinterpret_cast<A*>(memory), s.width, s.F, a.vectors);
  const std::int64_t b = blockIdx.x / s.Hq, h = blockIdx.x % s.Hq, hkv = h / s.group(), pitch = s.Dv + 2;
  A* const state = a.state + std::int64_t(blockIdx.x) * s.F * pitch;

  constexpr int kHeld = kRows ? kRows : 1;
  A first[kHeld], second[kHeld];
  const bool holds = 2 * lane < s.Dv;
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const int r = warp + i * kWarps;
    first[i] = second[i] = 0;
    if (r < F && holds) {
      const float2 pair = *reinterpret_cast<const float2*>(state + r * pitch + 2 * lane);
      first[i] = pair.x, second[i] = pair.y;
    }
  }
  if (thread < F) {
    m.z[thread] = state[thread * pitch + s.Dv];
    m.shift[thread] = state[thread * pitch + s.Dv + 1];
  }

  for (std::int64_t t = 0; t < s.T; ++t) {
    const T* const x[2] = {a.q.at(b, t, h), a.k.at(b, t, hkv)};
    const T* const v = a.v.at(b, t, hkv);
    T* const o = a.o.at(b, t, h);
    map_token(a, x, h, m);
    if (warp < 2) {
      const A* const u = m.u + warp * int(s.width);
      A* const y = warp ? m.k : m.q;
      working_features_warp<A>(s.map, int(s.width), [&](int r) { return u[r]; }, [&](int r, A value) { y[r] = value; });
    }
    __syncthreads();
    const A inverse = take_key(s.map, F, m);
    if constexpr (kRows > 0) {
      const A v0 = holds ? load(v + 2 * lane) : A(0), v1 = holds ? load(v + 2 * lane + 1) : A(0);
      A sum0 = 0, sum1 = 0;
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        const int r = warp + i * kWarps;
        if (r >= F) continue;
        const A factor = m.factor[r], k = m.k[r], q = m.q[r];
        first[i] = first[i] * factor + k * v0;
        second[i] = second[i] * factor + k * v1;
        sum0 += q * first[i];
        sum1 += q * second[i];
      }
      m.parts[warp * kPairs + 2 * lane] = sum0;
      m.parts[warp * kPairs + 2 * lane + 1] = sum1;
      __syncthreads();
      if (thread < s.Dv) {
        A sum = 0;
#pragma unroll
        for (int w = 0; w < kWarps; ++w) sum += m.parts[w * kPairs + thread];
        o[thread] = convert<T>(sum * inverse);
      }
      __syncthreads();
    } else {
      for (std::int64_t e0 = 0; e0 < s.Dv; e0 += kWarp) {
        const std::int64_t e = e0 + lane;
        const A value = e < s.Dv ? load(v + e) : A(0);
        A sum = 0;
        for (int r = warp; r < F && e < s.Dv; r += kWarps) {
          A& at = state[r * pitch + e];
          at = at * m.factor[r] + m.k[r] * value;
          sum += m.q[r] * at;
        }
        m.parts[warp * int(kWarp) + lane] = sum;
        __syncthreads();
        if (warp == 0 && e < s.Dv) {
          sum = 0;
          for (int w = 0; w < kWarps; ++w) sum += m.parts[w * int(kWarp) + lane];
          o[e] = convert<T>(sum * inverse);
        }
        __syncthreads();
      }
    }
  }

#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const int r = warp + i * kWarps;
    if (r < F && holds) *reinterpret_cast<float2*>(state + r * pitch + 2 * lane) = make_float2(float(first[i]), float(second[i]));
  }
  if (thread < F) {
    state[thread * pitch + s.Dv] = m.z[thread];
    state[thread * pitch + s.Dv + 1] = m.shift[thread];
  }
}

template <class T>
void launch(const Call& c) {
  using A = Accumulator<T>;
  const Sizes s = step_sizes(c.attributes, c.inputs);
  StepArguments<T> a{s,
                     Heads<const T>(kName, c.inputs[kStepQ]),
                     Heads<const T>(kName, c.inputs[kStepK]),
                     Heads<const T>(kName, c.inputs[kStepV]),
                     Heads<T>(kName, c.outputs[0]),
                     c.inputs[kState].as<A>(),
                     {c.inputs[kStepWeightQ].as<const T>(), c.inputs[kStepWeightK].as<const T>()},
                     {c.inputs[kStepBiasQ].as<const T>(), c.inputs[kStepBiasK].as<const T>()},
                     false};
  // groups of columns must divide a warp
  const std::int64_t groups = s.width % kEach == 0 ? s.width / kEach : 0;
  a.vectors = sizeof(A) == 4 && a.weight[0] && groups > 0 && (groups & (groups - 1)) == 0 && groups <= kWarp &&
              aligned({a.weight[0], a.weight[1]});
  const std::size_t bytes = std::size_t(StepMemory<A>(nullptr, s.width, s.F, a.vectors).size) * sizeof(A);
  const bool held = s.Dv % 2 == 0 && s.Dv <= kPairs && aligned({a.state});
  const unsigned blocks = unsigned(s.B * s.Hq);
  if constexpr (sizeof(A) == 4) {
    if (held && s.F <= 8 * kWarps) linear_attention_step_kernel<T, 8><<<blocks, kThreads, bytes, stream()>>>(a);
    else if (held && s.F <= 16 * kWarps) linear_attention_step_kernel<T, 16><<<blocks, kThreads, bytes, stream()>>>(a);
    else linear_attention_step_kernel<T, 0><<<blocks, kThreads, bytes, stream()>>>(a);
  } else {
    linear_attention_step_kernel<T, 0><<<blocks, kThreads, bytes, stream()>>>(a);
  }
  check_launch(kName);
}

void forward(const Call& c) {
  dispatch_floating(c.inputs[kStepQ].dtype, [&](auto zero) { launch<decltype(zero)>(c); });
}

}  // namespace

void register_linear_attention_step(KernelTable& table) { table["linear_attention_step"] = {.forward = forward}; }

}  // namespace hedgehog::cuda

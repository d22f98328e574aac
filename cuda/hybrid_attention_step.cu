#include "cuda/early_launch.cuh"
#include "cuda/feature_map.cuh"
#include "cuda/kernels.h"
#include "cuda/packet.cuh"
#include "ops/hybrid_attention_step_sizes.h"

namespace hedgehog::cuda {
namespace hybrid_attention_step {
namespace {

using namespace hybrid_attention_step_detail;

constexpr const char* kName = "hybrid_attention_step";
constexpr int kThreads = 256, kWarps = kThreads / int(kWarp);

template <class T>
struct Arguments {
  using A = Accumulator<T>;
  Sizes s;
  Heads<const T> q, k, v;
  Heads<T> o;
  A* state;
  T* cache;
  const std::int32_t* position;
  const T *weight[2], *bias[2];  // of queries and keys, or null
  const A* factor;
};

/// Shared memory of a block.
template <class A>
struct Memory {
  A *u, *q, *k, *factor, *scores, *sums;  // (D'), (F) each, (W), (warps + 1)

  static std::int64_t size(const Sizes& s) { return s.width + 3 * s.F + s.window + kWarps + 1; }
  __device__ Memory(A* memory, const Sizes& s) {
    u = memory;
    q = u + s.width;
    k = q + s.F;
    factor = k + s.F;
    scores = factor + s.F;
    sums = scores + s.window;
  }
};

/// The sum or the maximum of what threads have, for all of them.
template <bool kMaximum, class A>
__device__ A of_block(A x, A* sums) {
  x = kMaximum ? warp_max(x) : warp_sum(x);
  __syncthreads();
  if (threadIdx.x % kWarp == 0) sums[threadIdx.x / kWarp] = x;
  __syncthreads();
  A all = sums[0];
  for (int w = 1; w < kWarps; ++w) all = kMaximum ? (sums[w] > all ? sums[w] : all) : all + sums[w];
  return all;
}

/// y (F): features of a vector in working form. Begins and ends with the block together.
template <class T, class A = Accumulator<T>>
__device__ void features(const Arguments<T>& a, const T* x, int side, std::int64_t h, A* u, A* y) {
  const int width = int(a.s.width), F = int(a.s.F);
  __syncthreads();
  for (int c = threadIdx.x; c < width; c += kThreads) {
    A total = a.bias[side] ? load(a.bias[side] + h * width + c) : A(0);
    if (!a.weight[side]) total += load(x + c);
    else
      for (int d = 0; d < int(a.s.D); ++d) total += load(x + d) * load(a.weight[side] + (h * a.s.D + d) * width + c);
    u[c] = total;
  }
  __syncthreads();
  if (a.s.map.normalised()) {
    if (threadIdx.x < kWarp) working_features_warp<A>(a.s.map, width, [&](int r) { return u[r]; }, [&](int r, A value) { y[r] = value; });
  } else {
    // the second half is made of -u
    for (int r = threadIdx.x; r < F; r += kThreads) y[r] = working_feature(a.s.map, (r < width ? A(1) : A(-1)) * u[r % width]);
  }
  __syncthreads();
}

/// The key and value that leave the window go into a head's state.
template <class T, class A = Accumulator<T>>
__device__ void take(const Arguments<T>& a, const T* key, std::int64_t h, A* state, const Memory<A>& m) {
  const std::int64_t pitch = a.s.D + 2;
  features(a, key, 1, h, m.u, m.k);
  for (std::int64_t r = threadIdx.x; r < a.s.F; r += kThreads) {
    A *const z = state + r * pitch + a.s.D, *const shift = z + 1;
    A factor = 1, k = m.k[r];
    if (a.s.map.logarithmic()) {
      const bool empty = !(*z > A(0));
      const A next = empty || *shift < k ? k : *shift;
      factor = empty ? A(0) : exp(*shift - next);
      k = exp(k - next);
      *shift = next;
    }
    *z = *z * factor + k;
    m.k[r] = k, m.factor[r] = factor;
  }
  __syncthreads();
  const T* const value = key + a.s.Hkv * a.s.D;
  for (std::int64_t i = threadIdx.x; i < a.s.F * a.s.D; i += kThreads) {
    const std::int64_t r = i / a.s.D, e = i - r * a.s.D;
    A& at = state[r * pitch + e];
    at = (m.factor[r] == A(0) ? A(0) : at * m.factor[r]) + m.k[r] * load(value + e);
  }
  __syncthreads();
}

/// Prepares m.q for reading the state: what q^T S is multiplied by is exp of the result, which is ln of the denominator.
template <class T, class A = Accumulator<T>>
__device__ A read_state(const Arguments<T>& a, const T* query, std::int64_t h, const A* state, const Memory<A>& m) {
  const std::int64_t pitch = a.s.D + 2;
  features(a, query, 0, h, m.u, m.q);
  A largest = 0;
  if (a.s.map.logarithmic()) {
    A top = -A(INFINITY);
    for (std::int64_t r = threadIdx.x; r < a.s.F; r += kThreads) {
      m.q[r] += state[r * pitch + a.s.D + 1];
      top = m.q[r] > top ? m.q[r] : top;
    }
    largest = of_block<true>(top, m.sums);
    for (std::int64_t r = threadIdx.x; r < a.s.F; r += kThreads) m.q[r] = exp(m.q[r] - largest);
  }
  A den = 0;
  for (std::int64_t r = threadIdx.x; r < a.s.F; r += kThreads) den += m.q[r] * state[r * pitch + a.s.D];
  den = of_block<false>(den, m.sums);
  // read with weights that sum to 1
  for (std::int64_t r = threadIdx.x; r < a.s.F; r += kThreads) m.q[r] = den == A(0) ? A(0) : m.q[r] / den;
  __syncthreads();
  return largest + log(den);
}

/// m.scores become the weights of the window's tokens, which sum to 1; returns ln of their denominator.
template <class T, class A = Accumulator<T>>
__device__ A weigh_window(const Arguments<T>& a, const T* query, const T* keys, std::int64_t seen, const Memory<A>& m) {
  const std::int64_t row = 2 * a.s.Hkv * a.s.D;
  __syncthreads();
  for (std::int64_t j = threadIdx.x / kWarp; j < seen; j += kWarps) {
    A score = 0;
    for (std::int64_t d = threadIdx.x % kWarp; d < a.s.D; d += kWarp) score += load(query + d) * load(keys + j * row + d);
    score = warp_sum(score) * A(a.s.score_scale);
    if (threadIdx.x % kWarp == 0) m.scores[j] = score;
  }
  __syncthreads();
  A top = -A(INFINITY), sum = 0;
  for (std::int64_t j = threadIdx.x; j < seen; j += kThreads) top = m.scores[j] > top ? m.scores[j] : top;
  top = of_block<true>(top, m.sums);
  for (std::int64_t j = threadIdx.x; j < seen; j += kThreads) sum += m.scores[j] = exp(m.scores[j] - top);
  sum = of_block<false>(sum, m.sums);
  for (std::int64_t j = threadIdx.x; j < seen; j += kThreads) m.scores[j] /= sum;
  __syncthreads();
  return log(sum) + (a.s.maximum ? A(0) : top);
}

/// A block decodes the tokens of one batch element and key head: all query heads that share its cache, one after the other.
template <class T>
__global__ void __launch_bounds__(kThreads) hybrid_attention_step_kernel(const __grid_constant__ Arguments<T> a) {
  using A = Accumulator<T>;
  extern __shared__ __align__(16) unsigned char memory[];
  start_next_kernel();
  wait_for_kernels();
  const Sizes& s = a.s;
  const Memory<A> m(reinterpret_cast<A*>(memory), s);
  const std::int64_t b = blockIdx.x / s.Hkv, hkv = blockIdx.x % s.Hkv, group = s.Hq / s.Hkv, row = 2 * s.Hkv * s.D, pitch = s.D + 2;
  T* const keys = a.cache + (b * s.window * 2 * s.Hkv + hkv) * s.D;
  for (std::int64_t t = 0; t < s.T; ++t) {
    const std::int64_t position = *a.position + t, seen = position + 1 < s.window ? position + 1 : s.window;
    const bool behind = s.linear && position >= s.window;
    T* const slot = keys + position % s.window * row;
    for (std::int64_t h = hkv * group; behind && h < (hkv + 1) * group; ++h) take(a, static_cast<const T*>(slot), h, a.state + (b * s.Hq + h) * s.F * pitch, m);
    for (std::int64_t d = threadIdx.x; d < s.D; d += kThreads) slot[d] = a.k.at(b, t, hkv)[d], slot[s.Hkv * s.D + d] = a.v.at(b, t, hkv)[d];
    for (std::int64_t h = hkv * group; h < (hkv + 1) * group; ++h) {
      const T* const query = a.q.at(b, t, h);
      const A* const state = a.state + (b * s.Hq + h) * s.F * pitch;
      const A of_window = weigh_window(a, query, static_cast<const T*>(keys), seen, m) + (a.factor ? a.factor[h] : A(0));
      A share = 1, rest = 0;
      if (behind) {
        const A of_linear = read_state(a, query, h, state, m), base = of_window > of_linear ? of_window : of_linear;
        const A whole = base + log(exp(of_window - base) + exp(of_linear - base));
        share = exp(of_window - whole), rest = exp(of_linear - whole);
      }
      for (std::int64_t e = threadIdx.x; e < s.D; e += kThreads) {
        A near = 0, far = 0;
        for (std::int64_t j = 0; j < seen; ++j) near += m.scores[j] * load(keys + j * row + s.Hkv * s.D + e);
#pragma unroll 8
        for (std::int64_t r = 0; behind && r < s.F; ++r) far += m.q[r] * state[r * pitch + e];
        a.o.at(b, t, h)[e] = convert<T>(share * near + rest * far);
      }
    }
    __syncthreads();  // this token has been read before the next takes its place
  }
}

template <class T>
void forward(const Call& c) {
  using A = Accumulator<T>;
  const auto heads = [&](Input i) { return Heads<const T>(kName, c.inputs[i]); };
  const auto parameter = [&](Input i) { return c.inputs[i].template as<const T>(); };
  const Arguments<T> a{.s = sizes_of(c.attributes, c.inputs),
                       .q = heads(kQ),
                       .k = heads(kK),
                       .v = heads(kV),
                       .o = Heads<T>(kName, c.outputs[0]),
                       .state = c.inputs[kState].template as<A>(),
                       .cache = c.inputs[kCache].template as<T>(),
                       .position = c.inputs[kPosition].template as<const std::int32_t>(),
                       .weight = {parameter(kWeightQ), parameter(kWeightK)},
                       .bias = {parameter(kBiasQ), parameter(kBiasK)},
                       .factor = c.inputs[kLogFactor].template as<const A>()};
  const std::int64_t bytes = Memory<A>::size(a.s) * std::int64_t(sizeof(A));
  if (bytes > std::int64_t(largest_shared_memory()))
    throw ShapeError("[hybrid_attention_step] a window of " + std::to_string(a.s.window) + " tokens does not fit a block's shared memory; use a smaller window");
  allow_shared_memory(reinterpret_cast<const void*>(hybrid_attention_step_kernel<T>), int(bytes));
  launch_early(kName, hybrid_attention_step_kernel<T>, unsigned(a.s.B * a.s.Hkv), kThreads, std::size_t(bytes), a);
}

}  // namespace
}  // namespace hybrid_attention_step

void register_hybrid_attention_step(KernelTable& table) {
  table["hybrid_attention_step"] = {
      .forward = [](const Call& c) { dispatch_floating(c.inputs[0].dtype, [&](auto zero) { hybrid_attention_step::forward<decltype(zero)>(c); }); }};
}

}  // namespace hedgehog::cuda

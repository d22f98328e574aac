#include "cuda/early_launch.cuh"
#include "cuda/feature_map.cuh"
#include "cuda/packet.cuh"
#include "ops/linear_attention_sizes.h"

namespace hedgehog::cuda {
namespace {

using namespace linear_attention_detail;

constexpr const char* kName = "linear_attention_step";
constexpr int kThreads = 512, kWarps = kThreads / int(kWarp);
constexpr int kSide = kThreads / 2;  // threads that map the query; as many map the key
constexpr int kHeldRows = 8;         // of a map, that a thread keeps in registers
constexpr int kWhole = int(kWarp), kPart = 8;  // pairs of state columns of a block: a head's, or a part of them
constexpr int kUsual = 64;           // width of the heads, their map and their values that has kernels of its own
static_assert(kUsual * kUsual / 2 == kSide * kHeldRows);

template <class T>
struct StepArguments {
  using A = Accumulator<T>;
  Sizes s;
  Heads<const T> q, k, v;
  Heads<T> o;
  A* state;
  const T *weight[2], *bias[2];  // of queries and keys, or null
  const A* rotary;               // (T, D), or null
  bool vectors;                  // TokenMap does both maps
  bool parameters;               // weights and biases are parameters
  int parts;                     // blocks that share the columns of a state
};

/// Shared memory of one block, in elements.
template <class A>
struct StepMemory {
  A *parts, *u, *q, *k, *factor, *largest, *den;  // sums of threads or warps; (2, D'); (F) each; of each warp of features
  A* turned;                                      // (2, D): query and key
  std::int64_t size;

  __host__ __device__ StepMemory(A* memory, std::int64_t width, std::int64_t F, std::int64_t D) {
    parts = memory;
    u = parts + 2 * kThreads;
    q = u + 2 * width;
    k = q + F;
    factor = k + F;
    largest = factor + F;
    den = largest + kWarps;
    turned = den + kWarps;
    size = turned + 2 * D - memory;
  }
};

template <class T>
__device__ __forceinline__ Packet<T, 2> load_pair(const T* at) {
  if constexpr (sizeof(T) == 2) {
    const unsigned word = *reinterpret_cast<const unsigned*>(at);
    Packet<T, 2> pair;
    memcpy(&pair, &word, sizeof pair);
    return pair;
  } else {
    return load_packet<2>(at);
  }
}

/// x W of one query and its key. Half of the threads for each of both; a thread takes two neighbouring columns of a run of
/// rows, the first of which stay in registers. kHead: D and D', 0 if only the call knows.
template <class T, int kHead>
struct TokenMap {
  using A = Accumulator<T>;
  const T* weight = nullptr;
  int width = 0, begin = 0, rows = 0;
  Packet<T, 2> held[kHeldRows];

  __device__ __forceinline__ void fetch(const StepArguments<T>& a, std::int64_t h) {
    width = kHead ? kHead : int(a.s.width);
    const int side = int(threadIdx.x) / kSide, thread = int(threadIdx.x) % kSide, pairs = width / 2, runs = kSide / pairs;
    const int D = kHead ? kHead : int(a.s.D), each = (D + runs - 1) / runs;
    begin = thread / pairs * each;
    rows = kHead ? kHeldRows : min(D - begin, each);
    weight = a.weight[side] + (h * D + begin) * width + thread % pairs * 2;
#pragma unroll
    for (int i = 0; i < kHeldRows; ++i)
      if (i < rows) held[i] = load_pair(weight + i * width);
  }
  /// parts (2, runs, D'): the sums of each run of rows
  template <class X>
  __device__ __forceinline__ void map(const X* x, A* parts) const {
    X factors[kHeldRows];
#pragma unroll
    for (int i = 0; i < kHeldRows; ++i)
      if (i < rows) factors[i] = x[begin + i];
    A sum[2] = {};
    auto add = [&](X factor, const Packet<T, 2>& w) {
      sum[0] += convert<A>(factor) * convert<A>(w[0]);
      sum[1] += convert<A>(factor) * convert<A>(w[1]);
    };
#pragma unroll
    for (int i = 0; i < kHeldRows; ++i)
      if (i < rows) add(factors[i], held[i]);
    for (int i = kHeldRows; i < rows; ++i) add(x[begin + i], load_pair(weight + std::int64_t(i) * width));
    parts[2 * threadIdx.x] = sum[0];
    parts[2 * threadIdx.x + 1] = sum[1];
  }
};

/// What one thread keeps of its row r = threadIdx.x of the state, while tokens pass.
template <class A>
struct KeySum {
  A z = 0, shift = 0;
};

/// Takes one key into shift, factor and z, and turns both features, in working form, into what the state is updated and read
/// with. Thread r does feature r; q is scaled by the largest of its warp. Warps without features do not call it.
template <class A>
__device__ __forceinline__ void take_key(const FeatureMap& map, int F, A q, A k, KeySum<A>& sum, const StepMemory<A>& m) {
  const int r = int(threadIdx.x), warp = r / int(kWarp);
  A factor = 1, largest = 0;
  if (map.logarithmic()) {
    const bool empty = !(sum.z > A(0));
    const A next = empty || sum.shift < k ? k : sum.shift;
    factor = empty ? A(0) : std::exp(sum.shift - next);
    k = std::exp(k - next);
    q = r < F ? q + next : -A(INFINITY);
    sum.shift = next;
    largest = warp_max(q);
    q = std::exp(q - (largest == -A(INFINITY) ? A(0) : largest));
  }
  sum.z = sum.z * factor + k;
  const A den = warp_sum(r < F ? q * sum.z : A(0));
  if (r < F) m.q[r] = q, m.k[r] = k, m.factor[r] = factor;
  if (r % int(kWarp) == 0) m.largest[warp] = largest, m.den[warp] = den;
}

/// A block decodes the tokens of one batch element and head, or a cluster of a.parts blocks, each of which has 16 columns of the
/// state and makes the features anew: the turn by rotary positions, both maps, the shift, and one pass over the state that updates
/// and reads it. With kRows > 0 (f32) the block's columns are 2 kPairs at most and stay in registers, kRows rows and two columns a
/// thread, and are written back after the last token; with kRows = 0 the state is updated where it lies, 32 columns at a time.
/// kHead: every width of the call, whose map is the plain Hedgehog one, 0 if only the call knows; half of a multiprocessor's
/// registers then leave room for the kernels around this one.
template <class T, int kRows, int kPairs, int kHead>
__global__ __launch_bounds__(kThreads, kHead ? 2 : 1) void linear_attention_step_kernel(const __grid_constant__ StepArguments<T> a) {
  using A = Accumulator<T>;
  extern __shared__ __align__(16) unsigned char memory[];
  start_next_kernel();
  Sizes s = a.s;
  if constexpr (kHead > 0) s.D = s.Dv = s.width = kHead, s.F = 2 * kHead, s.map = FeatureMap{};
  const bool vectors = kHead > 0 || a.vectors;
  const int F = int(s.F), width = int(s.width), lane = int(threadIdx.x % kWarp), warp = int(threadIdx.x / kWarp), thread = int(threadIdx.x);
  const StepMemory<A> m(reinterpret_cast<A*>(memory), s.width, s.F, s.D);
  const unsigned task = kPairs == kPart ? blockIdx.x / unsigned(a.parts) : blockIdx.x, part = kPairs == kPart ? blockIdx.x % unsigned(a.parts) : 0;
  const std::int64_t b = quotient(task, s.Hq), h = task - b * s.Hq, hkv = quotient(h, quotient(s.Hq, s.Hkv)), pitch = s.Dv + 2;
  A* const state = a.state + std::int64_t(task) * s.F * pitch;
  constexpr int kSlots = int(kWarp) / kPairs;  // rows of the state that a warp has at once
  const int column = int(part) * 2 * kPairs + lane % kPairs * 2;
  const bool holds = column < s.Dv;
  auto row_of = [&](int i) { return (i * kWarps + warp) * kSlots + lane / kPairs; };

  // addresses of the first token and of the first of the thread's rows, made ahead of the wait
  const T *const queries = a.q.at(b, 0, h), *const keys = a.k.at(b, 0, hkv), *const values = a.v.at(b, 0, hkv);
  T* const results = a.o.at(b, 0, h);
  A* const cell = state + row_of(0) * pitch + column;
  const std::int64_t next_cell = kWarps * kSlots * pitch;

  if (!a.parameters) wait_for_kernels();
  TokenMap<T, kHead> map;
  A bias[2] = {};
  if (vectors) map.fetch(a, h);
#pragma unroll
  for (int side = 0; side < 2; ++side)
    if (a.bias[side]) bias[side] = load(a.bias[side] + h * width + thread % width);
  if (a.parameters) {
    if (kRows > 0 && thread < F) {
      const A* const row = state + thread * pitch;
      prefetch(row + part * 2 * kPairs);
      prefetch(row + min(std::int64_t(part + 1) * 2 * kPairs, s.Dv) - 1);
      prefetch(row + s.Dv);
    }
    wait_for_kernels();
  }

  // a pair of the query's or key's features, asked for before the state: it is needed first
  const int half = int(s.D) / 2, side_of_pair = thread >= half, pair = thread - side_of_pair * half;
  A cosine = 0, sine = 0, low = 0, high = 0;
  auto fetch_pair = [&](std::int64_t t) {
    if (!a.rotary || thread >= int(s.D)) return;
    const T* const x = side_of_pair ? keys + t * a.k.token : queries + t * a.q.token;
    const A* const table = a.rotary + t * s.D;
    cosine = table[pair], sine = table[half + pair], low = load(x + pair), high = load(x + half + pair);
  };
  fetch_pair(0);

  constexpr int kHeld = kRows ? kRows : 1;
  A first[kHeld], second[kHeld];
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const int r = row_of(i);
    first[i] = second[i] = 0;
    if (r < F && holds) {
      const float2 pair = *reinterpret_cast<const float2*>(cell + i * next_cell);
      first[i] = pair.x, second[i] = pair.y;
    }
  }
  KeySum<A> sum;
  if (thread < F) sum = {state[thread * pitch + s.Dv], state[thread * pitch + s.Dv + 1]};

  for (std::int64_t t = 0; t < s.T; ++t) {
    const T *const q = queries + t * a.q.token, *const k = keys + t * a.k.token, *const v = values + t * a.v.token;
    T* const o = results + t * a.o.token;
    A v0 = 0, v1 = 0;
    if (kRows > 0 && holds) v0 = load(v + column), v1 = load(v + column + 1);
    if (a.rotary) {
      if (thread < int(s.D)) {
        A* const to = m.turned + side_of_pair * s.D;
        to[pair] = low * cosine - high * sine;
        to[half + pair] = high * cosine + low * sine;
      }
      if (t + 1 < s.T) fetch_pair(t + 1);
      __syncthreads();
    }
    if (vectors) {
      if (a.rotary) map.map(m.turned + thread / kSide * s.D, m.parts);
      else map.map(thread < kSide ? q : k, m.parts);
      __syncthreads();
    }
    auto u = [&](int side, int c) {
      A total = bias[side];
      if (vectors) {
#pragma unroll 8
        for (int at = c; at < kThreads; at += width) total += m.parts[side * kThreads + at];
        return total;
      }
      const T *const x = side ? k : q, *const w = a.weight[side];
      auto element = [&](int d) { return a.rotary ? m.turned[side * s.D + d] : load(x + d); };
      if (!w) return total + element(c);
      for (int d = 0; d < int(s.D); ++d) total += element(d) * load(w + (h * s.D + d) * width + c);
      return total;
    };
    A features[2] = {};
    if (s.map.normalised()) {
      if (thread < width) m.u[thread] = u(0, thread), m.u[width + thread] = u(1, thread);
      __syncthreads();
      if (warp < 2) {
        const A* const from = m.u + warp * width;
        A* const y = warp ? m.k : m.q;
        working_features_warp<A>(s.map, width, [&](int r) { return from[r]; }, [&](int r, A value) { y[r] = value; });
      }
      __syncthreads();
      if (thread < F) features[0] = m.q[thread], features[1] = m.k[thread];
    } else if (thread < F) {
      // the second half is made of -u
      const A sign = thread < width ? A(1) : A(-1);
#pragma unroll
      for (int side = 0; side < 2; ++side) features[side] = working_feature(s.map, sign * u(side, thread % width));
    }
    if (warp * int(kWarp) < F) take_key(s.map, F, features[0], features[1], sum, m);
    __syncthreads();
    if (kPairs == kPart && a.parts > 1 && t == 0) cluster_arrive_relaxed();  // this block has read the sums of keys
    A largest = m.largest[0], den = 0;
    const int feature_warps = (F + int(kWarp) - 1) / int(kWarp);
    for (int w = 1; w < feature_warps; ++w) largest = m.largest[w] > largest ? m.largest[w] : largest;
    for (int w = 0; w < feature_warps; ++w) den += m.den[w] * std::exp(m.largest[w] - largest);
    const A inverse = den == A(0) ? A(0) : A(1) / den;
    auto q_of = [&](int r) { return m.q[r] * std::exp(m.largest[r / int(kWarp)] - largest); };
    if constexpr (kRows > 0) {
      A sum0 = 0, sum1 = 0;
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        const int r = row_of(i);
        if (r >= F) continue;
        const A factor = m.factor[r], k = m.k[r], q = q_of(r);
        first[i] = first[i] * factor + k * v0;
        second[i] = second[i] * factor + k * v1;
        sum0 += q * first[i];
        sum1 += q * second[i];
      }
#pragma unroll
      for (int offset = kPairs; offset < int(kWarp); offset *= 2) {
        sum0 += __shfl_xor_sync(0xffffffffu, sum0, offset);
        sum1 += __shfl_xor_sync(0xffffffffu, sum1, offset);
      }
      if (lane < kPairs) {
        m.parts[(warp * kPairs + lane) * 2] = sum0;
        m.parts[(warp * kPairs + lane) * 2 + 1] = sum1;
      }
      __syncthreads();
      if (thread < 2 * kPairs && part * 2 * kPairs + thread < s.Dv) {
        A total = 0;
#pragma unroll
        for (int w = 0; w < kWarps; ++w) total += m.parts[w * 2 * kPairs + thread];
        o[part * 2 * kPairs + thread] = convert<T>(total * inverse);
      }
      if (t + 1 < s.T) __syncthreads();
    } else {
      for (std::int64_t e0 = 0; e0 < s.Dv; e0 += kWarp) {
        const std::int64_t e = e0 + lane;
        const A value = e < s.Dv ? load(v + e) : A(0);
        A total = 0;
        for (int r = warp; r < F && e < s.Dv; r += kWarps) {
          A& at = state[r * pitch + e];
          at = at * m.factor[r] + m.k[r] * value;
          total += q_of(r) * at;
        }
        m.parts[warp * int(kWarp) + lane] = total;
        __syncthreads();
        if (warp == 0 && e < s.Dv) {
          total = 0;
          for (int w = 0; w < kWarps; ++w) total += m.parts[w * int(kWarp) + lane];
          o[e] = convert<T>(total * inverse);
        }
        __syncthreads();
      }
    }
  }

#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const int r = row_of(i);
    if (r < F && holds) *reinterpret_cast<float2*>(cell + i * next_cell) = make_float2(float(first[i]), float(second[i]));
  }
  // all blocks have read the sums of keys before one writes them
  if (kPairs == kPart && a.parts > 1) cluster_wait();
  if (part == 0 && thread < F) {
    state[thread * pitch + s.Dv] = sum.z;
    state[thread * pitch + s.Dv + 1] = sum.shift;
  }
}

template <class T>
void launch(const Call& c) {
  using A = Accumulator<T>;
  const Sizes s = step_sizes(c.attributes, c.inputs);
  const auto& in = c.inputs;
  StepArguments<T> a{s,
                     Heads<const T>(kName, in[kStepQ]),
                     Heads<const T>(kName, in[kStepK]),
                     Heads<const T>(kName, in[kStepV]),
                     Heads<T>(kName, c.outputs[0]),
                     in[kState].as<A>(),
                     {in[kStepWeightQ].as<const T>(), in[kStepWeightK].as<const T>()},
                     {in[kStepBiasQ].as<const T>(), in[kStepBiasK].as<const T>()},
                     in[kStepRotary].as<const A>(),
                     false,
                     true,
                     1};
  a.vectors = a.weight[0] && a.weight[1] && s.width % 2 == 0 && kSide % (s.width / 2) == 0 && aligned({a.weight[0], a.weight[1]});
  for (int i = kStepWeightQ; i <= kStepBiasK; ++i) a.parameters = a.parameters && (!in[std::size_t(i)] || in[std::size_t(i)].parameter);
  const std::size_t bytes = std::size_t(StepMemory<A>(nullptr, s.width, s.F, s.D).size) * sizeof(A);
  const std::int64_t tasks = s.B * s.Hq, parts = s.Dv / (2 * kPart);
  auto run = [&](auto kernel) {
    launch_clusters_early(kName, kernel, unsigned(a.parts), unsigned(tasks * a.parts), kThreads, bytes, a);
  };
  if constexpr (sizeof(A) == 4) {
    constexpr std::int64_t rows = kWarps, part_rows = kWarps * kWarp / kPart;  // of a state, one a thread
    const bool even = s.Dv % 2 == 0 && aligned({a.state});
    // few heads wait for memory, many would make features too often
    const bool shared = has_early_launches() && even && s.Dv == parts * 2 * kPart && parts <= 8 && (parts & (parts - 1)) == 0 &&
                        tasks * parts <= multiprocessors() && s.F <= 4 * part_rows;
    if (shared) {
      a.parts = int(parts);
      const bool usual = a.vectors && s.D == kUsual && s.width == kUsual && s.Dv == kUsual && s.map.kind == MapKind::hedgehog;
      if (usual) return run(linear_attention_step_kernel<T, 2, kPart, kUsual>);
      return s.F <= 2 * part_rows ? run(linear_attention_step_kernel<T, 2, kPart, 0>) : run(linear_attention_step_kernel<T, 4, kPart, 0>);
    }
    const bool held = even && s.Dv <= 2 * kWhole;
    if (held && s.F <= 8 * rows) return run(linear_attention_step_kernel<T, 8, kWhole, 0>);
    if (held && s.F <= 16 * rows) return run(linear_attention_step_kernel<T, 16, kWhole, 0>);
  }
  run(linear_attention_step_kernel<T, 0, kWhole, 0>);
}

void forward(const Call& c) {
  dispatch_floating(c.inputs[kStepQ].dtype, [&](auto zero) { launch<decltype(zero)>(c); });
}

}  // namespace

void register_linear_attention_step(KernelTable& table) { table["linear_attention_step"] = {.forward = forward}; }

}  // namespace hedgehog::cuda

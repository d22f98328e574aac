#pragma once
#include "cuda/feature_map.cuh"
#include "cuda/packet.cuh"

/// What the kernels of a step of linear attention share: maps of one query and key, what a key does to the state, the pass that
/// updates and reads it.
namespace hedgehog::cuda {

constexpr int kStepThreads = 512, kStepWarps = kStepThreads / int(kWarp);
constexpr int kSideThreads = kStepThreads / 2;  // that map the query; as many map the key
constexpr int kHeldRows = 8;                    // of a map, that a thread keeps in registers

/// Shared memory of one block, in elements.
template <class A>
struct StepMemory {
  A *parts, *u, *q, *k, *factor, *largest, *den;  // sums of threads or warps; (2, D'); (F) each; of each warp of features
  A* turned;                                      // (2, D): query and key

  static constexpr std::int64_t size(std::int64_t width, std::int64_t F, std::int64_t D) {
    return 2 * kStepThreads + 2 * width + 3 * F + 2 * kStepWarps + 2 * D;
  }
  __device__ StepMemory(A* memory, std::int64_t width, std::int64_t F) {
    parts = memory;
    u = parts + 2 * kStepThreads;
    q = u + 2 * width;
    k = q + F;
    factor = k + F;
    largest = factor + F;
    den = largest + kStepWarps;
    turned = den + kStepWarps;
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

  /// weights: of queries and keys, (Hq, D, D') each
  __device__ __forceinline__ void fetch(const T* const (&weights)[2], std::int64_t h, int depth, int columns) {
    width = kHead ? kHead : columns;
    const int side = int(threadIdx.x) / kSideThreads, thread = int(threadIdx.x) % kSideThreads, pairs = width / 2, runs = kSideThreads / pairs;
    const int D = kHead ? kHead : depth, each = (D + runs - 1) / runs;
    begin = thread / pairs * each;
    rows = kHead ? kHeldRows : min(D - begin, each);
    weight = weights[side] + (h * D + begin) * width + thread % pairs * 2;
#pragma unroll
    for (int i = 0; i < kHeldRows; ++i)
      if (i < rows) held[i] = load_pair(weight + i * width);
  }
  /// parts (2, runs, D'): the sums of each run of rows. kAligned: x is aligned to 16 bytes, in a kernel with kHead.
  template <bool kAligned = false, class X>
  __device__ __forceinline__ void map(const X* x, A* parts) const {
    Packet<X, kHeldRows> factors;
    if constexpr (kAligned) {
      factors = load_packet<kHeldRows>(x + begin);
    } else {
#pragma unroll
      for (int i = 0; i < kHeldRows; ++i)
        if (i < rows) factors[i] = x[begin + i];
    }
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
  /// One column of the query's or key's map from all parts.
  __device__ __forceinline__ A sum(const A* parts, int side, int column, A bias) const {
#pragma unroll 8
    for (int at = column; at < kStepThreads; at += width) bias += parts[side * kStepThreads + at];
    return bias;
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

/// How the features of a query, which take_key has scaled warp by warp, are read.
template <class A>
struct QueryScale {
  A largest;  // of the scales
  int warps;  // with features

  __device__ __forceinline__ QueryScale(const StepMemory<A>& m, int F) : largest(m.largest[0]), warps((F + int(kWarp) - 1) / int(kWarp)) {
    for (int w = 1; w < warps; ++w) largest = m.largest[w] > largest ? m.largest[w] : largest;
  }
  __device__ __forceinline__ A feature(const StepMemory<A>& m, int r) const { return m.q[r] * std::exp(m.largest[r / int(kWarp)] - largest); }
  /// 1 / (q . z); 0 for 0
  __device__ __forceinline__ A inverse(const StepMemory<A>& m) const {
    A den = 0;
    for (int w = 0; w < warps; ++w) den += m.den[w] * std::exp(m.largest[w] - largest);
    return den == A(0) ? A(0) : A(1) / den;
  }
};

/// 2 kPairs columns of a state in the registers of a block, two neighbouring ones of kRows rows a thread. (F, pitch) f32.
template <int kRows, int kPairs>
struct StateColumns {
  static constexpr int kSlots = int(kWarp) / kPairs;  // rows that a warp has at once
  float first[kRows], second[kRows];

  static __device__ __forceinline__ int row_of(int i) {
    return (i * kStepWarps + int(threadIdx.x / kWarp)) * kSlots + int(threadIdx.x % kWarp) / kPairs;
  }
  static __device__ __forceinline__ int column() { return int(threadIdx.x % kWarp) % kPairs * 2; }

  /// cell: the first of the thread's rows, next_cell elements ahead of the second. holds: the columns are some of the state's.
  __device__ __forceinline__ void fetch(const float* cell, std::int64_t next_cell, int F, bool holds) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      first[i] = second[i] = 0;
      if (row_of(i) < F && holds) {
        const float2 pair = *reinterpret_cast<const float2*>(cell + i * next_cell);
        first[i] = pair.x, second[i] = pair.y;
      }
    }
  }
  __device__ __forceinline__ void store(float* cell, std::int64_t next_cell, int F, bool holds) const {
#pragma unroll
    for (int i = 0; i < kRows; ++i)
      if (row_of(i) < F && holds) *reinterpret_cast<float2*>(cell + i * next_cell) = make_float2(first[i], second[i]);
  }
  /// Adds a key with the values v0 and v1 of the thread's columns, and reads with the query. Thread c < 2 kPairs calls
  /// put(sum of column c) at the end.
  template <class Put>
  __device__ __forceinline__ void take(const StepMemory<float>& m, const QueryScale<float>& scale, int F, float v0, float v1, const Put& put) {
    const int lane = int(threadIdx.x % kWarp), warp = int(threadIdx.x / kWarp);
    float sum0 = 0, sum1 = 0;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int r = row_of(i);
      if (r >= F) continue;
      const float factor = m.factor[r], k = m.k[r], q = scale.feature(m, r);
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
    if (threadIdx.x < 2 * kPairs) {
      float total = 0;
#pragma unroll
      for (int w = 0; w < kStepWarps; ++w) total += m.parts[w * 2 * kPairs + int(threadIdx.x)];
      put(total);
    }
  }
};

}  // namespace hedgehog::cuda

#include "cuda/early_launch.cuh"
#include "cuda/packet.cuh"

/// Decoding with softmax attention. One token alone waits for memory, so its keys are dealt out over many blocks (a number that
/// depends on shapes alone: the position is known on the device only), and a second kernel joins their parts.
namespace hedgehog::cuda {
namespace softmax_attention_step {
namespace {

constexpr const char* kName = "softmax_attention_step";
constexpr int kThreads = 128, kWarps = kThreads / int(kWarp);
constexpr std::int64_t kMostSplits = 64, kFewestKeys = 64, kBlocks = 4 * 132;

enum Input : int { kQ, kK, kV, kCache, kPosition };

template <class T>
struct Step {
  using A = Accumulator<T>;
  const T *q, *k, *v;  // (B, n, Hq, D), (B, n, Hkv, D)
  T *cache, *o;        // (B, P, 2, Hkv, D), (B, n, Hq, D)
  const std::int32_t* position;
  A* statistics;  // (B n Hq, splits, 2): largest score in base 2, sum of 2^(score - largest)
  A* sums;        // (B n Hq, splits, D): sum of 2^(score - largest) v
  std::int64_t B, n, Hq, Hkv, D, P;
  int splits;
  A scale;  // of the scores in base 2
};

/// What a block works on: a query, and keys [from, to) of those it sees. `fits` is false where the cache has no room.
struct Part {
  std::int64_t row, b, t, h, hkv, before, from, to;
  int split;
  bool fits;
};
template <class T>
__device__ __forceinline__ Part part_of(const Step<T>& s) {
  Part p;
  p.row = blockIdx.x / unsigned(s.splits);
  p.split = int(blockIdx.x % unsigned(s.splits));
  p.h = p.row % s.Hq, p.t = p.row / s.Hq % s.n, p.b = p.row / s.Hq / s.n;
  p.hkv = p.h / (s.Hq / s.Hkv);
  p.before = *s.position;
  p.fits = p.before >= 0 && p.before + s.n <= s.P;
  const std::int64_t seen = p.before + p.t + 1;
  p.from = seen * p.split / s.splits, p.to = seen * (p.split + 1) / s.splits;
  return p;
}

/// Key j of the query's head, or its value. New tokens are read from k and v: the rows of the cache that this launch writes are
/// not read by it.
template <class T>
__device__ __forceinline__ const T* key(const Step<T>& s, const Part& p, std::int64_t j) {
  if (j < p.before) return s.cache + ((p.b * s.P + j) * 2 * s.Hkv + p.hkv) * s.D;
  return s.k + ((p.b * s.n + j - p.before) * s.Hkv + p.hkv) * s.D;
}
template <class T>
__device__ __forceinline__ const T* value(const Step<T>& s, const Part& p, std::int64_t j) {
  if (j < p.before) return s.cache + (((p.b * s.P + j) * 2 + 1) * s.Hkv + p.hkv) * s.D;
  return s.v + ((p.b * s.n + j - p.before) * s.Hkv + p.hkv) * s.D;
}

/// One block of each new token and key head writes it to the cache.
template <class T>
__device__ __forceinline__ void append(const Step<T>& s, const Part& p) {
  if (p.split != s.splits - 1 || p.h % (s.Hq / s.Hkv) != 0) return;
  T* to = s.cache + ((p.b * s.P + p.before + p.t) * 2 * s.Hkv + p.hkv) * s.D;
  const std::int64_t from = ((p.b * s.n + p.t) * s.Hkv + p.hkv) * s.D;
  for (std::int64_t e = threadIdx.x; e < s.D; e += kThreads) {
    to[e] = s.k[from + e];
    to[s.Hkv * s.D + e] = s.v[from + e];
  }
}

template <class A>
__device__ __forceinline__ A larger(A a, A b) {
  return b > a ? b : a;  // NaN is left out here and comes back through exp2
}
/// Nothing seen: any finite base gives 2^-inf = 0.
template <class A>
__device__ __forceinline__ A base_of(A largest) {
  return largest == -A(INFINITY) ? A(0) : largest;
}

/// A query against a part of its keys, for any head dimension: 128 keys at a time, a warp a score, then a thread some elements
/// of the sum. Sums are kept in memory, which only their thread touches.
template <class T>
__global__ void __launch_bounds__(kThreads) softmax_attention_step_forward_kernel(const Step<T> s) {
  using A = Accumulator<T>;
  __shared__ A weights[kThreads];
  wait_for_kernels();
  const Part p = part_of(s);
  if (!p.fits) return;
  append(s, p);
  const T* q = s.q + p.row * s.D;
  const std::int64_t at = p.row * s.splits + p.split;
  A* o = s.sums + at * s.D;
  for (std::int64_t e = threadIdx.x; e < s.D; e += kThreads) o[e] = 0;
  A largest = -A(INFINITY), sum = 0;
  for (std::int64_t j0 = p.from; j0 < p.to; j0 += kThreads) {
    const int count = int(min(std::int64_t(kThreads), p.to - j0));
    for (int j = threadIdx.x / kWarp; j < count; j += kWarps) {
      const T* k = key(s, p, j0 + j);
      A product = 0;
      for (std::int64_t e = threadIdx.x % kWarp; e < s.D; e += kWarp) product += load(q + e) * load(k + e);
      product = warp_sum(product);
      if (threadIdx.x % kWarp == 0) weights[j] = product * s.scale;
    }
    __syncthreads();
    A top = largest;
    for (int j = 0; j < count; ++j) top = larger(top, weights[j]);
    const A base = base_of(top), alpha = exp2(largest - base);
    __syncthreads();  // all know the largest: scores become weights
    if (int(threadIdx.x) < count) weights[threadIdx.x] = exp2(weights[threadIdx.x] - base);
    __syncthreads();
    sum *= alpha;
    for (int j = 0; j < count; ++j) sum += weights[j];
    for (std::int64_t e = threadIdx.x; e < s.D; e += kThreads) {
      A total = o[e] * alpha;
      for (int j = 0; j < count; ++j) total += weights[j] * load(value(s, p, j0 + j) + e);
      o[e] = total;
    }
    largest = top;
    __syncthreads();  // the weights have been read
  }
  if (threadIdx.x == 0) s.statistics[2 * at] = largest, s.statistics[2 * at + 1] = sum;
}

/// 16 bytes of elements as floats.
template <class T>
struct Vector {
  static constexpr int kCount = 16 / int(sizeof(T));
  float x[kCount];
  __device__ __forceinline__ explicit Vector(const uint4& bits) {
    const unsigned words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if constexpr (std::is_same_v<T, float>) x[i] = __uint_as_float(words[i]);
      else {
        x[2 * i] = low_of(words[i]);
        x[2 * i + 1] = high_of(words[i]);
      }
  }
};

/// The same for heads of kLanes 16-byte vectors: kLanes neighbouring threads hold a key, four keys are on their way at once, and
/// every such group keeps a softmax of its own until the block joins them.
template <class T, int kLanes>
__global__ void __launch_bounds__(kThreads) softmax_attention_step_forward_vector_kernel(const Step<T> s) {
  constexpr int kCount = Vector<T>::kCount, kGroups = kThreads / kLanes, kDepth = kLanes * kCount, kFlight = 4;
  __shared__ float group_statistics[kGroups][2], group_sums[kGroups][kDepth];
  wait_for_kernels();
  const Part p = part_of(s);
  if (!p.fits) return;
  append(s, p);
  const int group = int(threadIdx.x) / kLanes, e0 = int(threadIdx.x) % kLanes * kCount;
  const Vector<T> q(*reinterpret_cast<const uint4*>(s.q + p.row * kDepth + e0));
  float largest = -INFINITY, sum = 0, o[kCount] = {};
  // every lane of a warp takes every turn: the shuffles need them all
  for (std::int64_t j0 = p.from; j0 < p.to; j0 += kGroups * kFlight) {
    uint4 keys[kFlight], values[kFlight];
#pragma unroll
    for (int i = 0; i < kFlight; ++i) {
      const std::int64_t j = j0 + i * kGroups + group;
      keys[i] = values[i] = make_uint4(0, 0, 0, 0);
      if (j < p.to) {
        keys[i] = *reinterpret_cast<const uint4*>(key(s, p, j) + e0);
        values[i] = *reinterpret_cast<const uint4*>(value(s, p, j) + e0);
      }
    }
    float scores[kFlight], top = largest;
#pragma unroll
    for (int i = 0; i < kFlight; ++i) {
      const Vector<T> k(keys[i]);
      float product = 0;
#pragma unroll
      for (int e = 0; e < kCount; ++e) product += q.x[e] * k.x[e];
      product = warp_sum<kLanes>(product);
      scores[i] = j0 + i * kGroups + group < p.to ? product * s.scale : -INFINITY;
      top = larger(top, scores[i]);
    }
    const float base = base_of(top), alpha = exp2f(largest - base);
    sum *= alpha;
#pragma unroll
    for (int e = 0; e < kCount; ++e) o[e] *= alpha;
#pragma unroll
    for (int i = 0; i < kFlight; ++i) {
      const Vector<T> v(values[i]);
      const float weight = exp2f(scores[i] - base);
      sum += weight;
#pragma unroll
      for (int e = 0; e < kCount; ++e) o[e] += weight * v.x[e];
    }
    largest = top;
  }
  if (e0 == 0) group_statistics[group][0] = largest, group_statistics[group][1] = sum;
#pragma unroll
  for (int e = 0; e < kCount; ++e) group_sums[group][e0 + e] = o[e];
  __syncthreads();

  float top = -INFINITY;
  for (int i = 0; i < kGroups; ++i) top = larger(top, group_statistics[i][0]);
  const float base = base_of(top);
  const std::int64_t at = p.row * s.splits + p.split;
  for (int e = threadIdx.x; e < kDepth; e += kThreads) {
    float total = 0;
    for (int i = 0; i < kGroups; ++i) total += exp2f(group_statistics[i][0] - base) * group_sums[i][e];
    s.sums[at * kDepth + e] = total;
  }
  if (threadIdx.x == 0) {
    float total = 0;
    for (int i = 0; i < kGroups; ++i) total += exp2f(group_statistics[i][0] - base) * group_statistics[i][1];
    s.statistics[2 * at] = top, s.statistics[2 * at + 1] = total;
  }
}

/// o from the parts of a query, in the order of its keys; NaN where the cache has no room, so that the guard finds it. A block
/// a query.
template <class T>
__global__ void __launch_bounds__(kThreads) softmax_attention_step_join_kernel(const Step<T> s) {
  using A = Accumulator<T>;
  __shared__ A weights[kMostSplits], parts[kMostSplits];
  wait_for_kernels();
  const std::int64_t row = blockIdx.x, before = *s.position;
  T* o = s.o + row * s.D;
  if (before < 0 || before + s.n > s.P) {
    for (std::int64_t e = threadIdx.x; e < s.D; e += kThreads) o[e] = convert<T>(A(NAN));
    return;
  }
  const int i = int(threadIdx.x);
  if (i < s.splits) weights[i] = s.statistics[2 * (row * s.splits + i)];
  __syncthreads();
  A top = -A(INFINITY);
  for (int split = 0; split < s.splits; ++split) top = larger(top, weights[split]);
  const A base = base_of(top);
  __syncthreads();  // all know the largest
  if (i < s.splits) {
    weights[i] = exp2(weights[i] - base);
    parts[i] = weights[i] * s.statistics[2 * (row * s.splits + i) + 1];
  }
  __syncthreads();
  A sum = 0;
  for (int split = 0; split < s.splits; ++split) sum += parts[split];
  for (std::int64_t e = i; e < s.D; e += kThreads) {
    A total = 0;
    for (int split = 0; split < s.splits; ++split) total += weights[split] * s.sums[(row * s.splits + split) * s.D + e];
    o[e] = convert<T>(total / sum);
  }
}

/// Enough blocks to fill the device, and keys enough for each.
std::int64_t splits_of(const Shape& q, const Shape& cache) {
  const std::int64_t rows = q[0] * q[1] * q[2], keys = (cache[1] + kFewestKeys - 1) / kFewestKeys, most = (kBlocks + rows - 1) / rows;
  return std::min({std::max<std::int64_t>(keys, 1), most, kMostSplits});
}

std::int64_t workspace_bytes(const Attributes&, std::span<const Meta> in) {
  const Shape& q = in[kQ].shape;
  return q[0] * q[1] * q[2] * splits_of(q, in[kCache].shape) * (q[3] + 2) * size_of(accumulator_of(in[kQ].dtype));
}

template <class T>
void attend(const Step<T>& s, unsigned blocks) {
  auto launch = [&](auto kernel) { launch_early(kName, kernel, blocks, kThreads, 0, s); };
  if constexpr (!std::is_same_v<T, double>) {
    const bool vectors = aligned({s.q, s.k, s.v, s.cache});
    const std::int64_t lanes = vectors && s.D % Vector<T>::kCount == 0 ? s.D / Vector<T>::kCount : 0;
    if (lanes == 4) return launch(softmax_attention_step_forward_vector_kernel<T, 4>);
    if (lanes == 8) return launch(softmax_attention_step_forward_vector_kernel<T, 8>);
    if (lanes == 16) return launch(softmax_attention_step_forward_vector_kernel<T, 16>);
    if (lanes == 32) return launch(softmax_attention_step_forward_vector_kernel<T, 32>);
  }
  launch(softmax_attention_step_forward_kernel<T>);
}

template <class T>
void forward(const Call& c) {
  using A = Accumulator<T>;
  const Shape &q = c.inputs[kQ].shape, &cache = c.inputs[kCache].shape;
  const double given = c.attributes.real("scale"), scale = given == 0 ? 1 / std::sqrt(double(q[3])) : given;
  const std::int64_t rows = q[0] * q[1] * q[2], splits = splits_of(q, cache);
  if (rows * splits > std::int64_t(2147483647))
    throw ShapeError("[softmax_attention_step] too many tokens and heads for one launch; give fewer tokens a step");
  A* const statistics = static_cast<A*>(c.workspace);
  const Step<T> s{.q = c.inputs[kQ].as<const T>(),
                  .k = c.inputs[kK].as<const T>(),
                  .v = c.inputs[kV].as<const T>(),
                  .cache = c.inputs[kCache].as<T>(),
                  .o = c.outputs[0].as<T>(),
                  .position = c.inputs[kPosition].as<std::int32_t>(),
                  .statistics = statistics,
                  .sums = statistics + rows * splits * 2,
                  .B = q[0], .n = q[1], .Hq = q[2], .Hkv = cache[3], .D = q[3], .P = cache[1],
                  .splits = int(splits),
                  .scale = A(scale * 1.4426950408889634)};
  attend(s, unsigned(rows * splits));
  launch_early(kName, softmax_attention_step_join_kernel<T>, unsigned(rows), kThreads, 0, s);
}

}  // namespace
}  // namespace softmax_attention_step

void register_softmax_attention_step(KernelTable& table) {
  namespace step = softmax_attention_step;
  table["softmax_attention_step"] = {
      .forward = [](const Call& c) { dispatch_floating(c.inputs[step::kQ].dtype, [&](auto zero) { step::forward<decltype(zero)>(c); }); },
      .forward_workspace = step::workspace_bytes,
  };
}

}  // namespace hedgehog::cuda

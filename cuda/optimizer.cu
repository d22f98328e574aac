#include "ops/optimizer.h"

#include <climits>

#include "cuda/packet.cuh"

namespace hedgehog::cuda {
namespace {

constexpr std::int64_t kBlock = 16384;  // elements of the flat buffers that one thread block takes
constexpr unsigned kThreads = 256;

std::int64_t blocks_of(std::int64_t elements) { return (elements + kBlock - 1) / kBlock; }

/// One row of the table of spans. It lies in device memory and may change between steps, so the host never reads it.
struct Span {
  std::int64_t offset, length;
  bool frozen;
  __device__ Span(const double* spans, std::int64_t s) {
    const double* const row = spans + s * kSpanColumns;
    offset = std::int64_t(row[kSpanOffset]);
    length = std::int64_t(row[kSpanLength]);
    frozen = row[kSpanFrozen] != 0;
  }
  __device__ std::int64_t end() const { return offset + length; }
};

struct SpanRange {
  int first, last;  // both included; first > last: none
};

/// The spans with elements in [begin, end). Spans ascend, so they are neighbours but for empty ones. Whole blocks call it.
__device__ SpanRange spans_between(const double* spans, std::int64_t count, std::int64_t begin, std::int64_t end) {
  __shared__ int first, last;
  if (threadIdx.x == 0) {
    first = INT_MAX;
    last = -1;
  }
  __syncthreads();
  for (std::int64_t s = threadIdx.x; s < count; s += blockDim.x) {
    const Span span(spans, s);
    if (span.length <= 0 || span.offset >= end || span.end() <= begin) continue;
    atomicMin(&first, int(s));
    atomicMax(&last, int(s));
  }
  __syncthreads();
  return {first, last};
}

/// Calls whole(i) for the N elements from i on that lie in [begin, end) where 16-byte accesses are allowed, one(i) for single
/// ones. i is a multiple of N; which thread takes which element depends on begin and end alone.
template <int N, class Whole, class One>
__device__ __forceinline__ void for_each_packet(std::int64_t begin, std::int64_t end, bool vectors, const Whole& whole, const One& one) {
  for (std::int64_t i = begin / N * N + std::int64_t(threadIdx.x) * N; i < end; i += std::int64_t(blockDim.x) * N) {
    if (vectors && i >= begin && i + N <= end) {
      whole(i);
    } else {
      for (std::int64_t e = max(i, begin); e < min(i + N, end); ++e) one(e);
    }
  }
}

/// squares[block + s] = sum of the squares of span s inside the block, in f64. From one pair (block, s) to the next at least
/// one of the two grows, so each pair has a slot of its own.
template <class T>
__global__ void __launch_bounds__(kThreads) gradient_norm_blocks_kernel(const T* gradients, std::int64_t size, const double* spans,
                                                                        std::int64_t count, bool vectors, double* squares) {
  constexpr int N = 2 * kVector<T>;  // two accesses in flight
  const std::int64_t begin = std::int64_t(blockIdx.x) * kBlock, end = min(size, begin + kBlock);
  const SpanRange range = spans_between(spans, count, begin, end);
  for (int s = range.first; s <= range.last; ++s) {
    const Span span(spans, s);
    const std::int64_t from = max(begin, span.offset), to = min(end, span.end());
    if (from >= to || span.frozen) continue;
    double sum = 0;
    for_each_packet<N>(
        from, to, vectors,
        [&](std::int64_t i) {
          const Packet<T, N> g = load_packet<N>(gradients + i);
#pragma unroll
          for (int e = 0; e < N; ++e) sum += double(convert<Accumulator<T>>(g[e])) * double(convert<Accumulator<T>>(g[e]));
        },
        [&](std::int64_t i) { sum += double(load(gradients + i)) * double(load(gradients + i)); });
    sum = block_sum(sum);
    if (threadIdx.x == 0) squares[std::int64_t(blockIdx.x) + s] = sum;
  }
}

/// Whether a span lies in the buffer and after the one before.
__device__ bool valid(const double* spans, std::int64_t s, std::int64_t size) {
  const Span span(spans, s);
  if (span.length == 0) return true;
  std::int64_t free_from = 0;
  for (std::int64_t before = s - 1; before >= 0; --before)
    if (const Span other(spans, before); other.length != 0) {
      free_from = other.end();
      break;
    }
  return span.length > 0 && span.offset >= free_from && span.end() <= size;
}

/// Adds the blocks' sums: a warp for each span, then one sum over the spans. One block, so that the order is fixed. A span
/// that cannot be gives NaN, and so raises the flag.
__global__ void __launch_bounds__(1024) gradient_norm_spans_kernel(const double* squares, std::int64_t size, const double* spans,
                                                                   std::int64_t count, const void* loss, Dtype loss_dtype, double* norms,
                                                                   double* step) {
  const unsigned lane = threadIdx.x % kWarp;
  for (std::int64_t s = threadIdx.x / kWarp; s < count; s += blockDim.x / kWarp) {
    const Span span(spans, s);
    double sum = 0;
    if (!valid(spans, s, size)) {
      sum = double(__int_as_float(0x7fffffff));
    } else if (span.length > 0 && !span.frozen) {
      const std::int64_t last = (span.end() - 1) / kBlock;
#pragma unroll 4
      for (std::int64_t b = span.offset / kBlock + lane; b <= last; b += kWarp) sum += squares[b + s];
      sum = warp_sum(sum);
    }
    if (lane == 0) norms[s] = sum;
  }
  __syncthreads();
  double total = 0;
  for (std::int64_t s = threadIdx.x; s < count; s += blockDim.x) {
    total += norms[s];
    norms[s] = sqrt(norms[s]);
  }
  total = sqrt(block_sum(total));
  if (threadIdx.x != 0) return;
  norms[count] = total;
  double watched = total;
  if (loss) {
    if (loss_dtype == Dtype::f64) watched += *static_cast<const double*>(loss);
    else if (loss_dtype == Dtype::f32) watched += double(*static_cast<const float*>(loss));
    else watched += double(__bfloat162float(*static_cast<const bf16*>(loss)));
  }
  if (!isfinite(watched)) step[kNonFinite] = 1;
}

void gradient_norm(const Call& c) {
  const Ref &gradients = c.inputs[0], &spans = c.inputs[1], &loss = c.inputs[2];
  const std::int64_t size = gradients.size(), count = spans.shape[0];
  auto* const squares = static_cast<double*>(c.workspace);
  dispatch_floating(gradients.dtype, [&](auto zero) {
    using T = decltype(zero);
    gradient_norm_blocks_kernel<T><<<unsigned(blocks_of(size)), kThreads, 0, stream()>>>(gradients.as<T>(), size, spans.as<double>(), count,
                                                                                        aligned({gradients.data}), squares);
  });
  gradient_norm_spans_kernel<<<1, 1024, 0, stream()>>>(squares, size, spans.as<double>(), count, loss.data, loss.dtype,
                                                       c.outputs[0].as<double>(), c.inputs[3].as<double>());
  check_launch("gradient_norm");
}

/// What adamw reads and writes.
template <class T>
struct AdamWBuffers {
  T *weights, *gradients, *first, *second;  // (size)
  bf16* copy;                               // (size) or null
  const double *spans, *norms, *step;
  std::int64_t size, count;
  double beta1, beta2, epsilon, weight_decay, clip;
  bool vectors;
};

/// What does not depend on the element.
template <class T>
struct AdamWNumbers {
  T beta1, beta2, gradient;  // factor on the gradient: clipping
  T rate, root, epsilon;     // lr / (1 - beta1^t), 1 / sqrt(1 - beta2^t)
  T shrink;                  // lr * weight decay

  __device__ __forceinline__ void update(T& weight, T& gradient_in, T& first, T& second) const {
    const T g = gradient * gradient_in;
    first = beta1 * first + (T(1) - beta1) * g;
    second = beta2 * second + (T(1) - beta2) * g * g;
    weight -= rate * first / (sqrt(second) * root + epsilon) + shrink * weight;
    gradient_in = T(0);
  }
};

/// One pass over four buffers and the copy, 16 bytes an access. Every block works out the step's numbers by itself: that is
/// cheaper than a launch before this one.
template <class T>
__global__ void __launch_bounds__(kThreads) adamw_kernel(const AdamWBuffers<T> k) {
  constexpr int N = kVector<T>;
  if (k.step[kNonFinite] != 0) return;
  __shared__ double corrected, root;
  if (threadIdx.x == 0) {
    const double t = k.step[kStep] + 1;
    corrected = k.step[kLearningRate] / (1 - pow(k.beta1, t));
    root = 1 / sqrt(1 - pow(k.beta2, t));
  }
  const std::int64_t begin = std::int64_t(blockIdx.x) * kBlock, end = min(k.size, begin + kBlock);
  // its barriers also show the numbers to all threads
  const SpanRange range = spans_between(k.spans, k.count, begin, end);
  const double norm = k.norms[k.count], decay = k.step[kLearningRate] * k.weight_decay;
  AdamWNumbers<T> here{T(k.beta1), T(k.beta2), T(k.clip > 0 && norm > k.clip ? k.clip / norm : 1), 0, T(root), T(k.epsilon), 0};
  for (int s = range.first; s <= range.last; ++s) {
    const Span span(k.spans, s);
    const std::int64_t from = max(begin, span.offset), to = min(end, span.end());
    if (from >= to) continue;
    if (span.frozen) {
      const Packet<T, N> none = {};
      for_each_packet<N>(
          from, to, k.vectors, [&](std::int64_t i) { store_packet(k.gradients + i, none); },
          [&](std::int64_t i) { k.gradients[i] = T(0); });
      continue;
    }
    const double* const row = k.spans + std::int64_t(s) * kSpanColumns;
    here.rate = T(corrected * row[kSpanLearningRate]);
    here.shrink = T(decay * row[kSpanLearningRate] * row[kSpanDecay]);
    for_each_packet<N>(
        from, to, k.vectors,
        [&](std::int64_t i) {
          Packet<T, N> w = load_packet<N>(k.weights + i), g = load_packet<N>(k.gradients + i), m = load_packet<N>(k.first + i),
                       v = load_packet<N>(k.second + i);
          Packet<bf16, N> rounded;
#pragma unroll
          for (int e = 0; e < N; ++e) {
            here.update(w[e], g[e], m[e], v[e]);
            rounded[e] = convert<bf16>(float(w[e]));
          }
          store_packet(k.weights + i, w);
          store_packet(k.gradients + i, g);
          store_packet(k.first + i, m);
          store_packet(k.second + i, v);
          if (k.copy) store_packet(k.copy + i, rounded);
        },
        [&](std::int64_t i) {
          here.update(k.weights[i], k.gradients[i], k.first[i], k.second[i]);
          if (k.copy) k.copy[i] = convert<bf16>(float(k.weights[i]));
        });
  }
}

/// After every block has read the step: the next one.
__global__ void adamw_step_kernel(double* step) {
  if (step[kNonFinite] != 0) return;
  step[kStep] += 1;
  step[kRngStep] += 1;
}

void adamw(const Call& c) {
  const Attributes& a = c.attributes;
  double* const step = c.inputs[6].as<double>();
  dispatch_floating(c.inputs[0].dtype, [&](auto zero) {
    using T = decltype(zero);
    if constexpr (std::is_same_v<T, bf16>) {
      throw DtypeError("keeps its weights in f32 or f64; give bf16 weights as copy");
    } else {
      AdamWBuffers<T> k{};
      k.weights = c.inputs[0].as<T>();
      k.gradients = c.inputs[1].as<T>();
      k.first = c.inputs[2].as<T>();
      k.second = c.inputs[3].as<T>();
      k.copy = c.inputs[7].as<bf16>();
      k.spans = c.inputs[4].as<double>();
      k.norms = c.inputs[5].as<double>();
      k.step = step;
      k.size = c.inputs[0].size();
      k.count = c.inputs[4].shape[0];
      k.beta1 = a.real("beta1");
      k.beta2 = a.real("beta2");
      k.epsilon = a.real("epsilon");
      k.weight_decay = a.real("weight_decay");
      k.clip = a.real("clip");
      k.vectors = aligned({k.weights, k.gradients, k.first, k.second, k.copy});
      adamw_kernel<T><<<unsigned(blocks_of(k.size)), kThreads, 0, stream()>>>(k);
    }
  });
  adamw_step_kernel<<<1, 1, 0, stream()>>>(step);
  check_launch("adamw");
}

}  // namespace

void register_optimizer(KernelTable& table) {
  table["gradient_norm"] = {gradient_norm, {}, [](const Attributes&, std::span<const Meta> in) {
                              return (blocks_of(in[0].shape.size()) + in[1].shape[0]) * std::int64_t(sizeof(double));
                            }, {}};
  table["adamw"] = {adamw, {}, {}, {}};
}

}  // namespace hedgehog::cuda

#include "cuda/kernels.h"
#include "cuda/packet.cuh"
#include "cuda/reduce.cuh"
#include "ops/hybrid_attention_parts.h"

/// The passes over rows that join a window of softmax attention and linear attention before it. The two are the kernels of those ops.
namespace hedgehog::cuda {
namespace hybrid_attention {
namespace {

using namespace hybrid_attention_detail;

constexpr const char* kName = "hybrid_attention";
constexpr int kThreads = 256, kLanes = 8;  // lanes of a row

template <class A>
constexpr A kInfinity = A(__builtin_huge_val());

/// The numbers of one call.
template <class T>
struct Rows {
  using A = Accumulator<T>;
  std::int64_t B, T_, Hq, group, D, Dv, window, behind;
  A scale;
  bool logarithmic, vector;
  const std::int32_t* start;  // (B, T) or null
  const A* factor;            // (Hq) or null
  A *saved, *log_window, *denominator, *largest, *row_sums;
  std::int32_t* nearest;
  Heads<const T> q, k, near, dy;
  Heads<T> o;
  HeadsTarget<T> dq, dk;

  explicit Rows(const Parts& w)
      : B(w.s.B), T_(w.s.T), Hq(w.s.Hq), group(w.s.group()), D(w.s.D), Dv(w.s.Dv), window(w.s.window), behind(w.s.behind), scale(A(w.s.scale)),
        logarithmic(w.s.logarithmic), start(w.c.inputs[kDocumentStart].template as<std::int32_t>()),
        factor(w.c.inputs[kLogFactor].template as<A>()), saved(w.c.saved[0].template as<A>()), log_window(static_cast<A*>(w.x.log_window)),
        denominator(static_cast<A*>(w.x.denominator)), largest(static_cast<A*>(w.x.largest)), row_sums(static_cast<A*>(w.x.row_sums)),
        nearest(w.x.nearest), q(kName, w.c.inputs[kQ]), k(kName, w.c.inputs[kK]), near(kName, w.x.o_window), o(kName, w.c.outputs[0]) {
    vector = Dv % kVector<T> == 0 && aligned(near) && aligned(o);
    if (w.c.dx.empty()) return;
    dy = Heads<const T>(kName, w.c.dy[0]);
    dq = HeadsTarget<T>(kName, w.c.dx[kQ], true), dk = HeadsTarget<T>(kName, w.c.dx[kK], true);
    vector = vector && aligned(dy);
  }

  std::int64_t rows() const { return B * T_ * Hq; }
  /// ln of what multiplies exp(score) in the window of row i, of head h.
  __device__ __forceinline__ A log_weight(std::int64_t i, std::int64_t h) const { return (factor ? factor[h] : A(0)) - (largest ? largest[i] : A(0)); }
  __device__ __forceinline__ bool reaches(std::int64_t b, std::int64_t t) const {
    return behind > 0 && t >= window && (!start || start[b * T_ + t] <= t - window);
  }
  __device__ __forceinline__ A& linear(std::int64_t b, std::int64_t t, std::int64_t h) const {
    return denominator[(b * behind + t - window) * Hq + h];
  }
};

/// Row i of (B, T, Hq).
struct Row {
  std::int64_t b, t, h;
};
template <class T>
__device__ __forceinline__ Row row_of(const Rows<T>& r, std::int64_t i) {
  const std::int64_t token = quotient(i, r.Hq), b = quotient(token, r.T_);
  return {b, token - b * r.T_, i - token * r.Hq};
}

/// f(first, elements as a constant) for the columns of a row that a lane of it has.
template <class T, class F>
__device__ __forceinline__ void columns(const Rows<T>& r, const F& f) {
  const int lane = threadIdx.x % kLanes;
  if (r.vector) {
    for (std::int64_t e = lane * kVector<T>; e < r.Dv; e += kLanes * kVector<T>) f(e, std::integral_constant<int, kVector<T>>{});
  } else {
    for (std::int64_t e = lane; e < r.Dv; e += kLanes) f(e, std::integral_constant<int, 1>{});
  }
}

__global__ void hybrid_attention_starts_kernel(const std::int32_t* from, std::int32_t* to, std::int64_t n, std::int64_t tokens, std::int64_t behind) {
  for (std::int64_t i = std::int64_t(blockIdx.x) * kThreads + threadIdx.x; i < n; i += std::int64_t(gridDim.x) * kThreads)
    to[i] = from[i / behind * tokens + i % behind];
}

template <class T>
__global__ void hybrid_attention_zero_kernel(const Heads<T> x, std::int64_t n, std::int64_t tokens, std::int64_t heads, std::int64_t depth) {
  for (std::int64_t i = std::int64_t(blockIdx.x) * kThreads + threadIdx.x; i < n; i += std::int64_t(gridDim.x) * kThreads) {
    const std::int64_t vector = i / depth;
    x.at(vector / heads / tokens, vector / heads % tokens, vector % heads)[i % depth] = convert<T>(Accumulator<T>(0));
  }
}

/// Eight lanes a row.
template <class T>
__global__ void __launch_bounds__(kThreads) hybrid_attention_merge_kernel(const Rows<T> r, std::int64_t n) {
  using A = Accumulator<T>;
  for (std::int64_t i = (std::int64_t(blockIdx.x) * kThreads + threadIdx.x) / kLanes; i < n; i += std::int64_t(gridDim.x) * (kThreads / kLanes)) {
    const auto [b, t, h] = row_of(r, i);
    const A of_window = r.log_window[i] + r.log_weight(i, h);
    A whole = of_window, share = 1, rest = 0;
    const bool reaches = r.reaches(b, t);
    if (reaches) {
      const A saved = r.linear(b, t, h), of_linear = r.logarithmic ? saved : log(saved);
      const A base = of_window > of_linear ? of_window : of_linear;
      whole = base + log(exp(of_window - base) + exp(of_linear - base));
      share = exp(of_window - whole), rest = exp(of_linear - whole);
    }
    if (r.near) {
      const T* const near = r.near.at(b, t, h);
      T* const o = r.o.at(b, t, h);
      columns(r, [&](std::int64_t e, auto count) {
        constexpr int N = decltype(count)::value;
        A x[N], y[N] = {};
        load_packet<N>(near + e, x);
        if (reaches) load_packet<N>(static_cast<const T*>(o + e), y);
#pragma unroll
        for (int c = 0; c < N; ++c) x[c] = reaches ? share * x[c] + rest * y[c] : x[c];
        put_packet<N>(o + e, x, false);
      });
    }
    if (r.saved && threadIdx.x % kLanes == 0) r.saved[i] = whole;
  }
}

template <class T>
__global__ void hybrid_attention_denominators_kernel(const Rows<T> r, std::int64_t n) {
  using A = Accumulator<T>;
  for (std::int64_t i = std::int64_t(blockIdx.x) * kThreads + threadIdx.x; i < n; i += std::int64_t(gridDim.x) * kThreads) {
    const auto [b, t, h] = row_of(r, i);
    const A whole = r.saved[i];
    r.log_window[i] = whole - r.log_weight(i, h);
    if (r.behind > 0 && t >= r.window) r.linear(b, t, h) = !r.reaches(b, t) ? kInfinity<A> : r.logarithmic ? whole : exp(whole);
  }
}

/// Eight lanes a row.
template <class T>
__global__ void __launch_bounds__(kThreads) hybrid_attention_row_sums_kernel(const Rows<T> r, std::int64_t n) {
  using A = Accumulator<T>;
  // whole groups go on together: their sum is a shuffle
  const std::int64_t step = std::int64_t(gridDim.x) * (kThreads / kLanes);
  for (std::int64_t i0 = std::int64_t(blockIdx.x) * (kThreads / kLanes); i0 < n; i0 += step) {
    const std::int64_t i = i0 + threadIdx.x / kLanes;
    A sum = 0;
    std::int64_t head = 0;
    bool reaches = false;  // else the window has all the weight, whatever its factor
    if (i < n) {
      const auto [b, t, h] = row_of(r, i);
      head = h, reaches = r.reaches(b, t);
      const T *const near = r.near.at(b, t, h), *const o = r.o.at(b, t, h), *const dy = r.dy.at(b, t, h);
      columns(r, [&](std::int64_t e, auto count) {
        constexpr int N = decltype(count)::value;
        A x[N], y[N], g[N];
        load_packet<N>(near + e, x), load_packet<N>(o + e, y), load_packet<N>(dy + e, g);
#pragma unroll
        for (int c = 0; c < N; ++c) sum += g[c] * (x[c] - y[c]);
      });
    }
    sum = warp_sum<kLanes>(sum);
    if (i < n && threadIdx.x % kLanes == 0) r.row_sums[i] = reaches ? exp(r.log_window[i] + r.log_weight(i, head) - r.saved[i]) * sum : A(0);
  }
}

/// A block a head; its threads add in a fixed order.
template <class A>
__global__ void __launch_bounds__(1024) hybrid_attention_factor_kernel(const A* row_sums, A* to, std::int64_t tokens, std::int64_t heads, bool adds) {
  double sum = 0;
  for (std::int64_t i = threadIdx.x; i < tokens; i += blockDim.x) sum += double(row_sums[i * heads + blockIdx.x]);
  __shared__ double sums[1024 / kWarp];
  sum = warp_sum(sum);
  if (threadIdx.x % kWarp == 0) sums[threadIdx.x / kWarp] = sum;
  __syncthreads();
  if (threadIdx.x != 0) return;
  double all = 0;
  for (unsigned w = 0; w < blockDim.x / kWarp; ++w) all += sums[w];
  to[blockIdx.x] = (adds ? to[blockIdx.x] : A(0)) + A(all);
}

/// A warp a row: its scores one after the other.
template <class T>
__global__ void hybrid_attention_largest_kernel(const Rows<T> r, std::int64_t n) {
  using A = Accumulator<T>;
  for (std::int64_t i = (std::int64_t(blockIdx.x) * kThreads + threadIdx.x) / kWarp; i < n; i += std::int64_t(gridDim.x) * (kThreads / kWarp)) {
    const auto [b, t, h] = row_of(r, i);
    std::int64_t j = t + 1 - r.window, at = t;
    if (j < 0) j = 0;
    if (r.start && j < r.start[b * r.T_ + t]) j = r.start[b * r.T_ + t];
    A most = -kInfinity<A>;
    for (; j <= t; ++j) {
      A score = 0;
      for (std::int64_t d = threadIdx.x % kWarp; d < r.D; d += kWarp) score += load(r.q.at(b, t, h) + d) * load(r.k.at(b, j, h / r.group) + d);
      score = warp_sum(score) * r.scale;
      if (score > most) most = score, at = j;
    }
    if (threadIdx.x % kWarp == 0) r.largest[i] = most, r.nearest[i] = std::int32_t(at);
  }
}

/// A warp a token and key head: its query heads' dq, and what falls on it as a key, from the rows whose window holds it.
template <class T>
__global__ void hybrid_attention_take_kernel(const Rows<T> r, std::int64_t n) {
  using A = Accumulator<T>;
  const std::int64_t key_heads = r.Hq / r.group;
  for (std::int64_t i = (std::int64_t(blockIdx.x) * kThreads + threadIdx.x) / kWarp; i < n; i += std::int64_t(gridDim.x) * (kThreads / kWarp)) {
    const std::int64_t hkv = i % key_heads, t = i / key_heads % r.T_, b = i / key_heads / r.T_;
    const std::int64_t last = t + r.window < r.T_ ? t + r.window : r.T_;
    for (std::int64_t d = threadIdx.x % kWarp; d < r.D; d += kWarp) {
      A less = 0;
      for (std::int64_t h = hkv * r.group; h < (hkv + 1) * r.group; ++h) {
        const std::int64_t own = (b * r.T_ + t) * r.Hq + h;
        if (r.dq) r.dq.put(r.dq.at(b, t, h) + d, -r.scale * r.row_sums[own] * load(r.k.at(b, r.nearest[own], hkv) + d));
        for (std::int64_t row = t; row < last; ++row) {
          const std::int64_t at = (b * r.T_ + row) * r.Hq + h;
          if (r.nearest[at] == t) less += r.row_sums[at] * load(r.q.at(b, row, h) + d);
        }
      }
      if (r.dk) r.dk.put(r.dk.at(b, t, hkv) + d, -r.scale * less);
    }
  }
}

class Cuda final : public Backend {
  void run(const Op& op, Pass pass, const Call& c) const override {
    const DeviceOp& kernel = kernels().at(op.name);
    (pass == Pass::forward ? kernel.forward : kernel.backward)(c);
  }
  std::int64_t bytes(const Op& op, Pass pass, const Attributes& attributes, std::span<const Meta> inputs) const override {
    const DeviceOp& kernel = kernels().at(op.name);
    const WorkspaceBytes& bytes = pass == Pass::forward ? kernel.forward_workspace : kernel.backward_workspace;
    return bytes ? bytes(attributes, inputs) : 0;
  }
  void gather_starts(const Parts& w) const override {
    const std::int64_t n = w.s.B * w.s.behind;
    hybrid_attention_starts_kernel<<<blocks_for(n, kThreads), kThreads, 0, stream()>>>(w.c.inputs[kDocumentStart].as<std::int32_t>(), w.x.starts, n,
                                                                                       w.s.T, w.s.behind);
    check_launch(kName);
  }
  void find_largest(const Parts& w) const override {
    rows(w, [&]<class T>(const Rows<T>& r) {
      hybrid_attention_largest_kernel<T><<<blocks_for(r.rows(), kThreads / kWarp), kThreads, 0, stream()>>>(r, r.rows());
    });
  }
  void merge(const Parts& w) const override {
    rows(w, [&]<class T>(const Rows<T>& r) {
      hybrid_attention_merge_kernel<T><<<blocks_for(r.rows(), kThreads / kLanes), kThreads, 0, stream()>>>(r, r.rows());
    });
  }
  void part_denominators(const Parts& w) const override {
    rows(w, [&]<class T>(const Rows<T>& r) {
      hybrid_attention_denominators_kernel<T><<<blocks_for(r.rows(), kThreads), kThreads, 0, stream()>>>(r, r.rows());
    });
  }
  void sum_rows(const Parts& w) const override {
    rows(w, [&]<class T>(const Rows<T>& r) {
      hybrid_attention_row_sums_kernel<T><<<blocks_for(r.rows(), kThreads / kLanes), kThreads, 0, stream()>>>(r, r.rows());
    });
  }
  void factor_gradient(const Parts& w) const override {
    rows(w, [&]<class T>(const Rows<T>& r) {
      using A = Accumulator<T>;
      hybrid_attention_factor_kernel<A><<<unsigned(r.Hq), 1024, 0, stream()>>>(r.row_sums, w.c.dx[kLogFactor].template as<A>(), r.B * r.T_, r.Hq,
                                                                              adds(w.c, kLogFactor));
    });
  }
  void take_from_largest(const Parts& w) const override {
    rows(w, [&]<class T>(const Rows<T>& r) {
      const std::int64_t n = r.B * r.T_ * (r.Hq / r.group);
      hybrid_attention_take_kernel<T><<<blocks_for(n, kThreads / kWarp), kThreads, 0, stream()>>>(r, n);
    });
  }
  void zero(const Ref& x) const override {
    if (x.shape.rank() != 4) return check(cudaMemsetAsync(x.data, 0, std::size_t(x.size() * size_of(x.dtype)), stream()), "fill of memory");
    dispatch_floating(x.dtype, [&](auto zero) {
      using T = decltype(zero);
      hybrid_attention_zero_kernel<T><<<blocks_for(x.size(), kThreads), kThreads, 0, stream()>>>(Heads<T>(kName, x), x.size(), x.shape[1], x.shape[2], x.shape[3]);
    });
    check_launch(kName);
  }
  template <class F>
  static void rows(const Parts& w, const F& f) {
    dispatch_floating(w.s.dtype, [&](auto zero) {
      f(Rows<decltype(zero)>(w));
      check_launch(kName);
    });
  }
};

const Backend& backend() {
  static const Cuda cuda;
  return cuda;
}

std::vector<Meta> kept(const Attributes& attributes, std::span<const Meta> inputs) {
  const Sizes s = sizes_of(attributes, inputs);
  if (s.behind == 0) return {};
  const std::vector<Meta> of_linear = linear_inputs(s, inputs);
  return kernels().at("linear_attention").kept(linear_attributes(attributes), std::span<const Meta>(of_linear.data(), of_linear.size()));
}

}  // namespace
}  // namespace hybrid_attention

void register_hybrid_attention(KernelTable& table) {
  namespace ha = hybrid_attention;
  using hybrid_attention_detail::Pass;
  table["hybrid_attention"] = {
      .forward = [](const Call& c) { hybrid_attention_detail::forward(c, ha::backend()); },
      .backward = [](const Call& c) { hybrid_attention_detail::backward(c, ha::backend()); },
      .forward_workspace = [](const Attributes& a, std::span<const Meta> in) { return hybrid_attention_detail::bytes(Pass::forward, ha::backend(), a, in); },
      .backward_workspace = [](const Attributes& a, std::span<const Meta> in) { return hybrid_attention_detail::bytes(Pass::backward, ha::backend(), a, in); },
      .kept = ha::kept,
  };
}

}  // namespace hedgehog::cuda

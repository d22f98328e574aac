#pragma once
#include <algorithm>

#include "cuda/feature_map.cuh"
#include "cuda/linear_attention_product.cuh"
#include "ops/linear_attention_sizes.h"

/// Linear attention in any shape, map and dtype: the algorithm of ops/linear_attention_*.cpp step by step, each step by all
/// threads of a block, with a barrier at its end. Everything between inputs and results is kept in the accumulator type.
///
/// Values carry a column of ones, so a state row is [S (Dv) | z], and numerators and denominators come from one product. E is
/// Dv + 1 throughout.
namespace hedgehog::cuda::linear_attention_generic {

using namespace linear_attention_detail;

void forward(const Call& c);
void backward(const Call& c);
std::int64_t forward_workspace(const Attributes& attributes, std::span<const Meta> inputs);
std::int64_t backward_workspace(const Attributes& attributes, std::span<const Meta> inputs);

constexpr const char* kName = "linear_attention";
constexpr int kWarps = kThreads / int(kWarp);
/// Blocks at most, each with scratch of its own; further tasks wait for one.
constexpr std::int64_t kBlocks = 264;

/// Throws ShapeError where indices inside a block would not fit.
Sizes checked_sizes(Sizes s);

/// From inputs as Ref or Meta.
template <class In>
Sizes device_sizes(const Attributes& attributes, const In& in) {
  return checked_sizes(sizes_of(attributes, in[kQ].shape, in[kK].shape, in[kV].shape, in[kWeightQ].given ? &in[kWeightQ].shape : nullptr));
}

/// Hands out aligned pieces of one block's scratch; without a base it only counts.
struct Pieces {
  char* base = nullptr;
  std::int64_t used = 0;

  template <class P>
  __host__ __device__ P* take(std::int64_t count) {
    P* const piece = reinterpret_cast<P*>(base + used);
    used += (count * std::int64_t(sizeof(P)) + 127) / 128 * 128;
    return piece;
  }
};

/// What both passes read.
template <class T>
struct Arguments {
  using A = Accumulator<T>;
  Sizes s;
  Heads<const T> q, k, v;
  const T *weight[2], *bias[2];  // of queries and keys, or null
  const std::int32_t *document_start, *mask;
  const A* initial;

  Arguments(const Call& c, const Sizes& sizes)
      : s(sizes), q(Heads<const T>(kName, c.inputs[kQ])), k(Heads<const T>(kName, c.inputs[kK])), v(Heads<const T>(kName, c.inputs[kV])),
        weight{c.inputs[kWeightQ].as<const T>(), c.inputs[kWeightK].as<const T>()},
        bias{c.inputs[kBiasQ].as<const T>(), c.inputs[kBiasK].as<const T>()},
        document_start(c.inputs[kDocumentStart].as<const std::int32_t>()), mask(c.inputs[kMask].as<const std::int32_t>()),
        initial(c.inputs[kInitialState].as<const A>()) {}
};

/// Scratch of one block for one chunk.
template <class A>
struct Tile {
  A *q, *k, *spare;              // (chunk, F)
  A *u, *x, *v;                  // (chunk, D'), (chunk, D), (chunk, E)
  A* scores;                     // (chunk, chunk)
  A *factor, *after, *row;       // (F)
  A *weight[2], *bias[2];        // (D, D'), (D')

  __host__ __device__ Tile(Pieces& pieces, const Sizes& s) {
    q = pieces.take<A>(s.chunk * s.F);
    k = pieces.take<A>(s.chunk * s.F);
    spare = pieces.take<A>(s.chunk * s.F);
    u = pieces.take<A>(s.chunk * s.width);
    x = pieces.take<A>(s.chunk * s.D);
    v = pieces.take<A>(s.chunk * (s.Dv + 1));
    scores = pieces.take<A>(s.causal ? s.chunk * s.chunk : 0);
    factor = pieces.take<A>(s.F);
    after = pieces.take<A>(s.F);
    row = pieces.take<A>(s.F);
    for (int side = 0; side < 2; ++side) {
      weight[side] = pieces.take<A>(s.D * s.width);
      bias[side] = pieces.take<A>(s.width);
    }
  }
};

template <class A>
struct DeviceState {
  A *S, *shift;  // (F, E), (F)

  __host__ __device__ void take(Pieces& pieces, const Sizes& s) {
    S = pieces.take<A>(s.F * (s.Dv + 1));
    shift = pieces.take<A>(s.F);
  }
};

/// The query head that a block works on.
struct HeadPlace {
  std::int64_t b, h, hkv;
  const std::int32_t *document_start, *mask;  // (T), or null

  template <class T>
  __device__ HeadPlace(const Arguments<T>& a, std::int64_t batch, std::int64_t head)
      : b(batch), h(head), hkv(head / a.s.group()), document_start(a.document_start ? a.document_start + batch * a.s.T : nullptr),
        mask(a.mask ? a.mask + batch * a.s.T : nullptr) {}
  __device__ bool visible(std::int64_t t) const { return !mask || mask[t] != 0; }
  /// First visible token of n from t0 on, as an offset; n if there is none.
  __device__ int first_visible(std::int64_t t0, int n) const {
    int i = 0;
    while (i < n && !visible(t0 + i)) ++i;
    return i;
  }
  __device__ std::int64_t document_end(std::int64_t begin, std::int64_t tokens) const {
    if (!document_start) return tokens;
    std::int64_t end = begin + 1;
    while (end < tokens && document_start[end] == document_start[begin]) ++end;
    return end;
  }
};

/// Elements by threads.
template <class Body>
__device__ __forceinline__ void for_elements(int count, const Body& body) {
  for (int i = int(threadIdx.x); i < count; i += kThreads) body(i);
}
/// Rows by warps.
template <class Body>
__device__ __forceinline__ void for_rows(int count, const Body& body) {
  for (int i = int(threadIdx.x / kWarp); i < count; i += kWarps) body(i);
}
__device__ __forceinline__ int lane() { return int(threadIdx.x % kWarp); }

template <class A>
__device__ __forceinline__ A infinity() {
  return A(INFINITY);
}

/// The maps of one head in the accumulator type; no bias is a bias of zeros.
template <class T, class A = Accumulator<T>>
__device__ void load_maps(const Arguments<T>& a, const HeadPlace& head, const Tile<A>& x) {
  const int width = int(a.s.width), size = int(a.s.D) * width;
  for (int side = 0; side < 2; ++side) {
    const T *weight = a.weight[side], *bias = a.bias[side];
    if (weight) for_elements(size, [&](int i) { x.weight[side][i] = load(weight + head.h * size + i); });
    for_elements(width, [&](int i) { x.bias[side][i] = bias ? load(bias + head.h * width + i) : A(0); });
  }
  __syncthreads();
}

/// n tokens of one head as rows `pitch` apart. No barrier.
template <class T, class A = Accumulator<T>>
__device__ void load_rows(const Heads<const T>& from, std::int64_t b, std::int64_t t0, std::int64_t h, int n, int depth, A* to, int pitch) {
  for_elements(n * depth, [&](int i) { to[i / depth * pitch + i % depth] = load(from.at(b, t0 + i / depth, h) + i % depth); });
}

/// Features of n tokens in working form. side 0: queries, 1: keys. x.x holds the tokens afterwards.
template <class T, class A = Accumulator<T>>
__device__ __noinline__ void features(const Arguments<T>& a, const HeadPlace& head, int side, std::int64_t t0, int n, const Tile<A>& x,
                                      A* y) {
  const int D = int(a.s.D), width = int(a.s.width), F = int(a.s.F);
  load_rows(side ? a.k : a.q, head.b, t0, side ? head.hkv : head.h, n, D, x.x, D);
  __syncthreads();
  if (a.weight[0]) block_product<A>({n, width, D, x.x, D, 1, x.weight[side], width, 1, x.u, width});
  const A* const u = a.weight[0] ? x.u : x.x;
  const A* const bias = x.bias[side];
  for_rows(n, [&](int i) {
    working_features_warp<A>(
        a.s.map, width, [&](int r) { return u[i * width + r] + bias[r]; }, [&](int r, A value) { y[i * F + r] = value; });
  });
  __syncthreads();
}

/// Values and their ones.
template <class T, class A = Accumulator<T>>
__device__ void load_values(const Arguments<T>& a, const HeadPlace& head, std::int64_t t0, int n, const Tile<A>& x) {
  const int Dv = int(a.s.Dv), E = Dv + 1;
  load_rows(a.v, head.b, t0, head.hkv, n, Dv, x.v, E);
  for_elements(n, [&](int i) { x.v[i * E + Dv] = 1; });
  __syncthreads();
}

/// Reads a stored state (F, Dv + 2); without one the state is empty. Returns whether some key is in it, to every thread.
template <class A>
__device__ bool load_state(const Sizes& s, const A* stored, const DeviceState<A>& state) {
  const int Dv = int(s.Dv), E = Dv + 1;
  const bool logarithmic = s.map.logarithmic();
  bool filled = false;
  for_rows(int(s.F), [&](int r) {
    const A* const row = stored ? stored + std::int64_t(r) * (Dv + 2) : nullptr;
    const bool empty = !row || (logarithmic && !(row[Dv] > A(0)));
    for (int e = lane(); e < E; e += kWarp) state.S[r * E + e] = empty ? A(0) : row[e];
    if (lane() == 0) state.shift[r] = !logarithmic ? A(0) : empty ? -infinity<A>() : row[Dv + 1];
    filled |= !empty;
  });
  return __syncthreads_or(filled);
}

template <class A>
__device__ void store_state(const Sizes& s, const DeviceState<A>& state, bool filled, A* stored) {
  const int Dv = int(s.Dv), E = Dv + 1;
  for_rows(int(s.F), [&](int r) {
    A* const row = stored + std::int64_t(r) * (Dv + 2);
    const bool empty = !filled || state.shift[r] == -infinity<A>();
    for (int e = lane(); e < E; e += kWarp) row[e] = empty ? A(0) : state.S[r * E + e];
    if (lane() == 0) row[Dv + 1] = empty ? A(0) : state.shift[r];
  });
  __syncthreads();
}

/// exp(old - new); 1 where nothing changed, also for two empty rows.
template <class A>
__device__ __forceinline__ A shift_factor(A before, A after) {
  return before == after ? A(1) : std::exp(before - after);
}

/// The shift that covers the visible keys of a chunk too, and the factor that brings the state there.
template <class A>
__device__ void raise_shift(const Sizes& s, const HeadPlace& head, std::int64_t t0, int n, const A* log_k, const A* before, A* after,
                            A* factor) {
  const int F = int(s.F);
  for_elements(F, [&](int r) {
    A largest = before[r];
    for (int j = 0; j < n && s.map.logarithmic(); ++j)
      if (head.visible(t0 + j) && log_k[j * F + r] > largest) largest = log_k[j * F + r];
    factor[r] = shift_factor(before[r], largest);
    after[r] = largest;
  });
  __syncthreads();
}

/// exp(ln phi_k - shift) in place, and zeros for masked keys.
template <class A>
__device__ void scale_keys(const Sizes& s, const HeadPlace& head, std::int64_t t0, int n, const A* shift, A* k) {
  const int F = int(s.F);
  for_elements(n * F, [&](int i) {
    if (!head.visible(t0 + i / F)) k[i] = 0;
    else if (s.map.logarithmic()) k[i] = std::exp(k[i] - shift[i % F]);
  });
  __syncthreads();
}

/// to = from * factor + keys^T [v, 1]
template <class A>
__device__ void absorb(const Sizes& s, int n, const A* keys, const A* v, const A* factor, const A* from, A* to) {
  const int F = int(s.F), E = int(s.Dv) + 1;
  for_elements(F * E, [&](int i) { to[i] = from[i] * factor[i / E]; });
  __syncthreads();
  block_product<A>({F, E, n, keys, 1, F, v, E, 1, to, E, true});
}

template <class A>
__device__ void copy(const A* from, A* to, int count) {
  for_elements(count, [&](int i) { to[i] = from[i]; });
  __syncthreads();
}

}  // namespace hedgehog::cuda::linear_attention_generic

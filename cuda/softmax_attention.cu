#include "cuda/softmax_attention.cuh"

/// Softmax attention for every dtype, head dimension and mask, on the ordinary units: the path that is right everywhere.
/// bf16 heads of the usual widths go to softmax_attention_mma_*.cu.
namespace hedgehog::cuda {
namespace softmax_attention {
namespace {

constexpr int kThreads = 256, kSide = 16;  // a block is kSide x kSide threads
constexpr int kTile = 32;                  // rows and columns of a tile of scores; 2 x 2 a thread
constexpr int kDepth = 32;                 // elements of a dot product at a time
constexpr int kSlice = 64;                 // columns of the result that a block makes; 2 x 4 a thread

template <class A>
constexpr A kInfinity = A(__builtin_huge_val());

template <class A>
struct Shared {
  A x[kTile][kDepth + 1], y[kTile][kDepth + 1];
  A weights[kTile][kTile + 1];
  A values[kTile][kSlice + 1];
};

__device__ __forceinline__ int column() { return int(threadIdx.x) % kSide; }
__device__ __forceinline__ int row() { return int(threadIdx.x) / kSide; }

/// Vectors of one batch element and head from some token on; those from `count` on count as zeros.
template <class T>
struct Vectors {
  const T* data;
  std::int64_t step, count;
};
template <class T>
__device__ __forceinline__ Vectors<T> vectors(const Heads<const T>& x, std::int64_t b, std::int64_t t, std::int64_t h, std::int64_t T_) {
  return {x.at(b, t, h), x.token, T_ - t};
}

/// products[r][c] = x_(row + 16 r) . y_(column + 16 c)
template <class T, class A>
__device__ void tile_products(const Vectors<T>& x, const Vectors<T>& y, std::int64_t depth, Shared<A>& shared, A (&products)[2][2]) {
  for (auto& line : products) line[0] = line[1] = 0;
  for (std::int64_t d0 = 0; d0 < depth; d0 += kDepth) {
    __syncthreads();  // what the arrays held has been read
    for (int i = threadIdx.x; i < kTile * kDepth; i += kThreads) {
      const int r = i / kDepth, d = i % kDepth;
      const bool inside = d0 + d < depth;
      shared.x[r][d] = inside && r < x.count ? load(x.data + r * x.step + d0 + d) : A(0);
      shared.y[r][d] = inside && r < y.count ? load(y.data + r * y.step + d0 + d) : A(0);
    }
    __syncthreads();
#pragma unroll 8
    for (int d = 0; d < kDepth; ++d)
#pragma unroll
      for (int r = 0; r < 2; ++r)
#pragma unroll
        for (int c = 0; c < 2; ++c) products[r][c] += shared.x[row() + kSide * r][d] * shared.y[column() + kSide * c][d];
  }
}

/// sums[r][c] += sum_m weights[row + 16 r][m] x_m[e0 + column + 16 c], with the weights that the threads of a row wrote
template <class T, class A>
__device__ void add_weighted(const Vectors<T>& x, std::int64_t e0, std::int64_t depth, Shared<A>& shared, A (&sums)[2][4]) {
  for (int i = threadIdx.x; i < kTile * kSlice; i += kThreads) {
    const int r = i / kSlice, e = i % kSlice;
    shared.values[r][e] = r < x.count && e0 + e < depth ? load(x.data + r * x.step + e0 + e) : A(0);
  }
  __syncthreads();
#pragma unroll 4
  for (int m = 0; m < kTile; ++m)
#pragma unroll
    for (int r = 0; r < 2; ++r)
#pragma unroll
      for (int c = 0; c < 4; ++c) sums[r][c] += shared.weights[row() + kSide * r][m] * shared.values[m][column() + kSide * c];
}

/// Whether key j counts for query i of batch element b.
template <class T>
__device__ __forceinline__ bool visible(const Arguments<T>& a, std::int64_t b, std::int64_t i, std::int64_t j) {
  if (i >= a.s.T || j >= a.s.T || (a.s.causal && (j > i || i - j >= a.s.window))) return false;
  if (a.document_start && a.document_start[b * a.s.T + i] != a.document_start[b * a.s.T + j]) return false;
  return !a.mask || a.mask[b * a.s.T + j] != 0;
}

/// The first key that a tile of rows from i0 on sees, and the row behind the last one that sees keys from j0 on, in whole tiles.
template <class T>
__device__ __forceinline__ std::int64_t first_key(const Arguments<T>& a, std::int64_t i0) {
  return a.s.causal && i0 >= a.s.window ? (i0 + 1 - a.s.window) / kTile * kTile : 0;
}
template <class T>
__device__ __forceinline__ std::int64_t last_row(const Arguments<T>& a, std::int64_t j0) {
  return a.s.causal && j0 + kTile + a.s.window < a.s.T ? j0 + kTile - 1 + a.s.window : a.s.T;
}

/// The part of a block: a tile of one head, and a slice of the columns of its result.
struct Part {
  std::int64_t b, h, t0, e0;
};
/// Slices fastest, then tiles, so that blocks at work together read the same keys.
__device__ __forceinline__ Part part_of(std::int64_t slices, std::int64_t tiles, std::int64_t heads) {
  std::int64_t i = blockIdx.x;
  const std::int64_t slice = i % slices;
  i /= slices;
  const std::int64_t tile = i % tiles;
  i /= tiles;
  return {i / heads, i % heads, tile * kTile, slice * kSlice};
}

/// o and the log of the softmax's sum. A block owns 32 query rows and 64 columns of o and walks the keys left to right with a
/// running maximum; blocks of other columns make the same scores again, so that no width is too large.
template <class T>
__global__ void __launch_bounds__(kThreads) softmax_attention_forward_kernel(const Arguments<T> a) {
  using A = Accumulator<T>;
  __shared__ Shared<A> shared;
  const std::int64_t n = a.s.T;
  const auto [b, h, i0, e0] = part_of((a.s.Dv + kSlice - 1) / kSlice, (n + kTile - 1) / kTile, a.s.Hq);
  const std::int64_t hkv = h / (a.s.Hq / a.s.Hkv), end = a.s.causal && i0 + kTile < n ? i0 + kTile : n;
  const A scale = A(a.s.scale);
  A largest[2] = {-kInfinity<A>, -kInfinity<A>}, sum[2] = {}, o[2][4] = {};
  for (std::int64_t j0 = first_key(a, i0); j0 < end; j0 += kTile) {
    A p[2][2];
    tile_products(vectors(a.q, b, i0, h, n), vectors(a.k, b, j0, hkv, n), a.s.D, shared, p);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      A top = largest[r];
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        p[r][c] = visible(a, b, i0 + row() + kSide * r, j0 + column() + kSide * c) ? p[r][c] * scale : -kInfinity<A>;
        top = p[r][c] > top ? p[r][c] : top;  // NaN is left out here and comes back through exp
      }
      top = warp_max<kSide>(top);
      // nothing seen so far: any finite base gives exp(-inf) = 0
      const A base = top == -kInfinity<A> ? A(0) : top, alpha = exp(largest[r] - base);
      A part = 0;
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const A weight = exp(p[r][c] - base);
        part += weight;
        shared.weights[row() + kSide * r][column() + kSide * c] = weight;
      }
      sum[r] = sum[r] * alpha + warp_sum<kSide>(part);
      largest[r] = top;
#pragma unroll
      for (int c = 0; c < 4; ++c) o[r][c] *= alpha;
    }
    add_weighted(vectors(a.v, b, j0, hkv, n), e0, a.s.Dv, shared, o);
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const std::int64_t i = i0 + row() + kSide * r;
    if (i >= n) continue;
    const A inverse = sum[r] == A(0) ? A(0) : A(1) / sum[r];
    for (int c = 0; c < 4; ++c) {
      const std::int64_t e = e0 + column() + kSide * c;
      if (e < a.s.Dv) store(a.o.at(b, i, h) + e, o[r][c] * inverse, false);
    }
    // exp(s - inf) = 0: a row that sees nothing has no weights in backward either
    if (a.log_sum_exp && e0 == 0 && column() == 0)
      a.log_sum_exp[(b * n + i) * a.s.Hq + h] = sum[r] == A(0) ? kInfinity<A> : largest[r] + log(sum[r]);
  }
}

/// delta = do . o, the term that softmax's row sum takes from every ds. A warp a vector.
template <class T>
__global__ void softmax_attention_delta_kernel(const Arguments<T> a) {
  using A = Accumulator<T>;
  const std::int64_t vectors = a.s.B * a.s.T * a.s.Hq, warps = std::int64_t(gridDim.x) * (blockDim.x / kWarp);
  for (std::int64_t i = (std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x) / kWarp; i < vectors; i += warps) {
    const std::int64_t h = i % a.s.Hq, t = i / a.s.Hq % a.s.T, b = i / a.s.Hq / a.s.T;
    const T *dy = a.dy.at(b, t, h), *o = a.o.at(b, t, h);
    A sum = 0;
    for (std::int64_t e = threadIdx.x % kWarp; e < a.s.Dv; e += kWarp) sum += load(dy + e) * load(o + e);
    sum = warp_sum(sum);
    if (threadIdx.x % kWarp == 0) static_cast<A*>(a.workspace)[i] = sum;
  }
}

/// Softmax weight and gradient of its score, of query i and key j.
template <class A>
struct Weight {
  A p, ds;
};
template <class T, class A = Accumulator<T>>
__device__ __forceinline__ Weight<A> weight(const Arguments<T>& a, std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j,
                                            A product, A dp) {
  if (!visible(a, b, i, j)) return {A(0), A(0)};
  const std::int64_t at = (b * a.s.T + i) * a.s.Hq + h;
  const A scale = A(a.s.scale), p = exp(product * scale - a.log_sum_exp[at]);
  return {p, scale * p * (dp - static_cast<const A*>(a.workspace)[at])};
}

/// dq = ds K. A block owns 32 query rows and 64 columns and walks the keys.
template <class T>
__global__ void __launch_bounds__(kThreads) softmax_attention_backward_query_kernel(const Arguments<T> a) {
  using A = Accumulator<T>;
  __shared__ Shared<A> shared;
  const std::int64_t n = a.s.T;
  const auto [b, h, i0, e0] = part_of((a.s.D + kSlice - 1) / kSlice, (n + kTile - 1) / kTile, a.s.Hq);
  const std::int64_t hkv = h / (a.s.Hq / a.s.Hkv), end = a.s.causal && i0 + kTile < n ? i0 + kTile : n;
  A dq[2][4] = {};
  for (std::int64_t j0 = first_key(a, i0); j0 < end; j0 += kTile) {
    A s[2][2], dp[2][2];
    tile_products(vectors(a.q, b, i0, h, n), vectors(a.k, b, j0, hkv, n), a.s.D, shared, s);
    tile_products(vectors(a.dy, b, i0, h, n), vectors(a.v, b, j0, hkv, n), a.s.Dv, shared, dp);
    for (int r = 0; r < 2; ++r)
      for (int c = 0; c < 2; ++c)
        shared.weights[row() + kSide * r][column() + kSide * c] =
            weight(a, b, h, i0 + row() + kSide * r, j0 + column() + kSide * c, s[r][c], dp[r][c]).ds;
    add_weighted(vectors(a.k, b, j0, hkv, n), e0, a.s.D, shared, dq);
  }
  for (int r = 0; r < 2; ++r)
    for (int c = 0; c < 4; ++c) {
      const std::int64_t i = i0 + row() + kSide * r, e = e0 + column() + kSide * c;
      if (i < n && e < a.s.D) a.dq.put(a.dq.at(b, i, h) + e, dq[r][c]);
    }
}

/// dk = ds^T Q and dv = P^T do. A block owns 32 keys of a key head and 64 columns of both, and walks the query heads of the
/// group one after the other: nobody else adds to its sums.
template <class T>
__global__ void __launch_bounds__(kThreads) softmax_attention_backward_key_kernel(const Arguments<T> a) {
  using A = Accumulator<T>;
  __shared__ Shared<A> shared;
  const std::int64_t n = a.s.T, width = a.s.D > a.s.Dv ? a.s.D : a.s.Dv, group = a.s.Hq / a.s.Hkv;
  const auto [b, hkv, j0, e0] = part_of((width + kSlice - 1) / kSlice, (n + kTile - 1) / kTile, a.s.Hkv);
  const bool makes_dk = a.dk && e0 < a.s.D, makes_dv = a.dv && e0 < a.s.Dv;
  A dk[2][4] = {}, dv[2][4] = {};
  for (std::int64_t h = hkv * group; h < (hkv + 1) * group; ++h)
    for (std::int64_t i0 = a.s.causal ? j0 : 0; i0 < last_row(a, j0); i0 += kTile) {
      A s[2][2], dp[2][2];
      tile_products(vectors(a.k, b, j0, hkv, n), vectors(a.q, b, i0, h, n), a.s.D, shared, s);
      tile_products(vectors(a.v, b, j0, hkv, n), vectors(a.dy, b, i0, h, n), a.s.Dv, shared, dp);
      Weight<A> w[2][2];
      for (int r = 0; r < 2; ++r)
        for (int c = 0; c < 2; ++c) w[r][c] = weight(a, b, h, i0 + column() + kSide * c, j0 + row() + kSide * r, s[r][c], dp[r][c]);
      if (makes_dv) {
        for (int r = 0; r < 2; ++r)
          for (int c = 0; c < 2; ++c) shared.weights[row() + kSide * r][column() + kSide * c] = w[r][c].p;
        add_weighted(vectors(a.dy, b, i0, h, n), e0, a.s.Dv, shared, dv);
        __syncthreads();  // weights and values have been read
      }
      if (makes_dk) {
        for (int r = 0; r < 2; ++r)
          for (int c = 0; c < 2; ++c) shared.weights[row() + kSide * r][column() + kSide * c] = w[r][c].ds;
        add_weighted(vectors(a.q, b, i0, h, n), e0, a.s.D, shared, dk);
      }
    }
  for (int r = 0; r < 2; ++r)
    for (int c = 0; c < 4; ++c) {
      const std::int64_t j = j0 + row() + kSide * r, e = e0 + column() + kSide * c;
      if (j >= n) continue;
      if (makes_dk && e < a.s.D) a.dk.put(a.dk.at(b, j, hkv) + e, dk[r][c]);
      if (makes_dv && e < a.s.Dv) a.dv.put(a.dv.at(b, j, hkv) + e, dv[r][c]);
    }
}

/// Zeros for a gradient that nothing reaches.
template <class T>
__global__ void softmax_attention_zero_kernel(const HeadsTarget<T> dx, std::int64_t n, std::int64_t tokens, std::int64_t heads,
                                              std::int64_t depth) {
  const std::int64_t step = std::int64_t(gridDim.x) * blockDim.x;
  for (std::int64_t i = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += step) {
    const std::int64_t vector = i / depth;
    dx.put(dx.at(vector / heads / tokens, vector / heads % tokens, vector % heads) + i % depth, Accumulator<T>(0));
  }
}

template <class T>
void zero(const HeadsTarget<T>& dx, const Shape& shape) {
  if (!dx || dx.adds) return;
  const unsigned blocks = blocks_for(shape.size(), kThreads);
  softmax_attention_zero_kernel<T><<<blocks, kThreads, 0, stream()>>>(dx, shape.size(), shape[1], shape[2], shape[3]);
  check_launch(kName);
}

std::int64_t pieces(std::int64_t n, std::int64_t size) { return (n + size - 1) / size; }

template <class T>
void forward(const Call& c) {
  const Arguments<T> a(c);
  if constexpr (std::is_same_v<T, bf16>)
    if (suits_mma(a)) return forward_mma(a);
  const unsigned blocks = grid_of(pieces(a.s.Dv, kSlice) * pieces(a.s.T, kTile) * a.s.B * a.s.Hq);
  softmax_attention_forward_kernel<T><<<blocks, kThreads, 0, stream()>>>(a);
  check_launch(kName);
}

template <class T>
void backward(const Call& c) {
  const Arguments<T> a(c);
  if (!a.dy) return zero(a.dq, c.inputs[input::kQ].shape), zero(a.dk, c.inputs[input::kK].shape), zero(a.dv, c.inputs[input::kV].shape);
  if constexpr (std::is_same_v<T, bf16>)
    if (suits_mma(a) && backward_mma_fits(a.s)) return backward_mma(a);
  const std::int64_t tiles = pieces(a.s.T, kTile);
  softmax_attention_delta_kernel<T><<<blocks_for(a.s.B * a.s.T * a.s.Hq, kThreads / kWarp), kThreads, 0, stream()>>>(a);
  check_launch(kName);
  if (a.dq) {
    const unsigned blocks = grid_of(pieces(a.s.D, kSlice) * tiles * a.s.B * a.s.Hq);
    softmax_attention_backward_query_kernel<T><<<blocks, kThreads, 0, stream()>>>(a);
    check_launch(kName);
  }
  if (a.dk || a.dv) {
    const unsigned blocks = grid_of(pieces(std::max(a.s.D, a.s.Dv), kSlice) * tiles * a.s.B * a.s.Hkv);
    softmax_attention_backward_key_kernel<T><<<blocks, kThreads, 0, stream()>>>(a);
    check_launch(kName);
  }
}

std::int64_t backward_bytes(const Attributes& attributes, std::span<const Meta> in) {
  const Sizes s = sizes_of(attributes, in[input::kQ].shape, in[input::kK].shape, in[input::kV].shape);
  const std::int64_t delta = s.B * s.T * s.Hq * size_of(accumulator_of(in[input::kQ].dtype));
  return in[input::kQ].dtype == Dtype::bf16 ? std::max(delta, backward_mma_bytes(s)) : delta;
}

}  // namespace
}  // namespace softmax_attention

void register_softmax_attention(KernelTable& table) {
  namespace sa = softmax_attention;
  table["softmax_attention"] = {
      .forward = [](const Call& c) { dispatch_floating(c.inputs[0].dtype, [&](auto zero) { sa::forward<decltype(zero)>(c); }); },
      .backward = [](const Call& c) { dispatch_floating(c.inputs[0].dtype, [&](auto zero) { sa::backward<decltype(zero)>(c); }); },
      .backward_workspace = sa::backward_bytes,
  };
}

}  // namespace hedgehog::cuda

#include "cuda/blas.h"
#include "cuda/linear.cuh"
#include "cuda/vector_product.h"

namespace hedgehog::cuda {
namespace {

Activation kind_of(const Attributes& a) { return activation_of(a.text("activation")); }

/// y = activation(h) + addend over packs of elements; h may be y's own memory.
template <class T, int kCount>
__global__ void activate_kernel(Activation kind, const T* h, const T* addend, T* y, std::int64_t packs) {
  using A = Accumulator<T>;
  using P = Pack<T, kCount>;
  for (std::int64_t i = blockIdx.x * std::int64_t(blockDim.x) + threadIdx.x; i < packs; i += gridDim.x * std::int64_t(blockDim.x)) {
    const P from = reinterpret_cast<const P*>(h)[i];
    P add, to;
    if (addend) add = reinterpret_cast<const P*>(addend)[i];
#pragma unroll
    for (int e = 0; e < kCount; ++e) {
      const A value = activate(kind, load(&from.values[e]));
      to.values[e] = convert<T>(addend ? A(value + load(&add.values[e])) : value);
    }
    reinterpret_cast<P*>(y)[i] = to;
  }
}

/// h += bias, one row of `columns` after the other: where the library does not fuse it.
template <class T>
__global__ void add_bias_kernel(T* h, const T* bias, std::int64_t size, std::int64_t columns) {
  for (std::int64_t i = blockIdx.x * std::int64_t(blockDim.x) + threadIdx.x; i < size; i += gridDim.x * std::int64_t(blockDim.x))
    h[i] = convert<T>(load(h + i) + load(bias + i % columns));
}

constexpr int kThreads = 256, kWarps = kThreads / 32;

/// dh = dy activation'(h), and sums of dh over the rows of each block. A warp holds 32 packs of columns and walks every
/// eighth row; the warps' sums meet in shared memory, those of the blocks in the kernel after it. Either result may be null.
template <class T, int kCount>
__global__ void dh_kernel(Activation kind, const T* dy, const T* h, T* dh, Accumulator<T>* partials, std::int64_t rows, std::int64_t columns) {
  using A = Accumulator<T>;
  using P = Pack<T, kCount>;
  __shared__ A shared[kWarps][32 * kCount + 1];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const std::int64_t packs = columns / kCount, pack = blockIdx.x * std::int64_t(32) + lane;
  const std::int64_t first = rows * blockIdx.y / gridDim.y, last = rows * (blockIdx.y + 1) / gridDim.y;
  A sums[kCount] = {};
  for (std::int64_t r = first + warp; r < last && pack < packs; r += kWarps) {
    const std::int64_t at = r * packs + pack;
    P g = reinterpret_cast<const P*>(dy)[at], x;
    if (h) x = reinterpret_cast<const P*>(h)[at];
#pragma unroll
    for (int e = 0; e < kCount; ++e) {
      const A value = h ? A(load(&g.values[e]) * slope(kind, load(&x.values[e]))) : load(&g.values[e]);
      sums[e] += value;  // before it is rounded for the products
      g.values[e] = convert<T>(value);
    }
    if (h) reinterpret_cast<P*>(dh)[at] = g;
  }
  if (!partials) return;
#pragma unroll
  for (int e = 0; e < kCount; ++e) shared[warp][lane * kCount + e] = sums[e];
  __syncthreads();
  for (int i = threadIdx.x; i < 32 * kCount; i += kThreads) {
    const std::int64_t column = blockIdx.x * std::int64_t(32 * kCount) + i;
    if (column >= columns) continue;
    A sum = 0;
    for (int w = 0; w < kWarps; ++w) sum += shared[w][i];
    partials[blockIdx.y * columns + column] = sum;
  }
}

/// out (+)= sum over blocks, in order.
template <class A, class G>
__global__ void add_partials_kernel(const A* partials, std::int64_t blocks, std::int64_t columns, G* out, bool add) {
  const std::int64_t column = blockIdx.x * std::int64_t(blockDim.x) + threadIdx.x;
  if (column >= columns) return;
  A sum = 0;
  for (std::int64_t b = 0; b < blocks; ++b) sum += partials[b * columns + column];
  store(out + column, sum, add);
}

/// to (+)= from.
template <class T, class G, int kCount>
__global__ void add_into_kernel(const T* from, G* to, std::int64_t packs, bool add) {
  using A = Accumulator<T>;
  for (std::int64_t i = blockIdx.x * std::int64_t(blockDim.x) + threadIdx.x; i < packs; i += gridDim.x * std::int64_t(blockDim.x)) {
    const Pack<T, kCount> x = reinterpret_cast<const Pack<T, kCount>*>(from)[i];
    Pack<G, kCount> y;
    if (add) y = reinterpret_cast<const Pack<G, kCount>*>(to)[i];
#pragma unroll
    for (int e = 0; e < kCount; ++e) store(&y.values[e], A(load(&x.values[e])), add);
    reinterpret_cast<Pack<G, kCount>*>(to)[i] = y;
  }
}

bool aligned(std::initializer_list<const void*> pointers) {
  for (const void* p : pointers)
    if (reinterpret_cast<std::uintptr_t>(p) % 16) return false;
  return true;
}

std::int64_t row_blocks(std::int64_t rows) { return std::clamp<std::int64_t>(rows / 128, 1, 64); }

struct Sizes {
  std::int64_t m, n, k;
  Sizes(const Shape& x, const Shape& weight) : m(x.size() / weight[0]), n(weight[1]), k(weight[0]) {}
};

/// Calls body(first row, rows, offset of the first element, elements from row to row) for runs of rows with one distance.
template <class Body>
void for_row_runs(const Ref& x, std::int64_t width, const Body& body) {
  const std::int64_t rows = x.size() / width, block = x.columns / width;
  if (block == 0) throw ShapeError("[linear] a window narrower than a row has no even distance between rows; copy it first");
  if (block == 1 || block == rows) return body(0, rows, 0, block == 1 && rows > 1 ? x.stride : width);
  for (std::int64_t r = 0; r < rows; r += block) body(r, std::min(block, rows - r), r / block * x.stride, width);
}

const void* element(const void* data, std::int64_t i, Dtype d) { return static_cast<const std::byte*>(data) + i * size_of(d); }
void* element(void* data, std::int64_t i, Dtype d) { return static_cast<std::byte*>(data) + i * size_of(d); }

void activate_rows(Activation kind, Dtype dtype, const void* h, const void* addend, void* y, std::int64_t size) {
  dispatch_floating(dtype, [&](auto zero) {
    using T = decltype(zero);
    auto launch = [&](auto count) {
      constexpr int n = decltype(count)::value;
      activate_kernel<T, n><<<blocks_for(size / n, kThreads), kThreads, 0, stream()>>>(kind, static_cast<const T*>(h), static_cast<const T*>(addend),
                                                                                 static_cast<T*>(y), size / n);
    };
    if (size % kPack<T> == 0 && aligned({h, addend, y})) launch(std::integral_constant<int, kPack<T>>{});
    else launch(std::integral_constant<int, 1>{});
  });
  check_launch("linear");
}

/// Few rows, as decoding has them, with everything that follows in one launch. Returns whether it was done.
bool forward_vectors(const Call& c, const Sizes& s) {
  const Ref &x = c.inputs[0], &saved = c.saved[0];
  if (x.dtype != Dtype::bf16 || s.m > kMostVectors || (x.columns != x.size() && x.columns != s.k)) return false;
  return multiply_vectors({.m = s.m,
                           .n = s.n,
                           .k = s.k,
                           .x = x.data,
                           .ldx = x.columns == s.k && s.m > 1 ? x.stride : s.k,
                           .weight = c.inputs[1].data,
                           .bias = c.inputs[2].data,
                           .addend = c.inputs[3].data,
                           .activation = kind_of(c.attributes),
                           .h = saved.data,
                           .y = c.outputs[0].data});
}

void forward(const Call& c) {
  const Ref &x = c.inputs[0], &weight = c.inputs[1], &bias = c.inputs[2], &addend = c.inputs[3], &y = c.outputs[0], &saved = c.saved[0];
  const Sizes s(x.shape, weight.shape);
  if (forward_vectors(c, s)) return;
  const Activation kind = kind_of(c.attributes);
  const Dtype dtype = x.dtype;
  const bool active = kind != Activation::none;
  const bool gelu = kind == Activation::gelu && !addend && fuses(Epilogue::gelu, dtype, s.n);
  // where the product goes: h, unless the library applies the activation itself
  void* const h = !active || gelu ? y.data : saved ? saved.data : addend ? c.workspace : y.data;
  const bool fused_bias = bias && fuses(Epilogue::bias, dtype, s.n);
  for_row_runs(x, s.k, [&](std::int64_t row, std::int64_t rows, std::int64_t offset, std::int64_t ld) {
    Product p;
    p.dtype = p.result = dtype;
    p.m = rows, p.n = s.n, p.k = s.k;
    p.a = element(x.data, offset, dtype), p.lda = ld;
    p.b = weight.data, p.ldb = s.n;
    p.d = element(h, row * s.n, dtype), p.ldd = s.n;
    if (!active && addend) p.c = element(addend.data, row * s.n, dtype), p.beta = 1;
    if (fused_bias) p.epilogue = Epilogue::bias, p.bias = bias.data;
    if (gelu) {
      p.epilogue = bias ? Epilogue::gelu_bias : Epilogue::gelu;
      if (saved) p.aux = element(saved.data, row * s.n, dtype), p.ld_aux = s.n;
    }
    multiply(p);
  });
  if (bias && !fused_bias)
    dispatch_floating(dtype, [&](auto zero) {
      using T = decltype(zero);
      add_bias_kernel<<<blocks_for(s.m * s.n, kThreads), kThreads, 0, stream()>>>(static_cast<T*>(h), bias.as<T>(), s.m * s.n, s.n);
      check_launch("linear");
    });
  if (active && !gelu) activate_rows(kind, dtype, h, addend.data, y.data, s.m * s.n);
}

/// dh (where there is an activation) and dbias.
template <class T>
void elementwise_backward(const Call& c, const Sizes& s, Activation kind, T* dh, Accumulator<T>* partials) {
  const bool active = kind != Activation::none;
  const T *dy = c.dy[0].as<T>(), *h = active ? c.saved[0].as<T>() : nullptr;
  const std::int64_t blocks = partials ? row_blocks(s.m) : std::clamp<std::int64_t>(s.m / 64, 1, 512);
  auto launch = [&](auto count) {
    constexpr int n = decltype(count)::value;
    const dim3 grid(unsigned((s.n / n + 31) / 32), unsigned(blocks));
    dh_kernel<T, n><<<grid, kThreads, 0, stream()>>>(kind, dy, h, dh, partials, s.m, s.n);
  };
  if (s.n % kPack<T> == 0 && aligned({dy, h, dh})) launch(std::integral_constant<int, kPack<T>>{});
  else launch(std::integral_constant<int, 1>{});
  check_launch("linear");
  if (!partials) return;
  dispatch_gradient<T>(c.dx[2], [&](auto g) {
    using G = decltype(g);
    add_partials_kernel<<<blocks_for(s.n, kThreads, 1 << 30), kThreads, 0, stream()>>>(partials, blocks, s.n, c.dx[2].as<G>(), adds(c, 2));
    check_launch("linear");
  });
}

template <class T>
void add_into(const T* from, const Ref& to, bool add) {
  dispatch_gradient<T>(to, [&](auto g) {
    using G = decltype(g);
    const std::int64_t size = to.size();
    constexpr int n = 16 / int(sizeof(G) > sizeof(T) ? sizeof(G) : sizeof(T));
    if (size % n == 0 && aligned({from, to.data}))
      add_into_kernel<T, G, n><<<blocks_for(size / n, kThreads), kThreads, 0, stream()>>>(from, to.as<G>(), size / n, add);
    else add_into_kernel<T, G, 1><<<blocks_for(size, kThreads), kThreads, 0, stream()>>>(from, to.as<G>(), size, add);
    check_launch("linear");
  });
}

std::int64_t dh_bytes(const Sizes& s, Dtype dtype) { return (s.m * s.n * size_of(dtype) + 255) / 256 * 256; }

void zero_gradients(const Call& c) {
  for (std::size_t i = 0; i < c.dx.size(); ++i) {
    if (!c.dx[i] || c.modes[i] == Mode::accumulate) continue;
    const Ref& dx = c.dx[i];
    const std::int64_t element_bytes = size_of(dx.dtype), rows = dx.size() / dx.columns;
    check(cudaMemset2DAsync(dx.data, std::size_t(std::max(dx.stride, dx.columns) * element_bytes), 0, std::size_t(dx.columns * element_bytes),
                            std::size_t(rows), stream()),
          "linear: zero gradient");
  }
}

template <class T>
void backward_of(const Call& c) {
  const Ref &x = c.inputs[0], &weight = c.inputs[1], &dx = c.dx[0], &dweight = c.dx[1], &dbias = c.dx[2], &daddend = c.dx[3];
  if (!c.dy[0]) return zero_gradients(c);
  const Sizes s(x.shape, weight.shape);
  const Activation kind = kind_of(c.attributes);
  const Dtype dtype = x.dtype;
  const bool active = kind != Activation::none;
  auto* const workspace = static_cast<std::byte*>(c.workspace);
  auto* const partials = dbias ? reinterpret_cast<Accumulator<T>*>(workspace + (active ? dh_bytes(s, dtype) : 0)) : nullptr;
  if (dbias || (active && (dx || dweight))) elementwise_backward<T>(c, s, kind, reinterpret_cast<T*>(workspace), partials);
  const void* const dh = active ? static_cast<const void*>(workspace) : c.dy[0].data;
  if (dx)
    for_row_runs(dx, s.k, [&](std::int64_t row, std::int64_t rows, std::int64_t offset, std::int64_t ld) {
      Product p;
      p.dtype = dtype, p.result = dx.dtype;
      p.transpose_b = true;
      p.m = rows, p.n = s.k, p.k = s.n;
      p.a = element(dh, row * s.n, dtype), p.lda = s.n;
      p.b = weight.data, p.ldb = s.n;
      p.d = element(dx.data, offset, dx.dtype), p.ldd = ld;
      p.beta = adds(c, 0);
      multiply(p);
    });
  if (dweight) {
    // several runs add up in f32 and are rounded once
    const bool aside = dweight.dtype == Dtype::bf16 && x.columns != x.size() && x.columns != s.k;
    float* const sums = aside ? reinterpret_cast<float*>(workspace + (active ? dh_bytes(s, dtype) : 0) + row_blocks(s.m) * s.n * 4) : nullptr;
    for_row_runs(x, s.k, [&](std::int64_t row, std::int64_t rows, std::int64_t offset, std::int64_t ld) {
      Product p;
      p.dtype = dtype, p.result = aside ? Dtype::f32 : dweight.dtype;
      p.transpose_a = true;
      p.m = s.k, p.n = s.n, p.k = rows;
      p.a = element(x.data, offset, dtype), p.lda = ld;
      p.b = element(dh, row * s.n, dtype), p.ldb = s.n;
      p.d = aside ? sums : dweight.data, p.ldd = s.n;
      p.beta = row > 0 || (!aside && adds(c, 1));
      multiply(p);
    });
    if (aside) round_into(sums, dweight, adds(c, 1));
  }
  // last: daddend may lie on dy
  if (daddend && daddend.data != c.dy[0].data) add_into(c.dy[0].as<T>(), daddend, adds(c, 3));
}

void backward(const Call& c) {
  dispatch_floating(c.inputs[0].dtype, [&](auto zero) { backward_of<decltype(zero)>(c); });
}

std::int64_t forward_workspace(const Attributes& a, std::span<const Meta> in) {
  // where h goes when it is not saved and y may lie on the addend
  return kind_of(a) != Activation::none && in[3].given ? dh_bytes(Sizes(in[0].shape, in[1].shape), in[0].dtype) : 0;
}

std::int64_t backward_workspace(const Attributes& a, std::span<const Meta> in) {
  const Sizes s(in[0].shape, in[1].shape);
  std::int64_t bytes = kind_of(a) != Activation::none ? dh_bytes(s, in[0].dtype) : 0;
  bytes += row_blocks(s.m) * s.n * size_of(accumulator_of(in[0].dtype));
  // whether x is rows with a stride is not known here
  if (in[0].dtype == Dtype::bf16) bytes += s.k * s.n * 4;
  return bytes;
}

}  // namespace

void round_into(const float* sums, const Ref& to, bool add) {
  add_into_kernel<float, bf16, 1><<<blocks_for(to.size(), kThreads), kThreads, 0, stream()>>>(sums, to.as<bf16>(), to.size(), add);
  check_launch("round");
}

void register_linear(KernelTable& table) { table["linear"] = {forward, backward, forward_workspace, backward_workspace}; }

}  // namespace hedgehog::cuda

#include "cuda/linear_products.h"

#include "cuda/blas.h"
#include "cuda/linear.cuh"
#include "cuda/partial_sums.cuh"
#include "cuda/vector_product.h"

namespace hedgehog::cuda {
namespace {

/// y = activation(h) + addend over packets; h may be y's own memory.
template <class T, int kCount>
__global__ void activate_kernel(Activation kind, const T* h, const T* addend, T* y, std::int64_t packets) {
  using A = Accumulator<T>;
  for (std::int64_t i = blockIdx.x * std::int64_t(blockDim.x) + threadIdx.x; i < packets; i += gridDim.x * std::int64_t(blockDim.x)) {
    const Packet<T, kCount> from = load_packet<kCount>(h + i * kCount);
    Packet<T, kCount> add, to;
    if (addend) add = load_packet<kCount>(addend + i * kCount);
#pragma unroll
    for (int e = 0; e < kCount; ++e) {
      const A value = activate(kind, load(&from[e]));
      to[e] = convert<T>(addend ? A(value + load(&add[e])) : value);
    }
    store_packet(y + i * kCount, to);
  }
}

/// h += bias, one row of `columns` after the other: where the library does not fuse it.
template <class T>
__global__ void add_bias_kernel(T* h, const T* bias, std::int64_t size, std::int64_t columns) {
  for (std::int64_t i = blockIdx.x * std::int64_t(blockDim.x) + threadIdx.x; i < size; i += gridDim.x * std::int64_t(blockDim.x))
    h[i] = convert<T>(load(h + i) + load(bias + i % columns));
}

/// h = sums + bias and y = activation(h) + addend, each rounded once; h may be null.
__global__ void finish_kernel(Activation kind, const float* sums, const bf16* bias, const bf16* addend, bf16* h, bf16* y, std::int64_t size,
                              std::int64_t columns) {
  for (std::int64_t i = blockIdx.x * std::int64_t(blockDim.x) + threadIdx.x; i < size; i += gridDim.x * std::int64_t(blockDim.x)) {
    const float value = sums[i] + load(bias + i % columns);
    if (h) h[i] = convert<bf16>(value);
    y[i] = convert<bf16>(activate(kind, value) + (addend ? load(addend + i) : 0.0f));
  }
}

constexpr int kThreads = 256, kWarps = kThreads / 32;

/// dh = dy activation'(h), and sums of dh over the rows of each block. A warp holds 32 packets of columns and walks every
/// eighth row; the warps' sums meet in shared memory, those of the blocks in the kernel after it. Sums alone (h and dh null, kSlope
/// false), or dh alone (partials null).
template <class T, int kCount, bool kSlope>
__global__ void dh_kernel(Activation kind, const T* dy, const T* h, T* dh, Accumulator<T>* partials, std::int64_t rows, std::int64_t columns) {
  using A = Accumulator<T>;
  __shared__ A shared[kWarps][32 * kCount + 1];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const std::int64_t packets = columns / kCount, packet = blockIdx.x * std::int64_t(32) + lane;
  const std::int64_t first = rows * blockIdx.y / gridDim.y, last = rows * (blockIdx.y + 1) / gridDim.y;
  A sums[kCount] = {};
  wait_for_kernels();
#pragma unroll(kSlope ? 1 : 8)
  for (std::int64_t r = first + warp; r < last && packet < packets; r += kWarps) {
    const std::int64_t at = (r * packets + packet) * kCount;
    Packet<T, kCount> g = load_packet<kCount>(dy + at), x;
    if constexpr (kSlope) x = load_packet<kCount>(h + at);
#pragma unroll
    for (int e = 0; e < kCount; ++e) {
      const A value = kSlope ? A(load(&g[e]) * slope(kind, load(&x[e]))) : load(&g[e]);
      sums[e] += value;  // before it is rounded for the products
      if constexpr (kSlope) g[e] = convert<T>(value);
    }
    if constexpr (kSlope) store_packet(dh + at, g);
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

/// to (+)= from.
template <class T, class G, int kCount>
__global__ void add_into_kernel(const T* from, G* to, std::int64_t packets, bool add) {
  using A = Accumulator<T>;
  for (std::int64_t i = blockIdx.x * std::int64_t(blockDim.x) + threadIdx.x; i < packets; i += gridDim.x * std::int64_t(blockDim.x)) {
    A x[kCount];
    load_packet<kCount>(from + i * kCount, x);
    put_packet<kCount>(to + i * kCount, x, add);
  }
}

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
    if (size % kVector<T> == 0 && aligned({h, addend, y})) launch(std::integral_constant<int, kVector<T>>{});
    else launch(std::integral_constant<int, 1>{});
  });
  check_launch("linear");
}

/// Few rows, as decoding has them, with everything that follows in one launch. Returns whether it was done.
bool forward_vectors(const Layer& l, std::int64_t m, std::int64_t n, std::int64_t k) {
  const Ref& x = l.x;
  if (x.dtype != Dtype::bf16 || m > kMostVectors || (x.columns != x.size() && x.columns != k)) return false;
  return multiply_vectors({.m = m,
                           .n = n,
                           .k = k,
                           .x = x.data,
                           .ldx = x.columns == k && m > 1 ? x.stride : k,
                           .weight = l.weight.data,
                           .bias = l.bias,
                           .parameters = l.parameters,
                           .addend = l.addend,
                           .activation = l.activation,
                           .h = l.h,
                           .y = l.y});
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

/// Blocks that the rows of (rows, columns) are summed in.
std::int64_t row_blocks(std::int64_t rows, std::int64_t columns) {
  // a block takes 32 packets of columns; some 768 blocks keep the memory busy
  const std::int64_t most = std::clamp<std::int64_t>(64 * 3072 / columns, 64, 256);
  return std::clamp<std::int64_t>(rows / 128, 1, most);
}

}  // namespace

void forward_layer(const Layer& l) {
  const Ref& x = l.x;
  const std::int64_t k = l.weight.shape[0], n = l.weight.shape[1], m = x.size() / k;
  if (forward_vectors(l, m, n, k)) return;
  const Dtype dtype = x.dtype;
  const bool active = l.activation != Activation::none;
  const bool gelu = l.activation == Activation::gelu && !l.addend && fuses(Epilogue::gelu, dtype, n);
  // where the product goes: h, unless the library applies the activation itself
  void* const h = !active || gelu ? l.y : l.h ? l.h : l.y;
  const bool fused_bias = l.bias && fuses(Epilogue::bias, dtype, n);
  const bool aside = sums_bytes(m, n, dtype, l.bias) > 0;
  for_row_runs(x, k, [&](std::int64_t row, std::int64_t rows, std::int64_t offset, std::int64_t ld) {
    Product p;
    p.dtype = p.result = dtype;
    p.m = rows, p.n = n, p.k = k;
    p.a = element(x.data, offset, dtype), p.lda = ld;
    p.b = l.weight.data, p.ldb = n;
    p.d = element(h, row * n, dtype), p.ldd = n;
    if (aside) {
      p.result = Dtype::f32, p.d = l.sums + row * n;
      return multiply(p);
    }
    if (!active && l.addend) p.c = element(l.addend, row * n, dtype), p.beta = 1;
    if (fused_bias) p.epilogue = Epilogue::bias, p.bias = l.bias;
    if (gelu) {
      p.epilogue = l.bias ? Epilogue::gelu_bias : Epilogue::gelu;
      if (l.h) p.aux = element(l.h, row * n, dtype), p.ld_aux = n;
    }
    multiply(p);
  });
  if (aside) {
    finish_kernel<<<blocks_for(m * n, kThreads), kThreads, 0, stream()>>>(l.activation, l.sums, static_cast<const bf16*>(l.bias),
                                                                      static_cast<const bf16*>(l.addend), static_cast<bf16*>(l.h),
                                                                      static_cast<bf16*>(l.y), m * n, n);
    return check_launch("linear");
  }
  if (l.bias && !fused_bias)
    dispatch_floating(dtype, [&](auto zero) {
      using T = decltype(zero);
      add_bias_kernel<<<blocks_for(m * n, kThreads), kThreads, 0, stream()>>>(static_cast<T*>(h), static_cast<const T*>(l.bias), m * n, n);
      check_launch("linear");
    });
  if (active && !gelu) activate_rows(l.activation, dtype, h, l.addend, l.y, m * n);
}

std::int64_t sums_bytes(std::int64_t m, std::int64_t n, Dtype dtype, bool bias) {
  return dtype == Dtype::bf16 && bias && n % 8 != 0 ? aligned_bytes(m, n, Dtype::f32) : 0;
}

bool input_gradient(const void* dh, const Ref& weight, const Ref& dx, bool add, const void* gelu_of) {
  const std::int64_t k = weight.shape[0], n = weight.shape[1];
  const Dtype dtype = weight.dtype;
  if (gelu_of && !fuses(Epilogue::dgelu, dtype, k)) return false;
  bool done = true;
  for_row_runs(dx, k, [&](std::int64_t row, std::int64_t rows, std::int64_t offset, std::int64_t ld) {
    Product p;
    p.dtype = dtype, p.result = dx.dtype;
    p.transpose_b = true;
    p.m = rows, p.n = k, p.k = n;
    p.a = element(dh, row * n, dtype), p.lda = n;
    p.b = weight.data, p.ldb = n;
    p.d = element(dx.data, offset, dx.dtype), p.ldd = ld;
    p.beta = add;
    if (!gelu_of) return multiply(p);
    p.epilogue = Epilogue::dgelu;
    p.aux = const_cast<void*>(element(gelu_of, row * k, dtype)), p.ld_aux = k;
    done = done && try_multiply(p);
  });
  return done;
}

void weight_gradient(const Ref& x, const void* dh, const Ref& dweight, bool add, float* scratch) {
  const std::int64_t k = dweight.shape[0], n = dweight.shape[1];
  const Dtype dtype = x.dtype;
  // several runs add up in f32 and are rounded once
  const bool aside = dweight.dtype == Dtype::bf16 && x.columns != x.size() && x.columns != k;
  for_row_runs(x, k, [&](std::int64_t row, std::int64_t rows, std::int64_t offset, std::int64_t ld) {
    Product p;
    p.dtype = dtype, p.result = aside ? Dtype::f32 : dweight.dtype;
    p.transpose_a = true;
    p.m = k, p.n = n, p.k = rows;
    p.a = element(x.data, offset, dtype), p.lda = ld;
    p.b = element(dh, row * n, dtype), p.ldb = n;
    p.d = aside ? scratch : dweight.data, p.ldd = n;
    p.beta = row > 0 || (!aside && add);
    multiply(p);
  });
  if (aside) round_into(scratch, dweight, add);
}

void slope_and_sums(Activation kind, Dtype dtype, const void* dy, const void* h, void* dh, void* partials, std::int64_t m, std::int64_t n) {
  if (kind == Activation::none) {
    h = dh = nullptr;
    if (!partials) return;
  }
  const std::int64_t blocks = partials ? row_blocks(m, n) : std::clamp<std::int64_t>(m / 64, 1, 512);
  dispatch_floating(dtype, [&](auto zero) {
    using T = decltype(zero);
    auto launch = [&](auto count) {
      constexpr int each = decltype(count)::value;
      const dim3 grid(unsigned((n / each + 31) / 32), unsigned(blocks));
      const auto kernel = h ? dh_kernel<T, each, true> : dh_kernel<T, each, false>;
      launch_early("linear", kernel, grid, kThreads, 0, kind, static_cast<const T*>(dy), static_cast<const T*>(h), static_cast<T*>(dh),
                   static_cast<Accumulator<T>*>(partials), m, n);
    };
    if (n % kVector<T> == 0 && aligned({dy, h, dh})) launch(std::integral_constant<int, kVector<T>>{});
    else launch(std::integral_constant<int, 1>{});
  });
}

std::int64_t partial_bytes(std::int64_t m, std::int64_t n, Dtype dtype) { return aligned_bytes(row_blocks(m, n), n, accumulator_of(dtype)); }

void add_sums(Dtype dtype, const void* partials, std::int64_t rows, const Ref& dbias, bool add) {
  const std::int64_t n = dbias.size();
  dispatch_floating(dtype, [&](auto zero) {
    using T = decltype(zero);
    sum_partials<T>("linear", partials, row_blocks(rows, n), n, Target<T>(dbias, add));
  });
}

std::int64_t aligned_bytes(std::int64_t m, std::int64_t n, Dtype dtype) { return (m * n * size_of(dtype) + 255) / 256 * 256; }

void add_upstream(const Ref& dy, const Ref& daddend, bool add) {
  if (daddend.data == dy.data) return;
  dispatch_floating(dy.dtype, [&](auto zero) {
    using T = decltype(zero);
    add_into(dy.as<T>(), daddend, add);
  });
}

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

void round_into(const float* sums, const Ref& to, bool add) {
  add_into_kernel<float, bf16, 1><<<blocks_for(to.size(), kThreads), kThreads, 0, stream()>>>(sums, to.as<bf16>(), to.size(), add);
  check_launch("round");
}

}  // namespace hedgehog::cuda

#include "cuda/rotary.h"

#include "cuda/early_launch.cuh"
#include "cuda/packet.cuh"
#include "ops/rotary_scaling.h"

namespace hedgehog::cuda {
namespace {

/// table[t] = (cos, sin) of (t + offset) scaled(base^(-2 i / D)), computed and reduced in f64. A thread for each angle.
template <class T>
__global__ void rotary_table_forward_kernel(const std::int32_t* offset, double base, RotaryScaling scaling, std::int64_t length,
                                            std::int64_t half, T* table) {
  start_next_kernel();
  const std::int64_t begin = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x, stride = std::int64_t(gridDim.x) * blockDim.x;
  auto frequency = [&](std::int64_t n) { return scaling.scaled(pow(base, -double(n - quotient(n, half) * half) / double(half))); };
  double turn = frequency(begin);
  wait_for_kernels();
  const std::int64_t first = offset ? *offset : 0;
  for (std::int64_t n = begin; n < length * half; n += stride) {
    const std::int64_t t = quotient(n, half), i = n - t * half;
    if (n != begin) turn = frequency(n);
    double sine, cosine;
    sincos(double(t + first) * turn, &sine, &cosine);
    table[t * 2 * half + i] = T(cosine);
    table[t * 2 * half + half + i] = T(sine);
  }
}

void table_forward(const Call& c) {
  const Ref& table = c.outputs[0];
  const std::int64_t length = table.shape[0], half = table.shape[1] / 2;
  const Attributes& a = c.attributes;
  const RotaryScaling scaling{.factor = a.real("factor"), .low = a.real("low"), .high = a.real("high"), .original = a.real("original")};
  auto launch = [&](auto zero) {
    using T = decltype(zero);
    launch_early("rotary_table", rotary_table_forward_kernel<T>, blocks_for(length * half, 128), 128, 0, c.inputs[0].as<std::int32_t>(),
                 a.real("base"), scaling, length, half, table.as<T>());
  };
  table.dtype == Dtype::f64 ? launch(double{}) : launch(float{});
}

/// Extents of x, and the layout of its pairs.
struct RotarySizes {
  std::int64_t length, heads, half, vectors;  // vectors: B T H
  bool pairs;
};

/// y (+)= x turned by sign * angle; x null: zeros. A thread for N pairs of a vector: N elements of either half, or 2 N
/// neighbours; it reads them before it writes, so y may be x.
template <class T, class Y, int N>
__global__ void rotary_forward_kernel(const RotarySizes s, const Rows<T> x, const Accumulator<T>* table, Accumulator<T> sign, const Rows<Y> y,
                                      bool adds) {
  using A = Accumulator<T>;
  wait_for_kernels();
  const std::int64_t parts = s.half / N, stride = std::int64_t(gridDim.x) * blockDim.x;
  for (std::int64_t n = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x; n < s.vectors * parts; n += stride) {
    const std::int64_t vector = quotient(n, parts), i = (n - vector * parts) * N, token = quotient(vector, s.heads);
    const std::int64_t t = token - quotient(token, s.length) * s.length;
    const Packet<A, N> cosines = load_packet<N>(table + t * 2 * s.half + i), sines = load_packet<N>(table + t * 2 * s.half + s.half + i);
    const std::int64_t first = s.pairs ? 2 * i : i, second = s.pairs ? 2 * i + N : s.half + i;
    Packet<T, N> low = {}, high = {};
    if (x) {
      const T* const from = x.at(vector * 2 * s.half);
      low = load_packet<N>(from + first);
      high = load_packet<N>(from + second);
    }
    // of all 2 N elements in memory order; pair p is (p, N + p), or (2 p, 2 p + 1)
    A in[2 * N], out[2 * N];
#pragma unroll
    for (int p = 0; p < N; ++p) {
      in[p] = convert<A>(low[p]);
      in[N + p] = convert<A>(high[p]);
    }
#pragma unroll
    for (int p = 0; p < N; ++p) {
      const A a = s.pairs ? in[2 * p] : in[p], b = s.pairs ? in[2 * p + 1] : in[N + p], sine = sign * sines[p];
      const A ya = a * cosines[p] - b * sine, yb = b * cosines[p] + a * sine;
      (s.pairs ? out[2 * p] : out[p]) = ya;
      (s.pairs ? out[2 * p + 1] : out[N + p]) = yb;
    }
    A out_low[N], out_high[N];
#pragma unroll
    for (int p = 0; p < N; ++p) {
      out_low[p] = out[p];
      out_high[p] = out[N + p];
    }
    Y* const to = y.at(vector * 2 * s.half);
    put_packet<N>(to + first, out_low, adds);
    put_packet<N>(to + second, out_high, adds);
  }
}

template <class T, class Y>
void launch_turn(const Ref& x, const Ref& table, bool pairs, Accumulator<T> sign, const Ref& y, bool adds) {
  const Shape& shape = y.shape;
  const RotarySizes s{shape[1], shape[2], shape[3] / 2, shape[0] * shape[1] * shape[2], pairs};
  auto launch = [&](auto width) {
    constexpr int N = width.value;
    launch_early("rotary", rotary_forward_kernel<T, Y, N>, blocks_for(s.vectors * (s.half / N), 256, 132 * 64), 256, 0, s, Rows<T>(x),
                 table.as<Accumulator<T>>(), sign, Rows<Y>(y), adds);
  };
  constexpr int N = kVector<T>;
  const bool even = s.half % N == 0 && aligned({table.data}) && (!x || aligned_rows(x)) && aligned_rows(y);
  even ? launch(std::integral_constant<int, N>{}) : launch(std::integral_constant<int, 1>{});
}

void turn(const Ref& x, const Ref& table, bool pairs, bool back, const Ref& y, bool adds) {
  dispatch_floating(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    dispatch_gradient<T>(y, [&](auto result) { launch_turn<T, decltype(result)>(x, table, pairs, back ? -1 : 1, y, adds); });
  });
}

bool has_pairs(const Call& c) { return c.attributes.text("layout") == "pairs"; }

void forward(const Call& c) { turn(c.inputs[0], c.inputs[1], has_pairs(c), false, c.outputs[0], false); }

void backward(const Call& c) {
  if (!c.dx[0]) return;
  Ref dy = c.dy[0];
  dy.dtype = c.inputs[0].dtype;  // also where there is none
  turn(dy, c.inputs[1], has_pairs(c), true, c.dx[0], adds(c, 0));
}

}  // namespace

void rotate_heads(const Ref& x, const Ref& table, bool back, const Ref& y, bool adds) { turn(x, table, false, back, y, adds); }

void register_rotary(KernelTable& table) {
  table["rotary_table"] = {table_forward, {}, {}, {}};
  table["rotary"] = {forward, backward, {}, {}};
}

}  // namespace hedgehog::cuda

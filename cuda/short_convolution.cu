#include "cuda/early_launch.cuh"
#include "cuda/partial_sums.cuh"

namespace hedgehog::cuda {
namespace {

constexpr int kTaps = 4;  // most taps of the kernels that keep their tokens in registers
constexpr int kRun = 8;   // tokens of a thread

struct Sizes {
  std::int64_t rows, length, columns, taps;  // rows: B T
  template <class In>
  explicit Sizes(const In& in)
      : rows(in[0].shape[0] * in[0].shape[1]), length(in[0].shape[1]), columns(in[0].shape[2]), taps(in[1].shape[0]) {}
};

/// How many tokens take part: the token at row n, which is token t of its sequence, and those before it (kStep -1) or behind
/// it (kStep 1) in its document, `taps` at most.
template <int kStep>
__device__ __forceinline__ int reach(const Sizes& s, const std::int32_t* start, std::int64_t n, std::int64_t t) {
  const std::int64_t most = min(s.taps, kStep < 0 ? t + 1 : s.length - t);
  int j = 1;
  while (j < most && (!start || start[n + kStep * j] == start[n])) ++j;
  return j;
}

/// y[n] (+)= sum_j weight[j] x[n + kStep j]: forward with kStep -1, and with kStep 1 the gradient of x from that of y.
///
/// A thread for N columns of `kRun` tokens: the tokens it needs are all in flight before the first result is written, and each
/// is read once. At most `kTaps` taps.
template <class T, int kStep>
__global__ void __launch_bounds__(128) short_convolution_run_kernel(const Sizes s, const Rows<T> x, const T* weight, const std::int32_t* start,
                                                                    const Rows<T> y, bool adds) {
  constexpr int N = kVector<T>, kBefore = kStep < 0 ? kTaps - 1 : 0, kRows = kRun + kTaps - 1;
  const std::int64_t packets = s.columns / N, runs = (s.rows + kRun - 1) / kRun;
  const std::int64_t index = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= runs * packets) return;
  const std::int64_t run = quotient(index, packets), c = (index - run * packets) * N, begin = run * kRun;
  Packet<T, N> rows[kRows];  // of x, from row begin - kBefore on
#pragma unroll
  for (int m = 0; m < kRows; ++m) {
    const std::int64_t row = begin - kBefore + m;
    if (row >= 0 && row < s.rows) rows[m] = load_packet<N>(static_cast<const T*>(x.at(row * s.columns) + c));
  }
  float w[kTaps][N];
#pragma unroll
  for (int j = 0; j < kTaps; ++j) {
    Packet<T, N> packet = {};
    if (j < s.taps) packet = load_packet<N>(weight + j * s.columns + c);
#pragma unroll
    for (int i = 0; i < N; ++i) w[j][i] = convert<float>(packet[i]);
  }
  std::int64_t t = begin - quotient(begin, s.length) * s.length;
#pragma unroll
  for (int k = 0; k < kRun; ++k) {
    const std::int64_t n = begin + k;
    if (n >= s.rows) return;
    const int taps = reach<kStep>(s, start, n, t);
    if (++t == s.length) t = 0;
    float sum[N] = {};
#pragma unroll
    for (int j = 0; j < kTaps; ++j)
      if (j < taps) {
#pragma unroll
        for (int i = 0; i < N; ++i) sum[i] += w[j][i] * convert<float>(rows[kBefore + k + kStep * j][i]);
      }
    put_packet<N>(y.at(n * s.columns) + c, sum, adds);
  }
}

/// The same for any number of taps, strides and dtype of y: a thread for each element; x null: zeros.
template <class T, class Y, int kStep>
__global__ void short_convolution_kernel(const Sizes s, const Rows<T> x, const T* weight, const std::int32_t* start, const Rows<Y> y, bool adds) {
  using A = Accumulator<T>;
  const std::int64_t stride = std::int64_t(gridDim.x) * blockDim.x;
  for (std::int64_t i = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < s.rows * s.columns; i += stride) {
    const std::int64_t n = quotient(i, s.columns), c = i - n * s.columns, t = n - quotient(n, s.length) * s.length;
    A sum = 0;
    if (x) {
      const int taps = reach<kStep>(s, start, n, t);
      for (int j = 0; j < taps; ++j) sum += load(weight + j * s.columns + c) * load(x.at((n + kStep * j) * s.columns + c));
    }
    store(y.at(i), sum, adds);
  }
}

/// y (+)= the convolution of x, or with kStep 1 its transpose.
template <class T, class Y, int kStep>
void convolve(const Call& c, const Ref& x, const Ref& y, bool adds) {
  const Sizes s(c.inputs);
  const T* const weight = c.inputs[1].as<T>();
  const std::int32_t* const start = c.inputs[2].as<std::int32_t>();
  if constexpr (!std::is_same_v<T, double> && std::is_same_v<T, Y>) {
    constexpr int N = kVector<T>;
    if (x && s.taps <= kTaps && s.columns % N == 0 && aligned({weight}) && aligned_rows(x) && aligned_rows(y)) {
      const std::int64_t threads = (s.rows + kRun - 1) / kRun * (s.columns / N);
      short_convolution_run_kernel<T, kStep><<<unsigned((threads + 127) / 128), 128, 0, stream()>>>(s, Rows<T>(x), weight, start, Rows<T>(y), adds);
      return check_launch("short_convolution");
    }
  }
  short_convolution_kernel<T, Y, kStep><<<blocks_for(s.rows * s.columns, 256, 132 * 64), 256, 0, stream()>>>(s, Rows<T>(x), weight, start,
                                                                                                            Rows<Y>(y), adds);
  check_launch("short_convolution");
}

void forward(const Call& c) {
  dispatch_floating(c.inputs[0].dtype, [&](auto zero) { convolve<decltype(zero), decltype(zero), -1>(c, c.inputs[0], c.outputs[0], false); });
}

/// partials[range][j] = sum over a range of rows of dy[n] x[n - j]. A thread for N columns of a range, which keeps the sums and
/// the last tokens in registers. At most `kTaps` taps.
template <class T>
__global__ void __launch_bounds__(128) short_convolution_weight_run_kernel(const Sizes s, const Rows<T> x, const T* dy, const std::int32_t* start,
                                                                           std::int64_t ranges, float* partials) {
  constexpr int N = kVector<T>;
  const std::int64_t packets = s.columns / N, index = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= ranges * packets) return;
  const std::int64_t range = quotient(index, packets), c = (index - range * packets) * N;
  const std::int64_t begin = range_begin(s.rows, range, ranges), end = range_begin(s.rows, range + 1, ranges);
  Packet<T, N> rows[kTaps] = {};  // x[n - j]
#pragma unroll
  for (int j = 1; j < kTaps; ++j)
    if (begin - j >= 0) rows[j - 1] = load_packet<N>(static_cast<const T*>(x.at((begin - j) * s.columns) + c));
  float sums[kTaps][N] = {};
  std::int64_t t = begin - quotient(begin, s.length) * s.length;
#pragma unroll 4
  for (std::int64_t n = begin; n < end; ++n) {
#pragma unroll
    for (int j = kTaps - 1; j > 0; --j) rows[j] = rows[j - 1];
    rows[0] = load_packet<N>(static_cast<const T*>(x.at(n * s.columns) + c));
    const Packet<T, N> d = load_packet<N>(dy + n * s.columns + c);
    const int taps = reach<-1>(s, start, n, t);
    if (++t == s.length) t = 0;
#pragma unroll
    for (int j = 0; j < kTaps; ++j)
      if (j < taps) {
#pragma unroll
        for (int i = 0; i < N; ++i) sums[j][i] += convert<float>(d[i]) * convert<float>(rows[j][i]);
      }
  }
#pragma unroll
  for (int j = 0; j < kTaps; ++j)
    if (j < s.taps) put_packet<N>(partials + (range * s.taps + j) * s.columns + c, sums[j], false);
}

/// The same for any number of taps and strides: a thread for each element of weight and range of rows; dy null: zeros.
template <class T>
__global__ void short_convolution_weight_kernel(const Sizes s, const Rows<T> x, const T* dy, const std::int32_t* start, std::int64_t ranges,
                                                Accumulator<T>* partials) {
  using A = Accumulator<T>;
  const std::int64_t size = s.taps * s.columns, stride = std::int64_t(gridDim.x) * blockDim.x;
  for (std::int64_t i = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < ranges * size; i += stride) {
    const std::int64_t range = quotient(i, size), element = i - range * size, j = quotient(element, s.columns), c = element - j * s.columns;
    const std::int64_t end = range_begin(s.rows, range + 1, ranges);
    A sum = 0;
    if (dy)
      for (std::int64_t n = range_begin(s.rows, range, ranges); n < end; ++n)
        if (j < reach<-1>(s, start, n, n - quotient(n, s.length) * s.length))
          sum += load(dy + n * s.columns + c) * load(x.at((n - j) * s.columns + c));
    partials[i] = sum;
  }
}

template <class T>
void weight_backward(const Call& c) {
  using A = Accumulator<T>;
  const Sizes s(c.inputs);
  const Ref& x = c.inputs[0];
  const T* const dy = c.dy[0].as<T>();
  const std::int32_t* const start = c.inputs[2].as<std::int32_t>();
  const std::int64_t ranges = row_ranges(s.rows);
  A* const partials = static_cast<A*>(c.workspace);
  bool launched = false;
  if constexpr (!std::is_same_v<T, double>) {
    if (dy && s.taps <= kTaps && s.columns % kVector<T> == 0 && aligned({dy}) && aligned_rows(x)) {
      const std::int64_t threads = ranges * (s.columns / kVector<T>);
      short_convolution_weight_run_kernel<T><<<unsigned((threads + 127) / 128), 128, 0, stream()>>>(s, Rows<T>(x), dy, start, ranges, partials);
      launched = true;
    }
  }
  if (!launched)
    short_convolution_weight_kernel<T><<<blocks_for(ranges * s.taps * s.columns, 128), 128, 0, stream()>>>(s, Rows<T>(x), dy, start, ranges, partials);
  check_launch("short_convolution");
  sum_partials<T>("short_convolution", partials, ranges, s.taps * s.columns, Target<T>(c, 1));
}

void backward(const Call& c) {
  dispatch_floating(c.inputs[0].dtype, [&](auto zero) {
    using T = decltype(zero);
    if (c.dx[0])
      dispatch_gradient<T>(c.dx[0], [&](auto gradient) { convolve<T, decltype(gradient), 1>(c, c.dy[0], c.dx[0], adds(c, 0)); });
    if (c.dx[1]) weight_backward<T>(c);
  });
}

/// A thread for each column of a stream walks its tokens; nobody else sees that column of the state.
template <class T>
__global__ void short_convolution_step_forward_kernel(const Sizes s, const Rows<T> x, const T* weight, Accumulator<T>* states, T* y) {
  using A = Accumulator<T>;
  wait_for_kernels();
  const std::int64_t index = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= s.rows / s.length * s.columns) return;
  const std::int64_t b = quotient(index, s.columns), c = index - b * s.columns, remembered = s.taps - 1;
  A* const state = states + b * remembered * s.columns + c;  // (K - 1), s.columns apart, oldest first
  for (std::int64_t n = b * s.length; n < (b + 1) * s.length; ++n) {
    const A token = load(x.at(n * s.columns + c));
    A sum = load(weight + c) * token;
    for (std::int64_t j = 1; j <= remembered; ++j) sum += load(weight + j * s.columns + c) * state[(remembered - j) * s.columns];
    for (std::int64_t k = 0; k + 1 < remembered; ++k) state[k * s.columns] = state[(k + 1) * s.columns];
    state[(remembered - 1) * s.columns] = token;
    y[n * s.columns + c] = convert<T>(sum);
  }
}

void step_forward(const Call& c) {
  const Sizes s(c.inputs);
  dispatch_floating(c.inputs[0].dtype, [&](auto zero) {
    using T = decltype(zero);
    const std::int64_t threads = s.rows / s.length * s.columns;
    launch_early("short_convolution_step", short_convolution_step_forward_kernel<T>, unsigned((threads + 127) / 128), 128, 0, s,
                 Rows<T>(c.inputs[0]), c.inputs[1].as<T>(), c.inputs[2].as<Accumulator<T>>(), c.outputs[0].as<T>());
  });
}

}  // namespace

void register_short_convolution(KernelTable& table) {
  table["short_convolution"] = {forward, backward, {}, [](const Attributes&, std::span<const Meta> in) {
                                  const Sizes s(in);
                                  return row_ranges(s.rows) * s.taps * s.columns * size_of(accumulator_of(in[0].dtype));
                                }};
  table["short_convolution_step"] = {step_forward, {}, {}, {}};
}

}  // namespace hedgehog::cuda

#include "cuda/linear_attention_generic.cuh"

namespace hedgehog::cuda::linear_attention_generic {
namespace {

template <class T>
struct ForwardArguments : Arguments<T> {
  using A = Accumulator<T>;
  Heads<T> o;
  A *saved, *final_state;

  ForwardArguments(const Call& c, const Sizes& sizes)
      : Arguments<T>(c, sizes), o(Heads<T>(kName, c.outputs[0])), saved(c.saved.empty() ? nullptr : c.saved[0].as<A>()),
        final_state(c.outputs[1].as<A>()) {}
};

template <class A>
struct ForwardScratch : Tile<A> {
  A *o, *m;  // (chunk, E), (chunk)
  DeviceState<A> state;

  __host__ __device__ ForwardScratch(Pieces& pieces, const Sizes& s) : Tile<A>(pieces, s) {
    o = pieces.take<A>(s.chunk * (s.Dv + 1));
    m = pieces.take<A>(s.chunk);
    state.take(pieces, s);
  }
};

template <class T>
class Forward {
  using A = Accumulator<T>;

 public:
  __device__ Forward(const ForwardArguments<T>& a, const ForwardScratch<A>& x, const HeadPlace& head)
      : a_(a), s_(a.s), x_(x), head_(head), F_(int(a.s.F)), E_(int(a.s.Dv) + 1) {}

  __device__ void run() const {
    load_maps(a_, head_, x_);
    const std::int64_t stored = (head_.b * s_.Hq + head_.h) * F_ * (s_.Dv + 2);
    for (std::int64_t begin = 0, end; begin < s_.T; begin = end) {
      end = head_.document_end(begin, s_.T);
      bool filled = load_state(s_, begin == 0 && a_.initial ? a_.initial + stored : nullptr, x_.state);
      const bool final = end == s_.T && s_.final_state;
      filled = s_.causal ? causal(begin, end, filled, final) : bidirectional(begin, end, filled);
      if (final) store_state(s_, x_.state, filled, a_.final_state + stored);
    }
  }

 private:
  /// Turns the numerators and the denominator of one row into its output and what backward needs. By one warp.
  __device__ void finish_row(std::int64_t t, const A* row, A m) const {
    const A den = row[E_ - 1], inverse = den == A(0) ? A(0) : A(1) / den;
    T* const o = a_.o.at(head_.b, t, head_.h);
    for (int e = lane(); e < E_ - 1; e += kWarp) o[e] = convert<T>(row[e] * inverse);
    if (lane() == 0 && a_.saved) a_.saved[(head_.b * s_.T + t) * s_.Hq + head_.h] = s_.map.logarithmic() ? m + std::log(den) : den;
  }
  /// A row that sees no key. By one warp.
  __device__ void empty_row(std::int64_t t) const {
    T* const o = a_.o.at(head_.b, t, head_.h);
    for (int e = lane(); e < E_ - 1; e += kWarp) o[e] = convert<T>(A(0));
    if (lane() == 0 && a_.saved)
      a_.saved[(head_.b * s_.T + t) * s_.Hq + head_.h] = s_.map.logarithmic() ? infinity<A>() : A(0);
  }
  __device__ void empty_rows(std::int64_t t0, int n) const {
    for_rows(n, [&](int i) { empty_row(t0 + i); });
  }

  /// Query features in the scale of the keys, in place: exp(ln phi + shift - m), m the largest exponent of the row.
  __device__ void scale_queries(int n, const A* shift) const {
    for_rows(n, [&](int i) {
      A* const row = x_.q + i * F_;
      A largest = 0;
      if (s_.map.logarithmic()) {
        largest = -infinity<A>();
        for (int r = lane(); r < F_; r += kWarp) largest = row[r] + shift[r] > largest ? row[r] + shift[r] : largest;
        largest = warp_max(largest);
        for (int r = lane(); r < F_; r += kWarp) row[r] = std::exp(row[r] + shift[r] - largest);
      }
      if (lane() == 0) x_.m[i] = largest;
    });
    __syncthreads();
  }

  __device__ bool causal(std::int64_t begin, std::int64_t end, bool filled, bool final) const {
    for (std::int64_t t0 = begin; t0 < end; t0 += s_.chunk) {
      const int n = int(s_.chunk < end - t0 ? s_.chunk : end - t0), first = head_.first_visible(t0, n);
      if (first == n && !filled) {
        empty_rows(t0, n);
        continue;
      }
      features(a_, head_, 1, t0, n, x_, x_.k);
      raise_shift(s_, head_, t0, n, x_.k, x_.state.shift, x_.after, x_.factor);
      scale_keys(s_, head_, t0, n, x_.after, x_.k);
      features(a_, head_, 0, t0, n, x_, x_.q);
      scale_queries(n, x_.after);
      load_values(a_, head_, t0, n, x_);
      block_product<A>({n, n, F_, x_.q, F_, 1, x_.k, 1, F_, x_.scores, n, false, true});
      block_product<A>({n, E_, n, x_.scores, n, 1, x_.v, E_, 1, x_.o, E_});
      if (filled) {
        for_elements(n * F_, [&](int i) { x_.spare[i] = x_.q[i] * x_.factor[i % F_]; });
        __syncthreads();
        block_product<A>({n, E_, F_, x_.spare, F_, 1, x_.state.S, E_, 1, x_.o, E_, true});
      }
      finish_chunk(t0, n, filled ? 0 : first, filled);
      if (first == n || (t0 + n == end && !final)) continue;
      absorb(s_, n, x_.k, x_.v, x_.factor, x_.state.S, x_.state.S);
      copy(x_.after, x_.state.shift, F_);
      filled = true;
    }
    return filled;
  }

  /// Rows from `first` on see a key. Those whose denominator is too small are redone in log space.
  __device__ void finish_chunk(std::int64_t t0, int n, int first, bool filled) const {
    auto small = [&](int i) { return s_.map.logarithmic() && i >= first && x_.o[i * E_ + E_ - 1] < A(1) / A(std::int64_t(1) << 60); };
    bool redo = false;
    for_rows(n, [&](int i) {
      if (i < first) empty_row(t0 + i);
      else if (small(i)) redo = true;
      else finish_row(t0 + i, x_.o + i * E_, x_.m[i]);
    });
    if (!__syncthreads_or(redo)) return;
    features(a_, head_, 1, t0, n, x_, x_.spare);
    features(a_, head_, 0, t0, n, x_, x_.q);
    for (int i = 0; i < n; ++i)
      if (small(i)) log_space_row(t0, i, filled);
  }

  /// One row with the exponents of its own keys only; x.spare and x.q hold ln phi of the chunk.
  __device__ void log_space_row(std::int64_t t0, int i, bool filled) const {
    const A *a = x_.q + i * F_, *before = x_.state.shift, *S = x_.state.S;
    A largest = -infinity<A>();
    auto raise = [&](A exponent) { largest = exponent > largest ? exponent : largest; };
    if (filled) for_elements(F_, [&](int r) { raise(a[r] + before[r]); });
    for_elements((i + 1) * F_, [&](int e) {
      if (head_.visible(t0 + e / F_)) raise(a[e % F_] + x_.spare[e]);
    });
    largest = block_max(largest);
    for_rows(i + 1, [&](int j) {
      A p = 0;
      for (int r = lane(); r < F_ && head_.visible(t0 + j); r += kWarp) p += std::exp(a[r] + x_.spare[j * F_ + r] - largest);
      p = warp_sum(p);
      if (lane() == 0) x_.scores[j] = p;
    });
    for_elements(F_, [&](int r) { x_.row[r] = filled ? std::exp(a[r] + before[r] - largest) : A(0); });
    __syncthreads();
    for_elements(E_, [&](int e) {
      A sum = 0;
      for (int j = 0; j <= i; ++j) sum += x_.scores[j] * x_.v[j * E_ + e];
      for (int r = 0; r < F_ && filled; ++r) sum += x_.row[r] * S[r * E_ + e];
      x_.o[i * E_ + e] = sum;
    });
    __syncthreads();
    if (threadIdx.x < kWarp) finish_row(t0 + i, x_.o + i * E_, largest);
    __syncthreads();
  }

  __device__ bool bidirectional(std::int64_t begin, std::int64_t end, bool filled) const {
    for (std::int64_t t0 = begin; t0 < end; t0 += s_.chunk) {
      const int n = int(s_.chunk < end - t0 ? s_.chunk : end - t0);
      if (head_.first_visible(t0, n) == n) continue;
      features(a_, head_, 1, t0, n, x_, x_.k);
      raise_shift(s_, head_, t0, n, x_.k, x_.state.shift, x_.after, x_.factor);
      scale_keys(s_, head_, t0, n, x_.after, x_.k);
      load_values(a_, head_, t0, n, x_);
      absorb(s_, n, x_.k, x_.v, x_.factor, x_.state.S, x_.state.S);
      copy(x_.after, x_.state.shift, F_);
      filled = true;
    }
    for (std::int64_t t0 = begin; t0 < end; t0 += s_.chunk) {
      const int n = int(s_.chunk < end - t0 ? s_.chunk : end - t0);
      if (!filled) {
        empty_rows(t0, n);
        continue;
      }
      features(a_, head_, 0, t0, n, x_, x_.q);
      scale_queries(n, x_.state.shift);
      block_product<A>({n, E_, F_, x_.q, F_, 1, x_.state.S, E_, 1, x_.o, E_});
      for_rows(n, [&](int i) { finish_row(t0 + i, x_.o + i * E_, x_.m[i]); });
      __syncthreads();
    }
    return filled;
  }

  const ForwardArguments<T>& a_;
  const Sizes& s_;
  const ForwardScratch<A>& x_;
  const HeadPlace& head_;
  int F_, E_;
};

/// Outputs, denominators and the final state. A block takes one query head of one batch element and walks its documents and
/// chunks in order, so the running state is its own and nothing is shared between blocks.
template <class T>
__global__ __launch_bounds__(kThreads) void linear_attention_forward_kernel(const __grid_constant__ ForwardArguments<T> a,
                                                                            char* workspace, std::int64_t block_bytes) {
  using A = Accumulator<T>;
  Pieces pieces{workspace + blockIdx.x * block_bytes};
  const ForwardScratch<A> x(pieces, a.s);
  if (blockIdx.x == 0 && threadIdx.x == 0 && !a.s.final_state) *a.final_state = 0;
  for (std::int64_t task = blockIdx.x; task < a.s.B * a.s.Hq; task += gridDim.x) {
    const HeadPlace head(a, task / a.s.Hq, task % a.s.Hq);
    Forward<T>(a, x, head).run();
  }
}

template <class A>
std::int64_t block_bytes(const Sizes& s) {
  Pieces pieces;
  ForwardScratch<A>(pieces, s);
  return pieces.used;
}

}  // namespace

Sizes checked_sizes(Sizes s) {
  constexpr std::int64_t kLargestChunk = 128;
  // a longer chunk changes roundings only, and its scores would fill the memory
  s.chunk = std::min(s.chunk, kLargestChunk);
  if (std::max(s.F, kLargestChunk) * (s.Dv + 2) > INT32_MAX)
    throw ShapeError("[linear_attention] a state of this size is more than a block can index; use smaller heads of v");
  return s;
}

std::int64_t forward_workspace(const Attributes& attributes, std::span<const Meta> inputs) {
  const Sizes s = device_sizes(attributes, inputs);
  const std::int64_t bytes = inputs[kQ].dtype == Dtype::f64 ? block_bytes<double>(s) : block_bytes<float>(s);
  return std::min(s.B * s.Hq, kBlocks) * bytes;
}

void forward(const Call& c) {
  const Sizes s = device_sizes(c.attributes, c.inputs);
  dispatch_floating(c.inputs[kQ].dtype, [&](auto zero) {
    using T = decltype(zero);
    const ForwardArguments<T> arguments(c, s);
    linear_attention_forward_kernel<T><<<unsigned(std::min(s.B * s.Hq, kBlocks)), kThreads, 0, stream()>>>(
        arguments, static_cast<char*>(c.workspace), block_bytes<Accumulator<T>>(s));
    check_launch(kName);
  });
}

}  // namespace hedgehog::cuda::linear_attention_generic

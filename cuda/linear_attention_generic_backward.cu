#include "cuda/linear_attention_generic_backward.cuh"
#include "cuda/partial_sums.cuh"

namespace hedgehog::cuda::linear_attention_generic {
namespace {

/// Query heads of one key head share dk and dv, so a block takes one key head of one batch element and its query heads one
/// after another; sums of the maps' gradients are its own too. No two blocks write to the same place.
template <class T>
__global__ __launch_bounds__(kThreads) void linear_attention_backward_kernel(const __grid_constant__ BackwardArguments<T> a,
                                                                             char* workspace, std::int64_t block_bytes) {
  using A = Accumulator<T>;
  Pieces pieces{workspace + blockIdx.x * block_bytes};
  const BackwardScratch<A> x(pieces, a.s);
  for (std::int64_t task = blockIdx.x; task < a.s.tasks(); task += gridDim.x)
    for (std::int64_t g = 0; g < a.s.group(); ++g) {
      const HeadPlace head(a, task / a.s.Hkv, task % a.s.Hkv * a.s.group() + g);
      Backward<T>(a, x, head).run();
    }
}

template <class T>
void add_batches(const Call& c, int i, const Accumulator<T>* sums, std::int64_t batch) {
  const Ref& out = c.dx[i];
  if (!out) return;
  dispatch_gradient<T>(out, [&](auto zero) {
    using G = decltype(zero);
    add_partials(kName, sums, batch, out.size(), out.as<G>(), adds(c, i));
  });
}

template <class A>
std::int64_t block_bytes(const Sizes& s) {
  Pieces pieces;
  BackwardScratch<A>(pieces, s);
  return pieces.used;
}

}  // namespace

/// From the gradient of the working form to tokens, weight and bias. side 0: queries, 1: keys.
template <class T>
__device__ __noinline__ void Backward<T>::through_map(std::int64_t t0, int n, int side) const {
  const A* const working = side ? x_.dk : x_.dq;
  if (s_.map.normalised() || !logarithmic_) {
    features(a_, head_, side, t0, n, x_, x_.spare);
    if (s_.map.normalised()) for_elements(n * F_, [&](int i) { x_.spare[i] = std::exp(x_.spare[i]); });
    __syncthreads();
  }
  for_rows(n, [&](int i) {
    working_features_backward_warp<A, A>(
        s_.map, width_, [&](int r) { return x_.spare[i * F_ + r]; }, [&](int r) { return working[i * F_ + r]; },
        [&](int r, A g) { x_.du[i * width_ + r] = g; });
  });
  __syncthreads();
  A* const to = side ? (a_.dk ? dkeys(t0) : nullptr) : a_.dq ? x_.dx : nullptr;
  const bool add = side && earlier();
  if (to && a_.weight[0]) {
    block_product<A>({n, D_, width_, x_.du, width_, 1, x_.weight[side], 1, width_, to, D_, add});
  } else if (to) {
    for_elements(n * D_, [&](int i) { to[i] = add ? to[i] + x_.du[i] : x_.du[i]; });
    __syncthreads();
  }
  if (!side && a_.dq) for_elements(n * D_, [&](int i) { a_.dq.put(a_.dq.at(head_.b, t0 + i / D_, head_.h) + i % D_, to[i]); });
  const std::int64_t index = head_.b * s_.Hq + head_.h;
  if (a_.wants_weight[side]) {
    load_rows(side ? a_.k : a_.q, head_.b, t0, side ? head_.hkv : head_.h, n, D_, x_.x, D_);
    __syncthreads();
    block_product<A>({D_, width_, n, x_.x, 1, D_, x_.du, width_, 1, a_.dweight[side] + index * D_ * width_, width_, true});
  }
  if (a_.wants_bias[side])
    for_elements(width_, [&](int r) {
      A sum = 0;
      for (int i = 0; i < n; ++i) sum += x_.du[i * width_ + r];
      a_.dbias[side][index * width_ + r] += sum;
    });
  __syncthreads();
}

template <class T>
__device__ void Backward<T>::causal(std::int64_t begin, std::int64_t end, bool filled, const A* dfinal, A* dinitial) const {
  const std::int64_t chunks = (end - begin + s_.chunk - 1) / s_.chunk;
  const std::int64_t first = forward_states(begin, end, filled, dfinal != nullptr);
  const DeviceState<A> last = x_.state(chunks, s_);
  bool reversed = start_reverse(dfinal, last, first <= chunks);
  for (std::int64_t index = chunks; index-- > 0;) {
    const std::int64_t t0 = begin + index * s_.chunk;
    const int n = tokens(t0, end);
    if (first > index + 1) {
      zero_gradients(t0, n);
      continue;
    }
    const bool goes_on = first <= index;
    chunk_backward(t0, n, x_.state(index, s_), x_.state(index + 1, s_).shift, reversed, goes_on);
    reversed |= goes_on;
  }
  if (dinitial) store_initial(x_.state(0, s_), last.shift, reversed, dinitial);
}

/// `goes_on`: the state before the chunk holds keys.
template <class T>
__device__ void Backward<T>::chunk_backward(std::int64_t t0, int n, const DeviceState<A>& before, const A* after, bool reversed,
                                            bool goes_on) const {
  features(a_, head_, 1, t0, n, x_, x_.k);
  scale_keys(s_, head_, t0, n, after, x_.k);
  features(a_, head_, 0, t0, n, x_, x_.q);
  const bool redo = normalised_queries(t0, n, after, true);
  load_values(a_, head_, t0, n, x_);
  load_gradients(t0, n);
  for_elements(F_, [&](int r) { x_.factor[r] = shift_factor(before.shift[r], after[r]); });
  __syncthreads();
  block_product<A>({n, n, E_, x_.G, E_, 1, x_.v, 1, E_, x_.dscores, n, false, true});
  if (a_.wants[0]) {
    block_product<A>({n, F_, n, x_.dscores, n, 1, x_.k, F_, 1, x_.dq, F_});
    query_working_gradient(t0, n, goes_on ? before.S : nullptr, x_.factor, true);
  }
  if (a_.wants[1]) {
    block_product<A>({n, F_, n, x_.dscores, 1, n, x_.q, F_, 1, x_.dk, F_});
    key_working_gradient(t0, n, reversed, true);
    shift_gradient(n, before.shift, after);
  }
  if (a_.dv) {
    A* const dv = dvalues(t0);
    block_product<A>({n, n, F_, x_.q, F_, 1, x_.k, 1, F_, x_.scores, n, false, true});
    block_product<A>({n, Dv_, n, x_.scores, 1, n, x_.G, E_, 1, dv, Dv_, earlier()});
    if (reversed) block_product<A>({n, Dv_, F_, x_.k, F_, 1, x_.R, E_, 1, dv, Dv_, true});
  }
  if (goes_on) reverse(n, x_.factor);
  if (redo) {
    features(a_, head_, 1, t0, n, x_, x_.spare);
    features(a_, head_, 0, t0, n, x_, x_.q);
    for (int i = 0; i < n; ++i)
      if (x_.redo[i]) log_space_row(t0, i, before, goes_on);
  }
  if (a_.wants[0]) through_map(t0, n, 0);
  if (a_.wants[1]) through_map(t0, n, 1);
  store_keys(t0, n);
}

/// Adds one row that forward made in log space; x.spare and x.q hold ln phi of the chunk, R has the scale of the state before the
/// chunk.
template <class T>
__device__ __noinline__ void Backward<T>::log_space_row(std::int64_t t0, int i, const DeviceState<A>& before, bool goes_on) const {
  const A *a = x_.q + i * F_, *G = x_.G + i * E_;
  const A den = saved(t0 + i);
  for_rows(i + 1, [&](int j) {
    const bool visible = head_.visible(t0 + j);
    A dscore = 0, score = 0;
    for (int e = lane(); e < E_ && visible; e += kWarp) dscore += G[e] * x_.v[j * E_ + e];
    dscore = warp_sum(dscore);
    for (int r = lane(); r < F_ && visible; r += kWarp) {
      const A p = std::exp((a[r] + x_.spare[j * F_ + r]) - den);
      score += p;
      if (a_.wants[1]) x_.dk[j * F_ + r] += dscore * p;
    }
    score = warp_sum(score);
    if (lane() == 0) x_.scores[j] = score, x_.dscores[j] = dscore;
  });
  __syncthreads();
  if (a_.dv) {
    A* const dv = dvalues(t0);
    for_elements((i + 1) * Dv_, [&](int e) { dv[e] += x_.scores[e / Dv_] * G[e % Dv_]; });
  }
  for_rows(F_, [&](int r) {
    A sum = 0;
    for (int j = lane(); j <= i; j += kWarp)
      if (head_.visible(t0 + j)) sum += x_.dscores[j] * std::exp((a[r] + x_.spare[j * F_ + r]) - den);
    if (goes_on) {
      const A p = std::exp((a[r] + before.shift[r]) - den);
      for (int e = lane(); e < E_; e += kWarp) {
        sum += p * before.S[r * E_ + e] * G[e];
        x_.R[r * E_ + e] += p * G[e];
      }
    }
    sum = warp_sum(sum);
    if (lane() == 0 && a_.wants[0]) x_.dq[i * F_ + r] += sum;
  });
  __syncthreads();
}

template <class T>
__device__ void Backward<T>::bidirectional(std::int64_t begin, std::int64_t end, bool filled, const A* dfinal, A* dinitial) const {
  const DeviceState<A> initial = x_.state(0, s_), all = x_.state(1, s_);
  copy(initial.S, all.S, F_ * E_);
  copy(initial.shift, all.shift, F_);
  for (std::int64_t t0 = begin; t0 < end; t0 += s_.chunk) {
    const int n = tokens(t0, end);
    if (head_.first_visible(t0, n) == n) continue;
    features(a_, head_, 1, t0, n, x_, x_.k);
    raise_shift(s_, head_, t0, n, x_.k, all.shift, x_.after, x_.factor);
    scale_keys(s_, head_, t0, n, x_.after, x_.k);
    load_values(a_, head_, t0, n, x_);
    absorb(s_, n, x_.k, x_.v, x_.factor, all.S, all.S);
    copy(x_.after, all.shift, F_);
    filled = true;
  }
  bool reversed = start_reverse(dfinal, all, filled);
  for (std::int64_t t0 = begin; t0 < end; t0 += s_.chunk) {
    const int n = tokens(t0, end);
    if (!filled) {
      zero_gradients(t0, n);
      continue;
    }
    features(a_, head_, 0, t0, n, x_, x_.q);
    normalised_queries(t0, n, all.shift, false);
    load_gradients(t0, n);
    reverse(n, nullptr);
    reversed = true;
    if (!a_.wants[0]) continue;
    query_working_gradient(t0, n, all.S, nullptr, false);
    through_map(t0, n, 0);
  }
  for (std::int64_t t0 = begin; t0 < end && filled; t0 += s_.chunk) {
    const int n = tokens(t0, end);
    features(a_, head_, 1, t0, n, x_, x_.k);
    scale_keys(s_, head_, t0, n, all.shift, x_.k);
    if (a_.dv) block_product<A>({n, Dv_, F_, x_.k, F_, 1, x_.R, E_, 1, dvalues(t0), Dv_, earlier()});
    if (a_.wants[1]) {
      load_values(a_, head_, t0, n, x_);
      key_working_gradient(t0, n, true, false);
      shift_gradient(n, initial.shift, all.shift);
      through_map(t0, n, 1);
    }
    store_keys(t0, n);
  }
  if (!dinitial) return;
  for_elements(F_, [&](int r) { x_.factor[r] = shift_factor(initial.shift[r], all.shift[r]); });
  __syncthreads();
  if (reversed) scale_reverse(x_.factor);
  store_initial(initial, all.shift, reversed, dinitial);
}

std::int64_t backward_workspace(const Attributes& attributes, std::span<const Meta> inputs) {
  const Sizes s = device_sizes(attributes, inputs);
  const bool wide = inputs[kQ].dtype == Dtype::f64;
  const std::int64_t bytes = wide ? block_bytes<double>(s) : block_bytes<float>(s);
  return std::min(s.tasks(), kBlocks) * bytes + 2 * s.B * s.Hq * (s.D + 1) * s.width * (wide ? 8 : 4);
}

void backward(const Call& c) {
  const Sizes s = device_sizes(c.attributes, c.inputs);
  dispatch_floating(c.inputs[kQ].dtype, [&](auto zero) {
    using T = decltype(zero);
    using A = Accumulator<T>;
    const std::int64_t bytes = block_bytes<A>(s), blocks = std::min(s.tasks(), kBlocks);
    char* const workspace = static_cast<char*>(c.workspace);
    const BackwardArguments<T> arguments(c, s, reinterpret_cast<A*>(workspace + blocks * bytes));
    linear_attention_backward_kernel<T><<<unsigned(blocks), kThreads, 0, stream()>>>(arguments, workspace, bytes);
    check_launch(kName);
    for (int side = 0; side < 2; ++side) {
      add_batches<T>(c, kWeightQ + side, arguments.dweight[side], s.B);
      add_batches<T>(c, kBiasQ + side, arguments.dbias[side], s.B);
    }
  });
}

}  // namespace hedgehog::cuda::linear_attention_generic

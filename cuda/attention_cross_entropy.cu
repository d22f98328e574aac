#include "cuda/attention_cross_entropy.cuh"
#include "cuda/early_launch.cuh"

/// Pairs of rows and keys one by one, a lane each, the weights of the student in log space throughout: right for all numbers, sizes and
/// dtypes.
namespace hedgehog::cuda {
namespace attention_cross_entropy {
namespace {

constexpr int kWarps = 4;  // of a block, each with a row or a key of its own

/// A warp has a row, and each lane every 32nd key.
template <class T>
__global__ void __launch_bounds__(kWarps * kWarp) attention_cross_entropy_forward_kernel(const __grid_constant__ Arguments<T> a) {
  using A = Accumulator<T>;
  wait_for_kernels();
  const std::int64_t place = std::int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  if (place >= a.s.B * a.s.T * a.s.Hq) return;
  const Token row(a.s, place);
  A m = -A(INFINITY), sum = 0, cross = 0, own = 0, largest = -A(INFINITY), den = 0;
  const std::int64_t end = a.s.causal ? row.t + 1 : a.s.T;
  for (std::int64_t j = lane; j < end; j += kWarp) {
    if (!same_document(a, row, j) || !is_key(a, row.b, j)) continue;
    const Pair<T> pair(a, row, row.t, j);
    const A next = max(m, pair.score), alpha = std::exp(m - next), e = std::exp(pair.score - next);
    sum = sum * alpha + e, cross = alpha > A(0) ? cross * alpha : A(0), own = own * alpha, m = next;
    if (e > A(0)) cross += e * pair.log_weight, own += e * pair.score;
    if (pair.log_weight == -A(INFINITY)) continue;
    const A most = max(largest, pair.log_weight);
    den = den * std::exp(largest - most) + std::exp(pair.log_weight - most), largest = most;
  }
  const A of_row = warp_max(m), of_weights = warp_max(largest);
  const A alpha = m == -A(INFINITY) ? A(0) : std::exp(m - of_row), beta = largest == -A(INFINITY) ? A(0) : std::exp(largest - of_weights);
  sum = warp_sum(sum * alpha), own = warp_sum(own * alpha), den = warp_sum(den * beta);
  cross = warp_sum(alpha > A(0) ? cross * alpha : A(0));
  if (lane > 0) return;
  const bool sees = of_row != -A(INFINITY);
  a.loss[place] = sees ? (of_weights - cross / sum) + std::log(den) : A(0);
  a.entropy[place] = sees ? (of_row - own / sum) + std::log(sum) : A(0);
  if (!a.saved[0]) return;
  a.saved[0][place] = sees ? of_row : A(INFINITY), a.saved[1][place] = sees ? sum : A(1);
  a.saved[2][place] = sees ? of_weights : A(INFINITY), a.saved[3][place] = sees ? den : A(1);
}

/// Gradients of the features of one token by a warp, as a row (kOfKeys false) or as a key.
template <class T, bool kOfKeys>
__global__ void __launch_bounds__(kWarps * kWarp) attention_cross_entropy_backward_kernel(const __grid_constant__ Arguments<T> a) {
  using A = Accumulator<T>;
  extern __shared__ __align__(16) unsigned char memory[];
  wait_for_kernels();
  const std::int64_t place = std::int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp, lane = threadIdx.x % kWarp, F = a.s.F;
  if (place >= a.s.B * a.s.T * a.s.Hq) return;
  const Token own(a.s, place);
  A* const sums = reinterpret_cast<A*>(memory) + threadIdx.x / kWarp * F;
  for (std::int64_t r = lane; r < F; r += kWarp) sums[r] = 0;
  add_pairs<T, kOfKeys>(a, own, 0, a.s.T, 0, F, sums);
  const Target<A>& to = kOfKeys ? a.dfeatures_k : a.dfeatures_q;
  for (std::int64_t r = lane; r < F; r += kWarp) to.put(place * F + r, sums[r]);
}

unsigned blocks_of(const Sizes& s) { return unsigned((s.B * s.T * s.Hq + kWarps - 1) / kWarps); }

void forward(const Call& c) {
  dispatch_floating(c.inputs[kQ].dtype, [&](auto zero) {
    using T = decltype(zero);
    Arguments<T> a(c);
    a.loss = c.outputs[0].as<Accumulator<T>>(), a.entropy = c.outputs[1].as<Accumulator<T>>();
    if constexpr (std::is_same_v<T, bf16>)
      if (suits_mma(a)) return forward_mma(a, c.workspace);
    launch_early(kName, attention_cross_entropy_forward_kernel<T>, blocks_of(a.s), kWarps * kWarp, 0, a);
  });
}

void backward(const Call& c) {
  dispatch_floating(c.inputs[kQ].dtype, [&](auto zero) {
    using T = decltype(zero);
    Arguments<T> a(c);
    a.dy = c.dy[0].as<const Accumulator<T>>();
    if (c.dx[kFeaturesQ]) a.dfeatures_q = Target<Accumulator<T>>(c, kFeaturesQ);
    if (c.dx[kFeaturesK]) a.dfeatures_k = Target<Accumulator<T>>(c, kFeaturesK);
    if constexpr (std::is_same_v<T, bf16>)
      if (suits_mma(a)) return backward_mma(a, c.workspace);
    const std::size_t bytes = std::size_t(kWarps * a.s.F) * sizeof(Accumulator<T>);
    const auto run = [&](auto kernel) {
      allow_shared_memory(reinterpret_cast<const void*>(kernel), bytes);
      launch_early(kName, kernel, blocks_of(a.s), kWarps * kWarp, bytes, a);
    };
    if (a.dfeatures_q) run(attention_cross_entropy_backward_kernel<T, false>);
    if (a.dfeatures_k) run(attention_cross_entropy_backward_kernel<T, true>);
  });
}

}  // namespace
}  // namespace attention_cross_entropy

void register_attention_cross_entropy(KernelTable& table) {
  namespace ace = attention_cross_entropy;
  table["attention_cross_entropy"] = {ace::forward, ace::backward, ace::mma_bytes, ace::mma_bytes};
}

}  // namespace hedgehog::cuda

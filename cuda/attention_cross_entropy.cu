#include "cuda/early_launch.cuh"
#include "cuda/packet.cuh"
#include "ops/attention_cross_entropy_sizes.h"

/// Pairs of rows and keys one by one, a lane each, the weights of the student in log space throughout: right for all numbers, sizes and
/// dtypes.
namespace hedgehog::cuda {
namespace {

using namespace attention_cross_entropy_detail;

constexpr const char* kName = "attention_cross_entropy";
constexpr int kWarps = 4;  // of a block, each with a row or a key of its own
constexpr unsigned kAll = 0xffffffffu;

template <class T>
struct Arguments {
  using A = Accumulator<T>;
  Sizes s;
  Heads<const T> q, k;
  Heads<const A> features_q, features_k;
  const std::int32_t *document_start, *mask;  // (B, T), or null
  A *loss, *entropy;
  A* saved[4];  // largest score, sum, largest ln A, sum; null where nothing is kept
  const A* dy;
  Target<A> dfeatures_q, dfeatures_k;

  explicit Arguments(const Call& c)
      : s(sizes_of(c.attributes, c.inputs)), q(kName, c.inputs[kQ]), k(kName, c.inputs[kK]), features_q(kName, c.inputs[kFeaturesQ]),
        features_k(kName, c.inputs[kFeaturesK]), document_start(c.inputs[kDocumentStart].as<const std::int32_t>()),
        mask(c.inputs[kMask].as<const std::int32_t>()) {
    for (std::size_t i = 0; i < 4; ++i) saved[i] = c.saved[i].as<A>();
  }
};

/// A row or a key by its place in (B, T, Hq).
struct Token {
  std::int64_t at, b, t, h, hkv;

  __device__ __forceinline__ Token(const Sizes& s, std::int64_t place) : at(place) {
    const std::int64_t token = quotient(place, s.Hq);
    h = place - token * s.Hq, b = quotient(token, s.T), t = token - b * s.T, hkv = quotient(h, s.Hq / s.Hkv);
  }
};

/// What goes with the pair of row i and key j of one batch element and head.
template <class T>
struct Pair {
  using A = Accumulator<T>;
  A score, log_weight;

  __device__ __forceinline__ Pair(const Arguments<T>& a, const Token& of, std::int64_t i, std::int64_t j) {
    const T *const q = a.q.at(of.b, i, of.h), *const k = a.k.at(of.b, j, of.hkv);
    A sum = 0;
    for (std::int64_t d = 0; d < a.s.D; ++d) sum += load(q + d) * load(k + d);
    score = A(a.s.scale) * sum;
    const A *const x = a.features_q.at(of.b, i, of.h), *const y = a.features_k.at(of.b, j, of.h);
    sum = 0;
    if (!a.s.logarithmic) {
      for (std::int64_t r = 0; r < a.s.F; ++r) sum += x[r] * y[r];
      log_weight = std::log(sum);
      return;
    }
    A largest = -A(INFINITY);
    for (std::int64_t r = 0; r < a.s.F; ++r) largest = max(largest, x[r] + y[r]);
    for (std::int64_t r = 0; r < a.s.F; ++r) sum += std::exp(x[r] + y[r] - largest);
    log_weight = largest + std::log(sum);
  }
  /// Gradient of ln A over that of the row's loss: a - p.
  __device__ __forceinline__ A gradient(const Arguments<T>& a, std::int64_t row) const {
    return std::exp(log_weight - a.saved[2][row]) / a.saved[3][row] - std::exp(score - a.saved[0][row]) / a.saved[1][row];
  }
};

/// Tokens of the document of token t; of keys masked ones are left out.
template <class T>
__device__ __forceinline__ bool same_document(const Arguments<T>& a, const Token& of, std::int64_t other) {
  return !a.document_start || a.document_start[of.b * a.s.T + other] == a.document_start[of.b * a.s.T + of.t];
}
template <class T>
__device__ __forceinline__ bool is_key(const Arguments<T>& a, std::int64_t b, std::int64_t j) {
  return !a.mask || a.mask[b * a.s.T + j] != 0;
}

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
    sum = sum * alpha + e, cross = cross * alpha, own = own * alpha, m = next;
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

/// Gradients of the features of one token by a warp: as a row (kOfKeys false) over its keys, or as a key over its rows. Each lane makes the
/// coefficient of one pair of 32, then all take in pair after pair, with every 32nd feature each.
template <class T, bool kOfKeys>
__global__ void __launch_bounds__(kWarps * kWarp) attention_cross_entropy_backward_kernel(const __grid_constant__ Arguments<T> a) {
  using A = Accumulator<T>;
  extern __shared__ __align__(16) unsigned char memory[];
  wait_for_kernels();
  const std::int64_t place = std::int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp, lane = threadIdx.x % kWarp, F = a.s.F, T_ = a.s.T;
  if (place >= a.s.B * T_ * a.s.Hq) return;
  const Token own(a.s, place);
  A* const sums = reinterpret_cast<A*>(memory) + threadIdx.x / kWarp * F;
  for (std::int64_t r = lane; r < F; r += kWarp) sums[r] = 0;
  const Heads<const A>&mine = kOfKeys ? a.features_k : a.features_q, &others = kOfKeys ? a.features_q : a.features_k;
  const A* const x = mine.at(own.b, own.t, own.h);
  const std::int64_t first = kOfKeys && a.s.causal ? own.t : 0, end = !kOfKeys && a.s.causal ? own.t + 1 : T_;
  const bool counts = !kOfKeys || is_key(a, own.b, own.t);
  for (std::int64_t begin = first; begin < end && counts; begin += kWarp) {
    const std::int64_t other = begin + lane;
    A coefficient = 0, log_weight = 0;
    if (other < end && same_document(a, own, other) && (kOfKeys || is_key(a, own.b, other))) {
      const Pair<T> pair(a, own, kOfKeys ? other : own.t, kOfKeys ? own.t : other);
      const std::int64_t row = kOfKeys ? (own.b * T_ + other) * a.s.Hq + own.h : place;
      coefficient = a.dy[row] * pair.gradient(a, row), log_weight = pair.log_weight;
    }
    for (int i = 0; i < int(kWarp); ++i) {
      const A c = __shfl_sync(kAll, coefficient, i), w = __shfl_sync(kAll, log_weight, i);
      if (c == A(0)) continue;
      const A* const y = others.at(own.b, begin + i, own.h);
      for (std::int64_t r = lane; r < F; r += kWarp) sums[r] += a.s.logarithmic ? c * std::exp(x[r] + y[r] - w) : c * y[r] * std::exp(-w);
    }
  }
  const Target<A>& to = kOfKeys ? a.dfeatures_k : a.dfeatures_q;
  for (std::int64_t r = lane; r < F; r += kWarp) to.put(place * F + r, sums[r]);
}

unsigned blocks_of(const Sizes& s) { return unsigned((s.B * s.T * s.Hq + kWarps - 1) / kWarps); }

void forward(const Call& c) {
  dispatch_floating(c.inputs[kQ].dtype, [&](auto zero) {
    using T = decltype(zero);
    Arguments<T> a(c);
    a.loss = c.outputs[0].as<Accumulator<T>>(), a.entropy = c.outputs[1].as<Accumulator<T>>();
    launch_early(kName, attention_cross_entropy_forward_kernel<T>, blocks_of(a.s), kWarps * kWarp, 0, a);
  });
}

void backward(const Call& c) {
  dispatch_floating(c.inputs[kQ].dtype, [&](auto zero) {
    using T = decltype(zero);
    Arguments<T> a(c);
    a.dy = c.dy[0].as<const Accumulator<T>>();
    const std::size_t bytes = std::size_t(kWarps * a.s.F) * sizeof(Accumulator<T>);
    const auto run = [&](auto kernel) {
      allow_shared_memory(reinterpret_cast<const void*>(kernel), bytes);
      launch_early(kName, kernel, blocks_of(a.s), kWarps * kWarp, bytes, a);
    };
    if (c.dx[kFeaturesQ]) {
      a.dfeatures_q = Target<Accumulator<T>>(c, kFeaturesQ);
      run(attention_cross_entropy_backward_kernel<T, false>);
    }
    if (c.dx[kFeaturesK]) {
      a.dfeatures_k = Target<Accumulator<T>>(c, kFeaturesK);
      run(attention_cross_entropy_backward_kernel<T, true>);
    }
  });
}

}  // namespace

void register_attention_cross_entropy(KernelTable& table) { table["attention_cross_entropy"] = {forward, backward}; }

}  // namespace hedgehog::cuda

#pragma once
#include "cuda/packet.cuh"
#include "ops/attention_cross_entropy_sizes.h"

/// What the kernels of attention_cross_entropy share: a call, and pairs of a row and a key in log space, right for all numbers.
namespace hedgehog::cuda::attention_cross_entropy {

using namespace attention_cross_entropy_detail;

constexpr const char* kName = "attention_cross_entropy";
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

/// Adds to sums, of features `first` to `last` - 1 of one token, what they get from the pairs with the others `begin` to `end` - 1: as a
/// row (kOfKeys false) from keys, as a key from rows. By a warp: each lane makes the coefficient of one pair of 32, then all take in pair
/// after pair, with every 32nd feature each.
template <class T, bool kOfKeys>
__device__ void add_pairs(const Arguments<T>& a, const Token& own, std::int64_t begin, std::int64_t end, std::int64_t first, std::int64_t last,
                          Accumulator<T>* sums) {
  using A = Accumulator<T>;
  const std::int64_t lane = threadIdx.x % kWarp;
  const Heads<const A>&mine = kOfKeys ? a.features_k : a.features_q, &others = kOfKeys ? a.features_q : a.features_k;
  const A* const x = mine.at(own.b, own.t, own.h);
  if (kOfKeys && !is_key(a, own.b, own.t)) return;
  if (a.s.causal && kOfKeys && begin < own.t) begin = own.t;
  if (a.s.causal && !kOfKeys && end > own.t + 1) end = own.t + 1;
  for (; begin < end; begin += kWarp) {
    const std::int64_t other = begin + lane;
    A coefficient = 0, log_weight = 0;
    if (other < end && same_document(a, own, other) && (kOfKeys || is_key(a, own.b, other))) {
      const Pair<T> pair(a, own, kOfKeys ? other : own.t, kOfKeys ? own.t : other);
      const std::int64_t row = kOfKeys ? (own.b * a.s.T + other) * a.s.Hq + own.h : own.at;
      coefficient = a.dy[row] * pair.gradient(a, row), log_weight = pair.log_weight;
    }
    for (int i = 0; i < int(kWarp); ++i) {
      const A c = __shfl_sync(kAll, coefficient, i), w = __shfl_sync(kAll, log_weight, i);
      if (c == A(0)) continue;
      const A* const y = others.at(own.b, begin + i, own.h);
      for (std::int64_t r = first + lane; r < last; r += kWarp) sums[r - first] += a.s.logarithmic ? c * std::exp(x[r] + y[r] - w) : c * y[r] * std::exp(-w);
    }
  }
}

/// Tensor-core kernels: bf16 q and k with vectors on 16-byte boundaries, D a multiple of 16 up to 128, F up to 256, and tiles that fit the
/// shared memory of a block (heads of 64 with 128 features take 84 KiB).
bool suits_mma(const Arguments<bf16>& a);
void forward_mma(const Arguments<bf16>& a, void* workspace);
void backward_mma(const Arguments<bf16>& a, void* workspace);
/// Workspace of either pass, 0 where the shapes do not suit.
std::int64_t mma_bytes(const Attributes& attributes, std::span<const Meta> inputs);

}  // namespace hedgehog::cuda::attention_cross_entropy

#include "cuda/linear_attention_large_tile.cuh"

/// Rows whose denominator later keys of their chunk have pushed below 2^-60 in the scale of the chunk, in log space by plain sums.
/// Where there is no such row, which is nearly always, all blocks end at once.
namespace hedgehog::cuda::linear_attention_large {
namespace {

template <int kD>
struct RareMemory {
  static constexpr int kWarps = kD / 16;
  float keys[kD][kD], queries[kD][kD];  // u of the keys, and of the rare rows
  float weights[kWarps][2 * kD];        // of the state's rows
  signed char rows[kD];
  bool rare[kD];
};

/// u of the chunk's keys and rare rows. False, for all threads, if there are none.
template <int kD>
__device__ __forceinline__ bool fill(RareMemory<kD>& m, const Arguments& p, const Chunk& at) {
  const Sequence& s = p.s;
  const int thread = int(threadIdx.x);
  __syncthreads();  // all are done with another chunk's
  unsigned any = 0;
  for (int w = 0; w < kD / 16; ++w) any |= p.redo[at.slot * (kD / 16) + w];
  if (!any) return false;
  if (thread < kD) {
    m.rare[thread] = p.redo[at.slot * (kD / 16) + thread / 16] >> thread % 16 & 1;
    m.rows[thread] = document_row(s, at.b, at.t0, thread);
  }
  __syncthreads();
  for (int i = thread; i < 2 * at.count * kD; i += 2 * kD) {
    const bool of_query = i >= at.count * kD;
    const int row = i / kD - (of_query ? at.count : 0), e = i % kD;
    if (of_query && !m.rare[row]) continue;
    const bf16* const x = of_query ? s.q.at(at.b, at.t0 + row, at.h) : s.k.at(at.b, at.t0 + row, at.h);
    const bf16* const weight = (of_query ? s.weight_q : s.weight_k) + at.h * kD * kD + e;
    float sum = 0;
    for (int d = 0; d < kD; ++d) sum += __bfloat162float(x[d]) * __bfloat162float(weight[d * kD]);
    (of_query ? m.queries : m.keys)[row][e] = sum * kLog2e;
  }
  __syncthreads();
  return true;
}

/// o and the logarithm of its denominator, one row a warp; a lane has every 32nd column.
template <int kD>
__device__ __forceinline__ void redo_forward(RareMemory<kD>& m, const Arguments& p, const Chunk& at) {
  constexpr int kWarps = kD / 16, kEach = kD / 32;
  const Sequence& s = p.s;
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
  const float* const before = p.shifts.after + (at.slot - 1) * 2 * kD;
  for (int i = warp; i < at.count; i += kWarps) {
    if (!m.rare[i]) continue;
    const bool sees = at.chunk > 0 && m.rows[i] < 0;
    const int first = m.rows[i] < 0 ? 0 : m.rows[i];
    const float* const a = m.queries[i];
    float largest = -INFINITY;
    for (int e = lane; e < kD; e += 32) {
      for (int j = first; j <= i; ++j) largest = fmaxf(largest, fabsf(a[e] + m.keys[j][e]));
      if (sees) largest = fmaxf(largest, fmaxf(before[e] + a[e], before[kD + e] - a[e]));
    }
    largest = warp_max(largest);
    float o[kEach] = {}, den = 0;
    for (int j = first; j <= i; ++j) {
      float score = 0;
      for (int e = lane; e < kD; e += 32) score += exp2_fast(a[e] + m.keys[j][e] - largest) + exp2_fast(-a[e] - m.keys[j][e] - largest);
      score = warp_sum(score);
      den += score;
      const bf16* const v = s.v.at(at.b, at.t0 + j, at.h);
      for (int x = 0; x < kEach; ++x) o[x] += score * __bfloat162float(v[lane + 32 * x]);
    }
    if (sees) {
      float* const weights = m.weights[warp];
      for (int r = lane; r < 2 * kD; r += 32) weights[r] = exp2_fast((r < kD ? a[r] : -a[r - kD]) + before[r] - largest);
      __syncwarp();
      const bf16* const S = p.sums.S + at.slot * 2 * kD * kD;
      for (int r = 0; r < 2 * kD; ++r) {
        den += weights[r] * p.sums.z[at.slot * 2 * kD + r];
        for (int x = 0; x < kEach; ++x) o[x] += weights[r] * __bfloat162float(S[r * kD + lane + 32 * x]);
      }
      __syncwarp();
    }
    for (int x = 0; x < kEach; ++x) p.o.put(p.o.at(at.b, at.t0 + i, at.h) + lane + 32 * x, o[x] / den);
    if (lane == 0 && p.saved) p.saved[(at.b * s.T + at.t0 + i) * s.H + at.h] = (largest + log2f(den)) * kLn2;
  }
}

/// What pairs of a rare row and a key of its chunk add: to du of the row, one row a warp; or to du of the key and to dv, one key a warp.
template <int kD, bool kKeys>
__device__ __forceinline__ void add_backward(RareMemory<kD>& m, const Arguments& p, const Chunk& at) {
  constexpr int kWarps = kD / 16, kEach = kD / 32;
  const Sequence& s = p.s;
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
  for (int own = warp; own < at.count; own += kWarps) {
    float du[kEach] = {}, dv[kEach] = {};
    bool any = false;
    for (int other = kKeys ? own : 0; other < (kKeys ? at.count : own + 1); ++other) {
      const int i = kKeys ? other : own, j = kKeys ? own : other;
      if (!m.rare[i] || j < m.rows[i]) continue;
      any = true;
      const bf16 *const v = s.v.at(at.b, at.t0 + j, at.h), *const dy = p.dy.at(at.b, at.t0 + i, at.h);
      const float den = p.saved[(at.b * s.T + at.t0 + i) * s.H + at.h] * kLog2e;
      float score = 0, dscore = 0, difference[kEach];
#pragma unroll
      for (int x = 0; x < kEach; ++x) {
        const int e = lane + 32 * x;
        const float u = m.queries[i][e] + m.keys[j][e], plus = exp2_fast(u - den), minus = exp2_fast(-u - den);
        score += plus + minus, difference[x] = plus - minus;
        dscore += __bfloat162float(dy[e]) * __bfloat162float(v[e]);
      }
      score = warp_sum(score);
      dscore = warp_sum(dscore) + p.delta[at.index * s.T + at.t0 + i];
#pragma unroll
      for (int x = 0; x < kEach; ++x) {
        du[x] += dscore * difference[x];
        if (kKeys) dv[x] += score * __bfloat162float(dy[lane + 32 * x]);
      }
    }
    if (!any) continue;
    HeadsTarget<bf16> to_du = p.du, to_dv = p.dv;
    to_du.adds = to_dv.adds = true;
#pragma unroll
    for (int x = 0; x < kEach; ++x) {
      to_du.put(to_du.at(at.b, at.t0 + own, at.h) + lane + 32 * x, du[x]);
      if (kKeys && to_dv) to_dv.put(to_dv.at(at.b, at.t0 + own, at.h) + lane + 32 * x, dv[x]);
    }
  }
}

struct RareArguments {
  Arguments p;
  unsigned slots;  // B H chunks
};
template <int kD, Rare kWhat>
__global__ void __launch_bounds__(2 * kD) linear_attention_large_rare_kernel(const __grid_constant__ RareArguments a) {
  RareMemory<kD>& m = *reinterpret_cast<RareMemory<kD>*>(shared_bytes());
  wait_for_kernels();
  if (*a.p.any_redo == 0) return;
  for (unsigned slot = blockIdx.x; slot < a.slots; slot += gridDim.x) {
    const Chunk at(a.p.s, kD, slot);
    if (!fill(m, a.p, at)) continue;
    if constexpr (kWhat == Rare::forward) redo_forward<kD>(m, a.p, at);
    else add_backward<kD, kWhat == Rare::keys>(m, a.p, at);
  }
}

template <int kD>
void run(const Arguments& p, Rare what, unsigned slots) {
  constexpr unsigned kBlocks = 264;
  const auto kernel = what == Rare::forward   ? linear_attention_large_rare_kernel<kD, Rare::forward>
                      : what == Rare::queries ? linear_attention_large_rare_kernel<kD, Rare::queries>
                                              : linear_attention_large_rare_kernel<kD, Rare::keys>;
  launch(kernel, std::min(slots, kBlocks), 2 * kD, sizeof(RareMemory<kD>), RareArguments{p, slots});
}

}  // namespace

void add_rare_rows(const Arguments& p, Rare what, std::int64_t batch, int D) {
  const unsigned slots = unsigned(batch * p.s.H * p.s.chunks);
  if (D == 128) run<128>(p, what, slots);
  else run<96>(p, what, slots);
}

}  // namespace hedgehog::cuda::linear_attention_large

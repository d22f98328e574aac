#include "cuda/linear_attention_mma_bidirectional.cuh"

namespace hedgehog::cuda::linear_attention_mma {
namespace {

struct KeysArguments {
  Sequence s;
  SumSlots parts;
};

template <int kD>
struct KeySumsMemory {
  static constexpr int kTile = kD * kD;
  bf16 weight_k[kTile];            // (D, D')
  bf16 k[2][kTile], v[2][kTile];   // (chunk, D), of this chunk and the next
  FeatureRows<kD> features;
};
static_assert(3 * (sizeof(KeySumsMemory<64>) + 1024) <= 228 * 1024, "three blocks a multiprocessor");

/// S, z and the shift of the keys of one segment, one block a segment. A warp makes 16 features of either sign by feature, so that they
/// are operands of its rows of S where they are.
template <int kD>
__global__ void __launch_bounds__(2 * kD, kD == 64 ? 3 : 8) linear_attention_key_sums_kernel(const __grid_constant__ KeysArguments p) {
  constexpr int kSteps = kD / 16;
  KeySumsMemory<kD>& m = *reinterpret_cast<KeySumsMemory<kD>*>(shared_bytes());
  const Sequence& s = p.s;
  const Lanes<kD> l;
  const Walk walk(s);
  wait_for_kernels();
  const auto load = [&](int chunk) {
    const std::int64_t t0 = std::int64_t(chunk) * kD;
    load_rows<kD>(m.k[chunk & 1], s.k.at(walk.b, t0, walk.h), s.k.token, s.T - t0, s.vector, l);
    load_rows<kD>(m.v[chunk & 1], s.v.at(walk.b, t0, walk.h), s.v.token, s.T - t0, s.vector, l);
  };

  load_rows<kD>(m.weight_k, s.weight_k + walk.h * kD * kD, kD, kD, s.vector, l);
  load(walk.begin);
  KeyState<kD> state;
  state.clear();
  for (int chunk = walk.begin; chunk < walk.end; ++chunk) {
    const std::int64_t left = s.T - std::int64_t(chunk) * kD;
    wait_all_copies();
    __syncthreads();  // the chunk is here; all are done with the one before
    if (chunk + 1 < walk.end) load(chunk + 1);

    unsigned phi[2][kSteps][4];
    {
      float u[kD / 8][4] = {}, after[2][2], factor[2][2];
      multiply<kD>(u, [&](unsigned(&a)[4], int k) { l.a_transposed(a, m.weight_k, 16 * l.warp, k); },
                   [&](unsigned(&b)[4], int n, int k) { l.b(b, m.k[chunk & 1], n, k); });
      const auto keep = [&](int sign, const unsigned(&of)[kD / 8][2]) {
#pragma unroll
        for (int k = 0; k < kSteps; ++k)
#pragma unroll
          for (int e = 0; e < 4; ++e) phi[sign][k][e] = of[2 * k + e / 2][e % 2];
      };
      if (left >= kD) features_of<true>(u, kD, -1, state.shift, after, factor, m.features, keep, l);
      else features_of<false>(u, int(left), -1, state.shift, after, factor, m.features, keep, l);
      __syncwarp();
      // shifts seldom move once a walk is on its way
      const bool moved = factor[0][0] != 1 || factor[0][1] != 1 || factor[1][0] != 1 || factor[1][1] != 1;
      if (__any_sync(0xffffffffu, moved)) state.sums.scale(factor);
#pragma unroll
      for (int sign = 0; sign < 2; ++sign)
#pragma unroll
        for (int x = 0; x < 2; ++x) {
          state.shift[sign][x] = after[sign][x];
          state.sums.z[sign][x] += m.features.added[sign * kD + l.row + 8 * x];
        }
    }
#pragma unroll
    for (int k = 0; k < kSteps; ++k)
#pragma unroll
      for (int n = 0; n < kD / 8; n += 2) {
        unsigned b[4];
        l.b_transposed(b, m.v[chunk & 1], 8 * n, 16 * k);
#pragma unroll
        for (int sign = 0; sign < 2; ++sign) {
          multiply_add(state.sums.S[sign][n], phi[sign][k], b[0], b[1]);
          multiply_add(state.sums.S[sign][n + 1], phi[sign][k], b[2], b[3]);
        }
      }
  }
  state.sums.store(p.parts, walk.slot, l);
  if (l.column == 0)
    for (int sign = 0; sign < 2; ++sign)
      for (int x = 0; x < 2; ++x) p.parts.shift[walk.slot * 2 * kD + sign * kD + l.row + 8 * x] = state.shift[sign][x];
}

struct TotalsArguments {
  SumSlots parts;
  Totals totals;
  std::int64_t heads, segments;  // heads: B H
  int D, features;
};

/// The parts of all segments in one, and rounded; one thread has two columns of a row.
__global__ void linear_attention_totals_kernel(const __grid_constant__ TotalsArguments p) {
  const std::int64_t i = std::int64_t(blockIdx.x) * 256 + threadIdx.x, row = i / (p.D / 2);
  wait_for_kernels();
  if (row >= p.heads * p.features) return;
  const int column = int(i % (p.D / 2)) * 2;
  const std::int64_t step = p.features, first = row / step * p.segments * step + row % step;  // rows of parts
  const bool scaled = p.parts.shift != nullptr;
  float shift = -INFINITY;
  if (scaled)
    for (std::int64_t g = 0; g < p.segments; ++g) shift = fmaxf(shift, p.parts.shift[first + g * step]);
  float2 sum{0, 0};
  float z = 0;
#pragma unroll 4
  for (std::int64_t g = 0; g < p.segments; ++g) {
    const std::int64_t at = first + g * step;
    const float2 pair = *reinterpret_cast<const float2*>(p.parts.S + at * p.D + column);
    const float factor = scaled ? exp2_fast(p.parts.shift[at] - shift) : 1.0f;
    sum.x += factor * pair.x, sum.y += factor * pair.y;
    z += factor * p.parts.z[at];
  }
  *reinterpret_cast<unsigned*>(p.totals.S + row * p.D + column) = pack(sum.x, sum.y);
  if (column > 0) return;
  p.totals.z[row] = z;
  if (scaled) p.totals.shift[row] = shift;
}

}  // namespace

void sum_keys(const Sequence& s, const SumSlots& parts, std::int64_t batch, int D) {
  const std::int64_t blocks = batch * s.H * s.segments;
  const KeysArguments p{s, parts};
  if (D == 64) launch(linear_attention_key_sums_kernel<64>, blocks, 128, sizeof(KeySumsMemory<64>), p);
  else launch(linear_attention_key_sums_kernel<32>, blocks, 64, sizeof(KeySumsMemory<32>), p);
}

void sum_segments(const SumSlots& parts, const Totals& totals, std::int64_t heads, std::int64_t segments, int D, int features) {
  const std::int64_t threads = heads * features * (D / 2);
  launch(linear_attention_totals_kernel, (threads + 255) / 256, 256, 0, TotalsArguments{parts, totals, heads, segments, D, features});
}

}  // namespace hedgehog::cuda::linear_attention_mma

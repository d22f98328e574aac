#include "cuda/linear_attention_mma_call.cuh"

namespace hedgehog::cuda::linear_attention_mma {
namespace {

struct LogSumsArguments {
  Sequence s;
  int blocks;  // of queries, and as many of keys
};

/// Chunks of a block.
constexpr int kLength = 8;

template <int kD>
struct LogSumsMemory {
  static constexpr int kTile = kD * kD;
  bf16 weight[kTile];  // (D, D')
  bf16 x[2][kTile];    // (chunk, D), of this chunk and the next
};

/// What normalises the features of each token of one batch element and head. Once the weight is there, warps go their own ways, each
/// with 16 rows of a chunk. Queries first, unless none are wanted.
template <int kD>
__global__ void __launch_bounds__(2 * kD, kD == 64 ? 6 : 12) linear_attention_log_sums_kernel(const __grid_constant__ LogSumsArguments p) {
  LogSumsMemory<kD>& m = *reinterpret_cast<LogSumsMemory<kD>*>(shared_bytes());
  const Sequence& s = p.s;
  const Lanes<kD> l;
  wait_for_kernels();
  const Of of = s.map.joint || int(blockIdx.x) >= p.blocks ? kOfKeys : kOfQueries;
  const int block = int(blockIdx.x) % p.blocks, pieces = (s.chunks + kLength - 1) / kLength;
  const int index = block / pieces, begin = block % pieces * kLength, end = min(begin + kLength, s.chunks);
  const std::int64_t b = index / s.H, h = index % s.H, step = of == kOfKeys ? s.k.token : s.q.token;
  const auto load = [&](int chunk) {
    const std::int64_t t0 = std::int64_t(chunk) * kD;
    load_rows<kD>(m.x[chunk & 1], of == kOfKeys ? s.k.at(b, t0, h) : s.q.at(b, t0, h), step, s.T - t0, s.vector, l);
  };
  load_weight<kD, true>(m.weight, of == kOfKeys ? s.weight_k : s.weight_q, h, s.vector, l);
  load(begin);
  wait_all_copies();
  __syncthreads();

  for (int chunk = begin; chunk < end; ++chunk) {
    wait_all_copies();
    __syncwarp();  // the warp's rows are here; it is done with those before
    if (chunk + 1 < end) load(chunk + 1);
    float u[kD / 8][4], top[2][2] = {{-INFINITY, -INFINITY}, {-INFINITY, -INFINITY}}, sum[2][2] = {};
    start_by_token<true>(u, bias_of<true>(s.map, of, h, kD), l.column);
    multiply<kD>(u, [&](unsigned(&a)[4], int k) { l.a(a, m.x[chunk & 1], 16 * l.warp, k); },
                 [&](unsigned(&w)[4], int n, int k) { l.b_transposed(w, m.weight, n, k); });
#pragma unroll
    for (int n = 0; n < kD / 8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        u[n][e] *= s.map.scale;
        top[0][e / 2] = fmaxf(top[0][e / 2], u[n][e]);
        top[1][e / 2] = fmaxf(top[1][e / 2], -u[n][e]);
      }
#pragma unroll
    for (int x = 0; x < 2; ++x) {
      const float plus = row_max(top[0][x]), minus = row_max(top[1][x]);
      top[0][x] = s.map.joint ? fmaxf(plus, minus) : plus, top[1][x] = s.map.joint ? top[0][x] : minus;
    }
#pragma unroll
    for (int n = 0; n < kD / 8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        sum[0][e / 2] += exp2_fast(u[n][e] - top[0][e / 2]);
        sum[1][e / 2] += exp2_fast(-u[n][e] - top[1][e / 2]);
      }
    sum_rows(sum, s.map.joint);
#pragma unroll
    for (int x = 0; x < 2; ++x) {
      const std::int64_t t = std::int64_t(chunk) * kD + l.row + 8 * x;
      if (l.column != 0 || t >= s.T) continue;
#pragma unroll
      for (int sign = 0; sign < 2; ++sign)
        *s.map.log_sum(of, sign, index, t) = top[sign][x] + log2f(sum[sign][x]);
    }
  }
}

template <int kD>
void run(const Sequence& s, std::int64_t batch) {
  const std::int64_t blocks = batch * s.H * ((s.chunks + kLength - 1) / kLength);
  launch(linear_attention_log_sums_kernel<kD>, s.map.joint ? blocks : 2 * blocks, 2 * kD, sizeof(LogSumsMemory<kD>),
         LogSumsArguments{s, int(blocks)});
}

}  // namespace

void make_log_sums(const Sequence& s, std::int64_t batch, int D) {
  if (D == 64) run<64>(s, batch);
  else run<32>(s, batch);
}

}  // namespace hedgehog::cuda::linear_attention_mma

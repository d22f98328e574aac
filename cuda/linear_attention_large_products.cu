#include "cuda/linear_attention_large_tile.cuh"

namespace hedgehog::cuda::linear_attention_large {
namespace {

template <int kD>
struct ProductMemory {
  static constexpr int kTile = PaddedLanes<kD>::kTile;
  bf16 weight[kTile];        // (D, D')
  bf16 x[kTile], du[kTile];  // (chunk, D) and (chunk, D')
};
static_assert(2 * (sizeof(ProductMemory<128>) + 1024) <= 228 * 1024, "two blocks a multiprocessor");

/// dx = du W^T, and the part of dweight = sum x^T du of a range of chunks of one batch element and head. A warp has 16 tokens for the
/// one, 16 rows of the weight for the other. dx may take du's place.
template <int kD>
__global__ void __launch_bounds__(2 * kD, 2) linear_attention_large_products_kernel(const __grid_constant__ ProductArguments p) {
  constexpr int kSteps = kD / 16;
  ProductMemory<kD>& m = *reinterpret_cast<ProductMemory<kD>*>(shared_bytes());
  const PaddedLanes<kD> l;
  wait_for_kernels();
  const std::int64_t index = blockIdx.x / unsigned(p.ranges), b = index / p.H, h = index % p.H;
  const int range = int(blockIdx.x % unsigned(p.ranges));
  const int begin = range * p.range_chunks, end = begin + p.range_chunks < p.chunks ? begin + p.range_chunks : p.chunks;
  load_tile<kD>(m.weight, p.weight + h * kD * kD, kD, kD, p.vector, l);
  float dweight[kD / 8][4] = {};
  for (int chunk = begin; chunk < end; ++chunk) {
    const std::int64_t t0 = std::int64_t(chunk) * kD, left = p.T - t0;
    const int count = left < kD ? int(left) : kD;
    load_tile<kD>(m.x, p.x.at(b, t0, h), p.x.token, count, p.vector, l);
    load_tile<kD>(m.du, static_cast<const bf16*>(p.du.data) + p.du.at(b, t0, h), p.du.token, count, true, l);
    wait_all_copies();
    __syncthreads();  // all is here
    if (p.dx.data) {
#pragma unroll
      for (int slice = 0; slice < kD / 32; ++slice) {
        float dx[4][4] = {};
        multiply<kD>(dx, [&](unsigned(&a)[4], int k) { l.a(a, m.du, 16 * l.warp, k); },
                     [&](unsigned(&b)[4], int n, int k) { l.b(b, m.weight, 32 * slice + n, k); });
        store_rows<kD>(p.dx, p.dx.at(b, t0, h) + 32 * slice, dx, count, l);
      }
    }
    if (p.dweight) {
#pragma unroll
      for (int k = 0; k < kSteps; ++k) {
        unsigned a[4];
        l.a_transposed(a, m.x, 16 * l.warp, 16 * k);
        multiply_step(dweight, a, [&](unsigned(&b)[4], int n) { l.b_transposed(b, m.du, n, 16 * k); });
      }
    }
    __syncthreads();  // all are done with x and du
  }
  if (!p.dweight) return;
  float* const to = p.dweight + std::int64_t(blockIdx.x) * kD * kD;
#pragma unroll
  for (int n = 0; n < kD / 8; ++n)
#pragma unroll
    for (int x = 0; x < 2; ++x)
      *reinterpret_cast<float2*>(to + (l.row + 8 * x) * kD + 8 * n + l.column) = float2{dweight[n][2 * x], dweight[n][2 * x + 1]};
}

}  // namespace

void multiply_weight(const ProductArguments& p, std::int64_t batch, int D) {
  const std::int64_t blocks = batch * p.H * p.ranges;
  if (D == 128) launch(linear_attention_large_products_kernel<128>, blocks, 256, sizeof(ProductMemory<128>), p);
  else launch(linear_attention_large_products_kernel<96>, blocks, 192, sizeof(ProductMemory<96>), p);
}

}  // namespace hedgehog::cuda::linear_attention_large

#include "cuda/linear_attention_large_tile.cuh"

namespace hedgehog::cuda::linear_attention_large {
namespace {

/// Tokens of a tile, and tiles that are on their way from memory or in use at a time.
constexpr int kRows = 32, kStages = 4;

template <int kD>
struct ProductMemory {
  static constexpr int kTile = kRows * LargeLanes<kD>::kPitch;
  struct Stage {
    bf16 x[kTile], du[kTile];  // (tokens, D) and (tokens, D')
  };
  bf16 weight[LargeLanes<kD>::kTile];  // (D, D')
  Stage stages[kStages];
};
template <int kD>
constexpr int kBlocks = kD == 96 ? 3 : 2;  // that a multiprocessor holds
static_assert(kBlocks<96> * (sizeof(ProductMemory<96>) + 1024) <= 228 * 1024);
static_assert(kBlocks<128> * (sizeof(ProductMemory<128>) + 1024) <= 228 * 1024);

/// dx = du W^T, and the part of dweight = sum x^T du of a range of tiles of one head, of whichever batch elements. A warp has 16 tokens
/// and 32 columns of the one, 16 rows of the other. dx may take du's place.
template <int kD>
__global__ void __launch_bounds__(2 * kD, kBlocks<kD>) linear_attention_large_products_kernel(const __grid_constant__ ProductArguments p) {
  using Stage = typename ProductMemory<kD>::Stage;
  ProductMemory<kD>& m = *reinterpret_cast<ProductMemory<kD>*>(shared_bytes());
  const LargeLanes<kD> l;
  wait_for_kernels();
  const std::int64_t h = blockIdx.x / unsigned(p.ranges);
  const int begin = int(blockIdx.x % unsigned(p.ranges)) * p.range_tiles;
  const int end = begin + p.range_tiles < p.tiles ? begin + p.range_tiles : p.tiles;

  struct Place {
    std::int64_t b, t0;
    int count;
  };
  const auto place_of = [&](int tile) {
    const unsigned b = unsigned(tile) / unsigned(p.element_tiles);
    const std::int64_t t0 = std::int64_t(unsigned(tile) - b * unsigned(p.element_tiles)) * kRows, left = p.T - t0;
    return Place{b, t0, left < kRows ? int(left) : kRows};
  };
  const auto load = [&](int tile) {
    Stage& to = m.stages[(tile - begin) % kStages];
    const Place at = place_of(tile);
    const bf16 *const x = p.x.at(at.b, at.t0, h), *const du = static_cast<const bf16*>(p.du.data) + p.du.at(at.b, at.t0, h);
    load_tile<kD, kRows>(to.x, x, p.x.token, at.count, p.vector, l);
    load_tile<kD, kRows>(to.du, du, p.du.token, at.count, true, l);
  };
  load_tile<kD>(m.weight, p.weight + h * kD * kD, kD, kD, p.vector, l);
  for (int i = 0; i + 1 < kStages; ++i) {
    if (begin + i < end) load(begin + i);
    commit_copies();
  }

  const int row = l.warp % 2 * 16, column = l.warp / 2 * 32;
  linear_attention_mma::Lanes<kD> of_dx = l;
  of_dx.row = row + l.lane / 4;
  float dweight[kD / 8][4] = {};
#pragma unroll 1
  for (int tile = begin; tile < end; ++tile) {
    wait_copies<kStages - 2>();
    __syncthreads();  // the tile is here, all are done with the one before it
    if (tile + kStages - 1 < end) load(tile + kStages - 1);
    commit_copies();
    const Stage& now = m.stages[(tile - begin) % kStages];
    if (p.dweight) {
#pragma unroll
      for (int k = 0; k < kRows; k += 16) {
        unsigned a[4];
        l.a_transposed(a, now.x, 16 * l.warp, k);
        multiply_step(dweight, a, [&](unsigned(&b)[4], int n) { l.b_transposed(b, now.du, n, k); });
      }
    }
    if (p.dx.data) {
      float dx[4][4] = {};
      multiply<kD>(dx, [&](unsigned(&a)[4], int k) { l.a(a, now.du, row, k); },
                   [&](unsigned(&b)[4], int n, int k) { l.b(b, m.weight, column + n, k); });
      const Place at = place_of(tile);
      store_rows<kD>(p.dx, p.dx.at(at.b, at.t0, h) + column, dx, at.count, of_dx);
    }
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

int multiply_weight(ProductArguments p, std::int64_t batch, int D) {
  constexpr int kMultiprocessors = 132;  // of an H100; from the shape alone, so that sums have one order
  p.element_tiles = int((p.T + kRows - 1) / kRows);
  p.tiles = int(batch) * p.element_tiles;
  const int wanted = std::max(1, kMultiprocessors * (D == 128 ? kBlocks<128> : kBlocks<96>) / p.H);
  // no more ranges than chunks: their parts lie where sums of chunks were
  p.range_tiles = std::max((p.tiles + wanted - 1) / wanted, D / kRows);
  p.ranges = (p.tiles + p.range_tiles - 1) / p.range_tiles;
  const std::int64_t blocks = std::int64_t(p.H) * p.ranges;
  if (D == 128) launch(linear_attention_large_products_kernel<128>, blocks, 256, sizeof(ProductMemory<128>), p);
  else launch(linear_attention_large_products_kernel<96>, blocks, 192, sizeof(ProductMemory<96>), p);
  return p.ranges;
}

}  // namespace hedgehog::cuda::linear_attention_large

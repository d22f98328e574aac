#include "cuda/linear_attention_one_sided_tile.cuh"

namespace hedgehog::cuda::linear_attention_one_sided {
namespace {

template <int kD>
struct SumsMemory {
  static constexpr int kTile = kD * kD;
  bf16 weight[kTile];                       // (D, D')
  bf16 x[2][kTile], values[2][kTile];       // (chunk, D), of this chunk and the next; x becomes phi
  float deltas[2][kD];
  signed char rows[2][kD];
};

/// What the keys of one segment alone add to the sums, in the slot of the next segment, or what its queries add, in the slot of the
/// one before; where all see all, in its own. One block a segment.
template <int kD, Of kOf>
__global__ void __launch_bounds__(2 * kD, kD == 64 ? 4 : 8)
    linear_attention_one_sided_sums_kernel(const __grid_constant__ BackwardArguments p) {
  SumsMemory<kD>& m = *reinterpret_cast<SumsMemory<kD>*>(shared_bytes());
  const Sequence& s = p.s;
  const Lanes<kD> l;
  const Walk walk(s);
  wait_for_kernels();
  if (p.causal && (kOf == kOfKeys ? walk.segment + 1 == s.segments : walk.segment == 0)) return;
  const auto load = [&](int chunk) {
    const std::int64_t t0 = std::int64_t(chunk) * kD;
    Side<kOf>::template load_x<kD>(m.x[chunk & 1], s, walk, t0, l);
    Side<kOf>::template load_values<kD>(m.values[chunk & 1], p, walk, t0, l);
  };

  const bf16* const weight = load_map<kD>(m.weight, Side<kOf>::weight(s), s, walk, l);
  TokenNumbers<kD, kOf> numbers;
  int chunk = chunk_of<kOf>(walk, 0);
  load(chunk);
  numbers.fetch(p, walk, chunk, l);
  FeatureSums<kD> sums;
  sums.clear();
  wait_all_copies();
  __syncthreads();  // the weight is here

  const int chunks = walk.end - walk.begin;
  for (int i = 0; i < chunks; ++i) {
    bf16* const phi = m.x[chunk & 1];
    const signed char* const rows = m.rows[chunk & 1];
    wait_all_copies();
    __syncwarp();  // the warp's rows are here
    {
      float u[kD / 8][4];
      unsigned operands[kD / 16][4];
      features_of_rows<kD>(u, phi, weight, bias_of<true>(s.map, kOf, walk.h, kD), p.map, l);
      numbers.divide(u);
      pack_rows(operands, u);
      __syncwarp();
      store_operands<kD>(phi, operands, l);
    }
    numbers.keep(m.deltas[chunk & 1], m.rows[chunk & 1]);
    __syncthreads();  // features and values are here; all are done with the chunk before
    const int now = chunk, count = int(min(std::int64_t(kD), s.T - std::int64_t(now) * kD)), last = rows[count - 1];
    if (i + 1 < chunks) {
      chunk = chunk_of<kOf>(walk, i + 1);
      load(chunk);
      numbers.fetch(p, walk, chunk, l);
    }
    if (last >= 0) sums.clear();
    sums.template absorb<kOf>(phi, m.values[now & 1], m.deltas[now & 1], last >= 0 || count < kD,
                              [&](int token) { return token < count && leaves<kOf>(rows, last, token); }, l);
  }
  sums.store(p.sums, !p.causal ? walk.slot : kOf == kOfKeys ? s.state_slot(walk.index, walk.segment + 1) : walk.slot - 1, l);
}

template <int kD>
void run(const BackwardArguments& p, Of of, std::int64_t blocks) {
  if (of == kOfKeys) launch(linear_attention_one_sided_sums_kernel<kD, kOfKeys>, blocks, 2 * kD, sizeof(SumsMemory<kD>), p);
  else launch(linear_attention_one_sided_sums_kernel<kD, kOfQueries>, blocks, 2 * kD, sizeof(SumsMemory<kD>), p);
}

}  // namespace

void make_sums(const BackwardArguments& p, Of of, std::int64_t batch, int D) {
  const std::int64_t heads = batch * p.s.H, blocks = heads * p.s.segments;
  if (p.causal && p.s.segments == 1) return;
  D == 64 ? run<64>(p, of, blocks) : run<32>(p, of, blocks);
  if (!p.causal) return sum_segments(p.sums, p.totals, heads, p.s.segments, D, D);
  if (of == kOfKeys) return scan_states(p.s, p.sums, nullptr, nullptr, batch, D, D);
  linear_attention_mma::BackwardArguments reversed{};
  reversed.s = p.s, reversed.reversed = p.sums;
  scan_reversed(reversed, batch, D, D);
}

}  // namespace hedgehog::cuda::linear_attention_one_sided

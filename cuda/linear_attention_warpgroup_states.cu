#include "cuda/linear_attention_mma_call.cuh"
#include "cuda/linear_attention_warpgroup.cuh"

namespace hedgehog::cuda::linear_attention_mma {
namespace {

struct Arguments {
  Sequence s;
  SumSlots states;
  float* local;  // (slots, F) shifts of what a segment alone adds
};

struct Tiles {
  bf16 weight_k[kWideTile];               // (D, D')
  bf16 k[kWideTile], v[2][kWideTile];     // (chunk, D)
  bf16 phi[2 * kWideTile];                // (F, chunk)
  FeatureRows<kWide> features;
  signed char rows[2][kWide];
};
template <bool kGeneral, bool kTurned>
using Memory = WithAngles<WithKeyNorm<Tiles, kGeneral>, kWide, kTurned>;
static_assert(3 * (sizeof(Memory<false, true>) + 1024) <= 228 * 1024, "three blocks a multiprocessor");

/// linear_attention_states_kernel with products of a warpgroup.
template <bool kGeneral, bool kTurned>
__global__ void __launch_bounds__(128, 3) linear_attention_warpgroup_states_kernel(const __grid_constant__ Arguments p) {
#if HEDGEHOG_WARPGROUPS
  auto& m = *reinterpret_cast<Memory<kGeneral, kTurned>*>(shared_bytes());
  SharedAddresses at(&m);
  const Sequence& s = p.s;
  const Lanes<kWide> l;
  const Walk walk(s);
  wait_for_kernels();
  if (walk.segment + 1 == s.segments) return;
  const std::int64_t b = walk.b, h = walk.h, begin = std::int64_t(walk.begin) * kWide;
  const int thread = int(threadIdx.x);

  load_weight<kWide, kGeneral>(m.weight_k, s.weight_k, h, true, l);
  load_rows<kWide>(m.k, s.k.at(b, begin, h), s.k.token, kWide, true, l);
  load_rows<kWide>(m.v[walk.begin & 1], s.v.at(b, begin, h), s.v.token, kWide, true, l);
  if (thread < kWide) m.rows[walk.begin & 1][thread] = document_row(s, b, begin, thread);
  if constexpr (kGeneral) m.key_norm[thread] = fetch_key_norm<kWide>(s.map, walk.index, begin);
  m.load_angles(s.rotary, begin, kWide, l);
  Sums<kWide> sums;
  KeyState<kWide> nothing;
  nothing.clear();
  start(sums, m.features, nothing, l);
  State& S = sums.S;
  int last = -1;
  for (int chunk = walk.begin; chunk < walk.end; ++chunk) {
    at.forget();
    const std::int64_t next = std::int64_t(chunk + 1) * kWide;
    const signed char* const rows = m.rows[chunk & 1];
    wait_all_copies();
    m.turn(m.k, l);
    shared_written();
    __syncthreads();  // k, v and rows are here; the chunk before is done with phi and its v
    enter<false>(S, at(m.weight_k), at(m.k), kWide, rows, last, at(m.phi), 0, m.features, l, chunk_norm<kGeneral>(s.map, m.norm(), h, kWide));
    last = rows[kWide - 1];
    shared_written();
    __syncthreads();  // phi is here; all are done with k
    if (chunk + 1 < walk.end) {
      load_rows<kWide>(m.k, s.k.at(b, next, h), s.k.token, kWide, true, l);
      load_rows<kWide>(m.v[(chunk + 1) & 1], s.v.at(b, next, h), s.v.token, kWide, true, l);
      if (thread < kWide) m.rows[(chunk + 1) & 1][thread] = document_row(s, b, next, thread);
      if constexpr (kGeneral) m.key_norm[thread] = fetch_key_norm<kWide>(s.map, walk.index, next);
      m.load_angles(s.rotary, next, kWide, l);
    }
    start_leave(S, at(m.phi), at(m.v[chunk & 1]), last, l);
    finish_products();
    own(S);
  }
  __syncwarp();
  const std::int64_t slot = s.state_slot(walk.index, walk.segment + 1);
  for (int sign = 0; sign < 2; ++sign)
    for (int x = 0; x < 2; ++x) {
      const int row = sign * kWide + l.row + 8 * x;
      sums.z[sign][x] = m.features.added[row] + (last >= 0 ? 0.0f : m.features.z[row]);
      if (l.column == 0) p.local[slot * 2 * kWide + row] = m.features.shift[row];
    }
  sums.store(p.states, slot, l);
#endif
}

}  // namespace

void warpgroup_states(const Sequence& s, const SumSlots& states, float* local, std::int64_t blocks) {
  const Arguments p{s, states, local};
  with_form(s, [&](auto general, auto turned) {
    launch(linear_attention_warpgroup_states_kernel<general, turned>, blocks, 128, sizeof(Memory<general, turned>), p);
  });
}

}  // namespace hedgehog::cuda::linear_attention_mma

#include "cuda/linear_attention_mma_backward.cuh"

namespace hedgehog::cuda::linear_attention_mma {
namespace {

struct StatesArguments {
  Sequence s;
  SumSlots states;
};

template <int kD>
struct StatesMemory {
  static constexpr int kTile = kD * kD;
  bf16 weight_k[kTile];       // (D, D')
  bf16 k[kTile], v[kTile];    // (chunk, D)
  bf16 phi[2 * kTile];        // (F, chunk)
  bf16 S[2 * kTile];          // written by enter, not read
  FeatureRows<kD> features;
  signed char rows[2][kD];
};

/// What the keys of one segment alone add to the state, in the slot of the next segment. One block a segment.
template <int kD>
__global__ void __launch_bounds__(2 * kD, kD == 64 ? 3 : 8) linear_attention_states_kernel(const __grid_constant__ StatesArguments p) {
  StatesMemory<kD>& m = *reinterpret_cast<StatesMemory<kD>*>(shared_bytes());
  const Sequence& s = p.s;
  const Lanes<kD> l;
  const Walk walk(s);
  if (walk.segment + 1 == s.segments) return;
  const std::int64_t b = walk.b, h = walk.h, begin = std::int64_t(walk.begin) * kD;
  const int thread = int(threadIdx.x);

  load_rows<kD>(m.weight_k, s.weight_k + h * kD * kD, kD, kD, s.vector, l);
  load_rows<kD>(m.k, s.k.at(b, begin, h), s.k.token, kD, s.vector, l);
  if (thread < kD) m.rows[walk.begin & 1][thread] = document_row(s, b, begin, thread);
  KeyState<kD> state;
  state.clear();
  for (int chunk = walk.begin; chunk < walk.end; ++chunk) {
    const std::int64_t t0 = std::int64_t(chunk) * kD;
    const signed char* const rows = m.rows[chunk & 1];
    wait_all_copies();
    __syncthreads();  // k and rows are here; the chunk before is done with v
    load_rows<kD>(m.v, s.v.at(b, t0, h), s.v.token, kD, s.vector, l);
    state.enter(m.weight_k, m.k, kD, rows, m.phi, m.S, m.features, l);
    wait_all_copies();
    __syncthreads();  // v is here; all are done with k
    if (chunk + 1 < walk.end) {
      load_rows<kD>(m.k, s.k.at(b, t0 + kD, h), s.k.token, kD, s.vector, l);
      if (thread < kD) m.rows[(chunk + 1) & 1][thread] = document_row(s, b, t0 + kD, thread);
    }
    state.leave(m.phi, m.v, rows[kD - 1], m.features, l);
  }
  state.sums.store(p.states, walk.slot + 1, l);
  if (l.column == 0)
    for (int sign = 0; sign < 2; ++sign)
      for (int x = 0; x < 2; ++x) p.states.local[(walk.slot + 1) * 2 * kD + sign * kD + l.row + 8 * x] = state.shift[sign][x];
}

/// Whether the document at the end of a segment began before the segment.
__device__ bool passes(const Sequence& s, std::int64_t b, int segment, int D) {
  if (!s.document_start) return true;
  const std::int64_t begin = std::int64_t(segment) * s.segment_chunks * D;
  const std::int64_t end = begin + std::int64_t(s.segment_chunks) * D < s.T ? begin + std::int64_t(s.segment_chunks) * D : s.T;
  return s.document_start[b * s.T + end - 1] < begin;
}

/// Element i of one batch element and head: row i / (D + 1), column D stands for z.
struct Element {
  std::int64_t index, row;
  int column;
  bool valid;

  __device__ Element(std::int64_t heads, int D) {
    const std::int64_t i = std::int64_t(blockIdx.x) * 256 + threadIdx.x, row_all = i / (D + 1);
    index = row_all / (2 * D), row = row_all % (2 * D);
    column = int(i % (D + 1));
    valid = index < heads;
  }
  __device__ float& of(const SumSlots& slots, std::int64_t slot, int D) const {
    const std::int64_t at = slot * 2 * D + row;
    return column < D ? slots.S[at * D + column] : slots.z[at];
  }
};

struct StatesScanArguments {
  Sequence s;
  SumSlots states;
  std::int64_t heads;  // B H
  int D;
};

/// From what each segment adds to the state before each segment, one thread an element, in the order of time.
__global__ void linear_attention_states_scan_kernel(const __grid_constant__ StatesScanArguments p) {
  const Element e(p.heads, p.D);
  if (!e.valid) return;
  float sum = 0, shift = -INFINITY;
  for (int segment = 1; segment < p.s.segments; ++segment) {
    const std::int64_t slot = e.index * p.s.segments + segment, row = slot * 2 * p.D + e.row;
    const float local = p.states.local[row], before = passes(p.s, e.index / p.s.H, segment - 1, p.D) ? shift : -INFINITY;
    float& value = e.of(p.states, slot, p.D);
    shift = fmaxf(before, local);
    sum = sum * exp2_fast(before - shift) + value * exp2_fast(local - shift);
    value = sum;
    if (e.column == p.D) p.states.shift[row] = shift;
  }
}

struct ReversedScanArguments {
  BackwardArguments p;
  std::int64_t heads;  // B H
  int D;
};

/// From what each segment adds to R and y to the sums after each segment, one thread an element, against time. Sums after a
/// segment have the scale of its last chunk.
__global__ void linear_attention_reversed_scan_kernel(const __grid_constant__ ReversedScanArguments a) {
  const Element e(a.heads, a.D);
  if (!e.valid) return;
  const Sequence& s = a.p.s;
  const float* const shifts = a.p.shifts + e.index * s.chunks * 2 * a.D + e.row;
  float sum = 0;
  for (int segment = s.segments - 1; segment > 0; --segment) {
    float& value = e.of(a.p.reversed, e.index * s.segments + segment - 1, a.D);
    const int begin = segment * s.segment_chunks;
    const int end = begin + s.segment_chunks < s.chunks ? begin + s.segment_chunks : s.chunks;
    const float factor = passes(s, e.index / s.H, segment, a.D)
                             ? exp2_fast(shifts[std::int64_t(begin - 1) * 2 * a.D] - shifts[std::int64_t(end - 1) * 2 * a.D])
                             : 0.0f;
    sum = value + sum * factor;
    value = sum;
  }
}

std::int64_t scan_blocks(std::int64_t heads, int D) { return (heads * 2 * D * (D + 1) + 255) / 256; }

}  // namespace

void make_states(const Sequence& s, const SumSlots& states, std::int64_t batch, int D) {
  const std::int64_t heads = batch * s.H, blocks = heads * s.segments;
  const StatesArguments p{s, states};
  if (s.warpgroups) warpgroup_states(s, states, blocks);
  else if (D == 64) launch(linear_attention_states_kernel<64>, blocks, 128, sizeof(StatesMemory<64>), p);
  else launch(linear_attention_states_kernel<32>, blocks, 64, sizeof(StatesMemory<32>), p);
  launch(linear_attention_states_scan_kernel, scan_blocks(heads, D), 256, 0, StatesScanArguments{s, states, heads, D});
}

void scan_reversed(const BackwardArguments& p, std::int64_t batch, int D) {
  const std::int64_t heads = batch * p.s.H;
  launch(linear_attention_reversed_scan_kernel, scan_blocks(heads, D), 256, 0, ReversedScanArguments{p, heads, D});
}

}  // namespace hedgehog::cuda::linear_attention_mma

#include "cuda/linear_attention_mma_backward.cuh"

namespace hedgehog::cuda::linear_attention_mma {
namespace {

struct StatesArguments {
  Sequence s;
  SumSlots states;
  float* local;  // (slots, F) shifts of what a segment alone adds
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
  float key_norm[2][kD];      // (signs, chunk)
};

/// What the keys of one segment alone add to the state, in the slot of the next segment. One block a segment.
template <int kD, bool kGeneral, bool kTurned>
__global__ void __launch_bounds__(2 * kD, kD == 64 ? 3 : 8) linear_attention_states_kernel(const __grid_constant__ StatesArguments p) {
  StatesMemory<kD>& m = *reinterpret_cast<StatesMemory<kD>*>(shared_bytes());
  const Sequence& s = p.s;
  const Lanes<kD> l;
  const Walk walk(s);
  wait_for_kernels();
  if (walk.segment + 1 == s.segments) return;
  const std::int64_t b = walk.b, h = walk.h, begin = std::int64_t(walk.begin) * kD;
  const int thread = int(threadIdx.x);

  load_weight<kD, kGeneral>(m.weight_k, s.weight_k, h, s.vector, l);
  load_rows<kD>(m.k, s.k.at(b, begin, h), s.k.token, kD, s.vector, l);
  if (thread < kD) m.rows[walk.begin & 1][thread] = document_row(s, b, begin, thread);
  if constexpr (kGeneral) m.key_norm[0][thread] = fetch_key_norm<kD>(s.map, walk.index, begin);
  KeyState<kD> state;
  state.clear();
  for (int chunk = walk.begin; chunk < walk.end; ++chunk) {
    const std::int64_t t0 = std::int64_t(chunk) * kD;
    const signed char* const rows = m.rows[chunk & 1];
    wait_all_copies();
    if constexpr (kTurned) turn_rows<kD>(m.k, s.rotary + t0 * kD, kD, kD - 1, s.vector, l);
    __syncthreads();  // k and rows are here; the chunk before is done with v
    load_rows<kD>(m.v, s.v.at(b, t0, h), s.v.token, kD, s.vector, l);
    state.enter(m.weight_k, m.k, kD, rows, m.phi, m.S, m.features, l, chunk_norm<kGeneral>(s.map, m.key_norm[0], h, kD));
    wait_all_copies();
    __syncthreads();  // v is here; all are done with k
    if (chunk + 1 < walk.end) {
      load_rows<kD>(m.k, s.k.at(b, t0 + kD, h), s.k.token, kD, s.vector, l);
      if (thread < kD) m.rows[(chunk + 1) & 1][thread] = document_row(s, b, t0 + kD, thread);
      if constexpr (kGeneral) m.key_norm[0][thread] = fetch_key_norm<kD>(s.map, walk.index, t0 + kD);
    }
    state.leave(m.phi, m.v, rows[kD - 1], m.features, l);
  }
  const std::int64_t slot = s.state_slot(walk.index, walk.segment + 1);
  state.sums.store(p.states, slot, l);
  if (l.column == 0)
    for (int sign = 0; sign < 2; ++sign)
      for (int x = 0; x < 2; ++x) p.local[slot * 2 * kD + sign * kD + l.row + 8 * x] = state.shift[sign][x];
}

template <int kD>
void run(const StatesArguments& p, std::int64_t blocks) {
  with_form(p.s, [&](auto general, auto turned) {
    launch(linear_attention_states_kernel<kD, general, turned>, blocks, 2 * kD, sizeof(StatesMemory<kD>), p);
  });
}

/// Whether the document at the end of a segment began before the segment.
__device__ bool passes(const Sequence& s, std::int64_t b, int segment, int D) {
  if (!s.document_start) return true;
  const std::int64_t begin = std::int64_t(segment) * s.segment_chunks * D;
  const std::int64_t end = begin + std::int64_t(s.segment_chunks) * D < s.T ? begin + std::int64_t(s.segment_chunks) * D : s.T;
  return s.document_start[b * s.T + end - 1] < begin;
}

constexpr int kScanThreads = 128;

/// Four columns of a row of one batch element and head, by one thread; the first of a row has z, too.
struct Piece {
  std::int64_t index, row;
  int column, features;
  bool valid;

  __device__ Piece(std::int64_t heads, int D, int features) : features(features) {
    const unsigned i = blockIdx.x * kScanThreads + threadIdx.x, pieces = unsigned(D) / 4, rows = unsigned(features);
    column = int(i % pieces) * 4;
    row = i / pieces % rows;
    index = i / pieces / rows;
    valid = index < heads;
  }
};
/// What a piece has in one slot.
struct Values {
  float4 S;
  float z;

  __device__ __forceinline__ static std::int64_t place(const Piece& e, std::int64_t slot) { return slot * e.features + e.row; }
  __device__ __forceinline__ void load(const Piece& e, const SumSlots& from, std::int64_t slot, int D) {
    const std::int64_t at = place(e, slot);
    S = *reinterpret_cast<const float4*>(from.S + at * D + e.column);
    z = from.z[at];
  }
  __device__ __forceinline__ void store(const Piece& e, const SumSlots& to, std::int64_t slot, int D) const {
    const std::int64_t at = place(e, slot);
    *reinterpret_cast<float4*>(to.S + at * D + e.column) = S;
    if (e.column == 0) to.z[at] = z;
  }
  /// this = this * factor + x * scale
  __device__ __forceinline__ void add(float factor, const Values& x, float scale) {
    S.x = S.x * factor + x.S.x * scale, S.y = S.y * factor + x.S.y * scale;
    S.z = S.z * factor + x.S.z * scale, S.w = S.w * factor + x.S.w * scale;
    z = z * factor + x.z * scale;
  }
};
/// Segments that a scan has on their way from memory at a time.
constexpr int kAhead = 8;

struct StatesScanArguments {
  Sequence s;
  SumSlots states;
  const float* local;
  const float* initial_state;  // (B, H, F, D + 2) or null
  std::int64_t heads;          // B H
  int D, features;
};

/// From what each segment adds to the state before each segment, in the order of time. Without shifts all are 0.
__global__ void linear_attention_states_scan_kernel(const __grid_constant__ StatesScanArguments p) {
  const Piece e(p.heads, p.D, p.features);
  wait_for_kernels();
  if (!e.valid) return;
  const std::int64_t first = p.s.state_slot(e.index, 0);
  Values sum{};
  float shift = -INFINITY;
  if (p.initial_state) {
    const float* const row = p.initial_state + (e.index * p.features + e.row) * (p.D + 2);
    if (row[p.D] > 0) {  // else the row is empty
      sum = {{row[e.column], row[e.column + 1], row[e.column + 2], row[e.column + 3]}, row[p.D]};
      shift = row[p.D + 1] * kLog2e;
    }
    sum.store(e, p.states, first, p.D);
    if (e.column == 0) p.states.shift[Values::place(e, first)] = shift;
  }
  for (int begin = 1; begin < p.s.segments; begin += kAhead) {
    Values added[kAhead];
    float local[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (begin + i >= p.s.segments) break;
      added[i].load(e, p.states, first + begin + i, p.D);
      local[i] = !p.local ? 0.0f : p.local[Values::place(e, first + begin + i)];
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int segment = begin + i;
      if (segment >= p.s.segments) break;
      const float before = passes(p.s, e.index / p.s.H, segment - 1, p.D) ? shift : -INFINITY;
      shift = fmaxf(before, local[i]);
      sum.add(exp2_fast(before - shift), added[i], exp2_fast(local[i] - shift));
      sum.store(e, p.states, first + segment, p.D);
      if (e.column == 0 && p.states.shift) p.states.shift[Values::place(e, first + segment)] = shift;
    }
  }
}

/// Sum over the threads of a row.
__device__ __forceinline__ float sum_of_row(float x, int D) {
  for (int offset = D / 8; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
  return x;
}
__device__ __forceinline__ float dot(const Values& a, const Values& b, int D) {
  return sum_of_row(a.S.x * b.S.x + a.S.y * b.S.y + a.S.z * b.S.z + a.S.w * b.S.w, D) + a.z * b.z;
}

struct ReversedScanArguments {
  BackwardArguments p;
  std::int64_t heads;  // B H
  int D, features;
};

/// From what each segment adds to R and y to the sums after each segment, against time. Sums after a segment have the scale of its
/// last chunk; without shifts all have one.
__global__ void linear_attention_reversed_scan_kernel(const __grid_constant__ ReversedScanArguments a) {
  const Piece e(a.heads, a.D, a.features);
  wait_for_kernels();
  if (!e.valid) return;
  const BackwardArguments& p = a.p;
  const Sequence& s = p.s;
  const std::int64_t first = e.index * s.segments;
  const float* const shifts = p.shifts ? p.shifts + e.index * s.chunks * a.features + e.row : nullptr;
  const auto shift_of = [&](int chunk) { return shifts ? shifts[std::int64_t(chunk) * a.features] : 0.0f; };
  Values sum{};
  if (p.dfinal) sum.load(e, p.reversed, first + s.segments - 1, a.D);
  for (int last = s.segments - 1; last > 0; last -= kAhead) {
    Values added[kAhead];
    float before[kAhead], after[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int segment = last - i, begin = segment * s.segment_chunks;
      if (segment <= 0) break;
      added[i].load(e, p.reversed, first + segment - 1, a.D);
      before[i] = shift_of(begin - 1);
      after[i] = shift_of(min(begin + s.segment_chunks, s.chunks) - 1);
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int segment = last - i;
      if (segment <= 0) break;
      sum.add(passes(s, e.index / s.H, segment, a.D) ? exp2_fast(before[i] - after[i]) : 0.0f, added[i], 1);
      sum.store(e, p.reversed, first + segment - 1, a.D);
    }
  }
}

/// A final state is stored in the scale of its shift c: its gradients are the sums R and y that come from behind the last token, and
/// beside those of S and z in it c has dc - dS . S - dz z.
__global__ void linear_attention_begin_reversed_kernel(const __grid_constant__ ReversedScanArguments a) {
  const Piece e(a.heads, a.D, a.features);
  wait_for_kernels();
  if (!e.valid) return;
  const BackwardArguments& p = a.p;
  const float* const row = p.dfinal + (e.index * a.features + e.row) * (a.D + 2);
  const Values sum{{row[e.column], row[e.column + 1], row[e.column + 2], row[e.column + 3]}, row[a.D]};
  sum.store(e, p.reversed, (e.index + 1) * p.s.segments - 1, a.D);
  Values state;
  state.load(e, p.states, p.final_slot + e.index, a.D);
  const float dshift = row[a.D + 1] - dot(sum, state, a.D);
  if (e.column == 0) p.dshift[Values::place(e, e.index)] = dshift;
}

/// Of an initial state, c has dS . S + dz z, and the gradient of the final c where no key is above it.
__global__ void linear_attention_end_reversed_kernel(const __grid_constant__ ReversedScanArguments a) {
  const Piece e(a.heads, a.D, a.features);
  wait_for_kernels();
  if (!e.valid) return;
  const BackwardArguments& p = a.p;
  const std::int64_t first = p.s.state_slot(e.index, 0), at = (e.index * a.features + e.row) * (a.D + 2);
  Values sum, state;
  sum.load(e, p.reversed, p.walks + e.index, a.D);
  state.load(e, p.states, first, a.D);
  float of_c = dot(sum, state, a.D);
  const float final_shift = p.shifts[((e.index + 1) * p.s.chunks - 1) * a.features + e.row];
  if (p.dfinal && p.states.shift[Values::place(e, first)] == final_shift) of_c += p.dshift[Values::place(e, e.index)];
  const float S[4] = {sum.S.x, sum.S.y, sum.S.z, sum.S.w};
  for (int i = 0; i < 4; ++i) p.dinitial.put(at + e.column + i, S[i]);
  if (e.column == 0) p.dinitial.put(at + a.D, sum.z), p.dinitial.put(at + a.D + 1, of_c);
}

std::int64_t scan_blocks(std::int64_t heads, int D, int features) { return (heads * features * (D / 4) + kScanThreads - 1) / kScanThreads; }

}  // namespace

void make_states(const Sequence& s, const SumSlots& states, float* local, const float* initial_state, std::int64_t batch, int D) {
  const std::int64_t heads = batch * s.H, blocks = heads * s.segments;
  const StatesArguments p{s, states, local};
  if (s.segments == 1) {}  // the scan alone, for what there is before the first token
  else if (s.warpgroups) warpgroup_states(s, states, local, blocks);
  else D == 64 ? run<64>(p, blocks) : run<32>(p, blocks);
  scan_states(s, states, local, initial_state, batch, D, 2 * D);
}

void scan_states(const Sequence& s, const SumSlots& states, const float* local, const float* initial_state, std::int64_t batch, int D,
                 int features) {
  const std::int64_t heads = batch * s.H;
  launch(linear_attention_states_scan_kernel, scan_blocks(heads, D, features), kScanThreads, 0,
         StatesScanArguments{s, states, local, initial_state, heads, D, features});
}

void scan_reversed(const BackwardArguments& p, std::int64_t batch, int D, int features) {
  const std::int64_t heads = batch * p.s.H;
  launch(linear_attention_reversed_scan_kernel, scan_blocks(heads, D, features), kScanThreads, 0,
         ReversedScanArguments{p, heads, D, features});
}

void begin_reversed(const BackwardArguments& p, std::int64_t batch, int D) {
  const std::int64_t heads = batch * p.s.H;
  launch(linear_attention_begin_reversed_kernel, scan_blocks(heads, D, 2 * D), kScanThreads, 0, ReversedScanArguments{p, heads, D, 2 * D});
}

void end_reversed(const BackwardArguments& p, std::int64_t batch, int D) {
  const std::int64_t heads = batch * p.s.H;
  launch(linear_attention_end_reversed_kernel, scan_blocks(heads, D, 2 * D), kScanThreads, 0, ReversedScanArguments{p, heads, D, 2 * D});
}

}  // namespace hedgehog::cuda::linear_attention_mma

#include "cuda/linear_attention_large_tile.cuh"

namespace hedgehog::cuda::linear_attention_large {
namespace {

template <int kD>
struct SumsMemory {
  static constexpr int kTile = LargeLanes<kD>::kTile;
  bf16 weight[kTile];        // (D, D')
  bf16 x[kTile], y[kTile];   // (chunk, D): k and v, or q and dy
  float den[kD], delta[kD];  // of queries: infinity for those that do not see the state before the chunk
  float outside[kD];         // of keys, like den: infinity for those that are not there, den also for those of an earlier document
  float shift[2 * kD];       // for queries: of the state
};
template <int kD>
constexpr int kBlocks = kD == 96 ? 3 : 2;  // that a multiprocessor holds
static_assert(kBlocks<96> * (sizeof(SumsMemory<96>) + 1024) <= 228 * 1024);
static_assert(kBlocks<128> * (sizeof(SumsMemory<128>) + 1024) <= 228 * 1024);

/// What one chunk adds: S = sum phi_k v^T and z = sum phi_k of the keys of its last token's document, with the shifts of the chunk; or
/// R = sum phi_q G^T and y = sum phi_q delta of the queries that see the state before the chunk, in the scale of that state. A warp
/// has 16 features of either sign, one after the other; they stay in registers, as operands.
template <int kD, bool kQueries>
__global__ void __launch_bounds__(2 * kD, kBlocks<kD>) linear_attention_large_sums_kernel(const __grid_constant__ Arguments p) {
  constexpr int kSteps = kD / 16;
  SumsMemory<kD>& m = *reinterpret_cast<SumsMemory<kD>*>(shared_bytes());
  const Sequence& s = p.s;
  const LargeLanes<kD> l;
  const Chunk at(s, kD);
  const int thread = int(threadIdx.x);
  wait_for_kernels();
  if (!kQueries && at.slot == 0 && thread == 0) *p.any_redo = 0;
  if (kQueries && at.chunk == 0) return;
  // the sums of the last keys are read by nobody
  const bool last = !kQueries && at.chunk + 1 == s.chunks;

  if constexpr (kQueries) load_tile<kD>(m.x, s.q.at(at.b, at.t0, at.h), s.q.token, at.count, s.vector, l);
  else load_tile<kD>(m.x, s.k.at(at.b, at.t0, at.h), s.k.token, at.count, s.vector, l);
  load_tile<kD>(m.weight, (kQueries ? s.weight_q : s.weight_k) + at.h * kD * kD, kD, kD, s.vector, l);
  commit_copies();
  if constexpr (kQueries) load_tile<kD>(m.y, p.dy.at(at.b, at.t0, at.h), p.dy.token, at.count, s.vector, l);
  else if (!last) load_tile<kD>(m.y, s.v.at(at.b, at.t0, at.h), s.v.token, at.count, s.vector, l);
  commit_copies();
  if (kQueries) m.shift[thread] = p.shifts.after[(at.slot - 1) * 2 * kD + thread];
  if (thread < kD) {
    if constexpr (kQueries) {
      const bool sees = thread < at.count && document_row(s, at.b, at.t0, thread) < 0;
      m.den[thread] = sees ? p.saved[(at.b * s.T + at.t0 + thread) * s.H + at.h] * kLog2e : INFINITY;
      m.delta[thread] = sees ? p.delta[at.index * s.T + at.t0 + thread] : 0.0f;
    } else {
      m.outside[thread] = thread < at.count ? 0.0f : INFINITY;
      m.den[thread] = thread < at.count && thread >= document_row(s, at.b, at.t0, at.count - 1) ? 0.0f : INFINITY;
    }
  }
  wait_copies<1>();
  __syncthreads();  // x, weight and numbers are here

  float u[kD / 8][4] = {};
  multiply<kD>(u, [&](unsigned(&a)[4], int k) { l.a_transposed(a, m.weight, 16 * l.warp, k); },
               [&](unsigned(&b)[4], int n, int k) { l.b(b, m.x, n, k); });
  wait_copies<0>();
  __syncthreads();  // y is here

  HeadsTarget<bf16> to;
  to.data = p.sums.S, to.token = kD, to.vector = true;
  const std::int64_t slot = at.slot - (kQueries ? 1 : 0);
#pragma unroll 1
  for (int sign = 0; sign < 2; ++sign) {
    __syncwarp();  // numbers are not to be kept in registers from one sign to the next
    const float scale = sign ? -kLog2e : kLog2e;
    const std::int64_t place = (slot * 2 + sign) * kD + l.row;
    float shift[2];
    if constexpr (kQueries) {
#pragma unroll
      for (int x = 0; x < 2; ++x) shift[x] = m.shift[sign * kD + l.row + 8 * x];
    } else {
      float top[2] = {-INFINITY, -INFINITY};
#pragma unroll
      for (int x = 0; x < 2; ++x) {
        shift[x] = -INFINITY;
#pragma unroll
        for (int n = 0; n < kD / 8; ++n) {
          const float2 den = pair_at(m.den, 8 * n + l.column), outside = pair_at(m.outside, 8 * n + l.column);
          const float first = u[n][2 * x] * scale, second = u[n][2 * x + 1] * scale;
          top[x] = fmaxf(top[x], fmaxf(first - outside.x, second - outside.y));
          shift[x] = fmaxf(shift[x], fmaxf(first - den.x, second - den.y));
        }
        top[x] = row_max(top[x]);
        shift[x] = row_max(shift[x]);
      }
      if (l.column == 0) {
        p.shifts.top[place] = top[0], p.shifts.top[place + 8] = top[1];
        p.shifts.local[place] = shift[0], p.shifts.local[place + 8] = shift[1];
      }
    }
    unsigned phi[kSteps][4];
    float sum[2] = {0, 0};
#pragma unroll
    for (int n = 0; n < kD / 8; ++n) {
      const int token = 8 * n + l.column;
      const float2 den = pair_at(m.den, token);
      float2 weight{1, 1};
      if constexpr (kQueries) weight = pair_at(m.delta, token);
#pragma unroll
      for (int x = 0; x < 2; ++x) {
        const float of_row = kQueries ? shift[x] : -shift[x];
        const float e0 = exp2_fast(fmaf(u[n][2 * x], scale, of_row) - den.x);
        const float e1 = exp2_fast(fmaf(u[n][2 * x + 1], scale, of_row) - den.y);
        phi[n / 2][n % 2 * 2 + x] = pack(e0, e1);
        sum[x] += e0 * weight.x + e1 * weight.y;
      }
    }
    // shuffles first, conditions after them: else a compiler takes both apart
    for (float& x : sum) x = row_sum(x);
    if (l.column == 0) p.sums.z[place] = sum[0], p.sums.z[place + 8] = sum[1];
    if (last) continue;
#pragma unroll 1
    for (int column = 0; column < kD; column += 32) {
      float S[4][4] = {};
#pragma unroll
      for (int k = 0; k < kSteps; ++k)
        multiply_step(S, phi[k], [&](unsigned(&b)[4], int n) { l.b_transposed(b, m.y + column, n, 16 * k); });
      store_rows<kD>(to, (slot * 2 + sign) * kD * kD + column, S, kD, l);
    }
  }
}

constexpr int kScanThreads = 64, kColumns = 4;
/// Chunks that a scan has on their way from memory at a time.
constexpr int kAhead = 12;

struct ScanArguments {
  Arguments p;
  std::int64_t heads;  // B H
  int D;
};

/// A few columns of a row of one batch element and head, by one thread; the first of a row has z, too.
struct Piece {
  std::int64_t index, row;
  int column, D;
  bool valid;

  __device__ Piece(std::int64_t heads, int D) : D(D) {
    const unsigned i = blockIdx.x * kScanThreads + threadIdx.x, pieces = unsigned(D) / kColumns, rows = 2 * unsigned(D);
    column = int(i % pieces) * kColumns;
    row = i / pieces % rows;
    index = i / pieces / rows;
    valid = index < heads;
  }
  __device__ __forceinline__ std::int64_t place(std::int64_t slot) const { return slot * 2 * D + row; }
};
/// What a piece has in one slot, as it lies in memory.
struct Stored {
  uint2 S;
  float z;

  __device__ __forceinline__ void load(const Piece& e, const ChunkSums& from, std::int64_t slot) {
    S = *reinterpret_cast<const uint2*>(from.S + e.place(slot) * e.D + e.column);
    z = e.column == 0 ? from.z[e.place(slot)] : 0.0f;
  }
};
struct Running {
  float S[kColumns] = {}, z = 0;

  __device__ __forceinline__ void store(const Piece& e, const ChunkSums& to, std::int64_t slot) const {
    *reinterpret_cast<uint2*>(to.S + e.place(slot) * e.D + e.column) = uint2{pack(S[0], S[1]), pack(S[2], S[3])};
    if (e.column == 0) to.z[e.place(slot)] = z;
  }
  /// this = this * factor + x * scale
  __device__ __forceinline__ void add(float factor, const Stored& x, float scale) {
    const unsigned of[2] = {x.S.x, x.S.y};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      S[2 * i] = S[2 * i] * factor + low_of(of[i]) * scale;
      S[2 * i + 1] = S[2 * i + 1] * factor + high_of(of[i]) * scale;
    }
    z = z * factor + x.z * scale;
  }
};

/// Calls step(i, place) for places 0 to count in order, fetch(i, place) kAhead before that; i is place % kAhead.
template <class Fetch, class Step>
__device__ __forceinline__ void scan(int count, const Fetch& fetch, const Step& step) {
#pragma unroll
  for (int i = 0; i < kAhead; ++i)
    if (i < count) fetch(i, i);
  for (int begin = 0; begin < count; begin += kAhead)
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (begin + i >= count) break;
      step(i, begin + i);
      if (begin + i + kAhead < count) fetch(i, begin + i + kAhead);
    }
}

/// Whether a token's document began before its chunk.
__device__ __forceinline__ bool passes(const Sequence& s, std::int64_t b, int chunk, int D, bool at_end) {
  const std::int64_t begin = std::int64_t(chunk) * D, end = begin + D < s.T ? begin + D : s.T;
  return chunk > 0 && (!s.document_start || s.document_start[b * s.T + (at_end ? end - 1 : begin)] < begin);
}

/// From what each chunk of keys adds to the state before each chunk, in the order of time.
__global__ void linear_attention_large_states_kernel(const __grid_constant__ ScanArguments a) {
  const Piece e(a.heads, a.D);
  const Sequence& s = a.p.s;
  const Shifts& shifts = a.p.shifts;
  wait_for_kernels();
  if (!e.valid) return;
  const std::int64_t first = e.index * s.chunks, b = e.index / s.H;
  Running sum;
  float shift = -INFINITY, local[kAhead];
  Stored added[kAhead];
  const auto fetch = [&](int i, int chunk) {
    local[i] = shifts.local[e.place(first + chunk)];
    if (chunk + 1 < s.chunks) added[i].load(e, a.p.sums, first + chunk);
  };
  const auto step = [&](int i, int chunk) {
    if (!passes(s, b, chunk, a.D, false)) sum = Running{}, shift = -INFINITY;
    sum.store(e, a.p.sums, first + chunk);
    const float before = passes(s, b, chunk, a.D, true) ? shift : -INFINITY;
    shift = fmaxf(before, local[i]);
    if (e.column == 0) shifts.after[e.place(first + chunk)] = shift;
    if (chunk + 1 < s.chunks) sum.add(exp2_fast(before - shift), added[i], exp2_fast(local[i] - shift));
  };
  scan(s.chunks, fetch, step);
}

/// From what each chunk of queries adds to R and y after each chunk, against time; nobody reads those after the last.
__global__ void linear_attention_large_reversed_kernel(const __grid_constant__ ScanArguments a) {
  const Piece e(a.heads, a.D);
  const Sequence& s = a.p.s;
  const float* const after = a.p.shifts.after;
  wait_for_kernels();
  if (!e.valid) return;
  const std::int64_t first = e.index * s.chunks, b = e.index / s.H;
  const int last = s.chunks - 2;
  Running sum;
  float later = after[e.place(first + last + 1)], shift[kAhead];
  Stored added[kAhead];
  const auto fetch = [&](int i, int place) {
    const std::int64_t slot = first + last - place;
    added[i].load(e, a.p.sums, slot);
    shift[i] = after[e.place(slot)];
  };
  const auto step = [&](int i, int place) {
    const int chunk = last - place;
    sum.add(passes(s, b, chunk + 1, a.D, true) ? exp2_fast(shift[i] - later) : 0.0f, added[i], 1);
    sum.store(e, a.p.sums, first + chunk);
    later = shift[i];
  };
  scan(last + 1, fetch, step);
}

template <int kD>
void sum(const Arguments& p, bool queries, std::int64_t blocks) {
  if (queries) launch(linear_attention_large_sums_kernel<kD, true>, blocks, 2 * kD, sizeof(SumsMemory<kD>), p);
  else launch(linear_attention_large_sums_kernel<kD, false>, blocks, 2 * kD, sizeof(SumsMemory<kD>), p);
}

}  // namespace

void sum_chunks(const Arguments& p, bool queries, std::int64_t batch, int D) {
  const std::int64_t blocks = batch * p.s.H * p.s.chunks;
  if (D == 128) sum<128>(p, queries, blocks);
  else sum<96>(p, queries, blocks);
}

void scan_chunks(const Arguments& p, bool queries, std::int64_t batch, int D) {
  const std::int64_t heads = batch * p.s.H, blocks = (heads * 2 * D * (D / kColumns) + kScanThreads - 1) / kScanThreads;
  launch(queries ? linear_attention_large_reversed_kernel : linear_attention_large_states_kernel, blocks, kScanThreads, 0,
         ScanArguments{p, heads, D});
}

}  // namespace hedgehog::cuda::linear_attention_large

#include "cuda/early_launch.cuh"
#include "cuda/linear_attention_step.cuh"
#include "ops/linear_attention_sizes.h"

namespace hedgehog::cuda {
namespace {

using namespace linear_attention_detail;

constexpr const char* kName = "linear_attention_step";
constexpr int kWhole = int(kWarp), kPart = 8;  // pairs of state columns of a block: a head's, or a part of them
constexpr int kUsual = 64;           // width of the heads, their map and their values that has kernels of its own
static_assert(kUsual * kUsual / 2 == kSideThreads * kHeldRows);

template <class T>
struct StepArguments {
  using A = Accumulator<T>;
  Sizes s;
  Heads<const T> q, k, v;
  Heads<T> o;
  A* state;
  const T *weight[2], *bias[2];  // of queries and keys, or null
  const A* rotary;               // (T, D), or null
  bool vectors;                  // TokenMap does both maps
  bool parameters;               // weights and biases are parameters
  int parts;                     // blocks that share the columns of a state
};

/// A block decodes the tokens of one batch element and head, or a cluster of a.parts blocks, each of which has 16 columns of the
/// state and makes the features anew: the turn by rotary positions, both maps, the shift, and one pass over the state that updates
/// and reads it. With kRows > 0 (f32) the block's columns are 2 kPairs at most and stay in registers, kRows rows and two columns a
/// thread, and are written back after the last token; with kRows = 0 the state is updated where it lies, 32 columns at a time.
/// kHead: every width of the call, whose map is the plain Hedgehog one, 0 if only the call knows; half of a multiprocessor's
/// registers then leave room for the kernels around this one.
template <class T, int kRows, int kPairs, int kHead>
__global__ __launch_bounds__(kStepThreads, kHead ? 2 : 1) void linear_attention_step_kernel(const __grid_constant__ StepArguments<T> a) {
  using A = Accumulator<T>;
  extern __shared__ __align__(16) unsigned char memory[];
  start_next_kernel();
  Sizes s = a.s;
  if constexpr (kHead > 0) s.D = s.Dv = s.width = kHead, s.F = 2 * kHead, s.map = FeatureMap{};
  const bool vectors = kHead > 0 || a.vectors;
  const int F = int(s.F), width = int(s.width), lane = int(threadIdx.x % kWarp), warp = int(threadIdx.x / kWarp), thread = int(threadIdx.x);
  const StepMemory<A> m(reinterpret_cast<A*>(memory), s.width, s.F);
  const unsigned task = kPairs == kPart ? blockIdx.x / unsigned(a.parts) : blockIdx.x, part = kPairs == kPart ? blockIdx.x % unsigned(a.parts) : 0;
  const std::int64_t b = quotient(task, s.Hq), h = task - b * s.Hq, hkv = quotient(h, quotient(s.Hq, s.Hkv)), pitch = s.Dv + 2;
  A* const state = a.state + std::int64_t(task) * s.F * pitch;
  using Columns = StateColumns<kRows ? kRows : 1, kPairs>;
  const int column = int(part) * 2 * kPairs + Columns::column();
  const bool holds = column < s.Dv;

  // addresses of the first token and of the first of the thread's rows, made ahead of the wait
  const T *const queries = a.q.at(b, 0, h), *const keys = a.k.at(b, 0, hkv), *const values = a.v.at(b, 0, hkv);
  T* const results = a.o.at(b, 0, h);
  A* const cell = state + Columns::row_of(0) * pitch + column;
  const std::int64_t next_cell = kStepWarps * Columns::kSlots * pitch;

  if (!a.parameters) wait_for_kernels();
  TokenMap<T, kHead> map;
  A bias[2] = {};
  if (vectors) map.fetch(a.weight, h, int(s.D), width);
#pragma unroll
  for (int side = 0; side < 2; ++side)
    if (a.bias[side]) bias[side] = load(a.bias[side] + h * width + thread % width);
  if (a.parameters) {
    if (kRows > 0 && thread < F) {
      const A* const row = state + thread * pitch;
      prefetch(row + part * 2 * kPairs);
      prefetch(row + min(std::int64_t(part + 1) * 2 * kPairs, s.Dv) - 1);
      prefetch(row + s.Dv);
    }
    wait_for_kernels();
  }

  // a pair of the query's or key's features, asked for before the state: it is needed first
  const int half = int(s.D) / 2, side_of_pair = thread >= half, pair = thread - side_of_pair * half;
  A cosine = 0, sine = 0, low = 0, high = 0;
  auto fetch_pair = [&](std::int64_t t) {
    if (!a.rotary || thread >= int(s.D)) return;
    const T* const x = side_of_pair ? keys + t * a.k.token : queries + t * a.q.token;
    const A* const table = a.rotary + t * s.D;
    cosine = table[pair], sine = table[half + pair], low = load(x + pair), high = load(x + half + pair);
  };
  fetch_pair(0);

  Columns columns;
  if constexpr (kRows > 0) columns.fetch(cell, next_cell, F, holds);
  KeySum<A> sum;
  if (thread < F) sum = {state[thread * pitch + s.Dv], state[thread * pitch + s.Dv + 1]};

  for (std::int64_t t = 0; t < s.T; ++t) {
    const T *const q = queries + t * a.q.token, *const k = keys + t * a.k.token, *const v = values + t * a.v.token;
    T* const o = results + t * a.o.token;
    A v0 = 0, v1 = 0;
    if (kRows > 0 && holds) v0 = load(v + column), v1 = load(v + column + 1);
    if (a.rotary) {
      if (thread < int(s.D)) {
        A* const to = m.turned + side_of_pair * s.D;
        to[pair] = low * cosine - high * sine;
        to[half + pair] = high * cosine + low * sine;
      }
      if (t + 1 < s.T) fetch_pair(t + 1);
      __syncthreads();
    }
    if (vectors) {
      if (a.rotary) map.map(m.turned + thread / kSideThreads * s.D, m.parts);
      else map.map(thread < kSideThreads ? q : k, m.parts);
      __syncthreads();
    }
    auto u = [&](int side, int c) {
      if (vectors) return map.sum(m.parts, side, c, bias[side]);
      A total = bias[side];
      const T *const x = side ? k : q, *const w = a.weight[side];
      auto element = [&](int d) { return a.rotary ? m.turned[side * s.D + d] : load(x + d); };
      if (!w) return total + element(c);
      for (int d = 0; d < int(s.D); ++d) total += element(d) * load(w + (h * s.D + d) * width + c);
      return total;
    };
    A features[2] = {};
    if (s.map.normalised()) {
      if (thread < width) m.u[thread] = u(0, thread), m.u[width + thread] = u(1, thread);
      __syncthreads();
      if (warp < 2) {
        const A* const from = m.u + warp * width;
        A* const y = warp ? m.k : m.q;
        working_features_warp<A>(s.map, width, [&](int r) { return from[r]; }, [&](int r, A value) { y[r] = value; });
      }
      __syncthreads();
      if (thread < F) features[0] = m.q[thread], features[1] = m.k[thread];
    } else if (thread < F) {
      // the second half is made of -u
      const A sign = thread < width ? A(1) : A(-1);
#pragma unroll
      for (int side = 0; side < 2; ++side) features[side] = working_feature(s.map, sign * u(side, thread % width));
    }
    if (warp * int(kWarp) < F) take_key(s.map, F, features[0], features[1], sum, m);
    __syncthreads();
    if (kPairs == kPart && a.parts > 1 && t == 0) cluster_arrive_relaxed();  // this block has read the sums of keys
    const QueryScale<A> scale(m, F);
    A inverse = 0;  // for the threads that finish a column of o
    if (warp < 2) inverse = scale.inverse(m);
    if constexpr (kRows > 0) {
      columns.take(m, scale, F, v0, v1, [&](A total) {
        if (part * 2 * kPairs + thread < s.Dv) o[part * 2 * kPairs + thread] = convert<T>(total * inverse);
      });
      if (t + 1 < s.T) __syncthreads();
    } else {
      for (std::int64_t e0 = 0; e0 < s.Dv; e0 += kWarp) {
        const std::int64_t e = e0 + lane;
        const A value = e < s.Dv ? load(v + e) : A(0);
        A total = 0;
        for (int r = warp; r < F && e < s.Dv; r += kStepWarps) {
          A& at = state[r * pitch + e];
          at = at * m.factor[r] + m.k[r] * value;
          total += scale.feature(m, r) * at;
        }
        m.parts[warp * int(kWarp) + lane] = total;
        __syncthreads();
        if (warp == 0 && e < s.Dv) {
          total = 0;
          for (int w = 0; w < kStepWarps; ++w) total += m.parts[w * int(kWarp) + lane];
          o[e] = convert<T>(total * inverse);
        }
        __syncthreads();
      }
    }
  }

  if constexpr (kRows > 0) columns.store(cell, next_cell, F, holds);
  // all blocks have read the sums of keys before one writes them
  if (kPairs == kPart && a.parts > 1) cluster_wait();
  if (part == 0 && thread < F) {
    state[thread * pitch + s.Dv] = sum.z;
    state[thread * pitch + s.Dv + 1] = sum.shift;
  }
}

template <class T>
void launch(const Call& c) {
  using A = Accumulator<T>;
  const Sizes s = step_sizes(c.attributes, c.inputs);
  const auto& in = c.inputs;
  StepArguments<T> a{s,
                     Heads<const T>(kName, in[kStepQ]),
                     Heads<const T>(kName, in[kStepK]),
                     Heads<const T>(kName, in[kStepV]),
                     Heads<T>(kName, c.outputs[0]),
                     in[kState].as<A>(),
                     {in[kStepWeightQ].as<const T>(), in[kStepWeightK].as<const T>()},
                     {in[kStepBiasQ].as<const T>(), in[kStepBiasK].as<const T>()},
                     in[kStepRotary].as<const A>(),
                     false,
                     true,
                     1};
  a.vectors = a.weight[0] && a.weight[1] && s.width % 2 == 0 && kSideThreads % (s.width / 2) == 0 && aligned({a.weight[0], a.weight[1]});
  for (int i = kStepWeightQ; i <= kStepBiasK; ++i) a.parameters = a.parameters && (!in[std::size_t(i)] || in[std::size_t(i)].parameter);
  const std::size_t bytes = std::size_t(StepMemory<A>::size(s.width, s.F, s.D)) * sizeof(A);
  const std::int64_t tasks = s.B * s.Hq, parts = s.Dv / (2 * kPart);
  auto run = [&](auto kernel) {
    launch_clusters_early(kName, kernel, unsigned(a.parts), unsigned(tasks * a.parts), kStepThreads, bytes, a);
  };
  if constexpr (sizeof(A) == 4) {
    constexpr std::int64_t rows = kStepWarps, part_rows = kStepWarps * kWarp / kPart;  // of a state, one a thread
    const bool even = s.Dv % 2 == 0 && aligned({a.state});
    // few heads wait for memory, many would make features too often
    const bool shared = has_early_launches() && even && s.Dv == parts * 2 * kPart && parts <= 8 && (parts & (parts - 1)) == 0 &&
                        tasks * parts <= multiprocessors() && s.F <= 4 * part_rows;
    if (shared) {
      a.parts = int(parts);
      const bool usual = a.vectors && s.D == kUsual && s.width == kUsual && s.Dv == kUsual && s.map.kind == MapKind::hedgehog;
      if (usual) return run(linear_attention_step_kernel<T, 2, kPart, kUsual>);
      return s.F <= 2 * part_rows ? run(linear_attention_step_kernel<T, 2, kPart, 0>) : run(linear_attention_step_kernel<T, 4, kPart, 0>);
    }
    const bool held = even && s.Dv <= 2 * kWhole;
    if (held && s.F <= 8 * rows) return run(linear_attention_step_kernel<T, 8, kWhole, 0>);
    if (held && s.F <= 16 * rows) return run(linear_attention_step_kernel<T, 16, kWhole, 0>);
  }
  run(linear_attention_step_kernel<T, 0, kWhole, 0>);
}

void forward(const Call& c) {
  dispatch_floating(c.inputs[kStepQ].dtype, [&](auto zero) { launch<decltype(zero)>(c); });
}

}  // namespace

void register_linear_attention_step(KernelTable& table) { table["linear_attention_step"] = {.forward = forward}; }

}  // namespace hedgehog::cuda

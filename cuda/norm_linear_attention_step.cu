#include "cuda/early_launch.cuh"
#include "cuda/linear_attention_step.cuh"
#include "cuda/linear_products.h"
#include "cuda/vector_product.cuh"
#include "ops/norm_linear_attention_parts.h"

namespace hedgehog::cuda {
namespace {

using namespace norm_linear_attention_detail;

constexpr const char* kName = "norm_linear_attention_step";
constexpr int kHead = 64, kFeatures = 2 * kHead;
constexpr int kBlocks = 8;                    // that share a head
constexpr int kColumns = kHead / kBlocks;     // of v and of the state, that a block has
constexpr int kShares = 4;                    // blocks that share the rows of the weight
constexpr int kWide = kShares * kColumns;     // columns of q, of k and of v that a block multiplies: 64 bytes of a row of the weight
constexpr int kPartWarps = kStepWarps / 3;    // that multiply with the columns of q; as many with those of k, and of v
constexpr int kGroups = kPartWarps * int(kWarp) / kShares;  // rows that they have at once
constexpr int kFlight = 5;                    // loads of a thread that are on their way at once
static_assert(kColumns == kEach && kHead * kHead / 2 == kSideThreads * kHeldRows);

struct Arguments {
  VectorProduct projection;  // of one row; its parameters are those of the whole call
  int heads, key_heads;
  const bf16 *map[2], *map_bias[2];  // of queries and keys; biases may be null
  const float* rotary;               // (D), or null
  float* state;                      // (Hq, F, D + 2)
  bf16* o;                           // (Hq, D)

  /// The first of a head's columns of q, k or v.
  __device__ __forceinline__ int column_of(int head, int part) const {
    const int key_head = head / (heads / key_heads);
    return kHead * (part == 0 ? head : part == 1 ? heads + key_head : heads + key_heads + key_head);
  }
};

/// What a thread does, from registers of the hardware.
struct Place {
  int thread, lane, warp, head, block;
  int share, piece;  // of the weight's rows; the first of the head's columns that the block multiplies
  int lane_column;   // the first of the lane's columns among these

  static __device__ __forceinline__ Place read() {
    int thread, block;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
    asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(block));
    const int lane = thread % int(kWarp), of_head = block % kBlocks;
    return {thread, lane, thread / int(kWarp), block / kBlocks, of_head, of_head % kShares, of_head / kShares * kWide, lane % kShares * kEach};
  }
};

/// A cluster takes one token of one head through the norm, its columns of the projection and linear attention's step. Each block
/// normalises the row for itself and multiplies a share of the weight's rows with some of the columns. It tells its sums of q and k to
/// all blocks, each of which makes all features anew, and those of v to the block that has these columns of the state. All weights
/// and biases are on their way ahead of the wait.
__global__ void __launch_bounds__(kStepThreads, 2) norm_linear_attention_step_kernel(const __grid_constant__ Arguments a) {
  using Columns = StateColumns<1, kColumns / 2>;
  static_assert(Columns::kSlots * kStepWarps == kFeatures);
  __shared__ __align__(16) NormedRows<1> normed;
  __shared__ __align__(16) float memory[StepMemory<float>::size(kHead, kFeatures, kHead)];
  __shared__ __align__(16) float warp_sums[3 * kPartWarps][kWide];
  __shared__ __align__(16) float heads[2][kShares][kHead], values[kShares][kColumns];  // sums of q and k, of the block's columns of v
  __shared__ float biases[2][kHead], value_biases[kColumns], map_biases[2][kHead];
  __shared__ ClusterInbox inbox;
  start_next_kernel();
  Place at = Place::read();
  if (at.thread == 0) inbox.open(unsigned(sizeof heads + sizeof values));
  cluster_arrive_relaxed();

  const VectorProduct& p = a.projection;
  const int k = int(p.k), part = at.warp / kPartWarps;  // the last warp has none
  constexpr int kStep = kShares * kGroups;
  int row = part < 3 ? at.share * kGroups + (at.warp % kPartWarps * int(kWarp) + at.lane) / kShares : k;
  // under 2^31 where forward_fused calls this
  const unsigned n = unsigned(p.n), place = unsigned(a.column_of(at.head, part) + at.piece + at.lane_column);
  const auto* const weight = static_cast<const bf16*>(p.weight);
  uint4 packets[kFlight];
  auto fetch = [&] {
#pragma unroll
    for (int i = 0; i < kFlight; ++i) {
      packets[i] = make_uint4(0, 0, 0, 0);
      if (row + i * kStep < k) packets[i] = stream_in(weight + (unsigned(row + i * kStep) * n + place));
    }
  };
  const StepMemory<float> m(memory, kHead, kFeatures);
  constexpr std::int64_t kPitch = kHead + 2;
  float* const state = a.state + at.head * kFeatures * kPitch;

  if (!p.parameters) wait_for_kernels();
  fetch();
  TokenMap<bf16, kHead> map;
  map.fetch(a.map, at.head, kHead, kHead);
  normed.template fetch_parameters<kStepThreads>(p);
  auto bias_at = [&](int of, int column) {
    return p.bias ? load(static_cast<const bf16*>(p.bias) + a.column_of(at.head, of) + column) : 0.0f;
  };
  if (at.thread < kFeatures) {
    const int side = at.thread / kHead, column = at.thread % kHead;
    biases[side][column] = bias_at(side, column);
    map_biases[side][column] = a.map_bias[side] ? load(a.map_bias[side] + at.head * kHead + column) : 0.0f;
  } else if (at.thread < kFeatures + kColumns) {
    value_biases[at.thread - kFeatures] = bias_at(2, at.block * kColumns + at.thread - kFeatures);
  }
  if (p.parameters) {
    if (at.thread < kFeatures) {
      const float* const row_of_state = state + at.thread * kPitch;
      prefetch(row_of_state + at.block * kColumns);
      prefetch(row_of_state + (at.block + 1) * kColumns - 1);
      prefetch(row_of_state + kHead);
    }
    wait_for_kernels();
  }

  normed.template make<kStepThreads>(p);
  float sums[kEach] = {};
  while (row < k) {
#pragma unroll
    for (int i = 0; i < kFlight; ++i) {
      const float factor = row + i * kStep < k ? convert<float>(normed.rows[0][row + i * kStep]) : 0.0f;
      for_each_element(packets[i], [&](int j, float w) { sums[j] += factor * w; });
    }
    row += kFlight * kStep;
    if (row < k) fetch();
  }
  at = Place::read();  // few registers are left while weights wait in them
  // needed once q and k are there
  const int half = kHead / 2, side_of_pair = at.thread / half, pair = at.thread % half;
  float cosine = 1, sine = 0;
  if (a.rotary && at.thread < kHead) cosine = a.rotary[pair], sine = a.rotary[half + pair];
  KeySum<float> sum;
  auto* const key_sums = reinterpret_cast<float2*>(state + at.thread * kPitch + kHead);
  if (at.thread < kFeatures) {
    const float2 both = *key_sums;
    sum = {both.x, both.y};
  }
  float* const cell = state + Columns::row_of(0) * kPitch + at.block * kColumns + Columns::column();
  Columns columns;
  columns.fetch(cell, 0, kFeatures, true);

  int own;
  const int count = sum_over_groups<kShares>(sums, own);
#pragma unroll
  for (int j = 0; j < count; ++j)
    if (part < 3) warp_sums[at.warp][at.lane_column + own + j] = sums[j];
  cluster_wait();  // all inboxes are open
  __syncthreads();
  // threads tell a column of q or k to half of the blocks, the next ones that of v to its block
  constexpr int kShared = 2 * kWide, kHalf = kBlocks / 2;  // columns that all blocks want; blocks
  if (at.thread < 2 * kShared + kWide) {
    const int column = at.thread % kWide, of = at.thread < 2 * kShared ? at.thread / kWide % 2 : 2;
    float total = 0;
#pragma unroll
    for (int w = 0; w < kPartWarps; ++w) total += warp_sums[of * kPartWarps + w][column];
    if (of == 2) {
      inbox.send(&values[at.share][column % kColumns], unsigned(at.piece + column) / kColumns, total);
    } else {
#pragma unroll
      for (int i = 0; i < kHalf; ++i) inbox.send(&heads[of][at.share][at.piece + column], unsigned(at.thread / kShared * kHalf + i), total);
    }
  }
  inbox.wait();

  // rounded as the projection would be, then turned
  auto finished = [](const float* sums_of_shares, int pitch, float bias) {
    float h = 0;
#pragma unroll
    for (int i = 0; i < kShares; ++i) h += sums_of_shares[i * pitch];
    return convert<float>(convert<bf16>(h + bias));
  };
  float* const own_values = m.u;
  if (at.thread < kHead) {
    const float *const x = heads[side_of_pair][0], *const b = biases[side_of_pair];
    const float low = finished(x + pair, kHead, b[pair]), high = finished(x + half + pair, kHead, b[half + pair]);
    float* const turned = m.turned + side_of_pair * kHead;
    turned[pair] = a.rotary ? low * cosine - high * sine : low;
    turned[half + pair] = a.rotary ? high * cosine + low * sine : high;
  } else if (at.thread < kHead + kColumns) {
    own_values[at.thread - kHead] = finished(&values[0][at.thread - kHead], kColumns, value_biases[at.thread - kHead]);
  }
  __syncthreads();
  map.map<true>(m.turned + at.thread / kSideThreads * kHead, m.parts);
  __syncthreads();
  if (at.thread < kFeatures) {
    // ln phi = [u, -u]
    const float sign = at.thread < kHead ? 1.0f : -1.0f;
    auto u = [&](int side) { return map.sum(m.parts, side, at.thread % kHead, map_biases[side][at.thread % kHead]); };
    take_key(FeatureMap{}, kFeatures, sign * u(0), sign * u(1), sum, m);
  }
  __syncthreads();
  cluster_arrive_relaxed();  // this block has read the sums of keys
  const QueryScale<float> scale(m, kFeatures);
  float inverse = 0;
  if (at.warp == 0) inverse = scale.inverse(m);
  const int first = Columns::column();
  columns.take(m, scale, kFeatures, own_values[first], own_values[first + 1],
               [&](float total) { a.o[at.head * kHead + at.block * kColumns + at.thread] = convert<bf16>(total * inverse); });
  columns.store(cell, 0, kFeatures, true);
  // all blocks have read the sums of keys before one writes them, and all have been told what they wait for before one ends
  cluster_wait();
  if (at.block == 0 && at.thread < kFeatures) *key_sums = make_float2(sum.z, sum.shift);
}

/// Whether the kernel takes the call; then it is launched.
bool forward_fused(const Call& c) {
  const auto& in = c.inputs;
  const Ref &x = in[kX], &weight = in[kWeight];
  const PackedHeads s(c.attributes, weight.shape);
  const std::int64_t width = x.shape.last();
  const bool usual = x.dtype == Dtype::bf16 && x.shape.rows() == 1 && s.D == kHead && in[kWeightQ] && in[kWeightQ].shape[2] == kHead &&
                     feature_map_of(kName, c.attributes).kind == MapKind::hedgehog;
  const bool fits = width <= kMostNormed && width % kEach == 0 && s.columns < (std::int64_t(1) << 20) &&
                    aligned({x.data, weight.data, in[kNormWeight].data, in[kNormBias].data, in[kState].data, in[kWeightQ].data, in[kWeightK].data});
  if (!has_early_launches() || !usual || !fits) return false;
  bool parameters = true;
  for (int i = kNormWeight; i < kInputs; ++i)
    if (i != kState && i != kRotary && in[std::size_t(i)]) parameters = parameters && in[std::size_t(i)].parameter;
  const Arguments a{{.m = 1,
                     .n = s.columns,
                     .k = width,
                     .x = x.data,
                     .ldx = width,
                     .norm_weight = in[kNormWeight].as<float>(),
                     .norm_bias = in[kNormBias].as<float>(),
                     .eps = float(c.attributes.real("eps")),
                     .centred = c.attributes.text("norm") == "layer",
                     .weight = weight.data,
                     .bias = in[kBias].data,
                     .parameters = parameters},
                    int(s.Hq),
                    int(s.Hkv),
                    {in[kWeightQ].as<const bf16>(), in[kWeightK].as<const bf16>()},
                    {in[kBiasQ].as<const bf16>(), in[kBiasK].as<const bf16>()},
                    in[kRotary].as<const float>(),
                    in[kState].as<float>(),
                    c.outputs[0].as<bf16>()};
  launch_clusters_early(kName, norm_linear_attention_step_kernel, kBlocks, unsigned(s.Hq * kBlocks), kStepThreads, 0, a);
  return true;
}

void forward(const Call& c) {
  if (forward_fused(c)) return;
  forward_parts(c, kernels().at("norm_linear").forward, kernels().at("linear_attention_step").forward);
}

std::int64_t workspace(const Attributes& a, std::span<const Meta> in) {
  auto bytes = [](const char* op, const Attributes& attributes, std::span<const Meta> inputs) {
    const WorkspaceBytes& of = kernels().at(op).forward_workspace;
    return of ? of(attributes, inputs) : 0;
  };
  return packed_bytes(in[kX], in[kWeight]) +
         std::max(bytes("norm_linear", linear_attributes(a), linear_inputs(in)),
                  bytes("linear_attention_step", step_attributes(a), step_inputs(PackedHeads(a, in[kWeight].shape), in)));
}

}  // namespace

void register_norm_linear_attention_step(KernelTable& table) {
  table[kName] = {.forward = forward, .forward_workspace = workspace};
}

}  // namespace hedgehog::cuda

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
constexpr int kColumns = kHead / kBlocks;     // of q, of k, of v and of the state, that a block has: 16 bytes of a row of the weight
constexpr int kPartWarps = kStepWarps / 3;    // that multiply with the columns of q; as many with those of k, and of v
constexpr int kFlight = 5;                    // loads of a thread that are on their way at once
constexpr int kSenders = kBlocks * 2 * kColumns;  // threads that tell q and k to one block each
static_assert(kColumns == kEach && kHead * kHead / 2 == kSideThreads * kHeldRows && kSenders + kColumns <= kStepThreads);

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

/// A cluster takes one token of one head through the norm, its columns of the projection and linear attention's step. Each block
/// normalises the row for itself, makes an eighth of q, k and v, and tells q and k to all: every block makes all features anew. It
/// keeps its part of v, which belongs to its columns of the state. All weights and biases are on their way ahead of the wait.
__global__ void __launch_bounds__(kStepThreads, 2) norm_linear_attention_step_kernel(const __grid_constant__ Arguments a) {
  using Columns = StateColumns<1, kColumns / 2>;
  static_assert(Columns::kSlots * kStepWarps == kFeatures);
  __shared__ __align__(16) NormedRows<1> normed;
  __shared__ __align__(16) float memory[StepMemory<float>::size(kHead, kFeatures, kHead)];
  __shared__ __align__(16) float warp_sums[3 * kPartWarps][kColumns];
  __shared__ __align__(16) float received[2][kHead], values[kColumns];  // q and k; the block's part of v
  __shared__ float biases[3][kColumns], map_biases[2][kHead];
  __shared__ ClusterInbox inbox;
  start_next_kernel();
  const int thread = int(threadIdx.x), lane = thread % int(kWarp), warp = thread / int(kWarp);
  const int head = int(blockIdx.x) / kBlocks, block = int(blockIdx.x) % kBlocks;
  if (thread == 0) inbox.open((2 * kHead + kColumns) * unsigned(sizeof(float)));
  cluster_arrive_relaxed();

  const VectorProduct& p = a.projection;
  const int k = int(p.k), part = warp / kPartWarps;  // the last warp has none
  constexpr int kStep = kPartWarps * int(kWarp);
  int row = part < 3 ? warp % kPartWarps * int(kWarp) + lane : k;
  // under 2^31 where forward_fused calls this
  const unsigned n = unsigned(p.n), place = unsigned(a.column_of(head, part) + block * kColumns);
  const auto* const weight = static_cast<const bf16*>(p.weight);
  uint4 packets[kFlight];
  auto fetch = [&] {
#pragma unroll
    for (int i = 0; i < kFlight; ++i) {
      packets[i] = make_uint4(0, 0, 0, 0);
      if (row + i * kStep < k) packets[i] = stream_in(weight + (unsigned(row + i * kStep) * n + place));
    }
  };
  // threads finish a column of q or k for one block each, the next ones those of v for this block
  const int to = thread < kSenders ? thread / (2 * kColumns) : block, column = thread % kColumns;
  const int finished = thread < kSenders ? thread / kColumns % 2 : 2;
  const bool finishes = thread < kSenders + kColumns;

  const StepMemory<float> m(memory, kHead, kFeatures);
  constexpr std::int64_t kPitch = kHead + 2;
  float* const state = a.state + head * kFeatures * kPitch;

  if (!p.parameters) wait_for_kernels();
  fetch();
  TokenMap<bf16, kHead> map;
  map.fetch(a.map, head, kHead, kHead);
  normed.template fetch_parameters<kStepThreads>(p);
  if (thread < 3 * kColumns) {
    const int of = thread / kColumns, at = a.column_of(head, of) + block * kColumns + column;
    biases[of][column] = p.bias ? load(static_cast<const bf16*>(p.bias) + at) : 0.0f;
  }
  if (thread < kFeatures) {
    const bf16* const from = a.map_bias[thread / kHead];
    map_biases[thread / kHead][thread % kHead] = from ? load(from + head * kHead + thread % kHead) : 0.0f;
  }
  if (p.parameters) {
    if (thread < kFeatures) {
      const float* const row_of_state = state + thread * kPitch;
      prefetch(row_of_state + block * kColumns);
      prefetch(row_of_state + (block + 1) * kColumns - 1);
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
  // needed once q and k are there
  const int half = kHead / 2, side_of_pair = thread / half, pair = thread % half;
  float cosine = 1, sine = 0;
  if (a.rotary && thread < kHead) cosine = a.rotary[pair], sine = a.rotary[half + pair];
  KeySum<float> sum;
  auto* const key_sums = reinterpret_cast<float2*>(state + thread * kPitch + kHead);
  if (thread < kFeatures) {
    const float2 both = *key_sums;
    sum = {both.x, both.y};
  }
  float* const cell = state + Columns::row_of(0) * kPitch + block * kColumns + Columns::column();
  Columns columns;
  columns.fetch(cell, 0, kFeatures, true);

  int own;
  sum_over_groups<1>(sums, own);
  if (part < 3) warp_sums[warp][own] = sums[0];
  cluster_wait();  // all inboxes are open
  __syncthreads();
  if (finishes) {
    float h = 0;
#pragma unroll
    for (int w = 0; w < kPartWarps; ++w) h += warp_sums[finished * kPartWarps + w][column];
    h = convert<float>(convert<bf16>(h + biases[finished][column]));
    inbox.send(finished < 2 ? &received[finished][block * kColumns + column] : &values[column], unsigned(to), h);
  }
  inbox.wait();

  const float* x = received[0];
  if (a.rotary) {
    if (thread < kHead) {
      const float low = received[side_of_pair][pair], high = received[side_of_pair][half + pair];
      float* const turned = m.turned + side_of_pair * kHead;
      turned[pair] = low * cosine - high * sine;
      turned[half + pair] = high * cosine + low * sine;
    }
    __syncthreads();
    x = m.turned;
  }
  map.map<true>(x + thread / kSideThreads * kHead, m.parts);
  __syncthreads();
  if (thread < kFeatures) {
    // ln phi = [u, -u]
    const float sign = thread < kHead ? 1.0f : -1.0f;
    auto u = [&](int side) { return map.sum(m.parts, side, thread % kHead, map_biases[side][thread % kHead]); };
    take_key(FeatureMap{}, kFeatures, sign * u(0), sign * u(1), sum, m);
  }
  __syncthreads();
  cluster_arrive_relaxed();  // this block has read the sums of keys
  const QueryScale<float> scale(m, kFeatures);
  float inverse = 0;
  if (warp == 0) inverse = scale.inverse(m);
  const int first = Columns::column();
  columns.take(m, scale, kFeatures, values[first], values[first + 1],
               [&](float total) { a.o[head * kHead + block * kColumns + thread] = convert<bf16>(total * inverse); });
  columns.store(cell, 0, kFeatures, true);
  // all blocks have read the sums of keys before one writes them, and all have been told what they wait for before one ends
  cluster_wait();
  if (block == 0 && thread < kFeatures) *key_sums = make_float2(sum.z, sum.shift);
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

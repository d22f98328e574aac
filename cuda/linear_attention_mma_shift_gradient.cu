#include "cuda/linear_attention_mma_backward.cuh"

namespace hedgehog::cuda::linear_attention_mma {
namespace {

constexpr int kThreads = 256;

/// Whether no number before `r` equals that of r; asked by a whole warp.
__device__ __forceinline__ bool is_first_of(const int* numbers, int r, int lane) {
  bool first = true;
  for (int other = lane; other < r; other += 32) first &= numbers[other] != numbers[r];
  return __all_sync(0xffffffffu, first);
}
/// Calls visit(i) by a whole warp for the numbers from r on that equal that of r, in order.
template <int kCount, class Visit>
__device__ __forceinline__ void for_each_equal(const int (&numbers)[kCount], int r, int lane, const Visit& visit) {
  for (int begin = r / 32 * 32; begin < kCount; begin += 32) {
    unsigned equal = __ballot_sync(0xffffffffu, begin + lane >= r && numbers[begin + lane] == numbers[r]);
    for (; equal; equal &= equal - 1) visit(begin + __ffs(int(equal)) - 1);
  }
}

/// The final c of a feature is the largest of its logarithms: its gradient goes to the first key that has it, and through u = x W to dk
/// and dweight_k, unless no key is above the initial state. One block a batch element and head.
template <int kD>
__global__ void __launch_bounds__(kThreads) linear_attention_shift_gradient_kernel(const __grid_constant__ BackwardArguments p) {
  constexpr int kF = 2 * kD, kWarps = kThreads / 32;
  __shared__ float weight[kD][kD], gradient[kF], largest[kF];
  __shared__ int chunk[kF], token[kF];  // -1: none
  const Sequence& s = p.s;
  const std::int64_t index = blockIdx.x, b = index / s.H, h = index % s.H;
  const int thread = int(threadIdx.x), warp = thread / 32, lane = thread % 32;
  wait_for_kernels();
  for (int i = thread; i < kD * kD; i += kThreads) weight[i / kD][i % kD] = __bfloat162float(s.weight_k[h * kD * kD + i]);
  if (thread < kF) {
    // the first chunk after which the shift, which never falls, is the final one
    const float* const shifts = p.shifts + index * s.chunks * kF + thread;
    const auto shift_of = [&](int chunk) { return shifts[std::int64_t(chunk) * kF]; };
    int low = 0, high = s.chunks - 1;
    const float final = shift_of(high);
    while (low < high) {
      const int middle = (low + high) / 2;
      if (shift_of(middle) < final) low = middle + 1;
      else high = middle;
    }
    const bool initial = s.initial && p.states.shift[s.state_slot(index, 0) * kF + thread] == final;
    gradient[thread] = p.dshift[index * kF + thread];
    chunk[thread] = initial ? -1 : low;
    token[thread] = -1, largest[thread] = -INFINITY;
  }
  __syncthreads();

  // a warp looks through a chunk for all features that have their key there, 32 keys at a time, one a lane
  for (int r = warp; r < kF; r += kWarps) {
    if (chunk[r] < 0 || !is_first_of(chunk, r, lane)) continue;
    const std::int64_t t0 = std::int64_t(chunk[r]) * kD;
    for (int first = 0; first < kD && t0 + first < s.T; first += 32) {
      const std::int64_t t = t0 + first + lane;
      const bool valid = t < s.T;
      const bf16* const row = s.k.at(b, valid ? t : t0, h);
      Packet<bf16, 8> key[kD / 8];
#pragma unroll
      for (int d = 0; d < kD; d += 8)
        if (s.vector) key[d / 8] = load_packet<8>(row + d);
        else for (int i = 0; i < 8; ++i) key[d / 8][i] = row[d + i];
      for_each_equal(chunk, r, lane, [&](int feature) {
        float u = 0;
#pragma unroll
        for (int d = 0; d < kD; ++d) u += __bfloat162float(key[d / 8][d % 8]) * weight[d][feature % kD];
        if (feature >= kD) u = -u;
        if (!valid) u = -INFINITY;
        const float top = warp_max(u);
        const unsigned who = __ballot_sync(0xffffffffu, u == top && u > -INFINITY);
        if (lane == 0 && who && top > largest[feature]) largest[feature] = top, token[feature] = int(t0) + first + __ffs(int(who)) - 1;
      });
    }
  }
  __syncthreads();

  // features may share a key: a warp brings the gradients of all
  HeadsTarget<bf16> dk = p.dk;
  dk.adds = true;
  for (int r = warp; r < kF && dk; r += kWarps) {
    if (token[r] < 0 || !is_first_of(token, r, lane)) continue;
    float sum[kD / 32] = {};
    for_each_equal(token, r, lane, [&](int feature) {
      const float g = feature < kD ? gradient[feature] : -gradient[feature];
      for (int x = 0; x < kD / 32; ++x) sum[x] += g * weight[lane + 32 * x][feature % kD];
    });
    for (int x = 0; x < kD / 32; ++x) dk.put(dk.at(b, token[r], h) + lane + 32 * x, sum[x]);
  }
#pragma unroll 4
  for (int i = thread; i < kD * kD; i += kThreads) {
    const int d = i / kD, e = i % kD, of[2] = {token[e], token[kD + e]};
    float x[2], sum = p.dweight[1][index * s.segments * kD * kD + i];
#pragma unroll
    for (int sign = 0; sign < 2; ++sign) x[sign] = __bfloat162float(s.k.at(b, max(of[sign], 0), h)[d]);
    if (of[0] >= 0) sum += gradient[e] * x[0];
    if (of[1] >= 0) sum -= gradient[kD + e] * x[1];
    p.dweight[1][index * s.segments * kD * kD + i] = sum;
  }
}

}  // namespace

void add_shift_gradients(const BackwardArguments& p, std::int64_t batch, int D) {
  const auto kernel = D == 64 ? linear_attention_shift_gradient_kernel<64> : linear_attention_shift_gradient_kernel<32>;
  launch(kernel, batch * p.s.H, kThreads, 0, p);
}

}  // namespace hedgehog::cuda::linear_attention_mma

#include "cuda/linear_attention_mma_backward.cuh"

namespace hedgehog::cuda::linear_attention_mma {
namespace {

constexpr int kThreads = 512;

/// The final c of a feature is the largest of its logarithms: its gradient goes to the first key that has it, and through u = x W + bias
/// to dk, dweight_k and dbias_k, unless no key is above the initial state. One block a batch element and head.
template <int kD>
__global__ void __launch_bounds__(kThreads) linear_attention_shift_gradient_kernel(const __grid_constant__ BackwardArguments p) {
  constexpr int kF = 2 * kD, kWarps = kThreads / 32;
  __shared__ float weight[kD][kD], gradient[kF];
  __shared__ std::int64_t token[kF];  // -1: none
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
    token[thread] = initial ? -1 : std::int64_t(low) * kD;
  }
  __syncthreads();

  // a warp looks for the key of a feature in its chunk
  for (int r = warp; r < kF; r += kWarps) {
    const std::int64_t t0 = token[r];
    if (t0 < 0) continue;
    // kPieces lanes share a key, each has 8 of its elements
    constexpr int kPieces = kD / 8, kKeys = 32 / kPieces;
    const int first = lane % kPieces * 8;
    float column[8], largest = -INFINITY;
    for (int d = 0; d < 8; ++d) column[d] = weight[first + d][r % kD];
    int of = kD;
#pragma unroll 8
    for (int step = 0; step < kD / kKeys; ++step) {
      const int i = step * kKeys + lane / kPieces;
      const bool valid = t0 + i < s.T;
      const bf16* const key = s.k.at(b, valid ? t0 + i : t0, h) + first;
      float x[8], u = 0;
      if (s.vector) load_packet<8>(key, x);
      else for (int d = 0; d < 8; ++d) x[d] = __bfloat162float(key[d]);
      for (int d = 0; d < 8; ++d) u += x[d] * column[d];
      for (int offset = kPieces / 2; offset > 0; offset /= 2) u += __shfl_xor_sync(0xffffffffu, u, offset);
      if (r >= kD) u = -u;
      if (valid && u > largest) largest = u, of = i;
    }
    const float top = warp_max(largest);
    if (largest != top) of = kD;
    for (int offset = 16; offset > 0; offset /= 2) of = min(of, __shfl_xor_sync(0xffffffffu, of, offset));
    if (lane == 0) token[r] = t0 + of;
  }
  __syncthreads();

  // features may share a key: the first of them brings the gradients of all
  HeadsTarget<bf16> dk = p.dk;
  dk.adds = true;
  for (int r = warp; r < kF && dk; r += kWarps) {
    bool is_first = token[r] >= 0;
    for (int other = lane; other < r; other += 32) is_first &= token[other] != token[r];
    if (!__all_sync(0xffffffffu, is_first)) continue;
    float sum[kD / 32] = {};
    for (int other = r; other < kF; ++other) {
      if (token[other] != token[r]) continue;
      const float g = other < kD ? gradient[other] : -gradient[other];
      for (int x = 0; x < kD / 32; ++x) sum[x] += g * weight[lane + 32 * x][other % kD];
    }
    for (int x = 0; x < kD / 32; ++x) dk.put(dk.at(b, token[r], h) + lane + 32 * x, sum[x]);
  }
  for (int i = thread; i < kD * kD; i += kThreads) {
    const int d = i / kD, e = i % kD;
    float sum = 0;
    if (token[e] >= 0) sum += gradient[e] * __bfloat162float(s.k.at(b, token[e], h)[d]);
    if (token[kD + e] >= 0) sum -= gradient[kD + e] * __bfloat162float(s.k.at(b, token[kD + e], h)[d]);
    p.dweight[1][index * s.segments * kD * kD + i] += sum;
  }
  if (thread < kD && p.dbias[1])
    p.dbias[1][index * s.segments * kD + thread] +=
        (token[thread] >= 0 ? gradient[thread] : 0.0f) - (token[kD + thread] >= 0 ? gradient[kD + thread] : 0.0f);
}

}  // namespace

void add_shift_gradients(const BackwardArguments& p, std::int64_t batch, int D) {
  const auto kernel = D == 64 ? linear_attention_shift_gradient_kernel<64> : linear_attention_shift_gradient_kernel<32>;
  launch(kernel, batch * p.s.H, kThreads, 0, p);
}

}  // namespace hedgehog::cuda::linear_attention_mma

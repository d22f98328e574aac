#include "cuda/linear_attention_warpgroup_keys.cuh"
#include "cuda/linear_attention_warpgroup_queries.cuh"

namespace hedgehog::cuda::linear_attention_mma {
namespace {

/// Blocks a multiprocessor, and their shared memory with what the kernel has of its own.
template <WarpgroupPass kPass>
constexpr int kBlocks = kPass == WarpgroupPass::sums ? 3 : 2;
template <WarpgroupPass kPass>
constexpr std::size_t kMemory = kPass == WarpgroupPass::sums ? sizeof(WarpgroupSumsMemory)
                                                             : std::max(sizeof(WarpgroupQueriesMemory), sizeof(WarpgroupKeysMemory));
static_assert(kBlocks<WarpgroupPass::both> * (kMemory<WarpgroupPass::both> + 2048) <= 228 * 1024);
static_assert(kBlocks<WarpgroupPass::sums> * (kMemory<WarpgroupPass::sums> + 2048) <= 228 * 1024);

__device__ __forceinline__ int load_acquire(const int* at) {
  int value;
  asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(value) : "l"(at) : "memory");
  return value;
}

/// Blocks that stay draw walks one after the other: those in the order of time, then those against it. Both in one launch where
/// nothing has to happen between them, so that the second pass starts on multiprocessors that the first leaves idle: a walk
/// against time waits for its counterpart, which was drawn before and waits for nothing. Walks handed over are left out.
template <WarpgroupPass kPass>
__global__ void __launch_bounds__(128, kBlocks<kPass>) linear_attention_warpgroup_backward_kernel(const __grid_constant__ BackwardArguments p) {
  constexpr bool kQueries = kPass == WarpgroupPass::queries || kPass == WarpgroupPass::both, kKeys = kPass != WarpgroupPass::queries;
  __shared__ int shared;
  const int thread = int(threadIdx.x), items = p.walks * (int(kQueries) + int(kKeys));
  while (true) {
    if (thread == 0) shared = atomicAdd(p.tickets + int(kPass), 1) + 1;
    __syncthreads();
    const int item = shared;
    if (item >= items) return;
    __syncthreads();
    const Walk walk(p.s, item < p.walks ? item : item - p.walks);
    if (kQueries && item < p.walks) {
      const int stopped = walk_queries(p, walk);
      __threadfence();
      __syncthreads();
      if (thread == 0) atomicExch(p.handover + walk.slot, stopped);
    } else if constexpr (kKeys) {
      if (thread == 0) {
        int stopped = load_acquire(p.handover + walk.slot);
        while (stopped < 0) stopped = load_acquire(p.handover + walk.slot);
        shared = stopped;
      }
      __syncthreads();
      const bool done = shared >= walk.end;
      __syncthreads();
      if (done && !(kPass == WarpgroupPass::sums && walk.segment == 0)) walk_keys<kPass == WarpgroupPass::sums>(p, walk);
      __syncthreads();
    }
  }
}

template <WarpgroupPass kPass>
void start(const BackwardArguments& p) {
  const int items = p.walks * (kPass == WarpgroupPass::both ? 2 : 1);
  launch(linear_attention_warpgroup_backward_kernel<kPass>, std::min(items, kBlocks<kPass> * multiprocessors()), 128, kMemory<kPass>, p);
}

}  // namespace

void warpgroup_backward(const BackwardArguments& p, WarpgroupPass pass) {
  switch (pass) {
    case WarpgroupPass::queries: return start<WarpgroupPass::queries>(p);
    case WarpgroupPass::sums: return start<WarpgroupPass::sums>(p);
    case WarpgroupPass::keys: return start<WarpgroupPass::keys>(p);
    case WarpgroupPass::both: return start<WarpgroupPass::both>(p);
  }
}

}  // namespace hedgehog::cuda::linear_attention_mma

#include "cuda/linear_attention_warpgroup_keys.cuh"
#include "cuda/linear_attention_warpgroup_queries.cuh"

namespace hedgehog::cuda::linear_attention_mma {
namespace {

/// Blocks a multiprocessor, and their shared memory.
template <WarpgroupPass kPass>
constexpr int kBlocks = kPass == WarpgroupPass::sums ? 3 : 2;
template <WarpgroupPass kPass, bool kGeneral, bool kTurned>
constexpr std::size_t kMemory = kPass == WarpgroupPass::queries ? sizeof(WarpgroupQueriesMemory<kGeneral, kTurned>)
                                : kPass == WarpgroupPass::sums  ? sizeof(WarpgroupSumsMemory<kGeneral, kTurned>)
                                                                : sizeof(WarpgroupKeysMemory<kGeneral, kTurned>);
[[maybe_unused]] constexpr std::size_t kOwn = 2048;  // of the system, and of the kernel itself

/// Waits until a walk in the order of time has ended, and gives the chunk where.
[[maybe_unused]] __device__ __forceinline__ int wait_for(const int* handover) {
  int stopped;
  do asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(stopped) : "l"(handover) : "memory");
  while (stopped < 0);
  return stopped;
}

/// One block a walk. Without segments the pass against time does not wait for all of the pass in the order of time: its blocks
/// start as soon as all of that are under way, on multiprocessors that those leave idle, and wait for their counterparts, which wait
/// for nothing. Walks handed over are left out.
template <WarpgroupPass kPass, bool kGeneral, bool kTurned>
__global__ void __launch_bounds__(128, kBlocks<kPass>) linear_attention_warpgroup_backward_kernel(const __grid_constant__ BackwardArguments p) {
#if HEDGEHOG_WARPGROUPS
  static_assert(kBlocks<kPass> * (kMemory<kPass, kGeneral, kTurned> + kOwn) <= 228 * 1024);
  const Walk walk(p.s);
  const int thread = int(threadIdx.x);
  if constexpr (kPass == WarpgroupPass::queries) {
    wait_for_kernels([&] {  // not done, for the pass against time
      if (thread == 0) atomicExch(p.handover + walk.slot, -1);
      __threadfence();
    });
    const int stopped = walk_queries<kGeneral, kTurned>(p, walk);
    __threadfence();
    __syncthreads();
    if (thread == 0) atomicExch(p.handover + walk.slot, stopped);
  } else {
    constexpr bool kSums = kPass == WarpgroupPass::sums;
    __shared__ int shared;
    if (kSums || p.s.segments > 1) wait_for_kernels();  // else early
    if (kSums && walk.segment == 0) return;
    if (thread == 0) shared = wait_for(p.handover + walk.slot) >= walk.end;
    __syncthreads();
    if (!shared) return;
    walk_keys<kGeneral, kTurned, kSums>(p, walk);
  }
#endif
}

template <WarpgroupPass kPass>
void start(const BackwardArguments& p) {
  with_form(p.s, [&](auto general, auto turned) {
    launch(linear_attention_warpgroup_backward_kernel<kPass, general, turned>, p.walks, 128, kMemory<kPass, general, turned>, p);
  });
}

}  // namespace

void warpgroup_backward(const BackwardArguments& p, WarpgroupPass pass) {
  switch (pass) {
    case WarpgroupPass::queries: return start<WarpgroupPass::queries>(p);
    case WarpgroupPass::sums: return start<WarpgroupPass::sums>(p);
    case WarpgroupPass::keys: return start<WarpgroupPass::keys>(p);
  }
}

}  // namespace hedgehog::cuda::linear_attention_mma

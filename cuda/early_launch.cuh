#pragma once
#include <type_traits>

#include "cuda/stream.h"

/// Kernels that start while the one before them on the stream still runs (programmatic dependent launch, Hopper and later;
/// elsewhere these are ordinary launches).
///
///   __global__ void kernel(const Arguments a) {
///     ...                     // fetch parameters, which no kernel launched early writes
///     wait_for_kernels();     // everything before is complete
///     ...
///   }
///   launch_early("op", kernel, blocks, threads, shared_bytes, arguments);
///
/// A kernel starts early only behind one that was launched early, too, and that one lets it start when all before itself are
/// complete, or, with start_next_kernel(), when its own blocks have started. What is fetched ahead of the wait can thus be changed
/// by kernels launched early alone: never where it is a parameter (Ref::parameter), as optimisers are launched ordinarily. Products of
/// the library in between do not break the chain: what they write is read behind the wait, and no parameter is among it.
namespace hedgehog::cuda {

/// To be called once by every thread, before the first access to anything that kernels write. It also lets the next kernel
/// start.
__device__ __forceinline__ void wait_for_kernels() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
/// The same with something between the two, which all threads have done before the next kernel starts: for one that does not wait.
template <class Between>
__device__ __forceinline__ void wait_for_kernels(const Between& between) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
  between();
  __syncthreads();
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/// Lets the next kernel start though those before this one may still run: for the small kernels of decoding, where the parameters
/// of the next two are then on their way. The kernel waits later, with all threads: when it is complete all before it are. Not
/// before a kernel that does not wait.
__device__ __forceinline__ void start_next_kernel() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/// Brings a cache line to L2, ahead of the wait, too: what another kernel writes later is seen there.
__device__ __forceinline__ void prefetch(const void* at) { asm volatile("prefetch.global.L2 [%0];" ::"l"(at)); }

/// Threads of all blocks of a cluster meet, and nothing is said of what they wrote, which would have to arrive everywhere first:
/// all have started, or have read. Nothing where there are no clusters.
__device__ __forceinline__ void cluster_arrive_relaxed() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory");
#endif
}
__device__ __forceinline__ void cluster_wait() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
#endif
}

/// Counts the bytes that blocks of the cluster send to one of them, in its shared memory. Any block may have one, and may be told by
/// itself: `bytes` counts these, too.
///
///   if (receives && threadIdx.x == 0) inbox.open(bytes);
///   cluster_arrive_relaxed();
///   ...
///   cluster_wait();                           // it is open
///   if (!receives) inbox.send(&there, 0, x);  // there: a place in the shared memory of block 0
///   if (receives) inbox.wait();               // all of its threads, after a __syncthreads() behind open; what was sent is seen
struct ClusterInbox {
  alignas(8) std::uint64_t barrier;

  static __device__ __forceinline__ unsigned shared_address_of(const void* at) { return unsigned(__cvta_generic_to_shared(at)); }
  __device__ __forceinline__ void open(unsigned bytes) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    const unsigned here = shared_address_of(&barrier);
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(here) : "memory");
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(here), "r"(bytes) : "memory");
#endif
  }
  /// To where `at` lies in the block `rank`, whose inbox is at this address there.
  __device__ __forceinline__ void send(float* at, unsigned rank, float value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    unsigned to, counted;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(to) : "r"(shared_address_of(at)), "r"(rank));
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(counted) : "r"(shared_address_of(&barrier)), "r"(rank));
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(to), "r"(__float_as_uint(value)), "r"(counted)
                 : "memory");
#endif
  }
  __device__ __forceinline__ void wait() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "again:\n"
        "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], 0;\n"
        "@!done bra again;\n"
        "}\n" ::"r"(shared_address_of(&barrier))
        : "memory");
#endif
  }
};

/// Launches a kernel that calls wait_for_kernels (or waits in another way for what it reads). Each `cluster` neighbouring blocks
/// form one; more than 1 only where has_early_launches().
template <class... Parameters>
void launch_clusters_early(const char* op, void (*kernel)(Parameters...), unsigned cluster, dim3 blocks, dim3 threads, std::size_t shared,
                           const std::type_identity_t<Parameters>&... arguments) {
  cudaLaunchAttribute attributes[2] = {};
  cudaLaunchConfig_t config{};
  config.gridDim = blocks, config.blockDim = threads, config.dynamicSmemBytes = shared, config.stream = stream();
  config.attrs = attributes;
  if (has_early_launches() && last_launch_was_early()) {
    cudaLaunchAttribute& a = attributes[config.numAttrs++];
    a.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    a.val.programmaticStreamSerializationAllowed = 1;
  }
  if (cluster > 1) {
    cudaLaunchAttribute& a = attributes[config.numAttrs++];
    a.id = cudaLaunchAttributeClusterDimension;
    a.val.clusterDim.x = cluster, a.val.clusterDim.y = 1, a.val.clusterDim.z = 1;
  }
  check(cudaLaunchKernelEx(&config, kernel, arguments...), op);
  note_launch(true);
}
template <class... Parameters>
void launch_early(const char* op, void (*kernel)(Parameters...), dim3 blocks, dim3 threads, std::size_t shared,
                  const std::type_identity_t<Parameters>&... arguments) {
  launch_clusters_early(op, kernel, 1, blocks, threads, shared, arguments...);
}

}  // namespace hedgehog::cuda

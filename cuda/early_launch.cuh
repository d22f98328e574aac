#pragma once
#include <type_traits>

#include "cuda/stream.h"

/// Kernels that start while the one before them on the stream still runs (programmatic dependent launch, Hopper and later;
/// elsewhere these are ordinary launches).
///
///   __global__ void kernel(const Arguments a) {
///     ...                     // fetch what no kernel writes: weights
///     wait_for_kernels();     // everything before is complete
///     ...
///   }
///   launch_early(kernel, blocks, threads, shared_bytes, arguments);
namespace hedgehog::cuda {

/// To be called once by every thread, before the first access to anything that kernels write. It also lets the next kernel
/// start; as that happens only when all before this one is complete, weights that a kernel fetches ahead of its own wait
/// cannot be changed by any but the one directly before it.
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

/// Launches a kernel that calls wait_for_kernels (or waits in another way for what it reads).
template <class... Parameters>
void launch_early(const char* op, void (*kernel)(Parameters...), dim3 blocks, dim3 threads, std::size_t shared,
                  const std::type_identity_t<Parameters>&... arguments) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = blocks, config.blockDim = threads, config.dynamicSmemBytes = shared, config.stream = stream();
  config.attrs = &attribute, config.numAttrs = starts_early() ? 1 : 0;
  check(cudaLaunchKernelEx(&config, kernel, arguments...), op);
}

}  // namespace hedgehog::cuda

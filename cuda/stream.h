#pragma once
#include <cuda_runtime.h>

#include "core/op.h"

namespace hedgehog::cuda {

/// The stream that every kernel is launched on; the program has one device and one compute stream.
cudaStream_t stream();

/// Throws Error with CUDA's name and sentence for the code, and where it happened.
void check(cudaError_t status, const char* what);
/// To be called after each launch but an early one: refuses a launch that could not be made, naming the op.
void check_launch(const char* op);

/// [op] a window of a packed tensor whose tokens are not evenly spaced.
[[noreturn]] void throw_uneven(const char* op, const Ref& x);

/// Properties read once.
int multiprocessors();
std::size_t largest_shared_memory();  // bytes a block may ask for
/// Whether the program has machine code with warpgroup products (wgmma) for this device: sm_90a on Hopper. The environment variable
/// HEDGEHOG_GPU_KERNELS=portable answers no, so that the kernels of other GPUs can be tested here.
bool has_warpgroups();
/// Whether kernels may start while the one before them runs and blocks may form clusters (cuda/early_launch.cuh): code for Hopper or
/// later on such a device. The same variable answers no.
bool has_early_launches();
/// Whether the kernel launched last was launched early; check_launch and launch_early say so.
bool last_launch_was_early();
void note_launch(bool early);
/// Lets a kernel use `bytes` of dynamic shared memory. Throws Error if the device has less.
void allow_shared_memory(const void* kernel, std::size_t bytes);

}  // namespace hedgehog::cuda

#include "cuda/feed.h"

#include "cuda/common.cuh"

namespace hedgehog::cuda {
namespace {

__global__ void move_slot_kernel(const std::byte* from, std::size_t slot_bytes, std::size_t slots, const std::uint32_t* counter,
                                 std::byte* to, std::size_t bytes) {
  from += *counter % slots * slot_bytes;
  const std::size_t first = blockIdx.x * std::size_t(blockDim.x) + threadIdx.x, step = gridDim.x * std::size_t(blockDim.x);
  const bool aligned = reinterpret_cast<std::uintptr_t>(to) % 16 == 0;
  const std::size_t words = aligned ? bytes / 16 : 0;
  for (std::size_t i = first; i < words; i += step) reinterpret_cast<uint4*>(to)[i] = reinterpret_cast<const uint4*>(from)[i];
  for (std::size_t i = words * 16 + first; i < bytes; i += step) to[i] = from[i];
}

__global__ void move_out_kernel(const std::byte* from, std::byte* to, std::size_t bytes) {
  for (std::size_t i = threadIdx.x; i < bytes; i += blockDim.x) to[i] = from[i];
}

__global__ void advance_slot_kernel(std::uint32_t* counter) { ++*counter; }

}  // namespace

void move_slot(const void* from, std::size_t slot_bytes, std::size_t slots, const std::uint32_t* counter, void* to, std::size_t bytes) {
  move_slot_kernel<<<blocks_for(std::int64_t(bytes), 4096, 264), 256, 0, stream()>>>(static_cast<const std::byte*>(from), slot_bytes, slots, counter,
                                                                               static_cast<std::byte*>(to), bytes);
  check_launch("feed");
}

void move_out(const void* from, void* to, std::size_t bytes) {
  move_out_kernel<<<1, 32, 0, stream()>>>(static_cast<const std::byte*>(from), static_cast<std::byte*>(to), bytes);
  check_launch("readback");
}

void advance_slot(std::uint32_t* counter) {
  advance_slot_kernel<<<1, 1, 0, stream()>>>(counter);
  check_launch("feed");
}

cudaError_t find_code() {
  cudaFuncAttributes attributes;
  return cudaFuncGetAttributes(&attributes, advance_slot_kernel);
}

}  // namespace hedgehog::cuda

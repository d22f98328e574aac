#pragma once
#include <cstddef>
#include <cstdint>

#include <cuda_runtime.h>

namespace hedgehog::cuda {

/// to = slot `counter % slots` of the ring that starts at `from`, slots `slot_bytes` apart. Pieces start at multiples of 16.
void move_slot(const void* from, std::size_t slot_bytes, std::size_t slots, const std::uint32_t* counter, void* to, std::size_t bytes);
/// A few bytes to pinned memory of the host. By a kernel: to go over to a copy engine and back takes the stream longer.
void move_out(const void* from, void* to, std::size_t bytes);
/// The next slot's turn.
void advance_slot(std::uint32_t* counter);
/// Whether this program holds machine code for the GPU: the driver's answer for one kernel.
cudaError_t find_code();

}  // namespace hedgehog::cuda

#pragma once
#include <cstddef>
#include <cstdint>

namespace hedgehog::cuda {

/// to = slot `counter % slots` of the ring that starts at `from`, slots `slot_bytes` apart. Pieces start at multiples of 16.
void move_slot(const void* from, std::size_t slot_bytes, std::size_t slots, const std::uint32_t* counter, void* to, std::size_t bytes);
/// The next slot's turn.
void advance_slot(std::uint32_t* counter);

}  // namespace hedgehog::cuda

#pragma once
#include <type_traits>

#include "cuda/packet.cuh"
#include "cuda/row_blocks.cuh"

/// What the forward and backward kernels of the four norms share.
namespace hedgehog::cuda {

/// Where the arguments of a norm are: with or without mean and bias, with or without a residual.
struct NormPlaces {
  const char* op;
  bool centred, added;
  int weight() const { return added ? 2 : 1; }
  int bias() const { return weight() + 1; }
  std::size_t rstd() const { return centred ? 1 : 0; }
};

void norm_forward(const Call& c, const NormPlaces& places);
void norm_backward(const Call& c, const NormPlaces& places);
std::int64_t norm_backward_workspace(std::span<const Meta> in);

/// Rows that a warp can keep in registers: calls f with how many packets a lane holds, as a constant. False: longer rows.
template <class F>
bool with_packets_per_lane(std::int64_t packets, F&& f) {
  const std::int64_t each = (packets + kWarp - 1) / kWarp;
  if (each <= 1) f(std::integral_constant<int, 1>{});
  else if (each <= 2) f(std::integral_constant<int, 2>{});
  else if (each <= 3) f(std::integral_constant<int, 3>{});
  else if (each <= 4) f(std::integral_constant<int, 4>{});
  else if (each <= 6) f(std::integral_constant<int, 6>{});
  else if (each <= 8) f(std::integral_constant<int, 8>{});
  else return false;
  return true;
}

}  // namespace hedgehog::cuda

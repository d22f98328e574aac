#pragma once
#include <cstdint>
#include <string>

namespace hedgehog {

/// Activations that a linear layer ends with, as its attribute spells them.
enum class Activation : std::uint8_t { none, gelu, gelu_erf, silu, relu };

/// By name; throws ShapeError in the name of `op`.
Activation activation_of(const std::string& name, const char* op = "linear");

// gelu(h) = h sigmoid(kGelu h (1 + kGeluCube h^2)), which is the form with tanh
constexpr double kGelu = 1.5957691216057308, kGeluCube = 0.044715;  // 2 sqrt(2/pi)

}  // namespace hedgehog

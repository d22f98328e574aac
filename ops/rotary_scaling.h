#pragma once

namespace hedgehog {

/// How rotary positions are stretched for texts longer than those of training: slow rotations slow down, fast ones, which tell
/// neighbours apart, stay as they are.
///
///   s  = clamp((original f / (2 pi) - low) / (high - low), 0, 1)      f a frequency; original f / (2 pi): its turns in the original context
///   f' = f (s + (1 - s) / factor)
///
/// factor    at least 1, by how much the context grew; 1: nothing changes
/// low, high 0 < low < high, turns over the original context
/// original  tokens of the original context; 0: all frequencies are divided by the factor ("linear" scaling)
/// Source:   Llama 3.1's "llama3" scaling; linear: Chen et al. 2023, arXiv:2306.15595.
struct RotaryScaling {
  double factor = 1, low = 1, high = 4, original = 0;

  constexpr double scaled(double frequency) const {
    constexpr double kTurn = 6.283185307179586;
    double s = (original * frequency / kTurn - low) / (high - low);
    s = s < 0 ? 0 : s > 1 ? 1 : s;
    return frequency * (s + (1 - s) / factor);
  }
  bool operator==(const RotaryScaling&) const = default;
};

}  // namespace hedgehog

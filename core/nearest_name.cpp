#include "core/nearest_name.h"

#include <algorithm>
#include <cstddef>
#include <vector>

namespace hedgehog {

namespace {

/// Insertions, deletions, changes and swaps of neighbours between two words (optimal string alignment).
size_t edit_distance(std::string_view left, std::string_view right) {
  const size_t columns = right.size() + 1;
  std::vector<size_t> distance((left.size() + 1) * columns);
  const auto at = [&](size_t i, size_t j) -> size_t& { return distance[i * columns + j]; };
  for (size_t i = 0; i <= left.size(); ++i) at(i, 0) = i;
  for (size_t j = 0; j <= right.size(); ++j) at(0, j) = j;
  for (size_t i = 1; i <= left.size(); ++i) {
    for (size_t j = 1; j <= right.size(); ++j) {
      const size_t change = at(i - 1, j - 1) + (left[i - 1] != right[j - 1]);
      at(i, j) = std::min({at(i - 1, j) + 1, at(i, j - 1) + 1, change});
      if (i > 1 && j > 1 && left[i - 1] == right[j - 2] && left[i - 2] == right[j - 1]) {
        at(i, j) = std::min(at(i, j), at(i - 2, j - 2) + 1);
      }
    }
  }
  return at(left.size(), right.size());
}

}  // namespace

std::string nearest_name(std::string_view name, std::span<const std::string> candidates) {
  // no word of the program is longer; this bounds the table for absurd input
  constexpr size_t kLongest = 256;
  std::string best;
  size_t best_distance = name.size() / 3 + 2;
  if (name.size() > kLongest) return best;
  for (const std::string& candidate : candidates) {
    const size_t distance = edit_distance(name, candidate);
    if (distance < best_distance) {
      best_distance = distance;
      best = candidate;
    }
  }
  return best;
}

}  // namespace hedgehog

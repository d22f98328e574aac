#pragma once
#include <fmt/format.h>

#include <charconv>
#include <string>
#include <vector>

#include "core/error.h"
#include "core/op.h"

/// Lists of integers as text attributes ("2,3,4"), and axes. Internal to ops/.
namespace hedgehog::detail {

inline std::string text_of(const std::vector<std::int64_t>& numbers) { return fmt::format("{}", fmt::join(numbers, ",")); }
inline std::string text_of(const Shape& shape) {
  std::vector<std::int64_t> extents;
  for (int i = 0; i < shape.rank(); ++i) extents.push_back(shape[i]);
  return text_of(extents);
}

inline std::vector<std::int64_t> integers_from(const char* op, const char* name, const std::string& text) {
  std::vector<std::int64_t> numbers;
  const char *at = text.data(), *end = at + text.size();
  while (at != end) {
    std::int64_t n = 0;
    const auto [next, error] = std::from_chars(at, end, n);
    if (error != std::errc() || (next != end && (*next != ',' || next + 1 == end)))
      fail(op, fmt::format("{} must be integers with commas between them, like 2,3,4, but is '{}'", name, text));
    numbers.push_back(n);
    at = next == end ? end : next + 1;
  }
  return numbers;
}

inline Shape shape_from(const char* op, const std::string& text) {
  const std::vector<std::int64_t> extents = integers_from(op, "shape", text);
  if (int(extents.size()) > Shape::kMaxRank)
    fail(op, fmt::format("shape ({}) has {} axes, but at most {} are supported; join some", text, extents.size(), Shape::kMaxRank));
  Shape shape;
  for (const std::int64_t n : extents) {
    if (n < 1) fail(op, fmt::format("shape ({}) must have extents of at least 1; write every extent out", text));
    shape.push_back(n);
  }
  return shape;
}

/// The axis counted from the front.
inline int axis_from(const char* op, std::int64_t axis, const Shape& x) {
  const int rank = x.rank();
  if (axis < -rank || axis >= rank)
    fail(op, fmt::format("axis must be in [{}, {}) for x {}, but is {}; give an axis that x has", -rank, rank, x.text(), axis));
  return int(axis < 0 ? axis + rank : axis);
}

}  // namespace hedgehog::detail

#include "core/shape.h"

#include <fmt/format.h>

#include "core/error.h"

namespace hedgehog {

Shape::Shape(std::initializer_list<std::int64_t> extents) {
  for (auto e : extents) push_back(e);
}

void Shape::push_back(std::int64_t extent) {
  if (rank_ == kMaxRank) throw ShapeError(fmt::format("[shape] at most {} axes are supported, got more", kMaxRank));
  if (extent < 0) throw ShapeError(fmt::format("[shape] extents must be 0 or more, got {}", extent));
  std::int64_t elements = 0;
  if (__builtin_mul_overflow(size(), extent, &elements))
    throw ShapeError(fmt::format("[shape] {} by {} elements are more than fit 64 bits", text(), extent));
  extents_[rank_++] = extent;
}

void Shape::no_axis(int i) const { throw ShapeError(fmt::format("[shape] {} has {} axes, so none is number {}", text(), rank_, i)); }

std::int64_t Shape::size() const {
  std::int64_t n = 1;
  for (int i = 0; i < rank_; ++i) n *= extents_[i];
  return n;
}

bool Shape::operator==(const Shape& other) const {
  if (rank_ != other.rank_) return false;
  for (int i = 0; i < rank_; ++i)
    if (extents_[i] != other.extents_[i]) return false;
  return true;
}

std::string Shape::text() const {
  std::string out = "(";
  for (int i = 0; i < rank_; ++i) out += fmt::format("{}{}", i ? ", " : "", extents_[i]);
  return out + ")";
}

}  // namespace hedgehog

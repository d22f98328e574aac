#pragma once
#include <array>
#include <cstdint>
#include <initializer_list>
#include <string>

namespace hedgehog {

/// Extents of a tensor: up to 5 axes, row-major. A scalar has rank 0 and one element.
class Shape {
 public:
  static constexpr int kMaxRank = 5;

  Shape() = default;
  Shape(std::initializer_list<std::int64_t> extents);

  int rank() const { return rank_; }
  /// Extent of axis i; negative counts from the end.
  std::int64_t operator[](int i) const { return extents_[axis(i)]; }
  void set(int i, std::int64_t extent) { extents_[axis(i)] = extent; }
  void push_back(std::int64_t extent);
  std::int64_t last() const { return rank_ == 0 ? 1 : extents_[rank_ - 1]; }
  /// Number of elements.
  std::int64_t size() const;
  /// Product of all extents but the last: the rows of the tensor seen as a matrix.
  std::int64_t rows() const { return last() == 0 ? 0 : size() / last(); }
  bool operator==(const Shape& other) const;
  std::string text() const;  // "(4, 3)"

 private:
  std::size_t axis(int i) const {
    const int at = i < 0 ? i + rank_ : i;
    if (at < 0 || at >= rank_) no_axis(i);
    return std::size_t(at);
  }
  [[noreturn]] void no_axis(int i) const;

  std::array<std::int64_t, kMaxRank> extents_{};
  int rank_ = 0;
};

}  // namespace hedgehog

#pragma once
#include <fmt/format.h>

#include <string>

#include "core/dtype.h"
#include "core/error.h"
#include "core/op.h"

namespace hedgehog {

/// Checks that `infer` functions share. Each throws ShapeError through `fail`, naming the argument of the op.

inline void check_floating(const Op& op, const char* name, const Meta& meta) {
  if (!is_floating(meta.dtype))
    fail(op, fmt::format("{} must be f32, f64 or bf16, but is {}; cast it first", name, name_of(meta.dtype)));
}

inline void check_dtype(const Op& op, const char* name, const Meta& meta, Dtype expected, const char* like = nullptr) {
  if (meta.dtype == expected) return;
  fail(op, fmt::format("{} must be {}{}, but is {}; cast it first", name, name_of(expected),
                       like ? fmt::format(" as {} is", like) : "", name_of(meta.dtype)));
}

/// `letters` is the shape as the docstring writes it: "(C)".
inline void check_shape(const Op& op, const char* name, const Meta& meta, const Shape& expected, const char* letters, const char* like,
                        const Meta& like_meta) {
  if (meta.shape == expected) return;
  fail(op, fmt::format("{} must have shape {} = {} to match {} {}, but has {}", name, letters, expected.text(), like,
                       like_meta.shape.text(), meta.shape.text()));
}

inline void check_rank(const Op& op, const char* name, const Meta& meta, int expected, const char* letters) {
  if (meta.shape.rank() == expected) return;
  fail(op, fmt::format("{} must have {} axes {}, but has shape {}; reshape it", name, expected, letters, meta.shape.text()));
}

/// Throws Error unless every index is in [0, count), or -1 where `ignored` is set. Serial: call it before any parallel
/// region. The position is given in the shape of `indices`.
inline void check_indices(const char* op, const char* name, const Ref& indices, std::int64_t count, bool ignored, const char* of) {
  const std::int32_t* index = indices.as<std::int32_t>();
  const std::int64_t lowest = ignored ? -1 : 0;
  for (std::int64_t i = 0; i < indices.size(); ++i) {
    if (index[i] >= lowest && index[i] < count) continue;
    std::string position;
    std::int64_t rest = i;
    for (int axis = indices.shape.rank() - 1; axis >= 0; --axis) {
      position = fmt::format("{}{}{}", rest % indices.shape[axis], position.empty() ? "" : ", ", position);
      rest /= indices.shape[axis];
    }
    throw Error(fmt::format("[{}] {} holds {} at position ({}), but must be at least {} and below {} = {}; "
                            "check the tokenizer and the data",
                            op, name, index[i], position, lowest, of, count));
  }
}

}  // namespace hedgehog

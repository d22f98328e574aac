#pragma once
#include <fmt/format.h>

#include "core/error.h"
#include "core/op.h"
#include "ops/broadcast.h"
#include "ops/shape_text.h"

/// Shapes and samples that the reductions share. Internal to ops/.
namespace hedgehog::detail {

inline bool reduces_all(const Attributes& a) { return a.contains("all") && a.flag("all"); }

/// The reduced axis counted from the front; infer has checked it.
inline int axis_of(const Attributes& a, const Shape& x) { return axis_from("reduce", a.integer("axis"), x); }

/// Shape of the result with the reduced axes kept at extent 1.
inline Shape kept_shape(const Attributes& a, const Shape& x) {
  Shape y = x;
  for (int i = 0; i < x.rank(); ++i)
    if (reduces_all(a) || i == axis_of(a, x)) y.set(i, 1);
  return y;
}

inline Layout reduce_layout(const char* op, const Attributes& a, const Meta& x) {
  if (!is_floating(x.dtype))
    fail(op, fmt::format("x must be f32, f64 or bf16, but is {}; use cast first", name_of(x.dtype)));
  const int axis = reduces_all(a) ? -1 : axis_from(op, a.integer("axis"), x.shape);
  const Shape kept = kept_shape(a, x.shape);
  Shape y;
  for (int i = 0; i < x.shape.rank(); ++i)
    if (a.flag("keep") || (!reduces_all(a) && i != axis)) y.push_back(kept[i]);
  Layout layout{{{y, x.dtype}}, {}};
  layout.forward_workspace = sum_workspace(y.size());
  return layout;
}

inline std::vector<Sample> axis_samples() {
  return {{"middle", {{"axis", 1}}, {normal({2, 5, 3})}},
          {"last", {{"axis", -1}}, {normal({4, 7})}},
          {"first kept", {{"axis", 0}, {"keep", true}}, {normal({5, 2, 3, 4})}},
          {"last kept", {{"axis", 2}, {"keep", true}}, {normal({2, 3, 4})}},
          {"one", {{"axis", 0}}, {normal({1})}}};
}

}  // namespace hedgehog::detail

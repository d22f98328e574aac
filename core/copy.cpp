#include <fmt/format.h>

#include "core/dispatch.h"
#include "core/parallel.h"
#include "core/tape.h"

namespace hedgehog::detail {
namespace {

std::int64_t common_columns(const Ref& a, const Ref& b) { return std::min(a.columns, b.columns); }

/// to (+)= from, where either may be rows with a stride.
template <class T>
void copy_rows(const Ref& from, const Ref& to, bool add) {
  const std::int64_t columns = common_columns(from, to), rows = from.size() / columns;
  // the contiguous side has one long row: its stride is then the width of the other side's rows
  const std::int64_t from_stride = from.columns == columns ? from.stride : columns;
  const std::int64_t to_stride = to.columns == columns ? to.stride : columns;
  const T* a = from.as<T>();
  T* b = to.as<T>();
  parallel_for(rows, std::max<std::int64_t>(1, 16384 / columns), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r)
      for (std::int64_t c = 0; c < columns; ++c)
        b[r * to_stride + c] = add ? b[r * to_stride + c] + a[r * from_stride + c] : a[r * from_stride + c];
  });
}

}  // namespace

const Op kCopy{
    .name = "copy",
    .arguments = {{"x"}},
    .results = {"y"},
    .infer = [](const Attributes&, std::span<const Meta> in) { return Layout{{in[0]}, {}}; },
    .forward = {[](const Call& c) {
      dispatch_any(c.inputs[0].dtype, [&](auto zero) { copy_rows<decltype(zero)>(c.inputs[0], c.outputs[0], false); });
    }},
    .backward = {[](const Call& c) {
      dispatch(c.dx[0].dtype, [&](auto zero) { copy_rows<decltype(zero)>(c.dy[0], c.dx[0], c.modes[0] == Mode::accumulate); });
    }},
    .strided = bits(0),
    .formula_forward = "y = x",
    .formula_backward = "dx = dy",
    .samples = {{"matrix", {}, {normal({3, 4})}}},
    .faults = {{"lost", "the gradient stops at the copy",
                [](const Call& c) {
                  dispatch(c.dx[0].dtype, [&](auto zero) {
                    using T = decltype(zero);
                    if (c.modes[0] == Mode::write) std::fill_n(c.dx[0].template as<T>(), c.dx[0].size(), T(0));
                  });
                },
                {}, {}}},
};

const Op kFill{
    .name = "fill",
    .arguments = {},
    .results = {"y"},
    .attributes = {{"value", 0.0}},
    .infer = [](const Attributes&, std::span<const Meta>) { return Layout{}; },
    .forward = {[](const Call& c) {
      const Ref& y = c.outputs[0];
      dispatch_any(y.dtype, [&](auto zero) {
        using T = decltype(zero);
        const T value = T(c.attributes.real("value"));
        const std::int64_t rows = y.size() / y.columns;
        for (std::int64_t r = 0; r < rows; ++r) std::fill_n(y.template as<T>() + r * y.stride, y.columns, value);
      });
    }},
    .formula_forward = "y = value",
};

}  // namespace hedgehog::detail

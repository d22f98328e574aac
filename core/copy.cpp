#include <numeric>

#include "core/dispatch.h"
#include "core/parallel.h"
#include "core/tape.h"

namespace hedgehog::detail {
namespace {

/// to (+)= from, where either may be rows with a stride.
template <class T>
void copy_rows(const Ref& from, const Ref& to, bool add) {
  // runs that lie in one row on both sides
  const std::int64_t columns = std::gcd(from.columns, to.columns), runs = from.size() / columns;
  auto run = [&](const Ref& x, std::int64_t r) {
    return x.as<T>() + r * columns / x.columns * x.stride + r * columns % x.columns;
  };
  parallel_for(runs, std::max<std::int64_t>(1, 16384 / columns), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) {
      const T* a = run(from, r);
      T* b = run(to, r);
      for (std::int64_t c = 0; c < columns; ++c) b[c] = add ? b[c] + a[c] : a[c];
    }
  });
}

/// dx += dy in mode `adds`, dx = dy in the other.
void copy_gradient(const Call& c, Mode adds) {
  dispatch(c.dx[0].dtype, [&](auto zero) { copy_rows<decltype(zero)>(c.dy[0], c.dx[0], c.modes[0] == adds); });
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
    .backward = {[](const Call& c) { copy_gradient(c, Mode::accumulate); }},
    .strided = bits(0),
    .formula_forward = "y = x",
    .formula_backward = "dx = dy",
    .samples = {{"matrix", {}, {normal({3, 4})}}},
    .faults = {{"twice", "the gradient comes twice", [](const Call& c) { copy_gradient(c, Mode::accumulate), copy_gradient(c, c.modes[0]); }, {}, {}}},
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
        const double given = c.attributes.real("value");
        const T value = y.dtype == Dtype::bf16 ? T(BFloat16(float(given)).bits) : T(given);
        const std::int64_t rows = y.size() / y.columns;
        for (std::int64_t r = 0; r < rows; ++r) std::fill_n(y.template as<T>() + r * y.stride, y.columns, value);
      });
    }},
    .formula_forward = "y = value",
};

}  // namespace hedgehog::detail

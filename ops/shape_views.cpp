#include <fmt/format.h>

#include "core/error.h"
#include "ops/elementwise.h"
#include "ops/shape.h"
#include "ops/shape_text.h"

namespace hedgehog {
namespace {

using namespace detail;

/// A window on the memory of `of`: `offset` elements after its first one, rows of `columns`, `stride` apart.
Tensor view_of(const Tensor& of, const Meta& meta, std::int64_t offset, std::int64_t columns, std::int64_t stride) {
  Tensor v = declare(meta.shape, meta.dtype, of->role);
  const std::int64_t root_size = of.root().size();
  v->base = of.root();
  v->offset = of->offset + offset;
  v->columns = columns;
  // one row: the stride says how wide the root is
  v->stride = columns == v.size() ? root_size : stride;
  return v;
}

/// Columns of the rows that x lies in; its size if it is contiguous.
std::int64_t row_length(const Tensor& x) { return x.contiguous() ? x.size() : x.columns(); }

/// Whether the rows of x are whole in the new shape: leading extents must multiply to the number of rows.
bool keeps_rows(const Tensor& x, const Shape& shape) {
  if (x.size() == 0) return true;
  const std::int64_t rows = x.size() / row_length(x);
  std::int64_t leading = 1;
  for (int i = 0; i < shape.rank() && leading < rows; ++i) leading *= shape[i];
  return leading == rows;
}

std::int64_t rows_before(const Shape& shape, int axis) {
  std::int64_t rows = 1;
  for (int i = 0; i < axis; ++i) rows *= shape[i];
  return rows;
}

/// Whether parts along the axis are columns of the root: x is one row and so are the parts, or x is cut within its rows,
/// which are those of the root.
bool cuts_columns(const Tensor& x, int axis) {
  const std::int64_t rows = rows_before(x.shape(), axis);
  if (rows == 1) return x.contiguous();
  // rows divides the size; their product with a row's length could pass 64 bits
  return (rows > 0 && row_length(x) == x.size() / rows) || (x.contiguous() && x.size() == x.root().size());
}

Layout reshape_infer(const Attributes& a, std::span<const Meta> in) {
  const Shape shape = shape_from("reshape", a.text("shape"));
  if (shape.size() != in[0].shape.size())
    fail("reshape", fmt::format("shape {} has {} elements, but x {} has {}; give a shape with as many elements", shape.text(), shape.size(),
                                in[0].shape.text(), in[0].shape.size()));
  return Layout{{{shape, in[0].dtype}}, {}};
}

Tensors reshape_views(const Attributes&, const Tensor& of, const Layout& layout) {
  const Meta& y = layout.outputs[0];
  if (!keeps_rows(of, y.shape))
    fail("reshape", fmt::format("x {} lies in rows of {} elements, which {} would cut; apply contiguous first", of.shape().text(),
                                of.columns(), y.shape.text()));
  return {view_of(of, y, 0, row_length(of), of.stride())};
}

Layout split_infer(const Attributes& a, std::span<const Meta> in) {
  const Shape& x = in[0].shape;
  const int axis = axis_from("split", a.integer("axis"), x);
  const std::vector<std::int64_t> sizes = integers_from("split", "sizes", a.text("sizes"));
  std::int64_t total = 0;
  for (const std::int64_t n : sizes) {
    if (n < 1) fail("split", fmt::format("sizes must be at least 1, but are {}; leave empty parts out", a.text("sizes")));
    total += n;
  }
  if (total != x[axis])
    fail("split", fmt::format("sizes {} must sum to the extent {} of axis {} of x {}, but sum to {}; give the size of every part",
                              a.text("sizes"), x[axis], axis, x.text(), total));
  Layout layout;
  for (const std::int64_t n : sizes) {
    Shape part = x;
    part.set(axis, n);
    layout.outputs.push_back({part, in[0].dtype});
  }
  return layout;
}

Tensors split_views(const Attributes& a, const Tensor& of, const Layout& layout) {
  const int axis = axis_from("split", a.integer("axis"), of.shape());
  if (layout.outputs.size() == 1) return {view_of(of, layout.outputs[0], 0, row_length(of), of.stride())};
  if (!cuts_columns(of, axis))
    fail("split", fmt::format("x {} lies in rows of {} elements, which parts of axis {} would cut; apply contiguous first",
                              of.shape().text(), row_length(of), axis));
  const std::int64_t rows = rows_before(of.shape(), axis), width = of.size() / rows;
  const std::int64_t stride = of.contiguous() ? width : of.stride();
  Tensors parts;
  std::int64_t offset = 0;
  for (const Meta& part : layout.outputs) {
    const std::int64_t columns = part.shape.size() / rows;
    parts.push_back(view_of(of, part, offset, columns, stride));
    offset += columns;
  }
  return parts;
}

/// The value of x; its gradient is lost on the way.
Tensor without_gradient(const Tensor& x) { return add(detach(x), scale(x, 0)); }

Tensors reshape_detached(const Attributes& a, const Tensors& x) {
  return {reshape(without_gradient(x[0]), shape_from("reshape", a.text("shape")))};
}

Tensors split_first_only(const Attributes& a, const Tensors& x) {
  Tensors parts = split(scale(x[0], 1), integers_from("split", "sizes", a.text("sizes")), int(a.integer("axis")));
  for (std::size_t j = 1; j < parts.size(); ++j) parts[j] = without_gradient(parts[j]);
  return parts;
}

std::pair<Work, Work> nothing(const Attributes&, std::span<const Meta>, std::span<const Meta>) { return {Work{0, 0}, Work{0, 0}}; }

}  // namespace

extern const Op kReshape, kSplit;

const Op kReshape{
    .name = "reshape",
    .arguments = {{"x"}},
    .results = {"y"},
    .attributes = {{"shape", ""}},
    .infer = reshape_infer,
    .views = reshape_views,
    .cost = nothing,
    .formula_forward = "y = x in another shape",
    .formula_backward = "dx = dy in the shape of x",
    .samples = {{"fold", {{"shape", "6,20"}}, {normal({2, 3, 4, 5})}},
                {"unfold", {{"shape", "2,3,4"}}, {normal({6, 4})}},
                {"scalar", {{"shape", ""}}, {normal({1, 1})}}},
    .faults = {{"detached", "the gradient stops at the view", {}, reshape_detached, "fold"}},
};

const Op kSplit{
    .name = "split",
    .arguments = {{"x"}},
    .results = {"parts"},
    .attributes = {{"sizes", ""}, {"axis", -1}},
    .infer = split_infer,
    .views = split_views,
    .cost = nothing,
    .formula_forward = "parts = neighbouring windows of x along the axis",
    .formula_backward = "dx = the parts' dy side by side",
    .samples = {{"columns", {{"sizes", "2,1,4"}}, {normal({2, 3, 7})}},
                {"heads", {{"sizes", "1,2"}, {"axis", 2}}, {normal({2, 5, 3, 4})}},
                {"rows", {{"sizes", "2,3"}, {"axis", 0}}, {normal({5, 4})}},
                {"whole", {{"sizes", "3"}, {"axis", -1}}, {normal({2, 3})}},
                {"one", {{"sizes", "1"}, {"axis", 0}}, {normal({1})}}},
    .faults = {{"first", "only the first part passes its gradient on", {}, split_first_only, "columns"}},
};

Tensor reshape(const Tensor& x, const Shape& shape, SourceLine where) {
  const bool lies_well = !x || shape.size() != x.size() || keeps_rows(x, shape);
  return apply(kReshape, {{"shape", text_of(shape)}}, {lies_well ? x : contiguous(x)}, where)[0];
}

Tensors split(const Tensor& x, const std::vector<std::int64_t>& sizes, int axis, SourceLine where) {
  bool lies_well = true;
  if (x && sizes.size() > 1 && axis >= -x.shape().rank() && axis < x.shape().rank())
    lies_well = cuts_columns(x, axis < 0 ? axis + x.shape().rank() : axis);
  return apply(kSplit, {{"sizes", text_of(sizes)}, {"axis", axis}}, {lies_well ? x : apply(kCopy, {}, {x}, where)[0]}, where);
}

}  // namespace hedgehog

#include <charconv>

#include "cuda/moves.cuh"
#include "cuda/reduce.cuh"

namespace hedgehog::cuda {
namespace {

using namespace detail;

/// to = from, bit by bit. Bits is an integer of the element's size. Walks over {to, from}.
template <class Bits>
__global__ void copy_forward_kernel(const __grid_constant__ VectorWalk<2> walk, Bits* to, const Bits* from) {
  constexpr int n = kVector<Bits>;
  for_each_lanes<n>(walk, [&](const Lanes<2, n>& lanes) {
    Bits x[n];
    lanes.load(1, from, x);
    lanes.store(to, x);
  });
}

/// Neighbours whose memory is at least 16 bytes on both sides.
template <class To, class From>
constexpr int kCastVector = kVector<To> > kVector<From> ? kVector<To> : kVector<From>;

/// to (+)= from in the dtype of `to`, rounded once. Walks over {to, from}.
template <class To, class From>
__global__ void cast_kernel(const __grid_constant__ VectorWalk<2> walk, To* to, const From* from, bool adds) {
  constexpr int n = kCastVector<To, From>;
  for_each_lanes<n>(walk, [&](const Lanes<2, n>& lanes) {
    Accumulator<To> x[n];
    lanes.load(1, from, x);
    lanes.store(to, x, adds);
  });
}

/// y = value. Rows with a stride are runs of the walk.
template <class Bits>
__global__ void fill_forward_kernel(const __grid_constant__ VectorWalk<1> walk, Bits* y, Bits value) {
  constexpr int n = kVector<Bits>;
  for_each_lanes<n>(walk, [&](const Lanes<1, n>& lanes) {
    Bits x[n];
#pragma unroll
    for (int j = 0; j < n; ++j) x[j] = value;
    lanes.store(y, x);
  });
}

/// Calls f(Bits{}) with the integer of an element's size.
template <class F>
void dispatch_bits(Dtype dtype, F&& f) {
  if (size_of(dtype) == 2) return f(std::uint16_t{});
  if (size_of(dtype) == 8) return f(std::uint64_t{});
  f(std::uint32_t{});
}

template <class F>
void dispatch_numbers(Dtype dtype, F&& f) {
  if (dtype == Dtype::i32) return f(std::int32_t{});
  dispatch_floating(dtype, f);
}

const void* bytes_after(const void* base, std::int64_t elements, Dtype dtype) {
  return static_cast<const std::byte*>(base) + elements * size_of(dtype);
}
void* bytes_after(void* base, std::int64_t elements, Dtype dtype) {
  return static_cast<std::byte*>(base) + elements * size_of(dtype);
}

int axis_of(const Call& c, int rank) {
  const std::int64_t axis = c.attributes.integer("axis");
  return int(axis < 0 ? axis + rank : axis);
}

// copy and cast: the same shape on both sides

void move_like(const char* op, const Ref& to, const Ref& from, bool adds) {
  move(op, walk_over(to.shape, to, from), to.data, to.dtype, from.data, from.dtype, adds);
}

void move_gradient(const char* op, const Call& c) {
  const Ref &dx = c.dx[0], &dy = c.dy[0];
  if (!dx) return;
  if (!dy) return add_nothing(op, dx, c.modes[0]);
  move_like(op, dx, dy, adds(c, 0));
}

// concat: each part is a window of the result

/// Calls body(part index, window of the result as a Ref with the part's shape, its first element).
template <class Body>
void for_each_window(const Call& c, const Body& body) {
  const Shape& y = c.outputs[0].shape;
  const int axis = axis_of(c, y.rank());
  std::int64_t rows = 1, offset = 0;
  for (int i = 0; i < axis; ++i) rows *= y[i];
  for (int i = 0; i < int(c.inputs.size()) && c.inputs[i].given; ++i) {
    Ref window = c.inputs[i];
    window.columns = window.size() / rows;
    window.stride = y.size() / rows;
    body(i, window, offset);
    offset += window.columns;
  }
}

void concat_forward(const Call& c) {
  const Ref& y = c.outputs[0];
  for_each_window(c, [&](int i, const Ref& window, std::int64_t offset) {
    const Ref& part = c.inputs[i];
    move("concat", walk_over(window.shape, window, part), bytes_after(y.data, offset, y.dtype), y.dtype, part.data, part.dtype, false);
  });
}

void concat_backward(const Call& c) {
  const Ref& dy = c.dy[0];
  for_each_window(c, [&](int i, const Ref& window, std::int64_t offset) {
    const Ref& dx = c.dx[i];
    if (!dx) return;
    if (!dy) return add_nothing("concat", dx, c.modes[i]);
    const void* from = bytes_after(static_cast<const void*>(dy.data), offset, dy.dtype);
    move("concat", walk_over(window.shape, dx, window), dx.data, dx.dtype, from, dy.dtype, adds(c, i));
  });
}

// permute

/// Axis of x that becomes axis i of y; infer has checked the text.
std::array<int, Shape::kMaxRank> order_of(const Call& c) {
  const std::string& text = c.attributes.text("order");
  const char *at = text.data(), *end = at + text.size();
  std::array<int, Shape::kMaxRank> order{};
  for (int i = 0; at < end && i < Shape::kMaxRank; ++i) at = std::from_chars(at, end, order[i]).ptr + 1;
  return order;
}

void permute_forward(const Call& c) {
  const Ref &x = c.inputs[0], &y = c.outputs[0];
  const auto order = order_of(c);
  const Strides xs = strides_of(x), ys = strides_of(y);
  Walk<2> walk;
  for (int i = 0; i < y.shape.rank(); ++i) walk.push(y.shape[i], {ys[i], xs[order[i]]});
  move("permute", walk, y.data, y.dtype, x.data, x.dtype, false);
}

void permute_backward(const Call& c) {
  const Ref &dx = c.dx[0], &dy = c.dy[0];
  if (!dx) return;
  if (!dy) return add_nothing("permute", dx, c.modes[0]);
  const auto order = order_of(c);
  const Strides xs = strides_of(dx), ys = strides_of(dy);
  std::array<std::int64_t, Shape::kMaxRank> from{};
  for (int i = 0; i < dy.shape.rank(); ++i) from[order[i]] = ys[i];
  Walk<2> walk;
  for (int i = 0; i < dx.shape.rank(); ++i) walk.push(dx.shape[i], {xs[i], from[i]});
  move("permute", walk, dx.data, dx.dtype, dy.data, dy.dtype, adds(c, 0));
}

// repeat_heads: x (rows, H, D) against y (rows, H, times, D)

void repeat_heads_forward(const Call& c) {
  const Ref &x = c.inputs[0], &y = c.outputs[0];
  const std::int64_t times = c.attributes.integer("times");
  const Strides xs = strides_of(x), ys = strides_of(y);
  const int rank = x.shape.rank();
  Walk<2> walk;
  for (int i = 0; i < rank - 1; ++i) walk.push(x.shape[i], {i == rank - 2 ? ys[i] * times : ys[i], xs[i]});
  walk.push(times, {ys[rank - 2], 0});
  walk.push(x.shape[rank - 1], {ys[rank - 1], xs[rank - 1]});
  move("repeat_heads", walk, y.data, y.dtype, x.data, x.dtype, false);
}

void repeat_heads_backward(const Call& c) {
  const Ref &dx = c.dx[0], &dy = c.dy[0];
  if (!dx) return;
  if (!dy) return add_nothing("repeat_heads", dx, c.modes[0]);
  const std::int64_t times = c.attributes.integer("times");
  const Strides ys = strides_of(dy);
  const int rank = dx.shape.rank();
  SumWalk walk;
  for (int i = 0; i < rank - 1; ++i) walk.push(dx.shape[i], i == rank - 2 ? ys[i] * times : ys[i], true);
  walk.push(times, ys[rank - 2], false);
  walk.push(dx.shape[rank - 1], ys[rank - 1], true);
  sum_to("repeat_heads", dy.dtype, dy.data, walk, dx, 1.0, c.modes[0], c.workspace);
}

}  // namespace

void move(const char* op, const Walk<2>& walk, void* to, Dtype to_dtype, const void* from, Dtype from_dtype, bool adds) {
  if (to_dtype == from_dtype && !adds) {
    dispatch_bits(to_dtype, [&](auto zero) {
      using Bits = decltype(zero);
      const VectorWalk<2> cut(walk, kVector<Bits>, {to, from});
      copy_forward_kernel<Bits><<<cut.blocks(), kThreads, 0, stream()>>>(cut, static_cast<Bits*>(to), static_cast<const Bits*>(from));
    });
  } else {
    dispatch_numbers(from_dtype, [&](auto a) {
      dispatch_floating(to_dtype, [&](auto b) {
        using From = decltype(a);
        using To = decltype(b);
        const VectorWalk<2> cut(walk, kCastVector<To, From>, {to, from});
        cast_kernel<To, From><<<cut.blocks(), kThreads, 0, stream()>>>(cut, static_cast<To*>(to), static_cast<const From*>(from), adds);
      });
    });
  }
  check_launch(op);
}

void fill(const char* op, const Ref& y, double value) {
  auto write = [&](auto bits) {
    using Bits = decltype(bits);
    const VectorWalk<1> walk(walk_over(y.shape, y), kVector<Bits>, {y.data});
    fill_forward_kernel<Bits><<<walk.blocks(), kThreads, 0, stream()>>>(walk, y.as<Bits>(), bits);
  };
  switch (y.dtype) {
    case Dtype::f32: write(std::bit_cast<std::uint32_t>(float(value))); break;
    case Dtype::f64: write(std::bit_cast<std::uint64_t>(value)); break;
    case Dtype::bf16: write(BFloat16(float(value)).bits); break;
    case Dtype::i32: write(std::bit_cast<std::uint32_t>(std::int32_t(value))); break;
  }
  check_launch(op);
}

void register_shape(KernelTable& table) {
  table["copy"] = {[](const Call& c) { move_like("copy", c.outputs[0], c.inputs[0], false); },
                   [](const Call& c) { move_gradient("copy", c); }};
  table["fill"] = {[](const Call& c) { fill("fill", c.outputs[0], c.attributes.real("value")); }};
  table["cast"] = {[](const Call& c) { move_like("cast", c.outputs[0], c.inputs[0], false); },
                   [](const Call& c) { move_gradient("cast", c); }};
  table["concat"] = {concat_forward, concat_backward};
  table["permute"] = {permute_forward, permute_backward};
  table["repeat_heads"] = {repeat_heads_forward, repeat_heads_backward, {}, [](const Attributes& a, std::span<const Meta> in) {
                             return sum_bytes(in[0].shape.size() * a.integer("times"));
                           }};
}

}  // namespace hedgehog::cuda

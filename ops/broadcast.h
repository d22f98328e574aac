#pragma once
#include <algorithm>
#include <array>
#include <cstdint>
#include <type_traits>

#include "core/op.h"
#include "core/parallel.h"

/// Loops over several tensors at once, with broadcasting and rows with a stride: what the elementwise, reducing and
/// element-moving kernels share. constexpr lets device code step through a walk too. Internal to ops/ and cuda/.
namespace hedgehog::detail {

constexpr int kMaxAxes = Shape::kMaxRank + 1;  // repeat_heads cuts one axis in two
constexpr std::int64_t kRun = 16384;           // elements worth a task

/// One number an operand.
template <int N>
using Offsets = std::array<std::int64_t, N>;

/// Nested loops over N operands: extents and, for each operand, elements from step to step (0: broadcast).
template <int N>
struct Walk {
  int rank = 0;
  std::array<std::int64_t, kMaxAxes> extent{};
  std::array<Offsets<N>, kMaxAxes> stride{};

  /// Adds an axis inside the ones so far. Axes over which every operand steps evenly become one: equal shapes, scalars,
  /// rows and columns all end as one or two loops.
  void push(std::int64_t n, const Offsets<N>& step) {
    if (n == 1) return;
    bool joins = rank > 0;
    for (int k = 0; joins && k < N; ++k) joins = stride[rank - 1][k] == step[k] * n;
    if (joins) {
      extent[rank - 1] *= n;
      stride[rank - 1] = step;
      return;
    }
    extent[rank] = n;
    stride[rank++] = step;
  }
  constexpr std::int64_t inner() const { return rank ? extent[rank - 1] : 1; }
  constexpr Offsets<N> step() const {
    Offsets<N> ones;
    ones.fill(1);
    return rank ? stride[rank - 1] : ones;
  }
  /// The same without the innermost axis.
  Walk outer() const {
    Walk w = *this;
    if (w.rank) --w.rank;
    return w;
  }
  constexpr std::int64_t count() const {
    std::int64_t n = 1;
    for (int i = 0; i < rank; ++i) n *= extent[i];
    return n;
  }
  /// Offsets of the index-th step, counted in row-major order.
  constexpr Offsets<N> at(std::int64_t index) const {
    Offsets<N> offsets{};
    for (int i = rank - 1; i >= 0; --i) {
      const std::int64_t here = i ? index % extent[i] : index;
      if (i) index /= extent[i];
      for (int k = 0; k < N; ++k) offsets[k] += here * stride[i][k];
    }
    return offsets;
  }
};

template <int N>
Offsets<N> moved(const Offsets<N>& a, const Offsets<N>& b, std::int64_t times = 1) {
  Offsets<N> out;
  for (int k = 0; k < N; ++k) out[k] = a[k] + b[k] * times;
  return out;
}

using Strides = std::array<std::int64_t, Shape::kMaxRank>;

/// Elements from step to step of each axis of rows with a stride.
inline Strides strides_of(const Ref& t) {
  Strides strides{};
  std::int64_t within = 1;
  for (int i = t.shape.rank() - 1; i >= 0; --i) {
    strides[i] = within < t.columns ? within : within / t.columns * t.stride;
    within *= t.shape[i];
  }
  return strides;
}

/// The same tensor as one row: offsets as if it were contiguous.
inline Ref flat(Ref t) {
  t.columns = t.stride = t.size();
  return t;
}

/// From an offset in flat(t) to the one in t.
struct Place {
  std::int64_t columns, stride;
  explicit Place(const Ref& t) : columns(t.columns), stride(t.stride) {}
  std::int64_t operator()(std::int64_t offset) const { return offset / columns * stride + offset % columns; }
};
struct SamePlace {
  std::int64_t operator()(std::int64_t offset) const { return offset; }
};

/// Strides seen from a shape that t broadcasts to: 0 where t repeats.
inline Strides strides_in(const Ref& t, const Shape& shape) {
  const Strides own = strides_of(t);
  Strides strides{};
  const int lead = shape.rank() - t.shape.rank();
  for (int i = 0; i < t.shape.rank(); ++i) strides[lead + i] = t.shape[i] == 1 ? 0 : own[i];
  return strides;
}

/// Loops over `shape` with operands that broadcast to it.
template <class... R>
Walk<int(sizeof...(R))> walk_over(const Shape& shape, const R&... operands) {
  constexpr int n = int(sizeof...(R));
  const std::array<Strides, n> strides{strides_in(operands, shape)...};
  Walk<n> walk;
  for (int i = 0; i < shape.rank(); ++i) {
    Offsets<n> step;
    for (int k = 0; k < n; ++k) step[k] = strides[k][i];
    walk.push(shape[i], step);
  }
  return walk;
}

/// Calls body(offsets, n) for every innermost run (long ones in pieces), in parallel. Runs must be independent.
template <int N, class Body>
void for_each_run(const Walk<N>& walk, const Body& body) {
  const std::int64_t n = walk.inner(), pieces = (n + kRun - 1) / kRun;
  const Walk<N> outer = walk.outer();
  const Offsets<N> step = walk.step();
  parallel_for(outer.count() * pieces, std::max<std::int64_t>(1, kRun / n), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      const std::int64_t row = pieces == 1 ? t : t / pieces, piece = pieces == 1 ? 0 : t % pieces;
      const std::int64_t from = n * piece / pieces, to = n * (piece + 1) / pieces;
      body(moved<N>(outer.at(row), step, from), to - from);
    }
  });
}

using Zero = std::integral_constant<std::int64_t, 0>;
using One = std::integral_constant<std::int64_t, 1>;

/// Calls body with the innermost steps, as compile-time constants in the cases that must vectorise.
template <class Body>
void with_steps(const Offsets<2>& s, const Body& body) {
  if (s[0] == 1 && s[1] == 1) return body(One{}, One{});
  if (s[0] == 1 && s[1] == 0) return body(One{}, Zero{});
  if (s[0] == 0 && s[1] == 1) return body(Zero{}, One{});
  body(s[0], s[1]);
}
template <class Body>
void with_steps(const Offsets<3>& s, const Body& body) {
  if (s[0] == 1 && s[1] == 1 && s[2] == 1) return body(One{}, One{}, One{});
  if (s[0] == 1 && s[1] == 1 && s[2] == 0) return body(One{}, One{}, Zero{});
  if (s[0] == 1 && s[1] == 0 && s[2] == 1) return body(One{}, Zero{}, One{});
  if (s[0] == 0 && s[1] == 1 && s[2] == 1) return body(Zero{}, One{}, One{});
  if (s[0] == 0 && s[1] == 1 && s[2] == 0) return body(Zero{}, One{}, Zero{});
  body(s[0], s[1], s[2]);
}

/// Calls body with "adds" as a compile-time constant.
template <class Body>
void with_mode(Mode mode, const Body& body) {
  mode == Mode::accumulate ? body(std::true_type{}) : body(std::false_type{});
}

constexpr std::int64_t kSumTile = 512;    // columns a task sums side by side
constexpr std::int64_t kSumBlocks = 32;   // most partial sums of one element

/// Bytes of workspace that sum_to needs for a target of `size` elements.
inline std::int64_t sum_workspace(std::int64_t size) { return 8 * std::min(kSumBlocks * size, kSumBlocks * kSumTile); }

/// How a sum is cut: fixed by the walk alone, so that the bits do not depend on the number of threads.
struct SumCut {
  Walk<3> kept, reduced;  // outer axes by whether the target steps there
  Offsets<3> step;
  std::int64_t n, tiles = 1, pieces = 1, units, blocks;
  bool inner_kept;

  explicit SumCut(const Walk<3>& walk) : step(walk.step()), n(walk.inner()), inner_kept(walk.step()[0] != 0) {
    for (int i = 0; i + 1 < walk.rank; ++i) (walk.stride[i][0] ? kept : reduced).push(walk.extent[i], walk.stride[i]);
    if (inner_kept) tiles = (n + kSumTile - 1) / kSumTile;
    else pieces = (n + kRun - 1) / kRun;
    units = reduced.count() * pieces;
    const std::int64_t width = inner_kept ? std::min(n, kSumTile) : n / pieces;
    blocks = std::clamp(units * width / kRun, std::int64_t(1), std::max<std::int64_t>(1, kSumBlocks / tasks()));
    blocks = std::min(blocks, units);
  }
  std::int64_t tasks() const { return kept.count() * tiles; }
  std::int64_t size() const { return kept.count() * (inner_kept ? n : 1); }
  std::int64_t grain() const {
    const std::int64_t work = units * (inner_kept ? std::min(n, kSumTile) : n / pieces) / blocks;
    return std::max<std::int64_t>(1, kRun / std::max<std::int64_t>(work, 1));
  }
};

/// Sum of n terms in 16 lanes that are joined at the end: vectorises, in an order that no compiler flag changes.
template <class Term>
double sum_of(std::int64_t n, const Term& term) {
  constexpr std::int64_t kLanes = 16;
  double lanes[kLanes] = {};
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (std::int64_t l = 0; l < kLanes; ++l) lanes[l] += double(term(i + l));
  for (std::int64_t l = 0; i + l < n; ++l) lanes[l] += double(term(i + l));
  for (std::int64_t half = kLanes / 2; half > 0; half /= 2)
    for (std::int64_t l = 0; l < half; ++l) lanes[l] += lanes[l + half];
  return lanes[0];
}

/// target (+)= factor * sum of term over the axes where operand 0, the target, does not step. Partial sums are f64 and
/// are added in a fixed order. term(at, i, s0, s1, s2) is the term i steps after the offsets `at`; place(offset) is
/// where the target has that offset of the walk.
template <class T, class Place, class Term>
void sum_to(const Walk<3>& walk, T* target, const Place& place, double factor, Mode mode, void* workspace, const Term& term) {
  const SumCut cut(walk);
  double* const partials = static_cast<double*>(workspace);
  const bool adds = mode == Mode::accumulate;
  auto store = [&](std::int64_t offset, double value) {
    T& to = target[place(offset)];
    to = T(adds ? double(to) + factor * value : factor * value);
  };
  with_steps(cut.step, [&](auto s0, auto s1, auto s2) {
    auto columns = [&](std::int64_t task, std::int64_t block, std::int64_t first, std::int64_t last) {
      alignas(64) double sums[kSumTile];
      const std::int64_t row = task / cut.tiles, from = task % cut.tiles * kSumTile, m = std::min(kSumTile, cut.n - from);
      const Offsets<3> base = moved<3>(cut.kept.at(row), cut.step, from);
      std::fill_n(sums, m, 0.0);
      for (std::int64_t u = first; u < last; ++u) {
        const Offsets<3> at = moved<3>(base, cut.reduced.at(u));
#pragma omp simd
        for (std::int64_t i = 0; i < m; ++i) sums[i] += double(term(at, i, s0, s1, s2));
      }
      if (cut.blocks > 1) std::copy_n(sums, m, partials + block * cut.size() + row * cut.n + from);
      else
        for (std::int64_t i = 0; i < m; ++i) store(base[0] + i * cut.step[0], sums[i]);
    };
    auto element = [&](std::int64_t task, std::int64_t block, std::int64_t first, std::int64_t last) {
      const Offsets<3> base = cut.kept.at(task);
      double total = 0;
      for (std::int64_t u = first; u < last; ++u) {
        const std::int64_t row = u / cut.pieces, piece = u % cut.pieces;
        const std::int64_t from = cut.n * piece / cut.pieces, to = cut.n * (piece + 1) / cut.pieces;
        const Offsets<3> at = moved<3>(base, cut.reduced.at(row));
        total += sum_of(to - from, [&](std::int64_t i) { return term(at, from + i, s0, s1, s2); });
      }
      if (cut.blocks > 1) partials[block * cut.size() + task] = total;
      else store(base[0], total);
    };
    parallel_for(cut.tasks() * cut.blocks, cut.grain(), [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t t = begin; t < end; ++t) {
        const std::int64_t task = t / cut.blocks, block = t % cut.blocks;
        const std::int64_t first = cut.units * block / cut.blocks, last = cut.units * (block + 1) / cut.blocks;
        if (cut.inner_kept) columns(task, block, first, last);
        else element(task, block, first, last);
      }
    });
  });
  if (cut.blocks == 1) return;
  const std::int64_t width = cut.inner_kept ? cut.n : 1;
  for (std::int64_t e = 0; e < cut.size(); ++e) {
    double total = 0;
    for (std::int64_t b = 0; b < cut.blocks; ++b) total += partials[b * cut.size() + e];
    store(cut.kept.at(e / width)[0] + e % width * cut.step[0], total);
  }
}

}  // namespace hedgehog::detail

#pragma once
#include <algorithm>
#include <cstdint>
#include <limits>

#include "ops/blas.h"
#include "ops/head_rows.h"

/// The CPU's tiles of rows and keys of softmax attention. Internal to ops/.
namespace hedgehog {

/// Rows [i0, i1) of one head against keys [j0, j1) of the same document.
struct AttentionTile {
  std::int64_t b, h, hkv, i0, i1, j0, j1;
  bool causal;
  std::int64_t window = std::numeric_limits<std::int64_t>::max();  // tokens that a causal row sees, itself and those before

  std::int64_t rows() const { return i1 - i0; }
  std::int64_t columns() const { return j1 - j0; }
  /// Columns of the tile that row i may see by order.
  std::int64_t seen(std::int64_t i) const { return causal ? std::clamp<std::int64_t>(i0 + i + 1 - j0, 0, columns()) : columns(); }
  /// Those before its window, of the ones that it may see by order.
  std::int64_t left(std::int64_t i) const { return i0 + i < window ? 0 : std::clamp<std::int64_t>(i0 + i + 1 - window - j0, 0, seen(i)); }
};

/// Calls body(tile) for the tiles of rows [t.i0, t.i1) of the document [begin, end), left to right, `columns` at most each, from the
/// first key on that one of the rows sees.
template <class Body>
void for_tiles(AttentionTile t, std::int64_t columns, std::int64_t begin, std::int64_t end, const Body& body) {
  const std::int64_t last = t.causal ? t.i1 : end;
  for (t.j0 = t.i0 < t.window ? begin : std::max(begin, t.i0 + 1 - t.window); t.j0 < last; t.j0 = t.j1) {
    t.j1 = std::min(t.j0 + columns, last);
    body(t);
  }
}

/// scale q_i . k_j of a tile, -inf for masked keys. mask (T) of the batch element, or null.
template <class T>
void tile_scores(const AttentionTile& t, std::int64_t depth, T scale, const HeadRows<T>& q, const HeadRows<T>& k, const std::int32_t* mask,
                 T* scores) {
  gemm_serial<T>(false, true, t.rows(), t.columns(), depth, scale, q.at(t.b, t.i0, t.h), q.row, k.at(t.b, t.j0, t.hkv), k.row, 0, scores,
                 t.columns());
  for (std::int64_t i = 0; mask && i < t.rows(); ++i)
    for (std::int64_t j = 0; j < t.columns(); ++j)
      if (!mask[t.j0 + j]) scores[i * t.columns() + j] = -std::numeric_limits<T>::infinity();
}

}  // namespace hedgehog

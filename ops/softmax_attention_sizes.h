#pragma once
#include <algorithm>
#include <cmath>
#include <vector>

#include "core/op.h"

/// What the files of softmax attention share. Internal to ops/.
namespace hedgehog::softmax_attention_detail {

enum Input : int { kQ, kK, kV, kDocumentStart, kMask, kInputs };

struct Sizes {
  std::int64_t B, T, Hq, Hkv, D, Dv;
  bool causal;
  double scale;
  std::int64_t window;  // tokens that a row sees, at most T

  std::int64_t group() const { return Hq / Hkv; }
  /// Rows and most columns of a tile of scores. Thin rows waste less above the diagonal of short sequences.
  std::int64_t rows() const { return std::min<std::int64_t>(T, T <= 128 ? 32 : 64); }
  std::int64_t columns() const { return std::min<std::int64_t>(T, 512); }
};

inline Sizes sizes_of(const Attributes& a, const Shape& q, const Shape& k, const Shape& v) {
  const double scale = a.real("scale");
  const std::int64_t window = a.integer("window");
  return {q[0], q[1], q[2], k[2], q[3], v[3], a.flag("causal"), scale == 0 ? 1 / std::sqrt(double(q[3])) : scale,
          window == 0 ? q[1] : std::min(window, q[1])};
}

inline Sizes sizes_of(const Call& c) { return sizes_of(c.attributes, c.inputs[kQ].shape, c.inputs[kK].shape, c.inputs[kV].shape); }

void forward_cpu(const Call& c);
void backward_cpu(const Call& c);
std::int64_t forward_bytes(const Sizes& s, Dtype dtype);
std::int64_t backward_bytes(const Sizes& s, Dtype dtype);

}  // namespace hedgehog::softmax_attention_detail

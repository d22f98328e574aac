#pragma once
#include <algorithm>
#include <cmath>

#include "core/op.h"

/// What the files of attention_cross_entropy share. Internal to ops/.
namespace hedgehog::attention_cross_entropy_detail {

enum Input : int { kQ, kK, kFeaturesQ, kFeaturesK, kDocumentStart, kMask, kInputs };

struct Sizes {
  std::int64_t B, T, Hq, Hkv, D, F;
  bool causal, logarithmic;
  double scale;

  std::int64_t group() const { return Hq / Hkv; }
  /// Rows and most columns of a tile of pairs.
  std::int64_t rows() const { return std::min<std::int64_t>(T, 32); }
  std::int64_t columns() const { return std::min<std::int64_t>(T, 256); }
};

template <class In>
Sizes sizes_of(const Attributes& a, const In& in) {
  const Shape &q = in[kQ].shape, &features = in[kFeaturesQ].shape;
  const double scale = a.real("scale");
  return {q[0], q[1], q[2], in[kK].shape[2], q[3], features[3], a.flag("causal"), a.flag("logarithmic"),
          scale == 0 ? 1 / std::sqrt(double(q[3])) : scale};
}

void forward_cpu(const Call& c);
void backward_cpu(const Call& c);
std::int64_t workspace_bytes(const Sizes& s, Dtype dtype, bool backward);

}  // namespace hedgehog::attention_cross_entropy_detail

#pragma once
#include <cmath>

#include "ops/linear_attention_sizes.h"

/// What the kernels of hybrid_attention_step share. Internal to ops/ and cuda/.
namespace hedgehog::hybrid_attention_step_detail {

enum Input : int { kQ, kK, kV, kState, kCache, kPosition, kWeightQ, kWeightK, kBiasQ, kBiasK, kLogFactor };

struct Sizes : linear_attention_detail::Sizes {
  std::int64_t window;
  double score_scale;
  bool maximum, linear;
};

template <class In>
Sizes sizes_of(const Attributes& a, const In& in) {
  const auto& q = in[kQ].shape;
  const double scale = a.real("scale");
  return {linear_attention_detail::extents_of(feature_map_of("hybrid_attention_step", a), q, in[kK].shape, in[kV].shape,
                                              in[kWeightQ].given ? &in[kWeightQ].shape : nullptr),
          in[kCache].shape[1], scale == 0 ? 1 / std::sqrt(double(q[3])) : scale, a.flag("maximum"), a.flag("linear")};
}

}  // namespace hedgehog::hybrid_attention_step_detail

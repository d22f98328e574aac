#include "nn/attention_features.h"

#include <algorithm>
#include <cmath>

namespace hedgehog {

std::int64_t query_width(const std::string& kind, const FeatureOptions& options, std::int64_t width) {
  return kind == "taylor" ? std::min(options.taylor_dim, width) : width;
}

std::int64_t performer_feature_count(const FeatureOptions& options, std::int64_t width) {
  if (options.performer_features > 0) return options.performer_features;
  const double usual = double(width) * std::log(double(width));
  return std::clamp<std::int64_t>(std::int64_t(usual) / 2 * 2, 2, 256);
}

namespace {

/// Draw 0, 1, … of a layer, in a stream each from kStream on; those of parameters and dropout are small numbers.
std::vector<double> drawn(std::int64_t rows, std::int64_t width, std::uint64_t seed, std::int64_t layer, std::int64_t draw) {
  constexpr std::uint32_t kStream = 0x70657266u;
  return performer_projection(rows, width, {seed, std::uint32_t(layer), kStream + std::uint32_t(draw)});
}

}  // namespace

AttentionFeatures::AttentionFeatures(const std::string& kind, const FeatureOptions& options, std::int64_t width, Dtype dtype,
                                     std::uint64_t seed, std::int64_t layer, bool declared)
    : kind_(kind), options_(options), width_(query_width(kind, options, width)), seed_(seed), layer_(layer) {
  if (kind != "performer") return;
  const std::int64_t rows = count() / (options.performer_hyperbolic ? 2 : 1);
  projection_ = declared ? declare({rows, width}, accumulator_of(dtype), Role::input, "performer_projection")
                         : constant({rows, width}, drawn(rows, width, seed, layer, options.performer_draw), accumulator_of(dtype),
                                    "performer_projection");
}

void AttentionFeatures::redraw(std::int64_t draw) {
  if (!projection_ || draw == options_.performer_draw) return;
  options_.performer_draw = draw;
  projection_.copy_from(drawn(projection_.shape()[0], width_, seed_, layer_, draw));
}

Tensor AttentionFeatures::operator()(const Tensor& x, const Tensor& position) const {
  if (kind_ == "taylor") return taylor_features(x);
  if (kind_ == "cosformer") return cosformer_features(x, options_.cosformer_length, position);
  if (kind_ == "performer") return performer_features(x, projection_, options_.performer_hyperbolic);
  return x;
}

std::string AttentionFeatures::map() const {
  if (kind_ == "taylor" || kind_ == "cosformer") return "identity";
  if (kind_ == "performer") return "exp";
  return kind_ == "t2r" ? "relu" : kind_;
}

std::int64_t AttentionFeatures::count() const {
  if (kind_ == "taylor") return taylor_feature_count(width_);
  if (kind_ == "performer") return performer_feature_count(options_, width_);
  return kind_ == "cosformer" || kind_.starts_with("hedgehog") ? 2 * width_ : width_;
}

}  // namespace hedgehog

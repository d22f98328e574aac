#pragma once
#include <cstdint>
#include <string>

#include "ops/ops.h"

namespace hedgehog {

/// Sizes of the feature maps that are ops of their own.
struct FeatureOptions {
  std::int64_t taylor_dim = 16;         // of queries and keys, at most the heads' width: 1 + D + D (D + 1) / 2 features
  std::int64_t performer_features = 0;  // 0: D ln D, at most 256
  bool performer_hyperbolic = false;    // two features a random vector
  std::int64_t performer_redraw = 0;    // steps of training between fresh draws of the random vectors; 0: the first for ever
  std::int64_t performer_draw = 0;      // how often they were drawn anew: which draw the model has
  std::int64_t cosformer_length = 0;    // tokens; 0: the context
};

/// Turns queries and keys into what linear attention takes: features or their logarithms for the attentions "taylor", "cosformer" and
/// "performer". The maps of the others are part of linear attention, and vectors pass as they are.
class AttentionFeatures {
 public:
  AttentionFeatures() = default;
  /// width: of the heads; layer, seed and performer_draw name the draws of Performer, whose projection has no memory if `declared`.
  AttentionFeatures(const std::string& kind, const FeatureOptions& options, std::int64_t width, Dtype dtype, std::uint64_t seed,
                    std::int64_t layer, bool declared);

  /// x (B, T, H, D) -> (B, T, H, F). position i32 (1): of the first token, none for 0.
  Tensor operator()(const Tensor& x, const Tensor& position = {}) const;
  /// Gives Performer another draw, in place: recorded programs go on with it. Others have none.
  void redraw(std::int64_t draw);
  /// Random vectors of Performer, (m, D); none of others.
  const Tensor& projection() const { return projection_; }
  /// Whether vectors are turned into features here.
  bool any() const { return kind_ == "taylor" || kind_ == "cosformer" || kind_ == "performer"; }
  /// The map of linear attention after it.
  std::string map() const;
  /// Features that the state of linear attention has.
  std::int64_t count() const;

 private:
  std::string kind_;
  FeatureOptions options_;
  std::int64_t width_ = 0;  // of queries and keys
  std::uint64_t seed_ = 1;
  std::int64_t layer_ = 0;
  Tensor projection_;       // of Performer
};

/// Width of the queries and keys of a head of this width.
std::int64_t query_width(const std::string& kind, const FeatureOptions& options, std::int64_t width);
/// Features of Performer for heads of this width.
std::int64_t performer_feature_count(const FeatureOptions& options, std::int64_t width);

}  // namespace hedgehog

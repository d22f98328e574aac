#pragma once
#include <cstdint>
#include <nlohmann/json.hpp>

#include "nn/attention_features.h"
#include "train/json_fields.h"

namespace hedgehog {

/// The fields of feature options in a checkpoint and in an exported config.
inline void write_features(nlohmann::json& to, const FeatureOptions& o) {
  to["taylor_dim"] = o.taylor_dim;
  to["performer_features"] = o.performer_features;
  to["performer_hyperbolic"] = o.performer_hyperbolic;
  to["performer_redraw"] = o.performer_redraw;
  to["performer_draw"] = o.performer_draw;
  to["cosformer_length"] = o.cosformer_length;
}

/// Takes them back, without when Performer's vectors are drawn. Throws FileError naming the field.
inline void read_feature_sizes(const JsonFields& f, FeatureOptions& o) {
  o.taylor_dim = f.integer("taylor_dim", 1, 30);
  o.performer_features = f.integer("performer_features", 0, 512);
  o.performer_hyperbolic = f.get<bool>("performer_hyperbolic", "true or false");
  o.cosformer_length = f.integer("cosformer_length", 0, std::int64_t(1) << 40);
}

/// Takes when Performer's vectors are drawn. Throws FileError naming the field.
inline void read_feature_draws(const JsonFields& f, FeatureOptions& o) {
  o.performer_redraw = f.integer("performer_redraw", 0, INT32_MAX);
  o.performer_draw = f.integer("performer_draw", 0, INT32_MAX);
}

}  // namespace hedgehog

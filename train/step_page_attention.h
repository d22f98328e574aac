#pragma once
#include <cstddef>
#include <cstdint>
#include <nlohmann/json_fwd.hpp>

#include "core/stepper.h"

namespace hedgehog {

/// What a forward entry of linear_attention implies, in f64, of the first row of its batch:
///
///   {"map", "batch", "tokens", "shown", "features", "columns", "document_start", "heads": [{"softmax", "weights", "phi", "v", "measures"}]}
///
/// softmax   (shown, shown)     weights of softmax over the same queries and keys, 0 where a token is not seen
/// weights   (shown, shown)     those of the entry's map
/// phi       (shown, features)  phi_k(k_j); v (shown, columns): S_i = sum_{j <= i} phi_k(k_j) v_j^T, z_i = sum_{j <= i} phi_k(k_j)
/// measures  {"softmax", "map"} as measure_columns(), over all tokens
/// "unmapped": true  where another step may have mapped queries and keys: "exp" and "identity" without weights
///
/// The same of a forward entry of feature_map, where attention is made of primitive ops: the second of two in a row with one shape and one
/// map, taken as that of keys, if a causal_mask follows before the next. It has no values (columns = 0), and "queries" is the first's entry.
/// Documents are not known there: it counts as one.
///
/// shown     leading tokens, as many as `numbers` numbers allow: what a token sees lies before it, so the rest changes nothing
/// returns   {"note": why not} where the weights are not those of a causal, unmasked sequence that starts empty; null for other ops
nlohmann::ordered_json step_attention(const Stepper& stepper, std::size_t entry, std::int64_t numbers);

}  // namespace hedgehog

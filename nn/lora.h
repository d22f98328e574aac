#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "nn/parameters.h"

namespace hedgehog {

class Gpt;

/// Which linear layers get a low-rank update, and of what kind.
struct LoraOptions {
  std::int64_t rank = 8;
  double alpha = 16;   // the update is scaled by alpha / rank
  double dropout = 0;  // share of the update's inputs dropped in training
  // attention: packed queries, keys and values; attention_output; mlp and mlp_output: its two layers
  std::vector<std::string> targets{"attention", "attention_output"};

  bool has(const std::string& target) const;
};

/// Throws ShapeError for a rank below 1 or above `width`, an alpha that is not positive, a dropout outside [0, 1), and for targets that
/// are none or unknown.
void check_lora(const LoraOptions& options, std::int64_t width);

/// A low-rank update of one linear layer, added to what it gives before its activation:
///
///   y = (alpha / rank) dropout(x) A B
///
/// x  (..., in), A (in, rank) from a normal distribution of variance 1 / in, B (rank, out) zero: at first y is 0.
/// Named NAME.lora_a and NAME.lora_b after the layer. No weight decay.
/// Source: Hu et al. 2021, arXiv:2106.09685, section 4.1.
struct Lora {
  Tensor a, b;
  double scale = 1, dropout = 0;
  std::int64_t id = 0;  // of its dropout

  Lora() = default;
  Lora(Parameters& parameters, const std::string& name, std::int64_t in, std::int64_t out, const LoraOptions& options, std::int64_t id);
  explicit operator bool() const { return bool(a); }
  /// y + addend. `step`: the optimiser's step state, for dropout in training.
  Tensor operator()(const Tensor& x, const Tensor& addend, const Tensor& step) const;
};

/// Whether this is the name of a parameter of low-rank updates.
bool is_lora(const std::string& parameter);

/// The same model without updates of its own, every updated weight W replaced by W + (alpha / rank) A B. Dropout apart it gives the same
/// results, up to rounding.
Gpt merge_lora(const Gpt& model);

}  // namespace hedgehog

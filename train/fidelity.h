#pragma once
#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "train/analysis.h"
#include "train/map_distillation.h"

namespace hedgehog {

/// A feature map whose attention weights are put beside those of softmax.
///
/// name       in --maps and tables
/// attention  of the student whose maps are distilled; empty: it is measured as it stands
/// plain      of a map that is measured as it stands: its name among parameter_free_maps
/// learns     what is distilled, for people: "W", "W, b" or "-"
/// paper      where it stands in the paper; empty: the paper does not say
struct FidelityMap {
  std::string name, attention, plain, learns, paper;
};

/// All of them, distilled ones first. "exp", "t2r" and "elu" learn phi(x W), T2R with a bias; those whose name ends in "-untrained" are
/// the same with the identity as W, "relu" that of t2r; "performer", "cosformer" and "taylor" have nothing to distil.
const std::vector<FidelityMap>& fidelity_maps();

/// "elu,hedgehog" as maps, in the order of the table. Throws UsageError: unknown (nearest offered), named twice.
std::vector<FidelityMap> parse_fidelity_maps(const std::string& text);

/// Lengths that are measured, as multiples of the one that maps are distilled at.
inline constexpr std::array<std::int64_t, 4> kFidelityMultiples{1, 2, 4, 8};

/// How fidelity is measured.
///
/// length        L, tokens a row that maps are distilled on
/// spans         stretches of 8 L tokens, evenly spread over a text: each length is measured on all of them, cut into pieces
/// distillation  all maps take its steps and rows; its learning rates are set from `rates`, its context from `length`
/// rates         learning rates, falling to a tenth: the one with the lowest mean loss over the last tenth of its steps is kept;
///               those that make the loss infinite are passed over
struct FidelityPlan {
  std::int64_t length = 64, spans = 8;
  std::vector<FidelityMap> maps;
  MapDistillation distillation;
  std::vector<double> rates{1e-2};
};

/// What one map was found to be like; mean KL(softmax || map), nats a row, over rows, heads, layers and pieces of text.
struct Fidelity {
  double before = 0;                                         // held-out text at L, W as the identity
  std::array<double, kFidelityMultiples.size()> held_out{};  // at each multiple of L
  double other = 0;                                          // other text at L
  double learning_rate = 0, first_loss = 0, last_loss = 0;   // of the distillation that was kept; 0: none
};

/// Pieces (1, length) of a text's validation part: at most `spans` stretches of `span` tokens, evenly spread and not overlapping, each cut.
///
/// length  divides span
/// what    the text, for the error
///
/// Throws UsageError where the text has no such stretch, naming both lengths.
std::vector<Batch> fidelity_pieces(const TokenDataset& text, const std::string& what, std::int64_t span, std::int64_t spans,
                                   std::int64_t length);

/// The texts that a plan measures: held-out ones of each of kFidelityMultiples, and others of the first.
struct FidelityTexts {
  std::array<std::vector<Batch>, kFidelityMultiples.size()> held_out;
  std::vector<Batch> other;
};
/// Of the validation parts. Throws as fidelity_pieces.
FidelityTexts fidelity_texts(const TokenDataset& text, const TokenDataset& other, const FidelityPlan& plan);

/// Distils the maps of `plan` from a softmax teacher and measures all of them.
///
/// source   rows of plan.length tokens, for training
/// stopped  asked before every step; once true, Stopped is thrown
/// returns  one for each of plan.maps; a teacher in bf16 is distilled in bf16 and measured in f32
///
/// Throws DistillationDiverged if no rate is left for a map.
/// Source: Zhang et al. 2024, arXiv:2402.04347, section 4.2, and after its tables of KL divergences on other data and longer inputs.
std::vector<Fidelity> measure_fidelity(const Gpt& teacher, const BatchSource& source, const FidelityTexts& texts, const FidelityPlan& plan,
                                       const std::function<bool()>& stopped);

}  // namespace hedgehog

#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "nn/gpt.h"
#include "train/attention_weights.h"
#include "train/data.h"

namespace hedgehog {

/// What the attention weights a_ij of a head are like, beside those of softmax attention over the same queries and keys, p_ij.
///
///   entropy        mean over rows i of H_i = - sum_j a_ij ln a_ij                          nats; low: spiky
///   entropy_share  mean of H_i / ln n_i over rows that see n_i >= 2 tokens                 0 one-hot … 1 uniform
///   rank_in_rows   mean over rows with n_i >= 3 of Spearman's correlation of a_ij with q_i . k_j within the row; 1 for softmax
///   rank_pooled    the same over the pairs of all rows of a text together; below 1 for softmax too, as rows have normalisers of their own
///   divergence     mean over rows of KL_i = sum_j p_ij (ln p_ij - ln a_ij)                 nats
struct WeightMeasures {
  double entropy = 0, entropy_share = 0, rank_in_rows = 0, rank_pooled = 0, divergence = 0;
  WeightMeasures& operator+=(const WeightMeasures& other);
  WeightMeasures scaled(double factor) const;
};
/// Names of the five, in the files and tables.
struct MeasureColumn {
  const char* name;   // in analysis.json
  const char* title;  // in tables
  double WeightMeasures::*value;
};
const std::vector<MeasureColumn>& measure_columns();

/// One kind of attention, measured in every layer and head.
struct MapAnalysis {
  std::string name;
  std::vector<std::vector<WeightMeasures>> heads;  // (L, H)
  WeightMeasures layer(std::size_t index) const;   // mean over heads
  WeightMeasures mean() const;                     // over all
};

struct AnalysisOptions {
  std::int64_t pairs = 200'000;  // about so many pairs a head tell the rank correlations, on all texts: those of some rows, whole
  std::uint64_t seed = 1;        // of the rows drawn, one from each of equal stretches of the text
};

/// Weights of some heads on one text, for the eye.
struct HeadPicture {
  std::int64_t layer = 0, head = 0;
  std::string map;
  std::int64_t side = 0;          // cells a side, each a mean of weights over visible pairs
  std::vector<double> cells;      // (side, side); above the diagonal 0
  std::vector<double> score, log_weight;  // sampled pairs: s_ij and ln a_ij
};

struct LengthAnalysis {
  std::int64_t length = 0, texts = 0;
  std::vector<MapAnalysis> maps;  // softmax first
};

/// Measures of all heads of one layer on one text, (sources, H). The first source is softmax. In f64, on all cores, in memory linear in T.
std::vector<std::vector<WeightMeasures>> measure_layer(const LayerVectors& vectors, const std::vector<WeightSource>& sources,
                                                       const AnalysisOptions& options);

/// The parameter-free maps that can stand beside softmax attention: "hedgehog" with the identity as its weights, "elu", "relu", "exp(1)",
/// "exp(2)", "cosformer" of the text's length, "performer" with D ln D features, "taylor" of the whole heads.
std::vector<WeightSource> parameter_free_maps(const LayerVectors& vectors, std::int64_t layer, std::uint64_t seed);

/// The features that an attention layer of a model gives these queries and keys.
WeightSource weights_of(const Gpt& model, std::int64_t layer, const LayerVectors& vectors, std::string name);

/// A model's vectors in every layer while it reads a text (1, T). Throws Error if one is not finite.
std::vector<LayerVectors> read_vectors(const Gpt& model, const Batch& text, bool documents);

/// What is put beside each other for a model in a layer: softmax and the model's own weights, or, where those are softmax, the
/// parameter-free maps and the student's.
std::vector<WeightSource> sources_of(const Gpt& model, const Gpt* student, std::int64_t layer, const LayerVectors& vectors,
                                     std::uint64_t seed);

/// What is put beside each other in a layer, softmax first.
using SourcesOfLayer = std::function<std::vector<WeightSource>(std::int64_t layer, const LayerVectors& vectors)>;

/// Means over texts, each (1, T), of the sources of every layer.
LengthAnalysis analyse_length(const Gpt& model, const SourcesOfLayer& sources_of_layer, const std::vector<Batch>& texts, bool documents,
                              const AnalysisOptions& options);

/// The same of sources_of. student: a model of linear attention for a softmax model, or none.
LengthAnalysis analyse_length(const Gpt& model, const Gpt* student, const std::vector<Batch>& texts, bool documents, const AnalysisOptions& options);

/// Pictures of `most` heads spread over the layers, for every source.
std::vector<HeadPicture> draw_heads(const Gpt& model, const Gpt* student, const Batch& text, bool documents, std::int64_t most,
                                    const AnalysisOptions& options);

/// Throws UsageError where `student`'s maps cannot be put beside the softmax attention of `model`.
void check_student(const Gpt& model, const Gpt& student);

}  // namespace hedgehog

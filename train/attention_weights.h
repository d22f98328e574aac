#pragma once
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

namespace hedgehog {

/// Queries and keys of one layer over one text, on the host.
struct LayerVectors {
  std::int64_t tokens = 0, heads = 0, width = 0;  // T, H, D
  std::vector<double> q, k;                       // (T, H, D)
  std::vector<std::int32_t> document_start;       // (T): first token that each one sees; empty: the text's first
  std::int64_t first_seen(std::int64_t i) const { return document_start.empty() ? 0 : document_start[std::size_t(i)]; }
};

/// Where the weights of one kind of attention over these vectors come from: A_ij is a function of the score s_ij = q_i . k_j / sqrt(D), or
/// the product of features. The weights are a_ij = A_ij / sum_m A_im over the tokens m <= i that i sees.
struct WeightSource {
  std::string name;
  std::function<double(double score)> of_score = {};  // ln A; empty: of features
  std::int64_t features = 0;                          // F
  std::vector<double> q = {}, k = {};                 // (T, H, F)
  bool logarithmic = false;                           // q and k hold logarithms of features
};

/// The attention of the teacher: ln A = s.
WeightSource softmax_weights();

/// One head's logarithms of attention weights, made anew in blocks of rows: the (T, T) weights are never whole in memory.
class HeadWeights {
 public:
  HeadWeights(const LayerVectors& vectors, const WeightSource& source, std::int64_t head);
  /// ln a_ij of rows begin … end - 1 at weights[(i - begin) T + j]; entries that i does not see are left alone. scores: the s_ij of these
  /// rows in the same places. A weight of 0 gives -infinity. normalisers, if given: ln sum_m A_im of each of the rows.
  /// Throws: Error if a row's weights are not finite or all 0.
  void rows(std::int64_t begin, std::int64_t end, const double* scores, double* weights, double* normalisers = nullptr) const;

 private:
  double log_product(std::int64_t i, std::int64_t j) const;

  const LayerVectors& vectors_;
  const WeightSource& source_;
  std::int64_t head_;
  std::vector<double> q_, k_;              // (T, F); of logarithms: exp(l - shift), with the largest of a vector as its shift
  std::vector<double> shift_q_, shift_k_;  // (T)
};

/// s_ij = q_i . k_j / sqrt(D) of one head, rows begin … end - 1, (end - begin, T).
void attention_scores(const LayerVectors& vectors, std::int64_t head, std::int64_t begin, std::int64_t end, double* scores);

}  // namespace hedgehog

#pragma once
#include <span>
#include <string>

namespace hedgehog {

/// The metrics of GLUE (Wang et al. 2018, arXiv:1804.07461). Labels are texts, compared as they are; predictions and references have one
/// length, above 0. ROUGE is in train/rouge.h.
using Labels = std::span<const std::string>;

/// Share of predictions that are the reference.
double accuracy(Labels predictions, Labels references);

/// Harmonic mean of precision and recall of one label: 2 tp / (2 tp + fp + fn); 0 where it is right nowhere. NaN where neither side has it.
double f1_score(Labels predictions, Labels references, const std::string& positive);

/// Matthews correlation, over any number of labels:
///
///   (c n - sum_k p_k t_k) / sqrt((n² - sum_k p_k²) (n² - sum_k t_k²))
///
/// c of n are right, label k is predicted p_k times and true t_k times. NaN where either side has one label alone: it is 0 / 0 then.
/// Source: Gorodkin 2004, "Comparing two K-category assignments by a K-category correlation coefficient", equation 8.
double matthews_correlation(Labels predictions, Labels references);

/// Pearson's correlation. NaN where either side is constant. Finite numbers alone.
double pearson_correlation(std::span<const double> x, std::span<const double> y);

/// Spearman's: Pearson's of the ranks, of which equal numbers share the mean. NaN where either side is constant.
double spearman_correlation(std::span<const double> x, std::span<const double> y);

}  // namespace hedgehog

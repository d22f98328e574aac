#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace hedgehog {

/// Precision, recall and F1 of one kind of ROUGE, each in [0, 1].
struct RougeScore {
  double precision = 0, recall = 0, f1 = 0;
};

/// ROUGE of a text against a reference (Lin 2004), as PyPI's rouge-score computes it without its stemmer.
///
/// Tokens are runs of a-z and 0-9 of the text in lower case (Unicode's: the Kelvin sign is a k).
///
///   rouge1, rouge2   words and pairs of words that both have, each as often as the text that has it less often
///   rouge_l          the longest common subsequence of all words, line breaks apart
///   rouge_lsum       for every line of the reference the words in any of its longest common subsequences with lines of the prediction,
///                    each word counted at most as often as either text has it
///
/// precision is their number over that of the prediction's, recall over that of the reference's; f1 = 2 p r / (p + r). An empty text has 0.
struct Rouge {
  RougeScore rouge1, rouge2, rouge_l, rouge_lsum;
};

Rouge rouge(std::string_view prediction, std::string_view reference);

/// For each kind the score of the reference with the highest f1, of several; the first of equal ones.
Rouge best_rouge(std::string_view prediction, std::span<const std::string_view> references);

/// The words that ROUGE compares.
std::vector<std::string> rouge_words(std::string_view text);

/// Longest common subsequences of one text with others, 64 columns of the table a machine word.
///
/// Time n m / 64, memory m / 64 words besides m: rows are made one after another.
/// Source: Hyyrö 2004, "Bit-parallel LCS-length computation revisited".
class CommonSubsequence {
 public:
  /// text  (m) ids of words
  explicit CommonSubsequence(std::span<const std::int32_t> text);
  /// Length of the longest one with `other` (n).
  std::int64_t length(std::span<const std::int32_t> other) const;
  /// Where in `other` it lies, ascending: of all longest ones that which rouge-score finds, from the end a step back in the text wherever
  /// that keeps more than a step back in `other`. Holds 2 sqrt(n) rows of the table.
  std::vector<std::int32_t> indices(std::span<const std::int32_t> other) const;

 private:
  using Row = std::uint64_t;
  void advance(std::int32_t word, const Row* from, Row* to, std::vector<Row>& matches) const;

  std::vector<std::int32_t> text_;
  std::vector<std::pair<std::int32_t, std::int32_t>> places_;  // word and position, sorted
  std::size_t row_;                                            // machine words of a row
};

}  // namespace hedgehog

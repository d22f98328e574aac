#include <doctest/doctest.h>
#include <sys/resource.h>

#include <algorithm>
#include <cmath>

#include "tests/bpe_cases.h"
#include "train/metrics.h"
#include "train/rouge.h"

// Numbers are those of PyPI's scikit-learn 1.x, scipy and rouge-score: a line of Python beside each.

namespace hedgehog {
namespace {

constexpr double kRounding = 1e-14;  // a few hundred operations on numbers of some units

std::vector<std::string> labels(int count, const std::function<std::string(int)>& label) {
  std::vector<std::string> all;
  for (int i = 0; i < count; ++i) all.push_back(label(i));
  return all;
}

std::vector<double> numbers(const std::function<double(int)>& number) {
  std::vector<double> all;
  for (int i = 0; i < 200; ++i) all.push_back(number(i));
  return all;
}

/// precision, recall and F1 of rouge1, rouge2, rougeL and rougeLsum in turn
void check_rouge(const Rouge& found, const std::vector<double>& expected) {
  std::size_t i = 0;
  for (const RougeScore& s : {found.rouge1, found.rouge2, found.rouge_l, found.rouge_lsum})
    for (const double x : {s.precision, s.recall, s.f1}) {
      CAPTURE(i);
      CHECK(std::abs(x - expected[i++]) <= kRounding);
    }
}

/// Words w0, w1, …; a line break behind every 97th.
std::string long_text(int words, int factor, int different, bool lines) {
  std::string text;
  for (int i = 0; i < words; ++i)
    text.append("w").append(std::to_string((i * i * factor + i / 3) % different)).append(lines && i % 97 == 96 ? "\n " : " ");
  return text;
}

/// The definition, with the whole table: rouge-score's _lcs_table and _backtrack_norec.
std::vector<std::int32_t> indices_by_table(const std::vector<std::int32_t>& ref, const std::vector<std::int32_t>& can) {
  std::vector t(ref.size() + 1, std::vector<int>(can.size() + 1));
  for (std::size_t i = 1; i <= ref.size(); ++i)
    for (std::size_t j = 1; j <= can.size(); ++j)
      t[i][j] = ref[i - 1] == can[j - 1] ? t[i - 1][j - 1] + 1 : std::max(t[i - 1][j], t[i][j - 1]);
  std::vector<std::int32_t> found;
  for (std::size_t i = ref.size(), j = can.size(); i > 0 && j > 0;)
    if (ref[i - 1] == can[j - 1]) found.insert(found.begin(), std::int32_t(i - 1)), --i, --j;
    else if (t[i][j - 1] > t[i - 1][j]) --j;
    else --i;
  return found;
}

std::vector<std::int32_t> random_words(test::Random& random, std::size_t count, std::size_t different) {
  std::vector<std::int32_t> words(count);
  for (std::int32_t& word : words) word = std::int32_t(random.below(different));
  return words;
}

}  // namespace

TEST_CASE("metrics: labels") {
  // n=range(200); p=[i*i%7%2 for i in n]; t=[i*i%7%2 if i%3 else i%2 for i in n]
  // matthews_corrcoef(t,p), accuracy_score(t,p), f1_score(t,p), f1_score(t,p,pos_label=0)
  const auto square = [](int i) { return std::to_string(i * i % 7 % 2); };
  const auto p = labels(200, square), t = labels(200, [&](int i) { return i % 3 ? square(i) : std::to_string(i % 2); });
  CHECK(std::abs(matthews_correlation(p, t) - 0.6426850497493304) <= kRounding);
  CHECK(accuracy(p, t) == 0.84);
  CHECK(f1_score(p, t, "1") == 0.75);
  CHECK(std::abs(f1_score(p, t, "0") - 0.8823529411764706) <= kRounding);
  // p=["abc"[i*i%11%3] for i in n]; t=["abc"[i*i%11%3] if i%4 else "abcd"[i%4 if i%5 else 3] for i in n]; f1 of x=="b"
  const auto letter = [](int i) { return std::string(1, "abc"[i * i % 11 % 3]); };
  const auto several = labels(200, letter), true_several = labels(200, [&](int i) { return i % 4 ? letter(i) : i % 5 ? "a" : "d"; });
  CHECK(std::abs(matthews_correlation(several, true_several) - 0.7578841172310358) <= kRounding);
  CHECK(accuracy(several, true_several) == 0.84);
  CHECK(f1_score(several, true_several, "b") == 0.859375);
  const std::vector<std::string> ones(200, "1");
  CHECK(std::isnan(matthews_correlation(ones, t)));
  CHECK(std::isnan(matthews_correlation(p, ones)));
  CHECK(std::isnan(f1_score(p, t, "2")));
  CHECK(matthews_correlation(t, t) == 1);
}

TEST_CASE("metrics: correlations, with ties, and of very large and small numbers") {
  // x=[i*37%101/8 for i in n]; y=[(i*37%101)**2%53-i/4 for i in n]; pearsonr(x,y)[0], spearmanr(x,y)[0]
  const auto x = numbers([](int i) { return i * 37 % 101 / 8.0; });
  const auto y = numbers([](int i) { return i * 37 % 101 * (i * 37 % 101) % 53 - i / 4.0; });
  CHECK(std::abs(pearson_correlation(x, y) - 0.07038761019454795) <= kRounding);
  CHECK(std::abs(spearman_correlation(x, y) - 0.07423551962539383) <= kRounding);
  // z=[i*37%101%7 for i in n]; w=[i*37%101%5+i//50 for i in n]; pearsonr(z,w)[0], spearmanr(z,w)[0]
  const auto z = numbers([](int i) { return i * 37 % 101 % 7; }), w = numbers([](int i) { return i * 37 % 101 % 5 + i / 50; });
  CHECK(std::abs(pearson_correlation(z, w) - -0.024614826425064146) <= kRounding);
  CHECK(std::abs(spearman_correlation(z, w) - -0.028632353104213068) <= kRounding);
  for (const double factor : {0x1p1000, 0x1p-1000}) {
    auto large = z;
    for (double& v : large) v *= factor;
    CHECK(pearson_correlation(large, w) == pearson_correlation(z, w));
  }
  const std::vector<double> constant(200, 0.1);
  for (const auto metric : {pearson_correlation, spearman_correlation}) {
    CHECK(std::isnan(metric(x, constant)));
    CHECK(std::isnan(metric(constant, x)));
  }
}

TEST_CASE("metrics: ROUGE of texts") {
  // s=RougeScorer(["rouge1","rouge2","rougeL","rougeLsum"]); s.score(reference, prediction)
  check_rouge(rouge("A quick brown dog jumps over the lazy fox's tail!", "The quick brown fox jumped over the lazy dog."),
              {7 / 11., 7 / 9., 0.7, 0.3, 0.375, 1 / 3., 5 / 11., 5 / 9., 0.5, 5 / 11., 5 / 9., 0.5});
  // lines of one text are matched with any of the other's
  check_rouge(rouge("on the mat the cat\nsat all night\nlong long day", "the cat sat\non the mat\n\nall day long"),
              {9 / 11., 1, 0.9, 0.4, 0.5, 4 / 9., 5 / 11., 5 / 9., 0.5, 8 / 11., 8 / 9., 0.8});
  // lower case of the dotted capital I is an i and a dot, of the Kelvin sign a k
  check_rouge(rouge("it COSTS 3 000 in i zmir at 300k; nave", "It costs 3,000.50 \u20ac in \u0130zmir at 300\u212a, na\u00efve"),
              {0.9, 0.75, 9 / 11., 7 / 9., 7 / 11., 0.7, 0.9, 0.75, 9 / 11., 0.9, 0.75, 9 / 11.});
  check_rouge(rouge("", "a b c"), std::vector<double>(12, 0));
  check_rouge(rouge("a b c", "?"), std::vector<double>(12, 0));
  // s.score_multi(["a b c d","d c b a","a x b y"], "a b y")
  const std::vector<std::string_view> references{"a b c d", "d c b a", "a x b y"};
  check_rouge(best_rouge("a b y", references), {1, 0.75, 6 / 7., 0.5, 1 / 3., 0.4, 1, 0.75, 6 / 7., 1, 0.75, 6 / 7.});
}

TEST_CASE("metrics: ROUGE of long texts") {
  // L=lambda n,k,m: " ".join("w%d%s"%((i*i*k+i//3)%m, "\n" if i%97==96 else "") for i in range(n)); s.score(L(1000,1,17), L(900,3,17))
  const std::vector<double> runs{569 / 900., 0.569, 0.5989473684210526, 0.07897664071190211, 0.07107107107107107, 0.07481559536354057,
                                 328 / 900., 0.328, 0.3452631578947369};
  std::vector<double> expected = runs;
  expected.insert(expected.end(), {515 / 900., 0.515, 0.5421052631578948});
  check_rouge(rouge(long_text(900, 3, 17, true), long_text(1000, 1, 17, true)), expected);
  // without the line breaks: one line of a thousand words
  expected = runs;
  expected.insert(expected.end(), {328 / 900., 0.328, 0.3452631578947369});
  check_rouge(rouge(long_text(900, 3, 17, false), long_text(1000, 1, 17, false)), expected);
  // s.score(L(1000,1,301), L(1200,5,211))
  check_rouge(rouge(long_text(1200, 5, 211, true), long_text(1000, 1, 301, true)),
              {548 / 1200., 0.548, 0.4981818181818182, 0.007506255212677231, 0.009009009009009009, 0.00818926296633303, 114 / 1200., 0.114,
               0.10363636363636364, 487 / 1200., 0.487, 0.4427272727272727});
}

TEST_CASE("metrics: the longest common subsequence is the one that the whole table gives") {
  test::Random random(3);
  for (const std::size_t different : {1u, 2u, 4u, 30u})
    for (int draw = 0; draw < 60; ++draw) {
      const auto text = random_words(random, random.below(150), different), other = random_words(random, random.below(150), different);
      const CommonSubsequence subsequence(text);
      const auto expected = indices_by_table(other, text);
      CHECK(subsequence.indices(other) == expected);
      CHECK(subsequence.length(other) == std::int64_t(expected.size()));
    }
}

TEST_CASE("metrics: the longest common subsequence of long texts takes little memory") {
  const auto peak = [] {
    rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_maxrss;  // KiB, on Linux
  };
  test::Random random(5);
  const auto text = random_words(random, 30000, 900), other = random_words(random, 30000, 900);
  const CommonSubsequence subsequence(text);
  const auto before = peak();
  const auto found = subsequence.indices(other);
  // 347 rows of 30000 bits are 1.3 MB; all of them would be 113 MB, a table of numbers 3.6 GB
  CHECK(peak() - before <= 30 << 10);
  CHECK(std::int64_t(found.size()) == subsequence.length(other));
}

}  // namespace hedgehog

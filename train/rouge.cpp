#include "train/rouge.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <unordered_map>

namespace hedgehog {
namespace {

using Ids = std::vector<std::int32_t>;

/// Ids of the words of a prediction and its reference.
class WordIds {
 public:
  Ids of(std::string_view text) {
    Ids ids;
    for (std::string& word : rouge_words(text)) ids.push_back(ids_.emplace(std::move(word), std::int32_t(ids_.size())).first->second);
    return ids;
  }
  std::vector<Ids> of_lines(std::string_view text) {
    std::vector<Ids> lines;
    for (std::size_t begin = 0; begin < text.size();) {
      const std::size_t end = std::min(text.find('\n', begin), text.size());
      if (end > begin) lines.push_back(of(text.substr(begin, end - begin)));
      begin = end + 1;
    }
    return lines;
  }
  std::size_t size() const { return ids_.size(); }

 private:
  std::unordered_map<std::string, std::int32_t> ids_;
};

RougeScore score_of(double common, double predicted, double referred) {
  RougeScore s{common / std::max(predicted, 1.0), common / std::max(referred, 1.0), 0};
  if (s.precision + s.recall > 0) s.f1 = 2 * s.precision * s.recall / (s.precision + s.recall);
  return s;
}

/// Of runs of n = 1 or 2 words.
RougeScore of_runs(const Ids& prediction, const Ids& reference, std::size_t n) {
  const auto key = [n](const Ids& ids, std::size_t i) { return std::uint64_t(ids[i]) << 32 | std::uint64_t(n > 1 ? ids[i + 1] : 0); };
  const auto runs = [n](const Ids& ids) { return ids.size() < n ? 0 : ids.size() - n + 1; };
  std::unordered_map<std::uint64_t, std::int64_t> left;
  for (std::size_t i = 0; i < runs(reference); ++i) ++left[key(reference, i)];
  std::int64_t common = 0;
  for (std::size_t i = 0; i < runs(prediction); ++i)
    if (const auto found = left.find(key(prediction, i)); found != left.end() && found->second > 0) --found->second, ++common;
  return score_of(double(common), double(runs(prediction)), double(runs(reference)));
}

RougeScore of_lines(const std::vector<Ids>& prediction, const std::vector<Ids>& reference, std::size_t words) {
  std::vector<std::int64_t> in_prediction(words), in_reference(words);
  std::int64_t predicted = 0, referred = 0, common = 0;
  for (const Ids& line : prediction) for (const std::int32_t id : line) ++in_prediction[std::size_t(id)], ++predicted;
  for (const Ids& line : reference) for (const std::int32_t id : line) ++in_reference[std::size_t(id)], ++referred;
  std::vector<CommonSubsequence> lines;
  for (const Ids& line : prediction) lines.emplace_back(line);
  for (const Ids& line : reference) {
    std::vector<char> found(line.size());
    for (const CommonSubsequence& other : lines)
      for (const std::int32_t i : other.indices(line)) found[std::size_t(i)] = 1;
    for (std::size_t i = 0; i < line.size(); ++i) {
      std::int64_t &p = in_prediction[std::size_t(line[i])], &r = in_reference[std::size_t(line[i])];
      if (found[i] && p > 0 && r > 0) --p, --r, ++common;
    }
  }
  return score_of(double(common), double(predicted), double(referred));
}

/// Ones among the first `count` zero-marked columns of a row: the table's value there.
std::int64_t value_at(const std::uint64_t* row, std::int64_t count) {
  std::int64_t value = 0;
  for (; count >= 64; count -= 64) value += std::popcount(~*row++);
  return count ? value + std::popcount(~*row & ((std::uint64_t(1) << count) - 1)) : value;
}

/// Whether the table's value rises at column j, counted from 0.
bool rises(const std::uint64_t* row, std::int64_t j) { return !(row[j / 64] >> (j % 64) & 1); }

}  // namespace

std::vector<std::string> rouge_words(std::string_view text) {
  std::vector<std::string> words;
  std::string word;
  const auto end = [&] {
    if (!word.empty()) words.push_back(std::move(word));
    word.clear();
  };
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if ((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9')) word += c;
    else if (c >= 'A' && c <= 'Z') word += char(c - 'A' + 'a');
    else if (text.substr(i).starts_with("\u212a")) word += 'k', i += 2;
    else if (text.substr(i).starts_with("\u0130")) word += 'i', end(), ++i;  // its lower case is an i and a dot
    else end();
  }
  end();
  return words;
}

CommonSubsequence::CommonSubsequence(std::span<const std::int32_t> text) : text_(text.begin(), text.end()), row_((text.size() + 63) / 64) {
  for (std::size_t j = 0; j < text.size(); ++j) places_.emplace_back(text[j], std::int32_t(j));
  std::sort(places_.begin(), places_.end());
}

// A zero bit j of a row says that the table's value rises by one from column j to j + 1. `matches` is zero before and after.
void CommonSubsequence::advance(std::int32_t word, const Row* from, Row* to, std::vector<Row>& matches) const {
  const auto first = std::lower_bound(places_.begin(), places_.end(), std::pair(word, std::int32_t(0)));
  auto last = first;
  for (; last != places_.end() && last->first == word; ++last) matches[std::size_t(last->second) / 64] |= Row(1) << (last->second % 64);
  Row carry = 0;
  for (std::size_t w = 0; w < row_; ++w) {
    const Row v = from[w], hit = v & matches[w], partial = v + hit, sum = partial + carry;
    carry = Row(partial < v) | Row(sum < partial);
    to[w] = sum | (v & ~matches[w]);
  }
  for (auto place = first; place != last; ++place) matches[std::size_t(place->second) / 64] = 0;
}

std::int64_t CommonSubsequence::length(std::span<const std::int32_t> other) const {
  std::vector<Row> row(row_, ~Row(0)), matches(row_);
  for (const std::int32_t word : other) advance(word, row.data(), row.data(), matches);
  return value_at(row.data(), std::int64_t(text_.size()));
}

std::vector<std::int32_t> CommonSubsequence::indices(std::span<const std::int32_t> other) const {
  const std::int64_t n = std::int64_t(other.size()), block = std::max<std::int64_t>(1, std::int64_t(std::sqrt(double(n))));
  std::vector<Row> matches(row_), row(row_, ~Row(0)), kept, rows(std::size_t(block + 1) * row_);
  for (std::int64_t i = 0; i < n; ++i) {
    if (i % block == 0) kept.insert(kept.end(), row.begin(), row.end());
    advance(other[std::size_t(i)], row.data(), row.data(), matches);
  }
  // rows first … first + block of the table are at hand, made again from one that was kept
  std::int64_t first = n + 1;
  const auto row_of = [&](std::int64_t i) { return rows.data() + std::size_t(i - first) * row_; };
  const auto reach = [&](std::int64_t i) {
    if (i - 1 >= first) return;
    first = (i - 1) / block * block;
    std::copy_n(kept.begin() + std::ptrdiff_t(std::size_t(first / block) * row_), row_, rows.begin());
    for (std::int64_t r = first; r < std::min(first + block, n); ++r) advance(other[std::size_t(r)], row_of(r), row_of(r + 1), matches);
  };
  std::vector<std::int32_t> found;
  std::int64_t i = n, j = std::int64_t(text_.size()), here = 0, above = 0;  // the table's values at (i, j) and (i - 1, j)
  const auto look = [&] {
    if (i == 0) return;
    reach(i);
    here = value_at(row_of(i), j), above = value_at(row_of(i - 1), j);
  };
  for (look(); i > 0 && j > 0;) {
    if (other[std::size_t(i - 1)] == text_[std::size_t(j - 1)]) {
      found.push_back(std::int32_t(i - 1));
      --i, --j;
      look();
    } else if (const std::int64_t left = here - rises(row_of(i), j - 1); left > above) {
      --j;
      here = left, above -= rises(row_of(i - 1), j);
    } else {
      --i;
      look();
    }
  }
  std::reverse(found.begin(), found.end());
  return found;
}

Rouge rouge(std::string_view prediction, std::string_view reference) {
  WordIds ids;
  const Ids p = ids.of(prediction), r = ids.of(reference);
  Rouge result;
  result.rouge1 = of_runs(p, r, 1);
  result.rouge2 = of_runs(p, r, 2);
  result.rouge_l = score_of(double(CommonSubsequence(p).length(r)), double(p.size()), double(r.size()));
  const std::vector<Ids> p_lines = ids.of_lines(prediction), r_lines = ids.of_lines(reference);
  result.rouge_lsum = of_lines(p_lines, r_lines, ids.size());
  return result;
}

Rouge best_rouge(std::string_view prediction, std::span<const std::string_view> references) {
  Rouge best = rouge(prediction, references[0]);
  for (const std::string_view reference : references.subspan(1)) {
    const Rouge other = rouge(prediction, reference);
    for (RougeScore Rouge::*kind : {&Rouge::rouge1, &Rouge::rouge2, &Rouge::rouge_l, &Rouge::rouge_lsum})
      if ((other.*kind).f1 > (best.*kind).f1) best.*kind = other.*kind;
  }
  return best;
}

}  // namespace hedgehog

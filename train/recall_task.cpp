#include "train/recall_task.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/error.h"
#include "core/parallel.h"
#include "core/random.h"
#include "train/evaluation.h"

namespace hedgehog {
namespace {

constexpr std::uint32_t kTrainingStream = 0x7265636c, kTestStream = 0x74657374;  // ids that no tensor of a model has

/// Draws of one row, one after another.
class Draws {
 public:
  explicit Draws(const Random& random) : random_(random) {}
  std::int64_t below(std::int64_t n) { return random_.below(next_++, std::uint32_t(n)); }
  double uniform() { return double(random_.uniform(next_++)); }
  /// `count` different numbers below n, in random order.
  std::vector<std::int32_t> different(std::int64_t count, std::int64_t n) {
    std::vector<std::int32_t> all(static_cast<std::size_t>(n));
    std::iota(all.begin(), all.end(), 0);
    for (std::int64_t i = 0; i < count; ++i) std::swap(all[std::size_t(i)], all[std::size_t(i + below(n - i))]);
    all.resize(std::size_t(count));
    return all;
  }

 private:
  Random random_;
  std::uint64_t next_ = 0;
};

RecallSequence empty_sequence(std::int64_t length) {
  return {std::vector<std::int32_t>(std::size_t(length), 0), std::vector<std::int32_t>(std::size_t(length), kIgnoredTarget)};
}

RecallSequence repeated(const RecallOptions& o, std::int64_t pairs, Draws& draws) {
  RecallSequence s = empty_sequence(o.length);
  const std::int64_t half = o.vocabulary / 2, count = o.length / 2;
  const std::vector<std::int32_t> keys = draws.different(pairs, half);
  std::vector<std::int32_t> values, shown;
  for (std::int64_t i = 0; i < pairs; ++i) values.push_back(std::int32_t(half + draws.below(half)));
  std::vector<char> seen(std::size_t(pairs), 0);
  for (std::int64_t i = 0; i < count; ++i) {
    const bool last = i + 1 == count;
    const auto k = std::size_t(last ? shown[std::size_t(draws.below(std::int64_t(shown.size())))] : draws.below(pairs));
    s.tokens[std::size_t(2 * i)] = keys[k];
    s.tokens[std::size_t(2 * i + 1)] = values[k];
    if (seen[k]) s.targets[std::size_t(2 * i)] = values[k];
    else shown.push_back(std::int32_t(k));
    seen[k] = 1;
  }
  return s;
}

/// Different places in [0, places), small ones likelier: a place g has weight (g + 1)^-0.99.
std::vector<std::int64_t> gaps(std::int64_t count, std::int64_t places, Draws& draws) {
  // the smallest of independent exponential times, each with its weight as rate, are a weighted draw without replacement
  std::vector<std::pair<double, std::int64_t>> times;
  for (std::int64_t g = 0; g < places; ++g) times.emplace_back(-std::log(1 - draws.uniform()) * std::pow(double(g + 1), 0.99), g);
  std::partial_sort(times.begin(), times.begin() + count, times.end());
  std::vector<std::int64_t> drawn;
  for (std::int64_t i = 0; i < count; ++i) drawn.push_back(times[std::size_t(i)].second);
  return drawn;
}

RecallSequence multi_query(const RecallOptions& o, std::int64_t pairs, Draws& draws) {
  RecallSequence s = empty_sequence(o.length);
  const std::int64_t half = o.vocabulary / 2;
  for (std::int32_t& token : s.tokens) token = std::int32_t(draws.below(o.vocabulary));
  const std::vector<std::int32_t> keys = draws.different(pairs, half), values = draws.different(pairs, half);
  const std::vector<std::int64_t> places = gaps(pairs, (o.length - 2 * pairs) / 2, draws);
  for (std::int64_t i = 0; i < pairs; ++i) {
    const auto k = std::size_t(i);
    s.tokens[2 * k] = keys[k];
    s.tokens[2 * k + 1] = std::int32_t(half) + values[k];
    const auto at = std::size_t(2 * pairs + 2 * places[k]);
    s.tokens[at] = keys[k];
    s.targets[at] = std::int32_t(half) + values[k];
  }
  return s;
}

RecallSequence sequence(const RecallOptions& o, std::int64_t pairs, const Random& random) {
  Draws draws(random);
  return o.form == RecallForm::repeated ? repeated(o, pairs, draws) : multi_query(o, pairs, draws);
}

}  // namespace

RecallBatches::RecallBatches(const RecallOptions& options, std::uint64_t seed, std::int64_t rows_per_step)
    : options_(options), seed_(seed), rows_per_step_(rows_per_step) {
  const RecallOptions& o = options_;
  if (o.vocabulary < 4 || o.vocabulary % 2)
    throw UsageError(
        fmt::format("[recall] the vocabulary is half keys, half values: it must be even and at least 4, not {}", o.vocabulary));
  if (o.pairs < 1 || o.pairs > o.vocabulary / 2)
    throw UsageError(fmt::format("[recall] a row of {} pairs needs as many keys, but a vocabulary of {} has {}", o.pairs, o.vocabulary,
                                 o.vocabulary / 2));
  const std::int64_t least = o.form == RecallForm::repeated ? 4 : 4 * o.pairs;
  if (o.length < least || o.length % 2)
    throw UsageError(
        fmt::format("[recall] rows of {} pairs must have an even length of at least {} tokens, not {}", o.pairs, least, o.length));
  if (o.first_pairs < 0 || o.first_pairs > o.pairs)
    throw UsageError(fmt::format("[recall] training cannot grow from {} pairs to {}", o.first_pairs, o.pairs));
}

std::int64_t RecallBatches::pairs_at(std::int64_t step) const {
  if (options_.first_pairs == 0 || step >= options_.growth_steps) return options_.pairs;
  return options_.first_pairs + (options_.pairs - options_.first_pairs) * step / options_.growth_steps;
}

RecallSequence RecallBatches::training_sequence(std::int64_t row, std::int64_t pairs) const {
  if (options_.training_rows > 0) row %= options_.training_rows;
  return sequence(options_, pairs, {seed_, kTrainingStream, std::uint32_t(row)});
}

RecallSequence RecallBatches::test_sequence(std::int64_t row) const {
  return sequence(options_, options_.pairs, {0, kTestStream, std::uint32_t(row)});
}

Batch RecallBatches::training(std::int64_t step, std::int64_t first_row, std::int64_t rows) const {
  std::vector<RecallSequence> sequences(static_cast<std::size_t>(rows));
  const std::int64_t first = step * rows_per_step_ + first_row, pairs = pairs_at(step);
  parallel_tasks(rows, [&](std::int64_t i) { sequences[std::size_t(i)] = training_sequence(first + i, pairs); });
  return pack(sequences);
}

Batch RecallBatches::validation(std::int64_t index, std::int64_t rows) const {
  std::vector<RecallSequence> sequences(static_cast<std::size_t>(rows));
  parallel_tasks(rows, [&](std::int64_t i) {
    const std::int64_t row = index * rows + i;
    sequences[std::size_t(i)] = row < options_.test_rows ? test_sequence(row) : empty_sequence(options_.length);
  });
  return pack(sequences);
}

Batch RecallBatches::pack(const std::vector<RecallSequence>& sequences) const {
  Batch batch;
  batch.rows = std::int64_t(sequences.size());
  batch.time = options_.length;
  for (const RecallSequence& s : sequences) {
    batch.tokens.insert(batch.tokens.end(), s.tokens.begin(), s.tokens.end());
    batch.targets.insert(batch.targets.end(), s.targets.begin(), s.targets.end());
    batch.valid += std::count_if(s.targets.begin(), s.targets.end(), [](std::int32_t t) { return t != kIgnoredTarget; });
  }
  batch.document_start.assign(batch.tokens.size(), 0);
  return batch;
}

std::string RecallBatches::describe() const {
  const RecallOptions& o = options_;
  return fmt::format("{} of {} tokens, {} of them keys and {} values, {} pairs a row, {} to train on, {} to test",
                     o.form == RecallForm::repeated ? "rows of repeated pairs" : "rows of pairs and queries", o.length, o.vocabulary / 2,
                     o.vocabulary / 2, o.pairs, o.training_rows ? fmt::format("{} rows", o.training_rows) : "fresh rows", o.test_rows);
}

RecallAnswers measure_answers(const Gpt& model, const RecallBatches& source, std::int64_t rows, std::int64_t most) {
  const std::int64_t length = source.options().length, all = source.validation_batches(rows);
  Predictor predictor(model, rows, length);
  RecallAnswers answers;
  for (std::int64_t b = 0; b < (most > 0 ? std::min(most, all) : all); ++b) {
    const Batch batch = source.validation(b, rows);
    const std::vector<std::int32_t> best = predictor.run(batch);
    for (std::int64_t r = 0; r < rows; ++r) {
      bool last = true;
      for (std::int64_t i = length; i-- > 0;) {
        const auto at = std::size_t(r * length + i);
        if (batch.targets[at] == kIgnoredTarget) continue;
        const bool right = best[at] == batch.targets[at];
        ++answers.asked;
        answers.right += right;
        answers.last_asked += last;
        answers.last_right += last && right;
        last = false;
      }
    }
  }
  return answers;
}

}  // namespace hedgehog

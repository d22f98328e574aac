#include <doctest/doctest.h>

#include <algorithm>
#include <map>
#include <set>

#include "core/error.h"
#include "tests/temporary_directory.h"
#include "train/experiment_training.h"
#include "train/experiments.h"
#include "train/recall_task.h"

using namespace hedgehog;

namespace {

RecallOptions task(RecallForm form, std::int64_t vocabulary, std::int64_t length, std::int64_t pairs) {
  RecallOptions o;
  o.form = form;
  o.vocabulary = vocabulary;
  o.length = length;
  o.pairs = pairs;
  o.test_rows = 5;
  return o;
}

/// Key and value of each pair that stands in tokens[0, end), the last one of a key.
std::map<std::int32_t, std::int32_t> pairs_in(const RecallSequence& s, std::size_t end) {
  std::map<std::int32_t, std::int32_t> pairs;
  for (std::size_t i = 0; i + 1 < end; i += 2) pairs[s.tokens[i]] = s.tokens[i + 1];
  return pairs;
}

/// Every scored key stands in the pairs before it, and its target is the value there. Returns how many there are.
int check_answers(const RecallSequence& s, std::size_t pairs_end) {
  int asked = 0;
  for (std::size_t i = 0; i < s.targets.size(); ++i) {
    if (s.targets[i] == kIgnoredTarget) continue;
    ++asked;
    const auto pairs = pairs_in(s, std::min(i, pairs_end));
    REQUIRE(pairs.contains(s.tokens[i]));
    CHECK(pairs.at(s.tokens[i]) == s.targets[i]);
  }
  return asked;
}

}  // namespace

TEST_CASE("recall: repeated pairs: every answer stands in the row, keys keep their values, and the last pair asks") {
  const RecallBatches source(task(RecallForm::repeated, 40, 128, 20), 1, 8);
  std::set<std::int32_t> first_values;
  for (std::int64_t row = 0; row < 50; ++row) {
    const RecallSequence s = source.training_sequence(row, 20);
    REQUIRE(s.tokens.size() == 128);
    REQUIRE(s.targets.size() == 128);
    std::map<std::int32_t, std::int32_t> value_of;
    int repeats = 0;
    for (std::size_t i = 0; i < 128; i += 2) {
      CHECK(s.tokens[i] < 20);
      CHECK(s.tokens[i + 1] >= 20);
      CHECK(s.tokens[i + 1] < 40);
      repeats += value_of.contains(s.tokens[i]);
      const auto [at, fresh] = value_of.emplace(s.tokens[i], s.tokens[i + 1]);
      CHECK(at->second == s.tokens[i + 1]);
      CHECK((s.targets[i] == kIgnoredTarget) == fresh);
      CHECK(s.targets[i + 1] == kIgnoredTarget);
    }
    CHECK(s.targets[126] != kIgnoredTarget);
    CHECK(check_answers(s, 128) == repeats);
    first_values.insert(value_of[0]);
  }
  // the map is the row's own: key 0 has many values
  CHECK(first_values.size() > 10);
}

TEST_CASE("recall: pairs and queries: each key is asked once after the pairs, at even places, and has its value there") {
  const RecallBatches source(task(RecallForm::multi_query, 64, 64, 8), 1, 8);
  std::vector<int> early(2, 0);
  for (std::int64_t row = 0; row < 50; ++row) {
    const RecallSequence s = source.training_sequence(row, 8);
    CHECK(check_answers(s, 16) == 8);
    std::set<std::int32_t> asked;
    for (std::size_t i = 0; i < 64; ++i) {
      if (s.targets[i] == kIgnoredTarget) continue;
      CHECK(i >= 16);
      CHECK(i % 2 == 0);
      CHECK(asked.insert(s.tokens[i]).second);
      ++early[i >= 40];
    }
    CHECK(pairs_in(s, 16).size() == 8);
  }
  // small gaps are likelier
  CHECK(early[0] > early[1] * 3 / 2);
}

TEST_CASE("recall: rows are functions of seed and row, whatever the batch; training never shows the test") {
  const RecallOptions o = task(RecallForm::repeated, 40, 32, 8);
  const RecallBatches a(o, 1, 4), b(o, 1, 4), other(o, 2, 4);
  const Batch whole = a.training(3, 0, 4), half = b.training(3, 2, 2);
  CHECK(whole.rows == 4);
  CHECK(whole.time == 32);
  CHECK(whole.tokens.size() == 128);
  CHECK(whole.document_start == std::vector<std::int32_t>(128, 0));
  CHECK(std::equal(half.tokens.begin(), half.tokens.end(), whole.tokens.begin() + 64));
  CHECK(whole.tokens != other.training(3, 0, 4).tokens);
  CHECK(whole.tokens != a.training(4, 0, 4).tokens);
  CHECK(whole.valid == 128 - std::count(whole.targets.begin(), whole.targets.end(), kIgnoredTarget));
  // the test is the same for every seed, and no training row is in it
  CHECK(a.validation(0, 4).tokens == other.validation(0, 4).tokens);
  std::set<std::vector<std::int32_t>> test;
  for (std::int64_t row = 0; row < 5; ++row) test.insert(a.test_sequence(row).tokens);
  CHECK(test.size() == 5);
  for (std::int64_t row = 0; row < 2000; ++row) CHECK_FALSE(test.contains(a.training_sequence(row, 8).tokens));
  // the last test batch is filled up with rows that count nothing
  CHECK(a.validation_batches(4) == 2);
  const Batch last = a.validation(1, 4);
  CHECK(std::all_of(last.targets.begin() + 32, last.targets.end(), [](std::int32_t t) { return t == kIgnoredTarget; }));
}

TEST_CASE("recall: a set of training rows comes again, and rows grow to the test's number of pairs") {
  RecallOptions o = task(RecallForm::repeated, 40, 64, 20);
  o.training_rows = 6;
  const RecallBatches fixed(o, 1, 4);
  CHECK(fixed.training(0, 0, 2).tokens == fixed.training(3, 0, 2).tokens);  // rows 12 and 13
  o.training_rows = 0;
  o.first_pairs = 2;
  o.growth_steps = 9;
  const RecallBatches growing(o, 1, 4);
  CHECK(growing.pairs_at(0) == 2);
  CHECK(growing.pairs_at(4) == 10);
  CHECK(growing.pairs_at(9) == 20);
  CHECK(growing.pairs_at(1000) == 20);
  const auto keys_of = [](const std::vector<std::int32_t>& tokens) {
    std::set<std::int32_t> keys;
    for (std::size_t i = 0; i < 64; i += 2) keys.insert(tokens[i]);
    return keys.size();
  };
  CHECK(keys_of(growing.training(0, 0, 1).tokens) == 2);
  CHECK(keys_of(growing.training(9, 0, 1).tokens) > 10);
}

TEST_CASE("recall: sizes that do not fit together are refused") {
  const auto refusal = [](RecallOptions o) { return message_of<UsageError>([&] { RecallBatches(o, 1, 4); }); };
  CHECK(contains(refusal(task(RecallForm::repeated, 41, 128, 20)), "even"));
  CHECK(contains(refusal(task(RecallForm::repeated, 40, 128, 21)), "21"));
  CHECK(contains(refusal(task(RecallForm::repeated, 40, 127, 20)), "127"));
  CHECK(contains(refusal(task(RecallForm::repeated, 40, 2, 1)), "at least 4"));
  CHECK(contains(refusal(task(RecallForm::multi_query, 64, 62, 16)), "at least 64"));
  CHECK(contains(refusal(task(RecallForm::repeated, 40, 128, 0)), "0 pairs"));
  RecallOptions o = task(RecallForm::repeated, 40, 128, 20);
  o.first_pairs = 21;
  CHECK(contains(refusal(o), "21"));
}

TEST_CASE("recall: a small model learns it far above chance within seconds, and stops when told to") {
  RecallOptions o = task(RecallForm::repeated, 16, 32, 4);
  o.test_rows = 64;
  const RecallBatches source(o, 1, 16);
  TrainingPlan plan;
  plan.model.layers = 1;
  plan.model.heads = 1;
  plan.model.width = 32;
  plan.model.context = 32;
  plan.model.vocabulary = 16;
  plan.model.positions = "none";
  plan.model.norm = "rms";
  plan.model.init = "mimetic";
  plan.model.tied_head = false;
  plan.model.embedding_init = 1;
  plan.model.short_convolution = 4;
  plan.rows = 16;
  plan.optimizer.weight_decay = 0;
  plan.schedule = {ScheduleKind::kCosine, 1e-2, 1e-3, 10, 150};
  plan.measure_every = 50;
  const auto measure = [&](const Gpt& model) { return measure_answers(model, source, 32).share(); };
  const TrainedModel trained = train_model(plan, source, measure, [] { return false; });
  REQUIRE(trained.curve.size() == 3);
  CHECK_FALSE(trained.diverged);
  CHECK(trained.curve[2].step == 150);
  CHECK(trained.curve[2].loss < trained.curve[0].loss);
  CHECK(trained.curve[2].measure > 0.9);  // chance is 1/8, the values shown 1/4
  const RecallAnswers answers = measure_answers(*trained.model, source, 30);
  CHECK(answers.last_asked == 64);
  CHECK(answers.share() == trained.curve[2].measure);  // whatever the number of rows at once
  int left = 7;
  CHECK_THROWS_AS(train_model(plan, source, measure, [&] { return --left < 0; }), Stopped);
}

TEST_CASE("recall: the experiment has a part for each map and seed, and its table stands with parts missing") {
  const Experiment experiment = recall_experiment();
  ReproduceRequest request;
  request.seeds = {1, 2};
  const auto parts = experiment.parts(request);
  std::set<std::string> names;
  PartResults results;
  for (const ExperimentPart& part : parts) {
    names.insert(part.name);
    if (!part.name.ends_with("seed1")) continue;
    results[part.name].result = {
        {"accuracy", 0.5}, {"all_answers", 0.25}, {"steps", {1, 2}}, {"accuracies", {0.25, 0.5}}, {"losses", {3, 2}}};
  }
  CHECK(names.size() == parts.size());
  const Findings f = experiment.collect(request, results);
  REQUIRE(f.rows.size() == parts.size() / 2);
  CHECK(f.rows[0][1] == "softmax");
  CHECK(f.rows[0][2] == "100.0");
  CHECK(f.rows[0][3] == "50.0");
  CHECK(f.rows[0][5] == "1");
  CHECK(f.charts[0]["series"][0]["y"][1] == 50);
  request.size = "gpu";
  CHECK(experiment.parts(request).size() > parts.size());
}

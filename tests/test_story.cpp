#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "core/error.h"
#include "train/story.h"

using namespace hedgehog;

namespace {

constexpr uint64_t kSeed = 11;

std::string refusal(const std::string& text) {
  try {
    StoryCorpus().parse(text);
  } catch (const UsageError& e) {
    return e.what();
  }
  return "";
}

// reads a story's words again, without the generator: who has what, and what each question should answer
struct Reading {
  std::map<std::string, std::string> fact;
  std::map<std::string, int64_t> mention;
  std::vector<int64_t> answers, distances;
  int fewest_facts = 1 << 20;
  bool right = true;
};

Reading read(const StoryCorpus& corpus, const std::vector<int32_t>& tokens) {
  const std::set<std::string> groups = {"girls", "boys", "pets"}, verbs = {"visit", "carry", "eat"};
  Reading r;
  std::string person;
  bool facts = false, quiz = false;
  for (size_t i = 0; i < tokens.size(); ++i) {
    const std::string& word = corpus.vocabulary()[tokens[i]];
    if (word == ".") facts = quiz = false, person.clear();
    else if (word == "ask") quiz = true;
    else if (verbs.count(word)) facts = true;
    else if ((facts || quiz) && !groups.count(word)) {
      if (person.empty()) {
        person = word;
        continue;
      }
      if (facts) r.fact[person] = word;
      if (quiz) {
        r.right = r.right && r.fact.count(person) && r.fact[person] == word;
        r.answers.push_back(static_cast<int64_t>(i));
        r.distances.push_back(static_cast<int64_t>(i) - r.mention[person]);
        r.fewest_facts = std::min(r.fewest_facts, static_cast<int>(r.fact.size()));
      }
      r.mention[person] = static_cast<int64_t>(i);
      person.clear();
    }
  }
  return r;
}

}  // namespace

TEST_CASE("story: rows are the same on every machine and never repeat") {
  const StoryCorpus corpus;
  uint64_t hash = 14695981039346656037u;  // FNV-1a
  std::set<std::vector<int32_t>> seen;
  for (int64_t row = 0; row < 500; ++row) {
    for (const bool validation : {false, true}) {
      const Story story = corpus.row(kSeed, row, validation);
      CHECK(story.tokens == corpus.row(kSeed, row, validation).tokens);
      CHECK(seen.insert(story.tokens).second);
      for (const int32_t token : story.tokens) hash = (hash ^ static_cast<uint64_t>(token)) * 1099511628211u;
    }
    CHECK(seen.insert(corpus.row(kSeed + 1, row, false).tokens).second);
  }
  CHECK(hash == 16456663975859639172u);
}

TEST_CASE("story: a row is one token longer than the context, and the story ends inside it") {
  for (const int64_t context : {128, 160, 192}) {
    CAPTURE(context);
    StoryOptions options;
    options.context = context;
    const StoryCorpus corpus(options);
    for (int64_t row = 0; row < 200; ++row) {
      const Story story = corpus.row(kSeed, row, row % 2 == 1);
      REQUIRE(story.tokens.size() == static_cast<size_t>(context + 1));
      REQUIRE(story.targets.size() == static_cast<size_t>(context));
      REQUIRE(story.neg_log_p.size() == static_cast<size_t>(context));
      const auto end = std::find(story.tokens.begin(), story.tokens.end(), 0);
      REQUIRE(end != story.tokens.end());
      CHECK(std::all_of(end, story.tokens.end(), [](int32_t t) { return t == 0; }));
      CHECK(corpus.vocabulary()[*(end - 2)] == "end");
    }
  }
}

TEST_CASE("story: next_distribution sums to one and equals the recorded probabilities") {
  const StoryCorpus corpus;
  for (int64_t row = 0; row < 20; ++row) {
    const Story story = corpus.row(kSeed, row, row % 2 == 1);
    for (size_t i = 0; i < story.targets.size(); ++i) {
      if (i > 0 && story.tokens[i] == 0) break;
      const std::vector<int32_t> prefix(story.tokens.begin(), story.tokens.begin() + static_cast<int64_t>(i) + 1);
      const std::vector<double> p = corpus.next_distribution(prefix);
      double sum = 0;
      for (const double x : p) sum += x;
      CHECK(sum == doctest::Approx(1).epsilon(1e-12));  // at most 48 terms of relative error 2^-53
      if (story.targets[i] < 0) continue;
      CHECK(story.targets[i] == story.tokens[i + 1]);
      CHECK(-std::log(p[story.targets[i]]) == doctest::Approx(story.neg_log_p[i]).epsilon(1e-12));
    }
  }
}

TEST_CASE("story: the law reproduces the counts of every word") {
  const StoryCorpus corpus;
  std::vector<double> excess(corpus.vocabulary().size()), variance(excess.size());
  for (int64_t row = 0; row < 60; ++row) {
    const Story story = corpus.row(kSeed, row, false);
    std::vector<int32_t> prefix;
    for (const int32_t token : story.tokens) {
      if (!prefix.empty()) {
        const std::vector<double> p = corpus.next_distribution(prefix);
        for (size_t t = 0; t < p.size(); ++t) {
          excess[t] += (token == static_cast<int32_t>(t)) - p[t];
          variance[t] += p[t] * (1 - p[t]);
        }
      }
      prefix.push_back(token);
      if (token == 0) break;
    }
  }
  // a sum of martingale differences: 5 standard deviations over 127 words fail by chance once in 10^4 seeds
  for (size_t t = 0; t < excess.size(); ++t) {
    CAPTURE(corpus.vocabulary()[t]);
    CHECK(std::abs(excess[t]) <= 5 * std::sqrt(variance[t]) + 1e-9);
  }
}

TEST_CASE("story: the conditions of design.md section 9, and answers that a second reading confirms") {
  const StoryCorpus corpus;
  int64_t questions = 0, far = 0, recency = 0;
  double guess = 0;
  std::set<int32_t> words;
  for (int64_t row = 0; row < 2000; ++row) {
    const Story story = corpus.row(kSeed, row, true);
    words.insert(story.tokens.begin(), story.tokens.end());
    const Reading again = read(corpus, story.tokens);
    CHECK(again.right);
    CHECK(again.fewest_facts >= 4);
    REQUIRE(again.answers.size() == story.questions.size());
    for (size_t i = 0; i < story.questions.size(); ++i) {
      const StoryQuestion& q = story.questions[i];
      CHECK(q.position == again.answers[i]);
      CHECK(q.distance == again.distances[i]);
      CHECK(story.targets[q.position - 1] == story.tokens[q.position]);
      CHECK(q.candidates >= 4);
      ++questions;
      far += q.distance >= 32;
      guess += 1.0 / q.candidates;
      recency += q.recency_guess == story.tokens[q.position];
    }
  }
  MESSAGE(questions << " questions, " << 100.0 * far / questions << " % at least 32 tokens from their fact, guess "
                    << 100 * guess / questions << " %, recency " << 100.0 * recency / questions << " %");
  CHECK(words.size() >= 102);  // at least 100 besides the full stop and the end
  CHECK(2 * far >= questions);
  CHECK(4 * guess <= questions);
  CHECK(4 * recency <= questions);
}

TEST_CASE("story: held-out pairs are never in training, are in validation, and are not scored where they are told") {
  const StoryCorpus corpus;
  std::set<std::pair<int32_t, int32_t>> held;
  int64_t asked = 0;
  for (int64_t row = 0; row < 1000; ++row) {
    const Story training = corpus.row(kSeed, row, false), validation = corpus.row(kSeed, row, true);
    for (size_t i = 0; i + 1 < training.tokens.size(); ++i) {
      CHECK_FALSE(corpus.is_held_out(training.tokens[i], training.tokens[i + 1]));
      if (training.tokens[i + 1] != 0) CHECK(training.targets[i] == training.tokens[i + 1]);
    }
    std::set<int32_t> answers;
    for (const StoryQuestion& q : validation.questions) {
      CHECK(q.held_out == corpus.is_held_out(validation.tokens[q.position - 1], validation.tokens[q.position]));
      answers.insert(static_cast<int32_t>(q.position));
      asked += q.held_out;
    }
    for (size_t i = 0; i + 1 < validation.tokens.size(); ++i) {
      const int32_t a = validation.tokens[i], b = validation.tokens[i + 1];
      if (!corpus.is_held_out(a, b)) continue;
      held.insert({a, b});
      const bool answer = answers.count(static_cast<int32_t>(i) + 1) > 0;
      CHECK((validation.targets[i] == -1) == !answer);
      CHECK(validation.neg_log_p[i] == 0);
    }
  }
  CHECK(held.size() == 48);  // one thing for each of 48 people
  CHECK(asked >= 2000);
}

TEST_CASE("story: normal writing in and out") {
  const StoryCorpus corpus;
  const std::string text =
      "One cold morning friends meet. Four girls visit: Mia Rome, Ann Oslo, Zoe Paris, Eva Lima. Ask the girls: Mia? Rome. The end.";
  CHECK(corpus.render(corpus.parse(text)) == text);
  CHECK(corpus.render(corpus.parse("ask the girls mia?")) == "Ask the girls: Mia?");
  CHECK(corpus.parse("ASK the Girls:\n Mia? Rome. Ann? Oslo.") == corpus.parse("ask girls mia rome ann oslo ."));
  for (int64_t row = 0; row < 100; ++row) {
    std::vector<int32_t> tokens = corpus.row(kSeed, row, true).tokens;
    tokens.erase(std::find(tokens.begin(), tokens.end(), 0), tokens.end());
    CHECK(corpus.parse(corpus.render(tokens)) == tokens);
  }
  CHECK(refusal("Mia likes plums") == "story: the model knows no word 'likes'; the nearest it knows is 'kites'");
  CHECK(refusal("plumes") == "story: the model knows no word 'plumes'; the nearest it knows is 'plums'");
}

TEST_CASE("story: what cannot be is refused") {
  const StoryCorpus corpus;
  CHECK_THROWS_AS(corpus.next_distribution(corpus.parse("one cold cold")), UsageError);
  CHECK_THROWS_AS(corpus.next_distribution({-1}), UsageError);
  CHECK_THROWS_AS(corpus.render({100000}), UsageError);
  CHECK(corpus.next_distribution({})[corpus.parse("one")[0]] == 1);
  for (auto change : {+[](StoryOptions& o) { o.min_cast = 3; }, +[](StoryOptions& o) { o.max_cast = 9; },
                      +[](StoryOptions& o) { o.groups = 4; }, +[](StoryOptions& o) { o.question_percent = 0; },
                      +[](StoryOptions& o) { o.context = 63; }, +[](StoryOptions& o) { o.held_out = 5; },
                      +[](StoryOptions& o) { o.held_out_percent = 101; }}) {
    StoryOptions options;
    change(options);
    CHECK_THROWS_AS(StoryCorpus{options}, UsageError);
  }
}

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "core/error.h"
#include "tests/story_reader.h"
#include "train/story.h"

using namespace hedgehog;
using test::Reading;
using test::Words;
using test::read_story;

namespace {

constexpr uint64_t kSeed = 11;

template <class Call>
std::string refusal(Call&& call) {
  try {
    call();
  } catch (const UsageError& e) {
    return e.what();
  }
  return "";
}

StoryOptions with(int64_t context, int kinds = 4, int min_facts = 4, int max_facts = 6) {
  StoryOptions options;
  options.context = context;
  options.kinds = kinds;
  options.min_facts = min_facts;
  options.max_facts = max_facts;
  return options;
}

const std::string kOpening = "one cold morning friends meet. ";

/// The words that may follow a text, with their probabilities.
std::map<std::string, double> p(const std::string& text) {
  const StoryCorpus corpus;
  std::map<std::string, double> by_word;
  const std::vector<double> all = corpus.next_distribution(corpus.parse(text));
  for (size_t t = 0; t < all.size(); ++t)
    if (all[t] > 0) by_word[corpus.vocabulary()[t]] = all[t];
  return by_word;
}

doctest::Approx is(double value) { return doctest::Approx(value).epsilon(1e-12); }

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
  CHECK(hash == 9550407168556278918u);
}

TEST_CASE("story: a row is one token longer than the context, and the story ends inside it") {
  for (const StoryOptions& options : {with(56), with(57), with(128), with(160), with(320), with(45, 1),
                                      with(160, 2), with(160, 3, 5, 7), with(68, 4, 8, 8), with(160, 4, 4, 4), with(160, 4, 4, 8)}) {
    CAPTURE(options.context);
    CAPTURE(options.kinds);
    CAPTURE(options.max_facts);
    const StoryCorpus corpus(options);
    std::set<size_t> sizes;
    for (int64_t row = 0; row < 200; ++row) {
      const Story story = corpus.row(kSeed, row, row % 2 == 1);
      REQUIRE(story.tokens.size() == static_cast<size_t>(options.context + 1));
      REQUIRE(story.targets.size() == static_cast<size_t>(options.context));
      REQUIRE(story.neg_log_p.size() == static_cast<size_t>(options.context));
      const auto end = std::find(story.tokens.begin(), story.tokens.end(), 0);
      REQUIRE(end != story.tokens.end());
      CHECK(std::all_of(end, story.tokens.end(), [](int32_t t) { return t == 0; }));
      const auto after = static_cast<size_t>(end - story.tokens.begin());
      CHECK(std::all_of(story.targets.begin() + static_cast<int64_t>(after), story.targets.end(), [](int32_t t) { return t == -1; }));
      const Reading again = read_story(corpus, story.tokens);
      CHECK(again.sound);
      CHECK(!again.questions.empty());
      CHECK(again.paragraphs.size() <= static_cast<size_t>(options.kinds));
      sizes.insert(again.paragraphs.begin(), again.paragraphs.end());
    }
    CHECK(*sizes.begin() == static_cast<size_t>(options.min_facts));
    CHECK(*sizes.rbegin() == static_cast<size_t>(options.max_facts));
    CHECK(sizes.size() == static_cast<size_t>(options.max_facts - options.min_facts + 1));
  }
}

TEST_CASE("story: next_distribution sums to one and equals the recorded probabilities") {
  // the prefix alone decides: nothing else reaches next_distribution
  for (const StoryOptions& options : {with(160), with(320, 4, 5, 8), with(128, 2)}) {
    const StoryCorpus corpus(options);
    for (int64_t row = 0; row < 12; ++row) {
      const Story story = corpus.row(kSeed, row, row % 2 == 1);
      for (size_t i = 0; i < story.targets.size(); ++i) {
        if (i > 0 && story.tokens[i] == 0) break;
        const std::vector<int32_t> prefix(story.tokens.begin(), story.tokens.begin() + static_cast<int64_t>(i) + 1);
        const std::vector<double> p = corpus.next_distribution(prefix);
        double sum = 0;
        for (const double x : p) sum += x;
        CHECK(sum == doctest::Approx(1).epsilon(1e-12));  // at most 29 terms of relative error 2^-53
        if (story.targets[i] < 0) continue;
        CHECK(story.targets[i] == story.tokens[i + 1]);
        CHECK(-std::log(p[story.targets[i]]) == doctest::Approx(story.neg_log_p[i]).epsilon(1e-12));
      }
    }
  }
}

TEST_CASE("story: the law of telling in closed form") {
  CHECK(p("one").size() == 8);
  CHECK(p("one cold").size() == 4);
  // any of four kinds; three of them share 24 names
  CHECK(p(kOpening).size() == 25);
  CHECK(p(kOpening)["mia"] == is(0.75 / 24));
  CHECK(p(kOpening)["the"] == is(0.25));
  CHECK(p(kOpening + "mia") == std::map<std::string, double>{{"eats", 1 / 3.}, {"lives", 1 / 3.}, {"travels", 1 / 3.}});
  CHECK(p(kOpening + "mia lives") == std::map<std::string, double>{{"in", 1}});
  // one thing of 16 is held out for each person
  CHECK(p(kOpening + "mia eats").size() == 15);
  CHECK(p(kOpening + "mia eats").count("plums") == 0);
  CHECK(p(kOpening + "mia eats tea, ").size() == 23);
  CHECK(p(kOpening + "mia eats tea, leo").size() == 1);
  CHECK(p(kOpening + "the").size() == 16);
  CHECK(p(kOpening + "the coin belongs to").size() == 22);  // 24 people, two of whom training never gives the coin
  // 4, 5 or 6 facts
  const std::string three = kOpening + "mia eats tea, leo eats jam, ann eats rice";
  CHECK(p(kOpening + "mia eats tea") == std::map<std::string, double>{{",", 1}});
  CHECK(p(three) == std::map<std::string, double>{{",", 0.5}, {"and", 0.5}});
  CHECK(p(three + ", ben eats corn") == std::map<std::string, double>{{",", 0.5}, {"and", 0.5}});
  CHECK(p(three + ", ben eats corn, tom eats cake") == std::map<std::string, double>{{"and", 1}});
  CHECK(p(three + " and ben eats corn") == std::map<std::string, double>{{".", 1}});
}

TEST_CASE("story: the law of asking in closed form") {
  const std::string told = kOpening + "mia eats tea, leo eats jam, ann eats rice and ben eats corn. ";
  // tell with 0.4: two kinds by name, one by "the"; else ask for one of the kinds told
  CHECK(p(told).size() == 26);
  CHECK(p(told)["mia"] == is(0.4 * 2 / 3 / 24));
  CHECK(p(told)["the"] == is(0.4 / 3));
  CHECK(p(told)["what"] == is(0.6));
  CHECK(p(told + "mia") == std::map<std::string, double>{{"lives", 0.5}, {"travels", 0.5}});
  CHECK(p(told + "what does") == std::map<std::string, double>{{"mia", 0.25}, {"leo", 0.25}, {"ann", 0.25}, {"ben", 0.25}});
  CHECK(p(told + "what does leo eat? leo eats") == std::map<std::string, double>{{"jam", 1}});
  // not the same question twice running; a paragraph or another kind in between allows it again
  const std::string asked = told + "what does leo eat? leo eats jam. ";
  CHECK(p(asked + "what does") == std::map<std::string, double>{{"mia", 1 / 3.}, {"ann", 1 / 3.}, {"ben", 1 / 3.}});
  CHECK(p(asked + "what does mia eat? mia eats tea. what does").count("leo") == 1);
  const std::string owned = "the coin belongs to leo, the key belongs to ann, the hat belongs to zoe and the map belongs to max. ";
  CHECK(p(asked + owned + "what does").size() == 4);
  const std::string both = told + owned + "who owns the coin? the coin belongs to leo. ";
  CHECK(p(both)["what"] == is(0.3));
  CHECK(p(both)["who"] == is(0.3));
  CHECK(p(both + "who owns the") == std::map<std::string, double>{{"key", 1 / 3.}, {"hat", 1 / 3.}, {"map", 1 / 3.}});
  CHECK(p(both + "what does").size() == 4);
}

TEST_CASE("story: a sentence begins only if the longest of its kind still fits") {
  const std::string told = kOpening + "mia eats tea, leo eats jam, ann eats rice and ben eats corn. "
                                      "mia lives in oslo, leo lives in rome, ann lives in lima and ben lives in cairo. ";
  const auto ask = [&](int what, int where) {
    std::string text = told;
    for (int i = 0; i < what; ++i) text += i % 2 ? "what does mia eat? mia eats tea. " : "what does leo eat? leo eats jam. ";
    for (int i = 0; i < where; ++i) text += i % 2 ? "where does mia live? mia lives in oslo. " : "where does leo live? leo lives in rome. ";
    return text;
  };
  const auto tokens = [](const std::string& text) { return StoryCorpus().parse(text).size(); };
  // of 161 tokens, a paragraph takes up to 36, a question up to 11, the closing 4
  REQUIRE(tokens(ask(2, 5)) == 110);
  REQUIRE(tokens(ask(1, 6)) == 111);
  REQUIRE(tokens(ask(6, 5)) == 146);
  REQUIRE(tokens(ask(5, 6)) == 147);
  CHECK(p(ask(2, 5))["the"] == is(0.2));
  CHECK(p(ask(1, 6)) == std::map<std::string, double>{{"what", 0.5}, {"where", 0.5}});
  CHECK(p(ask(6, 5)) == std::map<std::string, double>{{"what", 0.5}, {"where", 0.5}});
  CHECK(p(ask(5, 6)) == std::map<std::string, double>{{"the", 1}});
  CHECK(p(ask(5, 6) + "the") == std::map<std::string, double>{{"end", 1}});
  CHECK(p(ask(5, 6) + "the end.") == std::map<std::string, double>{{"<end>", 1}});
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
  // a sum of martingale differences: 5 standard deviations over 126 words fail by chance once in 10^4 seeds
  for (size_t t = 0; t < excess.size(); ++t) {
    CAPTURE(corpus.vocabulary()[t]);
    CHECK(std::abs(excess[t]) <= 5 * std::sqrt(variance[t]) + 1e-9);
  }
}

TEST_CASE("story: dense questions with far answers that no guess finds, and a second reading confirms them") {
  const StoryCorpus corpus;
  int64_t questions = 0, far = 0, recency = 0, scored = 0, filled = 0;
  double guess = 0, nats = 0;
  std::set<int32_t> words;
  const int64_t rows = 2000;
  for (int64_t row = 0; row < rows; ++row) {
    const Story story = corpus.row(kSeed, row, true);
    words.insert(story.tokens.begin(), story.tokens.end());
    const Reading again = read_story(corpus, story.tokens);
    CHECK(again.sound);
    CHECK(again.paragraphs.front() >= 4);  // so that at least 4 facts are alive when the first question comes
    REQUIRE(again.questions.size() == story.questions.size());
    for (size_t i = 0; i < story.questions.size(); ++i) {
      const StoryQuestion& q = story.questions[i];
      const Reading::Question& r = again.questions[i];
      CHECK(q.position == r.answer.position);
      CHECK(q.distance == r.distance);
      CHECK(q.candidates == static_cast<int>(r.possible.size()));
      CHECK(corpus.vocabulary()[q.recency_guess] == r.newest);
      CHECK(Words{"eats", "lives", "travels", "belongs"}[static_cast<size_t>(q.fact)] == r.answer.kind);
      CHECK(story.targets[q.position - 1] == story.tokens[q.position]);
      CHECK(story.neg_log_p[q.position - 1] == 0);
      CHECK(q.candidates >= 3);
      ++questions;
      far += q.distance >= 32;
      guess += 1.0 / q.candidates;
      recency += q.recency_guess == story.tokens[q.position];
    }
    for (size_t i = 0; i < story.targets.size(); ++i) scored += story.targets[i] >= 0, nats += story.neg_log_p[i];
    filled += std::find(story.tokens.begin(), story.tokens.end(), 0) - story.tokens.begin() + 1;
  }
  MESSAGE(corpus.vocabulary().size() << " words; " << double(questions) / rows << " questions a row, " << 100.0 * far / questions
                                     << " % at least 32 tokens from their fact, guess " << 100 * guess / questions << " %, recency "
                                     << 100.0 * recency / questions << " %; " << nats / scored << " nats a scored token; rows "
                                     << 100.0 * filled / (rows * (corpus.options().context + 1)) << " % full");
  CHECK(questions >= 2000);
  CHECK(words.size() == corpus.vocabulary().size());
  CHECK(words.size() >= 105);  // at least 100 besides marks and the end
  CHECK(2 * far >= questions);
  CHECK(4 * guess <= questions);
  CHECK(4 * recency <= questions);
}

TEST_CASE("story: held-out pairs are never in training, are in validation, and are not scored where they are told") {
  const StoryCorpus corpus;
  const auto id = [&](const std::string& word) { return corpus.parse(word)[0]; };
  const auto is_held_out = [&](const Reading::Fact& f) { return corpus.is_held_out(id(f.person), id(f.thing)); };
  std::set<std::pair<std::string, std::string>> held;
  int64_t asked = 0, told = 0, told_held = 0;
  for (int64_t row = 0; row < 1500; ++row) {
    const Story training = corpus.row(kSeed, row, false), validation = corpus.row(kSeed, row, true);
    for (const Reading::Fact& f : read_story(corpus, training.tokens).told) CHECK_FALSE(is_held_out(f));
    for (size_t i = 0; i + 1 < training.tokens.size(); ++i)
      if (training.tokens[i + 1] != 0) CHECK(training.targets[i] == training.tokens[i + 1]);
    const Reading again = read_story(corpus, validation.tokens);
    std::set<int64_t> unscored;
    for (const Reading::Fact& f : again.told) {
      ++told;
      if (!is_held_out(f)) continue;
      ++told_held;
      held.insert({f.person, f.thing});
      unscored.insert(f.position);
    }
    for (size_t i = 0; i < validation.questions.size(); ++i) {
      CHECK(validation.questions[i].held_out == is_held_out(again.questions[i].answer));
      asked += validation.questions[i].held_out;
    }
    const auto end = std::find(validation.tokens.begin(), validation.tokens.end(), 0) - validation.tokens.begin();
    for (int64_t i = 0; i < end; ++i) {
      CHECK((validation.targets[i] == -1) == (unscored.count(i + 1) > 0));
      if (unscored.count(i + 1)) CHECK(validation.neg_log_p[i] == 0);
    }
  }
  MESSAGE((100.0 * told_held / told) << " % of the facts told in validation are held-out pairs, " << asked << " questions ask for one");
  CHECK(held.size() == 96);  // one thing of each of 4 kinds for each of 24 people
  CHECK(asked >= 1000);
  // one in five, less where the pair's other half is taken already
  CHECK(told_held >= 0.15 * told);
  CHECK(told_held <= 0.2 * told);
  CHECK_FALSE(corpus.is_held_out(id("plums"), id("mia")));
  CHECK_FALSE(corpus.is_held_out(id("mia"), id("one")));
}

TEST_CASE("story: without held-out pairs validation follows the law of training") {
  StoryOptions options;
  options.held_out = 0;
  const StoryCorpus corpus(options);
  const Story story = corpus.row(kSeed, 0, true);
  for (size_t i = 0; i + 1 < story.tokens.size() && story.tokens[i + 1] != 0; ++i) CHECK(story.targets[i] == story.tokens[i + 1]);
  CHECK(corpus.next_distribution(corpus.parse(kOpening + "mia eats"))[corpus.parse("plums")[0]] == is(1. / 16));
}

TEST_CASE("story: normal writing in and out") {
  const StoryCorpus corpus;
  const std::string text =
      "One cold morning friends meet. Mia lives in Rome, Leo lives in Oslo, Ann lives in Paris and Ben lives in Lima. Where does Leo "
      "live? Leo lives in Oslo. The coin belongs to Ben, the key belongs to Mia. Who owns the coin? The coin belongs to Ben. The end.";
  CHECK(corpus.render(corpus.parse(text)) == text);
  CHECK(corpus.render(corpus.parse("what does mia eat ?mia eats PLUMS.")) == "What does Mia eat? Mia eats plums.");
  CHECK(corpus.parse("HOW does\n Ann   travel?Ann travels by train .") == corpus.parse("how does ann travel ? ann travels by train ."));
  CHECK(corpus.parse("").empty());
  for (int64_t row = 0; row < 100; ++row) {
    std::vector<int32_t> tokens = corpus.row(kSeed, row, true).tokens;
    const std::string rendered = corpus.render(tokens);
    tokens.erase(std::find(tokens.begin(), tokens.end(), 0), tokens.end());
    CHECK(corpus.parse(rendered) == tokens);
    CHECK(corpus.render(corpus.parse(rendered)) == rendered);
  }
  const auto unknown = [&](const std::string& words) { return refusal([&] { corpus.parse(words); }); };
  CHECK(unknown("Mia likes plums") == "[tokenizer] 'likes' is not among the 126 words of the stories; did you mean 'lives'?");
  CHECK(unknown("mia eats plumes.") == "[tokenizer] 'plumes' is not among the 126 words of the stories; did you mean 'plums'?");
  CHECK(unknown("mia eats 7 plums") == "[tokenizer] '7' is not among the 126 words of the stories");
  CHECK(unknown("mia eats plums!") == "[tokenizer] '!' is not among the 126 words of the stories");
}

TEST_CASE("story: what cannot be is refused") {
  const StoryCorpus corpus;
  CHECK(refusal([&] { corpus.next_distribution(corpus.parse("one cold cold")); }) ==
        "story: token 2, 'cold', cannot follow here; 'morning' can");
  CHECK(refusal([&] { corpus.next_distribution({-1}); }) == "story: token 0, '-1', cannot follow here; 'one' can");
  for (const char* text : {"mia eats rome", "mia eats tea, mia", "mia eats tea, leo eats tea", "mia eats tea and", "the end", "what",
                           "mia lives by", "the coin belongs to leo, the key belongs to leo"})
    CHECK_THROWS_AS(corpus.next_distribution(corpus.parse(kOpening + text)), UsageError);
  CHECK_THROWS_AS(corpus.render({100000}), Error);
  CHECK(corpus.next_distribution({})[corpus.parse("one")[0]] == 1);
  const auto refused = [](auto change) {
    StoryOptions options;
    change(options);
    return refusal([&] { StoryCorpus corpus(options); });
  };
  CHECK(refused([](StoryOptions& o) { o.kinds = 0; }) == "story: kinds must be 1 to 4, got 0");
  CHECK(refused([](StoryOptions& o) { o.kinds = 5; }) == "story: kinds must be 1 to 4, got 5");
  CHECK(refused([](StoryOptions& o) { o.min_facts = 3; }) == "story: a sentence must tell 4 to 8 facts, got 3 to 6");
  CHECK(refused([](StoryOptions& o) { o.max_facts = 9; }) == "story: a sentence must tell 4 to 8 facts, got 4 to 9");
  CHECK(refused([](StoryOptions& o) { o.min_facts = 7; }) == "story: a sentence must tell 4 to 8 facts, got 7 to 6");
  CHECK(refused([](StoryOptions& o) { o.tell_percent = -1; }) == "story: tell_percent must be 0 to 100, got -1");
  CHECK(refused([](StoryOptions& o) { o.tell_percent = 101; }) == "story: tell_percent must be 0 to 100, got 101");
  CHECK(refused([](StoryOptions& o) { o.held_out = 5; }) == "story: held_out must be 0 to 4, got 5");
  CHECK(refused([](StoryOptions& o) { o.held_out_percent = 101; }) == "story: held_out_percent must be 0 to 100, got 101");
  CHECK(refused([](StoryOptions& o) { o.context = 55; }) == "story: a story needs a context of at least 56 tokens, got 55");
  CHECK(refused([](StoryOptions& o) { o.context = 41, o.kinds = 1; }) == "story: a story needs a context of at least 42 tokens, got 41");
}

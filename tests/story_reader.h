#pragma once
#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "train/story.h"

namespace hedgehog::test {

using Words = std::vector<std::string>;

/// A story read from its words alone, without the generator: who has what, and what each question should answer.
struct Reading {
  struct Fact {
    std::string kind, person, thing;
    int64_t position;  // of the token that completes it
  };
  struct Question {
    Fact answer;
    int64_t distance;
    std::set<std::string> possible;  // answers, without that of the same fact asked for just before
    std::string newest;              // of these, the one mentioned last
  };
  std::vector<Fact> told;
  std::vector<Question> questions;
  std::vector<size_t> paragraphs;  // facts that each told
  bool sound = true;               // wording, one kind a paragraph, nobody and nothing twice in a kind, right answers
};

class StoryReader {
 public:
  explicit StoryReader(const StoryCorpus& corpus) : corpus_(corpus) {}

  Reading read(const std::vector<int32_t>& tokens) {
    Words sentence;
    for (size_t i = 0; i < tokens.size() && tokens[i] != 0; ++i) {
      sentence.push_back(corpus_.vocabulary()[tokens[i]]);
      if (sentence.back() != ".") continue;
      sentence.pop_back();
      read_sentence(sentence, static_cast<int64_t>(i - sentence.size()));
      sentence.clear();
    }
    expect(sentence.empty() && closed_);
    return result_;
  }

 private:
  void expect(bool ok) { result_.sound = result_.sound && ok; }

  void read_sentence(const Words& words, int64_t at) {
    if (at == 0) return expect(words.size() == 5 && words[0] == "one" && words[3] == "friends" && words[4] == "meet");
    if (words == Words{"the", "end"}) return expect(!std::exchange(closed_, true));
    const auto mark = std::find(words.begin(), words.end(), "?");
    if (mark == words.end()) return read_paragraph(words, at);
    read_question({words.begin(), mark}, fact({mark + 1, words.end()}, at + (mark - words.begin()) + 1));
  }

  /// "mia eats plums", "mia lives in rome", "mia travels by train", "the coin belongs to mia", beginning at token `at`.
  Reading::Fact fact(const Words& words, int64_t at) {
    const std::map<std::string, size_t> verbs = {{"eats", 3}, {"lives", 4}, {"travels", 4}};
    const int64_t last = at + static_cast<int64_t>(words.size()) - 1;
    if (words.size() == 5 && words[0] == "the" && words[2] == "belongs" && words[3] == "to") return {"belongs", words[4], words[1], last};
    const bool direct = words.size() > 2 && verbs.count(words[1]) && words.size() == verbs.at(words[1]);
    expect(direct && (words[1] != "lives" || words[2] == "in") && (words[1] != "travels" || words[2] == "by"));
    if (!direct) return {};
    return {words[1], words[0], words.back(), last};
  }

  void read_paragraph(const Words& words, int64_t at) {
    Words marks, clause;
    for (size_t i = 0; i <= words.size(); ++i) {
      const bool end = i == words.size();
      if (!end && words[i] != "," && words[i] != "and") {
        clause.push_back(words[i]);
        continue;
      }
      const Reading::Fact f = fact(clause, at + static_cast<int64_t>(i - clause.size()));
      // among the facts told before, those of this kind are those of this sentence
      for (const Reading::Fact& old : result_.told)
        expect((old.kind == f.kind) == (old.position >= at) && (old.kind != f.kind || (old.person != f.person && old.thing != f.thing)));
      result_.told.push_back(f);
      mention_[f.kind + f.person] = f.position;
      clause.clear();
      if (!end) marks.push_back(words[i]);
    }
    expect(!marks.empty() && std::find(marks.begin(), marks.end(), "and") == marks.end() - 1);
    result_.paragraphs.push_back(marks.size() + 1);
    asked_before_.clear();
  }

  void read_question(const Words& asked, const Reading::Fact& answer) {
    const std::map<std::string, Words> wording = {{"eats", {"what", "does", answer.person, "eat"}},
                                                  {"lives", {"where", "does", answer.person, "live"}},
                                                  {"travels", {"how", "does", answer.person, "travel"}},
                                                  {"belongs", {"who", "owns", "the", answer.thing}}};
    expect(wording.count(answer.kind) && asked == wording.at(answer.kind));
    Reading::Question q{answer, 0, {}, ""};
    int64_t newest = -1;
    bool known = false;
    for (const Reading::Fact& f : result_.told) {
      if (f.kind != answer.kind || f.kind + f.person == asked_before_) continue;
      const int64_t mentioned = mention_[f.kind + f.person];
      const std::string value = f.kind == "belongs" ? f.person : f.thing;
      q.possible.insert(value);
      if (mentioned > newest) newest = mentioned, q.newest = value;
      known = known || (f.person == answer.person && f.thing == answer.thing);
    }
    expect(known);
    asked_before_ = answer.kind + answer.person;
    q.distance = answer.position - mention_[asked_before_];
    mention_[asked_before_] = answer.position;
    result_.questions.push_back(q);
  }

  const StoryCorpus& corpus_;
  Reading result_;
  std::map<std::string, int64_t> mention_;  // by kind and person
  std::string asked_before_;                // kind and person of the sentence before, if it asked
  bool closed_ = false;
};

inline Reading read_story(const StoryCorpus& corpus, const std::vector<int32_t>& tokens) { return StoryReader(corpus).read(tokens); }

}  // namespace hedgehog::test

#include "train/story.h"

#include <algorithm>
#include <cctype>
#include <cmath>

#include "core/error.h"
#include "train/story_state.h"

namespace hedgehog {
namespace {

using namespace story;

// splitmix64 (Steele, Lea, Flood 2014): integers only, so that every machine draws the same stories
class Random {
 public:
  Random(uint64_t seed, uint64_t row, bool validation) : state_(seed) {
    state_ = next() ^ (2 * row + (validation ? 1 : 0));
    state_ = next();
  }

  uint64_t next() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }

  /// Uniform in [0, n), n < 2^32, without bias.
  uint64_t below(uint64_t n) {
    for (;;) {
      const uint64_t x = (next() >> 32) * n;
      if ((x & 0xffffffffu) >= (uint64_t{1} << 32) % n) return x >> 32;
    }
  }

 private:
  uint64_t state_;
};

int draw(const Choices& choices, Random& random) {
  if (choices.size == 1) return 0;
  uint64_t r = random.below(choices.total);
  int i = 0;
  while (r >= choices.weight[i]) r -= choices.weight[i++];
  return i;
}

int index_of(const Choices& choices, int32_t token) {
  for (int i = 0; i < choices.size; ++i)
    if (choices.token[i] == token) return i;
  return -1;
}

void check(bool ok, const std::string& what) {
  if (!ok) throw UsageError("story: " + what);
}

bool is_person(int32_t token) { return token >= kPerson0 && token < kThing0; }
bool is_thing(int32_t token) { return token >= kThing0 && token < kOne; }
bool is_group(int32_t token) { return token >= kGirls && token < kVisit; }
bool is_verb(int32_t token) { return token >= kVisit && token < kAsk; }

int edit_distance(const std::string& a, const std::string& b) {
  std::vector<int> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = static_cast<int>(j);
  for (size_t i = 1; i <= a.size(); ++i) {
    int diagonal = row[0];
    row[0] = static_cast<int>(i);
    for (size_t j = 1; j <= b.size(); ++j) {
      const int change = diagonal + (a[i - 1] != b[j - 1]);
      diagonal = row[j];
      row[j] = std::min({change, row[j] + 1, row[j - 1] + 1});
    }
  }
  return row[b.size()];
}

}  // namespace

StoryCorpus::StoryCorpus(const StoryOptions& options) : options_(options), words_(kWords.begin(), kWords.end()) {
  const auto& o = options_;
  check(o.min_cast >= 4 && o.min_cast <= o.max_cast && o.max_cast <= 8,
        "the cast must be 4 to 8 people, got " + std::to_string(o.min_cast) + " to " + std::to_string(o.max_cast));
  check(o.question_percent >= 1 && o.question_percent <= 99, "question_percent must be 1 to 99");
  check(o.groups >= 1 && o.groups <= kGroups, "groups must be 1 to 3, got " + std::to_string(o.groups));
  check(o.held_out >= 0 && o.held_out <= 4, "held_out must be 0 to 4");
  check(o.held_out_percent >= 0 && o.held_out_percent <= 100, "held_out_percent must be 0 to 100");
  check(o.context >= 64, "a story needs a context of at least 64 tokens, got " + std::to_string(o.context));
}

std::vector<std::string> StoryCorpus::proper_names() const {
  return {words_.begin() + kPerson0, words_.begin() + kThing0 + kSlot};
}

Story StoryCorpus::row(uint64_t seed, int64_t row, bool validation) const {
  Random random(seed, static_cast<uint64_t>(row), validation);
  StoryState state(options_);
  Choices choices;
  Story story;
  const auto T = static_cast<size_t>(options_.context);
  story.tokens.assign(T + 1, kEnd);
  story.targets.assign(T, -1);
  story.neg_log_p.assign(T, 0.0);
  for (size_t i = 0; i <= T; ++i) {
    const bool ended = state.done();
    if (state.at_answer()) story.questions.push_back(state.question());
    const bool given = validation && state.given_choices(choices, random.below(100));
    if (!given) state.choices(choices);
    const bool scored = i > 0 && !given;
    const int chosen = draw(choices, random);
    story.tokens[i] = choices.token[chosen];
    state.push(story.tokens[i]);
    if (scored) {
      story.targets[i - 1] = story.tokens[i];
      if (choices.size > 1)
        story.neg_log_p[i - 1] =
            std::log(static_cast<double>(choices.total)) - std::log(static_cast<double>(choices.weight[chosen]));
    }
    if (ended) break;
  }
  return story;
}

std::vector<double> StoryCorpus::next_distribution(const std::vector<int32_t>& prefix) const {
  StoryState state(options_);
  Choices choices;
  for (size_t i = 0; i < prefix.size(); ++i) {
    state.choices(choices);
    if (index_of(choices, prefix[i]) < 0 && !state.may_take(prefix[i])) {
      const bool known = prefix[i] >= 0 && prefix[i] < kVocabulary;
      throw UsageError("story: token " + std::to_string(i) + ", '" + (known ? words_[prefix[i]] : std::to_string(prefix[i])) +
                       "', cannot follow here; '" + words_[choices.token[0]] + "' can");
    }
    state.push(prefix[i]);
  }
  state.choices(choices);
  std::vector<double> p(words_.size(), 0.0);
  for (int i = 0; i < choices.size; ++i)
    p[choices.token[i]] = static_cast<double>(choices.weight[i]) / static_cast<double>(choices.total);
  return p;
}

bool StoryCorpus::is_held_out(int32_t person, int32_t thing) const {
  const int32_t p = person - kPerson0, t = thing - kThing0;
  if (p < 0 || p >= kGroups * kSlot || t < 0 || t >= kGroups * kSlot || p / kSlot != t / kSlot) return false;
  return held_out(options_, p / kSlot, p % kSlot, t % kSlot);
}

std::string StoryCorpus::render(const std::vector<int32_t>& tokens) const {
  std::string text;
  bool quiz = false, capital = true;
  int32_t last = kStop;
  for (int32_t token : tokens) {
    if (token == kEnd) continue;
    check(token > 0 && token < kVocabulary, "no word has number " + std::to_string(token));
    if (token == kStop) {
      if (!text.empty() && text.back() != '.') text += '.';
      quiz = false;
    } else {
      if (is_person(token) && is_group(last)) text += ':';
      if (is_person(token) && is_verb(last)) text += ':';
      if (is_person(token) && is_thing(last) && !quiz) text += ',';
      if (is_group(token) && last == kAsk) text += " the";
      if (!text.empty()) text += ' ';
      std::string word = words_[token];
      const bool name = is_person(token) || (is_thing(token) && (quiz || token < kThing0 + kSlot));
      if (capital || name) word[0] = static_cast<char>(std::toupper(static_cast<unsigned char>(word[0])));
      text += word;
      quiz = quiz || token == kAsk;
      if (quiz && is_person(token)) text += '?';
      if (quiz && is_thing(token)) text += '.';
    }
    capital = token == kStop;
    last = token;
  }
  return text;
}

int32_t StoryCorpus::find_word(const std::string& word) const {
  const auto found = std::find(words_.begin() + 1, words_.end(), word);
  if (found != words_.end()) return static_cast<int32_t>(found - words_.begin());
  const auto nearest = std::min_element(words_.begin() + 2, words_.end(), [&](const auto& a, const auto& b) {
    return edit_distance(word, a) < edit_distance(word, b);
  });
  throw UsageError("story: the model knows no word '" + word + "'; the nearest it knows is '" + *nearest + "'");
}

std::vector<int32_t> StoryCorpus::parse(const std::string& text) const {
  std::vector<int32_t> tokens;
  std::string word;
  bool quiz = false;
  const auto finish = [&] {
    if (word.empty()) return;
    const int32_t token = find_word(word);
    word.clear();
    const int32_t last = tokens.empty() ? kStop : tokens.back();
    // "ask the girls" has no article in tokens; a full stop between an answer and the next question has none either
    if (token == kThe && last == kAsk) return;
    if (quiz && last == kStop && is_person(token)) tokens.pop_back();
    else if (last == kStop) quiz = false;
    quiz = quiz || token == kAsk;
    tokens.push_back(token);
  };
  for (const char raw : text) {
    const auto c = static_cast<unsigned char>(raw);
    const bool mark = c == '.' || c == '?' || c == ',' || c == ':';
    if (std::isspace(c) || mark) finish();
    if (c == '.') tokens.push_back(kStop);
    if (!std::isspace(c) && !mark) word += static_cast<char>(std::tolower(c));
  }
  finish();
  return tokens;
}

}  // namespace hedgehog

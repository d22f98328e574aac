#include "train/story.h"

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

}  // namespace

StoryCorpus::StoryCorpus(const StoryOptions& options) : options_(options), words_(kWords.begin(), kWords.end()) {
  const auto& o = options_;
  check(o.kinds >= 1 && o.kinds <= kKinds, "kinds must be 1 to 4, got " + std::to_string(o.kinds));
  check(o.min_facts >= 4 && o.min_facts <= o.max_facts && o.max_facts <= 8,
        "a sentence must tell 4 to 8 facts, got " + std::to_string(o.min_facts) + " to " + std::to_string(o.max_facts));
  check(o.tell_percent >= 0 && o.tell_percent <= 100, "tell_percent must be 0 to 100, got " + std::to_string(o.tell_percent));
  check(o.held_out >= 0 && o.held_out <= 4, "held_out must be 0 to 4, got " + std::to_string(o.held_out));
  check(o.held_out_percent >= 0 && o.held_out_percent <= 100,
        "held_out_percent must be 0 to 100, got " + std::to_string(o.held_out_percent));
  // a row is one token longer than the context
  const int least = kOpening + longest_paragraph(o) + longest_question(o) + kClosing - 1;
  check(o.context >= least, "a story needs a context of at least " + std::to_string(least) + " tokens, got " + std::to_string(o.context));
  tokenizer_ = story_tokenizer(words_, proper_names());
}

std::vector<std::string> StoryCorpus::proper_names() const {
  std::vector<std::string> names(words_.begin() + kName0, words_.begin() + kName0 + kNames);
  const int32_t towns = kForms[static_cast<int>(StoryFact::lives)].value0;
  names.insert(names.end(), words_.begin() + towns, words_.begin() + towns + kThings);
  return names;
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
  const int32_t p = person - kName0, t = thing - kThing0;
  if (p < 0 || p >= kNames || t < 0 || t >= kKinds * kThings) return false;
  return held_out(options_, t / kThings, p, t % kThings);
}

}  // namespace hedgehog

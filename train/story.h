#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace hedgehog {

/// What a fact is about: the town a girl visits, what a boy carries, what a pet eats.
enum class StoryFact { visits, carries, eats };

/// The knobs of the story law. The defaults are those that corpus, model and budget were fixed with.
struct StoryOptions {
  int64_t context = 160;       // tokens that a model reads at once; a row is one longer
  int groups = 3;              // groups of people in a story, 1 to 3, each with its kind of thing
  int min_cast = 6;            // people in a group, 4 to 8, said before its facts are told
  int max_cast = 8;
  int question_percent = 20;   // chance that the next sentence asks, while a group's facts are not told
  int held_out = 1;            // things per person that training never gives this person, 0 to 4
  int held_out_percent = 50;   // chance that a validation statement uses such a thing
};

/// A question of a row. Positions are token indices in Story::tokens.
struct StoryQuestion {
  StoryFact fact;          // which kind of fact it asks for
  int64_t position;        // of the one token that holds the answer
  int64_t distance;        // tokens between the answer and the newest mention of its fact
  int candidates;          // facts that the answer may come from, after ruling out those that this quiz has asked for
  int32_t recency_guess;   // the thing among these that was mentioned last
  bool held_out;           // the fact is a person-thing pair that training never shows
};

/// One row: a story from its start, padded with token 0.
struct Story {
  std::vector<int32_t> tokens;       // (T + 1)
  std::vector<int32_t> targets;      // (T), targets[i] = tokens[i + 1], or -1 where not scored
  std::vector<double> neg_log_p;     // (T), -ln p(tokens[i + 1] | tokens[0..i]) in nats, 0 where not scored
  std::vector<StoryQuestion> questions;
};

/// Deterministic stories whose exact p(token | prefix) is known.
///
/// Stories are drawn token by token from one law, `next_distribution`: a function of the text so far and nothing else, so
/// the floor of a model's loss is the mean -ln p of the very tokens scored. Training rows never hold a held-out
/// person-thing pair: the law gives it p = 0. Validation rows follow the same law, except that a statement may be given a
/// held-out thing from outside; that one token is not scored (target -1), everything after it is, under the same law.
/// Rows depend on (options, seed, row, validation) by 64-bit integer arithmetic alone.
class StoryCorpus {
 public:
  /// Throws: UsageError if the options leave no story that fits the context.
  explicit StoryCorpus(const StoryOptions& options = {});

  const StoryOptions& options() const { return options_; }

  /// Words in token order.
  const std::vector<std::string>& vocabulary() const { return words_; }

  /// The words that are written with a capital everywhere: people and places.
  std::vector<std::string> proper_names() const;

  /// Row `row` of the training or validation stream of `seed`.
  Story row(uint64_t seed, int64_t row, bool validation) const;

  /// p(next token | prefix), one entry per word. A held-out pair in the prefix is read like any other fact.
  /// Throws: UsageError if the prefix is not a story's start; it names the first token that cannot follow.
  std::vector<double> next_distribution(const std::vector<int32_t>& prefix) const;

  /// True if training never gives `person` this thing (both are token ids).
  bool is_held_out(int32_t person, int32_t thing) const;

  /// Text with capitals and normal punctuation; padding is left out.
  std::string render(const std::vector<int32_t>& tokens) const;

  /// Tokens of a text, in any case and spacing. Throws: UsageError naming the nearest word for an unknown one.
  std::vector<int32_t> parse(const std::string& text) const;

 private:
  int32_t find_word(const std::string& word) const;

  StoryOptions options_;
  std::vector<std::string> words_;
};

}  // namespace hedgehog

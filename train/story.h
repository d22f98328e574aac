#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "train/tokenizer.h"

namespace hedgehog {

/// What a fact tells: the food that a person eats, the town they live in, the vehicle they travel by, the object they own.
enum class StoryFact { eats, lives, travels, owns };

/// The knobs of the story law. The defaults are those that corpus, model and budget were fixed with.
struct StoryOptions {
  int64_t context = 160;       // tokens that a model reads at once; a row is one longer
  int kinds = 4;               // kinds of facts that there are, 1 to 4: the first of StoryFact
  int min_facts = 4;           // facts that one sentence tells, all of one kind, 4 to 8
  int max_facts = 6;
  int tell_percent = 40;       // chance that the next sentence tells facts, where it may also ask, 0 to 100
  int held_out = 1;            // in each kind, things per person that training never gives this person, 0 to 4
  int held_out_percent = 20;   // chance that a fact told in validation is made such a pair, where one is left
};

/// A question of a row. Positions are token indices in Story::tokens.
struct StoryQuestion {
  StoryFact fact;          // which kind of fact it asks for
  int64_t position;        // of the one token that holds the answer: the thing, or the person who owns it
  int64_t distance;        // tokens between the answer and the newest earlier mention of its fact
  int candidates;          // facts that the answer may come from: of its kind, without the one that was asked for just before
  int32_t recency_guess;   // the answer if it were the one of these that was mentioned last
  bool held_out;           // the fact is a person-thing pair that training never shows
};

/// One row: a story from its start, padded with token 0.
struct Story {
  std::vector<int32_t> tokens;       // (T + 1)
  std::vector<int32_t> targets;      // (T), targets[i] = tokens[i + 1], or -1 where not scored
  std::vector<double> neg_log_p;     // (T), -ln p(tokens[i + 1] | tokens[0..i]) in nats, 0 where not scored
  std::vector<StoryQuestion> questions;
};

/// Deterministic stories whose exact p(token | prefix) is known:
///
///   One cold morning friends meet. Mia eats plums, Leo eats tea, Ann eats soup and Ben eats jam. What does Leo eat? Leo
///   eats tea. The coin belongs to Ben, the key belongs to Zoe, the hat belongs to Mia and the map belongs to Leo. Who
///   owns the coin? The coin belongs to Ben. … The end.
///
/// A sentence tells 4 to 6 facts of a kind that no sentence has told (people and things occur once in a kind), or asks for
/// one told before and answers. The story closes when neither is sure to fit the context.
///
/// Stories are drawn token by token from one law, `next_distribution`: a function of the text so far and nothing else, so
/// the floor of a model's loss is the mean -ln p of the very tokens scored. Training rows never hold a held-out
/// person-thing pair: the law gives it p = 0. Validation rows follow the same law, except that the token that completes a
/// fact may be given from outside to make a held-out pair; that one token is not scored (target -1), everything after it
/// is, under the same law. Rows depend on (options, seed, row, validation) by integer arithmetic alone.
class StoryCorpus {
 public:
  /// Throws: UsageError if an option is out of its range or the context too short for a story.
  explicit StoryCorpus(const StoryOptions& options = {});

  const StoryOptions& options() const { return options_; }

  /// Words in token order.
  const std::vector<std::string>& vocabulary() const { return words_; }

  /// The words that are written with a capital everywhere: people and towns.
  std::vector<std::string> proper_names() const;

  /// Row `row` of the training or validation stream of `seed`.
  Story row(uint64_t seed, int64_t row, bool validation) const;

  /// p(next token | prefix), one entry per word. A held-out pair in the prefix is read like any other fact.
  /// Throws: UsageError if the prefix is not a story's start; it names the first token that cannot follow.
  std::vector<double> next_distribution(const std::vector<int32_t>& prefix) const;

  /// True if training never gives `person` this thing (both are token ids).
  bool is_held_out(int32_t person, int32_t thing) const;

  /// Text with capitals and normal punctuation; padding is left out. Throws: Error if a token is not in the vocabulary.
  std::string render(const std::vector<int32_t>& tokens) const { return tokenizer_->decode(tokens); }

  /// Tokens of a text, in any case and spacing. Throws: UsageError for an unknown word, naming the nearest if one is near.
  std::vector<int32_t> parse(const std::string& text) const { return tokenizer_->encode(text); }

 private:
  StoryOptions options_;
  std::vector<std::string> words_;
  TokenizerPointer tokenizer_;
};

}  // namespace hedgehog

#pragma once
#include <algorithm>
#include <array>
#include <cstdint>
#include <initializer_list>

#include "train/story.h"
#include "train/story_words.h"

namespace hedgehog::story {

/// Tokens that may follow a prefix, with integer weights: p = weight / total.
struct Choices {
  static constexpr int kMost = kNames + 1 + kKinds;  // at a sentence's start: names, "the", question words
  std::array<int32_t, kMost> token;
  std::array<uint64_t, kMost> weight;
  int size = 0;
  uint64_t total = 0;

  void clear() { size = 0, total = 0; }
  void add(int32_t id, uint64_t w) {
    if (w == 0) return;
    token[size] = id;
    weight[size++] = w;
    total += w;
  }
};

inline constexpr int kOpening = 6;  // tokens of "one cold morning friends meet ."
inline constexpr int kClosing = 4;  // tokens of "the end . <end>"

/// Tokens of the longest sentence that tells facts.
inline int longest_paragraph(const StoryOptions& options) {
  int longest = 0;
  for (int k = 0; k < options.kinds; ++k) longest = std::max(longest, kForms[k].fact_tokens());
  return options.max_facts * longest;
}

/// Tokens of the longest question with its answer.
inline int longest_question(const StoryOptions& options) {
  int longest = 0;
  for (int k = 0; k < options.kinds; ++k) longest = std::max(longest, kForms[k].question_tokens());
  return longest;
}

/// Held-out pairs: in each kind, every person has equally many things that training never gives this person.
inline bool held_out(const StoryOptions& options, int kind, int person, int thing) {
  return ((thing - 7 * person - 3 * kind) & (kThings - 1)) < options.held_out;
}

/// What the next token is about, once the forced ones are read.
enum class Phase { opening, sentence, verb, key, value, separator, asked, answer, done };

/// Everything that a prefix says: the facts told so far and the sentence under way. `choices` is the law of the stories.
class StoryState {
 public:
  explicit StoryState(const StoryOptions& options) : options_(&options) {}

  /// The law: the tokens that may come next, with their weights.
  void choices(Choices& out) const;

  /// Reads a token. It must be one of `choices`, or one that `may_take` allows.
  void push(int32_t token);

  /// True if a validation row takes its next token from outside the law: one that completes a held-out pair, when
  /// `percent`, uniform in [0, 100), is under the options' share. `out` then holds the tokens to draw from.
  bool given_choices(Choices& out, uint64_t percent) const;

  bool may_take(int32_t token) const;  // it completes the fact being told, as a held-out pair or not
  bool at_answer() const { return at(Phase::answer); }
  bool done() const { return at(Phase::done); }
  StoryQuestion question() const;      // valid at_answer()

 private:
  const Form& form() const { return kForms[kind_]; }
  bool at(Phase phase) const { return phase_ == phase && forced_at_ == forced_size_; }
  bool has_room(int tokens) const { return count_ + tokens + kClosing <= options_->context + 1; }
  int kinds_told() const;
  bool can_tell() const;
  bool can_ask() const;
  bool is_held_out(int value) const;
  uint32_t askable() const;
  void opening_choices(Choices& out) const;
  void sentence_choices(Choices& out) const;
  void read(int32_t token);
  void read_sentence_start(int32_t token);
  void tell(int value);
  void force(std::initializer_list<int32_t> tokens, Phase then);

  const StoryOptions* options_;
  int64_t count_ = 0;                 // tokens read
  Phase phase_ = Phase::opening;
  std::array<int32_t, 6> forced_{};   // tokens without a choice that come next
  int forced_size_ = 0, forced_at_ = 0;
  int kind_ = 0, key_ = 0;            // of the fact under way
  bool last_fact_ = false;            // the paragraph's last fact is under way, or was told
  int asked_kind_ = -1, asked_key_ = 0;            // the fact that the sentence before asked for; kind -1 if it told
  std::array<uint32_t, kKinds> told_{}, used_{};   // bits: keys whose fact is told, values given away
  std::array<std::array<int8_t, kNames>, kKinds> value_of_{};
  std::array<std::array<int64_t, kNames>, kKinds> mention_{};  // position of a fact's value where it was said last
};

}  // namespace hedgehog::story

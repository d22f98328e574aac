#pragma once
#include <array>
#include <bit>
#include <cstdint>
#include <initializer_list>

#include "train/story.h"
#include "train/story_words.h"

namespace hedgehog::story {

/// Tokens that may follow a prefix, with integer weights: p = weight / total.
struct Choices {
  std::array<int32_t, kGroups * kSlot + 1> token;
  std::array<uint64_t, kGroups * kSlot + 1> weight;
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

/// What the next token is about.
enum class Phase { opening, sentence, group, person, thing, key, answer, done };

/// Everything that a prefix says: the facts told so far and the sentence under way. `choices` is the law of the stories.
class StoryState {
 public:
  explicit StoryState(const StoryOptions& options) : options_(&options) {}

  /// The law: the tokens that may come next, with their weights.
  void choices(Choices& out) const;

  /// Reads a token. It must be one of `choices`, or, in a statement, any thing of its kind not given away yet.
  void push(int32_t token);

  /// True if a validation row takes its next token from outside the law: a held-out thing when `percent`, uniform in
  /// [0, 100), is under the options' share. `out` then holds the tokens to draw from.
  bool given_choices(Choices& out, uint64_t percent) const;

  bool may_take(int32_t token) const;  // a thing not given away, whether held out for this person or not
  bool at_thing() const { return phase_ == Phase::thing; }
  bool at_answer() const { return phase_ == Phase::answer; }
  bool done() const { return phase_ == Phase::done && forced_at_ == forced_size_; }
  StoryQuestion question() const;      // valid at_answer()

 private:
  void opening_choices(Choices& out) const;
  void sentence_choices(Choices& out) const;
  void key_choices(Choices& out) const;
  void read_sentence_start(int32_t token);
  void read_key(int32_t token);
  void tell(int thing);
  void force(std::initializer_list<int32_t> tokens, Phase then);
  bool has_room(int tokens) const { return count_ + tokens + kClosing <= options_->context + 1; }
  uint32_t askable() const;
  int oldest_group() const;
  void end_sentence(bool facts);

  static constexpr int kClosing = 4;  // tokens of "the end . <end>"
  const StoryOptions* options_;
  int64_t count_ = 0;                 // tokens read
  Phase phase_ = Phase::opening;
  std::array<int32_t, 4> forced_{};   // tokens without a choice that come next
  int forced_size_ = 0, forced_at_ = 0;
  std::array<int, kGroups> cast_{};   // people of a group, 0 before its facts are told
  std::array<uint32_t, kGroups> told_{}, used_{};   // bits: people whose fact is told, things given away
  uint32_t asked_ = 0;                // bits: people that the quiz under way has asked for
  std::array<int64_t, kGroups> last_sentence_{};    // where a group's newest sentence ended
  bool after_facts_ = false;          // the last sentence told a group's facts
  std::array<std::array<int8_t, kSlot>, kGroups> thing_of_{};
  std::array<std::array<int64_t, kSlot>, kGroups> mention_{};  // position of the newest mention of a person's fact
  int size_ = 0;                      // people of the group that the sentence under way introduces
  int person_ = 0, group_ = 0;
};

/// Held-out pairs: every thing is held out for as many people of its group as every person has things held out.
inline bool held_out(const StoryOptions& options, int group, int person, int thing) {
  return ((thing - 5 * person - 7 * group) & (kSlot - 1)) < options.held_out;
}

inline int32_t person_token(int group, int person) { return kPerson0 + group * kSlot + person; }
inline int32_t thing_token(int group, int thing) { return kThing0 + group * kSlot + thing; }

}  // namespace hedgehog::story

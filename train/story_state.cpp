#include "train/story_state.h"

#include <algorithm>

namespace hedgehog::story {

void StoryState::choices(Choices& out) const {
  out.clear();
  if (forced_at_ < forced_size_) return out.add(forced_[forced_at_], 1);
  switch (phase_) {
    case Phase::opening:
      return opening_choices(out);
    case Phase::sentence:
      return sentence_choices(out);
    case Phase::group:
      for (int g = 0; g < options_->groups; ++g) out.add(kGirls + g, cast_[g] == 0);
      return;
    case Phase::person:
      if (std::popcount(told_[group_]) == cast_[group_]) return out.add(kStop, 1);
      for (int i = 0; i < kSlot; ++i) out.add(person_token(group_, i), !(told_[group_] >> i & 1));
      return;
    case Phase::thing:
      for (int t = 0; t < kSlot; ++t)
        out.add(thing_token(group_, t), !(used_[group_] >> t & 1) && !held_out(*options_, group_, person_, t));
      return;
    case Phase::key:
      return key_choices(out);
    case Phase::answer:
      return out.add(thing_token(group_, thing_of_[group_][person_]), 1);
    case Phase::done:
      return out.add(kEnd, 1);
  }
}

// "one cold morning friends meet ."
void StoryState::opening_choices(Choices& out) const {
  if (count_ == 0) return out.add(kOne, 1);
  const int32_t first = count_ == 1 ? kWeather0 : kTime0, last = count_ == 1 ? kTime0 : kFriends;
  for (int32_t t = first; t < last; ++t) out.add(t, 1);
}

// the group mentioned longest ago: its answers then lie far from their facts
int StoryState::oldest_group() const {
  int oldest = -1;
  for (int g = 0; g < options_->groups; ++g)
    if (cast_[g] > 0 && (oldest < 0 || last_sentence_[g] < last_sentence_[oldest])) oldest = g;
  return oldest;
}

// a group's facts are followed by questions about them; the end comes when there is no room for another sentence
void StoryState::sentence_choices(Choices& out) const {
  const int quiz = 2 * (options_->max_cast - 3) + 3, list = 2 * options_->max_cast + 4;
  if (after_facts_) return out.add(kAsk, 1);
  const int told = static_cast<int>(std::count_if(cast_.begin(), cast_.end(), [](int n) { return n > 0; }));
  const bool tell = told < options_->groups && has_room(list + quiz), ask = told > 0 && has_room(quiz);
  if (!tell && !ask) return out.add(kThe, 1);
  const int percent = !tell ? 100 : !ask ? 0 : options_->question_percent;
  const int sizes = options_->max_cast - options_->min_cast + 1;
  for (int n = options_->min_cast; n <= options_->max_cast; ++n) out.add(kFour + n - 4, 100 - percent);
  out.add(kAsk, percent * sizes);
}

// people whom this quiz has not asked for, as long as four of them are left: even who rules out the answers given has one
// chance in four
uint32_t StoryState::askable() const {
  const uint32_t left = told_[group_] & ~asked_;
  return std::popcount(left) >= 4 ? left : 0;
}

void StoryState::key_choices(Choices& out) const {
  for (int i = 0; i < kSlot; ++i) out.add(person_token(group_, i), askable() >> i & 1);
  if (out.size == 0) out.add(kStop, 1);
}

bool StoryState::may_take(int32_t token) const {
  const int thing = token - thing_token(group_, 0);
  return at_thing() && thing >= 0 && thing < kSlot && !(used_[group_] >> thing & 1);
}

bool StoryState::given_choices(Choices& out, uint64_t percent) const {
  out.clear();
  if (!at_thing() || percent >= static_cast<uint64_t>(options_->held_out_percent)) return false;
  for (int t = 0; t < kSlot; ++t)
    if (held_out(*options_, group_, person_, t) && may_take(thing_token(group_, t))) out.add(thing_token(group_, t), 1);
  return out.size > 0;
}

void StoryState::force(std::initializer_list<int32_t> tokens, Phase then) {
  std::copy(tokens.begin(), tokens.end(), forced_.begin());
  forced_size_ = static_cast<int>(tokens.size());
  forced_at_ = 0;
  phase_ = then;
}

void StoryState::push(int32_t token) {
  ++count_;
  if (forced_at_ < forced_size_) {
    ++forced_at_;
    return;
  }
  switch (phase_) {
    case Phase::opening:
      if (count_ == 3) force({kFriends, kMeet, kStop}, Phase::sentence);
      return;
    case Phase::sentence:
      return read_sentence_start(token);
    case Phase::group:
      group_ = token - kGirls;
      cast_[group_] = size_;
      return force({kVisit + group_}, Phase::person);
    case Phase::person:
      if (token == kStop) return end_sentence(true);
      person_ = token - person_token(group_, 0);
      phase_ = Phase::thing;
      return;
    case Phase::thing:
      return tell(token - thing_token(group_, 0));
    case Phase::key:
      return read_key(token);
    case Phase::answer:
      mention_[group_][person_] = count_ - 1;
      asked_ |= 1u << person_;
      phase_ = Phase::key;
      return;
    case Phase::done:
      return;
  }
}

void StoryState::read_sentence_start(int32_t token) {
  if (token == kThe) return force({kEndWord, kStop}, Phase::done);
  if (token == kAsk) {
    asked_ = 0;
    if (!after_facts_) group_ = oldest_group();
    return force({kGirls + group_}, Phase::key);
  }
  size_ = token - kFour + 4;
  phase_ = Phase::group;
}

void StoryState::end_sentence(bool facts) {
  after_facts_ = facts;
  last_sentence_[group_] = count_;
  phase_ = Phase::sentence;
}

void StoryState::read_key(int32_t token) {
  if (token == kStop) return end_sentence(false);
  person_ = (token - kPerson0) % kSlot;
  phase_ = Phase::answer;
}

void StoryState::tell(int thing) {
  told_[group_] |= 1u << person_;
  used_[group_] |= 1u << thing;
  thing_of_[group_][person_] = static_cast<int8_t>(thing);
  mention_[group_][person_] = count_ - 1;
  phase_ = Phase::person;
}

StoryQuestion StoryState::question() const {
  int newest = person_;
  int64_t at = -1;
  for (int i = 0; i < kSlot; ++i)
    if ((askable() >> i & 1) && mention_[group_][i] > at) at = mention_[group_][newest = i];
  return {.fact = static_cast<StoryFact>(group_),
          .position = count_,
          .distance = count_ - mention_[group_][person_],
          .candidates = std::popcount(askable()),
          .recency_guess = thing_token(group_, thing_of_[group_][newest]),
          .held_out = held_out(*options_, group_, person_, thing_of_[group_][person_])};
}

}  // namespace hedgehog::story

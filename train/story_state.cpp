#include "train/story_state.h"

#include <bit>

namespace hedgehog::story {

void StoryState::choices(Choices& out) const {
  out.clear();
  if (forced_at_ < forced_size_) return out.add(forced_[forced_at_], 1);
  switch (phase_) {
    case Phase::opening:
      return opening_choices(out);
    case Phase::sentence:
      return sentence_choices(out);
    case Phase::verb:
      for (int k = 0; k < options_->kinds; ++k) out.add(kForms[k].verb, kForms[k].begins_with_person() && told_[k] == 0);
      return;
    case Phase::key:
      for (int i = 0; i < form().keys; ++i) out.add(form().key0 + i, !(told_[kind_] >> i & 1));
      return;
    case Phase::value:
      for (int i = 0; i < form().values; ++i) out.add(form().value0 + i, !(used_[kind_] >> i & 1) && !is_held_out(i));
      return;
    case Phase::separator: {
      const int next = std::popcount(told_[kind_]) + 1;  // number of the fact that would follow
      if (last_fact_) return out.add(kStop, 1);
      out.add(kComma, next < options_->max_facts);
      return out.add(kAnd, next >= options_->min_facts);
    }
    case Phase::asked:
      for (int i = 0; i < form().keys; ++i) out.add(form().key0 + i, askable() >> i & 1);
      return;
    case Phase::answer:
      return out.add(form().value0 + value_of_[kind_][key_], 1);
    case Phase::done:
      return out.add(kEnd, 1);
  }
}

// "one cold morning"
void StoryState::opening_choices(Choices& out) const {
  if (count_ == 0) return out.add(kOne, 1);
  const int32_t first = count_ == 1 ? kWeather0 : kTime0, last = count_ == 1 ? kTime0 : kFriends;
  for (int32_t t = first; t < last; ++t) out.add(t, 1);
}

int StoryState::kinds_told() const {
  return static_cast<int>(std::count_if(told_.begin(), told_.end(), [](uint32_t keys) { return keys != 0; }));
}

bool StoryState::can_tell() const {
  return kinds_told() < options_->kinds && has_room(longest_paragraph(*options_) + longest_question(*options_));
}

bool StoryState::can_ask() const { return kinds_told() > 0 && has_room(longest_question(*options_)); }

// A sentence tells, asks, or closes the story where neither fits. Telling, each untold kind is as likely as another; those
// that begin with a person share the names, since the verb decides between them.
void StoryState::sentence_choices(Choices& out) const {
  const bool tells = can_tell(), asks = can_ask();
  if (!tells && !asks) return out.add(kThe, 1);
  const uint64_t percent = !tells ? 0 : !asks ? 100 : options_->tell_percent;
  const int told = kinds_told(), untold = options_->kinds - told;
  int by_name = 0;
  for (int k = 0; k < options_->kinds; ++k) by_name += kForms[k].begins_with_person() && told_[k] == 0;
  // weights over the common denominator 100 · told · untold · kNames
  const uint64_t tell = percent * std::max(told, 1), ask = (100 - percent) * std::max(untold, 1) * kNames;
  for (int i = 0; i < kNames; ++i) out.add(kName0 + i, tell * by_name);
  out.add(kThe, tell * (untold - by_name) * kNames);
  for (int k = 0; k < kKinds; ++k) out.add(kForms[k].asks, told_[k] != 0 ? ask : 0);
}

// keys of the kind's facts, without the one that the sentence before asked for
uint32_t StoryState::askable() const { return told_[kind_] & ~(asked_kind_ == kind_ ? 1u << asked_key_ : 0u); }

bool StoryState::is_held_out(int value) const {
  return form().begins_with_person() ? held_out(*options_, kind_, key_, value) : held_out(*options_, kind_, value, key_);
}

bool StoryState::may_take(int32_t token) const {
  const int value = token - form().value0;
  return at(Phase::value) && value >= 0 && value < form().values && !(used_[kind_] >> value & 1);
}

bool StoryState::given_choices(Choices& out, uint64_t percent) const {
  out.clear();
  if (!at(Phase::value) || percent >= static_cast<uint64_t>(options_->held_out_percent)) return false;
  for (int i = 0; i < form().values; ++i) out.add(form().value0 + i, is_held_out(i) && may_take(form().value0 + i));
  return out.size > 0;
}

void StoryState::force(std::initializer_list<int32_t> tokens, Phase then) {
  forced_at_ = forced_size_ = 0;
  for (const int32_t token : tokens)
    if (token != kNone) forced_[forced_size_++] = token;
  phase_ = then;
}

void StoryState::push(int32_t token) {
  if (forced_at_ < forced_size_) ++forced_at_;
  else read(token);
  ++count_;
}

void StoryState::read(int32_t token) {
  switch (phase_) {
    case Phase::opening:
      if (count_ == 2) force({kFriends, kMeet, kStop}, Phase::sentence);
      return;
    case Phase::sentence:
      return read_sentence_start(token);
    case Phase::verb:
      kind_ = token - kEats;
      return force({form().link}, Phase::value);
    case Phase::key:
      key_ = token - form().key0;
      return force({form().verb, form().link}, Phase::value);
    case Phase::value:
      return tell(token - form().value0);
    case Phase::separator:
      if (token == kStop) return force({}, Phase::sentence);
      last_fact_ = token == kAnd;
      return force({form().article}, Phase::key);
    case Phase::asked:
      key_ = token - form().key0;
      return force({form().base, kQuestion, form().article, token, form().verb, form().link}, Phase::answer);
    case Phase::answer:
      mention_[kind_][key_] = count_;
      asked_kind_ = kind_;
      asked_key_ = key_;
      return force({kStop}, Phase::sentence);
    case Phase::done:
      return;
  }
}

void StoryState::read_sentence_start(int32_t token) {
  if (token >= kWhat && token <= kWho) {
    kind_ = token - kWhat;
    return force({form().auxiliary, form().article}, Phase::asked);
  }
  if (!can_tell() && !can_ask()) return force({kEndWord, kStop}, Phase::done);
  asked_kind_ = -1;
  last_fact_ = false;
  if (token == kThe) {
    kind_ = static_cast<int>(StoryFact::owns);
    return force({}, Phase::key);
  }
  key_ = token - kName0;
  return force({}, Phase::verb);
}

void StoryState::tell(int value) {
  told_[kind_] |= 1u << key_;
  used_[kind_] |= 1u << value;
  value_of_[kind_][key_] = static_cast<int8_t>(value);
  mention_[kind_][key_] = count_;
  phase_ = Phase::separator;
}

StoryQuestion StoryState::question() const {
  int newest = key_;
  for (int i = 0; i < form().keys; ++i)
    if ((askable() >> i & 1) && mention_[kind_][i] > mention_[kind_][newest]) newest = i;
  return {.fact = static_cast<StoryFact>(kind_),
          .position = count_,
          .distance = count_ - mention_[kind_][key_],
          .candidates = std::popcount(askable()),
          .recency_guess = form().value0 + value_of_[kind_][newest],
          .held_out = is_held_out(value_of_[kind_][key_])};
}

}  // namespace hedgehog::story

#pragma once
#include <array>
#include <cstdint>
#include <string_view>

namespace hedgehog::story {

inline constexpr int kKinds = 4;    // kinds of facts, in the order of StoryFact
inline constexpr int kNames = 24;   // people, the same for every kind
inline constexpr int kThings = 16;  // things of a kind; a power of two

/// The vocabulary in token order. Id 0 ends and pads a story; the people and the things of each kind are one block each.
inline constexpr std::array kWords = std::to_array<std::string_view>({
    "<end>", ".", ",", "?", "and",
    "mia", "ann", "zoe", "eva", "ida", "lily", "nora", "ruby", "ella", "rosa", "lucy", "vera", "leo", "tom", "ben", "max",
    "sam", "jack", "finn", "hugo", "paul", "otto", "karl", "adam",
    "plums", "tea", "bread", "cheese", "soup", "honey", "pears", "cake", "rice", "nuts", "beans", "grapes", "corn", "fish",
    "apples", "jam",
    "rome", "paris", "oslo", "cairo", "lima", "delhi", "tokyo", "berlin", "madrid", "athens", "dublin", "vienna", "prague",
    "boston", "sydney", "lisbon",
    "train", "boat", "bus", "bike", "car", "ship", "plane", "tram", "horse", "taxi", "sled", "ferry", "truck", "canoe",
    "balloon", "van",
    "coin", "key", "lamp", "book", "drum", "rope", "kite", "ring", "bell", "cup", "hat", "map", "ball", "shell", "flute",
    "brush",
    "one", "warm", "cold", "windy", "rainy", "sunny", "quiet", "foggy", "snowy", "morning", "evening", "afternoon", "day",
    "friends", "meet", "eats", "lives", "travels", "belongs", "eat", "live", "travel", "owns", "in", "by", "to", "what",
    "where", "how", "who", "does", "the", "end",
});

/// Token ids of the words that the grammar names. Verbs and question words stand in the order of StoryFact.
enum Token : int32_t {
  kNone = -1,  // no word
  kEnd, kStop, kComma, kQuestion, kAnd, kName0, kThing0 = kName0 + kNames, kOne = kThing0 + kKinds * kThings,
  kWeather0, kTime0 = kWeather0 + 8, kFriends = kTime0 + 4, kMeet, kEats, kLives, kTravels, kBelongs,
  kEat, kLive, kTravel, kOwns, kIn, kBy, kTo, kWhat, kWhere, kHow, kWho, kDoes, kThe, kEndWord, kVocabulary
};
static_assert(kWords.size() == kVocabulary && kWords[kThing0] == "plums" && kWords[kOne] == "one" &&
              kWords[kTime0] == "morning" && kWords[kMeet] == "meet" && kWords[kWho] == "who");

/// How a kind of fact is worded, kNone where it has no such word.
///
///   told   article KEY verb link VALUE           mia eats plums · the coin belongs to ben
///   asked  asks auxiliary article KEY base ?     what does mia eat ? · who owns the coin ?
///
/// A question gives the key and wants the value; its answer tells the fact again. Either the key or the value is a person.
struct Form {
  int32_t article, verb, link, asks, auxiliary, base;
  int32_t key0, keys, value0, values;  // blocks of ids: the first and how many

  constexpr bool begins_with_person() const { return article == kNone; }
  /// Tokens of the fact with the mark or "and" after it.
  constexpr int fact_tokens() const { return 4 + (article != kNone) + (link != kNone); }
  /// Tokens of a question and its answer.
  constexpr int question_tokens() const { return 4 + (article != kNone) + (base != kNone) + fact_tokens(); }
};

inline constexpr std::array<Form, kKinds> kForms = {{
    {kNone, kEats, kNone, kWhat, kDoes, kEat, kName0, kNames, kThing0, kThings},
    {kNone, kLives, kIn, kWhere, kDoes, kLive, kName0, kNames, kThing0 + kThings, kThings},
    {kNone, kTravels, kBy, kHow, kDoes, kTravel, kName0, kNames, kThing0 + 2 * kThings, kThings},
    {kThe, kBelongs, kTo, kWho, kOwns, kNone, kThing0 + 3 * kThings, kThings, kName0, kNames},
}};

}  // namespace hedgehog::story

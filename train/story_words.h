#pragma once
#include <array>
#include <cstdint>
#include <string_view>

namespace hedgehog::story {

/// Words per slot: every group of people and every kind of thing fills one block of this many token ids.
inline constexpr int kSlot = 16;
inline constexpr int kGroups = 3;

/// The vocabulary in token order. Id 0 ends and pads a story; each slot is one block, so a token's class is a division.
inline constexpr std::array kWords = std::to_array<std::string_view>({
    "<end>", ".",
    "mia", "ann", "zoe", "eva", "ida", "lily", "nora", "ruby", "ella", "rosa", "lucy", "vera", "dora", "alice", "emma", "jane",
    "leo", "tom", "ben", "max", "sam", "jack", "finn", "hugo", "paul", "otto", "karl", "adam", "noah", "emil", "fred", "john",
    "rex", "fido", "bella", "rocky", "tiger", "misty", "rusty", "coco", "lucky", "daisy", "smoky", "pip", "buddy", "shadow",
    "ginger", "spot",
    "rome", "paris", "oslo", "cairo", "lima", "delhi", "tokyo", "berlin", "madrid", "athens", "dublin", "vienna", "prague",
    "boston", "sydney", "lisbon",
    "coins", "keys", "lamps", "books", "drums", "ropes", "kites", "rings", "bells", "cups", "hats", "maps", "balls", "shells",
    "flutes", "brushes",
    "plums", "tea", "bread", "cheese", "soup", "honey", "pears", "cake", "rice", "nuts", "milk", "grapes", "corn", "fish",
    "apples", "jam",
    "one", "warm", "cold", "windy", "rainy", "sunny", "quiet", "foggy", "snowy", "morning", "evening", "afternoon", "day",
    "friends", "meet", "four", "five", "six", "seven", "eight", "girls", "boys", "pets", "visit", "carry", "eat", "ask", "the",
    "end",
});

/// Token ids of the words that the grammar names.
enum Token : int32_t {
  kEnd, kStop, kPerson0, kThing0 = kPerson0 + kGroups * kSlot,
  kOne = kThing0 + kGroups * kSlot, kWeather0, kTime0 = kWeather0 + 8, kFriends = kTime0 + 4, kMeet,
  kFour, kGirls = kFour + 5, kVisit = kGirls + kGroups, kAsk = kVisit + kGroups, kThe, kEndWord, kVocabulary
};
static_assert(kWords.size() == kVocabulary);

}  // namespace hedgehog::story

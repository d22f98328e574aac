#include <doctest/doctest.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "core/error.h"
#include "tests/bpe_cases.h"
#include "tests/counters.h"
#include "tests/temporary_directory.h"
#include "train/tokenizer_sentencepiece.h"
#include "train/utf8.h"

using namespace hedgehog;
using namespace hedgehog::test;

namespace {

using Ids = std::vector<int32_t>;
using Type = SentencePieceType;

/// The way of llama2.c: characters or their bytes, then the best pair of neighbours, again and again.
Ids encoded_slowly(const SentencePieceVocabulary& v, const std::string& text) {
  std::map<std::string, int32_t> known;
  std::map<int, int32_t> bytes;
  for (size_t id = 0; id < v.tokens.size(); ++id) {
    if (v.types[id] == Type::kNormal) known[v.tokens[id]] = int32_t(id);
    if (v.types[id] == Type::kByte) bytes[std::stoi(v.tokens[id].substr(3, 2), nullptr, 16)] = int32_t(id);
  }
  Ids ids;
  const std::string padded = text.empty() ? "" : " " + text;
  for (size_t i = 0; i < padded.size();) {
    const std::string character = padded.substr(i, utf8_step(padded, i).bytes);
    i += character.size();
    if (known.contains(character)) ids.push_back(known[character]);
    else
      for (const char c : character) ids.push_back(bytes.at(uint8_t(c)));
  }
  while (true) {
    float best = -1e10f;
    size_t place = ids.size();
    int32_t merged = -1;
    for (size_t i = 0; i + 1 < ids.size(); ++i) {
      if (v.types[size_t(ids[i])] != Type::kNormal || v.types[size_t(ids[i + 1])] != Type::kNormal) continue;
      const auto found = known.find(v.tokens[size_t(ids[i])] + v.tokens[size_t(ids[i + 1])]);
      if (found == known.end() || v.scores[size_t(found->second)] <= best) continue;
      best = v.scores[size_t(found->second)], place = i, merged = found->second;
    }
    if (place == ids.size()) return ids;
    ids[place] = merged;
    ids.erase(ids.begin() + std::ptrdiff_t(place) + 1);
  }
}

/// <unk>, <s>, </s>, the bytes, then tokens of few letters, many with equal scores.
SentencePieceVocabulary small(bool across_spaces) {
  SentencePieceVocabulary v;
  const auto add = [&](const std::string& token, Type type, float score) {
    if (std::find(v.tokens.begin(), v.tokens.end(), token) != v.tokens.end()) return;
    v.tokens.push_back(token), v.types.push_back(type), v.scores.push_back(score);
  };
  v.space = " ";
  add("<unk>", Type::kUnknown, 0), add("<s>", Type::kControl, 0), add("</s>", Type::kControl, 0);
  for (int byte = 0; byte < 256; ++byte) add(fmt::format("<0x{:02X}>", byte), Type::kByte, 0);
  for (const char* token : {" ", "a", "b", "\u00e9"}) add(token, Type::kNormal, -100);
  Random random(across_spaces ? 3 : 4);
  for (int i = 0; i < 60; ++i) {
    std::string token = random.below(3) == 0 ? " " : "";
    const std::vector<std::string> letters = {"a", "b", "\u00e9", across_spaces ? " " : "a"};
    for (size_t rest = 1 + random.below(3); rest > 0; --rest) token += letters[random.below(4)];
    add(token, Type::kNormal, -float(random.below(12)));
  }
  v.end = 2, v.frame.before = {1};
  return v;
}

std::string binary(int32_t longest, const std::vector<std::pair<float, std::string>>& tokens) {
  std::string bytes(reinterpret_cast<const char*>(&longest), 4);
  for (const auto& [score, token] : tokens) {
    const int32_t length = int32_t(token.size());
    bytes.append(reinterpret_cast<const char*>(&score), 4).append(reinterpret_cast<const char*>(&length), 4).append(token);
  }
  return bytes;
}

}  // namespace

TEST_CASE("sentencepiece: ids are those of the slow way, and text comes back") {
  const std::vector<std::string> letters = {"a", "b", "a", "\u00e9", " ", " ", "z", "\n", "\xff", "\xc3"};
  for (const bool across : {false, true}) {
    const SentencePieceVocabulary v = small(across);
    const auto tokenizer = sentencepiece_tokenizer(v);
    for (uint64_t seed = 0; seed < 200; ++seed) {
      Random random(seed);
      std::string text;
      for (size_t i = random.below(50); i > 0; --i)
        text += letters[random.below(seed % 2 == 0 ? 6 : 10)];
      CAPTURE(text);
      const Ids ids = tokenizer->encode(text);
      CHECK(ids == encoded_slowly(v, text));
      CHECK(tokenizer->decode(ids) == text);
    }
  }
}

TEST_CASE("sentencepiece: the tokenizer of the 260K stories model") {
  const auto file = shared_data() / "stories260k/tok512.bin";
  if (!std::filesystem::exists(file)) return skip("../shared/data/stories260k is not here");
  const SentencePieceVocabulary v = read_llama2c_tokenizer(file, 512);
  const auto tokenizer = make_tokenizer(file.string(), "", 0);
  CHECK(tokenizer->size() == 512);
  CHECK(tokenizer->end() == 2);
  CHECK(tokenizer->frame().before == Ids{1});
  const std::string text = "Once upon a time, there was a little girl named Lily.\n\tShe \u65e5 \U0001f994 loved\xff it!";
  CHECK(tokenizer->encode(text) == encoded_slowly(v, text));
  CHECK(tokenizer->decode(tokenizer->encode(text)) == text);
  Ids framed = tokenizer->encode("Once upon");
  CHECK(tokenizer->decode(framed) == "Once upon");
  framed.insert(framed.begin(), 1);
  CHECK(tokenizer->decode(framed) == "Once upon");
  const TemporaryDirectory d;
  const auto again = load_tokenizer(d.file("tokenizer.json", tokenizer->to_json()));
  CHECK(again->encode(text) == tokenizer->encode(text));
  CHECK(again->to_json() == tokenizer->to_json());
  CHECK(contains(message_of<FileError>([&] { read_llama2c_tokenizer(file, 513); }), "inside token 512"));
  CHECK(contains(message_of<FileError>([&] { read_llama2c_tokenizer(file, 511); }), "after 511 tokens, at byte"));
}

TEST_CASE("sentencepiece: without bytes there is the unknown token, or nothing") {
  SentencePieceVocabulary v;
  v.tokens = {"<unk>", "\u2581", "a", "\u2581a"};
  v.types = {Type::kUnknown, Type::kNormal, Type::kNormal, Type::kNormal};
  v.scores = {0, -2, -3, -1};
  CHECK(sentencepiece_tokenizer(v)->encode("a zz az") == Ids{3, 1, 0, 3, 0});
  CHECK(sentencepiece_tokenizer(v)->decode(Ids{3, 1, 0, 3}) == "a <unk> a");
  v.fuse_unknown = false;
  CHECK(sentencepiece_tokenizer(v)->encode("zz") == Ids{1, 0, 0});
  v.types[0] = Type::kControl;
  CHECK(sentencepiece_tokenizer(v)->encode("azz") == Ids{3});
  v.types[2] = Type::kUserDefined;
  CHECK(sentencepiece_tokenizer(v)->encode("za") == Ids{1, 2});
  v.prefix_space = false;
  CHECK(sentencepiece_tokenizer(v)->decode(Ids{1, 2}) == " a");
}

TEST_CASE("sentencepiece: damage in llama2.c's file is named") {
  const TemporaryDirectory d;
  const auto refusal = [&](const std::string& content) {
    return message_of<FileError>([&] { load_tokenizer(d.file("t.bin", content)); });
  };
  const std::vector<std::pair<float, std::string>> good = {{0, "<unk>"}, {0, "<s>"}, {0, "</s>"}, {0, "<0x00>"}, {-1, "a"}, {-2, " "}};
  CHECK(refusal(binary(6, good)).empty());
  const std::string whole = binary(6, good);
  for (size_t size = 0; size < whole.size(); ++size) {
    const std::string message = refusal(whole.substr(0, size));
    // cut between two tokens it is a shorter file
    CHECK((message.empty() || contains(message, "inside token") || contains(message, "it has ")));
  }
  CHECK(contains(refusal(binary(5, good)), "at byte 44, token 3 has 6 bytes, but the longest should have 5"));
  CHECK(contains(refusal(binary(-1, good)), "token 0 has 5 bytes, but the longest should have -1"));
  std::string huge = whole;
  huge.replace(8, 4, "\xff\xff\xff\x7f");
  CHECK(contains(refusal(huge), "token 0 has 2147483647 bytes"));
  huge.replace(0, 4, "\xff\xff\xff\x7f");
  CHECK(contains(refusal(huge), "inside token 0"));
  const auto with = [&](float score, const std::string& token) {
    auto tokens = good;
    tokens.push_back({score, token});
    return refusal(binary(6, tokens));
  };
  CHECK(contains(with(0, "a"), "tokens 4 and 6 are both 'a'"));
  CHECK(contains(with(0, "<0x00>"), "tokens 3 and 6 are both '<0x00>'"));
  CHECK(contains(with(0, "<0xg0>"), "token 6 ('<0xg0>') is no byte"));
  CHECK(contains(with(0, ""), "token 6 has 0 bytes"));
  CHECK(contains(with(0, "\xff"), "token 6 ('\uFFFD') is not UTF-8"));
  CHECK(contains(with(std::numeric_limits<float>::quiet_NaN(), "b"), "the score of token 6 ('b') is not finite"));
}

TEST_CASE("sentencepiece: a vocabulary and files in our format are checked") {
  const auto refusal = [](auto&& change) {
    SentencePieceVocabulary v = small(false);
    change(v);
    return message_of<Error>([&] { sentencepiece_tokenizer(v); });
  };
  CHECK(contains(refusal([](auto& v) { v.types.pop_back(); }), "types for"));
  CHECK(contains(refusal([](auto& v) { v.scores.pop_back(); }), "scores and 0 merges"));
  CHECK(contains(refusal([](auto& v) { v.types[5] = Type(9); }), "the type of token 5 ('<0x02>') is 9"));
  CHECK(contains(refusal([](auto& v) { v.end = 9999; }), "the end token 9999 is out of range"));
  CHECK(contains(refusal([](auto& v) { v.frame.after = {-2}; }), "the frame's token -2 is out of range"));
  CHECK(contains(refusal([](auto& v) { v.added = {{9999}}; }), "added token 9999 is out of range"));
  CHECK(contains(refusal([](auto& v) { v.scores.clear(), v.merges = {{0, 1, 9999}}; }), "a merge's token 9999 is out of range"));
  CHECK(contains(refusal([](auto& v) { v.scores.clear(), v.merges = {{0, 1, 2}}; }), "merge 0 of '<unk>' and '<s>' makes '</s>'"));
  const TemporaryDirectory d;
  const nlohmann::json whole = nlohmann::json::parse(sentencepiece_tokenizer(small(false))->to_json());
  const auto damage = [&](const char* field, const nlohmann::json& value) {
    nlohmann::json json = whole;
    json[field] = value;
    return message_of<FileError>([&] { load_tokenizer(d.file("tokenizer.json", json.dump())); });
  };
  CHECK(damage("version", 1).empty());
  for (const char* field : {"tokens", "scores", "types", "before", "after", "end"}) {
    CHECK(contains(damage(field, 3), fmt::format("field '{}' is not a list", field)));
    CHECK(contains(damage(field, nlohmann::json::array({nlohmann::json::object()})), fmt::format("field '{}' item 0 is not", field)));
  }
  CHECK(contains(damage("types", {7}), "field 'types' item 0 is not a number from 0 to 6"));
  CHECK(contains(damage("scores", {1.0}), "there are 1 scores"));
  CHECK(contains(damage("end", {1, 2}), "more than one id"));
  CHECK(contains(damage("end", {9999}), "the end token 9999 is out of range"));
  CHECK(contains(damage("space", "_"), "field 'space'"));
  CHECK(contains(damage("prefix_space", 1), "field 'prefix_space'"));
}

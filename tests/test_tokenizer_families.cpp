#include <doctest/doctest.h>

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "core/error.h"
#include "ops/cpu.h"
#include "tests/bpe_cases.h"
#include "tests/counters.h"
#include "tests/temporary_directory.h"
#include "train/added_tokens.h"
#include "train/tokenizer.h"
#include "train/utf8.h"

using namespace hedgehog;
using namespace hedgehog::test;

namespace {

using Ids = std::vector<int32_t>;
using Json = nlohmann::json;

constexpr int kLinesOfGroup = 20;

const std::filesystem::path kFixtures = std::filesystem::path(HH_SOURCE_DIR) / "tests/data/tokenizers";

/// FNV-1a over the ids' bytes, little-endian.
uint32_t hash_of(const Ids& ids) {
  uint32_t value = 0x811c9dc5;
  for (const int32_t id : ids)
    for (int shift = 0; shift < 32; shift += 8) value = (value ^ (uint32_t(id) >> shift & 0xff)) * 0x01000193;
  return value;
}

/// The fixture's text in groups of lines.
std::vector<std::string> groups() {
  std::ifstream file(kFixtures / "text.txt", std::ios::binary);
  std::vector<std::string> result;
  int lines = 0;
  for (std::string line; std::getline(file, line); ++lines) {
    if (lines % kLinesOfGroup == 0) result.emplace_back();
    result.back() += line + "\n";
  }
  REQUIRE(lines == 10000);
  return result;
}

/// The fixtures' hashes for one tokenizer, by group.
std::vector<uint32_t> hashes_of(const std::string& name) {
  std::ifstream file(kFixtures / "hashes.txt");
  std::string line, word;
  REQUIRE(std::getline(file, line));
  std::istringstream names(line);
  size_t column = 0;
  for (; names >> word && word != name;) ++column;
  REQUIRE(word == name);
  std::vector<uint32_t> result;
  while (std::getline(file, line)) {
    std::istringstream words(line);
    for (size_t i = 0; i <= column; ++i) words >> word;
    result.push_back(uint32_t(std::stoul(word, nullptr, 16)));
  }
  return result;
}

/// The tokenizer of a fixture; skips the test, and is null, where a library is missing.
TokenizerPointer fixture(const std::string& name) {
  try {
    return load_tokenizer(kFixtures / (name + ".json"));
  } catch (const Error& error) {
    if (!contains(error.what(), "built without")) throw;
    return skip(error.what()), nullptr;
  }
}

/// Compares the ids of all lines with those of Hugging Face's tokenizers; stops at the first group that differs.
void compare(const std::string& name, const Tokenizer& tokenizer) {
  const std::vector<uint32_t> hashes = hashes_of(name);
  const std::vector<std::string> texts = groups();
  REQUIRE(hashes.size() == texts.size());
  for (size_t group = 0; group < texts.size(); ++group) {
    CAPTURE(name);
    CAPTURE(texts[group]);
    REQUIRE_MESSAGE(hash_of(tokenizer.encode(texts[group])) == hashes[group],
                    fmt::format("lines {} to {}", group * kLinesOfGroup + 1, (group + 1) * kLinesOfGroup));
  }
}

/// Also what is written and read again, and the whole text by one thread and by three.
void compare_all(const std::string& name) {
  const auto tokenizer = fixture(name);
  if (!tokenizer) return;
  compare(name, *tokenizer);
  const TemporaryDirectory d;
  const auto again = load_tokenizer(d.file("tokenizer.json", tokenizer->to_json()));
  compare(name, *again);
  CHECK(again->to_json() == tokenizer->to_json());
  CHECK(again->frame().before == tokenizer->frame().before);
  CHECK(again->frame().after == tokenizer->frame().after);
  CHECK(again->end() == tokenizer->end());
  std::string whole;
  for (const std::string& text : groups()) whole += text;
  const int before = thread_count();
  set_thread_count(1);
  const Ids by_one = tokenizer->encode(whole);
  set_thread_count(3);
  const Ids by_three = tokenizer->encode(whole);
  set_thread_count(before);
  CHECK(by_one == by_three);
}

/// Text with bytes of no character everywhere.
std::string broken_text(uint64_t seed) {
  static const std::vector<std::string> pool = {"a", " ", "the ", "\n", "\xff", "\xe2\x96", "\xc0\x80",
                                                "\xed\xa0\x80", "\xf5", "\x80", "\u00e9", "<s>", "\u2581"};
  Random random(seed);
  std::string text;
  for (int i = 0; i < 200; ++i) text += pool[random.below(pool.size())];
  return text;
}

/// A fixture with another value somewhere, and what reading it says; empty if it is taken.
class Damaged {
 public:
  explicit Damaged(const std::string& name) {
    std::ifstream file(kFixtures / (name + ".json"), std::ios::binary);
    whole_ = Json::parse(file);
  }
  std::string operator()(const char* pointer, const Json& value) const {
    Json json = whole_;
    json[Json::json_pointer(pointer)] = value;
    return message_of<FileError>([&] { load_tokenizer(directory_.file("tokenizer.json", json.dump())); });
  }
  const Json& whole() const { return whole_; }

 private:
  Json whole_;
  TemporaryDirectory directory_;
};

}  // namespace

TEST_CASE("tokenizer families: Llama 3's ids") {
  compare_all("llama3");
  const auto tokenizer = fixture("llama3");
  if (!tokenizer) return;
  CHECK(tokenizer->frame().before == Ids{1100});
  CHECK(tokenizer->frame().after.empty());
  CHECK(tokenizer->end() == 1101);
  const std::string text = "ab <left> c <|begin_of_text|>d";
  CHECK(tokenizer->decode(tokenizer->encode(text)) == "ab<left> c <|begin_of_text|>d");
}

TEST_CASE("tokenizer families: SmolLM's ids, and a byte that no token stands for is left out") {
  compare_all("smollm");
  const auto tokenizer = fixture("smollm");
  if (!tokenizer) return;
  CHECK(tokenizer->decode(tokenizer->encode("a\x01" "b12")) == "ab12");
  CHECK(tokenizer->encode("12").size() == 2);
}

TEST_CASE("tokenizer families: Qwen2's ids, from text in normal form C") {
  compare_all("qwen2");
  const auto tokenizer = fixture("qwen2");
  if (!tokenizer) return;
  CHECK(tokenizer->decode(tokenizer->encode("e\u0301\xff\u0301<|im_start|>")) == "\u00e9\xff\u0301<|im_start|>");
}

TEST_CASE("tokenizer families: RoBERTa's ids, with a space before a text") {
  compare_all("roberta");
  const auto tokenizer = fixture("roberta");
  if (!tokenizer) return;
  CHECK(tokenizer->decode(tokenizer->encode("the")) == " the");
  CHECK(tokenizer->decode(tokenizer->encode(" the")) == " the");
  CHECK(tokenizer->encode("").empty());
}

TEST_CASE("tokenizer families: Llama 2's ids") {
  compare_all("llama2");
  const auto tokenizer = fixture("llama2");
  CHECK(tokenizer->kind() == "sentencepiece");
  CHECK(tokenizer->frame().before == Ids{1});
  CHECK(tokenizer->end() == 2);
  CHECK(tokenizer->decode(tokenizer->encode("<s>the \u2581 <0x41>\xff")) == "the   <0x41>\xff");
}

TEST_CASE("tokenizer families: BERT's ids") {
  compare_all("bert");
  const auto tokenizer = fixture("bert");
  if (!tokenizer) return;
  CHECK(tokenizer->frame().before == Ids{2});
  CHECK(tokenizer->frame().after == Ids{3});
}

TEST_CASE("tokenizer families: what BERT's files may not say is named") {
  if (!fixture("bert")) return;
  const Damaged refusal("bert");
  CHECK(refusal("/version", "1.0").empty());
  CHECK(contains(refusal("/normalizer", nullptr), "'normalizer' is null, but what is supported is BertNormalizer"));
  CHECK(contains(refusal("/normalizer/lowercase", 2), "'normalizer.lowercase' is 2"));
  CHECK(contains(refusal("/pre_tokenizer", {{"type", "Whitespace"}}), "'pre_tokenizer' is type \"Whitespace\""));
  CHECK(contains(refusal("/model/continuing_subword_prefix", "@@"), "is \"@@\", but what is supported is \"##\""));
  for (const Json& longest : {Json(0), Json(-1), Json(10001), Json("x"), Json()})
    CHECK(contains(refusal("/model/max_input_chars_per_word", longest), "a number from 1 to 10000"));
  CHECK(contains(refusal("/model/unk_token", "no token"), "'model.unk_token' is \"no token\""));
  CHECK(contains(refusal("/model/vocab/[UNK]", 5), "both have the id 5"));
  CHECK(contains(refusal("/added_tokens/0/normalized", true), "found as normalized"));
}

TEST_CASE("tokenizer families: what Llama 2's files may not say is named") {
  const Damaged refusal("llama2");
  CHECK(refusal("/version", "1.0").empty());
  CHECK(contains(refusal("/normalizer", nullptr), "'normalizer' is null, but what is supported is a Sequence of Prepend"));
  CHECK(contains(refusal("/normalizer/normalizers/0/prepend", "x"), "'normalizer' is type \"Prepend\""));
  CHECK(contains(refusal("/normalizer/normalizers/1/content", "x"), "'normalizer' is type \"Replace\""));
  CHECK(contains(refusal("/normalizer/normalizers", Json::array()), "'normalizer' is type \"Sequence\""));
  CHECK(contains(refusal("/pre_tokenizer", {{"type", "Metaspace"}}), "'pre_tokenizer' is type \"Metaspace\""));
  CHECK(contains(refusal("/decoder/decoders/1", {{"type", "Fuse"}}),
                 "'decoder' is type \"Sequence\", but what is supported is a Sequence of Replace"));
  CHECK(contains(refusal("/model/unk_token", "no token"), "'model.unk_token' is \"no token\""));
  CHECK(contains(refusal("/model/ignore_merges", true), "'model.ignore_merges' is true"));
  CHECK(contains(refusal("/model/merges/1", refusal.whole()["model"]["merges"][0]), "is there twice"));
}

TEST_CASE("tokenizer families: bytes of no character become ids that give them back") {
  for (const char* name : {"llama3", "llama2"}) {
    const auto tokenizer = fixture(name);
    if (!tokenizer) return;
    for (uint64_t seed = 0; seed < 50; ++seed) {
      std::string text = broken_text(seed);
      const std::string back = tokenizer->decode(tokenizer->encode(text));
      // control tokens print nothing, and what is a space in the file prints as one
      if (tokenizer->kind() == "sentencepiece") {
        for (const std::string_view piece : {"<s>", "\u2581"})
          for (size_t i = text.find(piece); i != std::string::npos; i = text.find(piece))
            text.replace(i, piece.size(), piece[0] == '<' ? "" : " ");
        CHECK(std::count(back.begin(), back.end(), '\xff') == std::count(text.begin(), text.end(), '\xff'));
      } else {
        CHECK(back == text);
      }
    }
  }
}

TEST_CASE("tokenizer families: damage in post processors and added tokens is named") {
  const Damaged refusal("llama3");
  const std::string ids = "/post_processor/processors/1/special_tokens/<|begin_of_text|>/ids";
  CHECK(contains(refusal(ids.c_str(), {-1}), "special_tokens.<|begin_of_text|>.ids' is -1, but there are 1107 tokens"));
  CHECK(contains(refusal(ids.c_str(), {1107}), "is 1107, but there are 1107 tokens"));
  CHECK(contains(refusal(ids.c_str(), {3}), "is 3, which is no added token"));
  CHECK(contains(refusal(ids.c_str(), 3), "ids' is 3, but what is supported is a list"));
  CHECK(contains(refusal("/post_processor/processors/1/special_tokens", Json::object()), "ids' is null"));
  CHECK(contains(refusal("/post_processor/processors/1/single", Json::array()),
                 "'post_processor.single' is [], but what is supported is a list with Sequence A"));
  CHECK(contains(refusal("/post_processor/processors/1/single/0", "x"), "SpecialToken, and once Sequence A"));
  CHECK(contains(refusal("/post_processor/processors/0", refusal.whole()["post_processor"]["processors"][1]),
                 "is type \"TemplateProcessing\", but what is supported is one"));
  CHECK(contains(refusal("/post_processor/processors/0/type", "Roberta"),
                 "'post_processor' is type \"Roberta\", but what is supported is null, ByteLevel"));
  CHECK(contains(refusal("/post_processor/processors", 3), "'post_processor.processors' is 3"));
  CHECK(contains(refusal("/post_processor", 3), "'post_processor' is 3"));
  CHECK(contains(refusal("/added_tokens/1/single_word", true), "'added_tokens[1].single_word' is true, but what is supported is false"));
  CHECK(contains(refusal("/added_tokens/1/normalized", "no"), "'added_tokens[1].normalized' is \"no\""));
  CHECK(contains(refusal("/added_tokens/1/id", 1100), "both have the id 1100"));
  CHECK(contains(refusal("/pre_tokenizer/pretokenizers/0", {{"type", "Digits"}, {"individual_digits", false}}), "use_regex' is false"));
}

TEST_CASE("tokenizer families: mutated files give an error or a tokenizer, never anything else") {
  const TemporaryDirectory d;
  int accepted = 0, refused = 0;
  for (const char* name : {"llama3", "qwen2", "llama2", "bert"}) {
    const auto tokenizer = fixture(name);
    if (!tokenizer) continue;
    std::ostringstream whole;
    whole << std::ifstream(kFixtures / (std::string(name) + ".json"), std::ios::binary).rdbuf();
    Random random(11);
    for (int round = 0; round < 100; ++round) {
      std::string content = whole.str();
      // half of the changes where the fields are that say how
      const size_t within = round % 2 == 0 ? content.size() : 2000;
      for (int change = 0; change < 2; ++change) content[random.below(within)] = char(random.below(128));
      if (round % 10 == 0) content.resize(random.below(content.size()));
      try {
        const auto other = load_tokenizer(d.file("tokenizer.json", content));
        (void)other->decode(other->encode(broken_text(uint64_t(round))));
        ++accepted;
      } catch (const FileError& error) {
        CHECK(contains(error.what(), "tokenizer.json"));
        ++refused;
      }
    }
  }
  CAPTURE(accepted);
  CHECK(refused >= accepted);
}

TEST_CASE("added tokens: the first, the longest of those, with the white space around") {
  AddedTokens tokens;
  tokens.add("<a>", {1});
  tokens.add("<a>>", {2});
  tokens.add("<l>", {.id = 3, .lstrip = true});
  tokens.add("<r>", {.id = 4, .rstrip = true});
  tokens.add(" x", {5});
  const auto split = [&](const std::string& text) {
    std::string result;
    const auto between = [&](std::string_view part) { result += fmt::format("[{}]", part); };
    tokens.split(text, between, [&](int32_t id) { result += std::to_string(id); });
    return result;
  };
  CHECK(split("") == "");
  CHECK(split("ab") == "[ab]");
  CHECK(split("a<a>>b<a>") == "[a]2[b]1");
  CHECK(split("a \u3000\t<l> b") == "[a]3[ b]");
  CHECK(split("a <r> \u00a0\nb") == "[a ]4[b]");
  CHECK(split("<r>  <l>") == "43");
  CHECK(split("\xa0<l><r>\xff ") == "[\xa0]34[\xff ]");
  // a token that begins within the white space taken is still there, as in Hugging Face's
  CHECK(split("<r> x") == "45");
}

TEST_CASE("utf8: code points and white space") {
  for (const char32_t point : {U'a', U'\u00e9', U'\u2581', U'\U0001f994', U'\U0010ffff'}) {
    std::string text;
    append_character(text, point);
    CHECK(utf8_step(text, 0).bytes == text.size());
    CHECK(code_point(text) == point);
  }
  CHECK(white_space_begin("a \u2003\u3000", 8) == 1);
  CHECK(white_space_begin("a\xa0", 2) == 2);
  CHECK(white_space_begin("\u00a0", 2) == 0);
  CHECK(white_space_end("a \u0085b", 1) == 4);
  CHECK(white_space_end("a\xe2\x80", 1) == 1);
}

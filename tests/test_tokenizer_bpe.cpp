#include <doctest/doctest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "core/error.h"
#include "ops/cpu.h"
#include "tests/bpe_cases.h"
#include "tests/counters.h"
#include "tests/temporary_directory.h"
#include "train/pieces.h"
#include "train/pieces_pattern.h"
#include "train/tokenizer_bpe.h"
#include "train/utf8.h"

using namespace hedgehog;
using namespace hedgehog::test;

namespace {

using Ids = std::vector<int32_t>;

constexpr int32_t kA = 64, kB = 65, kC = 66, kD = 67, kSpace = 220;  // as in GPT-2

std::vector<std::string> pieces_of(const PieceRule& rule, std::string_view text) {
  std::vector<std::string> pieces;
  rule.split(text, [&](std::string_view piece) { pieces.emplace_back(piece); });
  return pieces;
}

/// Text of `characters` drawn from a pool that has what rules differ in.
std::string hard_text(uint64_t seed, int characters) {
  static const std::vector<std::string> pool = {
      "a", "b", "Z", "s", "t", " ", " ", "  ", "\n", "\t", "\r", "\v", "0", "7", "'", "\u2019", ".", "-", "_", "<|endoftext|>", std::string(1, '\0'),
      "\x1f", "\x7f", "\u0085", "\u00a0", "\u180e", "\u2003", "\u2028", "\u206f", "\u2070", "\u3000", "\u303f", "\u3040", "\u00e9", "\u65e5", "\U0001f994"};
  Random random(seed);
  std::string text;
  for (int i = 0; i < characters; ++i) text += pool[random.below(pool.size())];
  return text;
}

std::string random_bytes(uint64_t seed, size_t count) {
  Random random(seed);
  std::string text;
  for (size_t i = 0; i < count; ++i) text += char(random.below(256));
  return text;
}

/// Merges one piece in the slowest way: of all pairs the one of the lowest rank, the leftmost of those.
Ids merged_slowly(const BpeVocabulary& v, std::string_view piece) {
  Ids ids;
  for (const char c : piece)
    for (int32_t id = 0; id < 256; ++id)
      if (v.tokens[size_t(id)][0] == c) ids.push_back(id);
  while (true) {
    size_t best = v.merges.size(), place = 0;
    for (size_t i = 0; i + 1 < ids.size(); ++i)
      for (size_t rank = 0; rank < best; ++rank)
        if (v.merges[rank].left == ids[i] && v.merges[rank].right == ids[i + 1]) best = rank, place = i;
    if (best == v.merges.size()) return ids;
    ids[place] = v.merges[best].merged;
    ids.erase(ids.begin() + std::ptrdiff_t(place) + 1);
  }
}

bool have_pcre2() {
  try {
    (void)piece_rule(kGpt2Pattern);
    return true;
  } catch (const Error&) {
    return false;
  }
}

/// The tokenizer of ../shared/data/gpt2-bpe; skips the test where it cannot be.
TokenizerPointer gpt2() {
  if (!have_pcre2()) return skip("built without PCRE2"), nullptr;
  const std::filesystem::path folder = shared_data() / "gpt2-bpe";
  if (!std::filesystem::exists(folder)) return skip("../shared/data/gpt2-bpe is not here"), nullptr;
  return make_tokenizer(folder.string(), "", 0);
}

}  // namespace

TEST_CASE("bpe: GPT-2's ids") {
  const auto tokenizer = gpt2();
  if (!tokenizer) return;
  CHECK(tokenizer->size() == 50257);
  CHECK(tokenizer->end() == 50256);
  CHECK(tokenizer->encode("a<|endoftext|>b") == Ids{64, 50256, 65});
  std::ifstream lines(shared_data() / "gpt2-bpe/vectors.jsonl");
  int compared = 0;
  for (std::string line; std::getline(lines, line); ++compared) {
    const auto vector = nlohmann::json::parse(line);
    const std::string text = vector["text"];
    CAPTURE(line);
    CHECK(tokenizer->encode(text) == vector["ids"].get<Ids>());
    CHECK(tokenizer->decode(tokenizer->encode(text)) == text);
  }
  CHECK(compared == 61);
}

TEST_CASE("bpe: GPT-2's vocabulary as a tokenizer.json, and under Hugging Face's names, is the same") {
  const auto tokenizer = gpt2();
  if (!tokenizer) return;
  const TemporaryDirectory d;
  save_tokenizer(*tokenizer, d / "tokenizer.json");
  std::filesystem::create_directories(d / "two");
  std::filesystem::copy_file(shared_data() / "gpt2-bpe/encoder.json", d / "two/vocab.json");
  std::filesystem::copy_file(shared_data() / "gpt2-bpe/vocab.bpe", d / "two/merges.txt");
  const auto reloaded = make_tokenizer(d.path().string(), "", 0), renamed = make_tokenizer((d / "two").string(), "", 0);
  const std::string text = hard_text(1, 3000) + random_bytes(2, 3000);
  CHECK(reloaded->encode(text) == tokenizer->encode(text));
  CHECK(renamed->encode(text) == tokenizer->encode(text));
  CHECK(renamed->end() == 50256);
  CHECK(reloaded->to_json() == tokenizer->to_json());
  CHECK(tokenizer->decode(tokenizer->encode(text)) == text);
}

TEST_CASE("bpe: merges worked out by hand") {
  // pieces: "ab" once, " ab" twice, " abc" once; ab 4 times, then " "+ab 3 times, then nothing twice
  const BpeVocabulary v = train_bpe("ab ab ab abc", 300);
  REQUIRE(v.tokens.size() == 259);
  CHECK(v.tokens[256] == "ab");
  CHECK(v.tokens[257] == " ab");
  CHECK(v.tokens[258] == kEndOfText);
  const auto tokenizer = bpe_tokenizer(v);
  CHECK(tokenizer->kind() == "bpe");
  CHECK(tokenizer->end() == 258);
  CHECK(tokenizer->encode("ab abc") == Ids{256, 257, kC});
  CHECK(tokenizer->encode(" a ab") == Ids{kSpace, kA, 257});
  CHECK(tokenizer->encode("").empty());
  // one merge is asked for
  CHECK(train_bpe("ab ab ab abc", 258).tokens.size() == 258);
  CHECK(train_bpe("", 300).tokens.size() == 257);
  CHECK(message_of<UsageError>([] { train_bpe("ab", 256); }) ==
        "--vocabulary expects at least 257 for bpe (256 bytes and <|endoftext|>), but got 256");
}

TEST_CASE("bpe: ties go to the lower left id, then to the lower right one; equal neighbours overlap") {
  // a+b, c+d and " "+c twice each, " "+a once
  const BpeVocabulary left = train_bpe("ab cd ab cd", 300);
  REQUIRE(left.merges.size() == 3);
  CHECK(left.tokens[256] == "ab");
  CHECK(left.tokens[257] == "cd");
  CHECK(left.tokens[258] == " cd");
  CHECK(left.merges[1].left == kC);
  CHECK(left.merges[1].right == kD);
  CHECK(left.merges[2].left == kSpace);
  const BpeVocabulary right = train_bpe("ac\nab\nac\nab", 300);
  CHECK(right.tokens[256] == "ab");
  CHECK(right.merges[0].right == kB);
  // a+a 6 times, then aa+aa twice
  const auto same = bpe_tokenizer(train_bpe("aaaa aaaa", 300));
  CHECK(same->size() == 259);
  CHECK(same->encode("aaa") == Ids{256, kA});
  CHECK(same->encode("aaaaa") == Ids{257, kA});
}

TEST_CASE("bpe: any bytes come back, and ids are those of the slow way") {
  std::string text = some_words(3, 4000);
  for (int i = 0; i < 300; ++i) text += "abaababaab" + std::to_string(i * i);
  const BpeVocabulary v = train_bpe(text, 900);
  const auto tokenizer = bpe_tokenizer(v);
  Random random(4);
  for (uint64_t round = 0; round < 100; ++round) {
    std::string sample = round % 3 == 0 ? random_bytes(round, 200) : hard_text(round, 80);
    if (round % 3 == 2) {
      sample.clear();
      for (int i = 0; i < 90; ++i) sample += "ab"[random.below(2)];
    }
    const Ids ids = tokenizer->encode(sample);
    CHECK(tokenizer->decode(ids) == sample);
    if (sample.find(kEndOfText) != std::string::npos) continue;
    Ids expected;
    piece_rule(kOwnPattern)->split(sample, [&](std::string_view piece) {
      const Ids part = merged_slowly(v, piece);
      expected.insert(expected.end(), part.begin(), part.end());
    });
    CHECK(ids == expected);
  }
  // a piece of a million bytes takes no time to speak of
  CHECK(tokenizer->decode(tokenizer->encode(std::string(1'000'000, 'a'))).size() == 1'000'000);
  CHECK_THROWS_AS((void)tokenizer->decode(Ids{int32_t(tokenizer->size())}), Error);
  CHECK_THROWS_AS((void)tokenizer->decode(Ids{-1}), Error);
}

TEST_CASE("bpe: <|endoftext|> in a text is the token that ends documents, and prints itself") {
  const auto tokenizer = bpe_tokenizer(train_bpe("ab ab", 300));
  const Ids ids = tokenizer->encode("ab<|endoftext|><|endoftext|");
  CHECK(ids[0] == 256);
  CHECK(ids[1] == tokenizer->end());
  CHECK(std::count(ids.begin(), ids.end(), tokenizer->end()) == 1);
  CHECK(tokenizer->decode(ids) == "ab<|endoftext|><|endoftext|");
}

TEST_CASE("bpe: merges and ids are the same for any number of threads") {
  const std::string text = some_words(5, 400'000) + hard_text(6, 30'000);
  REQUIRE(text.size() > (size_t{2} << 20));
  const int before = thread_count();
  std::vector<std::string> files;
  std::vector<Ids> ids;
  for (const int threads : {1, 2, 3}) {
    set_thread_count(threads);
    const auto tokenizer = bpe_tokenizer(train_bpe(text, 600));
    files.push_back(tokenizer->to_json());
    ids.push_back(tokenizer->encode(text));
  }
  set_thread_count(before);
  CHECK(files[1] == files[0]);
  CHECK(files[2] == files[0]);
  CHECK(ids[1] == ids[0]);
  CHECK(ids[2] == ids[0]);
}

TEST_CASE("pieces: our rule, case by case") {
  const auto rule = piece_rule(kOwnPattern);
  using Pieces = std::vector<std::string>;
  CHECK(pieces_of(*rule, "Don't say 'no', it\u2019s 12345.") == Pieces{"Don't", " say", " '", "no", "',", " it\u2019s", " 123", "45", "."});
  CHECK(pieces_of(*rule, "a  b\n\nc \n d ") == Pieces{"a", " ", " b", "\n\n", "c", " \n", " d", " "});
  CHECK(pieces_of(*rule, "\u201cZo\u00eb\u2026\u201d \u2013 \u65e5\u672c\u3002") ==
        Pieces{"\u201c", "Zo\u00eb", "\u2026\u201d", " \u2013", " \u65e5\u672c", "\u3002"});
  CHECK(pieces_of(*rule, "x_y\xff\xe2\x80 ") == Pieces{"x", "_", "y\xff\xe2\x80", " "});
  CHECK(pieces_of(*rule, "").empty());
}

TEST_CASE("pieces: our code does what the pattern says") {
  if (!have_pcre2()) return skip("built without PCRE2");
  const auto own = piece_rule(kOwnPattern), pattern = pattern_rule(kOwnPattern);
  for (uint64_t seed = 0; seed < 300; ++seed) {
    const std::string text = hard_text(seed, 60);
    CAPTURE(text);
    CHECK(pieces_of(*own, text) == pieces_of(*pattern, text));
  }
}

TEST_CASE("pieces: a cut changes none, and an unknown pattern is not cut") {
  std::vector<PieceRulePointer> rules = {piece_rule(kOwnPattern)};
  for (const char* pattern : {kGpt2Pattern, kDigitsPattern, kLlama3Pattern, kQwen2Pattern})
    if (have_pcre2()) rules.push_back(piece_rule(pattern));
  for (const PieceRulePointer& rule : rules) {
    for (uint64_t seed = 0; seed < 100; ++seed) {
      const std::string text = seed % 2 == 0 ? hard_text(seed, 60) : random_bytes(seed, 100);
      const std::vector<std::string> whole = pieces_of(*rule, text);
      std::string joined;
      for (const std::string& piece : whole) joined += piece;
      CHECK(joined == text);
      for (size_t from = 0; from < text.size(); ++from) {
        const size_t cut = rule->cut(text, from);
        REQUIRE(cut >= from);
        std::vector<std::string> halves = pieces_of(*rule, std::string_view(text).substr(0, cut));
        for (const std::string& piece : pieces_of(*rule, std::string_view(text).substr(cut))) halves.push_back(piece);
        CHECK(halves == whole);
      }
    }
  }
  if (have_pcre2()) CHECK(piece_rule("a b|.")->cut("a b a b a b", 0) == 11);
}

TEST_CASE("pieces: hostile patterns and what PCRE2 cannot read are refused") {
  if (!have_pcre2()) return skip("built without PCRE2");
  const auto refusal = [](const std::string& pattern) { return message_of<Error>([&] { piece_rule(pattern); }); };
  CHECK(contains(refusal("(a"), "the pattern '(a' is not a regular expression of PCRE2: missing closing parenthesis"));
  CHECK(contains(refusal("\\C"), "is not a regular expression"));
  CHECK(contains(refusal(std::string(5000, 'a')), "more than the 4096 allowed"));
  CHECK(!refusal(std::string(300, '(') + std::string(300, ')')).empty());
  const std::string text(5000, 'a');
  const auto failure = [&](const char* pattern) {
    const auto rule = piece_rule(pattern);
    return message_of<Error>([&] { pieces_of(*rule, text + "!"); });
  };
  CHECK(contains(failure("(?:a+)+[bc]"), "fails at byte 0 of a text: match limit exceeded"));
  // what matches nothing leaves the text whole
  CHECK(pieces_of(*piece_rule("x*"), "ab") == std::vector<std::string>{"ab"});
  CHECK(pieces_of(*piece_rule("b"), "abc") == std::vector<std::string>{"a", "b", "c"});
  // the rule of GPT-2 takes a time in proportion to the text, whatever it is
  for (const std::string& hostile : {std::string(1'000'000, ' '), std::string(1'000'000, 'a'), std::string(1'000'000, '!'), std::string(300'000, '\xff')})
    CHECK(pieces_of(*piece_rule(kGpt2Pattern), hostile + "x").size() <= 2);
}

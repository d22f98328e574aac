#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "core/error.h"
#include "tests/bpe_cases.h"
#include "tests/counters.h"
#include "tests/temporary_directory.h"
#include "train/tokenizer_wordpiece.h"
#include "train/unicode.h"

using namespace hedgehog;
using namespace hedgehog::test;

namespace {

using Ids = std::vector<int32_t>;

const std::string kWords = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nun\n##aff\n##able\na\n,\n\u65e5\n##i\n\u03c3\n##\n";

bool have_unicode() {
  try {
    need_unicode();
    return true;
  } catch (const Error&) {
    return skip("built without utf8proc"), false;
  }
}

}  // namespace

TEST_CASE("wordpiece: the longest token first, accents and case gone, punctuation and Chinese writing apart") {
  if (!have_unicode()) return;
  const TemporaryDirectory d;
  const auto tokenizer = load_tokenizer(d.file("vocab.txt", kWords));
  CHECK(tokenizer->kind() == "wordpiece");
  CHECK(tokenizer->frame().before == Ids{2});
  CHECK(tokenizer->frame().after == Ids{3});
  CHECK(tokenizer->end() == 3);
  CHECK(tokenizer->encode("UN\u00e1ffable,a") == Ids{5, 6, 7, 9, 8});
  CHECK(tokenizer->encode("unaff\u65e5a") == Ids{5, 6, 10, 8});
  CHECK(tokenizer->encode("una") == Ids{1});
  CHECK(tokenizer->encode("[MASK]a [mask]") == Ids{4, 8, 1, 1, 1});
  CHECK(tokenizer->encode("A\u0130 \u03a3 a\u0301\u200b\x7f\u00a0a") == Ids{8, 11, 12, 8, 8});
  CHECK(tokenizer->encode("").empty());
  CHECK(tokenizer->encode(" \t\u3000\n").empty());
  // bytes of no character are left out, as U+FFFD is
  CHECK(tokenizer->encode("\xff" "a\xe2\x82 \xc3") == Ids{8});
  CHECK(tokenizer->encode(std::string(101, 'a')) == Ids{1});
  CHECK(tokenizer->decode(Ids{2, 5, 6, 7, 9, 8, 3}) == "[CLS] unaffable , a [SEP]");
  CHECK(contains(message_of<Error>([&] { tokenizer->decode(Ids{14}); }), "token id must be from 0 to 13, but is 14"));
  const auto again = load_tokenizer(d.file("tokenizer.json", tokenizer->to_json()));
  CHECK(again->to_json() == tokenizer->to_json());
  CHECK(make_tokenizer(d.path().string(), "", 0)->size() == 14);
}

TEST_CASE("wordpiece: BERT's uncased vocabulary") {
  const auto file = shared_data() / "bert-uncased/vocab.txt";
  if (!have_unicode()) return;
  if (!std::filesystem::exists(file)) return skip("../shared/data/bert-uncased is not here");
  const auto tokenizer = load_tokenizer(file);
  CHECK(tokenizer->size() == 30522);
  CHECK(tokenizer->frame().before == Ids{101});
  CHECK(tokenizer->frame().after == Ids{102});
  CHECK(tokenizer->encode("Hello, world!") == Ids{7592, 1010, 2088, 999});
  CHECK(tokenizer->decode(tokenizer->encode("unaffable")) == "unaffable");
}

TEST_CASE("wordpiece: damage in a list of words is named") {
  if (!have_unicode()) return;
  const TemporaryDirectory d;
  const auto refusal = [&](const std::string& content) {
    return message_of<FileError>([&] { load_tokenizer(d.file("vocab.txt", content)); });
  };
  CHECK(refusal(kWords).empty());
  CHECK(contains(refusal(""), "no line is [UNK]"));
  CHECK(contains(refusal("[UNK]\n[CLS]\n"), "no line is [SEP]"));
  CHECK(contains(refusal(kWords + "\na\n"), "line 15 is empty"));
  CHECK(contains(refusal(kWords + "##i"), "tokens 11 and 14 are both '##i'"));
  CHECK(contains(refusal(kWords + "\xff"), "token 14 ('\uFFFD') is empty or no UTF-8"));
}

TEST_CASE("wordpiece: a vocabulary made in code is checked") {
  if (!have_unicode()) return;
  const auto refusal = [](auto&& change) {
    WordPieceVocabulary v;
    v.tokens = {"[UNK]", "a"};
    change(v);
    return message_of<Error>([&] { wordpiece_tokenizer(v); });
  };
  CHECK(refusal([](auto&) {}).empty());
  CHECK(contains(refusal([](auto& v) { v.unknown = 2; }), "the unknown token must be from 0 to 1, but is 2"));
  CHECK(contains(refusal([](auto& v) { v.added = {{-1}}; }), "added token must be from 0 to 1, but is -1"));
  CHECK(contains(refusal([](auto& v) { v.added = {{.id = 1, .normalized = true}}; }), "found as normalized"));
  CHECK(contains(refusal([](auto& v) { v.frame.before = {7}; }), "the frame's token must be"));
  CHECK(contains(refusal([](auto& v) { v.longest_word = 0; }), "the longest word has 0 characters"));
  CHECK(contains(refusal([](auto& v) { v.tokens.clear(); }), "the unknown token must be from 0 to -1"));
}

TEST_CASE("unicode: normal forms") {
  if (!have_unicode()) return;
  CHECK(composed("e\u0301\xff\u0301 a\u0323\u0307") == "\u00e9\xff\u0301 \u1ea1\u0307");
  CHECK(composed("\xe1\x84\x92\xe1\x85\xa1\xe1\x86\xab") == "\ud55c");
  CHECK(decomposed(U"\u1e69\u0323") == U"s\u0323\u0323\u0307");
  CHECK(decomposed(U"\ud55c") == U"\u1112\u1161\u11ab");
}

#include <doctest/doctest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "core/error.h"
#include "tests/bpe_cases.h"
#include "tests/cli_cases.h"
#include "tests/temporary_directory.h"
#include "train/tokenizer_bpe.h"

using namespace hedgehog;
using namespace hedgehog::test;

namespace {

/// A text with one place replaced, which must be there.
std::string replaced(std::string text, const std::string& from, const std::string& to) {
  const size_t place = text.find(from);
  REQUIRE_MESSAGE(place != std::string::npos, from);
  return text.replace(place, from.size(), to);
}

/// A tokenizer.json with tokens "ab" (256), " ab" (257), <|endoftext|> (258).
std::string small_json() { return bpe_json(train_bpe("ab ab ab abc", 300)); }

/// encoder.json with the 256 bytes, "ab" (256) and <|endoftext|> (257).
std::string small_encoder() {
  std::string json = "{";
  for (size_t id = 0; id < 256; ++id) {
    const std::string token = visible_bytes(std::string(1, char(gpt2_byte_order()[id])));
    json += (token == "\"" || token == "\\" ? "\"\\" : "\"") + token + "\": " + std::to_string(id) + ", ";
  }
  return json + "\"ab\": 256, \"<|endoftext|>\": 257}";
}

std::string refusal_of(const TemporaryDirectory& d, const std::string& content) {
  const auto path = d.file("tokenizer.json", content);
  const std::string message = message_of<FileError>([&] { load_tokenizer(path); });
  CHECK(contains(message, path.string()));
  CHECK(message.find('\n') == std::string::npos);
  return message;
}

}  // namespace

TEST_CASE("bpe files: visible bytes and back") {
  CHECK(visible_bytes(" a\n\xff") == "\u0120a\u010a\u00ff");
  std::string bytes;
  for (const uint8_t byte : gpt2_byte_order()) bytes += char(byte);
  CHECK(bytes.substr(0, 3) == "!\"#");
  CHECK(bytes.substr(188, 3) == std::string("\0\1\2", 3));
  CHECK(bytes_of_visible(visible_bytes(bytes)) == bytes);
  CHECK(message_of<Error>([] { bytes_of_visible("a b"); }) == "' ' stands for no byte");
  CHECK(contains(message_of<Error>([] { bytes_of_visible("\u65e5"); }), "stands for no byte"));
  CHECK(contains(message_of<Error>([] { bytes_of_visible("\xff"); }), "stands for no byte"));
}

TEST_CASE("bpe files: tokenizer.json comes back as it was, and in the forms that Hugging Face writes") {
  const TemporaryDirectory d;
  const std::string json = small_json(), text = "ab abc<|endoftext|> \xff";
  const auto tokenizer = load_tokenizer(d.file("tokenizer.json", json));
  CHECK(tokenizer->kind() == "bpe");
  CHECK(tokenizer->to_json() == json);
  CHECK(tokenizer->decode(tokenizer->encode(text)) == text);
  const auto same = [&](const std::string& from, const std::string& to) {
    const auto other = load_tokenizer(d.file("tokenizer.json", replaced(json, from, to)));
    CHECK(other->encode(text) == tokenizer->encode(text));
    CHECK(other->end() == 258);
  };
  same("\"a b\"", "[\"a\", \"b\"]");
  same("\"type\": \"BPE\", ", "");
  same("\"continuing_subword_prefix\": null", "\"continuing_subword_prefix\": \"\"");
  same("\"post_processor\": null", "\"post_processor\": {\"type\": \"ByteLevel\", \"add_prefix_space\": true}");
  // an added token need not be in the vocabulary too
  same(",\n   \"<|endoftext|>\": 258", "");
  const auto longer = load_tokenizer(d.file(
      "tokenizer.json", replaced(json, "\"added_tokens\": [", "\"added_tokens\": [{\"id\": 259, \"content\": \"<|endoftext|>>\", \"special\": false},")));
  CHECK(longer->encode("<|endoftext|>>a") == std::vector<int32_t>{259, 64});
  CHECK(longer->encode("<|endoftext|>a") == std::vector<int32_t>{258, 64});
}

TEST_CASE("bpe files: damage in a tokenizer.json is named") {
  const TemporaryDirectory d;
  const std::string json = small_json();
  const auto refusal = [&](const std::string& from, const std::string& to) { return refusal_of(d, replaced(json, from, to)); };
  CHECK(contains(refusal_of(d, json.substr(0, json.size() / 2)), "not JSON at byte"));
  CHECK(contains(refusal("\"ab\": 256", "\"a\xff\": 256"), "not JSON at byte"));
  CHECK(contains(refusal("\"ab\": 256", "\"ab\": 1e999"), "number beyond all bounds"));
  CHECK(contains(refusal("\"ab\": 256", "\"ab\": 256, \"ab\": 259"), "'ab' is there twice"));
  CHECK(contains(refusal("\"ab\": 256", "\"ab\": 257"), "both have the id 257"));
  CHECK(contains(refusal("\"ab\": 256", "\"ab\": 259"), "field 'model.vocab': the id of 'ab' is 259, but there are 259 tokens"));
  for (const char* id : {"-1", "1.5", "\"1\"", "16777216", "18446744073709551616", "null"})
    CHECK(contains(refusal("\"ab\": 256", "\"ab\": " + std::string(id)), "the id of 'ab' is not a whole number from 0 to 16777215"));
  CHECK(contains(refusal("\"ab\": 256", "\"\u65e5\": 256"), "'ab' is not in the vocabulary"));
  CHECK(contains(refusal("\"ab\": 256", "\"ab\": 256, \"\u65e5\": 259"), "token 259 ('\u65e5'): '\u65e5' stands for no byte"));
  CHECK(contains(refusal("\"ab\": 256", "\"ab\": 256, \"cc\": 259"), "token 259 ('cc') is made by no merge; are merges missing?"));
  CHECK(contains(refusal("\"b\": 65", "\"ba\": 65"), "'b' is not in the vocabulary"));
  CHECK(contains(refusal("\"z\": 89", "\"ba\": 89"), "token 89 ('ba') is made by no merge"));
  CHECK(contains(refusal("\"a b\"", "\"a x\""), "field 'model.merges' item 0: 'ax' is not in the vocabulary"));
  CHECK(contains(refusal("\"a b\"", "\"a yy\""), "field 'model.merges' item 0: 'yy' is not in the vocabulary"));
  for (const char* merge : {"\"ab\"", "\"a b c\"", "7", "[\"a\"]", "[\"a\", 1]"})
    CHECK(contains(refusal("\"a b\"", merge), "field 'model.merges' item 0 is not two tokens"));
  CHECK(contains(refusal("\"a b\"", "\"a b\", \"a b\""), "merge 1 of 'a' and 'b' is there twice"));
  CHECK(contains(refusal("\"\u0120 ab\"", "\"\u0120a b\""), "item 1: '\u0120a' is not in the vocabulary"));
  CHECK(contains(refusal("\"merges\"", "\"margins\""), "field 'model.merges' is not a list"));
  CHECK(contains(refusal("\"vocab\"", "\"vacob\""), "field 'model.vocab' is not an object"));
  CHECK(contains(refusal("\"content\": \"<|endoftext|>\"", "\"content\": \"\""), "has an empty text"));
  CHECK(contains(refusal("\"content\": \"<|endoftext|>\"", "\"content\": 1"), "item without 'content'"));
  CHECK(contains(refusal("{\"id\": 258", "{\"id\": 25"), "gives '<|endoftext|>' the id 25, but the vocabulary 258"));
  CHECK(contains(refusal("\"added_tokens\": [", "\"added_tokens\": 3, \"rest\": ["), "field 'added_tokens' is not a list"));
}

TEST_CASE("bpe files: what is not supported is named, with what is") {
  const TemporaryDirectory d;
  const std::string json = small_json();
  const auto refusal = [&](const std::string& from, const std::string& to) { return refusal_of(d, replaced(json, from, to)); };
  CHECK(contains(refusal("\"normalizer\": null", "\"normalizer\": {\"type\": \"NFD\"}"),
                 "field 'normalizer' is type \"NFD\", but what is supported is null or NFC"));
  CHECK(contains(refusal("\"type\": \"Sequence\"", "\"type\": \"Metaspace\""),
                 "field 'pre_tokenizer' is type \"Metaspace\", but what is supported is ByteLevel, or a Sequence of one Split"));
  CHECK(contains(refusal("\"type\": \"Split\"", "\"type\": \"Punctuation\""), "field 'pre_tokenizer.pretokenizers[0]' is type \"Punctuation\""));
  CHECK(contains(refusal("\"type\": \"Split\"", "\"type\": \"Digits\""), "pretokenizers[1].use_regex' is false, but what is supported is true after Digits"));
  CHECK(contains(refusal("\"Isolated\"", "\"Removed\""), "pretokenizers[0].behavior' is \"Removed\", but what is supported is \"Isolated\""));
  CHECK(contains(refusal("\"invert\": false", "\"invert\": true"), "pretokenizers[0].invert' is true"));
  CHECK(contains(refusal("\"Regex\"", "\"String\""), "pretokenizers[0].pattern' is {"));
  CHECK(contains(refusal("\"add_prefix_space\": false", "\"add_prefix_space\": true"), "add_prefix_space' is true, but what is supported is false"));
  CHECK(contains(refusal("\"use_regex\": false", "\"use_regex\": true"), "use_regex' is true"));
  CHECK(contains(refusal("\"post_processor\": null", "\"post_processor\": {\"type\": \"TemplateProcessing\"}"), "field 'post_processor.single' is null"));
  CHECK(contains(refusal("\"decoder\": {\"type\": \"ByteLevel\"", "\"decoder\": {\"type\": \"WordPiece\""), "field 'decoder' is type \"WordPiece\""));
  CHECK(contains(refusal("\"type\": \"BPE\"", "\"type\": \"Unigram\""), "field 'model' is type \"Unigram\", but what is supported is BPE"));
  CHECK(contains(refusal("\"dropout\": null", "\"dropout\": 0.1"), "field 'model.dropout' is 0.1"));
  CHECK(contains(refusal("\"ignore_merges\": false", "\"ignore_merges\": 1"), "field 'model.ignore_merges' is 1, but what is supported is true or false"));
  CHECK(contains(refusal("\"end_of_word_suffix\": null", "\"end_of_word_suffix\": \"</w>\""), "field 'model.end_of_word_suffix' is \"</w>\""));
  CHECK(contains(refusal("\"single_word\": false", "\"single_word\": true"), "field 'added_tokens[0].single_word' is true"));
  CHECK(contains(refusal("\"lstrip\": false", "\"lstrip\": 1"), "field 'added_tokens[0].lstrip' is 1, but what is supported is true or false"));
  CHECK(contains(refusal("\"truncation\": null", "\"truncation\": {\"max_length\": 5}"), "field 'truncation' is"));
  CHECK(contains(refusal("\"normalizer\": null", "\"normalizer\": [[[[[[[[1]]]]]]]]"), "nested deeper than 8 levels"));
}

TEST_CASE("bpe files: two files, and damage in them") {
  const TemporaryDirectory d;
  const auto load = [&](const std::string& encoder, const std::string& merges) {
    return read_bpe_files(d.file("encoder.json", encoder), d.file("vocab.bpe", merges));
  };
  const std::string encoder = small_encoder();
  for (const char* merges : {"#version: 0.2\na b\n", "a b", "a b\r\n\n"}) {
    const BpeVocabulary v = load(encoder, merges);
    CHECK(v.tokens.size() == 258);
    CHECK(v.tokens[256] == "ab");
    CHECK(v.merges.size() == 1);
    CHECK(v.added.size() == 1);
    CHECK(v.pattern == kGpt2Pattern);
  }
  const auto refusal = [&](const std::string& first, const std::string& second) {
    return message_of<FileError>([&] { bpe_tokenizer_of(d / "encoder.json", load(first, second)); });
  };
  CHECK(contains(refusal(encoder, "#version: 0.2\na b c\n"), "line 2 of '" + (d / "vocab.bpe").string() + "' is not two tokens"));
  CHECK(contains(refusal(encoder, "a \xff\n"), "line 1 of"));
  CHECK(contains(refusal(encoder, ""), "token 256 ('ab') is made by no merge; are merges missing?"));
  CHECK(contains(refusal(encoder, "a b\na b\n"), "merge 1 of 'a' and 'b' is there twice"));
  CHECK(contains(refusal(encoder, "a b\nx q\n"), "'xq' is not in the vocabulary"));
  CHECK(contains(refusal(encoder.substr(0, 900), "a b\n"), "not JSON at byte"));
  CHECK(contains(refusal("{}", ""), "a vocabulary has 1 to"));
  CHECK(contains(refusal("{\"a\": [1]}", ""), "nested deeper than 1 levels"));
  CHECK(contains(refusal(replaced(encoder, "256", "300"), "a b\n"), "the id of 'ab' is 300, but there are 258 tokens"));
  d.file("encoder.json", encoder);
  std::filesystem::remove(d / "vocab.bpe");
  CHECK(contains(message_of<FileError>([&] { make_tokenizer(d.path().string(), "", 0); }), "vocab.bpe': No such file"));
  std::filesystem::remove(d / "encoder.json");
  CHECK(contains(message_of<FileError>([&] { make_tokenizer(d.path().string(), "", 0); }), "holds no tokenizer.json, nor encoder.json"));
}

TEST_CASE("bpe files: a vocabulary made in code is checked as a file's is") {
  const BpeVocabulary good = train_bpe("ab ab ab abc", 300);
  const auto refusal = [&](auto&& change) {
    BpeVocabulary v = good;
    change(v);
    return message_of<Error>([&] { bpe_tokenizer(v); });
  };
  CHECK(refusal([](BpeVocabulary&) {}).empty());
  CHECK(contains(refusal([](BpeVocabulary& v) { v.merges[0].left = 999; }), "merge 0 has an id out of range"));
  CHECK(contains(refusal([](BpeVocabulary& v) { v.merges[0].merged = -1; }), "merge 0 has an id out of range"));
  CHECK(contains(refusal([](BpeVocabulary& v) { v.merges[0].merged = 257; }), "merge 0 of 'a' and 'b' makes '\u0120ab'"));
  CHECK(contains(refusal([](BpeVocabulary& v) { v.added[0].id = 259; }), "added token 259 is out of range"));
  CHECK(contains(refusal([](BpeVocabulary& v) { v.tokens[3].clear(); }), "token 3 is empty"));
  CHECK(contains(refusal([](BpeVocabulary& v) { v.tokens[3] = "!"; }), "tokens 0 and 3 are both '!'"));
}

TEST_CASE("bpe files: mutated files give an error or a tokenizer, never anything else") {
  const TemporaryDirectory d;
  const std::string whole = small_json();
  Random random(9);
  int accepted = 0;
  for (int round = 0; round < 300; ++round) {
    std::string content = whole;
    for (int change = 0; change < 2; ++change) content[random.below(content.size())] = char(random.below(256));
    if (round % 10 == 0) content.resize(random.below(content.size()));
    try {
      const auto tokenizer = load_tokenizer(d.file("tokenizer.json", content));
      CHECK(tokenizer->decode(tokenizer->encode("ab abc \xff")) == "ab abc \xff");
      ++accepted;
    } catch (const FileError&) {
    }
  }
  CHECK(accepted < 150);
}

TEST_CASE("cli: bpe from a text to a model, its samples and a resumed run") {
  const TemporaryDirectory d;
  d.file("text.txt", some_text() + "\n<|endoftext|>\n" + some_text());
  const std::string at = d.path().string();
  const std::string train = std::string("train --data=text.txt ") + kSmall;
  REQUIRE(run_program(train + "--tokenizer=bpe --vocabulary=300 --out=whole", at).code == 0);
  REQUIRE(run_program(train + "--tokenizer=bpe --vocabulary=300 --out=parts --stop_at=4", at).code == 0);
  CHECK(contains(bytes_of(d / "parts/last/tokenizer.json"), "\"type\": \"BPE\""));
  REQUIRE(run_program("train --quiet --resume=parts", at).code == 0);
  CHECK(bytes_of(d / "parts/last/model.safetensors") == bytes_of(d / "whole/last/model.safetensors"));
  const ProgramResult sample = run_program("sample --checkpoint=whole --tokens=20 --prompt='the hedgehog'", at);
  CHECK(sample.code == 0);
  CHECK(sample.output.starts_with("the hedgehog"));
  CHECK(run_program("sample --checkpoint=whole --tokens=20", at).code == 0);
  CHECK(run_program("eval --checkpoint=whole", at).code == 0);
  CHECK(contains(run_program("info --checkpoint=whole", at).output, "(bpe)"));
}

TEST_CASE("cli: prepare learns bpe tokens that train takes, and mistakes are named") {
  const TemporaryDirectory d;
  d.file("text.txt", some_text() + "\n<|endoftext|>\n" + some_text());
  const std::string at = d.path().string();
  const std::string train = std::string("train --data=text.txt ") + kSmall;
  const ProgramResult prepared = run_program("prepare --data=text.txt --vocabulary=300 --out=tokens", at);
  CAPTURE(prepared.output);
  CHECK(prepared.code == 0);
  CHECK(contains(prepared.output, "--tokenizer=tokens"));
  CHECK(contains(prepared.output, "2 documents"));
  CHECK(run_program(train + "--tokenizer=tokens --out=again", at).code == 0);
  check_refused(run_program("prepare --data=text.txt", at), 2, {"prepare needs --out"});
  check_refused(run_program("prepare --out=x", at), 2, {"prepare needs --data"});
  check_refused(run_program("prepare --data=text.txt --out=x --vocabulary=100", at), 2, {"--vocabulary expects at least 257 for bpe"});
  check_refused(run_program(train + "--tokenizer=bep", at), 2, {"'bep'; did you mean bpe?"});
  d.file("broken/tokenizer.json", "{\"model\": 1}");
  check_refused(run_program(train + "--tokenizer=broken", at), 3, {"broken/tokenizer.json", "field 'pre_tokenizer' is null"});
}

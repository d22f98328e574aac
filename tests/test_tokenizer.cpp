#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "core/error.h"
#include "tests/temporary_directory.h"
#include "train/tokenizer.h"
#include "train/utf8.h"

using namespace hedgehog;

namespace {

std::string round_trip(const Tokenizer& tokenizer, const std::string& text) {
  return tokenizer.decode(tokenizer.encode(text));
}

TokenizerPointer reloaded(const TokenizerPointer& tokenizer) {
  TemporaryDirectory directory;
  save_tokenizer(*tokenizer, directory / "tokenizer.json");
  return load_tokenizer(directory / "tokenizer.json");
}

std::string all_bytes() {
  std::string text;
  for (int byte = 0; byte < 256; ++byte) text += char(byte);
  return text;
}

const std::vector<std::string> kStoryWords = {"<end>", ".",    "?",    ",",    "mia", "likes",
                                              "tea",   "what", "does", "like", "\n"};

}  // namespace

TEST_CASE("byte tokenizer: ids are the bytes, any text comes back") {
  const auto tokenizer = byte_tokenizer();
  CHECK(tokenizer->kind() == "byte");
  CHECK(tokenizer->size() == 256);
  CHECK(tokenizer->end() == -1);
  CHECK(tokenizer->encode("A\xff") == std::vector<int32_t>{65, 255});
  CHECK(round_trip(*tokenizer, all_bytes()) == all_bytes());
  CHECK(round_trip(*reloaded(tokenizer), all_bytes()) == all_bytes());
  CHECK(message_of<Error>([&] { (void)tokenizer->decode(std::vector<int32_t>{256}); }) ==
        "[tokenizer] token id must be from 0 to 255, but is 256");
  CHECK_THROWS_AS((void)tokenizer->decode(std::vector<int32_t>{-1}), Error);
}

TEST_CASE("char tokenizer: the distinct bytes in order, and nothing else") {
  const auto tokenizer = char_tokenizer("hello\n");
  CHECK(tokenizer->size() == 5);
  CHECK(tokenizer->encode("\nehlo") == std::vector<int32_t>{0, 1, 2, 3, 4});
  CHECK(round_trip(*reloaded(tokenizer), "hole") == "hole");
  CHECK(message_of<UsageError>([&] { (void)tokenizer->encode("hé"); }) ==
        "[tokenizer] 'é' at byte 1 is not among the 5 characters of the training text");
  CHECK_THROWS_AS(char_tokenizer(""), FileError);
  const auto everything = char_tokenizer(all_bytes());
  CHECK(round_trip(*reloaded(everything), all_bytes()) == all_bytes());
}

TEST_CASE("word tokenizer: known text comes back byte for byte") {
  const std::string text =
      "The cat's  hat, (the hat!) – said Zoë.\n\n\tDon't 'quote' 3.14\n\u201cYes\u201d it\u2019s \xff end ";
  const auto tokenizer = word_tokenizer(text, 1000);
  CHECK(tokenizer->kind() == "word");
  CHECK(tokenizer->end() == 1);
  // a byte that belongs to no character cannot be a token
  std::string expected = text;
  expected.replace(expected.find(" \xff"), 2, " <unk>");
  CHECK(round_trip(*tokenizer, text) == expected);
  CHECK(round_trip(*reloaded(tokenizer), text) == expected);
  CHECK(tokenizer->encode("The cat's hat").size() == 3);
  CHECK(tokenizer->encode("hats").front() == 0);
  CHECK(round_trip(*tokenizer, "The dog") == "The <unk>");
  CHECK(tokenizer->encode("").empty());
}

TEST_CASE("word tokenizer: the most frequent pieces stay, ties by byte order") {
  const auto tokenizer = word_tokenizer("b b b a a c d", 5);
  CHECK(tokenizer->size() == 5);
  // " b" twice (the first b has no space), " a" twice, then the once-seen " c" before " d" before "b"
  CHECK(tokenizer->decode(std::vector<int32_t>{2}) == " a");
  CHECK(tokenizer->decode(std::vector<int32_t>{3}) == " b");
  CHECK(tokenizer->decode(std::vector<int32_t>{4}) == " c");
  CHECK(message_of<UsageError>([] { word_tokenizer("a", 2); }) ==
        "--vocabulary expects a whole number of at least 3, but got 2");
}

TEST_CASE("story tokenizer: normal writing in and out") {
  const auto tokenizer = story_tokenizer(kStoryWords, {"mia"});
  const std::string text = "Mia likes tea. What does Mia like?\nMia likes tea, tea.";
  CHECK(tokenizer->decode(tokenizer->encode("mia likes tea . what does mia like ?\nMIA likes tea , tea .")) == text);
  CHECK(round_trip(*reloaded(tokenizer), text) == text);
  CHECK(tokenizer->end() == 0);
  CHECK(tokenizer->encode("<end>tea") == std::vector<int32_t>{0, 6});
  CHECK(tokenizer->decode(std::vector<int32_t>{6, 0}) == "Tea");
  CHECK(message_of<UsageError>([&] { (void)tokenizer->encode("mia likse tea"); }) ==
        "[tokenizer] 'likse' is not among the 11 words of the stories; did you mean 'likes'?");
  // punctuation is never what was meant
  CHECK(message_of<UsageError>([&] { (void)tokenizer->encode("mia likes 7"); }) ==
        "[tokenizer] '7' is not among the 11 words of the stories");
  CHECK_THROWS_AS(story_tokenizer({"a", "a"}), Error);
  CHECK_THROWS_AS(story_tokenizer({}), Error);
  CHECK_THROWS_AS(story_tokenizer({"a"}, {"b"}), Error);
}

TEST_CASE("tokenizer.json: damage is named") {
  TemporaryDirectory directory;
  const auto refusal = [&](const std::string& content) {
    const auto path = directory.file("tokenizer.json", content);
    const std::string message = message_of<FileError>([&] { load_tokenizer(path); });
    CHECK(contains(message, path.string()));
    return message;
  };
  const std::string head = R"({"hedgehog":"tokenizer","version":1,"type":)";
  CHECK(contains(refusal(""), "not JSON at byte"));
  CHECK(contains(refusal("{\"a\":[[[[[[[[1]]]]]]]]}"), "nested deeper than 8 levels"));
  CHECK(contains(refusal("[]"), "not an object"));
  CHECK(contains(refusal("{}"), "field 'hedgehog' is not a string"));
  CHECK(contains(refusal(R"({"hedgehog":"model","version":1,"type":"byte"})"), "not one of ours"));
  CHECK(contains(refusal(R"({"hedgehog":"tokenizer","version":2,"type":"byte"})"), "field 'version' is not 1"));
  CHECK(contains(refusal(head + "\"bpe\"}"), "field 'type' is 'bpe'"));
  CHECK(contains(refusal(head + "\"char\"}"), "field 'bytes' is not a list"));
  CHECK(contains(refusal(head + "\"char\",\"bytes\":[]}"), "field 'bytes' is empty"));
  CHECK(contains(refusal(head + "\"char\",\"bytes\":[1,1]}"), "item 1 is not an ascending number"));
  CHECK(contains(refusal(head + "\"char\",\"bytes\":[256]}"), "item 0 is not an ascending number"));
  CHECK(contains(refusal(head + "\"char\",\"bytes\":[\"a\"]}"), "item 0 is not an ascending number"));
  CHECK(contains(refusal(head + "\"word\",\"tokens\":[\"a\"]}"), "begins with <unk> and <end>"));
  CHECK(contains(refusal(head + "\"word\",\"tokens\":[\"<unk>\",\"<end>\",3]}"), "item 2 is not a string"));
  CHECK(contains(refusal(head + "\"word\",\"tokens\":[\"<unk>\",\"<end>\",\"a\",\"a\"]}"), "listed twice"));
  CHECK(contains(refusal(head + "\"word\",\"tokens\":[\"<unk>\",\"<end>\",\"\"]}"), "token 2 is empty"));
  CHECK(contains(refusal(head + "\"story\",\"tokens\":[\"a\"],\"names\":[\"b\"]}"), "name 'b' is not among the words"));
  CHECK(contains(message_of<FileError>([&] { load_tokenizer(directory / "absent.json"); }), "No such file"));
}

TEST_CASE("tokenizer.json: mutated files give an error or a tokenizer, never anything else") {
  TemporaryDirectory directory;
  const std::string whole = word_tokenizer("some words and some more words", 20)->to_json();
  uint64_t random = 7;
  int accepted = 0;
  for (int round = 0; round < 500; ++round) {
    std::string content = whole;
    for (int change = 0; change < 2; ++change) {
      random = random * 6364136223846793005u + 1442695040888963407u;
      content[(random >> 33) % content.size()] = char(random >> 25);
    }
    try {
      const auto tokenizer = load_tokenizer(directory.file("tokenizer.json", content));
      (void)tokenizer->decode(tokenizer->encode("some words"));
      ++accepted;
    } catch (const FileError&) {
    }
  }
  CHECK(accepted < 500);
}

TEST_CASE("make_tokenizer: names, directories, and the nearest name for anything else") {
  TemporaryDirectory directory;
  CHECK(make_tokenizer("byte", "", 10)->kind() == "byte");
  CHECK(make_tokenizer("char", "ab", 10)->size() == 2);
  CHECK(make_tokenizer("word", "a b a b", 4)->size() == 4);
  save_tokenizer(*char_tokenizer("xyz"), directory / "tokenizer.json");
  CHECK(make_tokenizer(directory.path().string(), "", 10)->size() == 3);
  CHECK(contains(message_of<UsageError>([] { make_tokenizer("wrod", "", 10); }), "got 'wrod'; did you mean word?"));
}

TEST_CASE("utf8: valid, cut and invalid sequences") {
  using Kind = Utf8Step::Kind;
  const auto kind = [](const std::string& text) { return utf8_step(text, 0).kind; };
  for (const char* valid :
       {"a", "\x7f", "\u00e9", "\u20ac", "\U0001f994", "\xf4\x8f\xbf\xbf", "\xed\x9f\xbf", "\xee\x80\x80"}) {
    CAPTURE(valid);
    CHECK(kind(valid) == Kind::kCharacter);
    CHECK(utf8_step(valid, 0).bytes == std::string(valid).size());
    const std::string cut = std::string(valid).substr(0, std::string(valid).size() - 1);
    if (!cut.empty()) CHECK(kind(cut) == Kind::kIncomplete);
  }
  // overlong, surrogate, beyond U+10FFFF, stray continuation, broken sequence
  for (const char* invalid : {"\xc0\xaf", "\xc1\xbf", "\xe0\x9f\xbf", "\xed\xa0\x80", "\xf0\x8f\xbf\xbf",
                              "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\x80", "\xff", "\xc3(", "\xe2\x82("}) {
    CAPTURE(invalid);
    CHECK(kind(invalid) == Kind::kInvalid);
  }
  CHECK(valid_utf8("a\xff\u00e9\xe2\x82") == "a\uFFFD\u00e9\uFFFD");
  CHECK(invalid_utf8_bytes("a\xff\u00e9\xe2\x82") == 1);
  CHECK(utf8_length("\u00e9\u20ac") == 2);
}

TEST_CASE("streaming: characters come whole, broken ones as U+FFFD, and all text is the same as decoded at once") {
  const std::string text = "h\u00e9\u20ac\U0001f994!";
  const auto tokenizer = byte_tokenizer();
  StreamingDecoder decoder(tokenizer);
  std::string streamed;
  for (const int32_t id : tokenizer->encode(text)) {
    const std::string part = decoder.push(id);
    CHECK(invalid_utf8_bytes(part) == 0);
    CHECK(valid_utf8(part) == part);
    streamed += part;
  }
  CHECK(streamed + decoder.finish() == text);

  StreamingDecoder broken(tokenizer);
  CHECK(broken.push(0xe2) == "");
  CHECK(broken.push('a') == "\uFFFDa");
  CHECK(broken.push(0xe2) == "");
  CHECK(broken.finish() == "\uFFFD");
  CHECK(broken.finish() == "");

  const auto story = story_tokenizer(kStoryWords, {"mia"});
  StreamingDecoder story_decoder(story);
  story_decoder.skip(story->encode("what does mia like ?"));
  std::string answer;
  for (int round = 0; round < 200; ++round) {
    for (const int32_t id : story->encode("mia likes tea .")) answer += story_decoder.push(id);
  }
  CHECK(answer.substr(0, 31) == " Mia likes tea. Mia likes tea. ");
  CHECK(answer.size() == 200 * 15);
}

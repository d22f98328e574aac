#include <doctest/doctest.h>

#include <cstring>
#include <filesystem>

#include "core/error.h"
#include "tests/bpe_cases.h"
#include "tests/cli_cases.h"
#include "train/safetensors.h"
#include "train/token_shards.h"

namespace hedgehog {

using namespace test;

namespace {

TextSource documents() {
  TextSource text;
  text.text = some_text();
  text.document_starts = {0, 100, 2000, text.text.size() - 200};
  text.name = "walks";
  return text;
}

void check_same(const TokenDataset& a, const TokenDataset& b) {
  const auto same = [](const TokenStream& left, const TokenStream& right) {
    CHECK(left.tokens == right.tokens);
    CHECK(left.document_starts == right.document_starts);
  };
  same(a.training_stream(), b.training_stream());
  same(a.validation_stream(), b.validation_stream());
}

/// What reading a shard says after `change` has had its tokens, document starts and metadata.
struct Shard {
  std::vector<std::uint16_t> tokens;
  std::vector<std::int64_t> starts;
  std::map<std::string, std::string> metadata;
};

template <class Change>
std::string refusal(const std::filesystem::path& file, Change&& change) {
  const std::string good = bytes_of(file);
  {
    Shard shard;
    {
      const SafetensorsFile whole(file);
      shard.metadata = whole.metadata();
      const TensorRecord& tokens = whole.get("tokens");
      const TensorRecord& starts = whole.get("document_starts");
      shard.tokens.resize(std::size_t(tokens.shape[0]));
      shard.starts.resize(std::size_t(starts.shape[0]));
      std::memcpy(shard.tokens.data(), tokens.data, tokens.bytes);
      std::memcpy(shard.starts.data(), starts.data, starts.bytes);
    }
    change(shard);
    const TensorRecord records[] = {
        {"tokens", "U16", {std::int64_t(shard.tokens.size())}, shard.tokens.data(), 2 * shard.tokens.size()},
        {"document_starts", "I64", {std::int64_t(shard.starts.size())}, shard.starts.data(), 8 * shard.starts.size()}};
    write_safetensors(file, records, shard.metadata);
  }
  const std::string message = message_of<FileError>([&] { read_token_shards(file.parent_path()); });
  std::ofstream(file, std::ios::binary) << good;
  return message;
}

std::string read_refusal(const std::filesystem::path& directory, const TokenizerPointer& tokenizer = {}) {
  return message_of<FileError>([&] { read_token_shards(directory, tokenizer); });
}

}  // namespace

TEST_CASE("token shards: what comes back is what the text gives, with every tokenizer and any size of shards") {
  const TextSource text = documents();
  for (const char* kind : {"byte", "char", "word", "bpe"}) {
    for (const std::int64_t size : {std::int64_t(97), kTokensPerShard}) {
      CAPTURE(kind);
      CAPTURE(size);
      const TemporaryDirectory d;
      const TokenizerPointer tokenizer = make_tokenizer(kind, text.text, 300);
      CHECK_FALSE(holds_token_shards(d.path().string()));
      const TokenDataset expected = TokenDataset::from_text(text, *tokenizer);
      const std::int64_t count = write_token_shards(d / "shards", text, *tokenizer, size);
      CHECK(count == std::int64_t(expected.train().size() + expected.validation().size()));
      CHECK(holds_token_shards((d / "shards").string()));
      CHECK(std::filesystem::exists(d / "shards/tokens-00001-of-00002.safetensors") == (size < count && count <= 2 * size));
      TokenShards shards = read_token_shards(d / "shards");
      CHECK(shards.tokenizer->to_json() == tokenizer->to_json());
      CHECK(shards.name == "walks");
      CHECK(shards.text_bytes == std::int64_t(text.text.size()));
      CHECK(read_token_shards(d / "shards", tokenizer).fingerprint == shards.fingerprint);
      check_same(std::move(shards).parts(), expected);
    }
  }
}

TEST_CASE("token shards: the fingerprint is of tokens, starts and split, wherever shards are cut") {
  const TemporaryDirectory d;
  TextSource text = documents();
  const auto fingerprint = [&](const char* name, std::int64_t size) {
    write_token_shards(d / name, text, *byte_tokenizer(), size);
    return read_token_shards(d / name).fingerprint;
  };
  const std::string whole = fingerprint("whole", kTokensPerShard);
  CHECK(fingerprint("small", 1000) == whole);
  CHECK(fingerprint("odd", 1777) == whole);
  text.document_starts[1] += 1;
  CHECK(fingerprint("start", 1000) != whole);
  text.document_starts[1] -= 1, text.text[500] ^= 1;
  CHECK(fingerprint("token", 1000) != whole);
}

TEST_CASE("token shards: a directory without shards, or that is none, is refused with its name") {
  const TemporaryDirectory d;
  std::filesystem::create_directory(d / "empty");
  d.file("empty/tokenizer.json", byte_tokenizer()->to_json());
  CHECK(contains(read_refusal(d / "empty", byte_tokenizer()), "empty' holds no token shards"));
  CHECK(contains(read_refusal(d / "nowhere", byte_tokenizer()), "nowhere' holds no token shards"));
}

TEST_CASE("token shards: all of a text, where the split cuts a document and where one begins there") {
  TextSource text = documents();
  const std::size_t split = split_position(text.text, 0.9);
  for (const bool begins : {false, true}) {
    CAPTURE(begins);
    const TemporaryDirectory d;
    if (begins) text.document_starts.insert(text.document_starts.end() - 1, split);
    write_token_shards(d / "shards", text, *byte_tokenizer());
    check_same(read_token_shards(d / "shards").whole(), TokenDataset::whole(text, *byte_tokenizer()));
    check_same(read_token_shards(d / "shards").parts(), TokenDataset::from_text(text, *byte_tokenizer()));
  }
}

TEST_CASE("token shards: a vocabulary over 65,536 takes 32 bits") {
  const TemporaryDirectory d;
  TextSource text;
  for (int i = 0; i < 66000; ++i) text.text += std::to_string(i) + " ";
  text.document_starts = {0};
  const TokenizerPointer tokenizer = make_tokenizer("word", text.text, 1 << 20);
  REQUIRE(tokenizer->size() > 65536);
  write_token_shards(d / "shards", text, *tokenizer);
  CHECK(SafetensorsFile(d / "shards/tokens-00000-of-00001.safetensors").get("tokens").dtype == "I32");
  check_same(read_token_shards(d / "shards").parts(), TokenDataset::from_text(text, *tokenizer));
}

TEST_CASE("token shards: damage is named with file, field and offset") {
  const TemporaryDirectory d;
  const TextSource text = documents();
  const auto directory = d / "shards";
  write_token_shards(directory, text, *char_tokenizer(text.text), 4000);
  const std::filesystem::path first = directory / "tokens-00000-of-00002.safetensors", second = directory / "tokens-00001-of-00002.safetensors";
  REQUIRE(read_refusal(directory).empty());
  const auto field = [&](const char* name, const char* value) {
    return refusal(first, [&](Shard& s) { s.metadata[name] = value; });
  };
  CHECK(contains(refusal(first, [](Shard& s) { s.metadata.clear(); }), "has no field 'format'"));
  CHECK(contains(field("format", "pictures"), "'pictures' in field 'format', where 'hedgehog tokens' belongs"));
  CHECK(contains(field("version", "2"), "version '2'"));
  CHECK(contains(field("vocabulary", "256"), "has 256 in field 'vocabulary', but the tokenizer has"));
  CHECK(contains(field("tokenizer", "00"), "field 'tokenizer' is not the checksum"));
  for (const char* number : {"", "-1", "0", "1.5", "two", "99999999999999999999", "1099511627777"})
    for (const char* name : {"tokens", "shards", "training_tokens", "vocabulary"}) {
      CAPTURE(number);
      CHECK(contains(field(name, number), std::string("in field '") + name + "', where a whole number from"));
    }
  CHECK(contains(field("text_bytes", "many"), "in field 'text_bytes'"));
  CHECK(contains(field("name", "../x"), "field 'name'"));
  CHECK(contains(field("shards", "3"), "tokens-00000-of-00003.safetensors' is missing: the first shard says that there are 3"));
  CHECK(contains(field("shard", "1"), "has '1' in field 'shard', where '0' belongs"));
  CHECK(contains(field("training_tokens", "999999"), "in field 'training_tokens', where a whole number from 2"));
  CHECK(contains(refusal(first, [](Shard& s) { s.metadata["tokens"] = "5", s.metadata["training_tokens"] = "2"; }),
                 "more than the 5 that field 'tokens' says"));
  const std::string steering = field("format", ("\x1b[2J" + std::string(1000, 'x')).c_str());
  CHECK(contains(steering, "'?[2Jxxx"));
  CHECK(steering.size() < 300);
  CHECK(contains(field("tokens", "1099511627776"), "where '1099511627776' belongs"));
  CHECK(contains(refusal(second, [](Shard& s) { s.metadata["training_tokens"] = "7"; }), "has '7' in field 'training_tokens'"));
  CHECK(contains(refusal(second, [](Shard& s) { s.tokens.pop_back(); }), "field 'tokens' says"));
  CHECK(contains(refusal(second, [](Shard& s) { s.tokens.clear(), s.starts.clear(); }), "tensor 'tokens' is empty"));
  const std::string wrong = refusal(second, [](Shard& s) { s.tokens[7] = 999; });
  CAPTURE(wrong);
  CHECK(contains(wrong, "tokens-00001-of-00002.safetensors' tensor 'tokens' item 7 at offset "));
  CHECK(contains(wrong, " is 999, but ids are from 0 to "));
  CHECK(contains(refusal(first, [](Shard& s) { s.starts = {0, 9, 9}; }), "tensor 'document_starts' item 2 at offset "));
  CHECK(contains(refusal(first, [](Shard& s) { s.starts = {0, -4}; }), "is -4, but must be over 0"));
  CHECK(contains(refusal(first, [](Shard& s) { s.starts = {0, 4000}; }), "is 4000, but must be over 0 and below the shard's 4000 tokens"));
  CHECK(contains(refusal(first, [](Shard& s) { s.starts = {1}; }), "must begin with 0"));
  CHECK(contains(refusal(first, [](Shard& s) { s.starts.clear(); }), "must begin with 0"));

  const std::string good = bytes_of(first);
  d.file("shards/tokens-00000-of-00002.safetensors", good.substr(0, good.size() - 3));
  CHECK(contains(read_refusal(directory), "outside the"));
  d.file("shards/tokens-00000-of-00002.safetensors", "{}");
  CHECK(contains(read_refusal(directory), "not a valid safetensors file"));
  const float number = 1;
  const TensorRecord other[] = {{"weight", "F32", {1}, &number, 4}};
  write_safetensors(first, other, {{"format", "hedgehog tokens"}});
  CHECK(contains(read_refusal(directory), "has no field 'version'"));
  d.file("shards/tokens-00000-of-00002.safetensors", good);
  CHECK(read_refusal(directory).empty());
  CHECK(contains(read_refusal(directory, byte_tokenizer()), "but the tokenizer has 256 tokens: the shards are of another one"));
  d.file("shards/tokens-00001-of-00009.safetensors", good);
  CHECK(contains(read_refusal(directory), "tokens-00001-of-00009.safetensors' does not belong to the 2 shards"));
  std::filesystem::remove(directory / "tokens-00001-of-00009.safetensors");
  std::filesystem::remove(second);
  CHECK(contains(read_refusal(directory), "tokens-00001-of-00002.safetensors' is missing"));
  std::filesystem::remove(directory / "tokenizer.json");
  CHECK(contains(read_refusal(directory), "tokenizer.json"));
  CHECK(contains(message_of<FileError>([&] { write_token_shards(directory, text, *byte_tokenizer()); }), "holds token shards already"));
}

TEST_CASE("token shards: tensors of other types are refused") {
  const TemporaryDirectory d;
  write_token_shards(d / "shards", documents(), *byte_tokenizer());
  const auto file = d / "shards/tokens-00000-of-00001.safetensors";
  const auto metadata = SafetensorsFile(file).metadata();
  const std::int64_t zeros[8] = {};
  const auto refused = [&](TensorRecord tokens, TensorRecord starts) {
    const TensorRecord records[] = {std::move(tokens), std::move(starts)};
    write_safetensors(file, records, metadata);
    return read_refusal(d / "shards");
  };
  const TensorRecord starts{"document_starts", "I64", {1}, zeros, 8};
  CHECK(contains(refused({"tokens", "F32", {4}, zeros, 16}, starts), "tensor 'tokens' must be a vector of U16, but is F32"));
  CHECK(contains(refused({"tokens", "U16", {2, 2}, zeros, 8}, starts), "is U16 with 2 axes"));
  CHECK(contains(refused({"tokens", "U16", {4}, zeros, 8}, {"document_starts", "I32", {1}, zeros, 4}),
                 "'document_starts' must be a vector of I64"));
  CHECK(contains(refused({"tokens", "U16", {4}, zeros, 8}, {"starts", "I64", {1}, zeros, 8}), "has no tensor 'document_starts'"));
}

TEST_CASE("token shards: mutated bytes give an error or tokens of the vocabulary, never anything else") {
  const TemporaryDirectory d;
  TextSource text;
  text.text = "abc abc abd ";
  text.document_starts = {0, 4};
  write_token_shards(d / "shards", text, *char_tokenizer(text.text));
  const auto file = d / "shards/tokens-00000-of-00001.safetensors";
  const std::string whole = bytes_of(file);
  Random random(7);
  int accepted = 0;
  for (int round = 0; round < 400; ++round) {
    std::string content = whole;
    // half of the changes in the numbers, the rest anywhere
    content[round % 2 ? content.size() - 1 - random.below(40) : random.below(content.size())] = char(random.below(256));
    if (round % 10 == 0) content.resize(random.below(content.size()));
    d.file("shards/tokens-00000-of-00001.safetensors", content);
    try {
      const TokenShards shards = read_token_shards(d / "shards");
      for (const std::int32_t id : shards.all.tokens) CHECK((id >= 0 && id < 5));
      CHECK(shards.all.tokens.size() == 12);
      ++accepted;
    } catch (const FileError&) {
    }
  }
  CHECK(accepted < 100);
}

TEST_CASE("cli: training and evaluation on token shards give the bits of the text") {
  const TemporaryDirectory d;
  d.file("text.txt", some_text() + "\n<|endoftext|>\n" + some_text());
  const std::string at = d.path().string();
  const ProgramResult prepared = run_program("prepare --data=text.txt --vocabulary=300 --shards --out=shards", at);
  CAPTURE(prepared.output);
  REQUIRE(prepared.code == 0);
  CHECK(contains(prepared.output, "use them by --data=shards"));
  const std::string options = kSmall;
  REQUIRE(run_program("train --data=text.txt --tokenizer=shards --out=text " + options, at).code == 0);
  REQUIRE(run_program("train --data=shards --out=whole " + options, at).code == 0);
  REQUIRE(run_program("train --data=shards --out=parts --stop_at=4 " + options, at).code == 0);
  REQUIRE(run_program("train --quiet --resume=parts", at).code == 0);
  for (const char* run : {"whole", "parts"})
    for (const char* file : {"/last/model.safetensors", "/last/tokenizer.json"})
      CHECK(bytes_of(d / (run + std::string(file))) == bytes_of(d / (std::string("text") + file)));
  CHECK(run_program("eval --checkpoint=whole --data=shards", at).code == 0);
  CHECK(run_program("analyze --checkpoint=whole --data=shards --lengths=8", at).code == 0);
  check_refused(run_program("train --data=shards --tokenizer=byte " + options, at), 2, {"--tokenizer", "leave it out"});
  check_refused(run_program("prepare --data=text.txt --shards --out=shards", at), 3, {"holds token shards already"});
  // the tokenizer.json of shards is not replaced
  check_refused(run_program("prepare --data=text.txt --vocabulary=280 --out=shards", at), 3, {"holds token shards already"});
  CHECK(bytes_of(d / "shards/tokenizer.json") == bytes_of(d / "text/last/tokenizer.json"));
  check_refused(run_program("prepare --data=shards --out=again", at), 2, {"--data=shards holds token shards"});
  REQUIRE(run_program("prepare --data=text.txt --tokenizer=byte --shards --out=bytes", at).code == 0);
  check_refused(run_program("eval --checkpoint=whole --data=bytes", at), 3, {"tokens-00000-of-00001.safetensors", "'vocabulary'", "256"});
  check_refused(run_program("train --quiet --resume=whole --steps=8 --data=bytes", at), 2, {"--data"});
  REQUIRE(run_program("train --data=bytes --out=of_bytes " + options, at).code == 0);
  CHECK(run_program("eval --checkpoint=of_bytes --data=bytes --json", at).output ==
        run_program("eval --checkpoint=of_bytes --data=text.txt --json", at).output);
}

}  // namespace hedgehog

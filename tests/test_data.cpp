#include <doctest/doctest.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <numeric>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "core/error.h"
#include "tests/temporary_directory.h"
#include "train/data.h"

using namespace hedgehog;

namespace {

TextSource text_of(const std::string& where) {
  std::istringstream nothing;
  return read_text(where, nothing);
}

std::string refusal(const std::string& where) {
  return message_of<FileError>([&] { text_of(where); });
}

TokenStream counting(int64_t count, std::vector<int64_t> starts = {0}) {
  TokenStream stream;
  stream.tokens.resize(size_t(count));
  std::iota(stream.tokens.begin(), stream.tokens.end(), 0);
  stream.document_starts = std::move(starts);
  return stream;
}

}  // namespace

TEST_CASE("text: a file, with documents split at separator lines") {
  TemporaryDirectory directory;
  const auto path = directory.file(
      "my book.txt", "\xEF\xBB\xBFone\n<|endoftext|>\ntwo <|endoftext|>\r\n<|endoftext|>\r\n<|endoftext|>\nthree");
  const TextSource source = text_of(path.string());
  CHECK(source.text == "one\ntwo <|endoftext|>\r\nthree");
  CHECK(source.document_starts == std::vector<size_t>{0, 4, 23});
  CHECK(source.name == "my-book");
  CHECK(source.notes.empty());
}

TEST_CASE("text: a directory is read in order, binaries are skipped with a note") {
  TemporaryDirectory directory;
  directory.file("b/second.md", "beta");
  directory.file("a.txt", "alpha ");
  directory.file("c.unknown", "gamma");
  directory.file("d.bin", std::string("x\0y", 3));
  directory.file("e.txt", "");
  directory.file(".hidden/f.txt", "hidden");
  const TextSource source = text_of(directory.path().string() + "/");
  CHECK(source.text == "alpha betagamma");
  CHECK(source.document_starts == std::vector<size_t>{0, 6, 10});
  REQUIRE(source.notes.size() == 3);
  CHECK(contains(source.notes[0], "d.bin': a NUL byte at offset 1"));
  CHECK(contains(source.notes[1], "e.txt': empty"));
  CHECK(contains(source.notes[2], "read 3 of 5 files, 15 bytes"));
}

TEST_CASE("text: standard input") {
  std::istringstream input("from a pipe");
  CHECK(read_text("-", input).text == "from a pipe");
  std::istringstream nothing;
  CHECK(message_of<FileError>([&] { read_text("-", nothing); }) == "cannot train on 'standard input': it is empty");
}

TEST_CASE("text: what cannot be trained on is refused in one sentence") {
  TemporaryDirectory directory;
  CHECK(contains(refusal((directory / "absent.txt").string()), "there is no file, directory or known text"));
  CHECK(contains(refusal("shakespear"), "did you mean shakespeare?"));
  CHECK(contains(refusal(directory.file("empty.txt", "").string()), "it is empty"));
  CHECK(contains(refusal(directory.file("nul.txt", std::string("ab\0c", 4)).string()),
                 "it is not text (a NUL byte at offset 2)"));
  CHECK(contains(refusal(directory.file("latin.txt", "ab\xe9 \xe9 \xe9").string()), "29 % of its bytes are not UTF-8"));
  CHECK(contains(refusal(directory.file("only.txt", "<|endoftext|>\n").string()), "separators and no text"));
  directory.file("images/picture.png", std::string("\x89PNG\0\0", 6));
  CHECK(contains(refusal((directory / "images").string()), "the directory holds no text (1 files looked at)"));
  CHECK(contains(refusal("/dev/null"), "not a regular file"));
}

TEST_CASE("sha256: the standard's examples and every padding length") {
  CHECK(sha256("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  CHECK(sha256("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  CHECK(sha256("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq") ==
        "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  CHECK(sha256(std::string(1000000, 'a')) == "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
  std::set<std::string> different;
  for (size_t length = 0; length < 130; ++length) different.insert(sha256(std::string(length, '\0')));
  CHECK(different.size() == 130);
}

TEST_CASE("known texts: the cache is used, a wrong checksum and a failed download are named") {
  TemporaryDirectory directory;
  const KnownText known = {"sample", "file://" + (directory / "origin.txt").string(), sha256("hello")};
  std::vector<std::string> notes;
  directory.file("cache/sample.txt", "hello");
  CHECK(fetch_known_text(known, directory / "cache", notes) == directory / "cache" / "sample.txt");
  CHECK(notes.empty());
  if (std::system("curl --version > /dev/null 2>&1") != 0) {
    MESSAGE("skipped: curl is not installed");
    return;
  }
  const auto fetch = [&] { fetch_known_text(known, directory / "new", notes); };
  directory.file("origin.txt", "hell0");
  const std::string mismatch = message_of<FileError>(fetch);
  CHECK(contains(mismatch, "expected " + known.sha256));
  CHECK(contains(mismatch, "give it as --data=FILE"));
  CHECK(std::filesystem::is_empty(directory / "new"));
  directory.file("origin.txt", "hello");
  directory.file("new/sample.txt", "damaged");
  fetch();
  CHECK(bytes_of(directory / "new" / "sample.txt") == "hello");
  REQUIRE(notes.size() == 2);
  CHECK(contains(notes[0], "is damaged and is downloaded again"));
  CHECK(contains(notes[1], "downloaded file://"));
}

TEST_CASE("known texts: a download that stalls is given up") {
  TemporaryDirectory directory;
  const auto curl = directory.file("bin/curl", "#!/bin/sh\necho \"$@\" > '" + (directory / "arguments").string() + "'\nexit 28\n");
  std::filesystem::permissions(curl, std::filesystem::perms::owner_all);
  const std::string path = std::getenv("PATH");
  ::setenv("PATH", ((directory / "bin").string() + ":" + path).c_str(), 1);
  std::vector<std::string> notes;
  const std::string message =
      message_of<FileError>([&] { fetch_known_text({"sample", "file:///absent", ""}, directory / "cache", notes); });
  ::setenv("PATH", path.c_str(), 1);
  CHECK(contains(message, "curl failed with code 28"));
  CHECK(contains(bytes_of(directory / "arguments"), "--speed-limit 1 --speed-time 60"));
}

TEST_CASE("split: at the fraction, never inside a character") {
  CHECK(split_position(std::string(100, 'a'), 0.9) == 90);
  // nanoGPT: int(0.9 * 1115394)
  CHECK(split_position(std::string(1115394, 'a'), 0.9) == 1003854);
  CHECK(split_position("aaaa\u20acaaa", 0.5) == 4);
  CHECK(split_position("aaaa\u20acaaa", 0.6) == 4);
  CHECK(split_position("aaaa\u20acaaa", 0.7) == 7);
}

TEST_CASE("dataset: parts, documents and end tokens") {
  TextSource source;
  source.text = "aaa bbb ccc ddd eee ";
  source.document_starts = {0, 8};
  const TokenDataset bytes = TokenDataset::from_text(source, *byte_tokenizer(), 0.6);
  CHECK(bytes.train().size() == 12);
  CHECK(bytes.validation().size() == 8);
  const auto words = word_tokenizer(source.text, 20);
  const TokenDataset dataset = TokenDataset::from_text(source, *words, 0.6);
  // aaa, " bbb", " ", <end> of the first document; the second one is cut by the split and does not end there
  CHECK(dataset.train()[3] == words->end());
  CHECK(std::count(dataset.train().begin(), dataset.train().end(), words->end()) == 1);
  CHECK(dataset.validation().back() == words->end());
  source.where = "'abc.txt'";
  source.text = "abc";
  source.document_starts = {0};
  CHECK(contains(message_of<FileError>([&] { TokenDataset::from_text(source, *byte_tokenizer()); }),
                 "'abc.txt' is too short: of its 3 bytes the validation part gets 1 tokens and needs at least 2"));
}

TEST_CASE("dataset: a whole text has everything to validate and nothing to train on") {
  TextSource source;
  source.text = "aaa bbb ccc";
  source.document_starts = {0, 4};
  const TokenDataset dataset = TokenDataset::whole(source, *byte_tokenizer());
  CHECK(dataset.train().empty());
  CHECK(dataset.validation().size() == 11);
  CHECK(dataset.document_count() == 2);
  CHECK(dataset.validation_batch(0, 1, 64).valid == 10);
}

TEST_CASE("training batches: a pure function of seed, step and row") {
  const TokenDataset dataset(counting(1000), counting(100));
  const Batch batch = dataset.training_batch(5, 17, 0, 4, 32);
  CHECK(batch.valid == 4 * 32);
  for (int64_t row = 0; row < 4; ++row) {
    for (int64_t t = 0; t < 32; ++t) {
      const size_t i = size_t(row * 32 + t);
      CHECK(batch.targets[i] == batch.tokens[i] + 1);
      CHECK(batch.tokens[i] == batch.tokens[size_t(row * 32)] + t);
      CHECK(batch.document_start[i] == 0);
    }
  }
  // two micro-batches of two rows are the batch of four
  const Batch second = dataset.training_batch(5, 17, 2, 2, 32);
  CHECK(std::equal(second.tokens.begin(), second.tokens.end(), batch.tokens.begin() + 64));
  CHECK(dataset.training_batch(5, 18, 0, 4, 32).tokens != batch.tokens);
  CHECK(dataset.training_batch(6, 17, 0, 4, 32).tokens != batch.tokens);
  CHECK(dataset.training_batch(5, 17, 0, 4, 32).tokens == batch.tokens);
}

TEST_CASE("row offsets: stable values, even spread, whole range") {
  CHECK(row_offset(1, 0, 0, 1) == 0);
  const std::vector<int64_t> first = {row_offset(1, 0, 0, 1000000), row_offset(1, 0, 1, 1000000),
                                      row_offset(1, 1, 0, 1000000)};
  CHECK(first == std::vector<int64_t>{693512, 423211, 341631});
  std::vector<int> counts(10);
  for (int64_t step = 0; step < 1000; ++step) {
    for (int64_t row = 0; row < 10; ++row) ++counts[size_t(row_offset(3, step, row, 10))];
  }
  // 10,000 draws: standard deviation of a count is 30; 5 of them
  for (const int count : counts) CHECK(std::abs(count - 1000) < 150);
  CHECK_THROWS_AS(row_offset(1, 0, 0, 0), Error);
}

TEST_CASE("training batches reach the last position and refuse a context that does not fit") {
  const TokenDataset dataset(counting(5), counting(5));
  const Batch batch = dataset.training_batch(1, 0, 0, 1, 4);
  CHECK(batch.tokens == std::vector<int32_t>{0, 1, 2, 3});
  CHECK(batch.targets == std::vector<int32_t>{1, 2, 3, 4});
  CHECK(message_of<UsageError>([&] { dataset.training_batch(1, 0, 0, 1, 5); }) ==
        "--context=5 is longer than the data: the training part has 5 tokens, so --context may be at most 4");
  std::set<int32_t> starts;
  for (int64_t step = 0; step < 200; ++step) starts.insert(dataset.training_batch(1, step, 0, 1, 2).tokens[0]);
  CHECK(starts == std::set<int32_t>{0, 1, 2});
}

TEST_CASE("validation batches: every token but the first is a target exactly once, in order") {
  for (const int64_t count : {2, 3, 9, 10, 11, 40, 41, 42}) {
    for (const int64_t context : {1, 3, 10, 64}) {
      for (const int64_t rows : {1, 4}) {
        CAPTURE(count);
        CAPTURE(context);
        CAPTURE(rows);
        const TokenDataset dataset(counting(10), counting(count));
        std::vector<int32_t> targets;
        int64_t valid = 0;
        for (int64_t i = 0; i < dataset.validation_batches(rows, context); ++i) {
          const Batch batch = dataset.validation_batch(i, rows, context);
          CHECK(batch.tokens.size() == size_t(rows * context));
          CHECK(batch.valid > 0);
          valid += batch.valid;
          for (size_t k = 0; k < batch.targets.size(); ++k) {
            if (batch.targets[k] == kIgnoredTarget) continue;
            CHECK(batch.targets[k] == batch.tokens[k] + 1);
            targets.push_back(batch.targets[k]);
          }
        }
        std::vector<int32_t> expected(size_t(count - 1));
        std::iota(expected.begin(), expected.end(), 1);
        CHECK(targets == expected);
        CHECK(valid == count - 1);
      }
    }
  }
  const TokenDataset dataset(counting(10), counting(10));
  CHECK_THROWS_AS(dataset.validation_batch(3, 1, 4), Error);
  CHECK(dataset.random_validation_batch(1, 0, 2, 64).valid == 18);
}

TEST_CASE("batches say where each token's document begins") {
  const TokenDataset dataset(counting(10), counting(12, {0, 3, 4, 10}));
  const Batch batch = dataset.validation_batch(0, 2, 6);
  CHECK(batch.document_start == std::vector<int32_t>{0, 0, 0, 3, 4, 4,  //
                                                     0, 0, 0, 0, 4, 4});
}

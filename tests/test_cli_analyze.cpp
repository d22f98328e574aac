#include <doctest/doctest.h>
#include <fmt/format.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "tests/cli_cases.h"

namespace hedgehog {

using namespace test;

TEST_CASE("cli: analyze writes a page and the numbers, of softmax with a student, of linear attention and of stories") {
  const TemporaryDirectory d;
  d.file("text.txt", some_text());
  const std::string at = d.path().string(), train = std::string("train --data=text.txt --report=false ") + kSmall;
  REQUIRE(run_program(train + "--attention=softmax --out=soft", at).code == 0);
  REQUIRE(run_program(train + "--out=linear", at).code == 0);
  REQUIRE(run_program(std::string("train --report=false --out=stories ") + kSmall + "--context=64", at).code == 0);

  const ProgramResult soft = run_program("analyze --checkpoint=soft --student=linear --lengths=40,16,40 --rows=2", at);
  CAPTURE(soft.output);
  CHECK(soft.code == 0);
  for (const char* part : {"16 tokens, 2 texts", "40 tokens, 2 texts", "softmax", "student: hedgehog", "exp(2)", "performer", "taylor", "rank in rows",
                           "soft/analysis/analysis.html"})
    CHECK(contains(soft.output, part));
  const std::string html = bytes_of(d / "soft/analysis/analysis.html");
  const nlohmann::json json = nlohmann::json::parse(bytes_of(d / "soft/analysis/analysis.json"));
  CHECK(json["lengths"].size() == 2);
  CHECK(json["student"] == "linear");
  CHECK(html.size() < 3'000'000);
  CHECK_FALSE(contains(html, "src="));
  for (const auto& map : json["lengths"][1]["maps"]) {
    const auto& mean = map["mean"];
    CHECK(contains(html, fmt::format("<tr><td>{}</td><td>{:.3f}</td><td>{:.3f}</td>", map["name"].get<std::string>(), mean["entropy"].get<double>(),
                                     mean["entropy_share"].get<double>())));
  }

  const ProgramResult linear = run_program("analyze --checkpoint=linear/best --data=text.txt --out=there --json --rows=1", at);
  CAPTURE(linear.output);
  CHECK(linear.code == 0);
  const nlohmann::json printed = nlohmann::json::parse(linear.output);
  CHECK(printed == nlohmann::json::parse(bytes_of(d / "there/analysis.json")));
  REQUIRE(printed["lengths"].size() == 3);
  CHECK(printed["lengths"][2]["length"] == 16);
  CHECK(printed["lengths"][2]["maps"][1]["name"] == "hedgehog");

  const ProgramResult stories = run_program("analyze --checkpoint=stories --lengths=200 --rows=1 --threads=1", at);
  CAPTURE(stories.output);
  CHECK(stories.code == 0);
  CHECK(contains(stories.output, "200 tokens, 1 text;"));
}

TEST_CASE("cli: analyze refuses lengths, texts, students and checkpoints that do not fit") {
  const TemporaryDirectory d;
  d.file("text.txt", some_text());
  d.file("short.txt", "the hedgehog");
  const std::string at = d.path().string(), train = std::string("train --data=text.txt --report=false ") + kSmall;
  check_refused(run_program("analyze", at), 3, {"there is no run yet", "train"});
  REQUIRE(run_program(train + "--attention=softmax --positions=learned --out=soft", at).code == 0);
  REQUIRE(run_program(train + "--attention=cosformer --out=cosine", at).code == 0);
  REQUIRE(run_program(train + "--layers=2 --out=deep", at).code == 0);
  REQUIRE(run_program(train + "--out=linear", at).code == 0);
  REQUIRE(run_program(train + "--window=4 --out=near", at).code == 0);

  const std::string soft = "analyze --checkpoint=soft ";
  check_refused(run_program("analyze --checkpoint=near", at), 2, {"the checkpoint's attention has a window of 4", "without --window"});
  check_refused(run_program(soft + "--student=near", at), 2, {"the student's attention has a window of 4", "without --window"});
  check_refused(run_program("analyze --checkpoint=nowhere", at), 3, {"'nowhere' does not exist"});
  check_refused(run_program(soft + "--student=nowhere", at), 3, {"'nowhere' does not exist"});
  check_refused(run_program(soft + "--lengths=17", at), 2, {"--lengths=17", "learned positions end at 16 tokens"});
  check_refused(run_program("analyze --checkpoint=cosine --lengths=8,32", at), 2, {"--lengths=32", "cosFormer weights end at 16 tokens"});
  for (const char* lengths : {"8,,16", "8,", "many", "1", "8;16", "-8", "99999999999999999999", "16385"}) {
    CAPTURE(lengths);
    check_refused(run_program(soft + "'--lengths=" + lengths + "'", at), 2, {"--lengths=", "is not a whole number from 2 to 16384", "64,128,256"});
  }
  check_refused(run_program(soft + "--data=short.txt", at), 2, {"--lengths=16 is longer than the data", "'short' has 12 tokens", "a longer text"});
  check_refused(run_program("analyze --checkpoint=linear --lengths=5000", at), 2, {"--lengths=5000 is longer", "that training held back"});
  check_refused(run_program(soft + "--data=missing.txt", at), 3, {"missing.txt"});
  check_refused(run_program(soft + "--student=deep", at), 2, {"--student has 2 layers, but the checkpoint has 1"});
  check_refused(run_program(soft + "--student=soft", at), 2, {"--student has softmax attention", "linear attention"});
  check_refused(run_program("analyze --checkpoint=linear --student=linear", at), 2, {"the checkpoint has hedgehog attention", "leave --student out"});
  for (const char* rows : {"0", "1025"}) check_refused(run_program(soft + "--rows=" + rows, at), 2, {"rows", "1024"});
  REQUIRE(run_program(train + "--context=1 --out=single", at).code == 0);
  check_refused(run_program("analyze --checkpoint=single", at), 2, {"a context of one token", "a longer --context"});
  d.file("file", "");
  check_refused(run_program(soft + "--out=file/inside", at), 1, {"cannot create directory"});
  CHECK_FALSE(std::filesystem::exists(d / "soft/analysis"));
}

}  // namespace hedgehog

#include <doctest/doctest.h>

#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "core/error.h"
#include "train/gradcheck_command.h"

using namespace hedgehog;

namespace {

struct Printed {
  int code = 0;
  std::string text;
};

template <class... Ops>
Printed print(const GradcheckCommand& command, const Ops&... ops) {
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::tmpfile(), std::fclose);
  REQUIRE(file != nullptr);
  Printed out;
  out.code = run_gradcheck(command, ops..., file.get());
  std::rewind(file.get());
  for (int c; (c = std::fgetc(file.get())) != EOF;) out.text += char(c);
  return out;
}

}  // namespace

TEST_CASE("gradcheck command: one op gives a row for each differentiable input") {
  const Printed p = print({.op = "divide", .draws = 2});
  CAPTURE(p.text);
  CHECK(p.code == 0);
  CHECK(p.text.find("divide                   a ") != std::string::npos);
  CHECK(p.text.find("2 inputs of 1 ops") != std::string::npos);
  CHECK(p.text.find("all passed") != std::string::npos);
  CHECK(p.text.find("FAILED") == std::string::npos);
}

TEST_CASE("gradcheck command: a wrong backward is exit code 1 and named, in the table and in JSON") {
  Op wrong = find_op("divide");
  wrong.backward.cpu = [right = wrong.backward.cpu](const Call& c) {
    right(c);
    if (c.dx[1])
      for (std::int64_t i = 0; i < c.dx[1].size(); ++i) c.dx[1].as<double>()[i] *= 1.5;
  };
  const std::vector<const Op*> ops{&wrong};
  const Printed p = print({.draws = 2}, ops);
  CAPTURE(p.text);
  CHECK(p.code == 1);
  CHECK(p.text.find("FAILED") != std::string::npos);
  CHECK(p.text.find("1 failed") != std::string::npos);
  CHECK(p.text.find("all passed") == std::string::npos);
  const Printed json = print({.draws = 1, .json = true}, ops);
  CHECK(json.code == 1);
  CHECK(nlohmann::json::parse(json.text)["passed"] == false);
}

TEST_CASE("gradcheck command: ops without a gradient are named and not counted") {
  Op none = find_op("divide");
  none.name = "none";
  none.backward = {};
  const Printed p = print({.draws = 1}, std::vector<const Op*>{&find_op("divide"), &none});
  CAPTURE(p.text);
  CHECK(p.text.find("without a gradient: none") != std::string::npos);
  CHECK(p.text.find("2 inputs of 1 ops") != std::string::npos);
}

TEST_CASE("gradcheck command: JSON holds the same rows") {
  const Printed p = print({.op = "divide", .draws = 1, .seed = 5, .json = true});
  CHECK(p.code == 0);
  const auto json = nlohmann::json::parse(p.text);
  CHECK(json["passed"] == true);
  CHECK(json["seed"] == 5);
  REQUIRE(json["rows"].size() == 2);
  CHECK(json["rows"][1]["op"] == "divide");
  CHECK(json["rows"][1]["input"] == "b");
  CHECK(json["rows"][1]["worst_error"] < 1e-6);
  CHECK(json["rows"][1]["gradients"] > 0);
}

TEST_CASE("gradcheck command: an unknown op is answered with the nearest name, and no draws are refused") {
  try {
    print({.op = "divied"});
    FAIL("not refused");
  } catch (const UsageError& e) {
    CHECK(std::string(e.what()).find("'divide'") != std::string::npos);
  }
  CHECK_THROWS_AS(print({.op = "divide", .draws = 0}), UsageError);
}

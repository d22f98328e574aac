#include <doctest/doctest.h>

#include <filesystem>

#include "tests/cli_cases.h"

namespace hedgehog {

using namespace test;

TEST_CASE("cli: a model of each feature map trains, samples, and resumes with the bits of a run that went through") {
  const TemporaryDirectory d;
  d.file("text.txt", some_text());
  const std::string at = d.path().string();
  for (const char* options : {"--attention=t2r --qk_norm", "--attention=taylor --taylor_dim=4", "--attention=cosformer --short_convolution=4 --init=mimetic",
                              "--attention=performer --performer_features=6 --performer_hyperbolic --init=mimetic",
                              "--attention=taylor --taylor_dim=2 --short_convolution=3 --init=mimetic --bias"}) {
    CAPTURE(options);
    std::filesystem::remove_all(d / "whole");
    std::filesystem::remove_all(d / "parts");
    const std::string train = std::string("train --data=text.txt --schedule=constant ") + kSmall + options;
    const ProgramResult whole = run_program(train + " --out=whole", at);
    CAPTURE(whole.output);
    REQUIRE(whole.code == 0);
    REQUIRE(run_program(train + " --out=parts --steps=3", at).code == 0);
    REQUIRE(run_program("train --resume=parts --steps=6 --quiet", at).code == 0);
    for (const char* file : {"last/model.safetensors", "last/optimizer.safetensors"})
      CHECK(bytes_of(d / (std::string("whole/") + file)) == bytes_of(d / (std::string("parts/") + file)));
    const ProgramResult sample = run_program("sample --checkpoint=whole --tokens=20 --prompt=the", at);
    CAPTURE(sample.output);
    CHECK(sample.code == 0);
    CHECK(run_program("eval --checkpoint=whole", at).code == 0);
  }
}

TEST_CASE("cli: sizes of feature maps belong to their attention, are kept by checkpoints, and must fit") {
  const TemporaryDirectory d;
  d.file("text.txt", some_text());
  const std::string at = d.path().string(), train = std::string("train --data=text.txt --out=run ") + kSmall;
  check_refused(run_program(train + "--taylor_dim=4", at), 2, {"--taylor_dim", "--attention=taylor"});
  check_refused(run_program(train + "--attention=taylor --taylor_dim=3", at), 2, {"--taylor_dim", "even"});
  check_refused(run_program(train + "--attention=performer --performer_features=5 --performer_hyperbolic", at), 2, {"even", "5"});
  check_refused(run_program(train + "--attention=cosformer --cosformer_length=8", at), 2, {"--cosformer_length=8", "16"});
  REQUIRE(run_program(train + "--attention=performer --performer_features=6", at).code == 0);
  CHECK(contains(bytes_of(d / "run/last/state.json"), "\"performer_features\": 6"));
  check_refused(run_program("train --steps=8 --quiet --resume=run --performer_features=8", at), 2, {"--performer_features", "cannot change"});
  // what --config finds in a run's file is no choice of the user's
  CHECK(run_program("train --config=run/config.toml --attention=elu --out=other --quiet", at).code == 0);
  // checkpoints from before there were these maps, and weights of the others
  std::string text = bytes_of(d / "other/last/state.json");
  const std::size_t model = text.find("\"model\"");
  REQUIRE(model != std::string::npos);
  for (const char* name : {"\"taylor_dim\"", "\"performer_features\"", "\"performer_hyperbolic\"", "\"cosformer_length\"", "\"map_weights\"", "\"qk_norm\""}) {
    const std::size_t found = text.find(name, model);
    REQUIRE(found != std::string::npos);
    text.erase(found, text.find('\n', found) + 1 - found);
  }
  d.file("other/last/state.json", text);
  CHECK(run_program("sample --checkpoint=other/last --tokens=3 --prompt=the", at).code == 0);
}

TEST_CASE("cli: a text of cosFormer ends with its length") {
  const TemporaryDirectory d;
  d.file("text.txt", some_text());
  const std::string at = d.path().string();
  REQUIRE(run_program(std::string("train --data=text.txt --out=run --attention=cosformer --cosformer_length=24 ") + kSmall, at).code == 0);
  const ProgramResult r = run_program("sample --checkpoint=run --tokens=100 --prompt=the", at);
  CAPTURE(r.output);
  CHECK(r.code == 0);
}

}  // namespace hedgehog

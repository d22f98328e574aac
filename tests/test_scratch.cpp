#include <doctest/doctest.h>

#include <cmath>

#include "core/error.h"
#include "tests/cli_cases.h"
#include "train/experiment_training.h"
#include "train/experiments.h"

namespace hedgehog {

using namespace test;

TEST_CASE("scratch: the share of the gap, with the paper's figures") {
  CHECK(share_of_gap(18.6, 25.6, 20.8) == doctest::Approx(0.6857).epsilon(1e-4));
  CHECK(share_of_gap(18.6, 25.6, 18.6) == 1);
  CHECK(share_of_gap(18.6, 25.6, 25.6) == 0);
  CHECK(share_of_gap(18.6, 25.6, 26.3) == doctest::Approx(-0.1));
  CHECK(std::isnan(share_of_gap(20, 20, 20)));
  CHECK(std::isnan(share_of_gap(21, 20, 19)));
}

TEST_CASE("scratch: the options of a run are those of train") {
  const Config config = training_config("preset=char-cpu  attention=elu steps=7 steps=9");
  CHECK(config.text("attention") == "elu");
  CHECK(config.integer("steps") == 9);
  CHECK(config.integer("width") == 128);
  const TrainingPlan plan = training_plan(config, 65);
  CHECK(plan.model.vocabulary == 65);
  CHECK(plan.rows == 12);
  CHECK(plan.schedule.steps == 9);
  CHECK(contains(message_of<UsageError>([] { training_config("layer=2"); }), "--layers"));
}

TEST_CASE("scratch: learning rates are tried before the runs that need them, and the gap is a mean over seeds") {
  const Experiment experiment = scratch_experiment();
  const TemporaryDirectory d;
  d.file("text.txt", "some text");
  Config config("reproduce");
  config.parse(std::vector<std::string>{"--data=" + (d / "text.txt").string()});
  ReproduceRequest request;
  request.size = "gpu";
  request.config = &config;
  const auto parts = experiment.parts(request);
  PartResults results;
  for (const ExperimentPart& part : parts) {
    CAPTURE(part.name);
    for (const std::string& need : part.needs) CHECK(results.contains(need));
    CHECK(part.needs.size() == (part.name.starts_with("rate-") ? 0 : 3));
    const double seed = part.name.ends_with("seed2") ? 2 : 1;
    const double perplexity = part.name.starts_with("softmax") ? 10 : part.name.starts_with("elu") ? 20 : 10 + 2 * seed;
    results[part.name].result = {{"loss", 1},
                                 {"perplexity", perplexity},
                                 {"training_seconds", 1},
                                 {"learning_rate", 1e-3},
                                 {"parameters", 1e6},
                                 {"tokens", 100},
                                 {"steps", {1}},
                                 {"validation_losses", {2}}};
  }
  CHECK(results.contains("rate-hedgehog-3e-3"));
  CHECK(results.contains("hedgehog-seed3"));
  CHECK(results.contains("exp-seed1"));
  CHECK_FALSE(results.contains("exp-seed2"));
  results.erase("hedgehog-seed3");
  const Findings f = experiment.collect(request, results);
  REQUIRE(f.rows.size() > 3);
  CHECK(f.rows[0][0] == "softmax");
  CHECK(f.rows[0][3] == "-");
  CHECK(f.rows[2][0] == "hedgehog");
  CHECK(f.rows[2][3] == "70.0 ± 10.0");  // 80 % and 60 %
  CHECK(f.rows[2][2] == "13.000 ± 1.000");
  CHECK(f.rows[2][7] == "2");
  request.config = nullptr;
  CHECK(contains(message_of<UsageError>([&] { experiment.settings(request); }), "--data"));
}

TEST_CASE("cli: scratch runs its parts on a text, keeps them, and refuses a text that is not there") {
  const TemporaryDirectory d;
  d.file("text.txt", some_text());
  const std::string at = d.path().string(), command = "reproduce scratch --data=text.txt --training_tokens=1600 --threads=1 --out=out ";
  const ProgramResult one = run_program(command + "--part=elu-seed1", at);
  CAPTURE(one.output);
  CHECK(one.code == 0);
  CHECK(contains(one.output, "1 of 3 parts are there, 2 to go: softmax-seed1, hedgehog-seed1"));
  const ProgramResult all = run_program(command, at);
  CAPTURE(all.output);
  CHECK(all.code == 0);
  CHECK(contains(all.output, "attention  paper, perplexity"));
  CHECK(contains(bytes_of(d / "out/scratch.html"), "hedgehog-seed1"));
  // the same tokens as shards
  REQUIRE(run_program("prepare --data=text.txt --tokenizer=char --shards --out=shards", at).code == 0);
  const ProgramResult shards = run_program("reproduce scratch --data=shards --training_tokens=1600 --threads=1 --out=of_shards --part=elu-seed1", at);
  CAPTURE(shards.output);
  CHECK(shards.code == 0);
  const auto loss = [&](const char* folder) {
    return nlohmann::json::parse(bytes_of(d / (std::string(folder) + "/parts/elu-seed1.json"))).at("result").at("loss");
  };
  CHECK(loss("of_shards") == loss("out"));
  check_refused(run_program("reproduce scratch --collect --data=text.txt --training_tokens=9000 --out=out", at), 2,
                {"training_tokens (9000 now, 1600 then)"});
  check_refused(run_program("reproduce scratch --size=gpu --device=cpu --out=other", at), 2, {"--data"});
  const ProgramResult missing = run_program("reproduce scratch --data=nothing.txt --out=third", at);
  CHECK(missing.code == 3);
  CHECK(contains(missing.output, "nothing.txt"));
}

}  // namespace hedgehog

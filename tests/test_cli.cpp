#include <doctest/doctest.h>

#include <chrono>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "ops/cpu.h"
#include "tests/cli_cases.h"
#include "train/log.h"

namespace hedgehog {

using namespace test;

TEST_CASE("cli: bench predicts memory too") {
  check_refused(run_program("bench --preset=gpt2 --batch=1000000"), 2, {"--batch=1000000 needs", "largest batch that fits"});
}

TEST_CASE("cli: help, commands and unknown names") {
  const ProgramResult help = run_program("--help");
  CHECK(help.code == 0);
  for (const char* command : {"train", "sample", "eval", "analyze", "convert", "prepare", "import", "export", "reproduce", "step", "gradcheck", "bench", "info"}) {
    CHECK(contains(help.output, command));
    const ProgramResult own = run_program(std::string(command) + " --help");
    CHECK(own.code == 0);
    CHECK(contains(own.output, "--"));
  }
  check_refused(run_program("trian"), 2, {"trian", "train"});
  check_refused(run_program("train --learning_rat=1"), 2, {"learning_rat", "learning_rate"});
  check_refused(run_program("train --preset=chra-cpu"), 2, {"chra-cpu", "char-cpu"});
  check_refused(run_program("train --attention=hedgehoc"), 2, {"hedgehoc", "hedgehog"});
  check_refused(run_program("train --steps=many"), 2, {"steps", "many"});
  check_refused(run_program("train --width=30 --heads=4"), 2, {"heads", "width"});
  check_refused(run_program("train --short_convolution=1"), 2, {"short_convolution=1", "2 or more"});
}

TEST_CASE("cli: info knows the size of GPT-2") {
  // C (V + T) + L (12 C^2 + 13 C) + 2 C, with the vocabulary padded to 50304; two maps of D x D a head besides
  const std::pair<std::string, const char*> sizes[] = {{"--preset=gpt2 --attention=softmax", "124475904"},
                                                       {"--preset=gpt2", "125655552"},
                                                       {"--preset=gpt2-medium --attention=softmax", "354871296"},
                                                       {"--preset=gpt2-medium", "358017024"}};
  for (const auto& [arguments, count] : sizes) {
    const ProgramResult r = run_program("info " + arguments);
    CAPTURE(r.output);
    CHECK(r.code == 0);
    CHECK(contains(r.output, count));
  }
}

TEST_CASE("cli: bad data is refused with exit code 3") {
  const TemporaryDirectory d;
  d.file("empty.txt", "");
  d.file("short.txt", "ab");
  d.file("binary.txt", std::string(1000, '\0'));
  d.file("folder/picture.png", std::string("\x89PNG\0\0\0", 7));
  const std::string at = d.path().string();
  check_refused(run_program("train --data=nowhere.txt", at), 3, {"nowhere.txt"});
  check_refused(run_program("train --data=empty.txt", at), 3, {"empty.txt"});
  check_refused(run_program("train --data=short.txt", at), 3, {"'short.txt' is too short", "its 2 bytes", "needs at least 2"});
  check_refused(run_program("train --data=binary.txt", at), 3, {"binary.txt"});
  check_refused(run_program("train --data=folder", at), 3, {"folder"});
  d.file("text.txt", some_text());
  check_refused(run_program("train --data=text.txt --context=1000000", at), 2, {"context", "1000000"});
}

TEST_CASE("cli: a batch that does not fit is refused before anything is allocated") {
  const TemporaryDirectory d;
  d.file("text.txt", some_text());
  const ProgramResult r = run_program("train --data=text.txt --width=1024 --heads=4 --layers=8 --context=64 --batch=100000 --quiet", d.path().string());
  check_refused(r, 2, {"--batch=100000", "largest batch that fits is --batch="});
  d.file("long.txt", std::string(2'000'000, 'a'));
  const auto start = std::chrono::steady_clock::now();
  // the inputs alone: 2^20 rows of 2^20 tokens, 4 TiB each; the model alone: 65536^2 * 12 * 64 weights
  check_refused(run_program("train --data=long.txt --width=64 --context=1048576 --batch=1048576 --quiet", d.path().string()), 2,
                {"--batch=1048576 needs at least ", "--batch="});
  check_refused(run_program("train --data=text.txt --width=65536 --heads=1024 --layers=64 --context=64 --quiet", d.path().string()), 2,
                {"not even --batch=1 fits"});
  // 128 GiB is the most that validation stories can take
  if (available_memory() < std::int64_t(128) << 30)
    check_refused(run_program("train --context=16777216 --width=16 --quiet", d.path().string()), 2, {"--context=16777216 needs 128 GiB"});
  CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds(2));
  CHECK(!std::filesystem::exists(d / "runs"));
  REQUIRE(run_program("train --data=text.txt --out=long --layers=1 --width=16 --context=2048 --batch=1 --steps=1 --quiet", d.path().string()).code == 0);
  check_refused(run_program("eval --checkpoint=long --batch=1048576", d.path().string()), 2, {"--batch=1048576 needs", "largest batch that fits is --batch="});
}

TEST_CASE("cli: train, resume, sample, eval and info on one's own text") {
  const TemporaryDirectory d;
  d.file("text.txt", some_text());
  const std::string at = d.path().string();
  const ProgramResult trained = run_program(std::string("train --data=text.txt ") + kSmall, at);
  CAPTURE(trained.output);
  REQUIRE(trained.code == 0);
  CHECK(contains(trained.output, "validation loss"));
  CHECK(contains(trained.output, "20 random batches"));
  for (const char* file : {"config.toml", "log.jsonl", "report.html", "loss.svg", "last/model.safetensors", "last/optimizer.safetensors", "last/state.json",
                           "last/tokenizer.json", "best/state.json"})
    CHECK(std::filesystem::exists(d / (std::string("runs/latest/") + file)));
  CHECK(std::filesystem::exists(d / "runs/text-hedgehog-1"));
  CHECK(run_program(std::string("train --data=text.txt ") + kSmall, at).code == 0);
  CHECK(std::filesystem::exists(d / "runs/text-hedgehog-2"));

  CHECK_FALSE(contains(run_program(std::string("train --data=text.txt --report=false --out=bare ") + kSmall, at).output, "report.html"));
  CHECK_FALSE(std::filesystem::exists(d / "bare/report.html"));

  const ProgramResult sample = run_program("sample --prompt='the hedge' --tokens=7 --temperature=0 --count=2", at);
  CAPTURE(sample.output);
  CHECK(sample.code == 0);
  CHECK(contains(sample.output, "the hedge"));
  const ProgramResult once = run_program("sample --tokens=5 --seed=4", at), again = run_program("sample --tokens=5 --seed=4", at);
  CHECK(once.code == 0);
  CHECK(again.code == 0);
  CHECK(once.output == again.output);
  check_refused(run_program("sample --temperature=-1", at), 2, {"temperature"});
  check_refused(run_program("sample --tokens=9223372036854775807", at), 2, {"--tokens", "16777216"});

  const ProgramResult eval = run_program("eval", at);
  CAPTURE(eval.output);
  CHECK(eval.code == 0);
  CHECK(contains(eval.output, "perplexity"));
  CHECK(contains(run_program("eval --json", at).output, "\"perplexity\""));
  // --batch is what --help says, not the run's
  CHECK(run_program("eval --evaluate_batches=1", at).output == run_program("eval --evaluate_batches=1 --batch=16", at).output);
  // a text of its own is evaluated whole, and may be shorter than the context
  d.file("other.txt", "the hedge");
  const ProgramResult other = run_program("eval --data=other.txt", at);
  CAPTURE(other.output);
  CHECK(other.code == 0);
  CHECK(contains(other.output, "other: 9 tokens, 1 documents"));
  d.file("one.txt", "t");
  check_refused(run_program("eval --data=one.txt", at), 3, {"'one.txt' is too short", "its 1 bytes", "at least 2"});
  const ProgramResult info = run_program("info --checkpoint=latest", at);
  CHECK(info.code == 0);
  CHECK(contains(info.output, "blas kernel"));
  CHECK(contains(info.output, "hedgehog"));

  for (const char* fixed : {"--layers=3", "--dropout=0.2"})
    check_refused(run_program(std::string("train --resume ") + fixed, at), 2, {"cannot change when a run is resumed"});
  const ProgramResult finished = run_program("train --resume --quiet", at);
  CAPTURE(finished.output);
  CHECK(finished.code == 0);
  CHECK(contains(finished.output, "already at step 6 of 6; give --steps=M to go on"));
  check_refused(run_program("train --out=runs/latest --quiet", at), 2, {"runs/latest", "--resume"});
  d.file("text.txt", some_text() + "changed");
  check_refused(run_program("train --resume --quiet", at), 2, {"data has changed"});
}

TEST_CASE("cli: the sample after training ends where learned positions do") {
  const TemporaryDirectory d;
  d.file("text.txt", some_text());
  const ProgramResult trained = run_program(std::string("train --data=text.txt --positions=learned ") + kSmall, d.path().string());
  CAPTURE(trained.output);
  CHECK(trained.code == 0);
  CHECK(contains(trained.output, "sample 2:"));
}

TEST_CASE("cli: memory poisoned with NaN changes no loss") {
  const TemporaryDirectory d;
  d.file("text.txt", some_text());
  const std::string at = d.path().string(), arguments = std::string("train --data=text.txt --dropout=0.1 ") + kSmall;
  CHECK(run_program(arguments + "--out=plain", at).code == 0);
  CHECK(run_program(arguments + "--out=poisoned", at, "HEDGEHOG_POISON=1").code == 0);
  const auto plain = read_log(d / "plain/log.jsonl"), poisoned = read_log(d / "poisoned/log.jsonl");
  REQUIRE(plain.size() == 6);
  REQUIRE(poisoned.size() == 6);
  for (std::size_t i = 0; i < plain.size(); ++i) {
    CHECK(plain[i].loss == poisoned[i].loss);
    CHECK(plain[i].gradient_norm == poisoned[i].gradient_norm);
    CHECK(plain[i].validation_loss == poisoned[i].validation_loss);
  }
}

TEST_CASE("cli: training by the clock") {
  const TemporaryDirectory d;
  d.file("text.txt", some_text());
  const std::string at = d.path().string();
  const ProgramResult timed = run_program("train --data=text.txt --out=timed --minutes=0.02 --layers=1 --heads=2 --width=16 --context=16 --batch=2 "
                                          "--evaluate_every=0 --quiet", at);
  CAPTURE(timed.output);
  CHECK(timed.code == 0);
  const auto log = read_log(d / "timed/log.jsonl");
  REQUIRE(!log.empty());
  CHECK(contains(bytes_of(d / "timed/config.toml"), "steps = " + std::to_string(log.back().step) + " "));
}

TEST_CASE("cli: train, eval and sample on the built-in stories") {
  const TemporaryDirectory d;
  const std::string at = d.path().string();
  check_refused(run_program("train --tokenizer=char", at), 2, {"--tokenizer needs --data"});
  check_refused(run_program(std::string("train ") + kSmall + "--context=55", at), 2, {"story", "at least 56 tokens"});
  const ProgramResult train = run_program(std::string("train ") + kSmall + "--context=56 --evaluate_batches=2 --threads=1", at);
  CAPTURE(train.output);
  CHECK(train.code == 0);
  for (const char* part : {"exact entropy", "what does … eat", "where does … live", "how does … travel", "who owns the …", "One "})
    CHECK(contains(train.output, part));
  CHECK_FALSE(contains(bytes_of(d / "runs/latest/config.toml"), "tokenizer"));
  CHECK(contains(run_program("eval --json --threads=1", at).output, "who owns the …"));
  const ProgramResult sample = run_program("sample --prompt='mia eats plums. what does MIA eat?' --tokens=3 --threads=1", at);
  CAPTURE(sample.output);
  CHECK(contains(sample.output, "Mia eats plums. What does Mia eat?"));
  check_refused(run_program("sample --prompt='mia likes plums'", at), 2, {"'likes'", "'lives'"});
}

// sanitizers reserve more addresses than the limit leaves
#ifndef __SANITIZE_ADDRESS__
TEST_CASE("cli: out of memory names options that the command has") {
  const TemporaryDirectory d;
  d.file("text.txt", some_text());
  const std::string at = d.path().string();
  REQUIRE(run_program(std::string("train --data=text.txt --attention=softmax ") + kSmall, at).code == 0);
  // softmax keeps keys and values of 16 numbers a token: 2 GiB in f32
  const ProgramResult r = run_program("sample --prompt=the --tokens=16777216 --threads=1", at, "ulimit -v 1500000 &&");
  check_refused(r, 1, {"could not be allocated", "ask for fewer tokens"});
}
#endif

TEST_CASE("cli: the stories are learned: an eighth of the run recalls twice as well as guessing" * doctest::test_suite("slow")) {
  const TemporaryDirectory d;
  const std::string at = d.path().string();
  const ProgramResult train = run_program("train --steps=1200 --evaluate_every=0 --report=false --quiet --out=run", at);
  CAPTURE(train.output);
  REQUIRE(train.code == 0);
  const ProgramResult eval = run_program("eval --checkpoint=run --json", at);
  CAPTURE(eval.output);
  REQUIRE(eval.code == 0);
  const auto out = nlohmann::json::parse(eval.output);
  // measured: 15.3 % over the entropy and 52 % right; without short convolution and mimetic start 52 % and 6 %; a guess has 24 %
  CHECK(out["loss"].get<double>() < 1.18 * out["entropy"].get<double>());
  const auto& all = out["recall"]["all questions"];
  CHECK(all["right"].get<double>() > 0.38 * all["questions"].get<double>());
}

TEST_CASE("cli: bench times the model that the options describe" * doctest::test_suite("slow")) {
  const ProgramResult r = run_program("bench --json --layers=1 --heads=1 --width=5 --context=4 --batch=2 --attention=elu --positions=learned");
  CAPTURE(r.output);
  REQUIRE(r.code == 0);
  const auto out = nlohmann::json::parse(r.output);
  REQUIRE(out["steps"].size() == 1);
  CHECK(out["steps"][0]["model"] == "given");
  CHECK(out["steps"][0]["attention"] == "elu");
  CHECK(out["steps"][0]["batch"] == "2 x 4");
  CHECK(out["steps"][0]["tokens_per_second"] > 0);
  CHECK(out["decoding"][0]["tokens_per_second_far"] > 0);
  CHECK(out["products"].size() == 4);
}

TEST_CASE("cli: bench measures one part alone" * doctest::test_suite("slow")) {
  const ProgramResult r = run_program("bench --json --only=attention --attention=exp");
  CAPTURE(r.output);
  REQUIRE(r.code == 0);
  const auto out = nlohmann::json::parse(r.output);
  for (const char* part : {"products", "steps", "decoding"}) CHECK(out[part].empty());
  REQUIRE(out["attention"].size() == 2);
  for (const auto& row : out["attention"]) {
    CHECK(row["attention"] == "exp");
    CHECK(row["forward"]["ms"] > 0);
    CHECK(row["forward_and_backward"]["fastest_ms"] > row["forward"]["fastest_ms"]);
    CHECK(row["extra_memory"] > 0);
  }
  check_refused(run_program("bench --only=atention"), 2, {"attention", "steps"});
  check_refused(run_program("bench --only=distillation --attention=elu"), 2, {"--only=distillation", "maps learn"});
}

TEST_CASE("cli: what a command has no use for is refused") {
  // no CUDA in the build, no driver, or no GPU to be seen: whatever is missing, the way out is named
  check_refused(run_program("train --device=cuda"), 2, {"--device=cuda: ", "to compute on the CPU"});
  for (const char* arguments : {"bench --op=linear", "bench --gradient_accumulation=2", "bench --quiet", "sample --quiet", "eval --quiet"})
    check_refused(run_program(arguments), 2, {"is not an option of"});
}

TEST_CASE("cli: gradcheck of one op, and its table") {
  CHECK(contains(run_program("gradcheck --op=multiply --draws=1 --threads=1 --json").output, "\"threads\": 1"));
  const ProgramResult r = run_program("gradcheck --op=multiply --draws=2");
  CAPTURE(r.output);
  CHECK(r.code == 0);
  CHECK(contains(r.output, "multiply"));
  check_refused(run_program("gradcheck --op=multipli"), 2, {"multipli", "multiply"});
}

}  // namespace hedgehog

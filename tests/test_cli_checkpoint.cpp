#include <doctest/doctest.h>

#include <filesystem>
#include <unistd.h>

#include "tests/cli_cases.h"
#include "tests/counters.h"

namespace hedgehog {

using namespace test;

TEST_CASE("cli: a resumed run gives the bits of one that ran through, with dropout and gradient accumulation too") {
  const TemporaryDirectory d;
  d.file("text.txt", some_text());
  const std::string at = d.path().string();
  for (const char* options : {"--dropout=0.2", "--gradient_accumulation=3", "--dropout=0.2 --gradient_accumulation=2 --attention=softmax"}) {
    CAPTURE(options);
    std::filesystem::remove_all(d / "whole");
    std::filesystem::remove_all(d / "parts");
    const std::string train = std::string("train --data=text.txt --schedule=constant ") + kSmall + options;
    REQUIRE(run_program(train + " --out=whole", at).code == 0);
    REQUIRE(run_program(train + " --out=parts --steps=3", at).code == 0);
    REQUIRE(run_program("train --resume=parts --steps=6 --quiet", at).code == 0);
    for (const char* file : {"last/model.safetensors", "last/optimizer.safetensors"})
      CHECK(bytes_of(d / (std::string("whole/") + file)) == bytes_of(d / (std::string("parts/") + file)));
  }
}

TEST_CASE("cli: text from standard input is kept, so that the run can be resumed and evaluated") {
  const TemporaryDirectory d;
  d.file("text.txt", some_text());
  const std::string at = d.path().string();
  auto piped = [&](const std::string& arguments) {
    return test::run_shell("cd '" + at + "' && (cat text.txt | '" HH_BINARY_DIR "/bin/hedgehog' " + arguments + ")");
  };
  const ProgramResult train = piped(std::string("train --data=- ") + kSmall);
  CAPTURE(train.output);
  CHECK(train.code == 0);
  CHECK(contains(train.output, "kept in runs/stdin-hedgehog-1/stdin.txt"));
  CHECK(bytes_of(d / "runs/latest/stdin.txt") == some_text());
  CHECK(contains(bytes_of(d / "runs/latest/config.toml"), "runs/stdin-hedgehog-1/stdin.txt"));
  const ProgramResult more = run_program("train --resume --steps=8 --quiet", at);
  CAPTURE(more.output);
  CHECK(more.code == 0);
  CHECK(contains(more.output, "after 8 steps"));
  CHECK(run_program("eval", at).code == 0);
  CHECK(contains(piped("eval --data=-").output, "perplexity"));
}

TEST_CASE("cli: only a run or its last checkpoint is resumed") {
  const TemporaryDirectory d;
  d.file("text.txt", some_text());
  const std::string at = d.path().string();
  REQUIRE(run_program(std::string("train --data=text.txt --out=run ") + kSmall, at).code == 0);
  std::filesystem::copy(d / "run/last", d / "copy", std::filesystem::copy_options::recursive);
  std::filesystem::copy(d / "run/last", d / "last", std::filesystem::copy_options::recursive);
  d.file("log.jsonl", "of another run\n");
  const std::string log = bytes_of(d / "run/log.jsonl");
  for (const char* other : {"run/best", "copy", "last"}) {
    CAPTURE(other);
    check_refused(run_program(std::string("train --steps=8 --quiet --resume=") + other, at), 2, {other, "the run's directory", "a new run"});
  }
  CHECK(bytes_of(d / "run/log.jsonl") == log);
  CHECK(bytes_of(d / "log.jsonl") == "of another run\n");
  CHECK(run_program("train --steps=8 --quiet --resume=run/last/", at).code == 0);
  CHECK(run_program("train --steps=10 --quiet --resume=run", at).code == 0);
}

TEST_CASE("cli: a damaged, truncated or foreign checkpoint is refused with exit code 3") {
  const TemporaryDirectory d;
  d.file("text.txt", some_text());
  const std::string at = d.path().string();
  check_refused(run_program("sample", at), 3, {"train"});
  REQUIRE(run_program(std::string("train --data=text.txt --out=run ") + kSmall, at).code == 0);
  std::string command = "sample --tokens=3 --checkpoint=";
  auto damaged = [&](const char* name, const char* file, auto&& change) {
    std::filesystem::remove_all(d / name);
    std::filesystem::copy(d / "run/last", d / name, std::filesystem::copy_options::recursive);
    std::string bytes = bytes_of(d / (std::string(name) + "/" + file));
    change(bytes);
    d.file(std::string(name) + "/" + file, bytes);
    return run_program(command + name, at);
  };
  check_refused(damaged("cut", "model.safetensors", [](std::string& b) { b.resize(b.size() / 2); }), 3, {"model.safetensors"});
  check_refused(damaged("header", "model.safetensors", [](std::string& b) { b[3] = '\x7f'; }), 3, {"model.safetensors"});
  check_refused(damaged("json", "state.json", [](std::string& b) { b.resize(20); }), 3, {"state.json"});
  check_refused(damaged("field", "state.json", [](std::string& b) { b.replace(b.find("\"layers\": 1"), 11, "\"layers\": 7"); }), 3, {"tensors"});
  check_refused(damaged("typed", "state.json", [](std::string& b) { b.replace(b.find("\"layers\": 1"), 11, "\"layers\": {}"); }), 3, {"layers"});
  const auto no_truth = [](std::string& b) { b.replace(b.find("\"map_weights\": false"), 20, "\"map_weights\": 1"); };
  check_refused(damaged("truth", "state.json", no_truth), 3, {"map_weights", "true or false"});
  check_refused(damaged("words", "tokenizer.json", [](std::string& b) { b = "{}"; }), 3, {"tokenizer.json"});
  check_refused(damaged("foreign", "state.json", [](std::string& b) { b = "{\"model_type\": \"gpt2\"}"; }), 3, {"state.json"});
  // a model of this width would take 48 TB
  check_refused(damaged("wide", "state.json", [](std::string& b) { b.replace(b.find("\"width\": 16"), 11, "\"width\": 1048576"); }), 3,
                {"model.safetensors", "parameters"});
  check_refused(run_program(command + std::string(300, 'x'), at), 3, {"cannot be read", "name too long"});
  CHECK(run_program(command + "run", at).code == 0);

  command = "eval --checkpoint=";
  check_refused(damaged("unknown", "state.json", [](std::string& b) { b.replace(b.find("\"warmup\""), 8, "\"warmap\""); }), 3,
                {"state.json", "options.warmap"});
  check_refused(damaged("malformed", "state.json", [](std::string& b) { b.replace(b.find("\"warmup\": \"2\""), 13, "\"warmup\": \"x\""); }), 3,
                {"state.json", "options.warmup"});

  command = "train --steps=8 --quiet --resume=";
  d.file("config.toml", bytes_of(d / "run/config.toml"));
  check_refused(damaged("last", "state.json", [](std::string& b) { b.replace(b.find("\"warmup\""), 8, "\"warmap\""); }), 3,
                {"last/state.json", "options.warmap"});
  check_refused(damaged("last", "optimizer.safetensors", [](std::string& b) { b.resize(b.size() / 2); }), 3, {"last/optimizer.safetensors"});
  check_refused(damaged("last", "optimizer.safetensors", [](std::string& b) { b.replace(b.find("second_moment"), 6, "fourth"); }), 3,
                {"last/optimizer.safetensors", "second_moment."});
  std::filesystem::remove(d / "last/optimizer.safetensors");
  check_refused(run_program(command + "last", at), 3, {"last/optimizer.safetensors", "No such file"});
}

TEST_CASE("cli: a learning rate that breaks the loss stops, explains, and keeps the last good checkpoint") {
  const TemporaryDirectory d;
  d.file("text.txt", some_text());
  const std::string at = d.path().string();
  const ProgramResult r =
      run_program("train --data=text.txt --out=run --layers=1 --heads=2 --width=16 --context=16 --batch=2 --steps=500 --warmup=0 "
                  "--schedule=constant --learning_rate=1e20 --clip=0 --save_every=1 --evaluate_every=0 --quiet", at);
  // the first update breaks the weights: they are never saved
  check_refused(r, 1, {"step 1: ", "first non-finite value: ", "layer_norm backward", "saved rstd (32) in [0, 0]", "learning_rate", "No checkpoint was saved"});
  CHECK(!std::filesystem::exists(d / "run/last"));
  CHECK(contains(r.output, "run/non_finite.txt has more"));
  const std::string report = bytes_of(d / "run/non_finite.txt");
  CAPTURE(report);
  for (const char* part : {"step 1: ", "learning rate 1e+20", "source: ", "formula: ", "written\n", "not finite", "gradient norms of step 1, the last that was finite\n", "wte.weight"})
    CHECK(contains(report, part));

  REQUIRE(run_program(std::string("train --data=text.txt --out=good ") + kSmall, at).code == 0);
  const std::string weights = bytes_of(d / "good/last/model.safetensors");
  const std::string best = bytes_of(d / "good/best/model.safetensors");
  for (const char* options : {"--learning_rate=1e20 --save_every=1 --evaluate_every=0", "--learning_rate=1e20 --save_every=1 --evaluate_every=1",
                              "--learning_rate=1e300 --save_every=0 --evaluate_every=1"}) {
    CAPTURE(options);
    // a line of validation may come first
    const ProgramResult diverged = run_program(std::string("train --resume=good --steps=12 --quiet ") + options, at);
    CAPTURE(diverged.output);
    CHECK(diverged.code == 1);
    for (const char* part : {"hedgehog: step 7: ", "first non-finite value: ", "untouched in good/last"}) CHECK(contains(diverged.output, part));
    CHECK(bytes_of(d / "good/last/model.safetensors") == weights);
    CHECK(bytes_of(d / "good/best/model.safetensors") == best);
    CHECK(run_program("sample --tokens=3 --checkpoint=good", at).code == 0);
  }
}

TEST_CASE("cli: Ctrl-C saves, prints how to go on, and exits with 130") {
  const TemporaryDirectory d;
  d.file("text.txt", some_text());
  const std::string command = "cd '" + d.path().string() + "'; '" HH_BINARY_DIR "/bin/hedgehog' train --data=text.txt --out=run --layers=1 "
                              "--heads=2 --width=16 --context=16 --batch=2 --steps=1000000 --evaluate_every=0 --save_every=0 --quiet & "
                              "child=$!; while kill -0 $child && [ ! -s run/log.jsonl ]; do sleep 0.05; done; kill -INT $child; wait $child";
  // the first line of the log says that training has begun: only then does a background job heed SIGINT
  const ProgramResult r = test::run_shell(command);
  CAPTURE(r.output);
  CHECK(r.code == 130);
  CHECK(contains(r.output, "./hedgehog train --resume=run"));
  CHECK(std::filesystem::exists(d / "run/last/state.json"));
}

TEST_CASE("cli: --stop_at stops there with a checkpoint, and resume gives the run that never stopped") {
  const TemporaryDirectory d;
  d.file("text.txt", some_text());
  const std::string at = d.path().string(), train = std::string("train --data=text.txt --tokenizer=byte --quiet ") + kSmall;
  const ProgramResult stopped = run_program(train + " --out=run --stop_at=3", at);
  CAPTURE(stopped.output);
  CHECK(stopped.code == 0);
  CHECK(contains(stopped.output, "stopped after step 3; go on with\n  ./hedgehog train --resume=run"));
  CHECK(contains(bytes_of(d / "run/last/state.json"), "\"step\": 3,"));
  REQUIRE(run_program("train --resume=run --quiet", at).code == 0);
  REQUIRE(run_program(train + " --out=whole", at).code == 0);
  CHECK(bytes_of(d / "run/last/model.safetensors") == bytes_of(d / "whole/last/model.safetensors"));
}

TEST_CASE("cli: a run made on a GPU is refused without one, unless --device=cpu is given") {
  const TemporaryDirectory d;
  d.file("text.txt", some_text());
  const std::string at = d.path().string();
  REQUIRE(run_program(std::string("train --data=text.txt --out=run ") + kSmall, at).code == 0);
  std::string state = bytes_of(d / "run/last/state.json");
  const std::string of_cpu = "\"device\": \"cpu\"";
  REQUIRE(state.find(of_cpu) != std::string::npos);
  // of the machine and of the options
  for (std::size_t at_text; (at_text = state.find(of_cpu)) != std::string::npos;) state.replace(at_text, of_cpu.size(), "\"device\": \"cuda\"");
  d.file("run/last/state.json", state);
  check_refused(run_program("train --resume=run --steps=9 --quiet", at), 2, {"the run was made on a GPU, but ", "--device=cpu goes on without one"});
  CHECK(run_program("train --resume=run --steps=9 --quiet --device=cpu", at).code == 0);
}

TEST_CASE("cli: a full disk while saving leaves the old checkpoint good") {
  const TemporaryDirectory d;
  d.file("text.txt", some_text());
  const std::string at = d.path().string(), disk = (d / "disk").string();
  std::filesystem::create_directories(d / "disk");
  if (::getuid() != 0 || test::run_shell("mount -t tmpfs -o size=600k tmpfs '" + disk + "'").code != 0) {
    test::skip("a small file system needs root and mount");
    return;
  }
  struct Unmount {
    const std::string& disk;
    ~Unmount() { test::run_shell("umount '" + disk + "'"); }
  } const unmount{disk};
  REQUIRE(run_program(std::string("train --data=text.txt --out=disk/run --tokenizer=byte ") + kSmall, at).code == 0);
  test::run_shell("head -c 1M /dev/zero > '" + disk + "/filler'");
  const ProgramResult r = run_program("train --resume=disk/run --steps=50 --quiet", at);
  check_refused(r, 1, {"disk/run", "No space left on device"});
  CHECK(run_program("sample --tokens=3 --checkpoint=disk/run", at).code == 0);
}

}  // namespace hedgehog

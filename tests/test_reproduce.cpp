#include <doctest/doctest.h>

#include <cstdio>
#include <filesystem>

#include "core/error.h"
#include "tests/cli_cases.h"
#include "train/commands.h"
#include "train/interrupt.h"
#include "train/reproduce.h"

#include <signal.h>

namespace hedgehog {

using namespace test;
namespace fs = std::filesystem;

namespace {

/// An experiment of three parts, the last of which reads the first; `factor` is one of its settings.
struct Toy {
  int factor = 2;
  std::string training = "width=16 steps=100 seed=1";
  std::vector<std::string> ran;
  std::string stop_in;  // the part that is told to stop while it runs

  Experiment experiment() {
    return {"toy",
            "the paper's claim",
            [this](const ReproduceRequest&) {
              return ExperimentJson{{"factor", factor}, {"task", {{"training", training}}}};
            },
            [](const ReproduceRequest&) {
              return std::vector<ExperimentPart>{{"a"}, {"b"}, {"sum", {"a", "b"}}};
            },
            [this](const ExperimentPart& part, const PartContext& context) {
              ran.push_back(part.name);
              if (part.name == stop_in) {
                ::raise(SIGINT);
                if (context.stopped()) throw Stopped{};
              }
              const int base = part.name == "a" ? 1 : 2;
              const auto value = [&](const char* name) { return context.results.at(name).result.at("value").get<int>(); };
              return ExperimentJson{{"value", part.name == "sum" ? value("a") + value("b") : factor * base}};
            },
            [](const ReproduceRequest&, const PartResults& results) {
              Findings f;
              f.columns = {"part", "paper", "ours"};
              ChartLine line{"<values>", {}, {}};
              for (const auto& [name, part] : results) {
                f.rows.push_back({name, "7", part.result.at("value").dump()});
                line.x.push_back(double(line.x.size()));
                line.y.push_back(part.result.at("value").get<double>());
              }
              f.figures = {{"parts", results.size()}};
              f.notes = {"a <note>"};
              f.charts.push_back(chart_of("values", "part", {line}));
              return f;
            }};
  }
};

/// What a run prints, and its exit code.
ProgramResult run_toy(Toy& toy, const ReproduceRequest& request) {
  std::FILE* out = std::tmpfile();
  const int code = reproduce(toy.experiment(), request, out);
  std::rewind(out);
  std::string text(1 << 16, '\0');
  text.resize(std::fread(text.data(), 1, text.size(), out));
  std::fclose(out);
  return {code, text};
}

ReproduceRequest request_in(const TemporaryDirectory& d) {
  ReproduceRequest request;
  request.folder = d.path();
  return request;
}

}  // namespace

TEST_CASE("reproduce: all parts run once, in order, and the table, the page and the numbers are written") {
  const TemporaryDirectory d;
  Toy toy;
  const ProgramResult first = run_toy(toy, request_in(d));
  CAPTURE(first.output);
  CHECK(first.code == kGood);
  CHECK(toy.ran == std::vector<std::string>{"a", "b", "sum"});
  for (const char* part : {"part  paper  ours\n", "sum   7      6\n", "paper: the paper's claim", "a <note>", "3 parts", " thread"})
    CHECK(contains(first.output, part));
  const std::string page = bytes_of(d / "toy.html");
  for (const char* part : {"<td>sum</td><td>7</td><td>6</td>", "a &lt;note&gt;", "\\u003cvalues>", "<td>factor</td><td>2</td>"})
    CHECK(contains(page, part));
  const auto numbers = nlohmann::json::parse(bytes_of(d / "toy.json"));
  CHECK(numbers["figures"]["parts"] == 3);
  CHECK(numbers["rows"][2][2] == "6");
  CHECK(numbers["settings"]["size"] == "small");
  // nothing is left to run
  CHECK(run_toy(toy, request_in(d)).code == kGood);
  CHECK(toy.ran.size() == 3);
}

TEST_CASE("reproduce: shares and names of parts; what waits for others says so; --collect shows what is there") {
  const TemporaryDirectory d;
  Toy toy;
  ReproduceRequest request = request_in(d);
  request.part = "sum";
  CHECK(contains(run_toy(toy, request).output, "sum waits for a, b"));
  CHECK(toy.ran.empty());
  request.part = "1/2";  // a and sum
  const ProgramResult share = run_toy(toy, request);
  CHECK(toy.ran == std::vector<std::string>{"a"});
  CHECK(contains(share.output, "1 of 3 parts are there, 2 to go: b, sum"));
  CHECK_FALSE(fs::exists(d / "toy.html"));
  request.collect = true;
  const ProgramResult partial = run_toy(toy, request);
  CHECK(contains(partial.output, "2 of 3 parts are missing: b, sum"));
  CHECK(fs::exists(d / "toy.html"));
  request.collect = false;
  request.part = "sum,b";
  CHECK(contains(run_toy(toy, request).output, "sum   7      6"));
  CHECK(toy.ran == std::vector<std::string>{"a", "b", "sum"});
}

TEST_CASE("reproduce: an interruption keeps the finished parts, and the next run goes on") {
  const TemporaryDirectory d;
  Toy toy;
  toy.stop_in = "b";
  const ProgramResult stopped = run_toy(toy, request_in(d));
  CHECK(stopped.code == kInterrupted);
  CHECK(contains(stopped.output, "interrupted in b; finished parts stay"));
  CHECK(fs::exists(d / "parts/a.json"));
  CHECK_FALSE(fs::exists(d / "parts/b.json"));
  toy.stop_in = "";
  toy.ran.clear();
  CHECK(run_toy(toy, request_in(d)).code == kGood);
  CHECK(toy.ran == std::vector<std::string>{"b", "sum"});
}

TEST_CASE("reproduce: a time limit lets the first part through and begins none that would end later") {
  const TemporaryDirectory d;
  Toy toy;
  ReproduceRequest request = request_in(d);
  request.minutes = 1e-9;
  const ProgramResult r = run_toy(toy, request);
  CHECK(r.code == kGood);
  CHECK(toy.ran == std::vector<std::string>{"a"});
  CHECK(contains(r.output, "stopped: another part"));
}

TEST_CASE("reproduce: parts made with other settings are made again, and not collected") {
  const TemporaryDirectory d;
  Toy toy;
  REQUIRE(run_toy(toy, request_in(d)).code == kGood);
  toy.factor = 3;
  ReproduceRequest request = request_in(d);
  request.collect = true;
  const std::string refused = message_of<UsageError>([&] { run_toy(toy, request); });
  CAPTURE(refused);
  CHECK(contains(refused, "a.json was made with another factor (3 now, 2 then)"));
  request.collect = false;
  toy.ran.clear();
  CHECK(contains(run_toy(toy, request).output, "sum   7      9"));
  CHECK(toy.ran.size() == 3);
  // of a long text only what differs
  toy.training = "width=16 steps=20 seed=1";
  request.collect = true;
  CHECK(contains(message_of<UsageError>([&] { run_toy(toy, request); }),
                 "another task: training (steps=20 now, steps=100 then) and 2 more"));
  toy.training = "width=16 steps=100 seed=1 more=2";
  CHECK(contains(message_of<UsageError>([&] { run_toy(toy, request); }), "training (more=2 now, nothing then)"));
  toy.training = "width=16 steps=100 seed=1";
  // the size is one of the settings
  request.size = "gpu";
  request.collect = true;
  CHECK(contains(message_of<UsageError>([&] { run_toy(toy, request); }), "another size"));
}

TEST_CASE("reproduce: broken files of parts, and folders without any, are refused by name") {
  const TemporaryDirectory d;
  Toy toy;
  ReproduceRequest request = request_in(d);
  request.collect = true;
  CHECK(contains(message_of<UsageError>([&] { run_toy(toy, request); }), "nothing to collect"));
  request.collect = false;
  REQUIRE(run_toy(toy, request).code == kGood);
  const std::string good = bytes_of(d / "parts/a.json");
  const auto changed = [&](const std::string& from, const std::string& to) {
    std::string text = good;
    REQUIRE(text.find(from) != std::string::npos);
    return text.replace(text.find(from), from.size(), to);
  };
  for (const std::string& bytes :
       {std::string(), std::string("{"), good.substr(0, good.size() / 2), std::string("[1]"), std::string("\xff\xfe"),
        changed("\"toy\"", "\"other\""), changed("\"part\": \"a\"", "\"part\": \"b\""), changed("\"seconds\"", "\"second\""),
        changed("\"result\": {", "\"results\": {"), changed("\"settings\": {", "\"settings\": 3, \"more\": {"),
        changed("\"value\": 2", "\"values\": 2"), changed("\"value\": 2", "\"value\": \"two\"")}) {
    CAPTURE(bytes);
    d.file("parts/a.json", bytes);
    const std::string message = message_of<FileError>([&] { run_toy(toy, request); });
    CAPTURE(message);
    CHECK(contains(message, (d / "parts").string()));
    CHECK(contains(message, "remove it"));
  }
}

TEST_CASE("reproduce: names of parts, shares and seeds are checked") {
  const std::vector<ExperimentPart> parts = {{"elu-seed1"}, {"elu-seed2"}, {"softmax-seed1"}};
  CHECK(selected_parts(parts, "").size() == 3);
  CHECK(selected_parts(parts, "2/2").size() == 1);
  CHECK(selected_parts(parts, "softmax-seed1,elu-seed1")[0].name == "elu-seed1");
  CHECK(contains(message_of<UsageError>([&] { selected_parts(parts, "elu-seed3"); }), "did you mean elu-seed"));
  CHECK(contains(message_of<UsageError>([&] { selected_parts(parts, "x"); }), "there are elu-seed1, elu-seed2"));
  for (const char* bad : {"0/2", "3/2", "1/0", "-1/2", "a/2", "1/", "1.5/2"}) {
    CAPTURE(bad);
    CHECK(contains(message_of<UsageError>([&] { selected_parts(parts, bad); }), "--part="));
  }
  CHECK(parse_seeds("3,1") == std::vector<std::int64_t>{3, 1});
  for (const char* bad : {"", "1,", "a", "1,1", "-2", "1;2"}) {
    CAPTURE(bad);
    CHECK(contains(message_of<UsageError>([&] { parse_seeds(bad); }), "--seeds"));
  }
}

TEST_CASE("reproduce: mean and standard error by hand") {
  CHECK(text_of(mean_and_error({}), 1) == "-");
  CHECK(text_of(mean_and_error({12.34}), 1) == "12.3");
  // variance with n - 1: (1 + 0 + 1) / 2 = 1; error 1 / sqrt(3)
  CHECK(text_of(mean_and_error({1, 2, 3}), 3) == "2.000 ± 0.577");
}

TEST_CASE("cli: reproduce lists experiments and refuses what it cannot do in one line") {
  const TemporaryDirectory d;
  const std::string at = d.path().string();
  const ProgramResult list = run_program("reproduce", at);
  CHECK(list.code == 0);
  for (const char* name : {"recall", "scratch"}) CHECK(contains(list.output, name));
  check_refused(run_program("reproduce recal", at), 2, {"'recal'", "did you mean recall?"});
  check_refused(run_program("reproduce xyzzyxyzzy", at), 2, {"unknown experiment", "recall, scratch"});
  check_refused(run_program("reproduce recall scratch", at), 2, {"unexpected argument 'scratch'"});
  check_refused(run_program("reproduce recall --size=tiny", at), 2, {"--size", "small, gpu"});
  check_refused(run_program("reproduce recall --part=9/3", at), 2, {"--part=9/3", "out of range"});
  check_refused(run_program("reproduce recall --part=paper-elu-seed9", at), 2, {"paper-elu-seed9", "did you mean"});
  check_refused(run_program("reproduce recall --seeds=one", at), 2, {"--seeds", "'one'"});
  check_refused(run_program("reproduce recall --collect", at), 2, {"nothing to collect", "reproduce/recall-small"});
  d.file("file", "text");
  check_refused(run_program("reproduce recall --out=file", at), 1, {"file"});
  check_refused(run_program("train recall", at), 2, {"unexpected argument 'recall'"});
}

}  // namespace hedgehog

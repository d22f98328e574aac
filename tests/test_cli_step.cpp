#include <fstream>

#include "tests/cli_cases.h"

using namespace hedgehog;
using namespace hedgehog::test;

namespace {

/// The program with these lines on its standard input. Arguments without double quotes.
ProgramResult piped(const std::string& lines, const std::string& arguments) {
  return run_shell("sh -c \"printf '" + lines + "' | CUDA_VISIBLE_DEVICES= '" HH_BINARY_DIR "/bin/hedgehog' " + arguments + "\"");
}

}  // namespace

TEST_CASE("cli: step lists its examples and lessons, and runs a lesson and a script") {
  const ProgramResult list = run_program("step --example=list");
  CHECK(list.code == 0);
  for (const char* part : {"normaliser-mistake", "running-state", "--expr="}) CHECK(contains(list.output, part));
  const ProgramResult lesson = run_program("step --lesson=chain-rule");
  CHECK(lesson.code == 0);
  CHECK(contains(lesson.output, "dL/dp = 2"));
  const TemporaryDirectory folder;
  std::ofstream(folder.path() / "good.txt") << "# a comment\n\nwhy w[0,1]\ncheck w\n";
  std::ofstream(folder.path() / "bad.txt") << "why w[0,1]\nwhy v\n";
  std::ofstream(folder.path() / "lesson.md") << "# Mine\nText.\n> open L = x^3; x = 2\n> why x\n";
  const ProgramResult good = run_program("step --example=matmul --script=" + (folder.path() / "good.txt").string());
  CHECK(good.code == 0);
  CHECK(contains(good.output, "4 of 4 elements agree"));
  const ProgramResult bad = run_program("step --example=matmul --script=" + (folder.path() / "bad.txt").string());
  CHECK(bad.code == 1);
  CHECK(contains(bad.output, "no tensor is called 'v'"));
  const ProgramResult mine = run_program("step --lesson=" + (folder.path() / "lesson.md").string());
  CHECK(mine.code == 0);
  CHECK(contains(mine.output, "dL/dx = 12"));
}

TEST_CASE("cli: step reads commands from a pipe, ends with them, and computes in f32 when asked") {
  const ProgramResult r = piped("next 3\\nwhy x\\n", "step --expr='L = (x*y + 3)^2; x = 2; y = -1'");
  CHECK(r.code == 0);
  CHECK(contains(r.output, "dL/dx = -2"));
  CHECK(!contains(r.output, "\x1b["));
  CHECK(piped("nonsense\\n", "step").code == 1);
  const ProgramResult narrow = piped("check w\\n", "step --example=matmul --dtype=f32");
  CHECK(contains(narrow.output, "4 of 4 elements agree"));
  CHECK(!contains(narrow.output, "✗"));
  CHECK(contains(piped("what-if x += 1e-9\\n", "step --expr='L = x + 1; x = 1' --dtype=f32").output, "computed    0:"));  // lost in f32
  CHECK(!contains(piped("what-if x += 1e-9\\n", "step --expr='L = x + 1; x = 1'").output, "computed    0:"));
}

TEST_CASE("cli: step through a checkpoint on a text") {
  const TemporaryDirectory folder;
  std::ofstream(folder.path() / "text.txt") << some_text();
  const std::string run = (folder.path() / "run").string();
  REQUIRE(run_program("train " + std::string(kSmall) + "--data=" + (folder.path() / "text.txt").string() + " --out=" + run).code == 0);
  const ProgramResult r = piped("check h.0.attn.map_q.weight\\n", "step --checkpoint=" + run + " --text='the hedge'");
  CAPTURE(r.output);
  CHECK(r.code == 0);
  CHECK(contains(r.output, "elements agree with central differences"));
  CHECK(!contains(r.output, "✗"));
  check_refused(run_program("step --checkpoint=" + run), 2, {"--text"});
  check_refused(run_program("step --checkpoint=" + run + " --text=a"), 2, {"at least two tokens"});
  check_refused(run_program("step --checkpoint=" + run + " --text='a text that is longer than the context of that model'"), 2, {"context is 16"});
  check_refused(run_program("step --checkpoint=" + run + "/none --text=abc"), 3, {"none"});
}

TEST_CASE("cli: step writes pages for a browser") {
  const TemporaryDirectory folder;
  const std::string page = (folder.path() / "page.html").string(), all = (folder.path() / "all").string();
  CHECK(run_program("step --expr='L = x^2; x = 3' --html=" + page).code == 0);
  CHECK(contains(bytes_of(page), "L = x^2; x = 3"));
  CHECK(piped("html " + page + "\\n", "step --example=scalar").code == 0);
  CHECK(run_program("step --html=" + all + " --all").code == 0);
  const std::string index = bytes_of(folder.path() / "all/index.html");
  for (const char* name : {"scalar", "hedgehog", "training"}) {
    CHECK(contains(index, std::string("href=\"") + name + ".html\""));
    CHECK(std::filesystem::file_size(folder.path() / "all" / (std::string(name) + ".html")) > 20000);
  }
  check_refused(run_program("step --html=/no/such/folder/page.html"), 1,
                {"page.html cannot be written: there is no directory /no/such/folder; make it first"});
  check_refused(run_program("step --all"), 2, {"--html=DIRECTORY"});
  check_refused(run_program("step --all --example=scalar --html=" + all), 2, {"--all writes every example"});
  check_refused(run_program("step --html=" + all), 2, {"is a directory", "--all"});
  check_refused(run_program("step --lesson=paths --html=" + page), 2, {"--html goes with"});
}

TEST_CASE("cli: step NAME is an example, or a lesson where no example is called so") {
  CHECK(contains(piped("print w\\n", "step matmul").output, "matmul: a matrix product"));
  CHECK(contains(run_program("step chain-rule").output, "# The chain rule on two numbers"));
  CHECK(contains(piped("\\n", "step paths").output, "paths: two numbers"));  // both are called so
  CHECK(contains(run_program("step list").output, "normaliser-mistake"));
  CHECK(contains(run_program("step --help").output, "hedgehog step NAME: "));
  const TemporaryDirectory folder;
  const std::string page = (folder.path() / "page.html").string();
  CHECK(run_program("step scalar --html=" + page).code == 0);
  CHECK(contains(bytes_of(page), "the chain rule on two numbers"));
  check_refused(run_program("step matmull"), 2, {"no example and no lesson is called 'matmull'", "did you mean 'matmul'?"});
  check_refused(run_program("step chain-rul"), 2, {"did you mean 'chain-rule'?"});
  check_refused(run_program("step qqqqqq"), 2, {"step list shows them"});
  check_refused(run_program("step scalar --expr=L=x"), 2, {"one of NAME, --example"});
  check_refused(run_program("step scalar --all --html=" + page), 2, {"leave NAME"});
}

TEST_CASE("cli: step refuses what it cannot do") {
  check_refused(run_program("step --example=hedgehgo"), 2, {"hedgehgo", "hedgehog"});
  check_refused(run_program("step --example=scalar --lesson=paths"), 2, {"one of NAME, --example"});
  check_refused(run_program("step --lesson=chain-rul"), 2, {"did you mean 'chain-rule'"});
  check_refused(run_program("step --lesson=paths --script=x"), 2, {"not both"});
  check_refused(run_program("step --script=/no/such/file"), 3, {"/no/such/file"});
  check_refused(run_program("step --expr='L = x'"), 2, {"'x' has no value"});
  check_refused(run_program("step --dtype=bf16"), 2, {"bf16"});
}

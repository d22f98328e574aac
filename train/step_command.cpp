#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>
#include <memory>
#include <sstream>

#include "core/error.h"
#include "nn/step_session.h"
#include "train/commands.h"
#include "train/expression.h"
#include "train/files.h"
#include "train/lessons.h"
#include "train/setup.h"
#include "train/step_programs.h"

namespace hedgehog {
namespace {

constexpr std::size_t kLongestScript = std::size_t(1) << 20;  // bytes

Dtype dtype_of(const Config& config) {
  const std::string name = config.text("dtype");
  if (name == "auto" || name == "f64") return Dtype::f64;
  if (name == "f32") return Dtype::f32;
  throw UsageError(fmt::format("step computes in f64, or in f32 to show its rounding; got --dtype={}", name));
}

/// An example's name, or a formula.
Program program_of(const std::string& what, Dtype dtype) {
  return what.find('=') == std::string::npos ? find_step_example(what).program(dtype) : expression_program(what);
}

Program first_program(const Config& config, Dtype dtype) {
  if (config.was_set("checkpoint") || config.has("text")) {
    if (!config.has("text")) throw UsageError("step --checkpoint needs --text=\"…\", a few tokens to step through");
    return checkpoint_program(config.text("checkpoint"), config.text("text"), dtype);
  }
  return config.has("expr") ? expression_program(config.text("expr")) : program_of(config.text("example"), dtype);
}

void list_examples() {
  fmt::print("hedgehog step --example=NAME\n\n");
  for (const StepExample& e : step_examples()) fmt::print("  {:<20}{}\n", e.name, e.help);
  fmt::print("\nhedgehog step --lesson=NAME\n\n");
  for (const Lesson& lesson : lessons()) fmt::print("  {:<20}{}\n", lesson.name, lesson.title);
  fmt::print("\nhedgehog step --expr=\"L = (x*y + 3)^2; x = 2; y = -1\"\nhedgehog step --checkpoint=RUN --text=\"Once upon\"\n");
}

/// Runs the lines of a script, or of a lesson those that begin with "> ", and shows the others.
bool run_lines(StepSession& session, const std::string& text, bool lesson) {
  std::istringstream lines(text);
  std::string line;
  while (std::getline(lines, line)) {
    if (!lesson && (line.empty() || line[0] == '#')) continue;
    const bool command = !lesson || line.starts_with("> ");
    if (!command) {
      fmt::print("{}\n", line);
      continue;
    }
    const std::string what = lesson ? line.substr(2) : line;
    fmt::print("> {}\n", what);
    if (!session.run(what)) break;
  }
  return !session.failed();
}

}  // namespace

int step_command(Config& config) {
  const Dtype dtype = dtype_of(config);
  const int sources = int(config.was_set("example")) + int(config.has("expr")) + int(config.has("text") || config.was_set("checkpoint")) + int(config.has("lesson"));
  if (sources > 1) throw UsageError("step takes one of --example, --expr, --lesson, and --checkpoint with --text");
  if (config.has("lesson") && config.has("script")) throw UsageError("step takes --lesson or --script, not both");
  if (config.text("example") == "list") {
    list_examples();
    return kGood;
  }
  const OnDevice guard(cpu_device());
  StepSessionOptions options;
  options.open = [dtype](const std::string& what) { return program_of(what, dtype); };
  const bool terminal = isatty(STDOUT_FILENO) && !std::getenv("NO_COLOR");
  if (config.has("lesson") || config.has("script")) {
    const std::string text = config.has("lesson") ? lesson_text(config.text("lesson")) : read_file(config.text("script"), kLongestScript);
    options.color = terminal;
    StepSession session(first_program(config, dtype), stdout, options);
    return run_lines(session, text, config.has("lesson")) ? kGood : kRunFailed;
  }
  const bool understood = step_through(first_program(config, dtype), stdin, stdout, options);
  return understood || isatty(STDIN_FILENO) ? kGood : kRunFailed;
}

}  // namespace hedgehog

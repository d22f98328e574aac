#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <sstream>

#include "core/error.h"
#include "core/nearest_name.h"
#include "nn/step_session.h"
#include "ops/cpu.h"
#include "train/commands.h"
#include "train/expression.h"
#include "train/files.h"
#include "train/lessons.h"
#include "train/page.h"
#include "train/setup.h"
#include "train/step_page.h"
#include "train/step_programs.h"
#include "train/utf8.h"

namespace hedgehog {
namespace {

constexpr std::size_t kLongestScript = std::size_t(1) << 20;  // bytes

Dtype dtype_of(const Config& config) {
  const std::string name = config.text("dtype");
  if (name == "auto" || name == "f64") return Dtype::f64;
  if (name == "f32") return Dtype::f32;
  throw UsageError(fmt::format("step computes in f64, or in f32 to show its rounding; got --dtype={}", name));
}

TitledProgram example_program(const std::string& name, Dtype dtype) {
  const StepExample& example = find_step_example(name);
  return {fmt::format("{}: {}", example.name, example.help), example.program(dtype)};
}

/// An example's name, or a formula.
TitledProgram program_of(const std::string& what, Dtype dtype) {
  return what.find('=') == std::string::npos ? example_program(what, dtype) : TitledProgram{what, expression_program(what, dtype)};
}

TitledProgram first_program(const Config& config, Dtype dtype) {
  if (config.was_set("checkpoint") || config.has("text")) {
    if (!config.has("text")) throw UsageError("step --checkpoint needs --text=\"…\", a few tokens to step through");
    const std::string checkpoint = config.text("checkpoint"), text = config.text("text");
    return {fmt::format("{} reads “{}”", checkpoint, text), checkpoint_program(checkpoint, text, dtype)};
  }
  if (config.has("expr")) return {config.text("expr"), expression_program(config.text("expr"), dtype)};
  return example_program(config.text("example"), dtype);
}

/// `step NAME` is short for --example=NAME; for --lesson=NAME where no example is called so.
void take_name(Config& config) {
  const std::string name = config.argument();
  if (name.empty()) return;
  std::vector<std::string> known;
  const auto has = [&](const auto& all) {
    for (const auto& one : all) known.push_back(one.name);
    return std::any_of(all.begin(), all.end(), [&](const auto& one) { return one.name == name; });
  };
  if (name == "list" || has(step_examples())) return config.set("example", name, OptionSource::kFlag);
  if (has(lessons())) return config.set("lesson", name, OptionSource::kFlag);
  const std::string nearest = nearest_name(name, known);
  throw UsageError(fmt::format("no example and no lesson is called '{}'; {}", valid_utf8(name),
                               nearest.empty() ? "step list shows them" : "did you mean '" + nearest + "'?"));
}

void list_examples() {
  fmt::print("hedgehog step NAME, or --example=NAME\n\n");
  for (const StepExample& e : step_examples()) fmt::print("  {:<20}{}\n", e.name, e.help);
  fmt::print("\nhedgehog step NAME, or --lesson=NAME where an example is called so too\n\n");
  for (const Lesson& lesson : lessons()) fmt::print("  {:<20}{}\n", lesson.name, lesson.title);
  fmt::print("\nhedgehog step --expr=\"L = (x*y + 3)^2; x = 2; y = -1\"\nhedgehog step --checkpoint=RUN --text=\"Once upon\"\n");
}

void write_page(const Stepper& stepper, const std::string& title, const std::filesystem::path& file) {
  std::error_code ignored;
  if (std::filesystem::is_directory(file, ignored))
    throw UsageError(fmt::format("{} is a directory; name a file for the page, or add --all", file.string()));
  const std::filesystem::path folder = file.parent_path();
  if (!folder.empty() && !std::filesystem::is_directory(folder, ignored))
    throw WriteError(fmt::format("{} cannot be written: there is no directory {}; make it first", file.string(), folder.string()));
  replace_file(file, step_page(stepper, {.title = title}));
}

/// A page for every example, and one that links to them.
void write_all_pages(const std::filesystem::path& directory, Dtype dtype) {
  std::error_code error;
  std::filesystem::create_directories(directory, error);
  if (error) throw WriteError(fmt::format("the directory {} cannot be made: {}", directory.string(), error.message()));
  std::string links = "<ul>\n";
  for (const StepExample& e : step_examples()) {
    const TitledProgram example = example_program(e.name, dtype);
    write_page(Stepper(example.program), example.title, directory / (e.name + ".html"));
    links += fmt::format("<li><a href=\"{0}.html\">{0}</a>: {1}</li>\n", escape_html(e.name), escape_html(e.help));
  }
  replace_file(directory / "index.html", page_html("Gradients, step by step", links + "</ul>\n", nlohmann::ordered_json::array(), ""));
}

/// Runs the lines of a script, or of a lesson those that begin with "> ", and shows the others.
bool run_lines(StepSession& session, const std::string& text, bool lesson) {
  std::istringstream lines(text);
  std::string line;
  while (std::getline(lines, line)) {
    const std::size_t begin = line.find_first_not_of(" \t\r");
    if (!lesson && (begin == std::string::npos || line[begin] == '#')) continue;
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
  const bool from_checkpoint = config.has("text") || config.was_set("checkpoint");
  const int options_given = int(config.was_set("example")) + int(config.has("expr")) + int(from_checkpoint) + int(config.has("lesson"));
  const int sources = options_given + int(!config.argument().empty());
  if (sources > 1) throw UsageError("step takes one of NAME, --example, --expr, --lesson, and --checkpoint with --text");
  take_name(config);
  if (config.has("lesson") && config.has("script")) throw UsageError("step takes --lesson or --script, not both");
  if (config.text("example") == "list" || (config.has("lesson") && config.text("lesson") == "list")) {
    list_examples();
    return kGood;
  }
  const OnDevice guard(cpu_device());
  set_thread_count(1);  // programs are small: more threads wait for each other
  StepSessionOptions options;
  options.open = [dtype](const std::string& what) { return program_of(what, dtype); };
  options.html = [](const Stepper& stepper, const std::string& title, const std::string& file) { write_page(stepper, title, file); };
  if (config.flag("all") && sources > 0)
    throw UsageError("step --all writes every example; leave NAME, --example, --expr, --lesson and --checkpoint out");
  if (config.flag("all") && !config.has("html")) throw UsageError("step --all needs --html=DIRECTORY for its pages");
  if (config.has("html")) {
    if (config.has("lesson") || config.has("script"))
      throw UsageError("step writes a page of a program: --html goes with --example, --expr, --checkpoint, or --all");
    if (config.flag("all")) {
      write_all_pages(config.text("html"), dtype);
    } else {
      const TitledProgram first = first_program(config, dtype);
      write_page(Stepper(first.program), first.title, config.text("html"));
    }
    fmt::print("written {}\n", config.text("html"));
    return kGood;
  }
  TitledProgram first = first_program(config, dtype);
  options.title = first.title;
  const bool terminal = isatty(STDOUT_FILENO) && !std::getenv("NO_COLOR");
  if (config.has("lesson") || config.has("script")) {
    const std::string text = config.has("lesson") ? lesson_text(config.text("lesson")) : read_file(config.text("script"), kLongestScript);
    options.color = terminal;
    StepSession session(std::move(first.program), stdout, options);
    return run_lines(session, text, config.has("lesson")) ? kGood : kRunFailed;
  }
  const bool understood = step_through(std::move(first.program), stdin, stdout, options);
  return understood || isatty(STDIN_FILENO) ? kGood : kRunFailed;
}

}  // namespace hedgehog

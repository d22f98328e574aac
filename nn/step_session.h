#pragma once
#include <cstdio>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/stepper.h"
#include "nn/step_text.h"

namespace hedgehog {

/// A program, and one line that says what it is.
struct TitledProgram {
  std::string title;
  Program program;
};

/// What a session may do besides.
///
/// color  escape codes on a terminal
/// title  says what the program is, if not empty
/// open   the program that `open WHAT` asks for; throws UsageError. Empty: there is no such command
/// html   writes the page of a program to a file; throws WriteError. Empty: there is no such command
struct StepSessionOptions {
  bool color = false;
  std::string title = {};
  std::function<TitledProgram(const std::string& what)> open = {};
  std::function<void(const Stepper& stepper, const std::string& title, const std::string& file)> html = {};
};

/// The stepper as a conversation: one line in, some lines out.
///
///   next, back, goto, until, list, print, why, check, what-if, expand, …   (help lists them)
///
/// Beside every gradient that it shows is a tick where it equals a central difference of the loss (of a tensor: along a random direction),
/// a cross where it does not, or why neither can be said.
class StepSession {
 public:
  StepSession(Program program, std::FILE* out, StepSessionOptions options = {});

  /// Does what a line says; what is wrong with it is said, not thrown. False after `quit`.
  bool run(const std::string& line);
  /// Whether a line was not understood, or could not be done, so far.
  bool failed() const { return failed_; }
  const Stepper& stepper() const { return *steppers_.back().stepper; }
  /// Shows where the cursor is, and what the last step made.
  void show();
  /// What to type first, with a name of this program.
  std::string hint() const;
  /// "step 3/12> ", inside an op behind its name.
  std::string prompt() const;

 private:
  struct Level {
    std::unique_ptr<Stepper> stepper;
    std::string title;
    std::string op = {};  // that was expanded; empty for the program itself
  };
  struct Command {
    std::string name, argument, help;
    std::function<void(const std::string& argument)> run;
    std::string group;
    std::string more;  // lines that `help COMMAND` adds
  };

  Stepper& top() { return *steppers_.back().stepper; }
  void add_commands();
  void help(const std::string& name);
  void next(const std::string& count);
  void back(const std::string& count);
  void go(const std::string& where);
  void until(const std::string& condition);
  void list(const std::string& all);
  void print(const std::string& what);
  void why(const std::string& what);
  void check(const std::string& what);
  void check_all();
  void what_if(const std::string& what);
  void expand();
  void collapse();
  void statistics_of(const std::string& name);
  void opening();
  void say(const std::string& text) const;
  void say_tensor(const std::string& name, const Tensor& x, std::size_t most, const std::string& proof) const;
  /// The name of what this step made, or gave a gradient to.
  std::string here() const;
  /// The tensor and the element; without indices the element with the largest gradient.
  std::pair<Tensor, std::int64_t> element(const std::string& text);
  /// What a gradient of this program may be asked for by; empty if no parameter has one.
  std::string example() const;
  /// Whether that many checks take no time that is noticed.
  bool cheap(std::size_t checks) const;
  /// What is said beside the gradient of x, as it is at this step: of all of it, or of one element.
  std::string proof(const Tensor& x, std::optional<std::int64_t> element = {}) const;

  std::vector<Level> steppers_;  // the last one is shown, those before it are what it was expanded from
  std::FILE* out_;
  StepSessionOptions options_;
  Style style_;
  std::vector<Command> commands_;
  bool failed_ = false, done_ = false;
};

/// Opens the stepper on a program: on a terminal with colour, cursor keys and lines that can be mended, else line by line. Returns when
/// the input ends, or at `quit`.
///
///   step_through(record([&] { Tensor loss = mean(square(matmul(x, w))); backward(loss); return Tensors{loss}; }));
///
/// Returns whether every line was understood.
bool step_through(Program program, std::FILE* in = stdin, std::FILE* out = stdout, StepSessionOptions options = {});

}  // namespace hedgehog

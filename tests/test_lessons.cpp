#include <doctest/doctest.h>

#include <algorithm>
#include <functional>
#include <map>
#include <regex>
#include <set>
#include <sstream>

#include "core/text.h"
#include "ops/ops.h"
#include "tests/op_cases.h"
#include "tests/step_talk.h"
#include "tests/tape_cases.h"
#include "train/lessons.h"

// What the README says of lessons: every gradient in every lesson has a check that passes, and planted mistakes are crossed.

using namespace hedgehog;
using namespace hedgehog::test;

namespace {

constexpr std::int64_t kElements = 24;  // of a tensor that are checked one by one, spread over it

/// Tensors with a planted mistake between them and the loss, by example.
const std::map<std::string, std::set<std::string>> kWrong = {
    // z is cut off: what it is computed from lacks that path, v and what comes after z lack nothing
    {"normaliser-mistake", {"A", "matmul1", "exp1", "exp2", "q", "k"}},
    // exp(-u) is cut off from u
    {"map-mistake", {"u", "x", "w"}},
};

/// Runs the commands of a lesson one by one.
void follow(const Lesson& lesson, Talk& talk, const std::function<void(const std::string& command, const std::string& answer)>& visit) {
  std::istringstream lines(lesson.text);
  for (std::string line; std::getline(lines, line);)
    if (line.starts_with("> ")) visit(line.substr(2), talk(line.substr(2)));
}

/// How many gradients the program has; all of them are checked, and those of tensors in `wrong` must fail.
std::int64_t check_gradients(const Stepper& stepper, const std::set<std::string>& wrong) {
  std::int64_t gradients = 0;
  for (const std::string& name : stepper.names()) {
    const Tensor x = stepper.find(name);
    if (stepper.primal_of(x) || !stepper.gradient_of(x)) continue;
    CAPTURE(name);
    ++gradients;
    const bool right = !wrong.contains(name);
    const DifferenceCheck direction = stepper.check_direction(x);
    CAPTURE(direction.error);
    CHECK(direction.passed == right);
    CHECK(!direction.kink);
    CHECK(!direction.unresolved);
    for (std::int64_t k = 0; k < std::min(kElements, x.size()); ++k) {
      const std::int64_t i = k * x.size() / std::min(kElements, x.size());
      const DifferenceCheck check = stepper.check(x, i);
      CAPTURE(i);
      CAPTURE(check.analytic);
      CAPTURE(check.numeric);
      // what the mask hides is 0 with the mistake as without
      CHECK(check.passed == (right || (check.analytic == 0 && check.numeric == 0)));
      CHECK(!check.kink);
      CHECK(!check.unresolved);
    }
  }
  return gradients;
}

/// Whether a line shows the number of a gradient without saying whether it is right.
bool bare(const std::string& line) {
  static const std::regex gradient(R"(^ *(dL/d\S+|\S+\.grad|\S+\.grad\[[0-9,]+\])( = -?[0-9]| \([0-9, ]+\)|  ))");
  static const std::regex proved(R"(✓|✗|~ not|\? hidden|\(not complete before step|\(changed since backward\))");
  static const std::regex term(R"(^ +\S+ = .* × )"), upstream(R"( = \S+ (✓|✗) × )");
  if (line.starts_with("step ")) return false;  // what a step does
  if (std::regex_search(line, term)) return !std::regex_search(line, upstream);
  return std::regex_search(line, gradient) && !std::regex_search(line, proved);
}

}  // namespace

TEST_CASE("lessons: every gradient of every program that is opened or expanded is proved, those behind a planted mistake are crossed") {
  const Threads one(1);
  CHECK(lessons().size() == 10);
  std::int64_t gradients = 0;
  for (const Lesson& lesson : lessons()) {
    CAPTURE(lesson.name);
    Talk talk(opened("scalar").program);
    follow(lesson, talk, [&](const std::string& command, const std::string&) {
      CAPTURE(command);
      if (!command.starts_with("open ") && command != "expand") return;
      const auto wrong = kWrong.find(command.substr(command.find(' ') + 1));
      const std::int64_t count = check_gradients(talk.session().stepper(), wrong == kWrong.end() ? std::set<std::string>{} : wrong->second);
      CHECK(count >= 2);
      gradients += count;
    });
    CHECK(!talk.session().failed());
  }
  MESSAGE(gradients << " gradients");
}

TEST_CASE("lessons: a tick or a cross is beside every gradient that is shown, a cross where a mistake was planted and nowhere else") {
  const Threads one(1);
  for (const Lesson& lesson : lessons()) {
    CAPTURE(lesson.name);
    Talk talk(opened("scalar").program);
    std::string all, example;
    std::map<std::string, bool> crossed;  // by example
    follow(lesson, talk, [&](const std::string& command, const std::string& answer) {
      if (command.starts_with("open ")) example = command.substr(5);
      all += answer;
      crossed[example] |= mentions(answer, "✗");
      std::istringstream lines(answer);
      for (std::string line; std::getline(lines, line);) {
        CAPTURE(line);
        CHECK(!bare(line));
      }
    });
    CHECK(mentions(all, "✓"));
    for (const auto& [name, cross] : crossed) {
      CAPTURE(name);
      CHECK(cross == kWrong.contains(name));
    }
    Talk again(opened("scalar").program);
    std::string same;
    follow(lesson, again, [&](const std::string&, const std::string& answer) { same += answer; });
    CHECK(same == all);
  }
  for (const char* line : {"dL/dx = -2", "  x.grad = -2", "x.grad[0,1] = 3", "  x.grad (2, 4)", "        -2 = 2 × -1   dL/dy × dy/dx"}) {
    CAPTURE(line);
    CHECK(bare(line));
  }
}

TEST_CASE("lessons: every example has right gradients, but for the planted mistakes") {
  const Threads one(1);
  for (const StepExample& example : step_examples()) {
    CAPTURE(example.name);
    const auto wrong = kWrong.find(example.name);
    check_gradients(Stepper(example.program(Dtype::f64)), wrong == kWrong.end() ? std::set<std::string>{} : wrong->second);
  }
}

TEST_CASE("lessons: a wrong backward inside a lesson's program is crossed where it is shown") {
  Op wrong = find_op("exp");
  wrong.backward.cpu = [](const Call& c) {
    for (std::int64_t i = 0; i < c.dx[0].size(); ++i) c.dx[0].as<double>()[i] = c.dy[0].as<double>()[i];
  };
  const Tensor x = leaf({2}, {0.5, 1}, "x");
  Talk talk(record([&] {
    const Tensor loss = named(sum(square(named(apply(wrong, {}, {x * 2.0})[0], "e"))), "L");
    backward(loss);
    return Tensors{loss};
  }));
  CHECK(mentions(talk("goto e.grad"), "e.grad (2)   ✓"));
  CHECK(mentions(talk("goto affine1.grad"), "affine1.grad (2)   ✗"));
  const std::string why = talk("why x[1]");
  CHECK(mentions(why, "dL/dx[1] = 29.556 ✗ its central difference is 218.39"));
  CHECK(mentions(why, "14.778 ✗ × 2"));
  CHECK(mentions(why, "the sum, which is what backward has"));
  CHECK(mentions(talk("print x.grad"), "x.grad (2)   (not complete before step 9)"));
  CHECK(mentions(talk("next"), "x.grad (2)   ✗"));
  CHECK(mentions(talk("print x.grad[0]"), "x.grad[0] = 10.873 ✗"));
}

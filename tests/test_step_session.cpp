#include <doctest/doctest.h>

#include <cstdio>
#include <memory>

#include "nn/gpt.h"
#include "nn/step_session.h"
#include "ops/ops.h"
#include "tests/tape_cases.h"
#include "train/expression.h"
#include "train/lessons.h"
#include "train/step_programs.h"

using namespace hedgehog;
using namespace hedgehog::test;

namespace {

Program opened(const std::string& what) { return what.find('=') == std::string::npos ? find_step_example(what).program(Dtype::f64) : expression_program(what); }

/// A session whose answers can be read.
class Talk {
 public:
  explicit Talk(Program program) : file_(std::tmpfile(), std::fclose), session_(std::move(program), file_.get(), {.open = opened}) {}
  /// What the session says to a line.
  std::string operator()(const std::string& line) {
    const long from = std::ftell(file_.get());
    session_.run(line);
    std::fflush(file_.get());
    std::string text(std::size_t(std::ftell(file_.get()) - from), 0);
    std::fseek(file_.get(), from, SEEK_SET);
    const std::size_t read = std::fread(text.data(), 1, text.size(), file_.get());
    CHECK(read == text.size());
    return text;
  }
  StepSession& session() { return session_; }

 private:
  std::unique_ptr<std::FILE, int (*)(std::FILE*)> file_;
  StepSession session_;
};

std::size_t count(const std::string& text, const std::string& part) {
  std::size_t n = 0;
  for (std::size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + part.size())) ++n;
  return n;
}

/// All that the commands of a lesson say.
std::string said(const Lesson& lesson, bool& failed) {
  Talk talk(opened("scalar"));
  std::string all;
  for (std::size_t at = 0; at < lesson.text.size();) {
    const std::size_t end = std::min(lesson.text.find('\n', at), lesson.text.size());
    if (lesson.text.compare(at, 2, "> ") == 0) all += talk(lesson.text.substr(at + 2, end - at - 2));
    at = end + 1;
  }
  failed = talk.session().failed();
  return all;
}

}  // namespace

TEST_CASE("step: the conversation on two numbers, word for word") {
  Talk talk(expression_program("L = p^2; p = x*y + 3; x = 2; y = -1"));
  CHECK(talk("show") == "3 steps forward, to a loss of 1, and 4 that bring its gradients back; 10 tensors\n"
                        "next goes one step on, check proves the gradients, help lists what else there is\n");
  CHECK(talk("next") == "step 1 of 7   multiply1 = multiply(x, y)\n  y = a * b\n  multiply1 = -2\n");
  CHECK(talk("goto x.grad") == "step 7 of 7   x.grad +=, y.grad += backward of multiply(multiply1.grad)\n"
                               "  da = dy * b, db = dy * a, summed to the shapes of a and b\n  x.grad = -2\n  y.grad = 4\n");
  CHECK(talk("why x") == "dL/dx = -2\n            -2 = 2 × -1   dL/dmultiply1 × dmultiply1/dx   (multiply, step 7)\n            -2   the sum ✓\n");
  CHECK(talk("check x") == "dL/dx  ✓ -2 = its central difference\n");
  CHECK(talk("what-if x += 0.1") == "the loss is 1; with x += 0.1\n  predicted   -0.2 = gradient × change\n  computed    -0.19: the loss is then 0.81\n");
  CHECK(talk("print p") == "  p = 1\n");
  CHECK(talk("next") == "this is the last step; 'check' proves the gradients\n");
  CHECK(!talk.session().failed());
  CHECK(!talk.session().run("quit"));
}

TEST_CASE("step: a program of one's own opens the stepper with one call, on any streams") {
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> in(std::tmpfile(), std::fclose), out(std::tmpfile(), std::fclose);
  std::fputs("next\nwhy x\nquit\nnever read", in.get());
  std::rewind(in.get());
  const Tensor x = leaf({}, {3}, "x");
  CHECK(step_through(record([&] {
                       const Tensor loss = square(x);
                       backward(loss);
                       return Tensors{loss};
                     }),
                     in.get(), out.get()));
  std::rewind(out.get());
  std::string text(4096, 0);
  text.resize(std::fread(text.data(), 1, text.size(), out.get()));
  CHECK(mentions(text, "dL/dx = 6"));
  CHECK(mentions(text, "test_step_session.cpp:"));
  CHECK(!mentions(text, "never"));
  CHECK(x.grad().item() == 0);
}

TEST_CASE("step: a step forward and back, to an op, a tensor, a scope and a large gradient") {
  Talk talk(opened("hedgehog"));
  CHECK(mentions(talk("goto block0/attention"), "linear1 = linear("));
  CHECK(mentions(talk("goto linear_attention"), "block0/attention"));
  CHECK(mentions(talk("expand"), "inside linear_attention of step 9"));
  CHECK(mentions(talk("n 4"), "step 4 of"));
  CHECK(mentions(talk("collapse"), "step 9 of 25"));
  CHECK(mentions(talk("back 20"), "61 tensors"));
  CHECK(mentions(talk("goto q"), "block0/attention/q (1, 6, 2, 4)"));
  CHECK(mentions(talk("goto q.grad"), "linear_attention("));
  CHECK(mentions(talk("back 30"), "61 tensors"));
  CHECK(mentions(talk("b"), "this is the beginning"));
  CHECK(mentions(talk("until |g| > 0.5"), "backward"));
  CHECK(mentions(talk("until nan"), "every number from here on is finite"));
  CHECK(mentions(talk("stats wte.weight"), "40 numbers from"));
  CHECK(mentions(talk("graph"), "digraph"));
  CHECK(mentions(talk("names"), "h.0.attn.map_q.weight.grad"));
  const std::string list = talk("list all");
  CHECK(count(list, "\n") >= 25);
  CHECK(!talk.session().failed());
}

TEST_CASE("step: until nan stops at the op that makes the first one") {
  const Tensor x = leaf({2}, {1, 0}, "x");
  Talk talk(record([&] {
    const Tensor loss = sum(log(x) * 2.0);
    backward(loss);
    return Tensors{loss};
  }));
  CHECK(mentions(talk("until nan"), "step 1 of"));
  CHECK(mentions(talk("print log1"), "-inf"));
  CHECK(mentions(talk("warnings"), "not finite"));
}

TEST_CASE("step: what is wrong is said, and the session goes on") {
  Talk talk(opened("matmul"));
  for (const auto& [line, answer] : std::vector<std::pair<std::string, std::string>>{
           {"whz w", "did you mean 'why'"},
           {"why", "give a tensor's name"},
           {"why ww", "did you mean 'w'"},
           {"why w[2,0]", "no index 2 on axis 0; they go from 0 to 1"},
           {"why w[0]", "has 2 axes, but 1 index was given"},
           {"why w[0,", "no element"},
           {"why w[a,b]", "no element"},
           {"why x", "no gradient reaches 'x'"},
           {"check target", "no gradient reaches 'target'"},
           {"what-if w[0,0]", "needs a change"},
           {"what-if w[0,0] += much", "must be a number, got 'much'"},
           {"what-if w[0,0] += inf", "must be a number"},
           {"next -1", "must be a whole number, got '-1'"},
           {"next 99999999999999999999", "must be a whole number"},
           {"goto 100", "the last is 9"},
           {"goto nowhere", "no tensor, op or scope is called 'nowhere'"},
           {"print y", "no value yet: step 1 makes it"},
           {"until", "until takes nan"},
           {"expand", "there is no op here yet"},
           {"collapse", "no op is expanded"},
           {"list some", "nothing or 'all'"},
           {"help me", "no command 'me'"},
           {"open nothing", "no example is called 'nothing'"},
           {"open L = (x; x = 1", "expected ')'"},
           {"graph /nowhere/at/all", "cannot be written"}}) {
    CAPTURE(line);
    const std::string said = talk(line);
    CAPTURE(said);
    CHECK(mentions(said, answer));
  }
  CHECK(talk.session().failed());
  CHECK(mentions(talk("next"), "step 1 of 9"));
  CHECK(mentions(talk("expand"), "matmul is a primitive op"));
}

TEST_CASE("step: formulas that cannot be read say where and why") {
  for (const auto& [formula, answer] : std::vector<std::pair<std::string, std::string>>{
           {"", "the formula is empty"},
           {"x*y", "names nothing"},
           {"L = x", "'x' has no value"},
           {"L = 3", "is only a number"},
           {"L = 2*3", "is computed from no name"},
           {"L = x; x = 1", "is computed from no name"},
           {"L = x +; x = 1", "expected a number, a name or '(' at the end"},
           {"L = x $ 2; x = 1", "expected an operator at '$'"},
           {"L = cos(x); x = 1", "no function 'cos'"},
           {"L = xp(x); x = 1", "did you mean 'exp'"},
           {"L = x^0.5; x = 1", "whole number from 1 to 64"},
           {"L = x^1000000; x = 1", "whole number from 1 to 64"},
           {"L = a; a = L + x; x = 1", "is defined by itself"},
           {"L = x; x = 1; x = 2", "given twice"},
           {"1L = x; x = 1", "no name"},
           {"exp = x; x = 1", "is a function"},
           {"L = " + std::string(5000, '(') + "x; x = 1", "nested too deeply"},
           {"L = " + std::string(5000, '-') + "x; x = 1", "nested too deeply"},
           {"L = " + std::string(90, '(') + "a" + std::string(90, ')') + "; a = " + std::string(90, '(') + "x" + std::string(90, ')') + "; x = 1", "nested too deeply"}}) {
    CAPTURE(formula.substr(0, 40));
    CHECK(mentions(error_of([&] { (void)expression_program(formula); }), answer));
  }
  const Stepper stepper(expression_program("L = exp(-x^2/2) * (1 - y)^-1 + log(x*3); x = 0.5; y = 0.25"));
  CHECK(stepper.loss() == doctest::Approx(std::exp(-0.125) / 0.75 + std::log(1.5)));
  CHECK(stepper.check(stepper.find("x"), 0).passed);
  CHECK(stepper.check(stepper.find("y"), 0).passed);
}

TEST_CASE("lessons: every command is understood, every gradient proved, and planted mistakes are crossed") {
  CHECK(lessons().size() == 10);
  for (const Lesson& lesson : lessons()) {
    CAPTURE(lesson.name);
    bool failed = true, again = true;
    const std::string all = said(lesson, failed);
    CHECK(!failed);
    CHECK(count(all, "✓") >= 1);
    CHECK((count(all, "✗") > 0) == (lesson.text.find("-mistake") != std::string::npos));
    CHECK(said(lesson, again) == all);
  }
}

TEST_CASE("lessons: every example has a right gradient everywhere, but for the planted mistakes") {
  for (const StepExample& example : step_examples()) {
    CAPTURE(example.name);
    const Stepper stepper(example.program(Dtype::f64));
    bool right = true;
    for (const std::string& name : stepper.names()) {
      const Tensor x = stepper.find(name);
      if (x.role() == Role::parameter && !x->base && stepper.gradient_of(x)) right = right && stepper.check_direction(x).passed;
    }
    CHECK(right == (example.name.find("mistake") == std::string::npos));
  }
}

TEST_CASE("step: a thousand entries, forth and back, change no value") {
  GptOptions options;
  options.layers = 60, options.heads = 1, options.width = 4, options.context = 4, options.vocabulary = 5, options.dtype = Dtype::f64;
  const Gpt model(options);
  const Tensor tokens = constant({1, 4}, {0, 1, 2, 3}, Dtype::i32, "tokens"), targets = constant({1, 4}, {1, 2, 3, 4}, Dtype::i32, "targets");
  Stepper stepper(record([&] {
    const Tensor loss = model.loss(tokens, targets).loss;
    backward(loss);
    return Tensors{loss};
  }));
  REQUIRE(stepper.size() > 1000);
  std::vector<std::vector<double>> made;  // what each entry wrote first
  const auto written = [&] {
    const Tensors results = Trace::results(stepper.entries()[stepper.position() - 1]);
    return results.empty() ? std::vector<double>{} : stepper.trace().value(results[0], stepper.position());
  };
  while (stepper.next()) made.push_back(written());
  for (; stepper.position() > 0; stepper.previous()) CHECK(written() == made[stepper.position() - 1]);
  CHECK(stepper.check_direction(stepper.find("h.0.attn.map_q.weight")).passed);
}

TEST_CASE("step: the whole of a block, forth and back, changes no value") {
  Stepper stepper(opened("training"));
  std::vector<std::vector<double>> first;
  const auto values = [&] {
    std::vector<std::vector<double>> all;
    for (const std::string& name : stepper.names())
      if (const Tensor x = stepper.find(name); stepper.trace().known(x, stepper.position())) all.push_back(stepper.trace().value(x, stepper.position()));
    return all;
  };
  std::vector<std::vector<std::vector<double>>> forward;
  do forward.push_back(values());
  while (stepper.next());
  for (std::size_t p = forward.size(); p-- > 0;) {
    CHECK(values() == forward[p]);
    CHECK(stepper.previous() == (p > 0));
  }
}

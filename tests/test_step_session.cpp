#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <sstream>

#include "nn/gpt.h"
#include "ops/ops.h"
#include "tests/step_talk.h"
#include "tests/tape_cases.h"

using namespace hedgehog;
using namespace hedgehog::test;

TEST_CASE("step: the conversation on two numbers, word for word") {
  Talk talk(expression_program("L = p^2; p = x*y + 3; x = 2; y = -1"), "two numbers");
  CHECK(talk("show") == "two numbers\n3 steps forward, to the loss L = 1, and 4 that bring its gradients back; 10 tensors\n");
  CHECK(talk.session().hint() ==
        "Enter goes one step on, 'why x' tells where a gradient comes from, 'check' proves them all, 'help' lists the rest");
  CHECK(talk("next") == "step 1 of 7   multiply1 = multiply(x, y)\n  y = a * b\n  multiply1 = -2\n");
  CHECK(talk("goto x.grad") == "step 7 of 7   x.grad +=, y.grad += backward of multiply(multiply1.grad)\n"
                               "  da = dy * b, db = dy * a, summed to the shapes of a and b\n  x.grad = -2   ✓\n  y.grad = 4   ✓\n");
  CHECK(talk("why x") == "dL/dx = -2 ✓\n"
                         "            -2 = 2 ✓ × -1   dL/dmultiply1 × dmultiply1/dx   (multiply, step 7)\n            -2   the sum ✓\n");
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
  Talk talk(opened("hedgehog").program);
  CHECK(mentions(talk("goto block0/attention"), "linear1 = linear("));
  CHECK(mentions(talk("goto linear_attention"), "block0/attention"));
  CHECK(mentions(talk("expand"), "inside linear_attention of step 9"));
  CHECK(mentions(talk("n 4"), "step 4 of"));
  CHECK(mentions(talk("collapse"), "step 9 of 25"));
  CHECK(mentions(talk("back 20"), "61 tensors"));
  CHECK(mentions(talk("goto q"), "q (1, 6, 2, 4): the same numbers"));
  CHECK(mentions(talk("goto q.grad"), "linear_attention("));
  CHECK(mentions(talk("back 30"), "61 tensors"));
  CHECK(mentions(talk("b"), "this is the beginning"));
  CHECK(mentions(talk("until |g| > 0.5"), "backward"));
  CHECK(mentions(talk("until nan"), "every number from here on is finite"));
  CHECK(mentions(talk("stats wte.weight"), "40 numbers from"));
  CHECK(mentions(talk("graph"), "digraph"));
  CHECK(mentions(talk("names"), "h.0.attn.map_q.weight.grad"));
  const std::string list = talk("list all");
  CHECK(std::count(list.begin(), list.end(), '\n') >= 25);
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
  Talk talk(opened("matmul").program);
  for (const auto& [line, answer] : std::vector<std::pair<std::string, std::string>>{
           {"whz w", "did you mean 'why'? 'help' lists them"},
           {"why", "give a tensor's name, as in why w;"},
           {"why nothing", "no tensor is called 'nothing'; 'names' lists them"},
           {"what-if", "as in what-if w += 0.1"},
           {"\x1b[31mwhy\x07", "no command '?[31mwhy?'"},
           {std::string(100000, 'w'), "at most 4000 characters, this one has 100000"},
           {"why ww", "did you mean 'w'"},
           {"why w[2,0]", "no index 2 on axis 0; they go from 0 to 1"},
           {"why w[0]", "has 2 axes, but 1 index was given; write it as in w[0,0]"},
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
           {"goto matmull", "did you mean 'matmul'?"},
           {"print y", "no value yet: step 1 makes it; 'goto y' goes there"},
           {"until", "until takes nan"},
           {"expand", "there is no op here yet"},
           {"collapse", "no op is expanded"},
           {"list some", "nothing or 'all'"},
           {"help me", "no command 'me'"},
           {"open", "open needs a program, as in open scalar"},
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

TEST_CASE("step: help tells all commands, more of one, and the opening what the program is and how to begin") {
  Talk talk(opened("hedgehog").program, "a block");
  const std::string help = talk("help");
  for (const char* part : {"why [NAME[I,J]]", "check [NAME[I,J]]", "what-if NAME[I,J] += X", "'help check' tells more", "✓", "✗"})
    CHECK(mentions(help, part));
  CHECK(mentions(talk("help check"), "(L(x + h) - L(x - h)) / 2h"));
  CHECK(talk("help c") == talk("help check"));
  CHECK(mentions(talk("help why"), "the chain rule"));
  CHECK(mentions(talk("show"), "a block\n15 steps forward, to the loss L = 2.9773, and 10 that bring its gradients back"));
  CHECK(mentions(talk.session().hint(), "'why wte.weight'"));
  CHECK(mentions(talk("warnings"), "none: every parameter has a gradient"));
  // what the hint and the errors propose works
  for (const char* line : {"why wte.weight", "what-if wte.weight += 0.1", "goto 1", "open scalar"}) CHECK(!mentions(talk(line), "no "));
  CHECK(!talk.session().failed());
  CHECK(talk.session().hint() ==
        "Enter goes one step on, 'why x' tells where a gradient comes from, 'check' proves them all, 'help' lists the rest");
}

TEST_CASE("step: inside an op the prompt names it, the loss keeps its name, and a sum over results says what it is") {
  Talk talk(opened("hedgehog").program);
  talk("goto L");
  CHECK(mentions(talk("expand"), "inside classifier_cross_entropy of step 15\n11 steps forward, to the loss L = 2.9773"));
  CHECK(talk.session().prompt() == "classifier_cross_entropy: step 0/18> ");
  CHECK(mentions(talk("list all"), "L = multiply("));
  CHECK(mentions(talk("next 18"), "x.grad (1, 6, 8)   ✓"));
  talk("collapse");
  CHECK(talk.session().prompt() == "step 15/25> ");
  talk("goto o");
  CHECK(mentions(talk("expand"), "to a loss of 0.1079 = sum of o × o.grad"));
  CHECK(!talk.session().failed());
}

TEST_CASE("step: where computing the loss takes long, gradients are shown without a check, and what makes it is said") {
  const Tensor w = leaf({300, 300}, std::vector<double>(90000, 0.01), "w");
  const Tensor x = constant({300, 300}, std::vector<double>(90000, 0.01), Dtype::f64, "x");
  Talk talk(record([&] {
    const Tensor loss = sum(square(matmul(x, w)));
    backward(loss);
    return Tensors{loss};
  }));
  CHECK(mentions(talk("goto w.grad"), "w.grad (300, 300)   ('check w' proves it)"));
  CHECK(mentions(talk("print w.grad[0,1]"), "('check w' proves it)"));
  CHECK(mentions(talk("stats w.grad"), "('check w' proves it)"));
}

TEST_CASE("step: names and tables stay in line, eight numbers in each, and a view's gradient is called after the view") {
  Talk talk(opened("hedgehog").program);
  std::istringstream names(talk("names"));
  std::size_t column = 0;
  for (std::string line; std::getline(names, line);) {
    if (column == 0) column = line.find(" (");
    CHECK(line.find(" (") == column);
  }
  std::istringstream table(talk("print h.0.mlp.c_fc.weight"));
  std::string line;
  std::getline(table, line);
  for (const char* label : {"[0,0]", "[0,8]", "[0,16]", "[0,24]", "[1,0]"}) {
    REQUIRE(std::getline(table, line));
    CHECK(mentions(line, label));
    CHECK(line.size() < 120);
  }
  CHECK(table_text("w", {20}, std::vector<double>(20, 1), 10) ==
        "  w (20)\n  [0]            1      1      1      1      1      1      1      1\n  [8]            1      1\n"
        "  … 10 more; print one element as NAME[…], or 'stats NAME'\n");
  CHECK(table_text("w", {3, 2}, {1, 2, 3, 4, 5, 6}, 5) == "  w (3, 2)\n  [0]            1      2\n  [1]            3      4\n"
                                                        "  … 2 more; print one element as NAME[…], or 'stats NAME'\n");
  CHECK(table_text("w", {}, {3}, 5, "✓") == "  w = 3   ✓\n");
  CHECK(mentions(talk("list all"), "rotary_table1 = rotary_table(length=6 "));
  const std::string step = talk("goto 21");
  CHECK(mentions(step, "reshape4.grad =,"));
  CHECK(mentions(step, "  reshape4.grad (1, 6, 8)"));
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
  Stepper stepper(opened("training").program);
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

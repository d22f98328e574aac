#pragma once
#include <doctest/doctest.h>

#include <cstdio>
#include <memory>
#include <string>

#include "nn/step_session.h"
#include "train/expression.h"
#include "train/step_programs.h"

namespace hedgehog::test {

/// What `open WHAT` gives in these tests.
inline TitledProgram opened(const std::string& what) {
  return {what, what.find('=') == std::string::npos ? find_step_example(what).program(Dtype::f64) : expression_program(what)};
}

/// A session whose answers can be read.
class Talk {
 public:
  explicit Talk(Program program, const std::string& title = "")
      : file_(std::tmpfile(), std::fclose), session_(std::move(program), file_.get(), {.title = title, .open = opened}) {}
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

}  // namespace hedgehog::test

#include <doctest/doctest.h>
#include <poll.h>
#include <pty.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <string>

#include "tests/temporary_directory.h"

using namespace hedgehog;

namespace {

/// The program on a terminal of its own.
class Terminal {
 public:
  Terminal() {
    child_ = forkpty(&descriptor_, nullptr, nullptr, nullptr);
    if (child_ != 0) return;
    setenv("TERM", "xterm", 1);
    unsetenv("NO_COLOR");
    setenv("CUDA_VISIBLE_DEVICES", "", 1);
    execl(HH_BINARY_DIR "/bin/hedgehog", "hedgehog", "step", "--example=scalar", nullptr);
    _exit(127);
  }
  ~Terminal() {
    if (descriptor_ >= 0) close(descriptor_);
  }
  Terminal(const Terminal&) = delete;

  void type(const std::string& keys) const { CHECK(write(descriptor_, keys.data(), keys.size()) == ssize_t(keys.size())); }
  /// What appears, up to and with `end`; less if nothing more comes for ten seconds.
  std::string until(const std::string& end) const {
    std::string text;
    pollfd waiting{descriptor_, POLLIN, 0};
    while (!contains(text, end) && poll(&waiting, 1, 10000) > 0) {
      char buffer[512];
      const ssize_t n = read(descriptor_, buffer, sizeof buffer);
      if (n <= 0) break;
      text.append(buffer, std::size_t(n));
    }
    return text;
  }
  /// Exit code, or -1 for a signal.
  int wait() const {
    int status = 0;
    waitpid(child_, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }

 private:
  int descriptor_ = -1;
  pid_t child_ = -1;
};

}  // namespace

TEST_CASE("cli: step on a terminal has colour and cursor keys, and lets lines be mended") {
  const Terminal terminal;
  CHECK(contains(terminal.until("step 0/7> "), "3 steps forward"));
  terminal.type("\x1b[C");
  CHECK(contains(terminal.until("step 1/7> "), "\x1b[1mstep 1 of 7"));
  terminal.type("\x1b[C");
  terminal.until("step 2/7> ");
  terminal.type("\x1b[D");
  CHECK(contains(terminal.until("step 1/7> "), "step 1 of 7"));
  terminal.type("why xx\x7f\n");
  CHECK(contains(terminal.until("step 1/7> "), "dL/dx = -2"));
  terminal.type("\xc3\xa9\x7fquit\n");
  CHECK(terminal.wait() == 0);
}

TEST_CASE("cli: step on a terminal remembers lines, and lets them be mended anywhere; cursor keys step on an empty line alone") {
  const std::string up = "\x1b[A", down = "\x1b[B", right = "\x1b[C", left = "\x1b[D", home = "\x1b[H", end = "\x1bOF";
  const Terminal terminal;
  terminal.until("step 0/7> ");
  const auto answer = [&](const std::string& keys, const std::string& prompt = "step 0/7> ") {
    terminal.type(keys);
    return terminal.until(prompt);
  };
  // back to the beginning
  CHECK(contains(answer("hy x" + left + left + left + left + "w\n"), "dL/dx = -2"));
  // Delete
  CHECK(contains(answer("check xy" + left + "\x1b[3~\n"), " -2 = its central"));
  // why x
  CHECK(contains(answer(up + up + "\n"), "dL/dx = -2"));
  // past the first, then the second
  CHECK(contains(answer(up + up + up + up + up + down + "\n"), " -2 = its central"));
  // what was typed comes back
  CHECK(contains(answer("why" + up + down + " y\n"), "dL/dy = 4"));
  // Ctrl-U
  CHECK(contains(answer("nonsense\x15" "check y\n"), " 4 = its central"));
  // Ctrl-A, Ctrl-E
  CHECK(contains(answer("heck x\x01" "c\x05" "\x7fy\n"), " 4 = its central"));
  CHECK(contains(answer("heck x" + home + "c" + end + "\x7fy\n"), " 4 = its central"));
  // Ctrl-K
  CHECK(contains(answer("why xyz" + left + left + "\x0b\n"), "dL/dx = -2"));
  // whole characters, by Ctrl-D
  CHECK(contains(answer("\xc3\xa9\xf0\x9f\xa6\x94" + left + left + "\x04\x04why y\n"), "dL/dy = 4"));
  // at the ends nothing happens
  CHECK(contains(answer("x" + right + left + left + "\x7f\x7f\x04" "why x\n"), "dL/dx = -2"));
  // empty again
  CHECK(contains(answer("x\x7f" + right, "step 1/7> "), "step 1 of 7"));
  CHECK(contains(answer(left), "3 steps forward"));
  // longer than the terminal is wide: what is shown is a part, what is done is all
  CHECK(contains(answer("why" + std::string(300, ' ') + "x" + home + "\n"), "dL/dx = -2"));
  CHECK(contains(answer(std::string(3900, 'x') + "\x15why x\n"), "dL/dx = -2"));
  terminal.type(up + "\x15quit\n");
  CHECK(terminal.wait() == 0);
}

TEST_CASE("cli: step on a terminal ends by Ctrl-C and by the end of input") {
  for (const auto& [key, code] : {std::pair("\x03", 130), {"\x04", 0}}) {
    const Terminal terminal;
    terminal.until("step 0/7> ");
    terminal.type(key);
    CHECK(terminal.wait() == code);
  }
}

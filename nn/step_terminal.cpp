#include <fmt/format.h>
#include <termios.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <memory>
#include <string>
#include <string_view>

#include "nn/step_session.h"

namespace hedgehog {
namespace {

int terminal = -1;
termios settings{};

/// Ctrl-C, also while something is computed, leaves the terminal as it was.
void leave(int) {
  tcsetattr(terminal, TCSANOW, &settings);
  _exit(130);
}

/// While alive, the terminal gives every key at once and does not echo it. There is one at a time.
class RawTerminal {
 public:
  explicit RawTerminal(int descriptor) {
    terminal = descriptor;
    tcgetattr(terminal, &settings);
    before_ = std::signal(SIGINT, leave);
    termios raw = settings;
    raw.c_lflag &= ~tcflag_t(ICANON | ECHO);
    tcsetattr(terminal, TCSANOW, &raw);
  }
  ~RawTerminal() {
    tcsetattr(terminal, TCSANOW, &settings);
    std::signal(SIGINT, before_);
  }
  RawTerminal(const RawTerminal&) = delete;

 private:
  void (*before_)(int) = SIG_DFL;
};

/// Reads one line; on an empty one the right and left cursor keys are "next" and "back". False at the end of the input.
bool read_keys(std::FILE* in, std::FILE* out, std::string& line) {
  line.clear();
  constexpr int kEndOfInput = 4, kEscape = 27, kDelete = 127;
  for (int c; (c = std::fgetc(in)) != EOF;) {
    if (c == kEndOfInput && line.empty()) return false;
    if (c == '\n') break;
    if (c == kEscape) {
      // ESC [ parameters letter, or ESC O letter
      const int kind = std::fgetc(in);
      int key = kind == '[' || kind == 'O' ? std::fgetc(in) : 0;
      bool plain = true;
      while (kind == '[' && key != EOF && key < 0x40) key = std::fgetc(in), plain = false;
      if (!plain || !line.empty() || (key != 'C' && key != 'D')) continue;
      line = key == 'C' ? "next" : "back";
      break;
    }
    if (c == kDelete || c == '\b') {
      if (line.empty()) continue;
      // a character of UTF-8 is its last byte and those before it that begin with 10
      while (line.size() > 1 && (line.back() & 0xc0) == 0x80) line.pop_back();
      line.pop_back();
      fmt::print(out, "\b \b");
    } else if (c >= ' ') {
      line += char(c);
      std::fputc(c, out);
    }
    std::fflush(out);
  }
  fmt::print(out, "\n");
  return !std::feof(in);
}

bool read_line(std::FILE* in, std::string& line) {
  line.clear();
  int c = 0;
  while ((c = std::fgetc(in)) != EOF && c != '\n') line += char(c);
  return c != EOF || !line.empty();
}

}  // namespace

bool step_through(Program program, std::FILE* in, std::FILE* out, StepSessionOptions options) {
  const char* const kind = std::getenv("TERM");
  const bool dumb = !kind || std::string_view(kind) == "dumb", plain = dumb || std::getenv("NO_COLOR");
  const bool keys = isatty(fileno(in)) && isatty(fileno(out)) && !dumb;
  options.color = options.color || (isatty(fileno(out)) && !plain);
  StepSession session(std::move(program), out, std::move(options));
  // before the first prompt, so that no key is taken the other way
  const auto raw = keys ? std::make_unique<RawTerminal>(fileno(in)) : nullptr;
  session.show();
  fmt::print(out, "{}\n", session.hint());
  std::string line;
  for (bool more = true; more;) {
    fmt::print(out, "{}", session.prompt());
    std::fflush(out);
    if (!(keys ? read_keys(in, out, line) : read_line(in, line))) break;
    // what was typed is not there to be read when it came from a file
    if (!keys && !isatty(fileno(in))) fmt::print(out, "{}\n", line);
    more = session.run(line);
  }
  fmt::print(out, "\n");
  return !session.failed();
}

}  // namespace hedgehog

#include <fmt/format.h>
#include <termios.h>
#include <unistd.h>

#include <cstdlib>
#include <string>
#include <string_view>

#include "nn/step_session.h"

namespace hedgehog {
namespace {

/// While alive, a terminal gives every key at once and does not echo it.
class RawTerminal {
 public:
  explicit RawTerminal(int descriptor) : descriptor_(descriptor) {
    tcgetattr(descriptor_, &before_);
    termios raw = before_;
    raw.c_lflag &= ~tcflag_t(ICANON | ECHO);
    tcsetattr(descriptor_, TCSANOW, &raw);
  }
  ~RawTerminal() { tcsetattr(descriptor_, TCSANOW, &before_); }
  RawTerminal(const RawTerminal&) = delete;

 private:
  int descriptor_;
  termios before_{};
};

/// Reads one line; on an empty one the right and left cursor keys are "next" and "back". False at the end of the input.
bool read_keys(std::FILE* in, std::FILE* out, std::string& line) {
  const RawTerminal raw(fileno(in));
  line.clear();
  constexpr int kEndOfInput = 4, kEscape = 27, kDelete = 127;
  for (int c; (c = std::fgetc(in)) != EOF;) {
    if (c == kEndOfInput && line.empty()) return false;
    if (c == '\n') break;
    if (c == kEscape) {
      if (std::fgetc(in) != '[') continue;
      const int key = std::fgetc(in);
      if (!line.empty() || (key != 'C' && key != 'D')) continue;
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
  const char* const terminal = std::getenv("TERM");
  const bool plain = std::getenv("NO_COLOR") || !terminal || std::string_view(terminal) == "dumb";
  const bool keys = isatty(fileno(in)) && isatty(fileno(out)) && terminal && std::string_view(terminal) != "dumb";
  options.color = options.color || (isatty(fileno(out)) && !plain);
  StepSession session(std::move(program), out, std::move(options));
  session.show();
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

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

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

bool continues(char c) { return (c & 0xc0) == 0x80; }  // a byte of UTF-8 that is not a character's first

/// A line that is typed and mended on a terminal, and those before it.
///
///   right, left              next and back on an empty line, else through its characters
///   up, down                 lines typed before
///   Ctrl-A, Ctrl-E           to the beginning and the end; Home and End too
///   Ctrl-U, Ctrl-K           clears what is before the cursor, or from it on
///   Backspace, Delete, Ctrl-D  one character; Ctrl-D on an empty line ends the input
class LineEditor {
 public:
  LineEditor(std::FILE* in, std::FILE* out) : in_(in), out_(out) {}

  /// Reads one line after the prompt. False at the end of the input.
  bool read(const std::string& prompt, std::string& line) {
    fmt::print(out_, "{}", prompt);
    prompt_ = prompt.size();
    change("");
    shown_ = history_.size();
    for (int c; draw(), (c = std::fgetc(in_)) != EOF;) {
      if (c == ctrl('d') && line_.empty()) return false;
      if (c == '\n') break;
      if (const std::string step = press(c); !step.empty()) {
        fmt::print(out_, "\n");
        line = step;
        return true;
      }
    }
    fmt::print(out_, "\n");
    if (!line_.empty() && (history_.empty() || history_.back() != line_)) history_.push_back(line_);
    line = line_;
    return !std::feof(in_);
  }

 private:
  static constexpr int ctrl(char letter) { return letter - 'a' + 1; }

  /// Does what a key says; "next" or "back" if it is one.
  std::string press(int c) {
    constexpr int kEscape = 27, kDelete = 127;
    if (c == kEscape) return escape();
    if (c == ctrl('a')) at_ = 0;
    else if (c == ctrl('e')) at_ = line_.size();
    else if (c == ctrl('u')) line_.erase(0, at_), at_ = 0;
    else if (c == ctrl('k')) line_.erase(at_);
    else if (c == ctrl('d')) erase(at_, next(at_));
    else if (c == kDelete || c == '\b') erase(previous(at_), at_);
    else if (c >= ' ') insert(c);
    return "";
  }

  /// ESC [ parameters letter, or ESC O letter.
  std::string escape() {
    const int kind = std::fgetc(in_);
    int key = kind == '[' || kind == 'O' ? std::fgetc(in_) : 0;
    std::string parameters;
    while (kind == '[' && key != EOF && key < 0x40) parameters += char(key), key = std::fgetc(in_);
    if (key == '~' && parameters == "3") erase(at_, next(at_));
    if (!parameters.empty()) return "";
    if (line_.empty() && key == 'C') return "next";
    if (line_.empty() && key == 'D') return "back";
    if (key == 'C') at_ = next(at_);
    else if (key == 'D') at_ = previous(at_);
    else if (key == 'H') at_ = 0;
    else if (key == 'F') at_ = line_.size();
    else if (key == 'A' && shown_ > 0) recall(shown_ - 1);
    else if (key == 'B' && shown_ < history_.size()) recall(shown_ + 1);
    return "";
  }

  /// Shows a line typed before; behind the last is what was being typed.
  void recall(std::size_t which) {
    if (shown_ == history_.size()) typed_ = line_;
    shown_ = which;
    change(which == history_.size() ? typed_ : history_[which]);
  }

  void change(const std::string& line) {
    line_ = line;
    at_ = line.size();
  }

  /// Bytes of one character come together; a stray one is a character of its own.
  void insert(int c) {
    line_.insert(at_++, 1, char(c));
    for (int more = c >= 0xf0 ? 3 : c >= 0xe0 ? 2 : c >= 0xc0 ? 1 : 0; more > 0; --more) {
      const int next = std::fgetc(in_);
      if (next == EOF || !continues(char(next))) {
        std::ungetc(next, in_);
        return;
      }
      line_.insert(at_++, 1, char(next));
    }
  }

  void erase(std::size_t from, std::size_t to) {
    line_.erase(from, to - from);
    at_ = from;
  }

  /// Where the character before a place begins, and where that at it ends.
  std::size_t previous(std::size_t at) const {
    while (at > 0 && continues(line_[--at])) continue;
    return at;
  }
  std::size_t next(std::size_t at) const {
    at = std::min(at + 1, line_.size());
    while (at < line_.size() && continues(line_[at])) ++at;
    return at;
  }
  std::size_t characters(std::size_t from, std::size_t to) const {
    const auto begin = line_.begin() + std::ptrdiff_t(from), end = line_.begin() + std::ptrdiff_t(to);
    return std::size_t(std::count_if(begin, end, [](char c) { return !continues(c); }));
  }

  /// Writes the line behind the prompt anew, as much of it around the cursor as the terminal is wide.
  void draw() const {
    winsize size{};
    const bool known = ioctl(fileno(out_), TIOCGWINSZ, &size) == 0 && size.ws_col > 0;
    const std::size_t columns = known ? size.ws_col : 80, room = columns > prompt_ + 10 ? columns - prompt_ - 1 : 10;
    std::size_t from = 0, to = line_.size();
    for (std::size_t n = characters(from, at_); n > room; --n) from = next(from);
    for (std::size_t n = characters(from, to); n > room; --n) to = previous(to);
    fmt::print(out_, "\r\x1b[{}C{}\x1b[K", prompt_, line_.substr(from, to - from));
    if (to > at_) fmt::print(out_, "\x1b[{}D", characters(at_, to));
    std::fflush(out_);
  }

  std::FILE *in_, *out_;
  std::size_t prompt_ = 0;  // columns
  std::string line_, typed_;
  std::vector<std::string> history_;
  std::size_t at_ = 0, shown_ = 0;  // byte under the cursor; line of the history, behind the last for a new one
};

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
  LineEditor editor(in, out);
  std::string line;
  for (bool more = true; more;) {
    if (!keys) fmt::print(out, "{}", session.prompt());
    std::fflush(out);
    if (!(keys ? editor.read(session.prompt(), line) : read_line(in, line))) break;
    // what was typed is not there to be read when it came from a file
    if (!keys && !isatty(fileno(in))) fmt::print(out, "{}\n", line);
    more = session.run(line);
  }
  fmt::print(out, "\n");
  return !session.failed();
}

}  // namespace hedgehog

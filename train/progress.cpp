#include "train/progress.h"

#include <fmt/core.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <string_view>
#include <vector>

#include "train/utf8.h"

namespace hedgehog {

namespace {

constexpr double kRedrawInterval = 0.1;  // seconds
constexpr int kWidestBar = 24;           // columns
constexpr int kNarrowestBar = 6;

std::string grouped(double value) {
  std::string digits = fmt::format("{:.0f}", value);
  for (int i = int(digits.size()) - 3; i > 0; i -= 3) digits.insert(size_t(i), 1, ',');
  return digits;
}

bool known(double value) { return std::isfinite(value) && value > 0; }

/// The parts of the line in order of importance.
std::vector<std::string> parts_of(const ProgressState& state) {
  std::vector<std::string> parts = {fmt::format("{}/{}", state.step, state.steps)};
  if (std::isfinite(state.loss)) {
    std::string loss = fmt::format("loss {:.3f}", state.loss);
    if (known(state.smoothed_loss)) loss += fmt::format(" ({:.3f})", state.smoothed_loss);
    parts.push_back(loss);
  }
  if (known(state.learning_rate)) parts.push_back(fmt::format("lr {:.1e}", state.learning_rate));
  if (known(state.tokens_per_second)) parts.push_back(grouped(state.tokens_per_second) + " tok/s");
  if (known(state.flops_per_second) && known(state.peak_flops)) {
    parts.push_back(fmt::format("{:.0f} % MFU", 100 * state.flops_per_second / state.peak_flops));
  } else if (known(state.flops_per_second)) {
    parts.push_back(fmt::format("{:.0f} GFLOP/s", state.flops_per_second / 1e9));
  }
  if (std::isfinite(state.seconds_left) && state.seconds_left >= 0)
    parts.push_back(duration_text(state.seconds_left) + " left");
  return parts;
}

std::string bar_of(const ProgressState& state, int width, bool unicode) {
  const double share = state.steps > 0 ? std::clamp(double(state.step) / double(state.steps), 0.0, 1.0) : 0.0;
  const int full = int(share * width);
  std::string bar = "[";
  for (int i = 0; i < width; ++i) bar += unicode ? (i < full ? "\u2588" : "\u2591") : (i < full ? "#" : ".");
  return bar + "] ";
}

const char* environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

/// Columns of the terminal: COLUMNS, else what it says, else 80.
int terminal_width(int descriptor) {
  const char* text = environment("COLUMNS");
  int columns = 0;
  std::from_chars(text, text + std::strlen(text), columns);
  if (columns > 0) return columns;
  winsize size{};
  return ::ioctl(descriptor, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

/// Writes and flushes; a closed stream must not end a run.
void put(std::FILE* stream, const std::string& text) {
  std::fputs(text.c_str(), stream);
  std::fflush(stream);
}

bool locale_is_utf8() {
  for (const char* name : {"LC_ALL", "LC_CTYPE", "LANG"}) {
    const std::string_view value = environment(name);
    if (value.empty()) continue;
    return value.find("UTF-8") != std::string_view::npos || value.find("utf8") != std::string_view::npos;
  }
  return false;
}

}  // namespace

std::string duration_text(double seconds) {
  const int64_t whole = int64_t(std::clamp(std::round(seconds), 0.0, 1e12));
  if (whole < 60) return fmt::format("{} s", whole);
  if (whole < 3600) return fmt::format("{}:{:02}", whole / 60, whole % 60);
  return fmt::format("{}:{:02}:{:02}", whole / 3600, whole / 60 % 60, whole % 60);
}

std::string progress_line(const ProgressState& state, int width, bool unicode) {
  const std::string separator = unicode ? " \u00b7 " : " | ";
  const std::vector<std::string> parts = parts_of(state);
  std::string line = parts[0];
  for (size_t i = 1; i < parts.size(); ++i) {
    const std::string longer = line + separator + parts[i];
    if (width > 0 && utf8_length(longer) > size_t(width)) break;
    line = longer;
  }
  if (width <= 0) return line;
  if (utf8_length(line) > size_t(width)) return line.substr(0, size_t(width));
  // the bar takes what is left: two brackets and a space
  const int room = width - int(utf8_length(line)) - 3;
  return room < kNarrowestBar ? line : bar_of(state, std::min(room, kWidestBar), unicode) + line;
}

Progress::Progress(const Options& options) : options_(options) {
  const int descriptor = ::fileno(options_.stream);
  const bool terminal = ::isatty(descriptor) != 0 && std::string_view(environment("TERM")) != "dumb";
  redraw_ = terminal && !options_.quiet;
  color_ = redraw_ && *environment("NO_COLOR") == '\0';
  unicode_ = locale_is_utf8();
}

Progress::~Progress() { finish(); }

void Progress::update(const ProgressState& state) {
  if (options_.quiet) return;
  const auto now = std::chrono::steady_clock::now();
  const double waited = std::chrono::duration<double>(now - last_).count();
  const bool last_step = state.steps > 0 && state.step >= state.steps;
  if (drawn_ && !last_step && waited < (redraw_ ? kRedrawInterval : options_.interval)) return;
  last_ = now;
  drawn_ = true;
  draw(state);
}

void Progress::draw(const ProgressState& state) {
  if (!redraw_) {
    put(options_.stream, progress_line(state, 0, unicode_) + "\n");
    return;
  }
  // one column stays free: many terminals wrap when the last one is written
  std::string line = progress_line(state, std::max(1, terminal_width(::fileno(options_.stream)) - 1), unicode_);
  const size_t bar_end = line.find("] ");
  if (color_ && line[0] == '[' && bar_end != std::string::npos) {
    line = "\x1b[32m" + line.substr(0, bar_end + 1) + "\x1b[0m" + line.substr(bar_end + 1);
  }
  put(options_.stream, "\r\x1b[K" + line);
  line_open_ = true;
}

void Progress::note(const std::string& text) {
  put(options_.stream, (line_open_ ? "\r\x1b[K" : "") + text + "\n");
  line_open_ = false;
}

void Progress::finish() {
  if (!line_open_) return;
  put(options_.stream, "\n");
  line_open_ = false;
}

}  // namespace hedgehog

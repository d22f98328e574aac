#pragma once
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <string>

namespace hedgehog {

/// What the progress line shows. Values that are NaN or 0 where unknown are left out.
struct ProgressState {
  int64_t step = 0;          ///< steps done
  int64_t steps = 0;         ///< steps in all
  double loss = 0;           ///< nats a token, last step
  double smoothed_loss = 0;  ///< nats a token
  double learning_rate = 0;
  double tokens_per_second = 0;
  double flops_per_second = 0;  ///< FLOP/s reached
  double peak_flops = 0;        ///< FLOP/s of the machine; then the share is shown instead (MFU)
  double seconds_left = -1;     ///< negative: unknown
};

/// The line, at most `width` columns wide: parts fall away from the right, then the bar shrinks, as the width shrinks.
///
///   [██████░░░░] 120/400 · loss 2.345 (2.401) · lr 3.0e-04 · 61,200 tok/s · 43 % MFU · 1:12 left
///
/// width    columns; 0 for no limit and no bar (the form for pipes)
/// unicode  block characters and middle dots, else # and |
std::string progress_line(const ProgressState& state, int width, bool unicode);

/// Seconds as "12 s", "3:05" or "1:02:03".
std::string duration_text(double seconds);

/// Shows the progress of a run on standard error. On a terminal one line redraws (at most ten times a second); when
/// piped or under TERM=dumb, a whole line is printed every `interval` seconds. COLUMNS and the
/// terminal's size are respected; colour is used only on a terminal and never with NO_COLOR.
class Progress {
 public:
  struct Options {
    std::FILE* stream = stderr;
    double interval = 10;  ///< seconds between plain lines
    bool quiet = false;    ///< show nothing but notes
  };

  Progress() : Progress(Options{}) {}
  explicit Progress(const Options& options);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  /// Shows the state, if it is time to. The first and the last step are always shown.
  void update(const ProgressState& state);
  /// Prints a whole line above the progress line.
  void note(const std::string& text);
  /// Ends the redrawing line. The destructor calls it.
  void finish();

 private:
  void draw(const ProgressState& state);

  Options options_;
  bool redraw_ = false;
  bool color_ = false;
  bool unicode_ = false;
  bool line_open_ = false;
  bool drawn_ = false;
  std::chrono::steady_clock::time_point last_{};
};

}  // namespace hedgehog

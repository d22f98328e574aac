#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <string>

#include "tests/temporary_directory.h"
#include "train/progress.h"
#include "train/utf8.h"

using namespace hedgehog;

namespace {

const ProgressState kState{.step = 120,
                           .steps = 400,
                           .loss = 2.345,
                           .smoothed_loss = 2.4012,
                           .learning_rate = 3e-4,
                           .tokens_per_second = 61200,
                           .flops_per_second = 43e9,
                           .peak_flops = 100e9,
                           .seconds_left = 72};

}  // namespace

TEST_CASE("progress line: everything where there is room, the least important falls away first") {
  CHECK(progress_line(kState, 0, false) ==
        "120/400 | loss 2.345 (2.401) | lr 3.0e-04 | 61,200 tok/s | 43 % MFU | 1:12 left");
  CHECK(progress_line(kState, 200, true).starts_with("[███████░░░░"));
  CHECK(progress_line(kState, 48, false) == "120/400 | loss 2.345 (2.401) | lr 3.0e-04");
  CHECK(progress_line(kState, 20, false) == "[###.......] 120/400");
  for (int width = 1; width < 150; ++width) {
    CAPTURE(width);
    CHECK(utf8_length(progress_line(kState, width, true)) <= size_t(width));
    CHECK(utf8_length(progress_line(kState, width, false)) <= size_t(width));
  }
}

TEST_CASE("progress line: what is unknown is left out") {
  ProgressState state = kState;
  state.peak_flops = 0;
  CHECK(contains(progress_line(state, 0, false), "43 GFLOP/s"));
  state.loss = NAN;
  state.tokens_per_second = 0;
  state.seconds_left = -1;
  state.flops_per_second = 0;
  CHECK(progress_line(state, 0, false) == "120/400 | lr 3.0e-04");
  CHECK(progress_line({}, 40, false).ends_with("] 0/0 | loss 0.000"));
}

TEST_CASE("duration text") {
  CHECK(duration_text(0.4) == "0 s");
  CHECK(duration_text(59.6) == "1:00");
  CHECK(duration_text(3725) == "1:02:05");
  CHECK(duration_text(-1) == "0 s");
}

TEST_CASE("progress: piped output has whole lines, the first and the last always") {
  TemporaryDirectory directory;
  const auto path = directory / "stderr";
  std::FILE* stream = std::fopen(path.c_str(), "w");
  REQUIRE(stream != nullptr);
  {
    Progress progress({.stream = stream, .interval = 1000});
    ProgressState state = kState;
    for (state.step = 1; state.step <= 400; ++state.step) progress.update(state);
    progress.note("saved");
  }
  {
    Progress quiet({.stream = stream, .quiet = true});
    quiet.update(kState);
    quiet.note("still said");
  }
  std::fclose(stream);
  const std::string text = bytes_of(path);
  CHECK(text.starts_with("1/400"));
  CHECK(contains(text, "\n400/400"));
  CHECK(text.ends_with("\nsaved\nstill said\n"));
  CHECK(std::count(text.begin(), text.end(), '\n') == 4);
  CHECK_FALSE(contains(text, "\x1b"));
  CHECK_FALSE(contains(text, "\r"));
}

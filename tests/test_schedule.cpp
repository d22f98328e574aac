#include <doctest/doctest.h>

#include <cmath>

#include "core/error.h"
#include "train/schedule.h"

using namespace hedgehog;

TEST_CASE("schedule: warm-up rises to the peak, then each kind falls as its formula says") {
  const Schedule cosine{ScheduleKind::kCosine, 1e-3, 1e-4, 100, 2000};
  CHECK(learning_rate(cosine, 0) == 1e-3 / 101);
  CHECK(learning_rate(cosine, 99) == 1e-3 * 100 / 101);
  CHECK(learning_rate(cosine, 100) == 1e-3);
  // halfway the cosine is 0 up to rounding of pi / 2
  CHECK(learning_rate(cosine, 1050) == doctest::Approx(5.5e-4).epsilon(1e-12));
  CHECK(learning_rate(cosine, 2000) == doctest::Approx(1e-4).epsilon(1e-12));
  CHECK(learning_rate(cosine, 1000000) == doctest::Approx(1e-4).epsilon(1e-12));
  const Schedule linear{ScheduleKind::kLinear, 1e-3, 0, 0, 10};
  CHECK(learning_rate(linear, 0) == 1e-3);
  CHECK(learning_rate(linear, 5) == 5e-4);
  CHECK(learning_rate(linear, 10) == 0);
  const Schedule constant{ScheduleKind::kConstant, 1e-3, 0, 2, 10};
  CHECK(learning_rate(constant, 1) < 1e-3);
  CHECK(learning_rate(constant, 1000) == 1e-3);
}

TEST_CASE("schedule: a warm-up as long as the run, and unknown kinds") {
  const Schedule all_warm{ScheduleKind::kCosine, 1, 0.1, 10, 10};
  CHECK(learning_rate(all_warm, 9) < 1);
  CHECK(learning_rate(all_warm, 10) == doctest::Approx(0.1).epsilon(1e-12));
  CHECK(schedule_kind("linear") == ScheduleKind::kLinear);
  CHECK_THROWS_AS(schedule_kind("step"), UsageError);
}

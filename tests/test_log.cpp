#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "core/error.h"
#include "tests/temporary_directory.h"
#include "train/log.h"

using namespace hedgehog;

namespace {

StepRecord record_of(int64_t step) {
  StepRecord record;
  record.step = step;
  record.loss = 1.0 / double(step + 3);
  record.learning_rate = 3e-4 * double(step);
  record.gradient_norm = std::nextafter(1.0, 2.0);
  record.layer_gradient_norms = {0.1, 1e-300, 5e-324};
  record.tokens = step * 1000000007;
  record.tokens_per_second = 12345.678;
  record.seconds = 0.1 * double(step);
  if (step % 2 == 0) record.validation_loss = std::sqrt(2.0);
  return record;
}

bool same_bits(double left, double right) { return std::memcmp(&left, &right, sizeof left) == 0; }

std::vector<int64_t> steps_of(const std::filesystem::path& path) {
  std::vector<int64_t> steps;
  for (const StepRecord& record : read_log(path)) steps.push_back(record.step);
  return steps;
}

}  // namespace

TEST_CASE("log: records come back with the same bits") {
  TemporaryDirectory directory;
  const auto path = directory / "log.jsonl";
  {
    LogWriter writer(path);
    for (int64_t step = 0; step < 5; ++step) writer.append(record_of(step));
  }
  LogWriter(path).append(record_of(5));
  const std::vector<StepRecord> records = read_log(path);
  REQUIRE(records.size() == 6);
  for (int64_t step = 0; step < 6; ++step) {
    const StepRecord& found = records[size_t(step)];
    const StepRecord expected = record_of(step);
    CHECK(found.step == step);
    CHECK(same_bits(found.loss, expected.loss));
    CHECK(same_bits(found.learning_rate, expected.learning_rate));
    CHECK(same_bits(found.gradient_norm, expected.gradient_norm));
    CHECK(found.layer_gradient_norms == expected.layer_gradient_norms);
    CHECK(found.tokens == expected.tokens);
    CHECK(found.validation_loss == expected.validation_loss);
    CHECK(to_json(found) == to_json(expected));
  }
}

TEST_CASE("log: what is not finite is null, and reads as NaN") {
  StepRecord record = record_of(1);
  record.loss = std::numeric_limits<double>::quiet_NaN();
  record.layer_gradient_norms = {std::numeric_limits<double>::infinity(), 1};
  const std::string line = to_json(record);
  CHECK(contains(line, "\"loss\":null"));
  const StepRecord found = step_record_from_json(line);
  CHECK(std::isnan(found.loss));
  CHECK(std::isnan(found.layer_gradient_norms[0]));
  CHECK(found.layer_gradient_norms[1] == 1);
}

TEST_CASE("log: a torn last line is left out, and cut on resume") {
  TemporaryDirectory directory;
  std::string whole;
  for (int64_t step = 1; step <= 4; ++step) whole += to_json(record_of(step)) + "\n";
  const std::string last = to_json(record_of(5));
  for (size_t length = 0; length <= last.size(); length += 7) {
    const auto path = directory.file("log.jsonl", whole + last.substr(0, length));
    CHECK(steps_of(path) == std::vector<int64_t>{1, 2, 3, 4});
    truncate_log(path, 100);
    CHECK(bytes_of(path) == whole);
  }
  const auto path = directory.file("log.jsonl", whole + "{\"st");
  truncate_log(path, 2);
  CHECK(steps_of(path) == std::vector<int64_t>{1, 2});
  LogWriter(path).append(record_of(3));
  CHECK(steps_of(path) == std::vector<int64_t>{1, 2, 3});
  truncate_log(path, 0);
  CHECK(bytes_of(path).empty());
}

TEST_CASE("log: a missing file is no log; damage names line and field") {
  TemporaryDirectory directory;
  const auto absent = directory / "absent.jsonl";
  CHECK(read_log(absent).empty());
  truncate_log(absent, 3);
  CHECK_FALSE(std::filesystem::exists(absent));
  const std::string good = to_json(record_of(1)) + "\n";
  const auto refusal = [&](const std::string& line) {
    const auto path = directory.file("log.jsonl", good + line + "\n" + good);
    CHECK_THROWS_AS(truncate_log(path, 10), FileError);
    CHECK(bytes_of(path) == good + line + "\n" + good);
    return message_of<FileError>([&] { read_log(path); });
  };
  CHECK(contains(refusal("{"), "line 2: not JSON"));
  CHECK(contains(refusal("[]"), "line 2: not a JSON object"));
  CHECK(contains(refusal(""), "line 2: not JSON"));
  CHECK(contains(refusal("{\"step\":1}"), "field 'loss' is missing"));
  CHECK(contains(refusal("{\"step\":1.5}"), "field 'step' is not a whole number"));
  CHECK(contains(refusal("{\"step\":1,\"loss\":\"x\"}"), "field 'loss' is not a number"));
  CHECK(contains(refusal("{\"step\":[[[[1]]]]}"), "nested too deep"));
  CHECK_THROWS_AS(LogWriter(directory.path()), WriteError);
  if (std::filesystem::exists("/dev/full")) {
    LogWriter full("/dev/full");
    CHECK(contains(message_of<WriteError>([&] { full.append(record_of(1)); }), "No space left on device"));
  }
}

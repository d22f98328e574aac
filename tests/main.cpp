#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "core/tape.h"
#include "ops/blas.h"
#include "ops/cpu.h"
#include "ops/register.h"
#include "tests/counters.h"

namespace hedgehog::test {
namespace {

struct Counts {
  long passed = 0, failed = 0, skipped = 0;
};

Counts counts;
bool skipped_now = false;
std::string running;

/// Counts what doctest's own summary does not: cases that skipped themselves.
class Counter : public doctest::IReporter {
 public:
  explicit Counter(const doctest::ContextOptions&) {}
  void test_case_start(const doctest::TestCaseData& data) override {
    clear_tape();  // calls that an earlier case remembered and never went back through
    skipped_now = false;
    running = data.m_name;
  }
  void test_case_end(const doctest::CurrentTestCaseStats& stats) override {
    ++(!stats.testCaseSuccess ? counts.failed : skipped_now ? counts.skipped : counts.passed);
  }
  void test_case_reenter(const doctest::TestCaseData&) override {}
  void report_query(const doctest::QueryData&) override {}
  void test_run_start() override {}
  void test_run_end(const doctest::TestRunStats&) override {}
  void test_case_exception(const doctest::TestCaseException&) override {}
  void subcase_start(const doctest::SubcaseSignature&) override {}
  void subcase_end() override {}
  void log_assert(const doctest::AssertData&) override {}
  void log_message(const doctest::MessageData&) override {}
  void test_case_skipped(const doctest::TestCaseData&) override {}
};
REGISTER_LISTENER("counter", 1, Counter);

/// Results of what ran before this program in the same call: "passed,failed,skipped", set by ./hedgehog test.
Counts earlier_counts() {
  Counts earlier;
  if (const char* text = std::getenv("HEDGEHOG_EARLIER_TESTS")) {
    std::sscanf(text, "%ld,%ld,%ld", &earlier.passed, &earlier.failed, &earlier.skipped);
  }
  return earlier;
}

/// The last line is read by machines: keep its form.
int summary() {
  const Counts earlier = earlier_counts();
  const long outside = earlier.passed + earlier.failed + earlier.skipped;
  const long inside = counts.passed + counts.failed + counts.skipped;
  std::printf("checked: %ld tests (%ld of them other programs), %lld ops, %lld gradients\n", inside + outside, outside,
              static_cast<long long>(ops_checked), static_cast<long long>(gradients_checked));
  const long failed = counts.failed + earlier.failed;
  std::printf("%ld passed, %ld failed, %ld skipped\n", counts.passed + earlier.passed, failed,
              counts.skipped + earlier.skipped);
  return failed > 0;
}

}  // namespace

void skip(const std::string& reason) {
  skipped_now = true;
  std::printf("skipped: %s (%s)\n", reason.c_str(), running.c_str());
}

}  // namespace hedgehog::test

int main(int argc, char** argv) {
  hedgehog::ensure_best_blas(argc, argv);
  hedgehog::configure_threads();
  hedgehog::register_ops();  // find_op works in every case, whichever ran before it
  // a failure must not be followed by a crash whose output hides it
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  doctest::Context context(argc, argv);
  const int failed = context.run();
  if (context.shouldExit()) return failed;
  const int failed_anywhere = hedgehog::test::summary();
  return failed || failed_anywhere ? 1 : 0;
}

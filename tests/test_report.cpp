#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/temporary_directory.h"
#include "train/report.h"

using namespace hedgehog;

namespace {

std::vector<StepRecord> log_of(int64_t steps) {
  std::vector<StepRecord> log;
  for (int64_t step = 1; step <= steps; ++step) {
    StepRecord record;
    record.step = step;
    record.loss = 1.2 + 3 * std::exp(-double(step) / 100) + 0.1 * std::sin(double(step * step));
    record.learning_rate = 1e-3 * std::min(1.0, double(step) / 50);
    record.gradient_norm = 0.5 + 1.0 / double(step);
    record.layer_gradient_norms = {0.1, 0.2 + 1.0 / double(step)};
    record.tokens_per_second = 60000;
    if (step % 50 == 0) record.validation_loss = 1.3 + 3 * std::exp(-double(step) / 100);
    log.push_back(record);
  }
  return log;
}

size_t count(const std::string& text, const std::string& part) {
  size_t found = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + part.size())) ++found;
  return found;
}

nlohmann::json data_of(const std::string& page) {
  const std::string begin = "<script type=\"application/json\" id=\"data\">";
  const size_t at = page.find(begin) + begin.size();
  return nlohmann::json::parse(page.substr(at, page.find("</script>", at) - at));
}

}  // namespace

TEST_CASE("report: one page with every chart, sample and option, and nothing from the network") {
  Report report;
  report.title = "stories, hedgehog attention";
  report.log = log_of(4000);
  report.floor = 1.1;
  report.summary = {{"validation loss", "1.312"}};
  report.configuration = {{"layers", "2"}, {"data", "stories"}};
  report.layer_names = {"block 0"};
  report.samples = {{"Mia likes", " plums.", "temperature 0.8"}};
  const std::string page = report_html(report);
  for (const char* part : {"stories, hedgehog attention", "1.312", "<td>layers</td><td>2</td>",
                           "<b>Mia likes</b> plums.", "temperature 0.8"}) {
    CAPTURE(part);
    CHECK(contains(page, part));
  }
  CHECK_FALSE(contains(page, "src="));
  CHECK_FALSE(contains(page, "href="));
  CHECK(count(page, "http") == count(page, "http://www.w3.org/2000/svg") + count(page, "http-equiv"));

  const nlohmann::json charts = data_of(page)["charts"];
  REQUIRE(charts.size() == 5);
  CHECK(charts[0]["floor"] == 1.1);
  CHECK(charts[0]["series"].size() == 3);
  CHECK(charts[0]["series"][0]["x"].size() <= 1502);
  CHECK(charts[0]["series"][0]["x"].back() == 4000);
  CHECK(charts[0]["series"][2]["x"].size() == 80);
  CHECK(charts[3]["series"][0]["name"] == "block 0");
  CHECK(charts[3]["series"][1]["name"] == "layer 1");
  CHECK(page.size() < 600000);
}

TEST_CASE("report: no text can break out of the page") {
  const std::string evil =
      "</script><script>alert(1)</script><!--<img src=x onerror=alert(1)>'\"&\xff" + std::string(1, '\0');
  Report report;
  report.title = evil;
  report.log = log_of(3);
  report.summary = {{evil, evil}};
  report.configuration = {{evil, evil}};
  report.layer_names = {evil};
  report.samples = {{evil, evil, evil}};
  const std::string page = report_html(report);
  CHECK_FALSE(contains(page, "alert(1)</script>"));
  CHECK_FALSE(contains(page, "<img"));
  CHECK_FALSE(contains(page, "<!--"));
  CHECK(count(page, "<script") == 2);
  CHECK(count(page, "</script>") == 2);
  CHECK_FALSE(contains(page, "\xff"));
  CHECK(data_of(page)["charts"][3]["series"][0]["name"].get<std::string>().substr(0, 9) == "</script>");
}

TEST_CASE("report: runs without records, with NaN and with one record") {
  Report report;
  CHECK(data_of(report_html(report))["charts"][0]["floor"].is_null());
  report.log = log_of(1);
  report.log[0].loss = std::numeric_limits<double>::quiet_NaN();
  report.log[0].gradient_norm = 5e-324;
  CHECK(data_of(report_html(report))["charts"][0]["series"][0]["y"][0].is_null());
  TemporaryDirectory directory;
  write_report(directory / "report.html", report);
  CHECK(bytes_of(directory / "report.html") == report_html(report));
}

TEST_CASE("loss curve: a stand-alone picture with its own background") {
  const std::vector<LossCurve> curves = {{"hedgehog", log_of(500)}, {"a < b & c", log_of(300)}};
  const std::string svg = loss_curve_svg(curves, 1.1, "Loss");
  CHECK(svg.starts_with("<svg xmlns=\"http://www.w3.org/2000/svg\""));
  CHECK(svg.ends_with("</svg>\n"));
  CHECK(contains(svg, "fill=\"#ffffff\"/>"));
  CHECK(count(svg, "<path") == 2);
  CHECK(count(svg, "<circle") == 16);
  CHECK(contains(svg, "floor 1.100"));
  CHECK(contains(svg, "a &lt; b &amp; c"));
  CHECK_FALSE(contains(svg, "nan"));
  const double nan = std::numeric_limits<double>::quiet_NaN();
  for (const auto& log : {std::vector<StepRecord>{}, log_of(1), log_of(2)}) {
    const std::vector<LossCurve> one = {{"short", log}};
    const std::string small = loss_curve_svg(one, nan, "Loss");
    CHECK_FALSE(contains(small, "nan"));
    CHECK_FALSE(contains(small, "inf"));
    CHECK_FALSE(contains(small, "floor"));
  }
}

TEST_CASE("smoothed losses: a straight fall stays straight, noise is damped, NaN is passed over") {
  std::vector<StepRecord> log(1000);
  for (size_t i = 0; i < log.size(); ++i) log[i].loss = 10 - 0.01 * double(i) + (i % 2 == 0 ? 0.5 : -0.5);
  log[500].loss = NAN;
  const std::vector<double> smooth = smoothed_losses(log);
  // away from the ends both means lag by the same amount; alternating noise of 0.5 leaves 0.05 / 1.95 of it
  for (size_t i = 300; i < 700; ++i) CHECK(std::abs(smooth[i] - (10 - 0.01 * double(i))) < 0.05);
  log.assign(2, {});
  log[0].loss = log[1].loss = NAN;
  CHECK(std::isnan(smoothed_losses(log)[0]));
  log[1].loss = 3;
  CHECK(smoothed_losses(log) == std::vector<double>{3, 3});
}

TEST_CASE("smoothed mean: bias-corrected, and not thrown off by NaN") {
  SmoothedMean mean(0.5);
  CHECK(std::isnan(mean.value()));
  CHECK(std::isnan(mean.add(NAN)));
  CHECK(mean.add(4) == 4);
  // weights 1/4 and 1/2 over their sum
  CHECK(mean.add(1) == doctest::Approx((0.25 * 4 + 0.5 * 1) / 0.75).epsilon(1e-15));
  CHECK(mean.add(INFINITY) == mean.value());
}

TEST_CASE("report: tables with their head, and the chart of a distillation, alone or before those of the log") {
  Report report;
  report.title = "converted";
  report.tables = {{"Losses <b>", "nats & tokens", {{"", "loss"}, {"teacher", "1.7 <"}}}};
  report.distillation = log_of(30);
  report.distillation_loss = "KL divergence";
  const std::string page = report_html(report);
  for (const char* part : {"<h2>Losses &lt;b&gt;</h2>", "nats &amp; tokens", "<th>loss</th>", "<td>teacher</td><td>1.7 &lt;</td>"}) {
    CAPTURE(part);
    CHECK(contains(page, part));
  }
  REQUIRE(data_of(page)["charts"].size() == 1);
  CHECK(data_of(page)["charts"][0]["title"] == "Distillation: KL divergence");
  CHECK(data_of(page)["charts"][0]["series"].size() == 2);
  report.log = log_of(30);
  REQUIRE(data_of(report_html(report))["charts"].size() == 6);
  CHECK(data_of(report_html(report))["charts"][1]["title"] == "Loss (nats a token)");
}

#include "train/report.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <nlohmann/json.hpp>

#include "train/files.h"
#include "train/page.h"

namespace hedgehog {

namespace {

using Json = nlohmann::ordered_json;
using Value = std::function<double(const StepRecord&)>;

constexpr size_t kMostPoints = 1500;  // a chart is about 900 pixels wide

/// Every k-th record, the last always.
std::vector<size_t> thinned(size_t count) {
  const size_t stride = std::max<size_t>(1, (count + kMostPoints - 1) / kMostPoints);
  std::vector<size_t> kept;
  for (size_t i = 0; i < count; i += stride) kept.push_back(i);
  if (count > 0 && kept.back() != count - 1) kept.push_back(count - 1);
  return kept;
}

Json series(const char* style, const std::string& name, const std::vector<StepRecord>& log, const Value& value) {
  Json x = Json::array(), y = Json::array();
  for (const size_t i : thinned(log.size())) {
    x.push_back(log[i].step);
    y.push_back(chart_number(value(log[i])));
  }
  return {{"name", name}, {"style", style}, {"x", std::move(x)}, {"y", std::move(y)}};
}

/// The validation losses measured, none thinned away: there are few.
Json validation_points(const std::vector<StepRecord>& log) {
  Json x = Json::array(), y = Json::array();
  for (const StepRecord& record : log) {
    if (!record.validation_loss) continue;
    x.push_back(record.step);
    y.push_back(chart_number(*record.validation_loss));
  }
  return {{"name", "validation"}, {"style", "points"}, {"x", std::move(x)}, {"y", std::move(y)}};
}

Json chart(const char* title, Json all_series, bool logarithmic, bool from_zero) {
  return {{"title", title},
          {"log", logarithmic},
          {"zero", from_zero},
          {"floor", nullptr},
          {"series", std::move(all_series)}};
}

/// Each step's loss, and the losses without their noise.
Json loss_series(const std::vector<StepRecord>& log) {
  std::vector<StepRecord> smoothed = log;
  const std::vector<double> means = smoothed_losses(log);
  for (size_t i = 0; i < means.size(); ++i) smoothed[i].loss = means[i];
  const Value loss = [](const StepRecord& record) { return record.loss; };
  return Json::array({series("faint", "each step", log, loss), series("line", "smoothed", smoothed, loss)});
}

Json loss_chart(const Report& report) {
  Json all = loss_series(report.log);
  Json validation = validation_points(report.log);
  if (!validation["x"].empty()) all.push_back(std::move(validation));
  Json result = chart("Loss (nats a token)", std::move(all), false, false);
  result["floor"] = chart_number(report.floor);
  return result;
}

Json layer_chart(const Report& report, size_t layers) {
  Json all = Json::array();
  for (size_t layer = 0; layer < layers; ++layer) {
    const std::string name =
        layer < report.layer_names.size() ? report.layer_names[layer] : fmt::format("layer {}", layer);
    all.push_back(series("layer", name, report.log, [layer](const StepRecord& record) {
      return layer < record.layer_gradient_norms.size() ? record.layer_gradient_norms[layer]
                                                        : std::numeric_limits<double>::quiet_NaN();
    }));
  }
  return chart("Gradient norm per layer", std::move(all), true, false);
}

Json charts(const Report& report) {
  const auto one = [&](const char* name, const Value& value) {
    return Json::array({series("line", name, report.log, value)});
  };
  Json all = Json::array();
  if (!report.distillation.empty()) {
    all.push_back(chart(("Distillation: " + report.distillation_loss).c_str(), loss_series(report.distillation), true, false));
    if (report.log.empty()) return all;
  }
  all.push_back(loss_chart(report));
  all.push_back(
      chart("Learning rate", one("learning rate", [](const StepRecord& r) { return r.learning_rate; }), false, true));
  all.push_back(chart("Gradient norm, before clipping",
                      one("all parameters", [](const StepRecord& r) { return r.gradient_norm; }), true, false));
  size_t layers = 0;
  for (const StepRecord& record : report.log) layers = std::max(layers, record.layer_gradient_norms.size());
  if (layers > 0) all.push_back(layer_chart(report, layers));
  all.push_back(chart("Throughput (tokens a second)",
                      one("tokens a second", [](const StepRecord& r) { return r.tokens_per_second; }), false, true));
  return all;
}

std::string samples_html(const std::vector<ReportSample>& samples) {
  if (samples.empty()) return "";
  std::string result = "<h2>Samples</h2>\n";
  for (const ReportSample& sample : samples) {
    result += fmt::format("<div class=\"caption\">{}</div>\n<pre><b>{}</b>{}</pre>\n", escape_html(sample.caption),
                          escape_html(sample.prompt), escape_html(sample.text));
  }
  return result;
}

std::string summary_html(const NamedValues& values) {
  std::string result = "<dl class=\"summary\">\n";
  for (const auto& [name, value] : values)
    result += fmt::format("<div><dt>{}</dt><dd>{}</dd></div>\n", escape_html(name), escape_html(value));
  return result + "</dl>\n";
}

std::string tables_html(const std::vector<ReportTable>& tables) {
  std::string result;
  for (const ReportTable& table : tables) {
    result += fmt::format("<h2>{}</h2>\n<div class=\"caption\">{}</div>\n<table>\n", escape_html(table.title), escape_html(table.caption));
    for (size_t i = 0; i < table.rows.size(); ++i) {
      result += "<tr>";
      const std::string_view kind = i == 0 ? "th" : "td";
      for (const std::string& cell : table.rows[i]) result += fmt::format("<{0}>{1}</{0}>", kind, escape_html(cell));
      result += "</tr>\n";
    }
    result += "</table>\n";
  }
  return result;
}

std::string configuration_html(const NamedValues& values) {
  if (values.empty()) return "";
  std::string result = "<h2>Configuration</h2>\n<table>\n";
  for (const auto& [name, value] : values)
    result += fmt::format("<tr><td>{}</td><td>{}</td></tr>\n", escape_html(name), escape_html(value));
  return result + "</table>\n";
}

}  // namespace

std::string report_html(const Report& report) {
  return page_html(report.title, summary_html(report.summary) + tables_html(report.tables), charts(report), samples_html(report.samples) + configuration_html(report.configuration));
}

void write_report(const std::filesystem::path& path, const Report& report) { replace_file(path, report_html(report)); }

std::vector<double> smoothed_losses(std::span<const StepRecord> log) {
  constexpr double kKeep = 0.95;
  std::vector<double> result(log.size());
  SmoothedMean forwards(kKeep), backwards(kKeep);
  for (size_t i = 0; i < log.size(); ++i) result[i] = forwards.add(log[i].loss);
  for (size_t i = log.size(); i-- > 0;) {
    const double back = backwards.add(log[i].loss);
    result[i] = std::isfinite(result[i]) && std::isfinite(back) ? (result[i] + back) / 2 : std::fmin(result[i], back);
  }
  return result;
}

double SmoothedMean::add(double value) {
  if (std::isfinite(value)) {
    mean_ = keep_ * mean_ + (1 - keep_) * value;
    weight_ = keep_ * weight_ + (1 - keep_);
  }
  return this->value();
}

double SmoothedMean::value() const { return weight_ > 0 ? mean_ / weight_ : std::numeric_limits<double>::quiet_NaN(); }

}  // namespace hedgehog

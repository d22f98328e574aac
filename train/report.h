#pragma once
#include <filesystem>
#include <limits>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "train/log.h"

namespace hedgehog {

/// A text the model wrote.
struct ReportSample {
  std::string prompt;
  std::string text;     ///< what followed the prompt
  std::string caption;  ///< e.g. "temperature 0.8, seed 1"
};

using NamedValues = std::vector<std::pair<std::string, std::string>>;

/// A table; its first row is the head.
struct ReportTable {
  std::string title;
  std::string caption;
  std::vector<std::vector<std::string>> rows;
};

/// Everything report.html shows. All texts are escaped; none needs to be trusted.
///
/// title          e.g. "stories, hedgehog attention"
/// log            records of the run
/// floor          exact entropy, nats a token; NaN where unknown
/// summary        headline figures, in order, e.g. {"validation loss", "1.234"}
/// distillation   records of the steps that distilled feature maps, whose loss is `distillation_loss`; empty where there were none
/// tables         shown below the headline figures
/// configuration  resolved options, in order
/// layer_names    one a layer_gradient_norms entry; missing names are numbered
struct Report {
  std::string title;
  std::vector<StepRecord> log;
  double floor = std::numeric_limits<double>::quiet_NaN();
  std::vector<StepRecord> distillation;
  std::string distillation_loss;
  NamedValues summary;
  std::vector<ReportTable> tables;
  NamedValues configuration;
  std::vector<std::string> layer_names;
  std::vector<ReportSample> samples;
};

/// The report as one self-contained HTML page: no network, light and dark, charts with hover values.
std::string report_html(const Report& report);

/// Writes report_html under a temporary name and renames it into place. Throws WriteError.
void write_report(const std::filesystem::path& path, const Report& report);

/// One named run of a loss chart.
struct LossCurve {
  std::string name;
  std::vector<StepRecord> log;
};

/// A loss curve as a stand-alone SVG picture, for a README: smoothed training loss as lines, validation as points, the
/// floor as a dashed line. Light background drawn in, so that it reads on a dark page too.
///
/// floor  nats a token; NaN for none
std::string loss_curve_svg(std::span<const LossCurve> curves, double floor, const std::string& title);

/// The losses of a log without their noise, one a record: the average of the exponential means taken forwards and
/// backwards, so that the curve does not lag behind a fall. NaN where no loss is finite.
std::vector<double> smoothed_losses(std::span<const StepRecord> log);

/// Exponential mean with bias correction, as shown by the progress line.
///
///   m <- a * m + (1 - a) * x,  result m / (1 - a^n);  values that are not finite are passed over
class SmoothedMean {
 public:
  explicit SmoothedMean(double keep = 0.98) : keep_(keep) {}
  /// Takes a value; returns the mean so far (NaN before the first finite value).
  double add(double value);
  double value() const;

 private:
  double keep_;
  double mean_ = 0;
  double weight_ = 0;
};

}  // namespace hedgehog

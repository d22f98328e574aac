#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "train/report.h"
#include "train/utf8.h"

namespace hedgehog {

namespace {

constexpr double kWidth = 860, kHeight = 400;                       // pixels
constexpr double kLeft = 60, kRight = 20, kTop = 44, kBottom = 50;  // margins
constexpr std::array kColors = {"#1f6feb", "#c2410c", "#15803d", "#7c3aed", "#a16207", "#0e7490"};
constexpr const char* kFloorColor = "#4b5563";
constexpr size_t kMostPoints = 800;

std::string escape(std::string_view raw) {
  std::string result;
  for (const char c : valid_utf8(raw)) {
    if (c == '&') {
      result += "&amp;";
    } else if (c == '<') {
      result += "&lt;";
    } else if (uint8_t(c) >= 0x20) {
      result += c;
    }
  }
  return result;
}

/// Round numbers that cut [low, high] into about `count` parts.
std::vector<double> ticks(double low, double high, int count) {
  const double raw = (high - low) / count;
  const double power = std::pow(10.0, std::floor(std::log10(raw)));
  double step = 10 * power;
  for (const double factor : {5.0, 2.0, 1.0}) {
    if (factor * power >= raw) step = factor * power;
  }
  std::vector<double> result;
  for (double i = std::ceil(low / step); i * step <= high + step * 1e-9; ++i) result.push_back(i * step);
  return result;
}

struct Point {
  double x, y;
};

/// What is drawn of one run.
struct Line {
  std::string name;
  std::vector<Point> smoothed;
  std::vector<Point> validation;
};

Line line_of(const LossCurve& curve) {
  Line line{.name = curve.name, .smoothed = {}, .validation = {}};
  const std::vector<double> means = smoothed_losses(curve.log);
  const size_t stride = std::max<size_t>(1, curve.log.size() / kMostPoints);
  for (size_t i = 0; i < curve.log.size(); ++i) {
    const StepRecord& record = curve.log[i];
    const double value = means[i];
    if (std::isfinite(value) && (i % stride == 0 || i + 1 == curve.log.size()))
      line.smoothed.push_back({double(record.step), value});
    if (record.validation_loss && std::isfinite(*record.validation_loss)) {
      line.validation.push_back({double(record.step), *record.validation_loss});
    }
  }
  return line;
}

/// Maps steps and losses to pixels.
struct Frame {
  double x0 = 0, x1 = 1, y0 = 0, y1 = 1;

  Frame(const std::vector<Line>& lines, double floor) {
    Point low{INFINITY, INFINITY}, high{-INFINITY, -INFINITY};
    for (const Line& line : lines) {
      for (const auto* points : {&line.smoothed, &line.validation}) {
        for (const Point& point : *points) {
          low = {std::min(low.x, point.x), std::min(low.y, point.y)};
          high = {std::max(high.x, point.x), std::max(high.y, point.y)};
        }
      }
    }
    if (std::isfinite(floor)) low.y = std::min(low.y, floor), high.y = std::max(high.y, floor);
    if (std::isfinite(low.x)) x0 = low.x, x1 = high.x > low.x ? high.x : low.x + 1;
    if (std::isfinite(low.y)) {
      const double room = high.y > low.y ? (high.y - low.y) * 0.06 : 0.5;
      y0 = low.y - room, y1 = high.y + room;
    }
  }
  double x(double step) const { return kLeft + (step - x0) / (x1 - x0) * (kWidth - kLeft - kRight); }
  double y(double loss) const { return kHeight - kBottom - (loss - y0) / (y1 - y0) * (kHeight - kTop - kBottom); }
};

std::string axes(const Frame& frame) {
  std::string svg;
  for (const double value : ticks(frame.y0, frame.y1, 6)) {
    svg += fmt::format("<line x1=\"{}\" x2=\"{}\" y1=\"{:.1f}\" y2=\"{:.1f}\" stroke=\"#d9dee6\"/>\n", kLeft,
                       kWidth - kRight, frame.y(value), frame.y(value));
    svg += fmt::format("<text x=\"{}\" y=\"{:.1f}\" text-anchor=\"end\">{:.4g}</text>\n", kLeft - 8, frame.y(value) + 4,
                       value);
  }
  for (const double value : ticks(frame.x0, frame.x1, 8)) {
    svg += fmt::format("<text x=\"{:.1f}\" y=\"{}\" text-anchor=\"middle\">{:.0f}</text>\n", frame.x(value),
                       kHeight - kBottom + 20, value);
  }
  svg += fmt::format("<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">step</text>\n", (kLeft + kWidth - kRight) / 2,
                     kHeight - 10);
  svg += fmt::format(
      "<text transform=\"translate(16 {}) rotate(-90)\" text-anchor=\"middle\">loss (nats a token)</text>\n",
      (kTop + kHeight - kBottom) / 2);
  return svg;
}

std::string drawn(const Line& line, const Frame& frame, const char* color) {
  std::string svg;
  if (!line.smoothed.empty()) {
    std::string path;
    for (const Point& point : line.smoothed)
      path += fmt::format("{}{:.1f} {:.1f}", path.empty() ? "M" : "L", frame.x(point.x), frame.y(point.y));
    svg += fmt::format("<path d=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"2\" stroke-linejoin=\"round\"/>\n",
                       path, color);
  }
  for (const Point& point : line.validation) {
    svg += fmt::format(
        "<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"3.5\" fill=\"#ffffff\" stroke=\"{}\" stroke-width=\"2\"/>\n",
        frame.x(point.x), frame.y(point.y), color);
  }
  return svg;
}

/// The legend, right-aligned at the top inside the frame, one row an entry.
std::string legend(const std::vector<Line>& lines, double floor) {
  std::string svg;
  double y = kTop + 16;
  const auto row = [&](const std::string& name, const char* color, const char* dash) {
    svg += fmt::format("<line x1=\"{0}\" x2=\"{1}\" y1=\"{2}\" y2=\"{2}\" stroke=\"{3}\" stroke-width=\"2\"{4}/>\n",
                       kWidth - kRight - 36, kWidth - kRight - 8, y - 4, color, dash);
    svg +=
        fmt::format("<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>\n", kWidth - kRight - 44, y, escape(name));
    y += 19;
  };
  for (size_t i = 0; i < lines.size(); ++i) {
    row(lines[i].validation.empty() ? lines[i].name : lines[i].name + " (circles: validation)",
        kColors[i % kColors.size()], "");
  }
  if (std::isfinite(floor))
    row(fmt::format("floor {:.3f}: exact entropy of the text", floor), kFloorColor, " stroke-dasharray=\"7 5\"");
  return svg;
}

}  // namespace

std::string loss_curve_svg(std::span<const LossCurve> curves, double floor, const std::string& title) {
  std::vector<Line> lines;
  for (const LossCurve& curve : curves) lines.push_back(line_of(curve));
  const Frame frame(lines, floor);
  std::string svg = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0} {1}\" width=\"{0}\" height=\"{1}\" "
      "font-family=\"system-ui, sans-serif\" font-size=\"13\" fill=\"#1d2430\" role=\"img\">\n<title>{2}</title>\n"
      "<rect width=\"{0}\" height=\"{1}\" rx=\"8\" fill=\"#ffffff\"/>\n"
      "<text x=\"{3}\" y=\"26\" font-size=\"16\" font-weight=\"600\">{2}</text>\n",
      kWidth, kHeight, escape(title), kLeft);
  svg += axes(frame);
  if (std::isfinite(floor)) {
    svg += fmt::format(
        "<line x1=\"{}\" x2=\"{}\" y1=\"{:.1f}\" y2=\"{:.1f}\" stroke=\"{}\" stroke-width=\"2\" stroke-dasharray=\"7 "
        "5\"/>\n",
        kLeft, kWidth - kRight, frame.y(floor), frame.y(floor), kFloorColor);
  }
  for (size_t i = 0; i < lines.size(); ++i) svg += drawn(lines[i], frame, kColors[i % kColors.size()]);
  return svg + legend(lines, floor) + "</svg>\n";
}

}  // namespace hedgehog

#include "train/analysis_page.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "train/analysis_script.h"
#include "train/page.h"

namespace hedgehog {

namespace {

using Json = nlohmann::ordered_json;

Json measures_json(const WeightMeasures& m) {
  Json json;
  for (const MeasureColumn& c : measure_columns()) json[c.name] = std::isfinite(m.*c.value) ? Json(m.*c.value) : Json(nullptr);
  return json;
}

Json map_json(const MapAnalysis& map) {
  Json layers = Json::array();
  for (std::size_t l = 0; l < map.heads.size(); ++l) {
    Json heads = Json::array();
    for (const WeightMeasures& head : map.heads[l]) heads.push_back(measures_json(head));
    layers.push_back({{"mean", measures_json(map.layer(l))}, {"heads", std::move(heads)}});
  }
  return {{"name", map.name}, {"mean", measures_json(map.mean())}, {"layers", std::move(layers)}};
}

std::string row_html(const std::string& name, const WeightMeasures& m) {
  std::string row = fmt::format("<tr><td>{}</td>", escape_html(name));
  for (const MeasureColumn& c : measure_columns()) row += fmt::format("<td>{}</td>", measure_text(m.*c.value));
  return row + "</tr>\n";
}

std::string table_html(const char* first, const std::string& rows) {
  std::string table = fmt::format("<div class=\"wide\"><table class=\"measures\">\n<tr><th>{}</th>", first);
  for (const MeasureColumn& c : measure_columns()) table += fmt::format("<th>{}</th>", c.title);
  return table + "</tr>\n" + rows + "</table></div>\n";
}

std::string length_html(const LengthAnalysis& length) {
  std::string all, heads;
  for (const MapAnalysis& map : length.maps) {
    all += row_html(map.name, map.mean());
    std::string rows;
    for (std::size_t l = 0; l < map.heads.size(); ++l) {
      rows += row_html(fmt::format("layer {}", l + 1), map.layer(l));
      for (std::size_t h = 0; h < map.heads[l].size(); ++h) rows += row_html(fmt::format("layer {} head {}", l + 1, h + 1), map.heads[l][h]);
    }
    heads += fmt::format("<details><summary>{}: layers and heads</summary>\n{}</details>\n", escape_html(map.name), table_html("where", rows));
  }
  return fmt::format("<h2>{} tokens, {} {}</h2>\n{}{}", length.length, length.texts, length.texts == 1 ? "text" : "texts",
                     table_html("attention", all), heads);
}

/// The lower triangle row by row, two hexadecimal digits a cell: 0 for nothing, else 1 + 254 (1 + log10(weight) / 4) from 1e-4 to 1.
std::string cells_text(const HeadPicture& picture) {
  std::string text;
  for (std::int64_t i = 0; i < picture.side; ++i)
    for (std::int64_t j = 0; j <= i; ++j) {
      const double weight = picture.cells[std::size_t(i * picture.side + j)];
      const double level = weight > 0 ? 1 + 254 * (1 + std::log10(weight) / 4) : 0;
      text += fmt::format("{:02x}", int(std::clamp(std::round(level), 0.0, 255.0)));
    }
  return text;
}

Json pictures_json(const Analysis& analysis) {
  Json heads = Json::array();
  for (const HeadPicture& picture : analysis.pictures) {
    if (heads.empty() || heads.back()["layer"] != picture.layer || heads.back()["head"] != picture.head) {
      Json score = Json::array();
      for (double s : picture.score) score.push_back(chart_number(s));
      heads.push_back({{"layer", picture.layer}, {"head", picture.head}, {"side", picture.side}, {"score", std::move(score)}, {"maps", Json::array()}});
    }
    Json weight = Json::array();
    for (double w : picture.log_weight) weight.push_back(chart_number(w));
    heads.back()["maps"].push_back({{"name", picture.map}, {"cells", cells_text(picture)}, {"weight", std::move(weight)}});
  }
  return {{"tokens", analysis.picture_length}, {"heads", std::move(heads)}};
}

std::string summary_html(const Analysis& analysis) {
  std::string html = "<dl class=\"summary\">\n";
  const auto add = [&](const char* name, const std::string& value) { html += fmt::format("<div><dt>{}</dt><dd>{}</dd></div>\n", name, escape_html(value)); };
  add("checkpoint", fmt::format("{}, step {}", analysis.checkpoint, analysis.step));
  add("attention", analysis.attention);
  if (!analysis.student.empty()) add("student", analysis.student);
  add("shape", fmt::format("{} layers, {} heads of {}", analysis.layers, analysis.heads, analysis.head_width));
  add("text", analysis.data);
  return html + "</dl>\n";
}

constexpr const char* kMeaning = R"html(<p class="caption">Weights a<sub>ij</sub> of each kind of attention over the same queries and keys. <b>Entropy</b>:
mean over rows, in nats, and as a share of ln n for rows that see n tokens, 1 for uniform weights, low for spiky ones. <b>Rank</b>: Spearman's
correlation of a<sub>ij</sub> with q<sub>i</sub>·k<sub>j</sub>, within each row (1 for softmax by construction) and over the pairs of all rows
together. <b>KL</b>: divergence of these weights from those of softmax, mean over rows, in nats.</p>
)html";

}  // namespace

std::string measure_text(double value) { return std::isfinite(value) ? fmt::format("{:.3f}", value) : "∞"; }

Json analysis_json(const Analysis& analysis) {
  Json lengths = Json::array();
  for (const LengthAnalysis& length : analysis.lengths) {
    Json maps = Json::array();
    for (const MapAnalysis& map : length.maps) maps.push_back(map_json(map));
    lengths.push_back({{"length", length.length}, {"texts", length.texts}, {"maps", std::move(maps)}});
  }
  Json json{{"checkpoint", analysis.checkpoint}, {"step", analysis.step}, {"attention", analysis.attention}};
  if (!analysis.student.empty()) json["student"] = analysis.student;
  json.update({{"data", analysis.data},
               {"layers", analysis.layers},
               {"heads", analysis.heads},
               {"head_width", analysis.head_width},
               {"ranked_pairs", analysis.options.pairs},
               {"seed", analysis.options.seed},
               {"lengths", std::move(lengths)}});
  return json;
}

std::string analysis_html(const Analysis& analysis) {
  std::string after = fmt::format("<style>{}</style>\n<div id=\"pictures\"></div>\n", kAnalysisStyle);
  for (const LengthAnalysis& length : analysis.lengths) after += length_html(length);
  // names and numbers alone: nothing that could end the element
  after += fmt::format("<script type=\"application/json\" id=\"heads\">{}</script>\n<script>{}</script>\n", pictures_json(analysis).dump(), kAnalysisScript);
  return page_html("Attention weights", summary_html(analysis) + kMeaning, Json::array(), after);
}

}  // namespace hedgehog

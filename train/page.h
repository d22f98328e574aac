#pragma once
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

namespace hedgehog {

/// Text that stands for itself in HTML, inside elements and attributes.
std::string escape_html(std::string_view raw);

/// A self-contained page: no network, light and dark, charts with hover values.
///
/// title   a text, escaped here
/// before  HTML between the title and the charts
/// after   HTML under the charts
/// charts  list of {"title", "log", "zero", "floor", "series"}, as kReportScript draws them
std::string page_html(const std::string& title, const std::string& before, const nlohmann::ordered_json& charts, const std::string& after);

/// JSON that may stand in a script element: no "</script" or "<!--" can occur.
std::string script_json(const nlohmann::ordered_json& json);

/// A number with the 5 digits that a chart shows; null for NaN and infinities.
nlohmann::ordered_json chart_number(double value);

}  // namespace hedgehog

#include "train/page.h"

#include <fmt/core.h>

#include <cmath>
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "train/report_page.h"
#include "train/utf8.h"

namespace hedgehog {

namespace {

using Json = nlohmann::ordered_json;

}  // namespace

std::string script_json(const Json& json) {
  std::string result;
  for (const char c : json.dump(-1, ' ', false, Json::error_handler_t::replace))
    result += c == '<' ? std::string("\\u003c") : std::string(1, c);
  return result;
}

std::string escape_html(std::string_view raw) {
  std::string result;
  for (const char c : valid_utf8(raw)) {
    switch (c) {
      case '&': result += "&amp;"; break;
      case '<': result += "&lt;"; break;
      case '>': result += "&gt;"; break;
      case '"': result += "&quot;"; break;
      case '\'': result += "&#39;"; break;
      case '\0': result += "\xEF\xBF\xBD"; break;
      default: result += c;
    }
  }
  return result;
}

std::string page_html(const std::string& title, const std::string& before, const Json& charts, const std::string& after) {
  const std::string heading = escape_html(title);
  return fmt::format(
      "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
      "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
      "script-src 'unsafe-inline'\">\n<title>{}</title>\n<style>{}</style>\n</head>\n<body>\n<h1>{}</h1>\n{}"
      "<div id=\"charts\"><noscript>The charts need JavaScript.</noscript></div>\n{}"
      "<script type=\"application/json\" id=\"data\">{}</script>\n<script>{}{}</script>\n</body>\n</html>\n",
      heading, kReportStyle, heading, before, after, script_json({{"charts", charts}}), kNodeScript, kReportScript);
}

Json chart_number(double value) {
  return std::isfinite(value) ? Json(std::strtod(fmt::format("{:.5g}", value).c_str(), nullptr)) : Json(nullptr);
}

}  // namespace hedgehog

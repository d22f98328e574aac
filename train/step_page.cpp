#include "train/step_page.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "train/page.h"
#include "train/report_page.h"
#include "train/step_page_attention_script.h"
#include "train/step_page_panels.h"
#include "train/step_page_script.h"
#include "train/step_page_style.h"

namespace hedgehog {

std::string step_page(const Stepper& stepper, const StepPageOptions& options) {
  const std::string heading = escape_html(options.title);
  return fmt::format(
      "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
      "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
      "script-src 'unsafe-inline'\">\n<title>{}</title>\n<style>{}{}</style>\n</head>\n<body>\n{}"
      "<script type=\"application/json\" id=\"data\">{}</script>\n<script>{}{}{}{}</script>\n</body>\n</html>\n",
      heading, kReportStyle, kStepPageStyle, fmt::format(kStepPageBody, fmt::arg("title", heading)),
      script_json(step_page_data(stepper, options)), kNodeScript, kStepPageScript, kStepPagePanels, kStepPageAttention);
}

}  // namespace hedgehog

#pragma once
#include <nlohmann/json_fwd.hpp>

#include "train/conversion.h"
#include "train/report.h"

namespace hedgehog {

/// The figures as a table: teacher, and the student after each stage.
std::string figures_text(const ConversionFigures& figures);
/// Everything measured, for convert.json.
nlohmann::ordered_json figures_json(const ConversionFigures& figures);
/// The same figures again. Throws FileError naming `file` for what is no such JSON.
ConversionFigures figures_of_json(const std::filesystem::path& file, const std::string& text);
/// The page of a conversion, without its logs.
Report conversion_report(const std::string& title, const ConversionFigures& figures, const NamedValues& configuration);

}  // namespace hedgehog

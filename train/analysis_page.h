#pragma once
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "train/analysis.h"

namespace hedgehog {

/// Everything that analysis.json and analysis.html hold.
struct Analysis {
  std::string checkpoint, attention, student, data;  // student: its checkpoint, empty for none
  std::int64_t step = 0, layers = 0, heads = 0, head_width = 0;
  AnalysisOptions options;
  std::vector<LengthAnalysis> lengths;
  std::vector<HeadPicture> pictures;  // by head, then map; softmax first
  std::int64_t picture_length = 0;    // tokens of their text
};

/// {"checkpoint", …, "lengths": [{"length", "texts", "maps": [{"name", "mean": {…}, "layers": [{"mean": {…}, "heads": [{…}]}]}]}]}; the names
/// of measures are those of measure_columns(). What is infinite is null.
nlohmann::ordered_json analysis_json(const Analysis& analysis);

/// The same numbers as one self-contained page, with pictures of the weights.
std::string analysis_html(const Analysis& analysis);

/// A measure as the tables show it: three decimals.
std::string measure_text(double value);

}  // namespace hedgehog

#pragma once
#include <cstdio>
#include <filesystem>
#include <functional>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "train/config.h"
#include "train/interrupt.h"

namespace hedgehog {

using ExperimentJson = nlohmann::ordered_json;

/// What a command line asks of an experiment, the same for all its parts.
///
/// size     "small": two cores, minutes; "gpu": one GPU, parts of at most 8 minutes
/// seeds    empty: those that the experiment has for this size
/// part     "K/N", or names with commas; empty: all
/// minutes  no part is begun that would end later, as far as the longest so far tells; infinite: no limit
/// collect  no part is run: the table of those that are there
/// folder   of parts, table and page
/// config   of the command, for options that only some experiments have
struct ReproduceRequest {
  std::string size = "small";
  std::vector<std::int64_t> seeds;
  std::string part;
  double minutes = std::numeric_limits<double>::infinity();
  bool collect = false;
  std::filesystem::path folder;
  const Config* config = nullptr;

  bool small() const { return size == "small"; }
  /// The seeds asked for, or these.
  std::vector<std::int64_t> seeds_or(std::vector<std::int64_t> usual) const { return seeds.empty() ? std::move(usual) : seeds; }
};

/// An independent piece of an experiment, for example a map with a seed.
///
/// name   names its file: lower-case letters, digits, '-' and '.'
/// needs  parts whose results it reads; they come before it
struct ExperimentPart {
  std::string name;
  std::vector<std::string> needs = {};
};

/// What a part found, and on which machine (machine_description).
struct PartResult {
  ExperimentJson result;
  double seconds = 0;
  std::map<std::string, std::string> machine;
};
using PartResults = std::map<std::string, PartResult>;

/// What a running part may use.
struct PartContext {
  const ReproduceRequest& request;
  const PartResults& results;     // of the parts that are done
  std::function<bool()> stopped;  // whether to stop at once, by throwing Stopped
};

/// The outcome of an experiment.
///
/// columns  head of the table; the paper's value stands beside ours
/// rows     as many texts each
/// notes    sentences under the table: what was chosen, what differs from the paper, what is missing
/// figures  the numbers of the table and more, for NAME.json
/// charts   as page_html takes them; chart_of makes one
struct Findings {
  std::vector<std::string> columns;
  std::vector<std::vector<std::string>> rows;
  std::vector<std::string> notes;
  ExperimentJson figures = ExperimentJson::object();
  ExperimentJson charts = ExperimentJson::array();
};

/// One experiment of the paper, as the table in experiments.cpp lists them.
///
/// claim     what the paper says, one line
/// settings  everything that decides a part's result, besides its name: parts made with other settings are not mixed
/// parts     in the order in which they run
/// run       one part; throws Stopped when told to stop
/// collect   the table; where parts are missing, of those that are there
struct Experiment {
  std::string name;
  std::string claim;
  std::function<ExperimentJson(const ReproduceRequest&)> settings;
  std::function<std::vector<ExperimentPart>(const ReproduceRequest&)> parts;
  std::function<ExperimentJson(const ExperimentPart&, const PartContext&)> run;
  std::function<Findings(const ReproduceRequest&, const PartResults&)> collect;
};

/// All experiments. One line each in experiments.cpp.
const std::vector<Experiment>& experiment_table();
/// Throws UsageError naming the nearest.
const Experiment& find_experiment(const std::string& name);

/// Runs the parts that are asked for and not there yet, each into FOLDER/parts/PART.json; when all are there (or with
/// `collect`) prints the table and writes FOLDER/NAME.html and NAME.json. Parts made with other settings are made again,
/// with a note.
///
/// Returns 0, or 130 after Ctrl-C: finished parts stay.
/// Throws: UsageError (a part that is not there, nothing to collect, parts of other settings to collect), FileError (a broken
/// part's file), WriteError.
int reproduce(const Experiment& experiment, const ReproduceRequest& request, std::FILE* out);

/// The parts that `request.part` names, in order. Throws UsageError: no such part (nearest offered), K not in 1 … N.
std::vector<ExperimentPart> selected_parts(const std::vector<ExperimentPart>& parts, const std::string& part);

/// "1,2,3" as numbers. Throws UsageError.
std::vector<std::int64_t> parse_seeds(const std::string& text);

/// Mean and standard error (0 for one value; n - 1 in the variance).
struct MeanError {
  double mean = 0, error = 0;
  std::size_t count = 0;
};
MeanError mean_and_error(const std::vector<double>& values);
/// "12.3 ± 0.4", without the error for one value, "-" for none.
std::string text_of(const MeanError& value, int digits);

/// A line of a chart: equally many numbers.
struct ChartLine {
  std::string name;
  std::vector<double> x, y;
};
/// A chart for Findings::charts. `x_name`: what x counts, "step" or other.
ExperimentJson chart_of(const std::string& title, const std::string& x_name, const std::vector<ChartLine>& lines);

}  // namespace hedgehog

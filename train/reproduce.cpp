#include "train/reproduce.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cmath>
#include <functional>
#include <set>

#include "core/error.h"
#include "core/nearest_name.h"
#include "train/checkpoint.h"
#include "train/commands.h"
#include "train/files.h"
#include "train/interrupt.h"
#include "train/page.h"
#include "train/progress.h"
#include "train/reproduce_files.h"
#include "train/split.h"
#include "train/utf8.h"

namespace hedgehog {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

template <class Items, class Name>
std::string joined(const Items& items, const Name& name, std::size_t most = 8) {
  std::string text;
  std::size_t count = 0;
  for (const auto& item : items) {
    if (count++ == most) return text + fmt::format(" and {} more", items.size() - most);
    text += (text.empty() ? "" : ", ") + name(item);
  }
  return text;
}

std::string part_name(const ExperimentPart& part) { return part.name; }

std::int64_t parse_count(const std::string& text, const std::string& what) {
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < 0)
    throw UsageError(fmt::format("{} expects whole numbers, but got '{}'", what, valid_utf8(text)));
  return value;
}

/// The part's needs that are not there.
std::vector<std::string> missing_needs(const ExperimentPart& part, const PartResults& results) {
  std::vector<std::string> missing;
  for (const std::string& need : part.needs)
    if (!results.contains(need)) missing.push_back(need);
  return missing;
}

/// What an experiment makes of its parts; a result that lacks what it looks for was not written by it.
template <class Action>
auto reading_parts(const Experiment& experiment, const ReproduceRequest& request, const Action& action) {
  try {
    return action();
  } catch (const nlohmann::json::exception& error) {
    throw FileError(fmt::format("[reproduce] a part in {} does not hold what {} writes ({}); remove it, and it is made again",
                                (request.folder / "parts").string(), experiment.name, error.what()));
  }
}

/// Runs parts one after another; says why it ended early.
class Sitting {
 public:
  Sitting(const Experiment& experiment, const ReproduceRequest& request, PartResults& results, std::FILE* out)
      : experiment_(experiment), request_(request), results_(results), out_(out) {}

  /// False if Ctrl-C or the time limit came first.
  bool run(const std::vector<ExperimentPart>& parts, std::size_t in_all) {
    for (const ExperimentPart& part : parts) {
      if (results_.contains(part.name)) continue;
      if (const auto missing = missing_needs(part, results_); !missing.empty()) {
        fmt::print(out_, "{} waits for {}\n", part.name, joined(missing, std::identity{}));
        continue;
      }
      if (ran_ > 0 && seconds_since(start_) + longest_ > 60 * request_.minutes) {
        fmt::print(out_, "stopped: another part of {} would end after the {} minutes given\n", duration_text(longest_), request_.minutes);
        return false;
      }
      if (!run_one(part, in_all)) return false;
    }
    return true;
  }
  bool interrupted() const { return guard_.interrupted(); }

 private:
  bool run_one(const ExperimentPart& part, std::size_t in_all) {
    fmt::print(out_, "{} {}: part {} of {}, {}\n", experiment_.name, request_.size, results_.size() + 1, in_all, part.name);
    std::fflush(out_);
    const auto start = Clock::now();
    PartResult result;
    try {
      const PartContext context{request_, results_, [this] { return guard_.interrupted(); }};
      result.result = reading_parts(experiment_, request_, [&] { return experiment_.run(part, context); });
    } catch (const Stopped&) {
      fmt::print(out_, "interrupted in {}; finished parts stay, the same command goes on\n", part.name);
      return false;
    }
    result.seconds = seconds_since(start);
    result.machine = machine_description();
    write_part(experiment_, request_, part.name, result);
    fmt::print(out_, "{} done in {}\n", part.name, duration_text(result.seconds));
    std::fflush(out_);
    results_[part.name] = std::move(result);
    longest_ = std::max(longest_, seconds_since(start));
    ++ran_;
    return true;
  }

  const Experiment& experiment_;
  const ReproduceRequest& request_;
  PartResults& results_;
  std::FILE* out_;
  InterruptGuard guard_;
  Clock::time_point start_ = Clock::now();
  double longest_ = 0;
  int ran_ = 0;
};

/// Prints the table and writes page and numbers.
void publish(const Experiment& experiment, const ReproduceRequest& request, const PartResults& results,
             const std::vector<std::string>& missing, std::FILE* out) {
  Findings findings = reading_parts(experiment, request, [&] { return experiment.collect(request, results); });
  if (!missing.empty())
    findings.notes.push_back(fmt::format("{} of {} parts are missing: {}", missing.size(), missing.size() + results.size(),
                                         joined(missing, std::identity{})));
  write_findings(experiment, request, results, findings, out);
}

}  // namespace

const Experiment& find_experiment(const std::string& name) {
  std::vector<std::string> names;
  for (const Experiment& experiment : experiment_table()) {
    if (experiment.name == name) return experiment;
    names.push_back(experiment.name);
  }
  const std::string nearest = nearest_name(name, names);
  throw UsageError(fmt::format("unknown experiment '{}'; {}", valid_utf8(name),
                               nearest.empty() ? "there are " + joined(
                                                                    names, std::identity{}, 99)
                                               : fmt::format("did you mean {}?", nearest)));
}

std::vector<ExperimentPart> selected_parts(const std::vector<ExperimentPart>& parts, const std::string& part) {
  if (part.empty()) return parts;
  std::vector<ExperimentPart> chosen;
  if (const std::size_t slash = part.find('/'); slash != std::string::npos) {
    const std::int64_t k = parse_count(part.substr(0, slash), "--part=K/N"), n = parse_count(part.substr(slash + 1), "--part=K/N");
    if (k < 1 || k > n) throw UsageError(fmt::format("--part={} is out of range: K/N is the K-th of N shares, K from 1 to N", part));
    for (std::size_t i = 0; i < parts.size(); ++i)
      if (std::int64_t(i) % n == k - 1) chosen.push_back(parts[i]);
    return chosen;
  }
  const std::vector<std::string> wanted = split(part, ',');
  std::vector<std::string> names;
  for (const ExperimentPart& p : parts) names.push_back(p.name);
  for (const std::string& name : wanted) {
    if (std::find(names.begin(), names.end(), name) != names.end()) continue;
    const std::string nearest = nearest_name(name, names);
    throw UsageError(fmt::format(
        "--part: there is no part '{}'{}", valid_utf8(name),
        nearest.empty() ? fmt::format("; there are {}", joined(parts, part_name)) : fmt::format("; did you mean {}?", nearest)));
  }
  for (const ExperimentPart& p : parts)
    if (std::find(wanted.begin(), wanted.end(), p.name) != wanted.end()) chosen.push_back(p);
  return chosen;
}

std::vector<std::int64_t> parse_seeds(const std::string& text) {
  std::vector<std::int64_t> seeds;
  for (const std::string& item : split(text, ',')) seeds.push_back(parse_count(item, "--seeds=1,2,3"));
  if (std::set<std::int64_t>(seeds.begin(), seeds.end()).size() != seeds.size())
    throw UsageError(fmt::format("--seeds={} names a seed twice", text));
  return seeds;
}

int reproduce(const Experiment& experiment, const ReproduceRequest& request, std::FILE* out) {
  const std::vector<ExperimentPart> parts = experiment.parts(request), chosen = selected_parts(parts, request.part);
  FoundParts found = read_parts(experiment, request, parts);
  if (request.collect) {
    if (!found.others.empty())
      throw UsageError(fmt::format("{}; run them again without --collect, or name another --out",
                                   joined(
                                       found.others, std::identity{}, 1)));
    if (found.results.empty())
      throw UsageError(fmt::format("there is nothing to collect in {}: no part of {} {} is there", request.folder.string(),
                                   experiment.name, request.size));
  } else {
    make_directories(request.folder / "parts");
    for (const std::string& note : found.others) fmt::print(stderr, "note: {}; it is made again\n", note);
    Sitting sitting(experiment, request, found.results, out);
    sitting.run(chosen, parts.size());
    if (sitting.interrupted()) return kInterrupted;
  }
  std::vector<std::string> missing;
  for (const ExperimentPart& part : parts)
    if (!found.results.contains(part.name)) missing.push_back(part.name);
  if (missing.empty() || request.collect) {
    publish(experiment, request, found.results, missing, out);
  } else {
    fmt::print(out, "{} of {} parts are there, {} to go: {}\nthe same command goes on; --collect shows what is there\n",
               found.results.size(), parts.size(), missing.size(), joined(missing, std::identity{}));
  }
  return kGood;
}

MeanError mean_and_error(const std::vector<double>& values) {
  MeanError result{0, 0, values.size()};
  if (values.empty()) return result;
  for (const double v : values) result.mean += v / double(values.size());
  if (values.size() == 1) return result;
  double squares = 0;
  for (const double v : values) squares += (v - result.mean) * (v - result.mean);
  result.error = std::sqrt(squares / double(values.size() - 1) / double(values.size()));
  return result;
}

std::string text_of(const MeanError& value, int digits) {
  if (value.count == 0) return "-";
  if (value.count == 1) return fmt::format("{:.{}f}", value.mean, digits);
  return fmt::format("{:.{}f} ± {:.{}f}", value.mean, digits, value.error, digits);
}

ExperimentJson chart_of(const std::string& title, const std::string& x_name, const std::vector<ChartLine>& lines) {
  ExperimentJson series = ExperimentJson::array();
  for (const ChartLine& line : lines) {
    ExperimentJson x = ExperimentJson::array(), y = ExperimentJson::array();
    for (const double v : line.x) x.push_back(chart_number(v));
    for (const double v : line.y) y.push_back(chart_number(v));
    series.push_back({{"name", line.name}, {"style", "layer"}, {"x", std::move(x)}, {"y", std::move(y)}});
  }
  return {{"title", title}, {"x", x_name}, {"log", false}, {"zero", true}, {"floor", nullptr}, {"series", std::move(series)}};
}

}  // namespace hedgehog

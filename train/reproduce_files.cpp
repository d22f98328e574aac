#include "train/reproduce_files.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>
#include <sstream>

#include "core/error.h"
#include "train/files.h"
#include "train/page.h"
#include "train/progress.h"
#include "train/strict_json.h"
#include "train/utf8.h"

namespace hedgehog {
namespace {

namespace fs = std::filesystem;
using Json = ExperimentJson;

constexpr std::size_t kLargestPart = std::size_t(64) << 20;  // bytes
constexpr int kDeepest = 12;

fs::path file_of(const ReproduceRequest& request, const std::string& part) { return request.folder / "parts" / (part + ".json"); }

/// Size and settings as they are stored and compared.
Json stamp_of(const Experiment& experiment, const ReproduceRequest& request) {
  Json stamp = experiment.settings(request);
  stamp["size"] = request.size;
  return stamp;
}

/// The first word that differs from the other text's: "steps=100" of "width=16 steps=100 seed=1".
std::string differing_word(const std::string& text, const std::string& other) {
  std::istringstream words(text), others(other);
  std::string word, same;
  while (words >> word)
    if (!(others >> same) || same != word) return word;
  return "nothing";
}

/// The first setting that differs: "steps (100 now, 200 then)"; empty if all are equal.
std::string difference(const Json& now, const Json& then) {
  for (const auto& [name, value] : now.items()) {
    if (!then.contains(name)) return fmt::format("{} (none then)", name);
    const Json& other = then.at(name);
    if (value == other) continue;
    if (value.is_object() && other.is_object()) return fmt::format("{}: {}", name, difference(value, other));
    if (value.is_string() && other.is_string())
      return fmt::format("{} ({} now, {} then)", name, differing_word(value.get<std::string>(), other.get<std::string>()),
                         valid_utf8(differing_word(other.get<std::string>(), value.get<std::string>())));
    return fmt::format("{} ({} now, {} then)", name, value.dump(), valid_utf8(other.dump(-1, ' ', false, Json::error_handler_t::replace)));
  }
  for (const auto& [name, value] : then.items())
    if (!now.contains(name)) return fmt::format("{} (none now)", valid_utf8(name));
  return "";
}

[[noreturn]] void broken(const fs::path& file, const std::string& why) {
  throw FileError(
      fmt::format("[reproduce] {} is no part of an experiment: {}; remove it, and the part is made again", file.string(), why));
}

/// The file of a part, checked field by field; its settings go to `stamp`.
PartResult read_part(const fs::path& file, const Experiment& experiment, const std::string& part, Json& stamp) {
  Json json;
  try {
    // the strict reader refuses what is damaged, the ordered one keeps the order
    const std::string text = read_file(file, kLargestPart);
    parse_strict_json(file, text, "part of an experiment", kDeepest);
    json = Json::parse(text);
  } catch (const FileError& error) {
    throw FileError(fmt::format("{}; remove it, and the part is made again", error.what()));
  }
  const auto text = [&](const char* name) {
    if (!json.contains(name) || !json[name].is_string()) broken(file, fmt::format("the text '{}' is missing", name));
    return json[name].get<std::string>();
  };
  if (text("experiment") != experiment.name || text("part") != part)
    broken(file, fmt::format("it says {} of {}, not {} of {}", valid_utf8(text("part")), valid_utf8(text("experiment")), part,
                             experiment.name));
  for (const char* name : {"settings", "machine", "result"})
    if (!json.contains(name) || !json[name].is_object()) broken(file, fmt::format("the object '{}' is missing", name));
  if (!json.contains("seconds") || !json["seconds"].is_number()) broken(file, "the number 'seconds' is missing");
  PartResult result{json["result"], json["seconds"].get<double>(), {}};
  for (const auto& [name, value] : json["machine"].items())
    if (value.is_string()) result.machine[name] = value.get<std::string>();
  stamp = json["settings"];
  return result;
}

std::string machine_text(const std::map<std::string, std::string>& machine) {
  const auto get = [&](const char* name) {
    const auto found = machine.find(name);
    return found == machine.end() ? std::string("unknown") : found->second;
  };
  const std::string device = get("device");
  if (device != "cpu") return fmt::format("{}, version {}", device, get("version"));
  return fmt::format("{}, {} thread{}, {}, version {}", get("processor"), get("threads"), get("threads") == "1" ? "" : "s", get("blas"),
                     get("version"));
}

std::string printed_table(const Findings& f) {
  std::vector<std::size_t> widths(f.columns.size(), 0);
  const auto widen = [&](const std::vector<std::string>& row) {
    for (std::size_t i = 0; i < widths.size() && i < row.size(); ++i) widths[i] = std::max(widths[i], std::size_t(utf8_length(row[i])));
  };
  widen(f.columns);
  for (const auto& row : f.rows) widen(row);
  std::string text;
  const auto print = [&](const std::vector<std::string>& row) {
    std::string line;
    for (std::size_t i = 0; i < row.size() && i < widths.size(); ++i)
      line += row[i] + std::string(i + 1 == row.size() ? 0 : widths[i] - std::size_t(utf8_length(row[i])) + 2, ' ');
    text += line + "\n";
  };
  print(f.columns);
  for (const auto& row : f.rows) print(row);
  return text;
}

std::string table_html(const Findings& f) {
  const auto line = [](const std::vector<std::string>& row, const char* cell) {
    std::string html = "<tr>";
    for (const std::string& text : row) html += fmt::format("<{0}>{1}</{0}>", cell, escape_html(text));
    return html + "</tr>\n";
  };
  std::string html = "<table>\n" + line(f.columns, "th");
  for (const auto& row : f.rows) html += line(row, "td");
  return html + "</table>\n";
}

std::string settings_html(const Json& stamp) {
  std::string html = "<h2>Settings</h2>\n<table>\n";
  for (const auto& [name, value] : stamp.items())
    html += fmt::format("<tr><td>{}</td><td>{}</td></tr>\n", escape_html(name),
                        escape_html(value.is_string() ? value.get<std::string>() : value.dump()));
  return html + "</table>\n";
}

}  // namespace

FoundParts read_parts(const Experiment& experiment, const ReproduceRequest& request, const std::vector<ExperimentPart>& parts) {
  FoundParts found;
  const Json now = stamp_of(experiment, request);
  for (const ExperimentPart& part : parts) {
    const fs::path file = file_of(request, part.name);
    std::error_code ignored;
    if (!fs::exists(file, ignored)) continue;
    Json then;
    PartResult result = read_part(file, experiment, part.name, then);
    const std::string differs = difference(now, then);
    if (differs.empty()) found.results[part.name] = std::move(result);
    else found.others.push_back(fmt::format("{} was made with another {}", file.string(), differs));
  }
  return found;
}

void write_part(const Experiment& experiment, const ReproduceRequest& request, const std::string& part, const PartResult& result) {
  const Json json{
      {"experiment", experiment.name}, {"part", part},           {"settings", stamp_of(experiment, request)}, {"machine", result.machine},
      {"seconds", result.seconds},     {"result", result.result}};
  replace_file(file_of(request, part), json.dump(1, ' ', false, Json::error_handler_t::replace) + "\n");
}

void write_findings(const Experiment& experiment, const ReproduceRequest& request, const PartResults& results, const Findings& findings,
                    std::FILE* out) {
  double seconds = 0;
  std::set<std::string> machines;
  for (const auto& [name, result] : results) seconds += result.seconds, machines.insert(machine_text(result.machine));
  std::string notes = fmt::format("paper: {}\n", experiment.claim);
  for (const std::string& note : findings.notes) notes += note + "\n";
  notes += fmt::format("{} parts, {} together\n", results.size(), duration_text(seconds));
  for (const std::string& machine : machines) notes += machine + "\n";
  const Json stamp = stamp_of(experiment, request);
  const fs::path page = request.folder / (experiment.name + ".html"), numbers = request.folder / (experiment.name + ".json");
  replace_file(page, page_html(fmt::format("{}, {}", experiment.name, request.size),
                               table_html(findings) + "<pre>" + escape_html(notes) + "</pre>\n", findings.charts, settings_html(stamp)));
  const Json json{{"experiment", experiment.name}, {"paper", experiment.claim},   {"settings", stamp},     {"seconds", seconds},
                  {"machines", machines},          {"columns", findings.columns}, {"rows", findings.rows}, {"notes", findings.notes},
                  {"figures", findings.figures}};
  replace_file(numbers, json.dump(1, ' ', false, Json::error_handler_t::replace) + "\n");
  fmt::print(out, "\n{}\n{}\nwritten {} and {}\n", printed_table(findings), notes, page.string(), numbers.string());
}

}  // namespace hedgehog
